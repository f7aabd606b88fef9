"""From a block of pointers and a mask to the bytes they mean.

A :class:`Window` is where one memory operation's elements are, for all programs: a base address per program, strides or
explicit offsets along each axis, the interval of each axis that the mask leaves, and whatever of the mask is no box.
From it follow the bounds check and the strided copy here, and what the record says in
:mod:`kernbench.kernels.describe`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.numerics import Tiles
from kernbench.kernels.recorder import Index
from kernbench.kernels.values import AxisSum, Ints, Mask, Term, Unfusable, axis_bits, vector
from kernbench.memory import AddressSpace, Allocation

Bools = NDArray[np.bool_]
_NEVER = np.iinfo(np.int64)


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
    rest: Bools | None = None
    """bool[P or 1, ...]: what of the mask is not a box."""
    step: int = 0
    """Bytes the base moves in each iteration of a symbolic loop of ``trips`` iterations, and how ``hi`` moves."""
    hi_step: tuple[int, ...] | None = None
    trips: Ints | None = None
    block: tuple[int, ...] | None = None
    """The block's own shape where pointers are given one by one, flattened into one axis."""
    split: bool = False
    """Whether some program's elements lie in several allocations."""
    _masked: bool | None = field(default=None, init=False, repr=False)
    _tiles: tuple[int, Tiles] | None = field(default=None, init=False, repr=False)
    _strides: tuple[int, tuple[int, ...]] | bool | None = field(default=None, init=False, repr=False)

    @property
    def programs(self) -> int:
        return len(self.base)

    @property
    def is_row(self) -> bool:
        """Whether each program's elements lie side by side, those that the mask leaves too."""
        if self.rest is not None or len(self.dims) != 1:
            return False
        return self.dims == (1,) or (isinstance(self.terms[0], int) and self.terms[0] == self.itemsize)

    def active(self) -> Bools:
        """bool[P]: programs with an element left by the mask."""
        if self.rest is not None:
            where = self.kept()
            return np.broadcast_to(where.reshape(len(where), -1).any(axis=1), (self.programs,))
        found = np.asarray((self.lo < self.hi).all(axis=1))
        return found if self.trips is None else found & (self.trips > 0)

    def masked(self) -> bool:
        """Whether the mask leaves anything out."""
        if self._masked is None:
            self._masked = self.rest is not None or bool((self.lo > 0).any() or (self.hi < self.dims).any())
        return self._masked

    def reach(self) -> tuple[Ints, Ints]:
        """First byte and one past the last, int64[P] each, of programs that are :meth:`active` (in any iteration)."""
        if self.rest is not None:
            address, where = self.lanes()
            flat = (len(address), -1)
            low = np.where(where, address, _NEVER.max).reshape(flat).min(axis=1)
            return low, np.where(where, address, _NEVER.min).reshape(flat).max(axis=1) + self.itemsize
        if self.hi_step is not None and self.trips is not None:
            return self._reach_of_loop(np.maximum(self.trips - 1, 0))
        low, high = self.base, self.base + self.itemsize
        for d, term in enumerate(self.terms):
            if not isinstance(term, int):
                first, last = self._extremes(d, term)
            elif term:
                first, last = term * self.lo[:, d], term * (self.hi[:, d] - 1)
                first, last = (first, last) if term > 0 else (last, first)
            else:
                continue
            low, high = low + first, high + last
        if self.trips is not None and self.step:
            ends = self.step * np.maximum(self.trips - 1, 0)
            low, high = low + np.minimum(0, ends), high + np.maximum(0, ends)
        return low, high

    def _reach_of_loop(self, last_trip: Ints) -> tuple[Ints, Ints]:
        """The reach over all iterations where the mask moves: extremes are in the first, the last, or where an axis
        starts to be clipped, because everything is linear in between."""
        assert self.hi_step is not None
        at = [np.zeros_like(last_trip), last_trip]
        for d, moves in enumerate(self.hi_step):
            if moves:
                turn = (self.dims[d] - self.hi[:, d]) // moves
                at += [np.clip(turn + k, 0, last_trip) for k in (0, 1)]
        low, high = np.full(self.programs, _NEVER.max), np.full(self.programs, _NEVER.min)
        for t in at:
            window = self.iteration(t)
            first, last = window.reach()
            inside = window.active()
            low = np.where(inside, np.minimum(low, first), low)
            high = np.where(inside, np.maximum(high, last), high)
        return low, high

    def iteration(self, t: Ints) -> Window:
        """The window in iteration ``t`` (int64[P]) of a symbolic loop."""
        hi = self.hi
        if self.hi_step is not None:
            hi = np.clip(hi + t[:, None] * np.array(self.hi_step), 0, self.dims)
        return Window(self.dims, self.itemsize, self.base + self.step * t, self.terms, self.lo, hi, self.rest)

    def _extremes(self, d: int, term: Ints) -> tuple[Ints, Ints]:
        """Smallest and largest offset along an axis, of the indices the box leaves."""
        if (self.lo[:, d] <= 0).all() and (self.hi[:, d] >= self.dims[d]).all():
            return term.min(axis=1), term.max(axis=1)
        inside = self.inside(d)
        low = np.where(inside, term, _NEVER.max).min(axis=1)
        return low, np.where(inside, term, _NEVER.min).max(axis=1)

    def inside(self, d: int) -> Bools:
        """bool[P, n]: which indices of an axis the box leaves."""
        index = np.arange(self.dims[d])
        return (index >= self.lo[:, d, None]) & (index < self.hi[:, d, None])

    def kept(self) -> Bools:
        """bool[P or 1, *dims]: which elements the mask leaves."""
        if not self.masked():
            return np.ones((1, *self.dims), np.bool_)
        keep = np.ones((1,) * (len(self.dims) + 1), np.bool_) if self.rest is None else self.rest
        for d, n in enumerate(self.dims):
            column = [1] * len(self.dims)
            column[d] = n
            keep = keep & self.inside(d).reshape((-1, *column))
        return keep

    def lanes(self) -> tuple[Ints, Bools]:
        """Every element's address and whether the mask leaves it, both [P, *dims]."""
        return self.tiles(0).addresses()

    def tiles(self, origin: int) -> Tiles:
        """For the copy, relative to an allocation at ``origin``."""
        if self._tiles is None or self._tiles[0] != origin:
            offsets = [vector(t, n) for t, n in zip(self.terms, self.dims, strict=True)]
            contiguous = [isinstance(t, int) and t == self.itemsize for t in self.terms]
            made = Tiles(self.dims, self.base - origin, offsets, contiguous, self.lo, self.hi, self.rest)
            self._tiles = origin, made
        return self._tiles[1]

    def strided(self) -> tuple[int, tuple[int, ...]] | None:
        """Where the mask leaves everything and elements lie in the order of programs and of axes, none twice: the
        address of the first, and the byte strides of all, [P, *dims]. None else."""
        if self._strides is None:
            self._strides = self._even() or False
        return self._strides or None  # type: ignore[return-value]

    def _even(self) -> tuple[int, tuple[int, ...]] | None:
        step = int(self.base[1] - self.base[0]) if self.programs > 1 else 0
        if self.masked() or self.trips is not None or (np.diff(self.base) != step).any():
            return None
        strides, reach = [], self.itemsize
        for term, n in zip(reversed((step, *self.terms)), reversed((self.programs, *self.dims)), strict=True):
            if not isinstance(term, int) or (n > 1 and (term < reach or term % self.itemsize)):
                return None
            strides.append(term if n > 1 else reach)
            reach += strides[-1] * (n - 1)
        return int(self.base[0]), tuple(reversed(strides))

    def select(self, index: Index) -> Window:
        """The window of some programs; programs may repeat."""
        if self.programs == 1:
            index = np.zeros(len(index), np.intp)
        terms = tuple(t if isinstance(t, int) or len(t) == 1 else t[index] for t in self.terms)
        rest = self.rest if self.rest is None or len(self.rest) == 1 else self.rest[index]
        trips = None if self.trips is None else self.trips[index]
        lo, hi = self.lo[index], self.hi[index]
        base, step, block = self.base[index], self.step, self.block
        return Window(self.dims, self.itemsize, base, terms, lo, hi, rest, step, self.hi_step, trips, block, self.split)

    def of(self, members: Index | None, allocation: Allocation) -> Window:
        """The window of the programs (None: all) whose elements lie in an allocation, with those elements only."""
        part = self if members is None or len(members) == self.programs else self.select(members)
        if not self.split:
            return part
        where = part.within(allocation)
        none = np.zeros_like(part.lo)
        return replace(part, lo=none, hi=none + np.array(part.dims), rest=where)

    def within(self, allocation: Allocation) -> Bools:
        """bool[P, *dims]: which elements that the mask leaves lie in an allocation."""
        address, where = self.lanes()
        return where & (address >= allocation.base) & (address + self.itemsize <= allocation.end)

    def shift(self, by: Ints) -> None:
        """Move each program's elements by some bytes, int64[P]."""
        self.base, self._tiles, self._strides = self.base + by, None, None

    def scatter(self, address: Ints) -> None:
        """Give every element an address of its own, int64[P, *dims]."""
        where = self.lanes()[1]
        flat = (self.programs, where[0].size)
        self.block, self.dims = self.block or self.dims, flat[1:]
        self.base, self.terms = np.zeros(self.programs, np.int64), (address.reshape(flat),)
        self.lo, self.rest = np.zeros((self.programs, 1), np.int64), where.reshape(flat)
        self.hi, self._tiles, self._strides = self.lo + flat[1], None, None


