"""From a block of pointers and a mask to the bytes they mean.

A :class:`Window` is where one memory operation's elements are, for all programs: a base address per program, strides or
explicit offsets along each axis, the interval of each axis that the mask leaves, and whatever of the mask is no box.
From it follow the bounds check, the strided copy, and what the record says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.numerics import Tiles
from kernbench.kernels.recorder import Columns, Index, Layout
from kernbench.kernels.values import AxisSum, Ints, Mask, Term, Unfusable, axis_bits, is_zero, vector
from kernbench.memory import AddressSpace, Allocation

Part = tuple[Index | None, Layout, Columns]
"""Some of the programs (None: all) and what their access looks like in the record."""
MOST_SEGMENTS = 4
"""Wrapped indices (``% M``) are recorded as this many strided pieces at most, and as single runs beyond."""


@dataclass(slots=True)
class Window:
    """The elements of a memory operation in ``P`` programs (``P`` is 1 when all programs mean the same ones)."""

    dims: tuple[int, ...]
    itemsize: int
    base: Ints
    """int64[P], byte addresses."""
    terms: tuple[Term, ...]
    """Per axis: a byte stride, or byte offsets int64[P or 1, n]."""
    lo: Ints
    """int64[P, rank]; the mask leaves ``lo <= i < hi`` along each axis."""
    hi: Ints
    rest: NDArray[np.bool_] | None = None
    """bool[P or 1, ...]: what of the mask is not a box."""
    step: int = 0
    """Bytes the base moves in each iteration of a symbolic loop of ``trips`` iterations, and how ``hi`` moves."""
    hi_step: tuple[int, ...] | None = None
    trips: Ints | None = None

    @property
    def programs(self) -> int:
        return len(self.base)

    def active(self) -> NDArray[np.bool_]:
        """bool[P]: programs with an element left by the box."""
        return (self.lo < self.hi).all(axis=1)

    def reach(self) -> tuple[Ints, Ints]:
        """First byte and one past the last, int64[P] each, of programs that are :meth:`active` (in any iteration)."""
        if self.rest is not None:
            return self._reach_exactly()
        low, high = self.base, self.base + self.itemsize
        hi = self.hi
        for d, term in enumerate(self.terms):
            n = self.dims[d]
            if type(term) is not int:
                low_d, high_d = self._extremes(d, term)
                low, high = low + low_d, high + high_d
            elif term > 0 or (term < 0 and self.hi_step is None):
                first, last = term * self.lo[:, d], term * (np.minimum(hi[:, d], n) - 1)
                low, high = (low + first, high + last) if term > 0 else (low + last, high + first)
            elif term < 0:
                low = low + term * (n - 1)
        if self.trips is None:
            return low, high
        last_trip = np.maximum(self.trips - 1, 0)
        if self.hi_step is None:
            ends = self.step * last_trip
            return low + np.minimum(0, ends), high + np.maximum(0, ends)
        return self._reach_of_loop(last_trip)

    def _reach_of_loop(self, last_trip: Ints) -> tuple[Ints, Ints]:
        """The reach over all iterations where the mask moves: extremes are in the first, the last, or where an axis
        starts to be clipped, because everything is linear in between."""
        assert self.hi_step is not None
        at = [np.zeros_like(last_trip), last_trip]
        for d, moves in enumerate(self.hi_step):
            if moves:
                turn = (self.dims[d] - self.hi[:, d]) // moves
                at += [np.clip(turn + k, 0, last_trip) for k in (0, 1)]
        low: Any = None
        high: Any = None
        for t in at:
            window = Window(self.dims, self.itemsize, self.base + self.step * t, self.terms, self.lo, self.hi_at(t))
            a, b = window.reach()
            inside = window.active()
            a, b = np.where(inside, a, np.iinfo(np.int64).max), np.where(inside, b, np.iinfo(np.int64).min)
            low, high = (a, b) if low is None else (np.minimum(low, a), np.maximum(high, b))
        return low, high

    def hi_at(self, t: Ints) -> Ints:
        """``hi`` in iteration ``t`` (int64[P]) of a symbolic loop."""
        if self.hi_step is None:
            return self.hi
        return np.clip(self.hi + t[:, None] * np.array(self.hi_step), 0, self.dims)

    def _extremes(self, d: int, term: Ints) -> tuple[Ints, Ints]:
        n = self.dims[d]
        if (self.lo[:, d] <= 0).all() and (self.hi[:, d] >= n).all():
            return term.min(axis=1), term.max(axis=1)
        index = np.arange(n)
        inside = (index >= self.lo[:, d, None]) & (index < self.hi[:, d, None])
        return (
            np.where(inside, term, np.iinfo(np.int64).max).min(axis=1),
            np.where(inside, term, np.iinfo(np.int64).min).max(axis=1),
        )

    def _reach_exactly(self) -> tuple[Ints, Ints]:
        address, where = self.lanes()
        flat = (len(address), -1)
        big = np.iinfo(np.int64)
        low = np.where(where, address, big.max).reshape(flat).min(axis=1)
        high = np.where(where, address, big.min).reshape(flat).max(axis=1) + self.itemsize
        return low, high

    def lanes(self) -> tuple[Ints, NDArray[np.bool_]]:
        """Every element's address and whether the mask leaves it, both [P, *dims]."""
        tiles = self.tiles(0)
        if self.rest is not None and self.rest.shape[0] > self.programs:
            raise ValueError("a mask has more programs than its pointers")
        _, address, where = tiles._addresses(self.itemsize)
        return address, where

    def nothing(self) -> NDArray[np.bool_]:
        """bool[P]: programs of which the mask leaves no element at all."""
        empty = ~self.active()
        if self.rest is not None:
            _, where = self.lanes()
            empty = ~where.reshape(len(where), -1).any(axis=1)
        return empty

    def tiles(self, origin: int) -> Tiles:
        """For the copy, relative to an allocation at ``origin``."""
        offsets = [vector(t, n) for t, n in zip(self.terms, self.dims, strict=True)]
        contiguous = [type(t) is int and t == self.itemsize for t in self.terms]
        lo, hi = np.maximum(self.lo, 0), np.minimum(self.hi, self.dims)
        return Tiles(self.dims, self.base - origin, offsets, contiguous, lo, hi, self.rest)

    def select(self, index: Index) -> Window:
        """The window of some programs."""
        terms = tuple(t if type(t) is int or t.shape[0] == 1 else t[index] for t in self.terms)
        rest = self.rest if self.rest is None or self.rest.shape[0] == 1 else self.rest[index]
        trips = None if self.trips is None else self.trips[index]
        return Window(
            self.dims,
            self.itemsize,
            self.base[index],
            terms,
            self.lo[index],
            self.hi[index],
            rest,
            self.step,
            self.hi_step,
            trips,
        )

    # -- the record -----------------------------------------------------------------------------------------------
    def parts(self) -> list[Part]:
        """What the record says: strided runs where a program's elements are a box of constant strides, pieces of that
        where indices wrap around, and single runs where neither holds. Decided for each program by itself."""
        if self.rest is None and all(type(t) is int for t in self.terms):
            return self._strided(None, tuple(int(t) for t in self.terms))  # type: ignore[arg-type]
        if self.hi_step is not None or self.trips is not None:
            return self._parts_of_loop()
        boxed = self._boxed()
        strides, affine = self._strides()
        regular = affine & boxed
        parts = self._by_stride(np.flatnonzero(regular), strides)
        for index in (np.flatnonzero(boxed & ~affine), np.flatnonzero(~boxed)):
            if len(index):
                window = self.select(index) if self.programs > 1 else self
                found = window._segments() if boxed[index[0]] else window._runs()
                parts += [(index if m is None else index[m], layout, columns) for m, layout, columns in found]
        if len(parts) == 1:
            return [(None, *parts[0][1:])]
        return parts

    def _by_stride(self, index: Index, strides: Ints) -> list[Part]:
        """Strided parts for programs whose strides may differ."""
        if not len(index):
            return []
        distinct, which = np.unique(strides[index], axis=0, return_inverse=True)
        which = np.ravel(which)
        parts: list[Part] = []
        for i, row in enumerate(distinct):
            members = index[which == i]
            window = self.select(members) if self.programs > 1 else self
            window = Window(
                window.dims,
                window.itemsize,
                window.base + sum(t if type(t) is int else t[:, 0] for t in map(_first, window.terms)),
                tuple(int(s) for s in row),
                window.lo,
                window.hi,
                None,
                window.step,
                window.hi_step,
                window.trips,
            )
            parts += [(members if m is None else members[m], *rest) for m, *rest in window._strided(None, window.terms)]  # type: ignore[misc,arg-type]
        return parts

    def _strided(self, members: Index | None, strides: tuple[int, ...]) -> list[Part]:
        """Nested strided runs. Axes of stride 0 name the same bytes again and are left out."""
        lo, hi = np.maximum(self.lo, 0), np.minimum(self.hi, self.dims)
        if self.hi_step is not None:
            return self._strided_loop(members, strides)
        empty = (lo >= hi).any(axis=1)
        clipped = bool((lo > 0).any() or (hi < self.dims).any())
        base = self.base
        axes = _order(strides, self.dims)
        for d, stride in enumerate(strides):
            if stride < 0:
                base = (
                    base + np.where(empty, 0, stride * (hi[:, d] - 1))
                    if clipped
                    else base + stride * (self.dims[d] - 1)
                )
            elif stride > 0 and clipped:
                base = base + np.where(empty, 0, stride * lo[:, d])
        layout = _layout(axes, strides, self.dims, self.itemsize, self.step, None)
        if not clipped:
            return [(members, layout, Columns(base))]
        extent = _extent(np.where(empty[:, None], 0, hi - lo), empty, axes, strides, self.itemsize)
        return [(members, layout, Columns(base, extent))]

    def _strided_loop(self, members: Index | None, strides: tuple[int, ...]) -> list[Part]:
        """As :meth:`_strided` where the mask moves with the iterations. Programs it never clips are a part of their own,
        so that what is written for one program does not depend on the others."""
        assert self.hi_step is not None and self.trips is not None
        last = np.maximum(self.trips - 1, 0)
        ends = np.minimum(self.hi, self.hi + last[:, None] * np.array(self.hi_step))
        free = (ends >= self.dims).all(axis=1) & (self.lo <= 0).all(axis=1)
        parts: list[Part] = []
        for never, index in ((True, np.flatnonzero(free)), (False, np.flatnonzero(~free))):
            if not len(index):
                continue
            window = self if len(index) == self.programs else self.select(index)
            subset = None if len(index) == self.programs else index
            if never:
                window = Window(
                    self.dims,
                    self.itemsize,
                    window.base,
                    window.terms,
                    np.zeros_like(window.lo),
                    np.broadcast_to(np.array(self.dims), window.hi.shape),
                    None,
                    self.step,
                    None,
                    window.trips,
                )
                parts += window._strided(subset, strides)
                continue
            if any(s < 0 for s in strides) or (window.lo > 0).any():
                raise Unfusable
            axes = _order(strides, self.dims)
            moves = list(self.hi_step)
            layout = _layout(axes, strides, self.dims, self.itemsize, self.step, moves)
            hi = np.where(np.array(moves) == 0, np.minimum(window.hi, self.dims), window.hi)
            none = np.zeros(len(hi), np.bool_)
            extent = _extent(hi, none, axes, strides, self.itemsize)
            parts.append((subset, layout, Columns(window.base, extent)))
        return parts

    def _parts_of_loop(self) -> list[Part]:
        """In a symbolic loop: strided programs, and wrapped ones in pieces."""
        strides, affine = self._strides()
        if self.rest is not None or not affine.all():
            boxed = np.full(self.programs, self.rest is None)
            if not (affine & boxed).all():
                pieces = self._pieces(np.flatnonzero(~affine & boxed)) if boxed.all() else None
                if pieces is None:
                    raise Unfusable(affine & boxed)
                return self._by_stride(np.flatnonzero(affine), strides) + pieces
        return self._by_stride(np.arange(self.programs), strides)

    def _segments(self) -> list[Part]:
        """Programs whose indices wrap around along one axis, in strided pieces; single runs if there are too many."""
        index = np.arange(self.programs)
        few, pieces = self._split(index)
        parts = pieces
        if not few.all():
            rest = np.flatnonzero(~few)
            window = self.select(rest)
            parts = parts + [(rest if m is None else rest[m], *x) for m, *x in window._runs()]  # type: ignore[misc]
        return parts

    def _pieces(self, index: Index) -> list[Part] | None:
        window = self.select(index)
        few, parts = window._split(np.arange(len(index)))
        if not few.all():
            ok = np.ones(self.programs, np.bool_)
            ok[index[~few]] = False
            raise Unfusable(ok)
        return [(index if m is None else index[m], layout, columns) for m, layout, columns in parts]

    def _split(self, index: Index) -> tuple[NDArray[np.bool_], list[Part]]:
        """Cut programs where the step of their one irregular axis changes. Also says for which that was possible."""
        few = np.zeros(len(index), np.bool_)
        parts: list[Part] = []
        strides, _ = self._strides()
        bends = [self._bends(d) for d in range(len(self.dims))]
        bent = np.array([b.any(axis=1) for b in bends])
        for p in index:
            crooked = np.flatnonzero(bent[:, p])
            if len(crooked) != 1:
                continue
            axis = int(crooked[0])
            offsets = vector(self.terms[axis], self.dims[axis])
            offsets = offsets[p if offsets.shape[0] > 1 else 0]
            cuts = _cuts(offsets)
            if len(cuts) - 1 > MOST_SEGMENTS:
                continue
            few[p] = True
            one = self.select(np.array([p]))
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
                lo, hi = one.lo.copy(), one.hi.copy()
                lo[:, axis] = np.clip(lo[:, axis] - start, 0, stop - start)
                hi[:, axis] = np.clip(hi[:, axis] - start, 0, stop - start)
                terms = tuple(
                    int(offsets[1] - offsets[0]) if d == axis else int(strides[p, d]) for d in range(len(self.dims))
                )
                base = one.base + offsets[start]
                for d, t in enumerate(one.terms):
                    if d != axis and type(t) is not int:
                        base = base + t[:, 0]
                piece = Window(one.dims, one.itemsize, base, terms, lo, hi, None, one.step, one.hi_step, one.trips)
                parts += [(np.array([p]), layout, columns) for _, layout, columns in piece._strided(None, terms)]
        return few, parts

    def _bends(self, d: int) -> NDArray[np.bool_]:
        """bool[P, n-2 or 1]: where the step along an axis changes."""
        term = self.terms[d]
        if type(term) is int or self.dims[d] < 3:
            return np.zeros((self.programs, 1), np.bool_)
        return np.broadcast_to(np.diff(term, n=2, axis=1) != 0, (self.programs, self.dims[d] - 2))

    def _strides(self) -> tuple[Ints, NDArray[np.bool_]]:
        """Each program's strides int64[P, rank], and whether they are constant."""
        strides = np.zeros((self.programs, len(self.dims)), np.int64)
        affine = np.ones(self.programs, np.bool_)
        for d, term in enumerate(self.terms):
            if type(term) is int:
                strides[:, d] = term
            elif self.dims[d] > 1:
                strides[:, d] = term[:, 1] - term[:, 0]
                affine &= ~self._bends(d).any(axis=1)
        return strides, affine

    def _boxed(self) -> NDArray[np.bool_]:
        """bool[P]: programs whose mask is a box, whose ``lo`` and ``hi`` then say all of it."""
        if self.rest is None:
            return np.ones(self.programs, np.bool_)
        rank = len(self.dims)
        _, where = self.lanes()
        box = np.ones((self.programs, *self.dims), np.bool_)
        lo, hi = self.lo.copy(), self.hi.copy()
        for d, n in enumerate(self.dims):
            others = tuple(k + 1 for k in range(rank) if k != d)
            used = where.any(axis=others) if others else where
            first = np.where(used.any(axis=1), used.argmax(axis=1), 0)
            last = np.where(used.any(axis=1), n - used[:, ::-1].argmax(axis=1), 0)
            lo[:, d], hi[:, d] = first, last
            index = np.arange(n)
            column = [1] * rank
            column[d] = n
            box &= ((index >= first[:, None]) & (index < last[:, None])).reshape((-1, *column))
        boxed = (box == where).reshape(self.programs, -1).all(axis=1)
        self.lo = np.where(boxed[:, None], lo, self.lo)
        self.hi = np.where(boxed[:, None], hi, self.hi)
        return boxed

    def _runs(self) -> list[Part]:
        """Contiguous runs in the order of elements."""
        address, where = self.lanes()
        flat = address.reshape(self.programs, -1)
        keep = where.reshape(self.programs, -1)
        program, _ = np.nonzero(keep)
        addresses = flat[keep]
        starts = np.ones(len(addresses), np.bool_)
        starts[1:] = (np.diff(addresses) != self.itemsize) | (np.diff(program) != 0)
        first = np.flatnonzero(starts)
        lengths = np.diff(np.append(first, len(addresses))) * self.itemsize
        pointer = np.concatenate([[0], np.cumsum(np.bincount(program[first], minlength=self.programs))])
        columns = Columns(np.zeros(self.programs, np.int64), None, pointer, addresses[first], lengths)
        return [(None, Layout(), columns)]


