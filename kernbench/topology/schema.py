"""What a machine description may say: one frozen model for each hardware noun.

Quantities are written with units in YAML and are held in base units here: bytes (int), bytes per second (float),
picoseconds (int), hertz (float). No number of a machine stands in this file: what a description leaves out comes from
``defaults.yaml`` beside the presets. A field that is ``None`` or 0 there is worked out from others, as its text says.
"""

from __future__ import annotations

import warnings
from functools import partial
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kernbench.topology import units
from kernbench.topology.problem import any_of, listed, near

DTYPES = ("f64", "f32", "tf32", "f16", "bf16", "f8e4m3", "f8e5m2", "i64", "i32", "i16", "i8")
"""Element types a GEMM rate can be given for."""


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"found `{value}`, expected a whole number of at least 1")
    return int(value)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
        raise ValueError(f"found `{value}`, expected a number above 0")
    return float(value)


def _quantity(dimension: units.Dimension, value: Any, zero: bool = False) -> int | float:
    parsed = units.parse(value, dimension)
    if parsed == 0 and not zero:
        raise ValueError(f"found `{value}`, expected a {dimension.name} above 0 such as `{dimension.example}`")
    return parsed


def _rate_key(value: Any) -> str:
    known = ("default", *DTYPES)
    if value not in known:
        hint = f": did you mean {any_of(alike)}?" if (alike := near(str(value), known)) else ""
        raise ValueError(f"unknown element type, expected one of {listed(known)}{hint}")
    return str(value)


Count = Annotated[int, BeforeValidator(_count)]
Positive = Annotated[float, BeforeValidator(_positive)]
Bytes = Annotated[int, BeforeValidator(partial(_quantity, units.BYTES))]
Bandwidth = Annotated[float, BeforeValidator(partial(_quantity, units.BANDWIDTH))]
Duration = Annotated[int, BeforeValidator(partial(_quantity, units.DURATION, zero=True))]
RateKey = Annotated[str, BeforeValidator(_rate_key)]
Frequency = Annotated[float, BeforeValidator(partial(_quantity, units.FREQUENCY))]


class Part(BaseModel):
    """Base of every model here: unknown keys are errors, and a spec never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(Part):
    rows: Count
    cols: Count

    @property
    def count(self) -> int:
        return self.rows * self.cols


class HostLink(Part):
    """The link between the host and one SIP's IO die; every SIP has its own."""

    bandwidth: Bandwidth
    """Each way."""
    latency: Duration


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message='Field name "copy"')  # pydantic's own `copy` is deprecated

    class Host(Part):
        """What the host's own work costs it."""

        link: HostLink
        launch: Duration
        """Host time of one kernel launch."""
        sync: Duration
        """Host time of a synchronisation, beside the waiting itself."""
        copy: Duration  # type: ignore[assignment]
        """Host time to issue one copy."""
        collective: Duration
        """Host time to issue one collective."""


class Fabric(Part):
    """How the SIPs are joined. Between two SIPs there is at most one link each way."""

    kind: Literal["ring", "fully_connected", "mesh", "torus", "switch"]
    rows: Count | None = None
    """Mesh and torus: rows of the SIP grid. Left out: the squarest grid there is."""
    cols: Count | None = None
    bandwidth: Bandwidth = 0.0
    """Of one link, each way. Needed as soon as there is more than one SIP."""
    latency: Duration
    """Of one link; through a switch a message passes two."""


class System(Part):
    sips: Count
    fabric: Fabric
    host: Host


class Link(Part):
    """A kind of link: bandwidth each way (0 where there is none to be), latency of one crossing."""

    bandwidth: Bandwidth = 0.0
    latency: Duration


class IO(Part):
    """The link between a cube and its SIP's IO die."""

    bandwidth: Bandwidth | None = None
    """Each way; left out, it carries the cube's HBM bandwidth."""
    latency: Duration


