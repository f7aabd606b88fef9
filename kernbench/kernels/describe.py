"""What the record says of a memory operation: strided runs of bytes, for each program.

Whether a program's access is strided, in pieces, or a list of runs is decided by its own addresses alone, never by the
programs it happened to run with or by how its pointers were represented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from kernbench.kernels.recorder import Columns, Index, Layout
from kernbench.kernels.values import Ints, Term, Unfusable
from kernbench.kernels.window import Bools, Window, separate

Part = tuple[Index | None, Layout, Columns]
"""Some of a window's programs (None: all) and their access."""
MOST_PIECES = 4
"""Indices that wrap around (``% M``) are written down as this many strided pieces at most, and as runs beyond."""


def describe(w: Window) -> list[Part]:
    """The accesses of a window's programs.

    Raises:
        Unfusable: in a symbolic loop, some programs' accesses are neither strided nor a few strided pieces.
    """
    if w.block is not None:
        return _describe_in_full(w, w.block)
    if w.rest is None and all(isinstance(t, int) for t in w.terms):
        return _strided(w)
    if w.trips is not None and w.rest is not None:
        raise Unfusable
    boxed, lo, hi = _boxed(w)
    bent = [_bent(w, d) for d in range(len(w.dims))]
    crooked = np.sum(bent, axis=0)
    w = replace(w, lo=np.where(boxed[:, None], lo, w.lo), hi=np.where(boxed[:, None], hi, w.hi))
    parts: list[Part] = []
    left = np.ones(w.programs, np.bool_)
    classes: list[tuple[Index, Callable[[Window], tuple[list[Part], Bools]]]] = [
        (np.flatnonzero(boxed & (crooked == 0)), _straight)
    ]
    classes += [(np.flatnonzero(boxed & (crooked == 1) & b), _Pieces(d)) for d, b in enumerate(bent)]
    for index, found in classes:
        if len(index):
            window = replace(w.select(index), rest=None)
            made, failed = found(window)
            parts += _within(index, made)
            left[index] = failed
    if left.any():
        if w.trips is not None:
            raise Unfusable(~left)
        index = np.flatnonzero(left)
        parts += _within(index, _runs(w.select(index)))
    return [(None, *parts[0][1:])] if len(parts) == 1 else parts


def _distinct(rows: Ints) -> tuple[Ints, Ints]:
    """The distinct rows of int64[P, n] in lexicographic order, and which of them each row is. ``np.unique`` does the
    same, but compares element by element."""
    if (rows == rows[:1]).all():
        return rows[:1], np.zeros(len(rows), np.int64)
    keys = np.ascontiguousarray(rows.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63)).astype(">u8")
    text, width = keys.tobytes(), keys.shape[1] * 8
    words = [text[i * width : (i + 1) * width] for i in range(len(rows))]
    number = {word: i for i, word in enumerate(sorted(set(words)))}
    which = np.array([number[word] for word in words], np.int64)
    first = np.empty(len(number), np.intp)
    first[which[::-1]] = np.arange(len(rows))[::-1]
    return rows[first], which


def _within(index: Index, parts: list[Part]) -> list[Part]:
    """Parts of a selection of programs as parts of all."""
    return [(index if members is None else index[members], layout, columns) for members, layout, columns in parts]


def _describe_in_full(w: Window, dims: tuple[int, ...]) -> list[Part]:
    """Pointers given one by one: by axes for the programs for which that is possible, else run by run."""
    address, where = w.lanes()
    shape = (w.programs, *dims)
    base, terms, says_all = separate(address.reshape(shape), dims)
    parts: list[Part] = []
    index = np.flatnonzero(says_all)
    if len(index):
        none = np.zeros((w.programs, len(dims)), np.int64)
        by_axes = Window(dims, w.itemsize, base, tuple(terms), none, none + dims, where.reshape(shape))
        parts += _within(index, describe(by_axes.select(index)))
    index = np.flatnonzero(~says_all)
    if len(index):
        parts += _within(index, _runs(w.select(index)))
    return [(None, *parts[0][1:])] if len(parts) == 1 else parts


def _straight(w: Window) -> tuple[list[Part], Bools]:
    """Programs whose offsets grow evenly along each axis, those with the same strides together."""
    strides = np.zeros((w.programs, len(w.dims)), np.int64)
    base = w.base
    for d, term in enumerate(w.terms):
        if isinstance(term, int):
            strides[:, d] = term
            continue
        base = base + term[:, 0]
        if w.dims[d] > 1:
            strides[:, d] = term[:, 1] - term[:, 0]
    w = replace(w, base=base)
    distinct, which = _distinct(strides)
    parts: list[Part] = []
    for i, row in enumerate(distinct):
        members = np.flatnonzero(which == i)
        some = w if len(distinct) == 1 else w.select(members)
        parts += _within(members, _strided(replace(some, terms=tuple(row.tolist()))))
    return parts, np.zeros(w.programs, np.bool_)


