"""From a kernel's record to its ops: every row of every program and iteration, with what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernbench.policy.crossings import Crosser, Crossings, crosses
from kernbench.policy.mapping import pe_of_programs
from kernbench.policy.patterns import PatternBook
from kernbench.sim_engine.bound import FIXED, Activity, Int32s, Int64s
from kernbench.sim_engine.costs import Costs
from kernbench.sim_engine.oplog import KernelRecord, OpKind, Placed, ProgramBlock, Row
from kernbench.sim_engine.queues import Role

QUEUE_OF = {
    OpKind.READ: Role.READ,
    OpKind.WRITE: Role.WRITE,
    OpKind.ATOMIC: Role.WRITE,
    OpKind.GEMM: Role.GEMM,
    OpKind.VECTOR: Role.VECTOR,
    OpKind.SIGNAL: Role.SIGNAL,
    OpKind.SEND: Role.WRITE,
    OpKind.RECEIVE: Role.RECEIVE,
}
IN_ORDER = (Role.GEMM, Role.VECTOR, Role.PROGRAM, Role.SIGNAL, Role.RECEIVE)
"""Queues of depth 1: whoever waits for an op in them has waited for all before it."""


@dataclass(slots=True)
class Ops:
    """N ops whose queues, paths and dependencies count from the start of their command."""

    queue: Int32s
    """int32[N], into ``queues``."""
    queues: Int64s
    """What is left of each queue's key without rank and stream, ascending."""
    pattern: Int32s
    path: Int32s
    """int32[N]: as the command says; for kernels the PE, and the PEs' number higher for writes."""
    duration: Int64s
    dep_ptr: Int64s
    deps: Int32s
    kind: NDArray[np.uint8]
    line: Int32s
    bytes: Int64s
    flops: Int64s
    programs: int = 0
    crossings: Crossings | None = None
    """Of a kernel whose programs communicate."""

    @property
    def count(self) -> int:
        return len(self.kind)

    @property
    def nbytes(self) -> int:
        """Host memory that the arrays take."""
        return sum(getattr(self, name).nbytes for name in self.__slots__ if isinstance(getattr(self, name), np.ndarray))


class Dependencies:
    """Collects (op, op it waits for) pairs and turns them into pointers and ids."""

    def __init__(self, count: int) -> None:
        self._count = np.zeros(count, np.int64)
        self._pairs: list[tuple[Int64s, Int64s, Int64s]] = []

    def add(self, ops: Int64s, earlier: Int64s) -> None:
        """One pair for each op; no op twice."""
        if len(ops):
            self._pairs.append((ops, earlier, self._count[ops]))
            self._count[ops] += 1

    def add_many(self, ops: Int64s, earlier: Int64s) -> None:
        """Pairs with ops in ascending order, each any number of times."""
        if len(ops):
            _, first, size = np.unique(ops, return_index=True, return_counts=True)
            place = np.arange(len(ops)) - np.repeat(first, size)
            self._pairs.append((ops, earlier, self._count[ops] + place))
            self._count[ops[first]] += size

    def build(self) -> tuple[Int64s, Int32s]:
        ptr = np.zeros(len(self._count) + 1, np.int64)
        np.cumsum(self._count, out=ptr[1:])
        deps = np.empty(ptr[-1], np.int32)
        for ops, earlier, place in self._pairs:
            deps[ptr[ops] + place] = earlier
        return ptr, deps


@dataclass(slots=True)
class _Placing:
    """Where the ops of one row are: for each, its program (column of the block), iteration and number."""

    program: Int64s
    trip: Int64s
    op: Int64s


