"""What programs ask of ``torch.cuda``, answered by the simulated machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from kernbench.kernels import device as devices
from kernbench.runtime_api import ahbm
from kernbench.triton.patches import patched

CUDA_VERSION = "12.8"
"""What ``torch.version.cuda`` says: the version that torch's own wheels for these GPUs are built with."""


@dataclass(frozen=True)
class DeviceProperties:
    """The names of torch's ``_CudaDeviceProperties``. Sizes are the simulated machine's; those it has no counterpart
    of are what every GPU of the last ten years has."""

    name: str
    major: int
    minor: int
    total_memory: int
    """Bytes."""
    multi_processor_count: int
    """PEs."""
    shared_memory_per_block_optin: int
    """Bytes of a PE's scratchpad; also under the next two names."""
    shared_memory_per_block: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int = 0
    warp_size: int = 32
    max_threads_per_block: int = 1024
    max_threads_per_multi_processor: int = 2048
    regs_per_multiprocessor: int = 65536
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    gcnArchName: str = ""


class Stream(ahbm.Stream):
    """A new stream of the current device."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        sip = _rank().sip
        super().__init__(sip, sip.new_stream())
        self.cuda_stream = self.stream_id


class Event(ahbm.Event):
    """A mark in a stream; ``elapsed_time`` gives simulated milliseconds."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **_: Any
    ) -> None:
        super().__init__(_rank().sip, enable_timing)


def _rank() -> Any:
    device = devices.current()
    if not hasattr(device, "ctx"):
        raise NotImplementedError(
            "streams and events need a RuntimeContext: open one (RuntimeContext.open) instead of a StandaloneDevice"
        )
    return device


def installed(capability: int) -> AbstractContextManager[None]:
    """torch.cuda as on a machine with GPUs of a compute capability (90 is 9.0)."""
    shim = _Shim(capability)
    names = [name for name in vars(_Shim) if not name.startswith("_")]
    changes = [(torch.cuda, name, getattr(shim, name)) for name in names]
    changes += [(torch.cuda, "Stream", Stream), (torch.cuda, "Event", Event), (torch.cuda, "_lazy_init", shim.init)]
    nothing = SimpleNamespace(**{name: lambda *a, **k: 0 for name in ("range_push", "range_pop", "mark")})
    changes += [(torch.cuda.nvtx, name, getattr(nothing, name)) for name in vars(nothing)]
    changes += [
        (torch.cuda, "_DeviceGuard", shim.device),
        (torch.cuda, "_exchange_device", lambda device: 0),
        (torch.cuda, "_maybe_exchange_device", lambda device: 0),
        (torch._C, "_cuda_getCurrentRawStream", lambda device: _raw_stream()),
        (torch._C._dynamo.guards, "_empty_strided_cuda", _empty_strided),
    ]
    changes += [(torch.cuda, name, _no_graphs) for name in ("CUDAGraph", "graph", "make_graphed_callables")]
    return patched([*changes, (torch.version, "cuda", CUDA_VERSION)])


class _Shim:
    """Each public method replaces the function of that name in ``torch.cuda``. One GPU: this rank's SIP."""

    def __init__(self, capability: int) -> None:
        self._capability = divmod(capability, 10)

    # Devices.

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def init(self) -> None:
        """There is nothing to set up."""

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        self._check(device)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        self._check(device)
        yield

    @contextmanager
    def device_of(self, obj: Any) -> Iterator[None]:
        yield

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self._capability

    def get_device_name(self, device: Any = None) -> str:
        return f"KernBench as sm_{self._capability[0]}{self._capability[1]}"

    def get_arch_list(self) -> list[str]:
        return [f"sm_{self._capability[0]}{self._capability[1]}"]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return self._capability >= (8, 0)

    def get_device_properties(self, device: Any = None) -> DeviceProperties:
        self._check(device)
        current = devices.current()
        scratchpad = current.target.tcm_capacity
        return DeviceProperties(
            self.get_device_name(),
            *self._capability,
            current.space.capacity,
            current.target.pes,
            scratchpad,
            scratchpad,
            scratchpad,
        )

    # Streams.

    def synchronize(self, device: Any = None) -> None:
        current = devices.current()
        if hasattr(current, "ctx"):
            current.ctx.ahbm.synchronize()

    def current_stream(self, device: Any = None) -> ahbm.Stream:
        return _numbered(_rank().ctx.ahbm.current_stream())

    def default_stream(self, device: Any = None) -> ahbm.Stream:
        return _numbered(_rank().ctx.ahbm.default_stream())

    def set_stream(self, stream: Any) -> None:
        if stream is not None:
            _rank().ctx.ahbm.set_stream(stream)

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        return _rank().ctx.ahbm.stream(stream)

    def is_current_stream_capturing(self) -> bool:
        return False

    # Memory: what kernels have touched counts, since torch's own allocations are the host's.

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def memory_allocated(self, device: Any = None) -> int:
        return devices.current().space.allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return devices.current().space.peak

    memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        space = devices.current().space
        space.peak = space.allocated

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        space = devices.current().space
        return space.capacity - space.allocated, space.capacity

    # Inside.

    @staticmethod
    def _check(device: Any) -> None:
        number = device if isinstance(device, int) else getattr(device, "index", None)
        if isinstance(device, str):
            number = torch.device(device).index
        if number not in (None, 0, -1):
            raise RuntimeError(f"CUDA error: invalid device ordinal: there is one impersonated device, got {device!r}")


def _empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    """How code that torch.compile wrote makes tensors."""
    return torch.empty_strided(size, stride, dtype=dtype)


def _no_graphs(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "CUDA graphs are not supported: torch's own operators would not be in them. Launch the kernels in a loop"
    )


def _raw_stream() -> int:
    """What torch's compiled code and many launchers ask for: the number of the current stream."""
    device = devices.current()
    return device.ctx.ahbm.current_stream().stream_id if hasattr(device, "ctx") else 0


def _numbered(stream: ahbm.Stream) -> ahbm.Stream:
    stream.cuda_stream = stream.stream_id  # type: ignore[attr-defined]
    return stream
