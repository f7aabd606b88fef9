"""Where values come from and how blocks change shape. None of it costs time except what moves data between lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernbench.kernels import values
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.numerics import NARROW, rounded
from kernbench.kernels.ops_int import in_full
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, record_dtype, shape_of, where
from kernbench.kernels.ttir import Op
from kernbench.kernels.values import AxisSum, Mask


def set_constant(c: Compiler, op: Op, value: Any) -> None:
    out = c.slot(op.results[0])
    c.immediate(op, lambda f: f.v.__setitem__(out, value))


@emits("arith.constant")
def emit_constant(c: Compiler, op: Op) -> None:
    name = element(op.results[0].type)
    value = op.attrs["value"]
    dtype = CARRIER[name]
    if isinstance(value, np.ndarray):
        block = value.astype(dtype)[None]
        return set_constant(c, op, rounded(block, name) if name in NARROW else block)
    if name == "i1":
        return set_constant(c, op, bool(value))
    if name.startswith("i"):
        return set_constant(c, op, int(value))
    number = dtype.type(value)
    return set_constant(c, op, rounded(number, name) if name in NARROW else number)


@emits("ub.poison")
def emit_poison(c: Compiler, op: Op) -> None:
    name = element(op.results[0].type)
    set_constant(c, op, 0 if name.startswith("i") and name != "i1" else CARRIER[name].type(0))


_AXES = {"x": 0, "y": 1, "z": 2}


@emits("tt.get_program_id")
def emit_program_id(c: Compiler, op: Op) -> None:
    axis, out = _AXES[op.attrs["words"][0]], c.slot(op.results[0])
    c.immediate(op, lambda f: f.v.__setitem__(out, f.pids[axis]))


@emits("tt.get_num_programs")
def emit_num_programs(c: Compiler, op: Op) -> None:
    axis, out = _AXES[op.attrs["words"][0]], c.slot(op.results[0])
    c.immediate(op, lambda f: f.v.__setitem__(out, f.launch.grid[axis]))


@emits("tt.make_range")
def emit_make_range(c: Compiler, op: Op) -> None:
    set_constant(c, op, values.arange(int(op.attrs["start"]), int(op.attrs["end"])))


@emits("tt.splat", "tt.unsplat")
def emit_splat(c: Compiler, op: Op) -> None:
    a, out, shape = c.slot(op.operands[0]), c.slot(op.results[0]), shape_of(op.results[0].type)
    if op.name == "tt.splat":
        c.compute(op, lambda f: f.v.__setitem__(out, values.splat(f.v[a], shape)))
    else:
        dtype = CARRIER[element(op.results[0].type)]
        c.compute(op, lambda f: f.v.__setitem__(out, scalar(in_full(f.v[a], dtype))))
    c.alias(op)


def scalar(x: Any) -> Any:
    """The only element of a block in full, as a scalar."""
    if not isinstance(x, np.ndarray):
        return x
    flat = x.reshape(x.shape[0], -1)[:, 0]
    return one(flat[0]) if len(flat) == 1 else flat


def one(x: Any) -> Any:
    """A number of one element: Python's int and bool, numpy's float."""
    return x.item() if isinstance(x, np.integer | np.bool_) else x


@emits("tt.expand_dims")
def emit_expand_dims(c: Compiler, op: Op) -> None:
    a, out, axis = c.slot(op.operands[0]), c.slot(op.results[0]), int(op.attrs["axis"])
    c.compute(op, lambda f: f.v.__setitem__(out, values.expand_dims(f.v[a], axis)))
    c.alias(op)


@emits("tt.broadcast")
def emit_broadcast(c: Compiler, op: Op) -> None:
    a, out, shape = c.slot(op.operands[0]), c.slot(op.results[0]), shape_of(op.results[0].type)
    c.compute(op, lambda f: f.v.__setitem__(out, values.broadcast(f.v[a], shape)))
    c.alias(op)


@emits("tt.trans")
def emit_trans(c: Compiler, op: Op) -> None:
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    order = tuple(int(d) for d in op.attrs["order"])
    c.compute(op, lambda f: f.v.__setitem__(out, values.transpose(f.v[a], order)))
    c.alias(op)


def whole(x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A block as an array whose axes have their true lengths (the first, programs, may be 1)."""
    if type(x) is np.ndarray and x.dtype == dtype and x.shape[1:] == shape:
        return x
    x = np.asarray(in_full(x, dtype), dtype)
    if x.ndim == 0:
        return np.broadcast_to(x, (1, *shape))
    return x if x.shape[1:] == shape else np.broadcast_to(x, (x.shape[0], *shape))


@emits("tt.reshape")
def emit_reshape(c: Compiler, op: Op) -> None:
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    source, shape = shape_of(op.operands[0].type), shape_of(op.results[0].type)
    dtype = CARRIER[element(op.results[0].type)]
    kept = [n for n in source if n != 1] == [n for n in shape if n != 1]

    def reshape(x: Any) -> Any:
        if values.uniform(x):
            return x
        if kept and isinstance(x, AxisSum | Mask):  # only axes of length 1 come and go
            for d in range(len(source) - 1, -1, -1):
                if source[d] == 1:
                    x = _drop(x, d)
            for d, n in enumerate(shape):
                if n == 1:
                    x = values.expand_dims(x, d)
            return x
        if isinstance(x, AxisSum) and len(x.axes()) == 1 and len(source) == 1:
            return _fold(x, shape)
        x = whole(x, source, dtype)
        return x.reshape(x.shape[0], *shape)

    c.compute(op, lambda f: f.v.__setitem__(out, reshape(f.v[a])))
    c.alias(op)


