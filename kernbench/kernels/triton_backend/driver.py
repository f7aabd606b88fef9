"""Launches what the compiler made, and stands in for Triton's driver while a KernBench context is open."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import triton.backends
import triton.backends.driver as base
from triton.backends.compiler import GPUTarget

from kernbench.kernels import device as devices
from kernbench.kernels import foreign
from kernbench.kernels.descriptors import PAD_NAN, PADDING
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.launch import launch
from kernbench.kernels.triton_backend import NAME, gpus, impersonated, tuning

_one_thread = threading.RLock()
"""Threads take turns at launching: the device's record and memory belong to all of them."""
_tuners: weakref.WeakSet[Any] = weakref.WeakSet()
"""Autotuners that chose by simulated time. What they chose holds for one context's machine only."""


class _Utils:
    """What Triton asks of a device when it loads a binary."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: Any) -> tuple[None, bytes, int, int, int]:
        # No module: Triton would ask whichever driver is active when it dies to unload it.
        return None, binary, gpus.REGISTERS_A_THREAD if impersonated else 0, 0, 2**30

    def get_device_properties(self, device: Any) -> dict[str, int]:
        # Scratchpad is checked at launch, against the machine of the rank that launches.
        target = devices.current().target
        if not impersonated:
            return {"max_shared_mem": 2**62, "multiprocessor_count": target.pes, "warpSize": 1}
        return {
            "max_shared_mem": gpus.shared_memory(impersonated[-1][1]),
            "max_num_regs": gpus.REGISTERS,
            "multiprocessor_count": target.pes,
            "warpSize": gpus.WARP,
            "sm_clock_rate": round(target.gemm_clock / 1e3),
            "mem_clock_rate": gpus.memory_clock(target.hbm_bandwidth),
            "mem_bus_width": gpus.MEMORY_BUS,
        }


class Launcher:
    """Called by Triton for every launch of one compiled kernel, with all of its bound arguments."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name
        self.file = _file_of(source)
        self.num_stages = metadata.num_stages
        self.kernels: dict[tuple[bool, ...], Kernel] = {}
        """By which of the arguments that are descriptors are padded with NaN: the text does not say."""
        self.kinds = tuple(source.signature.values())
        self.flat = not any(isinstance(kind, tuple) or kind.startswith("tensordesc") for kind in self.kinds)
        self.runtime = [i for i, kind in enumerate(self.kinds) if kind != "constexpr"]
        self.names = tuple(runtime_names(source.signature, self.kinds))
        self.constexprs = {
            name: value
            for name, kind, value in zip(source.signature, self.kinds, _constants(source), strict=True)
            if kind == "constexpr"
        }

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: Any,
        function: bytes,
        packed: Any,
        launch_metadata: Any,
        enter_hook: Callable[[Any], Any] | None,
        exit_hook: Callable[[Any], Any] | None,
        *args: Any,
    ) -> None:
        padded = () if self.flat else tuple(_nan_padded(self.kinds, args))
        kernel = self.kernels.get(padded)
        if kernel is None:
            text = padding_written(relocated(function.decode(), self.file), padded)
            kernel = Kernel(self.name, text, self.num_stages, self.constexprs, names=self.names, shares=True)
            self.kernels[padded] = kernel
        values = [args[i] for i in self.runtime] if self.flat else list(_flatten(self.kinds, args))
        with _one_thread:
            tuning.launching(kernel)
            if enter_hook is not None:
                enter_hook(launch_metadata)
            launch(kernel, (grid_x, grid_y, grid_z), values)
            if exit_hook is not None:
                exit_hook(launch_metadata)


def launcher(source: Any, metadata: Any) -> Launcher:
    """The launcher of a compiled kernel. Triton asks before every launch (having been given no module to keep)."""
    made: Launcher | None = getattr(source, "_kernbench_launcher", None)
    if made is None:
        made = source._kernbench_launcher = Launcher(source, metadata)
    return made


def _file_of(source: Any) -> str:
    """Where the kernel's source lies; empty where it was read as IR."""
    function = getattr(getattr(source, "fn", None), "fn", None)
    return getattr(getattr(function, "__code__", None), "co_filename", "")


def relocated(text: str, file: str) -> str:
    """TTIR whose locations name a kernel's file where it lies now. Triton keeps compiled kernels by their source text,
    and with them where that lay when it was compiled first, be it a copy or gone."""
    name, first = os.path.basename(file), re.search(r'^#loc = loc\("([^"]+)":', text, re.MULTILINE)
    home = first.group(1) if first and file else file
    for path in set(re.findall(r'loc\("([^"]+)":', text)) - {file}:
        if path == home or (os.path.basename(path) == name and not os.path.exists(path)):
            text = text.replace(f'loc("{path}":', f'loc("{file}":')
    return text


