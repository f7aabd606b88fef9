"""Loops, branches, calls and early returns.

Programs run a region together as long as they agree; where they part, each side runs on a frame of its programs only,
and the results are put together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import loopfuse
from kernbench.kernels.dataflow import data_values
from kernbench.kernels.plan import (
    CARRIER,
    Code,
    Compiler,
    Frame,
    Plan,
    Probe,
    element,
    emits,
    join,
    shape_of,
    unsupported,
)
from kernbench.kernels.recorder import Deps, Index
from kernbench.kernels.spin import Spin
from kernbench.kernels.ttir import Block, Function, Loc, Op, Tensor, Value
from kernbench.kernels.values import merge, take

Part = tuple[Index, list[Any], list[Deps]]
"""Some programs of a frame, the values they leave with, and the rows that produce them."""


class Outlet:
    """The results of a region: where they come from on each side and where they go."""

    def __init__(self, c: Compiler, results: Sequence[Value]) -> None:
        self.slots = [c.slot(v) for v in results]
        self.deps = [c.dep(v) for v in results]
        self.scalar = [not isinstance(v.type, Tensor) for v in results]
        self.dtypes = [CARRIER.get(element(v.type), np.dtype(object)) for v in results]
        self.ranks = [len(shape_of(v.type)) for v in results]

    def put(self, f: Frame, values: list[Any], deps: list[Deps]) -> None:
        for slot, dep, value, rows in zip(self.slots, self.deps, values, deps, strict=True):
            f.v[slot] = value
            if dep:
                f.d[dep] = rows

    def put_parts(self, f: Frame, parts: list[Part]) -> None:
        """Results of programs that went different ways."""
        for i, (slot, dep) in enumerate(zip(self.slots, self.deps, strict=True)):
            values = [(index, part[i]) for index, part, _ in parts]
            if any(v is None for _, v in values):
                f.v[slot] = None
            else:
                merged = merge(values, f.count, self.scalar[i], self.dtypes[i])
                if not self.scalar[i] and isinstance(merged, np.ndarray) and merged.ndim == 1:
                    merged = merged.reshape((-1,) + (1,) * self.ranks[i])
                f.v[slot] = merged
            if dep:
                f.d[dep] = f.recorder.latest([rows[i] for _, _, rows in parts])


class Inlet:
    """Values that leave a region: the operands of its terminator."""

    def __init__(self, c: Compiler, values: Sequence[Value]) -> None:
        self.slots = [c.slot(v) for v in values]
        self.deps = [c.dep(v) for v in values]

    def get(self, f: Frame) -> tuple[list[Any], list[Deps]]:
        return [f.v[s] for s in self.slots], [f.d[d] for d in self.deps]


def as_bools(condition: Any) -> bool | NDArray[np.bool_]:
    """A condition as one bool where all programs agree, else bool[P]."""
    if not isinstance(condition, np.ndarray):
        return bool(condition)
    if condition.all():
        return True
    return condition if condition.any() else False


def await_branch(f: Frame, rows: Deps) -> None:
    """Later memory accesses are issued once the rows that decide a branch are done."""
    if rows:
        f.control = rows


def rejoin(f: Frame, sides: Sequence[Frame]) -> None:
    """After programs parted: each waits for the latest branch it took part in."""
    f.control = f.recorder.latest([f.control, *(side.control for side in sides)])


@emits("scf.yield", "scf.condition", "tt.reduce.return", "tt.scan.return")
def emit_terminator(c: Compiler, op: Op) -> None:
    """Read by the operation that holds the region."""


@emits("scf.if")
def emit_if(c: Compiler, op: Op) -> None:
    condition, condition_dep = c.slot(op.operands[0]), c.deps(op.operands[:1])
    blocks = [region.entry for region in op.regions]
    for block in blocks:
        _carry_origin(c, block.ops[-1].operands if block.ops else (), op.results)
    codes = [c.block(block) for block in blocks]
    while len(codes) < 2:
        codes.append(Code())
        blocks.append(Block(()))
    inlets = [Inlet(c, b.ops[-1].operands if b.ops and b.ops[-1].name == "scf.yield" else ()) for b in blocks]
    captures = [c.captured([b]) for b in blocks]
    outlet = Outlet(c, op.results)

    def branch(f: Frame, with_values: bool) -> None:
        await_branch(f, join(f.d, condition_dep))
        taken = as_bools(f.v[condition])
        if isinstance(taken, bool):
            side = 0 if taken else 1
            codes[side].run(f, with_values)
            outlet.put(f, *inlets[side].get(f))
            return
        parts: list[Part] = []
        frames = []
        for side, index in enumerate((np.flatnonzero(taken), np.flatnonzero(~taken))):
            frame = f.subset(index, *captures[side])
            codes[side].run(frame, with_values)
            frames.append(frame)
            parts.append((index, *inlets[side].get(frame)))
        rejoin(f, frames)
        outlet.put_parts(f, parts)

    c.both(lambda f: branch(f, True), lambda f: branch(f, False))


def trip_count(lower: Any, upper: Any, step: Any) -> Any:
    """Iterations of ``for i in range(lower, upper, step)``: an int, or int64[P]."""
    if isinstance(lower, int) and isinstance(upper, int) and isinstance(step, int):
        return max(0, -(-(upper - lower) // step)) if step > 0 else 0
    lower, upper, step = (np.asarray(x, np.int64) for x in (lower, upper, step))
    trips = np.maximum(0, -(-(upper - lower) // np.maximum(step, 1)))
    return int(trips.flat[0]) if (trips == trips.flat[0]).all() else trips


def _carry_origin(c: Compiler, sources: Sequence[Value], targets: Sequence[Value]) -> None:
    for source, target in zip(sources, targets, strict=False):
        if source in c.origin:
            c.origin.setdefault(target, c.origin[source])


@emits("scf.for")
def emit_for(c: Compiler, op: Op) -> None:
    body = op.regions[0].entry
    _carry_origin(c, op.operands[3:], body.args[1:])
    bounds = [c.slot(v) for v in op.operands[:3]]
    bound_deps = c.deps(op.operands[:3])
    start, arguments = Inlet(c, op.operands[3:]), Outlet(c, body.args[1:])
    induction, induction_dep = c.slot(body.args[0]), c.dep(body.args[0])
    dtype = CARRIER[element(body.args[0].type)]
    stages = max(1, int(op.attrs.get("tt.num_stages", c.num_stages)))
    loads_before = len(c.loop_loads)
    code = c.block(body)
    loads = c.loop_loads[loads_before:]
    del c.loop_loads[loads_before:]
    yields = Inlet(c, body.ops[-1].operands if body.ops and body.ops[-1].name == "scf.yield" else ())
    captures = c.captured([body])
    outlet = Outlet(c, op.results)
    _carry_origin(c, op.operands[3:], op.results)
    stepwise = Probe.stepwise is not None and Probe.stepwise(c, op)
    fused = None if stepwise else loopfuse.analyse(c, op, stages)
    if fused is None and any(inner.name in ("tt.dot", "tt.dot_scaled") for inner in op.walk()):
        c.stepped_dots = True
    taped = c.taped

    def loop(f: Frame, with_values: bool) -> None:
        lower, upper, step = (f.v[s] for s in bounds)
        await_branch(f, join(f.d, bound_deps))
        if taped and f.launch.known is not None:
            trips = f.launch.known.next()[0]
        else:
            trips = trip_count(lower, upper, step)
            if taped and f.launch.tape is not None:
                f.launch.tape.keep(trips, [])
        if fused is None or not fused.run(f, lower, step, trips, with_values, lambda g: unfused(g, with_values)):
            loop_steps(f, trips, with_values)

    def unfused(f: Frame, with_values: bool) -> None:
        loop_steps(f, trip_count(*(f.v[s] for s in bounds)), with_values)

    def loop_steps(f: Frame, trips: Any, with_values: bool) -> None:
        lower, step = f.v[bounds[0]], f.v[bounds[2]]
        rows = join(f.d, bound_deps)
        values, deps = start.get(f)
        frame, index = f, np.arange(f.count)
        frames = []
        parts: list[Part] = []
        history: list[list[Deps]] = []
        t = 0
        while True:
            going = trips > t if isinstance(trips, int) else trips[index] > t
            if isinstance(going, np.ndarray):
                done = np.flatnonzero(~going)
                if len(done):
                    parts.append((index[done], [take(v, done) for v in values], deps))
                    rest = np.flatnonzero(going)
                    if not len(rest):
                        break
                    frame = frame.subset(rest, *captures)
                    frames.append(frame)
                    index, values = index[rest], [take(v, rest) for v in values]
                    lower, step = (take(x, rest) for x in (lower, step))
            elif not going:
                break
            frame.v[induction] = _advance(lower, step, t, dtype)
            if induction_dep:
                frame.d[induction_dep] = rows
            arguments.put(frame, values, deps)
            _pipeline(frame, loads, history, stages)
            code.run(frame, with_values)
            if loads:
                history.append([frame.loaded.get(load, ()) for load in loads])
            values, deps = yields.get(frame)
            t += 1
        rejoin(f, frames)
        _leave(f, loads)
        if not parts:
            outlet.put(f, values, deps)
        else:
            outlet.put_parts(f, parts)

    c.both(lambda f: loop(f, True), lambda f: loop(f, False))


def _advance(lower: Any, step: Any, t: int, dtype: Any) -> Any:
    made = lower + step * t
    return made.astype(dtype) if isinstance(made, np.ndarray) else int(made)


def _leave(f: Frame, loads: list[int]) -> None:
    for load in loads:
        f.slot_free.pop(load, None)
        f.loaded.pop(load, None)


def _pipeline(f: Frame, loads: list[int], history: list[list[Deps]], stages: int) -> None:
    """A load overwrites the buffer slot of the one ``stages`` iterations before: it waits for who read that."""
    if not loads:
        return
    for i, load in enumerate(loads):
        if len(history) >= stages:
            before = history[len(history) - stages][i]
            readers = f.recorder.readers
            f.slot_free[load] = tuple(sorted({*before, *(r for row in before for r in readers.get(row, ()))}))
        else:
            f.slot_free.pop(load, None)


@emits("scf.while")
def emit_while(c: Compiler, op: Op) -> None:
    before, after = op.regions[0].entry, op.regions[1].entry
    passed = before.ops[-1].operands[1:]
    _carry_origin(c, op.operands, before.args)
    start, first_args = Inlet(c, op.operands), Outlet(c, before.args)
    test_code = c.block(before)
    _carry_origin(c, passed, after.args)
    condition, condition_dep = c.slot(before.ops[-1].operands[0]), c.deps(before.ops[-1].operands[:1])
    handed, second_args = Inlet(c, passed), Outlet(c, after.args)
    body_code = c.block(after)
    back = Inlet(c, after.ops[-1].operands if after.ops else ())
    captures = c.captured([before, after])
    outlet = Outlet(c, op.results)
    spin = Spin.of(c, op)

    def loop(f: Frame, with_values: bool) -> None:
        values, deps = start.get(f)
        frame, index = f, np.arange(f.count)
        frames = []
        parts: list[Part] = []
        turns = None if spin is None or f.launch.crew is None else spin.begin(f)
        while True:
            if turns is not None:
                values, deps = turns.next(values, deps)
            first_args.put(frame, values, deps)
            test_code.run(frame, with_values)
            await_branch(frame, join(frame.d, condition_dep))
            go = as_bools(frame.v[condition])
            values, deps = handed.get(frame)
            if go is False:
                parts.append((index, values, deps))
                break
            if isinstance(go, np.ndarray):
                done, rest = np.flatnonzero(~go), np.flatnonzero(go)
                parts.append((index[done], [take(v, done) for v in values], deps))
                frame = frame.subset(rest, *captures)
                frames.append(frame)
                index, values = index[rest], [take(v, rest) for v in values]
            second_args.put(frame, values, deps)
            body_code.run(frame, with_values)
            values, deps = back.get(frame)
        rejoin(f, frames)
        if len(parts) == 1:
            outlet.put(f, parts[0][1], parts[0][2])
        else:
            outlet.put_parts(f, parts)

    c.both(lambda f: loop(f, True), lambda f: loop(f, False))


class Body:
    """A function's blocks. Programs that branch apart go on separately until they return."""

    def __init__(self, c: Compiler, function: Function) -> None:
        self.blocks = function.body.blocks
        number = {block: i for i, block in enumerate(self.blocks)}
        self.code: list[Code] = []
        self.end: list[Any] = []
        for block in self.blocks:
            last = block.ops[-1]
            self.code.append(c.block(Block(block.args, block.ops[:-1])))
            if last.name == "tt.return":
                self.end.append(("return", Inlet(c, last.operands)))
            elif last.name in ("cf.br", "cf.cond_br"):
                own = len(last.operands) if last.name == "cf.cond_br" else 0
                condition = c.slot(last.operands[0]) if own else -1
                waits = c.deps(last.operands[:own])
                ways = [(number[t], Inlet(c, vs), Outlet(c, t.args)) for t, vs in last.successors]
                self.end.append(("branch", condition, waits, ways))
            else:
                raise unsupported(last, "as the end of a block")

    def run(self, f: Frame, with_values: bool) -> list[Part]:
        """Execute; returns what each group of programs returned."""
        return self._from(0, f, np.arange(f.count), with_values)

    def _from(self, at: int, f: Frame, index: Index, with_values: bool) -> list[Part]:
        while True:
            self.code[at].run(f, with_values)
            end = self.end[at]
            if end[0] == "return":
                return [(index, *end[1].get(f))]
            _, condition, waits, ways = end
            await_branch(f, join(f.d, waits))
            taken = True if condition < 0 else as_bools(f.v[condition])
            if isinstance(taken, bool):
                at, values, arguments = ways[0 if taken else 1]
                arguments.put(f, *values.get(f))
                continue
            parts: list[Part] = []
            live = [s for s in range(len(f.v)) if f.v[s] is not None]
            rows = [d for d in range(len(f.d)) if f.d[d]]
            for side, chosen in enumerate((np.flatnonzero(taken), np.flatnonzero(~taken))):
                target, values, arguments = ways[side]
                frame = f.subset(chosen, live, rows)
                arguments.put(frame, *values.get(frame))
                parts += self._from(target, frame, index[chosen], with_values)
            return parts