def _first(term: Term) -> Any:
    return 0 if type(term) is int else term


def _cuts(offsets: Ints) -> list[int]:
    """Where runs of constant step start, and the end."""
    step = offsets[1] - offsets[0]
    breaks = np.flatnonzero(np.diff(offsets) != step) + 1
    return [0, *breaks.tolist(), len(offsets)]


def _order(strides: tuple[int, ...], dims: tuple[int, ...]) -> list[int]:
    """Axes that move through memory, largest stride first."""
    moving = [d for d, s in enumerate(strides) if s and dims[d] > 1]
    return sorted(moving, key=lambda d: (-abs(strides[d]), d))


def _layout(
    axes: list[int],
    strides: tuple[int, ...],
    dims: tuple[int, ...],
    itemsize: int,
    step: int,
    moves: list[int] | None,
) -> Layout:
    """Counts and strides in bytes, the innermost of stride 1."""
    counts = [dims[d] for d in axes]
    steps = [abs(strides[d]) for d in axes]
    extents = None if moves is None else [moves[d] for d in axes]
    if axes and steps[-1] == itemsize:
        counts[-1] *= itemsize
        steps[-1] = 1
        if extents is not None:
            extents[-1] *= itemsize
    else:
        counts.append(itemsize)
        steps.append(1)
        if extents is not None:
            extents.append(0)
    return Layout(tuple(counts), tuple(steps), step, None if extents is None else tuple(extents))


