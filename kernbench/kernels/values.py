"""Index values of many programs at once, kept symbolic.

A block of indices such as ``pid*BLOCK + arange(0, BLOCK)`` is a sum with one term per axis, and a bounds mask is a
product of intervals, one per axis. Kept that way, a pointer is a base address with strides, a load is a strided view,
and nothing the size of a block is computed until data needs it.

What a value may be, by what its slot in the executor holds (``P`` programs run together):

===================  ==================================================================================================
Python or numpy scalar  the same for all programs and, in a block, for all elements
``ndarray[P]``          a scalar that differs between programs
:class:`AxisSum`        a block of integers or pointers (pointers in bytes)
:class:`Mask`           a block of booleans
``ndarray[P or 1, ...]``  a block in full; an axis of length 1 stands for all of its elements
===================  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Term = int | Ints
"""One axis of a sum: ``c`` for ``c*arange(n)``, or the values themselves as int64[P or 1, n]. 0 is "not at all"."""
Interval = tuple[Any, Any, int, int]
"""``lo + t*lo_step <= i < hi + t*hi_step``; lo and hi are ints or int64[P], t is the iteration of a symbolic loop."""
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


class Unfusable(Exception):
    """A symbolic loop met something that is not affine in its iteration; it has to run step by step.

    ``ok``: bool[P], the programs for which it would have been, or None for none.
    """

    def __init__(self, ok: NDArray[np.bool_] | None = None) -> None:
        super().__init__()
        self.ok = ok


class AxisSum:
    """``base + sum of one term per axis (+ t*step)``: a block of integers, in every program.

    ``base`` is an int or int64[P]; ``lo`` and ``hi`` bound all values of all programs (and iterations), not always
    tightly; ``step`` is what each iteration of a symbolic loop adds.
    """

    __slots__ = ("base", "hi", "lo", "shape", "step", "terms")

    def __init__(
        self, shape: tuple[int, ...], base: Any, terms: tuple[Term, ...], lo: int, hi: int, step: Any = 0
    ) -> None:
        self.shape, self.base, self.terms, self.lo, self.hi, self.step = shape, base, terms, lo, hi, step

    def axes(self) -> list[int]:
        """Axes along which values differ."""
        return [d for d, t in enumerate(self.terms) if not (type(t) is int and t == 0)]

    def vector(self, axis: int) -> Ints:
        """The term of one axis as int64[P or 1, n]."""
        return vector(self.terms[axis], self.shape[axis])

    def along(self, axis: int) -> Ints:
        """All values of a block that varies along ``axis`` only, as int64[P or 1, n]."""
        base = self.base if type(self.base) is int else self.base[:, None]
        return base + self.vector(axis)

    def tighten(self) -> None:
        """Make ``lo`` and ``hi`` exact, unless a symbolic loop moves the value."""
        if not is_zero(self.step):
            return
        low: Any = self.base
        high: Any = self.base
        for term, n in zip(self.terms, self.shape, strict=True):
            if isinstance(term, int):
                low, high = low + min(0, term * (n - 1)), high + max(0, term * (n - 1))
            else:
                low, high = low + term.min(axis=1), high + term.max(axis=1)
        self.lo, self.hi = int(np.min(low)), int(np.max(high))

    def dense(self, dtype: Any = np.int64) -> NDArray[Any]:
        """The values in full, wrapped to ``dtype``; axes without a term keep length 1."""
        if not is_zero(self.step):
            raise Unfusable
        rank = len(self.shape)
        base = self.base
        out: Any = np.asarray(base).astype(dtype).reshape((-1,) + (1,) * rank)
        for d in self.axes():
            column = [1] * rank
            column[d] = self.shape[d]
            term = self.vector(d).astype(dtype, copy=False)
            out = out + term.reshape((term.shape[0], *column))
        return out


def vector(term: Term, n: int) -> Ints:
    """A term's values, int64[P or 1, n]. Not to be written to."""
    if isinstance(term, int):
        return _kept_ramp(term, n) if n <= 4096 else _ramp(term, n)
    return term


def _ramp(step: int, n: int) -> Ints:
    made = (np.arange(n, dtype=np.int64) * step)[None]
    made.flags.writeable = False
    return made


_kept_ramp = lru_cache(maxsize=256)(_ramp)


def is_zero(step: Any) -> bool:
    return type(step) is int and step == 0


def uniform(x: Any) -> bool:
    """Whether a value is the same for all programs and elements."""
    return isinstance(x, int | float | np.generic)


