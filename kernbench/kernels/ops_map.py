"""``tl.map_elementwise``: a scalar function, branches and all, run with each lane as if it were a program."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import plan as plans
from kernbench.kernels.ops_shape import same_programs, whole
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, record_dtype, shape_of
from kernbench.kernels.ttir import Arg, Block, Function, Op, Region, Value
from kernbench.kernels.values import merge

_FREE = {"arith.constant", "cf.br", "cf.cond_br", "tt.map_elementwise.return"}


def _as_function(op: Op) -> tuple[Function, list[Value]]:
    """The region as a function of its own parameters and then of the values it uses from outside."""
    blocks = op.regions[0].blocks
    defined: set[Value] = set()
    used: dict[Value, None] = {}
    for block in blocks:
        plans._uses(block, defined, used)
    outside = [v for v in used if v not in defined]
    made = [Block((*blocks[0].args, *outside), blocks[0].ops), *blocks[1:]]
    for block in made:
        last = block.ops[-1]
        if last.name == "tt.map_elementwise.return":
            block.ops[-1] = Op("tt.return", (), last.operands, {}, loc=last.loc)
    args = tuple(Arg(v.name.lstrip("%"), v.type, {}) for v in made[0].args)
    return Function("map_elementwise", args, Region(made), public=False, loc=op.loc), outside


@emits("tt.map_elementwise")
def emit_map(c: Compiler, op: Op) -> None:
    from kernbench.kernels.control import compile_function

    pack = int(op.attrs.get("pack", 1))
    work = sum(inner.name not in _FREE for inner in op.walk()) - 1
    function, outside = _as_function(op)
    plan = compile_function(function, c.functions, c.num_stages, c.lines)
    slots, outer = [c.slot(v) for v in op.operands], [c.slot(v) for v in outside]
    outs = [c.slot(v) for v in op.results]
    kinds = [(shape_of(v.type), CARRIER[element(v.type)]) for v in op.operands]
    dtypes = [CARRIER[element(v.type)] for v in op.results]
    shape = shape_of(op.results[0].type)

    def step(f: Frame) -> None:
        blocks = same_programs(*(whole(f.v[s], *k) for s, k in zip(slots, kinds, strict=True)))
        programs = blocks[0].shape[0]
        each = int(np.prod(shape)) // pack
        given: list[Any] = []
        for block in blocks:
            lanes = block.reshape(programs * each, pack)
            given += [np.ascontiguousarray(lanes[:, i]) for i in range(pack)]
        given += [np.repeat(x, each) if isinstance(x := f.v[s], np.ndarray) else x for s in outer]
        v: list[Any] = [None] * plan.slots
        for slot, x in zip(plan.args, given, strict=True):
            v[slot] = x
        pids = tuple(p if isinstance(p, int) else np.repeat(p, each) for p in f.pids)
        inner = Frame(f.launch, f.recorder, v, [()] * plan.dep_slots, programs * each, pids)  # type: ignore[arg-type]
        parts = plan.run(inner, True)
        for r, (out, dtype) in enumerate(zip(outs, dtypes, strict=True)):
            columns = []
            for i in range(pack):
                column = merge([(index, vs[r * pack + i]) for index, vs, _ in parts], inner.count, True, dtype)
                columns.append(np.broadcast_to(np.asarray(column, dtype), (inner.count,)))
            made: NDArray[Any] = np.stack(columns, axis=1) if pack > 1 else columns[0]
            f.v[out] = made.reshape(programs, *shape)

    c.compute(op, step)
    kind = op.results[0].type
    c.record(op, "map", int(np.prod(shape)) // pack * max(work, 1), record_dtype(kind))