def _extent(lengths: Ints, empty: NDArray[np.bool_], axes: list[int], strides: tuple[int, ...], itemsize: int) -> Ints:
    """The clip of each dimension of :func:`_layout`, int64[P, D]."""
    columns = [lengths[:, d] for d in axes]
    if axes and abs(strides[axes[-1]]) == itemsize:
        columns[-1] = columns[-1] * itemsize
    else:
        columns.append(np.where(empty, 0, itemsize))
    return np.stack(columns, axis=1)


# -- making windows -----------------------------------------------------------------------------------------------------
def window(pointer: Any, mask: Any, dims: tuple[int, ...], itemsize: int, count: int, trips: Any = None) -> Window:
    """The window of a block of pointers under a mask.

    Args:
        pointer: int, int64[P], AxisSum (bytes), or int64[P or 1, ...] in full.
        mask: None, a bool, bool[P], a Mask, or bool[P or 1, ...] in full.
        dims: the block's shape; a scalar is one element, ``(1,)``.
        count: P.
        trips: int64[P] in a symbolic loop.
    """
    rank = len(dims)
    terms: tuple[Term, ...] = (0,) * rank
    step: Any = 0
    if isinstance(pointer, AxisSum):
        base, step = pointer.base, pointer.step
        if len(pointer.terms) == rank:
            terms = pointer.terms
    elif isinstance(pointer, np.ndarray) and pointer.ndim > 1:
        return _window_in_full(pointer, mask, dims, itemsize)
    else:
        base = pointer
    base = np.asarray(base, np.int64).reshape(-1)
    if type(step) is not int:
        if (step != step[0]).any():
            raise Unfusable
        step = int(step[0])
    lo, hi, rest, hi_step = _box(mask, dims)
    programs = max(
        len(base),
        lo.shape[0],
        hi.shape[0],
        1 if rest is None else rest.shape[0],
        *(1 if type(t) is int else t.shape[0] for t in terms),
    )
    if trips is not None:
        programs = count
    if programs > 1:
        base = np.broadcast_to(base, (programs,))
        lo = np.broadcast_to(lo, (programs, rank))
        hi = np.broadcast_to(hi, (programs, rank))
    return Window(dims, itemsize, base, terms, lo, hi, rest, step, hi_step, trips)