def arange(start: int, stop: int) -> AxisSum:
    n = stop - start
    return AxisSum((n,), start, (1 if n > 1 else 0,), start, stop - 1)


def splat(x: Any, shape: tuple[int, ...]) -> Any:
    """A scalar in every element of a block: integers and booleans stay symbolic, floats get axes of length 1."""
    if isinstance(x, AxisSum):  # a scalar that a symbolic loop moves
        return AxisSum(shape, x.base, (0,) * len(shape), x.lo, x.hi, x.step)
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype == np.bool_:
        return Mask(shape, (None,) * len(shape), x)
    if x.dtype.kind in "iu":
        x = x.astype(np.int64, copy=False)
        return AxisSum(shape, x, (0,) * len(shape), int(x.min()), int(x.max()))
    return x.reshape((-1,) + (1,) * len(shape))


def expand_dims(x: Any, axis: int) -> Any:
    if isinstance(x, AxisSum):
        shape = (*x.shape[:axis], 1, *x.shape[axis:])
        return AxisSum(shape, x.base, (*x.terms[:axis], 0, *x.terms[axis:]), x.lo, x.hi, x.step)
    if isinstance(x, Mask):
        dense = None if x.dense is None else np.expand_dims(x.dense, axis + 1)
        return Mask((*x.shape[:axis], 1, *x.shape[axis:]), (*x.axes[:axis], None, *x.axes[axis:]), x.programs, dense)
    return np.expand_dims(x, axis + 1) if isinstance(x, np.ndarray) else x