class _Block:
    """Numbers the ops of one block: program by program, iteration by iteration, row by row."""

    def __init__(self, block: ProgramBlock) -> None:
        self.block = block
        programs = len(block.programs)
        self.active = np.ones((len(block.rows), programs), np.bool_)
        for r, row in enumerate(block.rows):
            if row.active is not None:
                self.active[r] = row.active
        self.trips = np.ones((len(block.loops) + 1, programs), np.int64)  # the last one: rows in no loop
        for i, loop in enumerate(block.loops):
            self.trips[i] = loop.trips
        body = np.zeros((len(block.loops) + 1, programs), np.int64)
        self.within = np.zeros((len(block.rows), programs), np.int64)
        """Place of a row in its iteration."""
        self.segment = np.zeros((len(block.rows), programs), np.int64)
        """Place, in the program, of the first iteration of a row's loop (or of the row itself)."""
        size = np.zeros(programs, np.int64)
        open_loop = -1
        for r, row in enumerate(block.rows):
            if row.loop != open_loop and open_loop >= 0:
                size += body[open_loop] * self.trips[open_loop]
            open_loop = row.loop
            self.segment[r] = size
            if row.loop >= 0:
                self.within[r] = body[row.loop]
                body[row.loop] += self.active[r]
            else:
                size += self.active[r]
        if open_loop >= 0:
            size += body[open_loop] * self.trips[open_loop]
        self.body, self.size = body, size
        self.first = self.rank = np.zeros(programs, np.int64)
        """Number of each program's first op, and the program's place among all; set by whoever knows the other
        blocks."""

    def number(self, r: int, program: Int64s, trip: Int64s) -> Int64s:
        loop = self.block.rows[r].loop
        at = self.first[program] + self.segment[r, program] + self.within[r, program]
        return at + trip * self.body[loop, program] if loop >= 0 else at

    def place(self, r: int) -> _Placing:
        loop = self.block.rows[r].loop
        columns = np.flatnonzero(self.active[r] & (self.trips[loop] > 0))
        if loop < 0:
            trip = np.zeros(len(columns), np.int64)
        else:
            trips = self.trips[loop, columns]
            trip = np.arange(trips.sum()) - np.repeat(np.cumsum(trips) - trips, trips)
            columns = np.repeat(columns, trips)
        return _Placing(columns, trip, self.number(r, columns, trip))


def expand(
    record: KernelRecord, pes: int, costs: Costs, book: PatternBook, placed: Sequence[Placed], rank: int = 0
) -> Ops:
    """All ops of one launch. Op 0 marks its begin, the last one its end; each program ends with a retirement. Only of a
    kernel whose programs communicate do they depend on the rank."""
    return _Expansion(record, pes, costs, book, placed, rank).run()


