"""What programs ask of ``torch.cuda``, answered by the simulated machine."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import torch

from kernbench.kernels import device as devices
from kernbench.kernels.triton_backend import gpus
from kernbench.triton import streams
from kernbench.triton.patches import patched

CUDA_VERSION = "12.8"
"""What ``torch.version.cuda`` says: the version that torch's own wheels for these GPUs are built with."""


_NO_UUID = UUID(int=0)


@dataclass(frozen=True)
class DeviceProperties:
    """The names of torch's ``_CudaDeviceProperties``: the simulated machine's where it has such a thing, else those of
    a GPU of that compute capability."""

    name: str
    major: int
    minor: int
    total_memory: int
    """Bytes."""
    multi_processor_count: int
    """PEs."""
    shared_memory_per_block_optin: int
    """Bytes, as the next two."""
    shared_memory_per_multiprocessor: int
    clock_rate: int
    """kHz."""
    memory_clock_rate: int
    """kHz; twice this times the bus's width is the machine's bandwidth."""
    shared_memory_per_block: int = 48 << 10
    memory_bus_width: int = gpus.MEMORY_BUS
    """Bits."""
    L2_cache_size: int = 0
    warp_size: int = gpus.WARP
    max_threads_per_block: int = 1024
    max_threads_per_multi_processor: int = 2048
    regs_per_multiprocessor: int = gpus.REGISTERS
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    gcnArchName: str = ""
    uuid: UUID = _NO_UUID
    pci_bus_id: int = 0
    pci_device_id: int = 0
    pci_domain_id: int = 0


def installed(capability: int) -> AbstractContextManager[None]:
    """torch.cuda as on a machine with GPUs of a compute capability (90 is 9.0)."""
    changes: list[tuple[Any, str, Any]] = []
    replaced = {"device": device, "device_of": device_of} | streams.REPLACED
    for shim in (_Devices(capability), _Memory(), streams.Shim()):
        replaced |= {name: getattr(shim, name) for name in vars(type(shim)) if not name.startswith("_")}
    for owner in (torch.cuda, torch.cuda.memory, torch.cuda.streams, torch.cuda.graphs):
        changes += [(owner, name, new) for name, new in replaced.items() if hasattr(owner, name)]
    for owner, names in (
        (torch.cuda.nvtx, ("range_push", "range_pop", "range_start", "range_end", "mark")),
        (torch.cuda.profiler, ("start", "stop")),
    ):
        changes += [(owner, name, _nothing()) for name in names]
    changes += [
        (torch.cuda, "_lazy_init", _nothing()),
        (torch.cuda, "_DeviceGuard", device),
        (torch.cuda, "_exchange_device", _nothing()),
        (torch.cuda, "_maybe_exchange_device", _nothing()),
        (torch._C, "_cuda_getCurrentRawStream", streams.raw_stream),
        (torch._C, "_cuda_getDevice", _nothing()),
        (torch._C._dynamo.guards, "_empty_strided_cuda", _empty_strided),
        # What DataParallel does with the batch, the parameters and the results of one GPU.
        (torch._C, "_scatter", lambda tensor, *_: (tensor,)),
        (torch._C, "_broadcast_coalesced", lambda tensors, *_: [tensors]),
        (torch._C, "_gather", lambda tensors, *_: tensors[0]),
    ]
    return patched([*changes, (torch.version, "cuda", CUDA_VERSION)])


def _nothing() -> Any:
    """A new function that does nothing, since torch tells functions apart."""
    return lambda *_, **__: 0


def _check(device: Any) -> None:
    number = device if isinstance(device, int) else getattr(device, "index", None)
    if isinstance(device, str):
        number = torch.device(device).index
    if number not in (None, 0, -1):
        raise RuntimeError(f"CUDA error: invalid device ordinal: there is one impersonated device, got {device!r}")


class device:
    """``with torch.cuda.device(d):``, for the one there is."""

    def __init__(self, device: Any) -> None:
        _check(device)
        self.idx, self.prev_idx = 0, 0

    def __enter__(self) -> None:
        """It is the current one already."""

    def __exit__(self, *_: object) -> None:
        """It stays so."""


class device_of(device):
    """``with torch.cuda.device_of(tensor):``."""

    def __init__(self, obj: Any) -> None:
        super().__init__(0)


class _Devices:
    """Each public method replaces the function of that name in ``torch.cuda``. One GPU: this rank's SIP."""

    def __init__(self, capability: int) -> None:
        self._number = capability
        self._capability = divmod(capability, 10)

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
        _check(device)

    def can_device_access_peer(self, device: Any, peer_device: Any) -> bool:
        """A GPU is no peer of its own."""
        _check(device)
        _check(peer_device)
        return False

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self._capability

    def get_device_name(self, device: Any = None) -> str:
        return f"KernBench as sm_{self._number}"

    def get_arch_list(self) -> list[str]:
        return [f"sm_{self._number}"]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return self._capability >= (8, 0)

    def clock_rate(self, device: Any = None) -> int:
        """MHz."""
        return round(devices.current().target.gemm_clock / 1e6)

    def get_device_properties(self, device: Any = None) -> DeviceProperties:
        _check(device)
        current = devices.current()
        return DeviceProperties(
            self.get_device_name(),
            *self._capability,
            total_memory=current.space.capacity,
            multi_processor_count=current.target.pes,
            shared_memory_per_block_optin=gpus.shared_memory(self._number),
            shared_memory_per_multiprocessor=gpus.shared_memory_of_processor(self._number),
            clock_rate=round(current.target.gemm_clock / 1e3),
            memory_clock_rate=gpus.memory_clock(current.target.hbm_bandwidth),
        )


class _Memory:
    """Likewise. What kernels have touched counts, since torch's own allocations are the host's."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def ipc_collect(self) -> None:
        """Nothing is shared with other processes."""

    def get_allocator_backend(self) -> str:
        return "native"

    def memory_allocated(self, device: Any = None) -> int:
        return devices.current().space.allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return devices.current().space.peak

    memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated
    device_memory_used = memory_allocated

    def memory_stats(self, device: Any = None) -> OrderedDict[str, int]:
        """torch's counters that have a counterpart, in bytes."""
        space = devices.current().space
        return OrderedDict(
            (f"{what}_bytes.all.{when}", number)
            for what in ("active", "allocated", "reserved")
            for when, number in (("current", space.allocated), ("peak", space.peak))
        )

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        space = devices.current().space
        space.peak = space.allocated

    reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        space = devices.current().space
        return space.capacity - space.allocated, space.capacity


def _empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    """How code that torch.compile wrote makes tensors."""
    return torch.empty_strided(size, stride, dtype=dtype)
