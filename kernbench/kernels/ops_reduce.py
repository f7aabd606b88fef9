"""Matrix products, reductions and scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import plan as plans
from kernbench.kernels.numerics import NARROW, rounded
from kernbench.kernels.ops_shape import one, same_programs, whole
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, join, record_dtype, shape_of
from kernbench.kernels.recorder import RowKind
from kernbench.kernels.ttir import Block, Op, Tensor
from kernbench.kernels.values import uniform
from kernbench.sim_engine.oplog import OpKind


def product(a: NDArray[Any], b: NDArray[Any], out_name: str) -> NDArray[Any]:
    """``a @ b`` in the precision that sums are kept in: float32, float64, or exact integers wrapped to int32."""
    if out_name.startswith("i"):
        # Up to 1024 products of bytes, and each partial sum of them, are integers below 2^24: exact in float32.
        short = a.dtype.itemsize == b.dtype.itemsize == 1 and a.shape[-1] <= 1024
        carrier = np.float32 if short else np.float64
        exact = a.astype(carrier) @ b.astype(carrier)
        return exact.astype(np.int64).astype(CARRIER[out_name])
    return np.matmul(a, b)


def gemm_row(c: Compiler, op: Op) -> RowKind:
    """The row of one step of a matrix product; a batch is so many more rows of the left operand."""
    shape = shape_of(op.operands[0].type)
    n = shape_of(op.operands[1].type)[-1]
    m = int(np.prod(shape[:-1], dtype=np.int64))
    return RowKind(OpKind.GEMM, c.line(op.loc), "dot", record_dtype(op.operands[0].type), 0, (m, n, shape[-1]))


@emits("tt.dot")
def emit_dot(c: Compiler, op: Op) -> None:
    a, b, acc = (c.slot(v) for v in op.operands)
    out, name = c.slot(op.results[0]), element(op.results[0].type)
    kinds = [(shape_of(v.type), CARRIER[element(v.type)]) for v in op.operands]

    def step(f: Frame) -> None:
        v = f.v
        x, y = whole(v[a], *kinds[0]), whole(v[b], *kinds[1])
        made = product(x, y, name)
        start = v[acc]
        if not (uniform(start) and start == 0):
            made = made + start
        v[out] = rounded(made, name, fresh=True) if name in NARROW else made

    c.compute(op, step)
    row, sources = gemm_row(c, op), c.deps(op.operands)
    acc_dep, target = c.dep(op.operands[2]), c.dep(op.results[0])

    def record(f: Frame) -> None:
        chained = acc_dep != 0 and f.recorder.is_gemm(f.d[acc_dep])
        f.d[target] = f.recorder.add(row, join(f.d, sources), f.members, chained=chained)

    c.recorded(record)


Combine = Callable[..., tuple[Any, ...]]
_FAST: dict[str, tuple[str, Any, Any]] = {
    # the combine function's operation -> its name, how numpy reduces with it, how numpy scans with it
    "arith.addf": ("sum", np.add, np.cumsum),
    "arith.addi": ("sum", np.add, np.cumsum),
    "arith.mulf": ("prod", np.multiply, np.cumprod),
    "arith.muli": ("prod", np.multiply, np.cumprod),
    "arith.maxnumf": ("max", np.fmax, np.fmax.accumulate),
    "arith.minnumf": ("min", np.fmin, np.fmin.accumulate),
    "arith.maximumf": ("max", np.maximum, np.maximum.accumulate),
    "arith.minimumf": ("min", np.minimum, np.minimum.accumulate),
    "arith.maxsi": ("max", np.maximum, np.maximum.accumulate),
    "arith.minsi": ("min", np.minimum, np.minimum.accumulate),
    "arith.maxui": ("max", None, None),
    "arith.minui": ("min", None, None),
    "arith.andi": ("and", np.bitwise_and, np.bitwise_and.accumulate),
    "arith.ori": ("or", np.bitwise_or, np.bitwise_or.accumulate),
    "arith.xori": ("xor", np.bitwise_xor, np.bitwise_xor.accumulate),
}
_ROUNDS = {"arith.addf", "arith.mulf"}


def _single(block: Block) -> str:
    """The operation of a combine function that is just one, of both its arguments; else an empty string."""
    if len(block.ops) == 2 and len(block.args) == 2 and set(block.ops[0].operands) == set(block.args):
        return block.ops[0].name
    return ""


def combine_name(block: Block) -> str:
    """What a reduction is called in the record."""
    known = _FAST.get(_single(block))
    if known:
        return known[0]
    names = [op.name for op in block.ops]
    if "arith.select" in names and len(block.args) == 4:
        return (
            "argmax" if any(op.attrs.get("words", ("",))[0] in ("ogt", "sgt", "ugt") for op in block.ops) else "argmin"
        )
    return "reduce"


def combine_function(c: Compiler, block: Block) -> Combine:
    """A combine region as a function of arrays of any shape: its scalars become whole arrays."""
    inner = Compiler(c.function, c.functions, c.num_stages, c.lines, frozenset())
    code = inner.block(Block(block.args, block.ops[:-1]))
    args = [inner.slot(v) for v in block.args]
    results = [inner.slot(v) for v in block.ops[-1].operands]
    names = _outside(block)
    outer = [c.slot(v) for v in names]
    slots = len(inner._slots)
    inner_outside = [inner.slot(v) for v in names]

    def combine(frame: Frame, *operands: Any) -> tuple[Any, ...]:
        v: list[Any] = [None] * slots
        for s, o in zip(inner_outside, outer, strict=True):
            v[s] = frame.v[o]
        for s, x in zip(args, operands, strict=True):
            v[s] = x
        f = Frame(frame.launch, frame.recorder, v, [()], frame.count, frame.pids)
        plans.run(code.full, f)
        return tuple(v[s] for s in results)

    return combine


def _outside(block: Block) -> list[Any]:
    defined: set[Any] = set()
    used: dict[Any, None] = {}
    plans._uses(block, defined, used)
    return [v for v in used if v not in defined]


def _halves(combine: Combine, frame: Frame, blocks: list[NDArray[Any]]) -> tuple[Any, ...]:
    """Reduce the last axis by combining its two halves until one element is left."""
    while (n := blocks[0].shape[-1]) > 1:
        half = n // 2
        made = combine(frame, *(b[..., :half] for b in blocks), *(b[..., half : 2 * half] for b in blocks))
        made = tuple(np.broadcast_to(m, (*blocks[0].shape[:-1], half)) for m in made)
        if n % 2:
            made = tuple(np.concatenate([m, b[..., -1:]], -1) for m, b in zip(made, blocks, strict=True))
        blocks = list(made)
    return tuple(b[..., 0] for b in blocks)


@emits("tt.reduce")
def emit_reduce(c: Compiler, op: Op) -> None:
    block, axis = op.regions[0].entry, int(op.attrs["axis"]) + 1
    slots, outs = [c.slot(v) for v in op.operands], [c.slot(v) for v in op.results]
    kinds = [(shape_of(v.type), CARRIER[element(v.type)]) for v in op.operands]
    to_scalar = not isinstance(op.results[0].type, Tensor)
    fast = _fast_path(op)
    combine = None if fast else combine_function(c, block)

    def finish(x: NDArray[Any]) -> Any:
        if not to_scalar:
            return x
        return one(x[0]) if x.shape[0] == 1 else x

    def step(f: Frame) -> None:
        if fast is not None:
            f.v[outs[0]] = finish(fast.reduce(whole(f.v[slots[0]], *kinds[0]), axis=axis, dtype=kinds[0][1]))
            return
        assert combine is not None
        blocks = same_programs(*(whole(f.v[s], *k) for s, k in zip(slots, kinds, strict=True)))
        made = _halves(combine, f, [np.moveaxis(b, axis, -1) for b in blocks])
        for out, x in zip(outs, made, strict=True):
            f.v[out] = finish(x)

    c.compute(op, step)
    kind = op.operands[0].type
    elements = int(np.prod(shape_of(kind), dtype=np.int64))
    c.record(op, combine_name(block), elements, record_dtype(kind))


def _fast_path(op: Op) -> Any:
    """numpy's own reduction, where the combine function is one operation that rounds no narrower than numpy does."""
    name = _single(op.regions[0].entry)
    known = _FAST.get(name)
    if known is None or (name in _ROUNDS and element(op.operands[0].type) in NARROW):
        return None
    if element(op.operands[0].type) == "i1" and name not in ("arith.andi", "arith.ori", "arith.xori"):
        return None
    return known[1]


