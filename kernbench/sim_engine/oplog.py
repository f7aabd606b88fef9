"""The record of a run: what every rank's host asked of its hardware, in order, and what each kernel did.

The record is *logical*. A kernel is written down as blocks of programs that ran the same instructions: a row per
operation, a column per program, with byte addresses instead of channels and no mention of a PE, a link or a time.
Binding a record to a machine adds those, so one record replays on another memory, network or PE design.

Addresses are byte addresses in the issuing rank's flat address space. Times in a record are only those a host spends,
in integer picoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


class Placed(NamedTuple):
    """Where the bytes ``[base, end)`` lay while a command ran: memory may be freed and reused by later ones."""

    base: int
    end: int
    placement: Any
    """A ``kernbench.memory.Placement``; nothing in this layer looks inside."""


class OpKind(IntEnum):
    """What a row occupies: a DMA queue (READ, WRITE, ATOMIC, SEND), the systolic array, the vector engine, or nothing
    (SIGNAL, RECEIVE)."""

    READ = 0
    WRITE = 1
    GEMM = 2
    VECTOR = 3
    ATOMIC = 4
    SIGNAL = 5
    """All that its program read and wrote before is done, and so is that of its earlier SIGNAL rows."""
    SEND = 8
    """Bytes go from this PE's scratchpad to another's."""
    RECEIVE = 10
    """What it awaits has arrived."""


@dataclass(slots=True)
class Access:
    """The bytes one DMA touches, for each of P programs: nested strided runs, or an explicit list of runs.

    Program ``p`` touches, for every index ``i`` with ``0 <= i[d] < n[d]``, the byte ``base[p] + sum(i[d]*strides[d])``.
    ``n`` is ``counts`` unless ``extent`` clips it. Dimensions run outermost first and the last one counts contiguous
    bytes (stride 1). In iteration ``t`` of a loop the base moves by ``t*base_step`` and the clip by ``t*extent_step``:
    ``n[d] = clip(extent[p, d] + t*extent_step[d], 0, counts[d])``.
    """

    base: Int64s
    """int64[P], byte address of the first byte."""
    counts: tuple[int, ...]
    strides: tuple[int, ...]
    """Byte strides, same length as ``counts``; the last is 1."""
    extent: Int64s | None = None
    """int64[P, D] or None where nothing is clipped."""
    base_step: int = 0
    extent_step: tuple[int, ...] | None = None
    run_ptr: Int64s | None = None
    """int64[P+1]. Where given, the access is irregular: program p touches runs run_ptr[p]:run_ptr[p+1] of the next two
    arrays, each a contiguous piece, and counts, strides and extent are ignored."""
    run_addr: Int64s | None = None
    run_bytes: Int64s | None = None

    @classmethod
    def contiguous(cls, address: int, nbytes: int) -> Access:
        """One contiguous range of ``nbytes`` bytes at ``address`` (P = 1)."""
        return cls(np.array([address], np.int64), (nbytes,), (1,))


Token = tuple[int, int, int, int]
"""An op that others may wait for: SIP that launched its kernel, ``KernelRecord.number``, linear program id, row (its
index in the program's block). It does not depend on the order in which ranks were scheduled."""


@dataclass(slots=True)
class Awaits:
    """What the ops of one row wait for outside their own program."""

    ptr: Int64s
    """int64[P+1]: program p waits for tokens ``ptr[p]:ptr[p+1]``."""
    tokens: Int64s
    """int64[K, 4], a :data:`Token` each."""


@dataclass(slots=True)
class Row:
    """One operation of a block, for all its programs or for the ``active`` ones."""

    kind: OpKind
    line: int
    """Index into ``KernelRecord.lines``."""
    deps: tuple[int, ...] = ()
    """Earlier rows of the same block (for a row in a loop: same iteration where the other is in the loop too, its last
    iteration where it is in an earlier loop) that must finish first, in the same program."""
    carried: tuple[int, ...] = ()
    """In a loop: rows of the same loop, earlier or later in it, whose *previous* iteration must finish first. Needed
    only where the value crosses from one engine to another: an engine keeps its own order anyway."""
    active: NDArray[np.bool_] | None = None
    """bool[P]: programs that execute this row; None means all."""
    loop: int = -1
    """Index into ``ProgramBlock.loops``; -1 outside any compressed loop."""
    access: Access | None = None
    """READ, WRITE, ATOMIC."""
    shape: tuple[int, int, int] = (0, 0, 0)
    """GEMM: m, n, k of one step."""
    chained: bool = False
    """GEMM: this step accumulates into the pass the previous one left open, so it pays no fill and drain."""
    fresh: bool = False
    """GEMM in a loop: its accumulator starts anew in each iteration, so each iteration pays fill and drain."""
    elements: int = 0
    """VECTOR: elements one program processes."""
    op: str = ""
    """What it is, for people and for per-op rates: ``"exp"``, ``"add"``, ``"sum"``, ``"load"``, ``"dot"`` ..."""
    dtype: str = "f32"
    """Element type the engine sees (GEMM: of the inputs)."""
    atomics: int = 0
    """ATOMIC: how many atomic operations one program performs in this row."""
    awaits: Awaits | None = None
    """Never in a loop."""
    peer: Int64s | None = None
    """READ, WRITE, ATOMIC: int64[P], the SIP whose memory ``access`` means; None where it is the issuing one's."""
    source: Int64s | None = None
    """WRITE: int64[P], where in the issuing SIP's memory the contiguous bytes come from; None: from scratchpad."""
    target: Int64s | None = None
    """SEND: int64[P, 3], the SIP and the linear program id it goes to, and bytes."""


@dataclass(slots=True)
class Loop:
    """A loop whose iterations differ only by affine address steps. Its rows are contiguous in the block.

    Iteration t of a READ row in it waits for its readers in iteration ``t - stages`` (the buffer slot it reuses). A
    GEMM row in it accumulates over the whole loop, unless it is ``fresh``: fill is paid in the first iteration, drain
    in the last.
    """

    trips: Int64s
    """int64[P], iterations of each program (0 is allowed)."""
    stages: int = 1
    """Triton's ``num_stages``: buffer slots of each pipelined load."""


@dataclass(slots=True)
class ProgramBlock:
    """Programs that executed the same rows. Rows are in program order."""

    programs: Int64s
    """int64[P], linear program ids (x fastest), ascending."""
    rows: list[Row] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)