def _window_in_full(pointer: Ints, mask: Any, dims: tuple[int, ...], itemsize: int) -> Window:
    """Pointers given one by one. Where each axis moves them by amounts of its own they are strides and offsets again,
    which is decided for all programs by the same rule, so that it shows in no record how they were represented."""
    rank = len(dims)
    lo, hi, rest, _ = _box(mask, dims)
    first = pointer[(slice(None),) + (slice(0, 1),) * rank]
    terms: list[Term] = []
    total: Any = first
    for d, n in enumerate(dims):
        if pointer.shape[d + 1] == 1:
            terms.append(0)
            continue
        along = pointer[tuple(slice(None) if k in (0, d + 1) else slice(0, 1) for k in range(rank + 1))]
        offset = along - first
        total = total + offset
        terms.append(np.ascontiguousarray(offset.reshape(len(pointer), n)))
    if not np.array_equal(total, pointer):
        lanes = int(np.prod(dims))
        full = np.broadcast_to(pointer, (len(pointer), *dims)).reshape(len(pointer), lanes)
        keep = np.ones(1, np.bool_).reshape((1,) * (rank + 1)) if rest is None else rest
        for d, n in enumerate(dims):
            index = np.arange(n)
            inside = (index >= lo[:, d, None]) & (index < hi[:, d, None])
            column = [1] * rank
            column[d] = n
            keep = keep & inside.reshape((-1, *column))
        keep = np.broadcast_to(keep, (len(keep), *dims)).reshape(len(keep), lanes)
        programs = max(len(full), len(keep))
        return Window(
            (lanes,),
            itemsize,
            np.zeros(programs, np.int64),
            (full,),
            np.zeros((programs, 1), np.int64),
            np.full((programs, 1), lanes, np.int64),
            keep,
        )
    base = first.reshape(-1)
    programs = max(len(base), len(lo), len(hi), 1 if rest is None else len(rest))
    return Window(
        dims,
        itemsize,
        np.broadcast_to(base, (programs,)),
        tuple(terms),
        np.broadcast_to(lo, (programs, rank)),
        np.broadcast_to(hi, (programs, rank)),
        rest,
    )