class Noc(Part):
    """The network that joins the PEs of a cube: a mesh of routers, or one crossbar."""

    kind: Literal["mesh", "crossbar"]
    bandwidth: Bandwidth
    """Of one link, each way: between neighbouring routers, and between a router (or the crossbar) and a PE."""
    latency: Duration
    """Of one router (or crossbar) and the wire behind it."""


class Interleave(Part):
    """How consecutive addresses spread over channels."""

    granule: Bytes
    hash: Literal["xor", "modulo"]


class HBM(Part):
    """The memory of one cube."""

    capacity: Bytes
    bandwidth: Bandwidth
    """Effective, over all channels."""
    channels: Count
    """Independent ones: pseudo-channels, for HBM."""
    latency: Duration
    """From a request's arrival at the memory to its first byte."""
    port_bandwidth: Bandwidth | None = None
    """Of one port into the NoC, each way: a mesh has one in each row, a crossbar one in all. Left out: as wide as the
    NoC's links, or wider where the HBM needs it."""
    burst: Bytes
    """What one access moves at least: a DMA moves every aligned burst that it touches, whole and once."""
    interleave: Interleave


class Tcm(Part):
    capacity: Bytes


class Dma(Part):
    depth: Count
    """Transfers a PE keeps in flight."""
    issue: Duration
    """From one issue to the next."""


class Gemm(Part):
    """A systolic array of rows x cols multiply-accumulate cells."""

    rows: Count
    cols: Count
    clock: Frequency
    dataflow: Literal["output_stationary", "weight_stationary", "input_stationary"]
    rate: dict[RateKey, Positive]
    """Speed for an element type, 1 being one multiply-accumulate a cell and cycle; ``default`` stands for the rest."""

    def rate_of(self, dtype: str) -> float:
        return self.rate.get(dtype, self.rate["default"])

    def flops(self, dtype: str) -> float:
        """Peak FLOP/s: two for each cell and cycle, times the type's rate."""
        return 2.0 * self.rows * self.cols * self.clock * self.rate_of(dtype)


class Vector(Part):
    lanes: Count
    clock: Frequency
    cycles: dict[str, Positive]
    """Cycles an operation occupies a lane for one element; ``default`` stands for the rest."""

    def cycles_of(self, op: str) -> float:
        return self.cycles.get(op, self.cycles["default"])


class PE(Part):
    tcm: Tcm
    dma: Dma
    gemm: Gemm
    vector: Vector
    programs_in_flight: Count
    """Programs of a kernel that overlap on one PE."""


class Cube(Part):
    pes: Grid
    noc: Noc
    hbm: HBM
    pe: PE

    @property
    def hbm_ports(self) -> int:
        """Ports between the HBM and the NoC."""
        return self.pes.rows if self.noc.kind == "mesh" else 1

    @property
    def hbm_port_bandwidth(self) -> float:
        """Bytes/s of one of those ports, each way."""
        return self.hbm.port_bandwidth or max(self.noc.bandwidth, self.hbm.bandwidth / self.hbm_ports)


class Sip(Part):
    cubes: Grid
    d2d: Link
    """Between neighbouring cubes; its bandwidth is needed as soon as there is more than one cube."""
    io: IO
    cube: Cube

    @property
    def io_bandwidth(self) -> float:
        """Bytes/s between a cube and the IO die, each way."""
        return self.io.bandwidth or self.cube.hbm.bandwidth


class LinkException(Part):
    """One link that differs from its kin, named by the nodes it joins: degraded, faster, or broken."""

    from_: Annotated[str, Field(alias="from")]
    to: str
    bandwidth: Bandwidth | None = None
    latency: Duration | None = None
    disabled: bool = False
    one_way: bool = False
    """Only ``from`` towards ``to``; else both directions."""


class SystemSpec(Part):
    """A whole machine. Replication is by count: every SIP, cube and PE is like its kin but for ``links``."""

    name: str
    description: str = ""
    system: System
    sip: Sip
    links: tuple[LinkException, ...] = ()