def window(pointer: Any, mask: Any, dims: tuple[int, ...], itemsize: int, trips: Ints | None = None) -> Window:
    """The window of a block of pointers under a mask.

    Args:
        pointer: int, int64[P], AxisSum (bytes), or int64[P or 1, ...] in full.
        mask: None, a bool, bool[P], a Mask, or bool[P or 1, ...] in full.
        dims: the block's shape; a scalar is one element, ``(1,)``.
        trips: int64[P] in a symbolic loop.

    Raises:
        Unfusable: in a symbolic loop, the pointer or the mask moves in a way that strides cannot say.
    """
    rank = len(dims)
    lo, hi, rest, hi_step = _box(mask, dims, in_loop=trips is not None)
    if isinstance(pointer, np.ndarray) and pointer.ndim > 1:
        return _in_full(pointer, lo, hi, rest, dims, itemsize)
    terms: tuple[Term, ...] = (0,) * rank
    step: Any = 0
    base = pointer
    if isinstance(pointer, AxisSum):
        base, step = pointer.base, pointer.step
        if len(pointer.terms) == rank:
            terms = pointer.terms
    base = np.asarray(base, np.int64).reshape(-1)
    if not isinstance(step, int):
        if (step != step[0]).any():
            raise Unfusable
        step = int(step[0])
    programs = max(len(base), len(lo), len(hi), *(1 if isinstance(t, int) else len(t) for t in terms))
    if rest is not None:
        programs = max(programs, len(rest))
    if trips is not None:
        programs = len(trips)
    if programs > 1:
        base = np.broadcast_to(base, (programs,))
        lo, hi = np.broadcast_to(lo, (programs, rank)), np.broadcast_to(hi, (programs, rank))
    return Window(dims, itemsize, base, terms, lo, hi, rest, step, hi_step, trips)