def padding_written(text: str, padded: Sequence[bool]) -> str:
    """TTIR whose kernel says of each descriptor among its parameters, in order, whether it is padded with NaN.

    A GPU learns that from the descriptor's bytes, ours from an attribute of the parameter.
    """
    if not any(padded):
        return text
    start = text.index("tt.func public @")
    end = text.index("\n", start)
    turn = iter(padded)

    def written(found: re.Match[str]) -> str:
        if not next(turn):
            return found[0]
        others = f", {found[2]}" if found[2] else ""
        return f"{found[1]} {{{PADDING} = {PAD_NAN} : i32{others}}}"

    parameter = r"(!tt\.tensordesc<(?:tensor<[^<>]*>|[^<>]*)>)(?: \{([^{}]*)\})?"
    return text[:start] + re.sub(parameter, written, text[start:end]) + text[end:]


def _constants(source: Any) -> list[Any]:
    return [source.constants.get((i,)) for i in range(len(source.signature))]


def runtime_names(names: Iterable[str], kinds: Sequence[Any]) -> Iterator[str]:
    """What Triton calls the runtime arguments since it writes their names into TTIR (3.6): ``x``, ``pair.0``,
    ``desc.shape.1``."""
    for name, kind in zip(names, kinds, strict=True):
        if isinstance(kind, tuple):
            yield from runtime_names((f"{name}.{i}" for i in range(len(kind))), kind)
        elif kind.startswith("tensordesc"):
            rank = kind[: kind.index("]")].count(",") + 1
            yield name
            yield from (f"{name}.{what}.{axis}" for what in ("shape", "stride") for axis in range(rank))
        elif kind != "constexpr":
            yield name


def _flatten(kinds: Sequence[Any], args: Sequence[Any]) -> Any:
    """Runtime arguments in the order of the TTIR function: tuples and descriptors are spread, constants left out."""
    for kind, arg in zip(kinds, args, strict=True):
        if isinstance(kind, tuple):
            yield from _flatten(kind, arg)
        elif kind.startswith("tensordesc"):
            yield from (arg.base, *arg.shape, *arg.strides)
        elif kind != "constexpr":
            yield arg


def _nan_padded(kinds: Sequence[Any], args: Sequence[Any]) -> Iterator[bool]:
    """Of the arguments that are descriptors, in order: whether what lies out of their bounds reads as NaN."""
    for kind, arg in zip(kinds, args, strict=True):
        if isinstance(kind, tuple):
            yield from _nan_padded(kind, arg)
        elif kind.startswith("tensordesc"):
            yield getattr(arg, "padding", "zero") == "nan"


def simulated_time(
    fn: Callable[[], Any],
    warmup: Any = None,
    rep: Any = None,
    grad_to_none: Any = None,
    quantiles: Sequence[float] | None = None,
    return_mode: str = "mean",
    **_: Any,
) -> Any:
    """Triton's ``do_bench`` and ``do_bench_cudagraph``: simulated milliseconds of what ``fn`` launches, alone on an
    idle machine. One run says it all: every quantile, the mean, minimum, maximum and median are the same number, and
    "all" is a list of one.

    Raises:
        ValueError: a ``return_mode`` that Triton does not know.
    """
    if return_mode not in ("min", "max", "mean", "median", "all"):
        raise ValueError(f"return_mode={return_mode!r}: expected 'min', 'max', 'mean', 'median' or 'all'")
    for cell in getattr(fn, "__closure__", None) or ():
        if isinstance(cell.cell_contents, triton.runtime.Autotuner):
            _tuners.add(cell.cell_contents)
    if triton.knobs.runtime.interpret:  # no kernel is recorded, so none has a time
        milliseconds = 0.0
    else:
        milliseconds = devices.current().benchmark(fn)
    if quantiles is not None:
        return [milliseconds] * len(quantiles) if len(quantiles) != 1 else milliseconds
    return [milliseconds] if return_mode == "all" else milliseconds