def broadcast(x: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(x, AxisSum):
        return AxisSum(shape, x.base, x.terms, x.lo, x.hi, x.step)
    if isinstance(x, Mask):
        return Mask(shape, x.axes, x.programs, x.dense)
    return x


def transpose(x: Any, order: tuple[int, ...]) -> Any:
    if isinstance(x, AxisSum):
        shape = tuple(x.shape[d] for d in order)
        return AxisSum(shape, x.base, tuple(x.terms[d] for d in order), x.lo, x.hi, x.step)
    if isinstance(x, Mask):
        dense = None if x.dense is None else x.dense.transpose(0, *(d + 1 for d in order))
        return Mask(tuple(x.shape[d] for d in order), tuple(x.axes[d] for d in order), x.programs, dense)
    return x.transpose(0, *(d + 1 for d in order)) if isinstance(x, np.ndarray) else x


def _plus_terms(a: Term, b: Term, n: int) -> Term:
    if type(a) is int:
        if a == 0:
            return b
        if type(b) is int:
            return a + b
    if type(b) is int and b == 0:
        return a
    return vector(a, n) + vector(b, n)


def add(x: Any, y: Any) -> Any:
    """Sum of two blocks of which at least one is an AxisSum and the other that or an int."""
    if not isinstance(x, AxisSum):
        x, y = y, x
    if not isinstance(y, AxisSum):
        y = int(y)
        return AxisSum(x.shape, x.base + y, x.terms, x.lo + y, x.hi + y, x.step)
    terms = tuple(map(_plus_terms, x.terms, y.terms, x.shape))
    return AxisSum(x.shape, x.base + y.base, terms, x.lo + y.lo, x.hi + y.hi, x.step + y.step)


def scale(x: AxisSum, by: int) -> AxisSum:
    """A block times one number."""
    lo, hi = (x.lo * by, x.hi * by) if by >= 0 else (x.hi * by, x.lo * by)
    if by == 0:
        return AxisSum(x.shape, 0, (0,) * len(x.shape), 0, 0)
    return AxisSum(x.shape, x.base * by, tuple(t * by for t in x.terms), lo, hi, x.step * by)


def subtract(x: Any, y: Any) -> Any:
    if isinstance(y, AxisSum):
        return add(x, scale(y, -1))
    return add(x, -int(y))


def multiply(x: Any, y: Any) -> Any:
    """Product where it stays a sum of one term per axis; None where it does not."""
    if not isinstance(x, AxisSum):
        x, y = y, x
    if not isinstance(y, AxisSum):
        return scale(x, int(y))
    if y.axes() and not x.axes():
        x, y = y, x
    if not is_zero(x.step) and not is_zero(y.step):
        raise Unfusable
    corners = (x.lo * y.lo, x.lo * y.hi, x.hi * y.lo, x.hi * y.hi)
    lo, hi = min(corners), max(corners)
    if not y.axes():
        if not is_zero(y.step):
            if x.axes():
                raise Unfusable
            return AxisSum(x.shape, x.base * y.base, x.terms, lo, hi, x.base * y.step)
        factor = y.base if type(y.base) is int else y.base[:, None]
        terms = tuple(
            t * factor if type(factor) is int or type(t) is not int else (vector(t, n) * factor if t else 0)
            for t, n in zip(x.terms, x.shape, strict=True)
        )
        step = 0 if is_zero(x.step) else x.step * y.base
        return AxisSum(x.shape, x.base * y.base, terms, lo, hi, step)
    return along_axis(np.multiply, x, y)


def along_axis(fn: Callable[..., Any], x: Any, y: Any = None) -> Any:
    """``fn`` applied to blocks that vary along at most one and the same axis; None where they vary along more."""
    first = x if isinstance(x, AxisSum) else y
    used = {d for v in (x, y) if isinstance(v, AxisSum) for d in v.axes()}
    if len(used) > 1:
        return None
    for v in (x, y):
        if isinstance(v, AxisSum) and not is_zero(v.step):
            raise Unfusable
    rank = len(first.shape)
    with np.errstate(all="ignore"):
        if not used:
            operands = [v.base if isinstance(v, AxisSum) else v for v in (x, y) if v is not None]
            base = np.asarray(fn(*operands))
            if base.ndim == 0:
                return int(base)
            return AxisSum(first.shape, base, (0,) * rank, int(base.min()), int(base.max()))
        axis = used.pop()
        operands = [v.along(axis) if isinstance(v, AxisSum) else v for v in (x, y) if v is not None]
        values = np.asarray(fn(*operands))
    terms: list[Term] = [0] * rank
    terms[axis] = values
    return AxisSum(first.shape, 0, tuple(terms), int(values.min()), int(values.max()))


class Mask:
    """A block of booleans: the elements where every part holds.

    ``axes`` has for each axis None (no condition), an :data:`Interval`, or bool[P or 1, n]; ``programs`` is bool[P] or
    None; ``dense`` is bool[P or 1, ...] or None, for what no product of axes can say.
    """

    __slots__ = ("axes", "dense", "programs", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[Any, ...],
        programs: NDArray[np.bool_] | None = None,
        dense: NDArray[np.bool_] | None = None,
    ) -> None:
        self.shape, self.axes, self.programs, self.dense = shape, axes, programs, dense

    def full(self) -> NDArray[np.bool_]:
        """bool[P or 1, ...]; axes without a condition keep length 1."""
        rank = len(self.shape)
        out = self.dense
        if self.programs is not None:
            column = self.programs.reshape((-1,) + (1,) * rank)
            out = column if out is None else out & column
        for d, axis in enumerate(self.axes):
            if axis is None:
                continue
            shape = [1] * rank
            shape[d] = self.shape[d]
            bits = axis_bits(axis, self.shape[d])
            bits = bits.reshape((bits.shape[0], *shape))
            out = bits if out is None else out & bits
        return np.ones((1,) * (rank + 1), np.bool_) if out is None else out


def axis_bits(axis: Interval | NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """One axis of a mask as bool[P or 1, n]."""
    if isinstance(axis, np.ndarray):
        return axis
    lo, hi, lo_step, hi_step = axis
    if lo_step or hi_step:
        raise Unfusable
    index = np.arange(n)
    return (index >= np.reshape(lo, (-1, 1))) & (index < np.reshape(hi, (-1, 1)))


def _both(a: Any, b: Any, n: int) -> Any:
    """Conjunction of two axes of masks."""
    if a is None:
        return b
    if b is None:
        return a
    if isinstance(a, tuple) and isinstance(b, tuple):
        moving = (a[2], a[3], b[2], b[3])
        if any(moving):
            if a == b if all(type(v) is int for v in (*a[:2], *b[:2])) else a is b:
                return a
            if b[2:] == (0, 0) and type(b[0]) is int and type(b[1]) is int and b[0] <= 0 and b[1] >= n:
                return a
            raise Unfusable
        return (_larger(a[0], b[0]), _smaller(a[1], b[1]), 0, 0)
    return axis_bits(a, n) & axis_bits(b, n)


def _larger(a: Any, b: Any) -> Any:
    return max(a, b) if type(a) is int and type(b) is int else np.maximum(a, b)


def _smaller(a: Any, b: Any) -> Any:
    return min(a, b) if type(a) is int and type(b) is int else np.minimum(a, b)


def mask_and(x: Any, y: Any) -> Any:
    """Conjunction of two blocks of booleans, of which at least one is a Mask."""
    if not isinstance(x, Mask):
        x, y = y, x
    if isinstance(y, Mask):
        programs = x.programs if y.programs is None else y.programs
        if x.programs is not None and y.programs is not None:
            programs = x.programs & y.programs
        dense = x.dense if y.dense is None else y.dense
        if x.dense is not None and y.dense is not None:
            dense = x.dense & y.dense
        return Mask(x.shape, tuple(map(_both, x.axes, y.axes, x.shape)), programs, dense)
    if isinstance(y, np.ndarray):
        return Mask(x.shape, x.axes, x.programs, y if x.dense is None else x.dense & y)
    return x if y else False


def mask_not(x: Mask) -> Any:
    """The complement, as a mask where one axis (or the programs) alone decides."""
    conditions = [d for d, axis in enumerate(x.axes) if axis is not None]
    if x.dense is None and len(conditions) + (x.programs is not None) == 1:
        if x.programs is not None:
            return Mask(x.shape, x.axes, ~x.programs)
        d = conditions[0]
        axes: list[Any] = [None] * len(x.shape)
        axes[d] = ~axis_bits(x.axes[d], x.shape[d])
        return Mask(x.shape, tuple(axes))
    return Mask(x.shape, (None,) * len(x.shape), None, ~x.full())


_COMPARE: dict[str, Callable[[Any], Any]] = {
    "slt": lambda d: d < 0,
    "sle": lambda d: d <= 0,
    "sgt": lambda d: d > 0,
    "sge": lambda d: d >= 0,
    "eq": lambda d: d == 0,
    "ne": lambda d: d != 0,
}


def compare(predicate: str, x: Any, y: Any) -> Any:
    """A signed comparison of two blocks of integers, at least one an AxisSum: a Mask, or a bool where ranges decide."""
    d = subtract(x, y) if isinstance(x, AxisSum) else add(scale(y, -1), x)
    test = _COMPARE[predicate]
    decided = _decide(predicate, d)
    if decided is None and is_zero(d.step):
        d.tighten()
        decided = _decide(predicate, d)
    if decided is not None:
        return decided
    axes = d.axes()
    if not axes:
        if not is_zero(d.step):
            raise Unfusable
        return Mask(d.shape, (None,) * len(d.shape), np.asarray(test(d.base)))
    if len(axes) > 1:
        if not is_zero(d.step):
            raise Unfusable
        return Mask(d.shape, (None,) * len(d.shape), None, test(d.dense()))
    axis = axes[0]
    term = d.terms[axis]
    parts: list[Any] = [None] * len(d.shape)
    if type(term) is int and predicate != "ne":
        parts[axis] = _interval(predicate, term, d.base, d.step, d.shape[axis])
    else:
        if not is_zero(d.step):
            raise Unfusable
        parts[axis] = test(d.along(axis))
    return Mask(d.shape, tuple(parts))


def _decide(predicate: str, d: AxisSum) -> bool | None:
    """The comparison with zero where the range of ``d`` settles it."""
    lo, hi = d.lo, d.hi
    if predicate == "slt":
        return True if hi < 0 else False if lo >= 0 else None
    if predicate == "sle":
        return True if hi <= 0 else False if lo > 0 else None
    if predicate == "sgt":
        return True if lo > 0 else False if hi <= 0 else None
    if predicate == "sge":
        return True if lo >= 0 else False if hi < 0 else None
    if lo > 0 or hi < 0:
        return predicate == "ne"
    return None


def _interval(predicate: str, c: int, b: Any, step: Any, n: int) -> Interval:
    """Indices ``i`` of ``[0, n)`` with ``c*i + b + t*step`` less than, equal to, ... zero."""
    if type(step) is not int:
        raise Unfusable
    if predicate in ("sgt", "sge"):
        c, b, step = -c, -b, -step
    if predicate in ("sle", "sge"):
        b = b - 1
    if predicate == "eq":
        if step:
            raise Unfusable
        at = -b // c
        hit = at * c + b == 0
        return (np.where(hit, at, n) if type(b) is not int else (at if hit else n), at + 1, 0, 0)
    if step % c:
        raise Unfusable
    if c > 0:
        return (0, -(b // c), 0, -(step // c))
    return (b // -c + 1, n, step // -c, 0)


def take(x: Any, index: NDArray[np.intp]) -> Any:
    """The value in the programs ``index`` only."""
    if isinstance(x, np.ndarray):
        return x if x.shape[0] == 1 and x.ndim > 1 else x[index]
    if isinstance(x, AxisSum):
        terms = tuple(t if isinstance(t, int) else rows(t, index) for t in x.terms)
        base = x.base if type(x.base) is int else x.base[index]
        return AxisSum(x.shape, base, terms, x.lo, x.hi, x.step if type(x.step) is int else x.step[index])
    if isinstance(x, Mask):
        axes = tuple(_take_axis(a, index) for a in x.axes)
        programs = None if x.programs is None else x.programs[index]
        return Mask(x.shape, axes, programs, None if x.dense is None else rows(x.dense, index))
    return x


def rows(x: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
    """Rows of an array whose first axis is programs, or 1 for "all the same"."""
    return x if x.shape[0] == 1 else x[index]


def _take_axis(axis: Any, index: NDArray[np.intp]) -> Any:
    if isinstance(axis, tuple):
        return (*(v if type(v) is int else v[index] for v in axis[:2]), *axis[2:])
    return None if axis is None else rows(axis, index)


def merge(parts: list[tuple[NDArray[np.intp], Any]], count: int, scalar: bool, dtype: Any) -> Any:
    """One value for ``count`` programs from values for disjoint subsets of them that together are all.

    ``scalar`` says what the value's type is, ``dtype`` what carries its elements.
    """
    values = [v for _, v in parts]
    first = values[0]
    if all(v is first for v in values):
        if not isinstance(first, np.ndarray | AxisSum | Mask):
            return first
    elif all(uniform(v) for v in values) and all(v == first for v in values):
        return first
    if scalar:
        out = np.empty(count, dtype)
        for index, v in parts:
            out[index] = v
        return out
    if any(isinstance(v, Mask) for v in values):
        return _merge_masks(parts, count)
    if any(isinstance(v, AxisSum) for v in values) and all(isinstance(v, AxisSum | int) for v in values):
        return _merge_sums(parts, count)
    blocks = [v.dense(dtype) if isinstance(v, AxisSum) else np.asarray(v) for v in values]
    rank = max(b.ndim for b in blocks)
    if rank == 0:
        full = np.empty(count, dtype)
        for index, v in parts:
            full[index] = v
        return full  # the caller gives it the rank of its block
    blocks = [b if b.ndim == rank else b.reshape((1,) * rank) for b in blocks]
    shape = np.broadcast_shapes(*(b.shape[1:] for b in blocks))
    merged = np.empty((count, *shape), dtype)
    for (index, _), block in zip(parts, blocks, strict=True):
        merged[index] = block
    return merged


def _merge_sums(parts: list[tuple[NDArray[np.intp], Any]], count: int) -> AxisSum:
    shape = next(v.shape for _, v in parts if isinstance(v, AxisSum))
    sums = [
        (i, v if isinstance(v, AxisSum) else AxisSum(shape, int(v), (0,) * len(shape), int(v), int(v)))
        for i, v in parts
    ]
    base = np.empty(count, np.int64)
    for index, v in sums:
        base[index] = v.base
    terms: list[Term] = []
    for d, n in enumerate(shape):
        column = [v.terms[d] for _, v in sums]
        if all(type(t) is int and t == column[0] for t in column):
            terms.append(column[0])
            continue
        values = np.empty((count, n), np.int64)
        for (index, _), t in zip(sums, column, strict=True):
            values[index] = vector(t, n)
        terms.append(values)
    return AxisSum(shape, base, tuple(terms), min(v.lo for _, v in sums), max(v.hi for _, v in sums))


def _merge_masks(parts: list[tuple[NDArray[np.intp], Any]], count: int) -> Mask:
    shape = next(v.shape for _, v in parts if isinstance(v, Mask))
    rank = len(shape)
    masks = []
    for index, v in parts:
        if not isinstance(v, Mask):
            dense = v if isinstance(v, np.ndarray) else None
            programs = None if isinstance(v, np.ndarray) else np.full(len(index), bool(v))
            v = Mask(shape, (None,) * rank, programs, dense)
        masks.append((index, v))
    if any(m.dense is not None for _, m in masks):
        full = np.empty((count, *shape), np.bool_)
        for index, m in masks:
            full[index] = m.full()
        return Mask(shape, (None,) * rank, None, full)
    programs = np.ones(count, np.bool_)
    axes: list[Any] = [None] * rank
    for index, m in masks:
        if m.programs is not None:
            programs[index] = m.programs
    for d, n in enumerate(shape):
        if any(m.axes[d] is not None for _, m in masks):
            bits = np.ones((count, n), np.bool_)
            for index, m in masks:
                if m.axes[d] is not None:
                    bits[index] = axis_bits(m.axes[d], n)
            axes[d] = bits
    return Mask(shape, tuple(axes), programs)
