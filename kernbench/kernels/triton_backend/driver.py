"""Launches what the compiler made, and stands in for Triton's driver while a KernBench context is open."""

from __future__ import annotations

import functools
import os
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton.backends
import triton.backends.driver as base
from triton.backends.compiler import GPUTarget

from kernbench.kernels import device as devices
from kernbench.kernels.foreign import HostArray
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.launch import launch
from kernbench.kernels.triton_backend import NAME, impersonated

_tuners: weakref.WeakSet[Any] = weakref.WeakSet()
"""Autotuners that chose by simulated time. What they chose holds for one context's machine only."""


class _Utils:
    """What Triton asks of a device when it loads a binary."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: Any) -> tuple[None, bytes, int, int, int]:
        # No module: Triton would ask whichever driver is active when it dies to unload it.
        return None, binary, 0, 0, 2**30

    def get_device_properties(self, device: Any) -> dict[str, int]:
        # Scratchpad is checked at launch, against the machine of the rank that launches.
        return {"max_shared_mem": 2**62, "multiprocessor_count": devices.current().target.pes, "warpSize": 1}


class Launcher:
    """Called by Triton for every launch of one compiled kernel, with all of its bound arguments."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name
        self.num_stages = metadata.num_stages
        self.kernel: Kernel | None = None
        self.kinds = tuple(source.signature.values())
        self.flat = not any(isinstance(kind, tuple) or kind.startswith("tensordesc") for kind in self.kinds)
        self.runtime = [i for i, kind in enumerate(self.kinds) if kind != "constexpr"]
        self.names = tuple(tuple(source.signature)[i] for i in self.runtime) if self.flat else ()
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
        if self.kernel is None:
            self.kernel = Kernel(self.name, function.decode(), self.num_stages, self.constexprs, names=self.names)
        if enter_hook is not None:
            enter_hook(launch_metadata)
        values = [args[i] for i in self.runtime] if self.flat else list(_flatten(self.kinds, args))
        launch(self.kernel, (grid_x, grid_y, grid_z), values)
        if exit_hook is not None:
            exit_hook(launch_metadata)


def launcher(source: Any, metadata: Any) -> Launcher:
    """The launcher of a compiled kernel. Triton asks before every launch (having been given no module to keep)."""
    made: Launcher | None = getattr(source, "_kernbench_launcher", None)
    if made is None:
        made = source._kernbench_launcher = Launcher(source, metadata)
    return made


def _constants(source: Any) -> list[Any]:
    return [source.constants.get((i,)) for i in range(len(source.signature))]


def _flatten(kinds: Sequence[Any], args: Sequence[Any]) -> Any:
    """Runtime arguments in the order of the TTIR function: tuples and descriptors are spread, constants left out."""
    for kind, arg in zip(kinds, args, strict=True):
        if isinstance(kind, tuple):
            yield from _flatten(kind, arg)
        elif kind.startswith("tensordesc"):
            if getattr(arg, "padding", "zero") != "zero":
                raise NotImplementedError(
                    f"a host TensorDescriptor with padding='{arg.padding}' is not supported: call "
                    "tl.make_tensor_descriptor(..., padding_option='nan') in the kernel"
                )
            yield from (arg.base, *arg.shape, *arg.strides)
        elif kind != "constexpr":
            yield arg


def simulated_time(fn: Callable[[], Any], *, quantiles: Sequence[float] | None = None, **_: Any) -> Any:
    """Triton's ``do_bench``: simulated milliseconds of ``fn``, alone on an idle machine. One run says it all, so every
    quantile is the same number."""
    for cell in getattr(fn, "__closure__", None) or ():
        if isinstance(cell.cell_contents, triton.runtime.Autotuner):
            _tuners.add(cell.cell_contents)
    milliseconds = devices.current().benchmark(fn)
    return milliseconds if quantiles is None else [milliseconds] * len(quantiles)


class KernBenchDriver(base.DriverBase):
    """The driver of the simulated device. Which rank's device it is, the current context says at each launch."""

    launcher_cls = staticmethod(launcher)

    def __init__(self) -> None:
        super().__init__()
        self.utils = _Utils()

    @classmethod
    def is_active(cls) -> bool:
        """Whether Triton should choose this driver unasked: only where the user's environment says so."""
        return os.environ.get("TRITON_DEFAULT_BACKEND") == NAME

    def get_current_target(self) -> GPUTarget:
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
            "KernBench has no torch device interface: call triton.testing.do_bench through its module inside the "
            "context (it then returns simulated milliseconds), or time with the runtime's events"
        )

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Any:
        return simulated_time


def _taking_arrays(run: Callable[..., Any]) -> Callable[..., Any]:
    """``JITFunction.run`` that takes numpy arrays too, which Triton itself would refuse."""

    @functools.wraps(run)
    def with_arrays(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(HostArray(a) if isinstance(a, np.ndarray) else a for a in args)
        for name, value in kwargs.items():
            if isinstance(value, np.ndarray):
                kwargs[name] = HostArray(value)
        return run(self, *args, **kwargs)

    return with_arrays


_before: dict[str, Any] | None = None


def take_over() -> None:
    """Make KernBench Triton's active driver and ``triton.testing.do_bench`` simulated time."""
    global _before
    import triton.testing
    from triton.runtime import driver as config

    if triton.knobs.runtime.interpret:
        warnings.warn(
            "TRITON_INTERPRET is set, so kernels made now run in Triton's interpreter, which cannot read simulated "
            "memory and has no time: unset it to run them in KernBench",
            RuntimeWarning,
            stacklevel=4,
        )
    register()
    for tuner in _tuners:
        tuner.cache.clear()
    if _before is None:
        run = triton.runtime.JITFunction.run
        _before = {"config": dict(config.__dict__), "do_bench": triton.testing.do_bench, "run": run}
        triton.runtime.JITFunction.run = _taking_arrays(run)
        config.set_active(KernBenchDriver())
        triton.testing.do_bench = simulated_time


def give_back() -> None:
    """Undo :func:`take_over`."""
    global _before
    import triton.testing
    from triton.runtime import driver as config

    if _before is not None:
        config.__dict__.update(_before["config"])
        triton.testing.do_bench = _before["do_bench"]
        triton.runtime.JITFunction.run = _before["run"]
        _before = None


def register() -> None:
    """Add the backend where no entry point did, which is so when KernBench runs from its source tree."""
    from kernbench.kernels.triton_backend.compiler import KernBenchBackend

    triton.backends.backends.setdefault(NAME, triton.backends.Backend(KernBenchBackend, KernBenchDriver))
