"""The device a kernel is launched on, as kernels see it: memory, a few numbers, and somewhere to put the record.

The runtime implements :class:`Device` for each rank and says, with :func:`set_provider`, which one is current. While a
provider is set, Triton's launches go to KernBench; when it is taken away, Triton is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kernbench.kernels.team import Team
from kernbench.memory import AddressSpace, Allocation
from kernbench.sim_engine.oplog import KernelRecord


@dataclass(frozen=True)
class Target:
    """What launching needs to know of the machine: the scratchpad, and enough to choose a tile size.

    Only the first three change what a launch does. The others feed the cost estimate of built-in kernels.
    """

    tcm_capacity: int
    """Bytes of one PE's scratchpad."""
    programs_in_flight: int
    """Programs that may overlap on a PE."""
    pes: int
    """PEs of the device (one rank)."""
    gemm_rows: int = 64
    gemm_cols: int = 64
    gemm_clock: float = 1e9
    """Hz."""
    gemm_rate: tuple[tuple[str, float], ...] = (("default", 1.0), ("f32", 0.25))
    """Speed relative to one multiply-add per cell and cycle, by input dtype; ``default`` where not named."""
    hbm_bandwidth: float = 3.2e12
    """Bytes/s of all the device's HBM together."""
    hbm_granule: int = 256
    """Bytes of consecutive addresses on one HBM channel."""
    hbm_latency: float = 150e-9
    """Seconds from asking to the first byte, network included."""

    @classmethod
    def from_spec(cls, spec: Any) -> Target:
        """The target that a machine description (``SystemGraph.spec``) gives to one rank."""
        cube = spec.sip.cube
        cubes = spec.sip.cubes.rows * spec.sip.cubes.cols
        hops = (cube.pes.rows + cube.pes.cols) / 2
        return cls(
            tcm_capacity=int(cube.pe.tcm.capacity),
            programs_in_flight=int(cube.pe.programs_in_flight),
            pes=cubes * cube.pes.rows * cube.pes.cols,
            gemm_rows=cube.pe.gemm.rows,
            gemm_cols=cube.pe.gemm.cols,
            gemm_clock=float(cube.pe.gemm.clock),
            gemm_rate=tuple(sorted((str(k), float(v)) for k, v in dict(cube.pe.gemm.rate).items())),
            hbm_bandwidth=cubes * float(cube.hbm.bandwidth),
            hbm_granule=int(cube.hbm.interleave.granule),
            hbm_latency=(cube.hbm.latency + hops * cube.noc.latency) * 1e-12,
        )


class Device(Protocol):
    """One rank's device. Everything but ``benchmark`` and ``stream`` is asked for at every launch."""

    space: AddressSpace
    target: Target
    enable_data: bool
    """False: timing only; floating-point work that decides nothing is skipped."""
    stream: int
    """The current stream: scratch memory that a built-in kernel takes and returns belongs to it."""
    team: Team
    """The devices that its kernels can reach, and its number among them."""
    member: int

    def touch(self, allocations: list[Allocation]) -> None:
        """Called before a kernel runs with the allocations its pointer arguments name; raises if one is in flight."""

    def submit(self, record: KernelRecord) -> None:
        """Put what a kernel did on the current stream."""

    def benchmark(self, fn: Callable[[], Any]) -> float:
        """Simulated milliseconds of what ``fn`` launches, replayed alone on an idle machine and left out of the run's
        record."""


Provider = Callable[[], Device]
_provider: Provider | None = None


class NoDeviceError(RuntimeError):
    """A kernel was launched with no KernBench context open."""


def set_provider(provider: Provider | None) -> Provider | None:
    """Say where the current device comes from (None: there is none any more) and return what was set before.

    ``provider`` is called at every launch, so it may answer differently for each rank. Set it when a context opens and
    set the returned one back when it closes.
    """
    global _provider
    before, _provider = _provider, provider
    from kernbench.kernels.triton_backend import follow_context

    follow_context(provider is not None)
    return before


def is_active() -> bool:
    """Whether a context is open, so that launches have a device to go to."""
    return _provider is not None


def current() -> Device:
    """The device launches go to.

    Raises:
        NoDeviceError: no context is open.
    """
    if _provider is None:
        raise NoDeviceError(
            "no KernBench device: a kernel was launched outside a context. Launch it inside "
            '`with RuntimeContext.open("ahbm-1sip") as ctx:` (ranks: in the function given to '
            "ctx.multiprocessing.spawn), or inside `with kernbench.triton.impersonate():`"
        )
    return _provider()