def _box(mask: Any, dims: tuple[int, ...]) -> tuple[Ints, Ints, NDArray[np.bool_] | None, tuple[int, ...] | None]:
    """A mask as a box and the rest: ``lo``, ``hi`` (int64[P or 1, rank]), ``rest``, and how ``hi`` moves."""
    rank = len(dims)
    lo, hi = np.zeros((1, rank), np.int64), np.array([dims], np.int64)
    if mask is None:
        return lo, hi, None, None
    if isinstance(mask, np.ndarray):
        if mask.ndim == 1:  # a scalar's mask
            return lo, np.where(mask[:, None], hi, 0), None, None
        return lo, hi, mask, None
    if not isinstance(mask, Mask):
        return lo, hi if mask else np.zeros_like(hi), None, None
    rest = mask.dense
    lows: list[Any] = []
    highs: list[Any] = []
    moves = [0] * rank
    for d, axis in enumerate(mask.axes):
        if isinstance(axis, tuple):
            low, high, lo_step, hi_step = axis
            if lo_step:
                raise Unfusable
            lows.append(low)
            highs.append(high)
            moves[d] = hi_step
        else:
            lows.append(0)
            highs.append(dims[d])
            if axis is not None:
                column = [1] * rank
                column[d] = dims[d]
                bits = axis_bits(axis, dims[d]).reshape((-1, *column))
                rest = bits if rest is None else rest & bits
    lo = _columns(lows)
    hi = _columns(highs)
    if not any(moves):
        lo, hi = np.clip(lo, 0, dims), np.clip(hi, 0, dims)
    if mask.programs is not None:
        hi = np.where(mask.programs[:, None], hi, 0)
    return lo, hi, rest, tuple(moves) if any(moves) else None


