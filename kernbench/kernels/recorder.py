"""Writes down what programs do, as the rows of a :class:`~kernbench.sim_engine.oplog.KernelRecord`.

Programs run in chunks, and some of a chunk's programs may take other branches or more iterations than others. Neither
shows in the record: programs that executed the same rows share a block, whatever chunk they ran in, and each block's
rows are exactly what its programs executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.oplog import Access, Loop, OpKind, ProgramBlock, Row

Deps = tuple[int, ...]
Index = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class RowKind:
    """What all executions of one operation's row have in common. Two are equal when they are the same object."""

    kind: OpKind
    line: int
    op: str
    dtype: str
    elements: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    atomics: int = 0


@dataclass(frozen=True)
class Layout:
    """The part of an :class:`Access` that all programs of a row share. ``counts`` is empty for a list of runs."""

    counts: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    base_step: int = 0
    extent_step: tuple[int, ...] | None = None


@dataclass(slots=True)
class Columns:
    """What differs between the programs of a row's access; the first axis is programs (1: the same for all)."""

    base: NDArray[np.int64]
    extent: NDArray[np.int64] | None = None
    run_ptr: NDArray[np.int64] | None = None
    run_addr: NDArray[np.int64] | None = None
    run_bytes: NDArray[np.int64] | None = None

    def select(self, index: Index) -> Columns:
        """The columns of some programs."""
        if self.run_ptr is None:
            base = np.repeat(self.base, len(index)) if len(self.base) == 1 else self.base[index]
            extent = self.extent
            if extent is not None:
                extent = np.repeat(extent, len(index), 0) if len(extent) == 1 else extent[index]
            return Columns(base, extent)
        assert self.run_addr is not None and self.run_bytes is not None
        index = np.zeros(len(index), np.intp) if len(self.run_ptr) == 2 else index
        lengths = self.run_ptr[index + 1] - self.run_ptr[index]
        ends = np.cumsum(lengths)
        flat = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self.run_ptr[index] - (ends - lengths), lengths)
        pointer = np.concatenate([[0], ends]).astype(np.int64)
        return Columns(np.zeros(len(index), np.int64), None, pointer, self.run_addr[flat], self.run_bytes[flat])


@dataclass(slots=True)
class _Entry:
    """One row of the current chunk."""

    kind: RowKind
    deps: Deps
    members: Index | None
    """Programs of the chunk that execute it; None: all."""
    layout: Layout | None
    columns: Columns | None
    loop: int
    chained: bool


@dataclass(slots=True)
class _Merged:
    """A block in the making: the same rows from several chunks."""

    rows: list[tuple[RowKind, Deps, Layout | None, int, bool]]
    stages: list[int]
    programs: list[NDArray[np.int64]] = field(default_factory=list)
    columns: list[list[Columns | None]] = field(default_factory=list)
    trips: list[list[NDArray[np.int64]]] = field(default_factory=list)