@dataclass(slots=True)
class KernelRecord:
    """What one launch did."""

    name: str
    grid: tuple[int, int, int]
    blocks: list[ProgramBlock]
    lines: list[tuple[str, int]]
    """(file, line) of the kernel's source, indexed by ``Row.line``."""
    tcm_bytes: int = 0
    """Scratchpad one program needs."""
    programs_in_flight: int = 2
    """How many programs may overlap on a PE: the machine's number, or fewer where the scratchpad is too small."""
    number: int = -1
    """Of a kernel whose programs communicate: its place among those of its SIP, which tokens name; else -1."""

    @property
    def programs(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    def line_ops(self) -> dict[tuple[int, int], str]:
        """(index of a line, :class:`OpKind`) -> what its rows of that kind do, for people: ``"mul, exp"``."""
        found: dict[tuple[int, int], dict[str, None]] = {}
        for block in self.blocks:
            for row in block.rows:
                found.setdefault((row.line, int(row.kind)), {}).setdefault(row.op or row.kind.name.lower())
        return {key: ", ".join(names) for key, names in found.items()}


@dataclass(slots=True)
class HostWork:
    """The host thread of the rank is busy."""

    name: str
    duration_ps: int
    range_id: int = 0


@dataclass(slots=True)
class Launch:
    """A kernel is put on a stream; costs the host its launch overhead."""

    kernel: KernelRecord
    stream: int = 0
    range_id: int = 0
    placements: tuple[Placed, ...] = ()
    """Of the allocations it touches, in this rank's memory: those that are not simply interleaved over all channels."""


@dataclass(slots=True)
class Copy:
    """Bytes cross the host link (``h2d``, ``d2h``) or stay in the device (``d2d``)."""

    direction: str
    access: Access
    nbytes: int
    stream: int = 0
    blocking: bool = True
    """The host waits until the copy has finished."""
    range_id: int = 0
    placements: tuple[Placed, ...] = ()
    """Of the allocations it touches, in this rank's memory: those that are not simply interleaved over all channels."""
    source: Access | None = None
    """``d2d`` only: what is read, while ``access`` is what is written."""


@dataclass(slots=True)
class Transfer:
    """A step of a collective: this rank sends bytes to ``peer``. It waits until the peer has entered the collective."""

    peer: int
    """Global rank that receives."""
    src: Access
    """In this rank's address space."""
    dst: Access
    """In the peer's."""
    nbytes: int
    deps: tuple[tuple[int, int], ...] = ()
    """(global rank, step index) pairs of the same collective that must finish first."""


@dataclass(slots=True)
class Reduce:
    """A step of a collective: elementwise ``dst = op(reads...)`` on all PEs of this rank."""

    reads: tuple[Access, ...]
    write: Access
    elements: int
    dtype: str
    nbytes: int
    """Bytes of one operand."""
    deps: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Collective:
    """This rank's part of a collective or of a point-to-point exchange."""

    name: str
    """``all_reduce``, ``send`` ..."""
    key: tuple[str, int]
    """Group and sequence number: parts with the same key belong together."""
    steps: list[Transfer | Reduce]
    done: tuple[tuple[int, int], ...]
    """(global rank, step) pairs whose finish completes this rank's part, beside its own steps."""
    stream: int = 0
    nbytes: int = 0
    range_id: int = 0
    placements: tuple[Placed, ...] = ()
    """Of the allocations it touches, in this rank's memory: those that are not simply interleaved over all channels."""


@dataclass(slots=True)
class EventRecord:
    """Marks a point of a stream; its time is when all earlier work of that stream has finished."""

    event: int
    stream: int = 0
    range_id: int = 0


@dataclass(slots=True)
class EventWait:
    """Later work of ``stream`` waits for an event (recorded by the same rank)."""

    event: int
    stream: int = 0
    range_id: int = 0


@dataclass(slots=True)
class HostSync:
    """The host waits: for one event, for one stream, or (both None) for everything the rank has queued."""

    event: int | None = None
    stream: int | None = None
    range_id: int = 0


Command = HostWork | Launch | Copy | Collective | EventRecord | EventWait | HostSync


@dataclass
class OpLog:
    """Every rank's commands in the order its host issued them. Ranks' lists are independent of each other's order, so
    the record does not depend on how ranks were scheduled."""

    commands: list[list[Command]]
    """One list per rank."""
    ranges: list[str] = field(default_factory=lambda: [""])
    """Names of phases; nested ones are joined with ``/``. ``range_id`` 0 is "no phase"."""

    @classmethod
    def empty(cls, ranks: int) -> OpLog:
        return cls([[] for _ in range(ranks)])

    def add(self, rank: int, command: Command) -> None:
        self.commands[rank].append(command)

    def range_id(self, path: str) -> int:
        """The number of a phase, made on first use."""
        if path not in self.ranges:
            self.ranges.append(path)
        return self.ranges.index(path)