def _drop(x: Any, axis: int) -> Any:
    """Without an axis of length 1."""
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    if isinstance(x, AxisSum):
        return AxisSum(shape, x.base, x.terms[:axis] + x.terms[axis + 1 :], x.lo, x.hi, x.step)
    removed = x.axes[axis]
    dense = None if x.dense is None else np.squeeze(x.dense, axis + 1)
    kept = Mask(shape, x.axes[:axis] + x.axes[axis + 1 :], x.programs, dense)
    if removed is None:
        return kept
    bits = values.axis_bits(removed, 1)[:, 0]
    return (
        values.mask_and(kept, Mask(shape, (None,) * len(shape), bits))
        if len(bits) > 1
        else (kept if bits[0] else False)
    )


def _fold(x: AxisSum, shape: tuple[int, ...]) -> Any:
    """One regular axis as several: ``c*arange(n*m)`` is ``c*m*arange(n)`` plus ``c*arange(m)``."""
    term = x.terms[0]
    if type(term) is not int:
        dense = x.dense()
        return dense.reshape(dense.shape[0], *shape)
    terms, inner = [], 1
    for n in reversed(shape):
        terms.append(term * inner if n > 1 else 0)
        inner *= n
    return AxisSum(shape, x.base, tuple(reversed(terms)), x.lo, x.hi, x.step)


def _record(c: Compiler, op: Op, name: str) -> None:
    kind = op.results[0].type
    c.record(op, name, int(np.prod(shape_of(kind), dtype=np.int64)) * len(op.results), record_dtype(kind))


def _arrays(op: Op) -> list[tuple[tuple[int, ...], Any]]:
    return [(shape_of(v.type), CARRIER[element(v.type)]) for v in op.operands]


def same_programs(*blocks: Any) -> list[Any]:
    """Arrays with as many programs as the one that has most."""
    if len(blocks) == 1:
        return list(blocks)
    programs = max(b.shape[0] for b in blocks)
    return [np.broadcast_to(b, (programs, *b.shape[1:])) for b in blocks]


@emits("tt.join", "tt.cat")
def emit_join(c: Compiler, op: Op) -> None:
    a, b = (c.slot(v) for v in op.operands)
    out, kinds = c.slot(op.results[0]), _arrays(op)
    combine: Any = (
        (lambda x, y: np.stack([x, y], -1)) if op.name == "tt.join" else (lambda x, y: np.concatenate([x, y], 1))
    )

    def step(f: Frame) -> None:
        f.v[out] = combine(*same_programs(whole(f.v[a], *kinds[0]), whole(f.v[b], *kinds[1])))

    c.compute(op, step)
    _record(c, op, "join")


@emits("tt.split")
def emit_split(c: Compiler, op: Op) -> None:
    a, kind = c.slot(op.operands[0]), _arrays(op)[0]
    left, right = (c.slot(v) for v in op.results)

    def step(f: Frame) -> None:
        x = whole(f.v[a], *kind)
        f.v[left], f.v[right] = x[..., 0], x[..., 1]

    c.compute(op, step)
    _record(c, op, "split")


@emits("tt.gather")
def emit_gather(c: Compiler, op: Op) -> None:
    a, b = (c.slot(v) for v in op.operands)
    out, kinds, axis = c.slot(op.results[0]), _arrays(op), int(op.attrs["axis"]) + 1

    def step(f: Frame) -> None:
        x, index = same_programs(whole(f.v[a], *kinds[0]), whole(f.v[b], *kinds[1]).astype(np.int64))
        if index.size and (index.min() < 0 or index.max() >= x.shape[axis]):
            raise KernelFault(f"{where(op.loc)}: tl.gather with an index outside the axis of {x.shape[axis]} elements")
        f.v[out] = np.take_along_axis(x, index, axis)

    c.compute(op, step)
    _record(c, op, "gather")


@emits("tt.histogram")
def emit_histogram(c: Compiler, op: Op) -> None:
    slots = [c.slot(v) for v in op.operands]
    out, kinds = c.slot(op.results[0]), _arrays(op)
    bins = shape_of(op.results[0].type)[0]

    def step(f: Frame) -> None:
        blocks = same_programs(*(whole(f.v[s], *k) for s, k in zip(slots, kinds, strict=True)))
        x = blocks[0].astype(np.int64)
        keep = (x >= 0) & (x < bins)
        if len(blocks) > 1:
            keep = keep & blocks[1]
        rows = np.broadcast_to(np.arange(x.shape[0])[:, None] * bins, x.shape)
        counts = np.bincount((rows + x)[keep], minlength=x.shape[0] * bins)
        f.v[out] = counts.reshape(x.shape[0], bins).astype(np.int32)

    c.compute(op, step)
    kind = op.operands[0].type
    c.record(op, "histogram", int(np.prod(shape_of(kind), dtype=np.int64)), record_dtype(kind))


@emits("llvm.intr.assume", "ttg.barrier", "gpu.barrier", "ttg.local_barrier", "tt.debug_barrier")
@emits("tt.grid_dependency_wait", "tt.grid_dependency_launch_dependents")
def emit_nothing(c: Compiler, op: Op) -> None:
    """Assumptions help compilers; within a program, operations already happen in order, and so do a stream's
    launches."""