class Recorder:
    """Collects the rows of one launch, chunk by chunk."""

    def __init__(self) -> None:
        self._rows: list[_Entry] = []
        self._loops: list[tuple[NDArray[np.int64], int]] = []
        self._count = 0
        self._blocks: dict[Any, _Merged] = {}
        self._loop = -1
        self.readers: dict[int, Deps] = {}
        """Of the loads in a pipelined loop: the rows that read what they loaded."""
        self.stored: dict[int, Deps] = {}
        """Allocation base -> the latest rows that wrote to it."""
        self._choices: list[list[Deps]] = []

    def begin(self, count: int) -> None:
        """Start a chunk of ``count`` programs."""
        self._rows, self._loops, self._count = [], [], count
        self.readers, self.stored, self._choices = {}, {}, []

    def add(
        self,
        kind: RowKind,
        deps: Deps,
        members: Index | None,
        layout: Layout | None = None,
        columns: Columns | None = None,
        chained: bool = False,
    ) -> Deps:
        """Append a row and return it as a dependency of later ones."""
        row = len(self._rows)
        if self.readers:
            for dep in self._all(deps):
                if dep in self.readers:
                    self.readers[dep] += (row,)
        self._rows.append(_Entry(kind, deps, members, layout, columns, self._loop, chained))
        return (row,)

    def latest(self, candidates: list[Deps]) -> Deps:
        """A dependency on, for each program, the last of ``candidates`` that it executed.

        Programs that went different ways depend on different rows; which, only :meth:`finish` resolves.
        """
        distinct = [c for i, c in enumerate(candidates) if c and (i == 0 or c != candidates[i - 1])]
        if len(distinct) <= 1:
            return distinct[0] if distinct else ()
        self._choices.append(distinct)
        return (-len(self._choices),)

    def stores(self, base: int, rows: Deps, members: Index | None) -> None:
        """Note the rows that wrote to the allocation at ``base``."""
        before = self.stored.get(base, ())
        self.stored[base] = rows if members is None else self.latest([before, rows])

    def watch(self, rows: Deps) -> None:
        """Keep track of who reads these loads."""
        for row in rows:
            self.readers.setdefault(row, ())

    def _all(self, deps: Deps) -> set[int]:
        """Rows that any program may depend on."""
        if all(d >= 0 for d in deps):
            return set(deps)
        return {row for d in deps for row in ({d} if d >= 0 else self._all(sum(self._choices[-d - 1], ())))}

    def _resolve(self, deps: Deps, number: dict[int, int]) -> set[int]:
        """What one program depends on, in its own numbering."""
        found = set()
        for dep in deps:
            if dep >= 0:
                if dep in number:
                    found.add(number[dep])
                continue
            for candidate in reversed(self._choices[-dep - 1]):
                if rows := self._resolve(candidate, number):
                    found |= rows
                    break
        return found

    def begin_loop(self, trips: NDArray[np.int64], stages: int, members: Index | None) -> None:
        """Rows that follow repeat ``trips`` times (int64, one per member)."""
        full = np.zeros(self._count, np.int64)
        full[slice(None) if members is None else members] = trips
        self._loops.append((full, stages))
        self._loop = len(self._loops) - 1

    def end_loop(self) -> None:
        self._loop = -1

    def is_gemm(self, deps: Deps) -> bool:
        """Whether a value comes straight out of one array pass (of each of several subsets of programs)."""
        return bool(deps) and all(self._rows[d].kind.kind == OpKind.GEMM for d in self._all(deps))

    def finish(self, programs: NDArray[np.int64]) -> None:
        """End a chunk; ``programs`` are the linear ids of its programs, ascending."""
        for group, executed in self._groups():
            self._merge(programs, group, executed)

    def _groups(self) -> list[tuple[Index, list[bool]]]:
        """Programs of the chunk by the rows they executed, and which those are of the rows that not all did."""
        partial = [e.members for e in self._rows if e.members is not None]
        if not partial:
            return [(np.arange(self._count), [])]
        executed = np.zeros((len(partial), self._count), np.bool_)
        for bits, members in zip(executed, partial, strict=True):
            bits[members] = True
        packed = np.ascontiguousarray(np.packbits(executed, axis=0).T)
        patterns = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, inverse = np.unique(patterns, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.flatnonzero(np.diff(inverse[order])) + 1
        groups = sorted((np.sort(g) for g in np.split(order, bounds)), key=lambda g: int(g[0]))
        return [(g, executed[:, g[0]].tolist()) for g in groups]

    def _merge(self, programs: NDArray[np.int64], group: Index, executed: list[bool]) -> None:
        took_part = iter(executed)
        position = np.full(self._count, -1, np.intp)
        number: dict[int, int] = {}
        loops: dict[int, int] = {}
        rows: list[tuple[RowKind, Deps, Layout | None, int, bool]] = []
        columns: list[Columns | None] = []
        everybody = len(group) == self._count
        of: Index | None = None  # the members that ``selected`` is of: neighbouring rows mostly have the same
        selected = group
        for i, entry in enumerate(self._rows):
            members = entry.members
            if members is not None and not next(took_part):
                continue
            number[i] = len(rows)
            deps = entry.deps
            if len(deps) == 1 and deps[0] >= 0:
                deps = (number[deps[0]],) if deps[0] in number else ()
            elif deps:
                deps = tuple(sorted(self._resolve(deps, number)))
            loop = loops.setdefault(entry.loop, len(loops)) if entry.loop >= 0 else -1
            rows.append((entry.kind, deps, entry.layout, loop, entry.chained))
            if entry.columns is None:
                columns.append(None)
            elif everybody:
                columns.append(entry.columns)
            elif members is None:
                columns.append(entry.columns.select(group))
            else:
                if members is not of:
                    position[members] = np.arange(len(members))
                    of, selected = members, position[group]
                columns.append(entry.columns.select(selected))
        stages = [self._loops[i][1] for i in loops]
        signature = (tuple(rows), tuple(stages))
        merged = self._blocks.get(signature)
        if merged is None:
            merged = self._blocks[signature] = _Merged(rows, stages)
        merged.programs.append(programs[group])
        merged.columns.append(columns)
        merged.trips.append([self._loops[i][0][group] for i in loops])

    def blocks(self) -> list[ProgramBlock]:
        """All chunks' blocks, those with the lowest program first."""
        made = [_block(merged) for merged in self._blocks.values()]
        return sorted(made, key=lambda b: int(b.programs[0]))


class Silent(Recorder):
    """Stands in for a recorder where the record is known already."""

    def add(self, *_: Any, **__: Any) -> Deps:
        return ()

    def latest(self, candidates: list[Deps]) -> Deps:
        return ()

    def stores(self, base: int, rows: Deps, members: Index | None) -> None:
        pass

    def begin_loop(self, trips: NDArray[np.int64], stages: int, members: Index | None) -> None:
        pass


def _block(merged: _Merged) -> ProgramBlock:
    programs = np.concatenate(merged.programs)
    sizes = [len(p) for p in merged.programs]
    order = np.argsort(programs, kind="stable")
    sort = None if np.array_equal(order, np.arange(len(order))) else order
    rows = []
    for i, (kind, deps, layout, loop, chained) in enumerate(merged.rows):
        access = None
        if layout is not None:
            parts = [chunk[i] for chunk in merged.columns]
            access = _access(layout, [c for c in parts if c is not None], sizes, sort)
        rows.append(
            Row(
                kind.kind,
                kind.line,
                deps,
                loop=loop,
                access=access,
                shape=kind.shape,
                chained=chained,
                elements=kind.elements,
                op=kind.op,
                dtype=kind.dtype,
                atomics=kind.atomics,
            )
        )
    loops = []
    for i, stages in enumerate(merged.stages):
        trips = np.concatenate([t[i] for t in merged.trips])
        loops.append(Loop(trips if sort is None else trips[sort], stages))
    return ProgramBlock(programs if sort is None else programs[sort], rows, loops)


def _access(layout: Layout, parts: list[Columns], sizes: list[int], sort: Index | None) -> Access:
    """The columns of all chunks side by side."""
    parts = [
        part.select(np.arange(size)) if part.run_ptr is not None or len(part.base) != size else part
        for part, size in zip(parts, sizes, strict=True)
    ]
    base = np.concatenate([np.asarray(p.base, np.int64) for p in parts])
    if not layout.counts:
        lengths = np.concatenate([np.diff(p.run_ptr) for p in parts if p.run_ptr is not None])
        joined = Columns(
            base,
            None,
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([p.run_addr for p in parts if p.run_addr is not None]),
            np.concatenate([p.run_bytes for p in parts if p.run_bytes is not None]),
        )
        joined = joined if sort is None else joined.select(sort)
        assert joined.run_ptr is not None
        return Access(joined.base, (), (), run_ptr=joined.run_ptr, run_addr=joined.run_addr, run_bytes=joined.run_bytes)
    extent = None
    if any(p.extent is not None for p in parts):
        counts = np.array(layout.counts, np.int64)
        columns = [
            np.broadcast_to(counts if p.extent is None else p.extent, (size, len(counts)))
            for p, size in zip(parts, sizes, strict=True)
        ]
        extent = np.concatenate(columns)
        extent = extent if sort is None else extent[sort]
        if layout.extent_step is None and bool((extent == counts).all()):
            extent = None
    return Access(
        base if sort is None else base[sort],
        layout.counts,
        layout.strides,
        extent,
        layout.base_step,
        layout.extent_step,
    )