def _columns(values: list[Any]) -> Ints:
    """Scalars and int64[P] side by side, int64[P or 1, rank]."""
    programs = max([1, *(len(v) for v in values if isinstance(v, np.ndarray))])
    out = np.empty((programs, len(values)), np.int64)
    for d, v in enumerate(values):
        out[:, d] = v
    return out


def owners(
    space: AddressSpace, reach: tuple[Ints, Ints], active: NDArray[np.bool_]
) -> list[tuple[Index | None, Allocation]]:
    """The allocation each program's elements lie in, programs of one allocation together (None: all programs).

    Raises:
        LookupError: with the first program whose elements are not inside one allocation as its argument.
    """
    low, high = reach
    index = np.flatnonzero(active)
    if not len(index):
        return []
    everybody = len(index) == len(active)
    if not everybody:
        low, high = low[index], high[index]
    found = space.find(int(low[0]))
    if found is not None and int(low.min()) >= found.base and int(high.max()) <= found.end:
        return [(None if everybody else index, found)]
    groups: dict[int, tuple[Allocation, list[int]]] = {}
    for p, a, b in zip(index.tolist(), low.tolist(), high.tolist(), strict=True):
        owner = space.find(a)
        if owner is None or b > owner.end:
            raise LookupError(p)
        groups.setdefault(owner.base, (owner, []))[1].append(p)
    return [(np.array(members), owner) for owner, members in groups.values()]


def is_symbolic(pointer: Any) -> bool:
    """Whether a pointer moves with the iterations of a symbolic loop."""
    return isinstance(pointer, AxisSum) and not is_zero(pointer.step)