def compile_function(
    function: Function,
    functions: dict[str, Function],
    num_stages: int,
    lines: list[Loc] | None = None,
    given: Sequence[bool] = (),
    taped: bool = False,
) -> Plan:
    """The plan of a function. ``given`` says which arguments are data, ``lines`` collects source lines, ``taped``
    says that it is what is launched, so that launches alike may repeat it.

    Raises:
        KernelError: it uses an operation that KernBench does not run; nothing has run then.
    """
    arguments = zip(function.body.entry.args, given, strict=False)
    data = data_values(function, frozenset(v for v, is_data in arguments if is_data))
    c = Compiler(function, functions, num_stages, lines, data)
    c.taped = taped
    for value in function.body.entry.args:
        c.slot(value)
    return c.finish(Body(c, function).run)


@emits("tt.call")
def emit_call(c: Compiler, op: Op) -> None:
    callee = c.functions.get(op.attrs["callee"])
    if callee is None:
        raise unsupported(op, f"a call of {op.attrs['callee']}, which the module does not define")
    plan = compile_function(callee, c.functions, c.num_stages, c.lines, [v in c.data for v in op.operands])
    c.repeats = False
    c.largest_tile = max(c.largest_tile, plan.largest_tile)
    c.stepped_dots |= plan.stepped_dots
    given, outlet = Inlet(c, op.operands), Outlet(c, op.results)

    def call(f: Frame, with_values: bool) -> None:
        values, deps = given.get(f)
        v: list[Any] = [None] * plan.slots
        d: list[Deps] = [()] * plan.dep_slots
        for slot, value in zip(plan.args, values, strict=True):
            v[slot] = value
        for dep, rows in zip(plan.arg_deps, deps, strict=True):
            if dep:
                d[dep] = rows
        frame = Frame(f.launch, f.recorder, v, d, f.count, f.pids, f.members, f.control)
        parts = plan.run(frame, with_values)
        rejoin(f, [frame])
        if len(parts) == 1:
            outlet.put(f, parts[0][1], parts[0][2])
        else:
            outlet.put_parts(f, parts)

    c.both(lambda f: call(f, True), lambda f: call(f, False))