class KernBenchDriver(base.DriverBase):
    """The driver of the simulated device. Which rank's device it is, the current context says at each launch."""

    launcher_cls = staticmethod(launcher)

    def __init__(self) -> None:
        super().__init__()
        self.utils = _Utils()

    @classmethod
    def is_active(cls) -> bool:
        """Whether Triton should choose this driver unasked: as the impersonated GPU's, where the environment says so,
        and, so that a launch outside of a context says what to do, in a program that uses KernBench and has no other.
        """
        return bool(impersonated) or _asked_for() or ("kernbench.runtime_api" in sys.modules and not _others_active())

    def get_current_target(self) -> GPUTarget:
        if not devices.is_active() and not _asked_for():
            devices.current()  # raises: what else Triton does first would hide why it cannot launch
        return GPUTarget(*impersonated[-1], 32) if impersonated else GPUTarget(NAME, "ttir", 1)

    def get_current_device(self) -> str:
        # Triton keeps compiled kernels per device: a name no other driver uses keeps theirs apart from ours.
        return f"{NAME} as {impersonated[-1]}" if impersonated else NAME

    def set_current_device(self, device: Any) -> None:
        """Ranks are chosen by the runtime, not by Triton."""

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device(impersonated[-1][0], 0) if impersonated else torch.device("cpu")

    def get_device_interface(self) -> Any:
        if impersonated:
            import torch

            return torch.cuda
        raise NotImplementedError(
            "KernBench has no torch device interface: inside a context triton.testing.do_bench returns simulated "
            "milliseconds, and so do the runtime's events"
        )

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        return simulated_time


def _asked_for() -> bool:
    return os.environ.get("TRITON_DEFAULT_BACKEND") == NAME


def _others_active() -> bool:
    return any(other.driver.is_active() for name, other in triton.backends.backends.items() if name != NAME)


def _taking_arrays(run: Callable[..., Any]) -> Callable[..., Any]:
    """``JITFunction.run`` that takes numpy arrays and numbers too, which Triton itself would refuse."""

    @functools.wraps(run)
    def with_arrays(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(foreign.of_numpy(a) if isinstance(a, foreign.NUMPY) else a for a in args)
        for name, value in kwargs.items():
            if isinstance(value, foreign.NUMPY):
                kwargs[name] = foreign.of_numpy(value)
        return run(self, *args, **kwargs)

    return with_arrays


_before: list[tuple[Any, dict[str, Any]]] | None = None
"""(object, attributes) as they were before :func:`take_over`, Triton's driver first."""


def take_over() -> None:
    """Make KernBench Triton's active driver and ``triton.testing.do_bench`` simulated time."""
    global _before
    import triton.language
    import triton.testing
    from triton.compiler.code_generator import CodeGenerator
    from triton.runtime import driver as config

    if triton.knobs.runtime.interpret:
        warnings.warn(
            "TRITON_INTERPRET is set: kernels run in Triton's interpreter, on the simulated memory but without "
            "simulated time",
            RuntimeWarning,
            stacklevel=4,
        )
    register()
    for tuner in _tuners:
        tuner.cache.clear()
    if _before is None:
        _before = [(config, dict(config.__dict__))]
        _replace(triton.runtime.JITFunction, "run", _taking_arrays)
        _replace(triton.runtime.Autotuner, "run", tuning.watched_run)
        _replace(triton.runtime.Autotuner, "_bench", tuning.watched_bench)
        for bench in (triton.testing.do_bench, triton.testing.do_bench_cudagraph):
            # From within, since programs import it by its name before a context opens.
            for name in ("__defaults__", "__kwdefaults__", "__code__"):
                _replace(bench, name, lambda _, name=name: getattr(_bench, name))  # type: ignore[misc]
        skipped = triton.language.core.builtin(_no_breakpoint)
        _replace(CodeGenerator, "builtin_namespace", lambda names: names | {"breakpoint": skipped})
        if triton.knobs.runtime.interpret:
            from triton.runtime import interpreter

            from kernbench.kernels.triton_backend.interpreted import on_simulated_memory, with_floats

            _replace(interpreter.GridExecutor, "__call__", on_simulated_memory)
            _replace(interpreter, "_implicit_cvt", with_floats)
        config.set_active(KernBenchDriver())


def _bench(*args: Any, **kwargs: Any) -> Any:
    from kernbench.kernels.triton_backend.driver import simulated_time

    return simulated_time(*args, **kwargs)


def _no_breakpoint(_semantic: Any = None, _builder: Any = None) -> None:
    """``breakpoint()`` in a kernel that is compiled: it stops in Triton's interpreter only."""


def _replace(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
    """Put ``made(before)`` in an attribute's place until :func:`give_back`."""
    assert _before is not None
    before = getattr(owner, name)
    _before.append((owner, {name: before}))
    setattr(owner, name, made(before))


def give_back() -> None:
    """Undo :func:`take_over`."""
    global _before
    if _before is not None:
        (config, attributes), *replaced = _before
        config.__dict__.update(attributes)
        for owner, names in replaced:
            for name, before in names.items():
                setattr(owner, name, before)
        _before = None


def register() -> None:
    """Add the backend where no entry point did, which is so when KernBench runs from its source tree."""
    from kernbench.kernels.triton_backend.compiler import KernBenchBackend

    triton.backends.backends.setdefault(NAME, triton.backends.Backend(KernBenchBackend, KernBenchDriver))