class _Expansion:
    def __init__(
        self, record: KernelRecord, pes: int, costs: Costs, book: PatternBook, placed: Sequence[Placed], rank: int
    ) -> None:
        self.crosser = Crosser(record, book, rank) if crosses(record) else None
        self.record, self.pes, self.costs, self.book, self.placed = record, pes, costs, book, placed
        self.blocks = [_Block(block) for block in record.blocks]
        self._number_programs()
        count = int(self.retire[-1]) + 2 if len(self.retire) else 2
        self.deps = Dependencies(count)
        self.queue = np.zeros(count, np.int32)
        self.pattern = np.full(count, FIXED, np.int32)
        self.path = np.zeros(count, np.int32)
        self.duration = np.zeros(count, np.int64)
        self.kind = np.full(count, Activity.MARK, np.uint8)
        self.line = np.full(count, -1, np.int32)
        self.bytes = np.zeros(count, np.int64)
        self.flops = np.zeros(count, np.int64)

    def _number_programs(self) -> None:
        """Programs ascending over all blocks, one after another from op 1 on, each with its retirement last."""
        ids = np.concatenate([b.block.programs for b in self.blocks] or [np.empty(0, np.int64)]).astype(np.int64)
        sizes = np.concatenate([b.size for b in self.blocks] or [np.empty(0, np.int64)])
        order = np.argsort(ids, kind="stable")
        end = np.cumsum(sizes[order] + 1)
        self.pe = pe_of_programs(ids[order], self.pes)
        self.retire = end  # op 0 is the begin, so a program's last op is 1 + (end - 1)
        first = np.empty(len(ids), np.int64)
        first[order] = end - sizes[order]
        rank = np.empty(len(ids), np.int64)
        rank[order] = np.arange(len(ids))
        start = 0
        for b in self.blocks:
            stop = start + len(b.block.programs)
            b.first = first[start:stop]
            b.rank = rank[start:stop]
            start = stop

    def run(self) -> Ops:
        for block in self.blocks:
            self._rows(block)
        crossings = None if self.crosser is None else self.crosser.crossings()
        if crossings is not None and self.record.number < 0:  # all inside this launch
            awaited = crossings.published.find(crossings.token[:, 2], crossings.token[:, 3])
            order = np.argsort(crossings.op, kind="stable")
            self.deps.add_many(crossings.op[order].astype(np.int64), awaited[order])
            crossings = None
        self._programs()
        ptr, deps = self.deps.build()
        used = np.bincount(self.queue, minlength=1) > 0
        queue = (np.cumsum(used) - 1).astype(np.int32)[self.queue]
        return Ops(
            queue, np.flatnonzero(used), self.pattern, self.path, self.duration, ptr, deps, self.kind,
            self.line, self.bytes, self.flops, self.record.programs,
            crossings,
        )  # fmt: skip

    def _rows(self, block: _Block) -> None:
        pe = pe_of_programs(block.block.programs, self.pes)
        rows = block.block.rows
        for r, row in enumerate(rows):
            at = block.place(r)
            ops, on = at.op, pe[at.program]
            self.queue[ops] = QUEUE_OF[row.kind] + (on << 4)
            self.kind[ops] = row.kind
            self.line[ops] = row.line
            if row.source is not None and self.crosser is not None:
                self.pattern[ops], self.path[ops], self.bytes[ops] = self.crosser.copies(row, at.program, self.placed)
            elif row.access is not None:
                access = {OpKind.READ: "read", OpKind.WRITE: "write", OpKind.ATOMIC: "atomic"}[row.kind]
                found = self.book.of_row(row.access, access, row.atomics, at.program, at.trip, on, self.placed)
                self.pattern[ops], self.bytes[ops] = found
                self.path[ops] = on + self.pes if row.kind == OpKind.WRITE else on
                if row.peer is not None and self.crosser is not None:
                    self.path[ops] = self.crosser.paths(row.peer[at.program], on, row.kind == OpKind.WRITE)
            elif row.kind == OpKind.GEMM:
                self.duration[ops] = self._gemm(block, row, at)
                self.flops[ops] = 2 * row.shape[0] * row.shape[1] * row.shape[2]
            elif row.kind == OpKind.VECTOR:
                self.duration[ops] = self.costs.vector.time(row.elements, row.op)
                self.flops[ops] = row.elements
            elif row.target is not None and self.crosser is not None:
                target = row.target[at.program]
                self.bytes[ops] = target[:, 2]
                self.pattern[ops], self.path[ops] = self.crosser.messages(target, on)
            if self.crosser is not None:
                programs = block.block.programs[at.program]
                self.duration[ops] += self.crosser.cross(row, r, ops, at.program, programs)
            self._row_waits(block, r, at)
        self._retirements_wait(block)

    def _gemm(self, block: _Block, row: Row, at: _Placing) -> Int64s:
        step = self.costs.gemm.step(*row.shape, row.dtype)
        time = np.full(len(at.op), step.stream_ps)
        if row.chained:
            return time
        last = block.trips[row.loop, at.program] - 1
        time += step.fill_ps * (row.fresh | (at.trip == 0))
        time += step.drain_ps * (row.fresh | (at.trip == last))
        return time

    def _row_waits(self, block: _Block, r: int, at: _Placing) -> None:
        """What the ops of row r wait for inside their program."""
        rows = block.block.rows
        row = rows[r]
        for d in row.deps:
            if rows[d].loop == row.loop and row.loop >= 0:
                self._wait(block, r, d, at.op, at.program, at.trip)
            else:  # the queue issues in order, so what the first iteration waits for holds for the others
                first = at.trip == 0
                program = at.program[first]
                self._wait(block, r, d, at.op[first], program, block.trips[rows[d].loop, program] - 1)
        for d in row.carried:
            later = at.trip > 0
            self._wait(block, r, d, at.op[later], at.program[later], at.trip[later] - 1)
        if row.kind == OpKind.READ and row.loop >= 0:
            stages = block.block.loops[row.loop].stages
            reuse = at.trip >= stages
            for reader, other in enumerate(rows):
                if other.loop == row.loop and r in other.deps:
                    self._wait(block, r, reader, at.op[reuse], at.program[reuse], at.trip[reuse] - stages)

    def _wait(self, block: _Block, r: int, d: int, ops: Int64s, program: Int64s, trip: Int64s) -> None:
        rows = block.block.rows
        queue = QUEUE_OF[rows[d].kind]
        if queue == QUEUE_OF[rows[r].kind] and queue in IN_ORDER:
            return
        there = block.active[d, program] & (trip >= 0)
        if not there.all():
            ops, program, trip = ops[there], program[there], trip[there]
        self.deps.add(ops, block.number(d, program, trip))

    def _retirements_wait(self, block: _Block) -> None:
        """A program has retired when the ops that no other op of it waits for have finished."""
        rows = block.block.rows
        for d, row in enumerate(rows):
            if any(_covers(block, r, d) for r in range(len(rows)) if d in rows[r].deps):
                continue
            at = block.place(d)
            program, op = at.program, at.op
            if QUEUE_OF[row.kind] in IN_ORDER:
                last = at.trip == block.trips[row.loop, program] - 1
                program, op = program[last], op[last]
            self.deps.add_many(self.retire[block.rank[program]], op)

    def _programs(self) -> None:
        """Retirements and their queues, the kernel's begin and end, and how many programs overlap on a PE."""
        count = len(self.retire)
        self.queue[self.retire] = Role.PROGRAM + (self.pe << 4)
        by_pe = np.argsort(self.pe, kind="stable")
        ahead = max(1, self.record.programs_in_flight)
        gate = np.zeros(count, np.int64)  # op 0, the kernel's begin
        if count > ahead:
            same = self.pe[by_pe[ahead:]] == self.pe[by_pe[:-ahead]]
            gate[by_pe[ahead:][same]] = self.retire[by_pe[:-ahead][same]]
        sizes = np.diff(self.retire, prepend=0)
        program = np.repeat(np.arange(count), sizes)
        role = self.queue[1:-1] & 0xF
        for one in sorted(set(QUEUE_OF.values())):  # in-order queues: holding back the first op holds back the others
            mine = np.flatnonzero(role == one)
            first = mine[np.diff(program[mine], prepend=-1) != 0]
            self.deps.add(first + 1, gate[program[first]])
        empty = np.flatnonzero(sizes == 1)
        self.deps.add(self.retire[empty], gate[empty])
        last = by_pe[np.diff(self.pe[by_pe], append=-1) != 0]
        self.deps.add_many(np.full(len(last), len(self.queue) - 1), self.retire[last])


def _covers(block: _Block, r: int, d: int) -> bool:
    """Whether every op of row d has an op of row r that waits for it (or for a later one of the same in-order
    queue)."""
    rows = block.block.rows
    if not block.active[r][block.active[d]].all():
        return False
    if rows[r].loop == rows[d].loop:
        return True
    if rows[r].loop >= 0 and not block.trips[rows[r].loop][block.active[d]].all():
        return False
    return rows[d].loop < 0 or QUEUE_OF[rows[d].kind] in IN_ORDER