def separate(pointer: Ints, dims: tuple[int, ...]) -> tuple[Ints, list[Term], Bools]:
    """Pointers given one by one, int64[P, ...], as a base and offsets along each axis, and for which programs
    (bool[P]) that says it all."""
    rank = len(dims)
    first = pointer[(slice(None),) + (slice(0, 1),) * rank]
    terms: list[Term] = []
    total = first
    for d in range(rank):
        if pointer.shape[d + 1] == 1:
            terms.append(0)
            continue
        offset = pointer[tuple(slice(None) if k in (0, d + 1) else slice(0, 1) for k in range(rank + 1))] - first
        total = total + offset
        terms.append(np.ascontiguousarray(offset.reshape(len(pointer), dims[d])))
    says_all = np.asarray((total == pointer).reshape(len(pointer), -1).all(axis=1))
    return first.reshape(-1), terms, says_all


def _in_full(pointer: Ints, lo: Ints, hi: Ints, rest: Bools | None, dims: tuple[int, ...], itemsize: int) -> Window:
    """The window of pointers given one by one: by axes if that is possible for all programs, else flattened."""
    rank = len(dims)
    base, terms, says_all = separate(pointer, dims)
    programs = max(len(pointer), len(lo), len(hi), 1 if rest is None else len(rest))
    if says_all.all():
        lo, hi = np.broadcast_to(lo, (programs, rank)), np.broadcast_to(hi, (programs, rank))
        return Window(dims, itemsize, np.broadcast_to(base, (programs,)), tuple(terms), lo, hi, rest)
    keep: Any = True if rest is None else rest
    for d, n in enumerate(dims):
        column = [1] * rank
        column[d] = n
        index = np.arange(n)
        inside = (index >= lo[:, d, None]) & (index < hi[:, d, None])
        keep = keep & inside.reshape((-1, *column))
    lanes = int(np.prod(dims))
    flat = np.broadcast_to(pointer, (len(pointer), *dims)).reshape(len(pointer), lanes)
    keep = np.broadcast_to(keep, (len(keep), *dims)).reshape(len(keep), lanes)
    none, all_ = np.zeros((programs, 1), np.int64), np.full((programs, 1), lanes, np.int64)
    return Window((lanes,), itemsize, np.zeros(programs, np.int64), (flat,), none, all_, keep, block=dims)