@emits("tt.scan")
def emit_scan(c: Compiler, op: Op) -> None:
    block, axis = op.regions[0].entry, int(op.attrs["axis"]) + 1
    backwards = bool(op.attrs.get("reverse", False))
    slots, outs = [c.slot(v) for v in op.operands], [c.slot(v) for v in op.results]
    kinds = [(shape_of(v.type), CARRIER[element(v.type)]) for v in op.operands]
    accumulate = _FAST[_single(block)][2] if _fast_path(op) is not None else None
    combine = None if accumulate else combine_function(c, block)

    def step(f: Frame) -> None:
        blocks = same_programs(*(whole(f.v[s], *k) for s, k in zip(slots, kinds, strict=True)))
        if backwards:
            blocks = [np.flip(b, axis) for b in blocks]
        if accumulate is not None:
            made: tuple[Any, ...] = (accumulate(blocks[0], axis=axis, dtype=kinds[0][1]),)
        else:
            assert combine is not None
            made = _doubling(combine, f, [np.moveaxis(b, axis, -1) for b in blocks])
            made = tuple(np.moveaxis(m, -1, axis) for m in made)
        for out, x in zip(outs, made, strict=True):
            f.v[out] = np.flip(x, axis) if backwards else x

    c.compute(op, step)
    kind = op.operands[0].type
    c.record(op, f"scan_{combine_name(block)}", int(np.prod(shape_of(kind), dtype=np.int64)), record_dtype(kind))


def _doubling(combine: Combine, frame: Frame, blocks: list[NDArray[Any]]) -> tuple[Any, ...]:
    """Inclusive scan of the last axis in log2(n) steps of doubling reach (Hillis and Steele)."""
    n, reach = blocks[0].shape[-1], 1
    while reach < n:
        made = combine(frame, *(b[..., :-reach] for b in blocks), *(b[..., reach:] for b in blocks))
        blocks = [
            np.concatenate([b[..., :reach], np.broadcast_to(m, b[..., reach:].shape)], -1)
            for b, m in zip(blocks, made, strict=True)
        ]
        reach *= 2
    return tuple(blocks)