def _strided(w: Window) -> list[Part]:
    """Nested strided runs; the window's terms are all strides. Axes of stride 0 name the same bytes again and are left
    out."""
    if w.hi_step is not None:
        return _strided_in_loop(w)
    strides = _numbers(w.terms)
    empty = np.asarray((w.lo >= w.hi).any(axis=1))
    base = w.base
    for d, stride in enumerate(strides):
        start = w.lo[:, d] if stride > 0 else w.hi[:, d] - 1
        if stride < 0 or (stride > 0 and (start > 0).any()):
            base = base + np.where(empty, 0, stride * start)
    axes = _order(strides, w.dims)
    layout = _layout(w, axes, strides, None)
    if not w.masked():
        return [(None, layout, Columns(base))]
    lengths = np.where(empty[:, None], 0, w.hi - w.lo)
    return [(None, layout, Columns(base, _extent(lengths, empty, axes, strides, w.itemsize)))]


def _strided_in_loop(w: Window) -> list[Part]:
    """As :func:`_strided` where the mask moves with the iterations. An axis that it never clips does not move; neither
    does any where it leaves nothing in any iteration."""
    assert w.hi_step is not None and w.trips is not None
    strides = _numbers(w.terms)
    if min(strides) < 0 or (w.lo > 0).any():
        raise Unfusable
    final = w.hi + (w.trips - 1)[:, None] * np.array(w.hi_step)
    nothing = np.asarray((np.maximum(w.hi, final) <= w.lo).any(axis=1))
    never = np.minimum(w.hi, final) >= w.dims
    moves = np.where(never | nothing[:, None], 0, np.array(w.hi_step))
    hi = np.where(nothing[:, None], 0, np.where(never | (moves == 0), np.minimum(w.hi, w.dims), w.hi))
    distinct, which = _distinct(moves)
    parts: list[Part] = []
    for i, row in enumerate(distinct):
        index = np.flatnonzero(which == i)
        some = replace(w.select(index), hi=hi[index], hi_step=None)
        if not row.any():
            parts += _within(index, _strided(some))
            continue
        axes = _order(strides, w.dims)
        layout = _layout(w, axes, strides, tuple(row.tolist()))
        extent = _extent(some.hi, np.zeros(len(index), np.bool_), axes, strides, w.itemsize)
        parts.append((index, layout, Columns(some.base, extent)))
    return [(None, *parts[0][1:])] if len(parts) == 1 else parts


def _numbers(terms: tuple[Term, ...]) -> tuple[int, ...]:
    return tuple(t for t in terms if isinstance(t, int))


def _order(strides: tuple[int, ...], dims: tuple[int, ...]) -> list[int]:
    """Axes that move through memory, largest stride first."""
    moving = [d for d, s in enumerate(strides) if s and dims[d] > 1]
    return sorted(moving, key=lambda d: (-abs(strides[d]), d))


def _layout(w: Window, axes: list[int], strides: tuple[int, ...], moves: tuple[int, ...] | None) -> Layout:
    """Counts and strides in bytes, the innermost of stride 1."""
    counts = [w.dims[d] for d in axes]
    steps = [abs(strides[d]) for d in axes]
    extents = [moves[d] if moves else 0 for d in axes]
    if axes and steps[-1] == w.itemsize:
        counts[-1] *= w.itemsize
        extents[-1] *= w.itemsize
        steps[-1] = 1
    else:
        counts.append(w.itemsize)
        extents.append(0)
        steps.append(1)
    return Layout(tuple(counts), tuple(steps), w.step, tuple(extents) if moves else None)


def _extent(lengths: Ints, empty: Bools, axes: list[int], strides: tuple[int, ...], itemsize: int) -> Ints:
    """The clip of each dimension of :func:`_layout`, int64[P, D]."""
    columns = [lengths[:, d] for d in axes]
    if axes and abs(strides[axes[-1]]) == itemsize:
        columns[-1] = columns[-1] * itemsize
    else:
        columns.append(np.where(empty, 0, itemsize))
    return np.stack(columns, axis=1)


def _bent(w: Window, d: int) -> Bools:
    """bool[P]: programs whose offsets along an axis do not grow evenly."""
    term = w.terms[d]
    if isinstance(term, int) or w.dims[d] < 3:
        return np.zeros(w.programs, np.bool_)
    return np.broadcast_to(np.asarray((np.diff(term, n=2, axis=1) != 0).any(axis=1)), (w.programs,))