def _box(mask: Any, dims: tuple[int, ...], in_loop: bool) -> tuple[Ints, Ints, Bools | None, tuple[int, ...] | None]:
    """A mask as a box and the rest: ``lo``, ``hi`` (int64[P or 1, rank]), ``rest``, and how ``hi`` moves. In a symbolic
    loop the bits of an axis stay bits: there, what is no box by itself makes the loop run step by step."""
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
    runs = None if in_loop or rest is not None else _runs_of_bits(mask.axes)
    for d, axis in enumerate(mask.axes):
        low: Any = 0
        high: Any = dims[d]
        if isinstance(axis, tuple):
            low, high, lo_step, moves[d] = axis
            if lo_step:
                raise Unfusable
        elif runs is not None and d in runs:
            low, high = runs[d]
        elif axis is not None:
            column = [1] * rank
            column[d] = dims[d]
            bits = axis_bits(axis, dims[d]).reshape((-1, *column))
            rest = bits if rest is None else rest & bits
        lows.append(low)
        highs.append(high)
    lo, hi = _columns(lows), _columns(highs)
    if not any(moves):
        lo, hi = np.clip(lo, 0, dims), np.clip(hi, 0, dims)
    if mask.programs is not None:
        hi = np.where(mask.programs[:, None], hi, 0)
    if runs and rest is None:  # as describe finds the box of bits: where it is empty, it is so along every axis
        some = np.asarray((lo < hi).all(axis=1))[:, None]
        lo, hi = np.where(some, lo, 0), np.where(some, hi, 0)
    return lo, hi, rest, tuple(moves) if any(moves) else None


def _runs_of_bits(axes: tuple[Any, ...]) -> dict[int, tuple[Ints, Ints]] | None:
    """Of the axes of a mask that are given as bits: from where to where, int64[P or 1], they are set. None if those of
    some program are not all side by side."""
    runs = {}
    for d, bits in enumerate(axes):
        if isinstance(bits, np.ndarray):
            low, count = bits.argmax(axis=1), np.count_nonzero(bits, axis=1)
            last = bits.shape[1] - bits[:, ::-1].argmax(axis=1)
            if ((count > 0) & (last - low != count)).any():
                return None
            runs[d] = low, low + count
    return runs


def _columns(values: list[Any]) -> Ints:
    """Scalars and int64[P] side by side, int64[P or 1, rank]."""
    programs = max([1, *(len(v) for v in values if isinstance(v, np.ndarray))])
    out = np.empty((programs, len(values)), np.int64)
    for d, v in enumerate(values):
        out[:, d] = v
    return out


Owners = list[tuple[Index | None, Allocation]]
"""Allocations and the programs whose elements lie in them (None: all)."""


def owners(space: AddressSpace, w: Window) -> Owners:
    """The allocation each program's elements lie in; programs without elements are left out. Where a program's elements
    lie in several, it is given with each of them, and the window is ``split``.

    Addresses that stand for memory of this space (:attr:`AddressSpace.alias`) are replaced in the window.

    Raises:
        LookupError: with the first program that has elements in no allocation as its argument.
    """
    active = w.active()
    index = np.flatnonzero(active)
    if not len(index):
        return []
    low, high = w.reach()
    everybody = len(index) == len(active)
    if not everybody:
        low, high = low[index], high[index]
    found = space.find(int(low[0]))
    if found is not None and int(low.min()) >= found.base and int(high.max()) <= found.end:
        return [(None if everybody else index, found)]
    groups: dict[int, tuple[Allocation, list[int]]] = {}
    moves: dict[int, int] = {}
    for p, first, last in zip(index.tolist(), low.tolist(), high.tolist(), strict=True):
        owner = space.find(first)
        if owner is None and (meant := space.alias(first)) is not None:
            moves[p] = meant - first
            first, last, owner = meant, last + moves[p], space.find(meant)
        if owner is None or last > owner.end:
            return _owners_by_element(space, w, p)
        groups.setdefault(owner.base, (owner, []))[1].append(p)
    if moves:
        by = np.zeros(w.programs, np.int64)
        by[list(moves)] = list(moves.values())
        w.shift(by)
    return [(np.array(members), owner) for owner, members in groups.values()]


def _owners_by_element(space: AddressSpace, w: Window, missed: int) -> Owners:
    if w.trips is not None:
        raise Unfusable
    address, where = w.lanes()
    address, left, moved = address.copy(), where.copy(), False
    found: Owners = []
    while left.any():
        at = np.unravel_index(int(left.argmax()), left.shape)
        here = int(address[at])
        owner = space.find(here)
        if owner is None:
            meant = space.alias(here)
            owner = None if meant is None else space.find(meant)
            if meant is None or owner is None:
                raise LookupError(missed if left[missed].any() else int(at[0]))
            there = left & (address >= here - (meant - owner.base)) & (address < here + owner.end - meant)
            address[there] += meant - here
            moved = True
        inside = left & (address >= owner.base) & (address + w.itemsize <= owner.end)
        if not inside[at]:
            raise LookupError(int(at[0]))
        members = np.flatnonzero(inside.reshape(len(inside), -1).any(axis=1))
        found.append((None if len(members) == w.programs else members, owner))
        left &= ~inside
    if moved:
        w.scatter(address)
    w.split = True
    return found
