"""Loops over K that run as one matrix product.

A loop whose carried values are pointers and integers advanced by constant amounts, and accumulators of dot products of
what it loads, is executed once with the iteration as a symbol. Each load is then a window that moves by a constant
number of bytes, the record is one compressed loop, and the chain of dots is one matrix product per program on strided
views of the operands: nothing is loaded tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import panels
from kernbench.kernels.dataflow import VIEWS
from kernbench.kernels.describe import Part, describe
from kernbench.kernels.ops_int import itemsize
from kernbench.kernels.ops_memory import Access, access_of, known_access, latest_stores
from kernbench.kernels.ops_reduce import gemm_row
from kernbench.kernels.panels import Tile
from kernbench.kernels.plan import CARRIER, Code, Compiler, Frame, Step, element, join, record_dtype, run, shape_of
from kernbench.kernels.recorder import Deps, RowKind
from kernbench.kernels.tape import Tape
from kernbench.kernels.ttir import Op, Pointer, Tensor, Value
from kernbench.kernels.values import AxisSum, Unfusable, merge
from kernbench.kernels.window import Owners, Window
from kernbench.sim_engine.oplog import OpKind

_CASTS = {"arith.extf", "arith.truncf", "tt.fp_to_fp"}
_ADVANCES = {"tt.addptr", "arith.addi"}
_ACCUMULATORS = {"f32", "f64", "i32"}


@dataclass(eq=False)
class _Load:
    access: Access
    row: RowKind
    sources: tuple[int, ...]
    other: int
    result: Value


@dataclass(eq=False)
class _View:
    """A cast or a transposition of a loaded tile."""

    source: Value
    result: Value
    order: tuple[int, ...] | None
    to: str | None
    row: RowKind | None


@dataclass(eq=False)
class _Dot:
    left: Value
    right: Value
    row: RowKind
    result: Value
    accumulator: int
    """Which carried value it adds to."""


@dataclass(eq=False)
class _Moving:
    """A carried pointer or integer: ``next = it + increment``."""

    start: int
    inside: int
    after: int
    """Slots: before the loop, in it, and of the result."""
    increment: int
    """Slot; -1 where it does not change."""
    scale: int
    """Bytes of an element for a pointer, else 1."""
    shape: tuple[int, ...]
    scalar: bool


@dataclass(eq=False)
class _Sum:
    """A carried accumulator."""

    start: int
    start_dep: int
    after: int
    after_dep: int
    shape: tuple[int, ...]
    name: str
    needed: bool
    last: Value


@dataclass(eq=False)
class _Seen:
    """A load of one execution of the loop."""

    window: Window
    parts: list[Part]
    allocations: Owners


@dataclass(eq=False)
class FusedLoop:
    """A loop that can run as matrix products; made by :func:`analyse`, executed by :meth:`run`."""

    invariant: list[Step]
    moving_steps: list[Step]
    induction: int
    stages: int
    carried: list[_Moving] = field(default_factory=list)
    sums: list[_Sum] = field(default_factory=list)
    loads: list[_Load] = field(default_factory=list)
    body: list[_Load | _View | _Dot] = field(default_factory=list)
    captures: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def run(
        self, f: Frame, lower: Any, step: Any, trips: Any, with_values: bool, fallback: Callable[[Frame], None]
    ) -> bool:
        """Execute the loop in the programs of a frame. False: nothing happened, it has to run step by step."""
        if not isinstance(step, int) or not (trips if isinstance(trips, int) else trips.any()):
            return False
        if f.launch.known is not None:
            self._again(f, with_values)
            return True
        try:
            if not np.all(trips):
                raise Unfusable(np.asarray(trips) > 0)  # a loop that runs no time leaves no row
            seen = self._symbolic(f, lower, step, trips)
        except Unfusable as no:
            f.launch.tape = None  # which programs go which way is worked out anew
            if no.ok is None or not no.ok.any():
                return False
            self._apart(f, no.ok, lower, step, trips, with_values, fallback)
            return True
        counts = np.broadcast_to(np.asarray(trips, np.int64), (f.count,))
        self._record(f, seen, counts)
        self._leave(f, counts)
        products: dict[Any, panels.Product | None] = {}
        if f.launch.tape is not None:
            self._keep(f, f.launch.tape, seen, counts, products)
        self._multiply(f, seen, counts, products, with_values)
        return True

    def _apart(
        self,
        f: Frame,
        ok: NDArray[np.bool_],
        lower: Any,
        step: Any,
        trips: Any,
        with_values: bool,
        fallback: Callable[[Frame], None],
    ) -> None:
        """Fuse the programs for which it works; the others run step by step."""
        frames = []
        for index, fuse in ((np.flatnonzero(ok), True), (np.flatnonzero(~ok), False)):
            g = f.subset(index, *self.captures)
            low = lower if isinstance(lower, int) else lower[index]
            count = trips if isinstance(trips, int) else trips[index]
            if not (fuse and self.run(g, low, step, count, with_values, fallback)):
                fallback(g)
            frames.append((index, g))
        f.control = f.recorder.latest([f.control, *(g.control for _, g in frames)])
        for s in self.sums:
            parts = [(index, g.v[s.after]) for index, g in frames]
            f.v[s.after] = None if any(v is None for _, v in parts) else merge(parts, f.count, False, CARRIER[s.name])
            f.d[s.after_dep] = f.recorder.latest([g.d[s.after_dep] for _, g in frames])
        for m in self.carried:
            dtype = np.int64
            f.v[m.after] = merge([(index, g.v[m.after]) for index, g in frames], f.count, m.scalar, dtype)

    def _symbolic(self, f: Frame, lower: Any, step: int, trips: Any) -> list[_Seen]:
        most = int(np.max(trips))
        run(self.invariant, f)
        f.v[self.induction] = _moved(lower, step, most, ())
        for m in self.carried:
            f.v[m.inside] = _moved(f.v[m.start], _increment(f, m), most, m.shape)
        run(self.moving_steps, f)
        counts = np.broadcast_to(np.asarray(trips, np.int64), (f.count,))
        seen = []
        for load in self.loads:
            window = load.access.window(f, counts)
            allocations = load.access.owners(f, window)
            seen.append(_Seen(window, describe(window), allocations))
        return seen

    def _record(self, f: Frame, seen: list[_Seen], counts: NDArray[np.int64]) -> None:
        rec = f.recorder
        rec.begin_loop(counts, self.stages, f.members)
        made: dict[Value, Deps] = {}
        loads = iter(seen)
        last: dict[int, Deps] = {}
        for item in self.body:
            if isinstance(item, _Load):
                s = next(loads)
                deps = latest_stores(f, s.allocations, join(f.d, item.sources))
                rows: Deps = ()
                for members, layout, columns in s.parts:
                    chosen = members
                    if f.members is not None:
                        chosen = f.members if members is None else f.members[members]
                    rows += rec.add(item.row, tuple(sorted({*deps, *f.control})), chosen, layout, columns)
                made[item.result] = rows
            elif isinstance(item, _View):
                made[item.result] = made[item.source]
                if item.row is not None:
                    made[item.result] = rec.add(item.row, made[item.source], f.members)
            else:
                start = f.d[self.sums[item.accumulator].start_dep]
                deps = tuple(sorted({*made[item.left], *made[item.right], *start, *last.get(item.accumulator, ())}))
                made[item.result] = last[item.accumulator] = rec.add(item.row, deps, f.members)
        rec.end_loop()
        for i, total in enumerate(self.sums):
            f.d[total.after_dep] = last.get(i, f.d[total.start_dep])

    def _leave(self, f: Frame, counts: NDArray[np.int64]) -> None:
        """Set what the carried pointers and integers are after the loop."""
        same = int(counts[0]) if (counts == counts[0]).all() else None
        for m in self.carried:
            x = f.v[m.inside]
            if isinstance(x, AxisSum):
                moved = x.step * (same if same is not None else counts)
                base = x.base + moved
                x = AxisSum(x.shape, base, x.terms, x.lo - abs(_most(x.step)), x.hi + abs(_most(x.step)))
                x = _plain(x, m.scalar)
            f.v[m.after] = x

    def _keep(
        self,
        f: Frame,
        tape: Tape,
        seen: list[_Seen],
        counts: NDArray[np.int64],
        products: dict[Any, panels.Product | None],
    ) -> None:
        """Write down what a launch like this one needs to multiply."""
        others = [None if load.other < 0 else f.v[load.other] for load in self.loads]
        tape.keep((counts, others, [f.v[m.after] for m in self.carried], products), [])
        for s in seen:
            tape.keep(s.window, s.allocations)

    def _again(self, f: Frame, with_values: bool) -> None:
        """What a launch like this one wrote down."""
        assert f.launch.known is not None
        (counts, others, after, products), _ = f.launch.known.next()
        for load, other in zip(self.loads, others, strict=True):
            if load.other >= 0:
                f.v[load.other] = other
        for m, value in zip(self.carried, after, strict=True):
            f.v[m.after] = value
        accesses = [known_access(f, load.access) for load in self.loads]
        seen = [_Seen(w, [], allocations) for w, allocations in accesses]
        self._multiply(f, seen, counts, products, with_values)

    def _multiply(
        self,
        f: Frame,
        seen: list[_Seen],
        counts: NDArray[np.int64],
        products: dict[Any, panels.Product | None],
        with_values: bool,
    ) -> None:
        if not with_values and not any(s.needed for s in self.sums):
            for s in self.sums:
                f.v[s.after] = None
            return
        tiles: dict[Value, Tile] = {}
        loads = iter(seen)
        totals: list[Any] = [None] * len(self.sums)
        for item in self.body:
            if isinstance(item, _Load):
                found = next(loads)
                other = None if item.other < 0 else f.v[item.other]
                tiles[item.result] = Tile(item.access, found.window, found.allocations, other)
            elif isinstance(item, _View):
                tiles[item.result] = tiles[item.source].viewed(item.order, item.to)
            else:
                s = self.sums[item.accumulator]
                left, right = tiles[item.left], tiles[item.right]
                totals[item.accumulator] = panels.accumulate(
                    f, left, right, counts, totals[item.accumulator], s.shape, s.name, products, item.result
                )
        for s, total in zip(self.sums, totals, strict=True):
            start = f.v[s.start]
            if total is None:
                f.v[s.after] = start
            elif isinstance(start, np.ndarray) or start != 0:
                f.v[s.after] = total + start
            else:
                f.v[s.after] = total


def _increment(f: Frame, m: _Moving) -> Any:
    """What one iteration adds to a carried value: an int or int64[P]."""
    if m.increment < 0:
        return 0
    by = f.v[m.increment]
    if isinstance(by, AxisSum):
        if by.axes():
            raise Unfusable
        by = by.base
    if isinstance(by, np.ndarray):
        if by.ndim != 1:
            raise Unfusable
        by = by.astype(np.int64)
    return by * m.scale


def _moved(x: Any, step: Any, trips: int, shape: tuple[int, ...]) -> AxisSum:
    """A value as a symbol that moves by ``step`` with each of ``trips`` iterations."""
    if isinstance(x, np.ndarray) and x.ndim > 1:
        raise Unfusable
    if not isinstance(x, AxisSum):
        base = x.astype(np.int64) if isinstance(x, np.ndarray) else int(x)
        x = AxisSum(shape, base, (0,) * len(shape), int(np.min(base)), int(np.max(base)))
    ends = (int(np.min(step)) * max(trips - 1, 0), int(np.max(step)) * max(trips - 1, 0))
    return AxisSum(x.shape, x.base, x.terms, x.lo + min(0, *ends), x.hi + max(0, *ends), step)


def _most(step: Any) -> int:
    return int(np.max(np.abs(step)))


def _plain(x: AxisSum, scalar: bool) -> Any:
    return x.base if scalar else x


def analyse(c: Compiler, op: Op, stages: int) -> FusedLoop | None:
    """The fused form of an ``scf.for``, or None where the loop does something else too."""
    body = op.regions[0].entry
    if not body.ops or body.ops[-1].name != "scf.yield" or not any(o.name == "tt.dot" for o in body.ops):
        return None
    yielded = body.ops[-1].operands
    defined = {r: o for o in body.ops for r in o.results}
    moving: set[Value] = set(body.args)
    invariant_ops, moving_ops, others = [], [], []
    for o in body.ops[:-1]:
        if o.regions or o.successors:
            return None
        if any(r in c.data for r in o.results) or o.name == "tt.load":
            others.append(o)
        elif not o.results:
            return None
        elif any(v in moving for v in o.operands):
            moving.update(o.results)
            moving_ops.append(o)
        else:
            invariant_ops.append(o)
    loop = FusedLoop([], [], c.slot(body.args[0]), stages)
    if body.args[0] in c.data:
        return None
    sums: dict[Value, int] = {}
    for start, arg, after, result in zip(op.operands[3:], body.args[1:], yielded, op.results, strict=True):
        if arg in c.data:
            name = element(arg.type)
            if name not in _ACCUMULATORS or not isinstance(arg.type, Tensor) or len(arg.type.shape) != 2:
                return None
            sums[arg] = len(loop.sums)
            loop.sums.append(
                _Sum(
                    c.slot(start),
                    c.dep(start),
                    c.slot(result),
                    c.dep(result),
                    arg.type.shape,
                    name,
                    result in c.needed,
                    after,
                )
            )
        else:
            carried = _carried(c, start, arg, after, result, defined, moving)
            if carried is None:
                return None
            loop.carried.append(carried)
    if not _body(c, loop, others, sums):
        return None
    if any(sums.get(s.last) != i for i, s in enumerate(loop.sums)):
        return None
    loop.invariant = _compile(c, invariant_ops).full
    loop.moving_steps = _compile(c, moving_ops).full
    slots, deps = c.captured([body])
    starts = tuple(c.slot(v) for v in op.operands)
    loop.captures = (tuple({*slots, *starts}), tuple({*deps, *c.deps(op.operands)}))
    return loop


def _compile(c: Compiler, ops: list[Op]) -> Code:
    outer, c.code = c.code, Code()
    for o in ops:
        c.op(o)
    made, c.code = c.code, outer
    return made


def _carried(
    c: Compiler, start: Value, arg: Value, after: Value, result: Value, defined: dict[Value, Op], moving: set[Value]
) -> _Moving | None:
    """A carried value that is not data, if each iteration adds a constant to it."""
    increment, scale = -1, 1
    if after is not arg:
        o = defined.get(after)
        if o is None or o.name not in _ADVANCES:
            return None
        a, b = o.operands
        if b is arg and o.name == "arith.addi":
            a, b = b, a
        if a is not arg or b in moving or b in c.data:
            return None
        increment = c.slot(b)
        if o.name == "tt.addptr":
            kind = arg.type.elem if isinstance(arg.type, Tensor) else arg.type
            assert isinstance(kind, Pointer)
            scale = itemsize(element(kind.pointee))
    scalar = not isinstance(arg.type, Tensor)
    return _Moving(c.slot(start), c.slot(arg), c.slot(result), increment, scale, shape_of(arg.type), scalar)


def _body(c: Compiler, loop: FusedLoop, ops: list[Op], sums: dict[Value, int]) -> bool:
    """Loads, views of them, and dots that add to a carried accumulator, each used by nothing else."""
    tiles: set[Value] = set()
    for o in ops:
        if o.name == "tt.load":
            if not isinstance(o.results[0].type, Tensor) or len(o.results[0].type.shape) != 2:
                return False
            if any(v in c.data for v in o.operands[:2]) or (len(o.operands) > 2 and o.operands[2] in c.data):
                return False
            row = RowKind(OpKind.READ, c.line(o.loc), "load", record_dtype(o.results[0].type))
            other = c.slot(o.operands[2]) if len(o.operands) > 2 else -1
            load = _Load(access_of(c, o, 1), row, c.deps(o.operands), other, o.results[0])
            loop.loads.append(load)
            loop.body.append(load)
        elif o.name in _CASTS and o.operands[0] in tiles:
            name, dtype = element(o.results[0].type), element(o.operands[0].type)
            row = RowKind(OpKind.VECTOR, c.line(o.loc), "cast", dtype, int(np.prod(shape_of(o.results[0].type))))
            loop.body.append(_View(o.operands[0], o.results[0], None, name, row))
        elif o.name == "tt.trans" and o.operands[0] in tiles:
            loop.body.append(_View(o.operands[0], o.results[0], tuple(o.attrs["order"]), None, None))
        elif o.name == "tt.dot" and o.operands[2] in sums and {o.operands[0], o.operands[1]} <= tiles:
            if len(c.users[o.operands[2]]) != 1:
                return False
            i = sums.pop(o.operands[2])
            sums[o.results[0]] = i
            loop.body.append(_Dot(o.operands[0], o.operands[1], gemm_row(c, o), o.results[0], i))
            continue
        else:
            return False
        tiles.update(o.results)
    return all(
        user.name == "tt.dot" or user.name in _CASTS or user.name in VIEWS
        for tile in tiles
        for user in c.users.get(tile, [])
    )