class _Pieces:
    """Programs whose offsets are uneven along one axis, cut into even pieces."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def __call__(self, w: Window) -> tuple[list[Part], Bools]:
        """Parts, and bool[P]: programs that would need too many pieces."""
        axis, n = self.axis, w.dims[self.axis]
        term = w.terms[axis]
        assert not isinstance(term, int)
        whole = (w.lo[:, axis] <= 0) & (w.hi[:, axis] >= n)
        # Bytes that several indices name are moved once, unless the mask tells those indices apart.
        offsets, lengths = _once(np.broadcast_to(term, (w.programs, n)), whole)
        cuts = _cuts(offsets, lengths)
        failed = cuts[-1] < lengths
        parts: list[Part] = []
        for start, stop in pairwise(cuts):
            index = np.flatnonzero((start < stop) & ~failed)
            if len(index):
                piece = self._piece(w.select(index), offsets[index], start[index], stop[index], whole[index])
                parts += _within(index, _straight(piece)[0])
        return parts, failed

    def _piece(self, w: Window, offsets: Ints, start: Ints, stop: Ints, whole: Bools) -> Window:
        lo, hi = w.lo.copy(), w.hi.copy()
        length = stop - start
        lo[:, self.axis] = np.where(whole, 0, np.clip(lo[:, self.axis] - start, 0, length))
        hi[:, self.axis] = np.where(whole, length, np.clip(hi[:, self.axis] - start, 0, length))
        program, last = np.arange(w.programs), offsets.shape[1] - 1
        first = offsets[program, start]
        stride: Ints = np.where(length > 1, offsets[program, np.minimum(start + 1, last)] - first, np.int64(w.itemsize))
        even: Ints = first[:, None] + stride[:, None] * np.arange(w.dims[self.axis])
        terms = tuple(even if d == self.axis else t for d, t in enumerate(w.terms))
        return replace(w, terms=terms, lo=lo, hi=hi)


def _once(offsets: Ints, which: Bools) -> tuple[Ints, Ints]:
    """int64[P, n], int64[P]: the programs' offsets and how many of them count: those of ``which`` ascending, each only
    once, those of the others as they are."""
    n = offsets.shape[1]
    rows = np.flatnonzero(which & (np.diff(offsets, axis=1) <= 0).any(axis=1))
    lengths = np.full(len(offsets), n, np.int64)
    if not len(rows):
        return offsets, lengths
    sorted_ = np.sort(offsets[rows], axis=1)
    again = np.zeros(sorted_.shape, np.bool_)
    again[:, 1:] = sorted_[:, 1:] == sorted_[:, :-1]
    offsets = offsets.copy()
    offsets[rows] = np.take_along_axis(sorted_, np.argsort(again, axis=1, kind="stable"), axis=1)
    lengths[rows] = n - np.count_nonzero(again, axis=1)
    return offsets, lengths


def _cuts(offsets: Ints, lengths: Ints) -> list[Ints]:
    """Where each program's runs of constant step start, and its end; no more than MOST_PIECES runs."""
    steps = np.diff(offsets, axis=1)
    program, at = np.arange(len(steps)), np.arange(steps.shape[1])
    cuts = [np.zeros(len(steps), np.int64)]
    for _ in range(MOST_PIECES):
        start = cuts[-1][:, None]
        first = steps[program, np.minimum(cuts[-1], at[-1])][:, None]
        uneven = (steps != first) & (at >= start) & (at + 1 < lengths[:, None])
        cuts.append(np.where(uneven.any(axis=1), uneven.argmax(axis=1) + 1, lengths))
    return cuts


def _boxed(w: Window) -> tuple[Bools, Ints, Ints]:
    """bool[P]: programs whose mask is a box, and that box."""
    if w.rest is None:
        return np.ones(w.programs, np.bool_), w.lo, w.hi
    rank = len(w.dims)
    where = np.broadcast_to(w.kept(), (w.programs, *w.dims))
    box = np.ones((w.programs, *w.dims), np.bool_)
    lo, hi = np.zeros_like(w.lo), np.zeros_like(w.hi)
    for d, n in enumerate(w.dims):
        others = tuple(k + 1 for k in range(rank) if k != d)
        used = np.asarray(where.any(axis=others)) if others else where
        some = np.asarray(used.any(axis=1))
        lo[:, d] = np.where(some, used.argmax(axis=1), 0)
        hi[:, d] = np.where(some, n - used[:, ::-1].argmax(axis=1), 0)
        index = np.arange(n)
        column = [1] * rank
        column[d] = n
        box &= ((index >= lo[:, d, None]) & (index < hi[:, d, None])).reshape((-1, *column))
    return np.asarray((box == where).reshape(w.programs, -1).all(axis=1)), lo, hi


def _runs(w: Window) -> list[Part]:
    """Contiguous runs in the order of elements."""
    address, where = w.lanes()
    keep = where.reshape(w.programs, -1)
    program, _ = np.nonzero(keep)
    addresses = address.reshape(w.programs, -1)[keep]
    starts = np.ones(len(addresses), np.bool_)
    starts[1:] = (np.diff(addresses) != w.itemsize) | (np.diff(program) != 0)
    first = np.flatnonzero(starts)
    lengths = np.diff(np.append(first, len(addresses))) * w.itemsize
    pointer = np.concatenate([[0], np.cumsum(np.bincount(program[first], minlength=w.programs))])
    return [(None, Layout(), Columns(np.zeros(w.programs, np.int64), None, pointer, addresses[first], lengths))]
