"""What a launch touches, kept until its end: in most launches programs keep apart, and a few intervals show that.

Each access is as many intervals of bytes as its block has rows that lie side by side. Where those of different programs
overlap, or there are too many of them, and no atomics are seen to order these, everything is told again to
:class:`Races`, which looks at each element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.sanitize.handed_on import handed_on
from kernbench.kernels.sanitize.races import Races
from kernbench.kernels.values import vector
from kernbench.kernels.window import Window
from kernbench.memory import Allocation

if TYPE_CHECKING:
    from kernbench.kernels.ops_memory import Access

Ints = NDArray[np.int64]
Intervals = tuple[Ints, Ints, Ints]
"""First byte, one past the last, and program of each."""
MOST_INTERVALS = 1 << 20
"""Of an access; with more, elements are looked at one by one."""
MOST_ELEMENTS = 1 << 13
"""The same where none of them lie side by side: to sort them costs more than to look at each."""
MOST_BYTES = 256 << 20
"""Of what is kept; then it is looked at before the launch goes on."""
_MANY = -1
"""The owner of what several programs touch."""


@dataclass(frozen=True, slots=True)
class Touch:
    """An access by some programs at once."""

    a: Access
    w: Window
    allocation: Allocation
    programs: Ints
    """Of each row of the window; or several that share the only one."""
    loads: bool
    stores: bool

    @property
    def is_atomic(self) -> bool:
        return (self.loads and self.stores) or bool(self.a.op.attrs.get("isVolatile"))

    def rows(self) -> tuple[list[int], list[int]]:
        """For each row of the window, the address of its first element and the number of elements, where these lie
        side by side; a number of 0 where they do not."""
        w = self.w
        if w.trips is not None or not w.is_row:
            return [0], [0]
        return (w.base + w.lo[:, 0] * w.itemsize).tolist(), np.maximum(w.hi[:, 0] - w.lo[:, 0], 0).tolist()


class Touches:
    """Looks for races of a launch whose programs run together.

    Args:
        name: the kernel's.
        grid: programs along x, y, z.
        ordered: atomics may order programs, in the order of their numbers.
    """

    def __init__(self, name: str, grid: tuple[int, int, int], ordered: bool) -> None:
        self.name, self.grid, self.ordered = name, grid, ordered
        self._kept: list[Touch] = []
        self._nbytes = 0
        self._races: Races | None = None
        """Where the accesses go at once, since there are too many to keep."""

    def touch(self, a: Access, w: Window, allocation: Allocation, programs: Ints, loads: bool, stores: bool) -> None:
        """Programs access elements. ``programs``: int64[P], or several that share a window of one.

        Raises:
            KernelFault: a race that was looked for before the end.
        """
        if self._races is not None:
            for now in iterations(w):
                self._races.touch(a, now, allocation, programs, loads, stores)
            return
        self._kept.append(Touch(a, w, allocation, programs, loads, stores))
        self._nbytes += nbytes(w)
        if self._nbytes > MOST_BYTES and not self.ordered:
            self._races = Races(self.name, self.grid, False)
            self._tell(self._races, self._kept)
            self._kept = []

    def end(self) -> None:
        """The launch is over.

        Raises:
            KernelFault: two programs touched the same element, one of them wrote it, and nothing orders the two.
        """
        kept, self._kept = self._kept, []
        of: dict[int, list[Touch]] = {}
        for touch in kept:
            of.setdefault(touch.allocation.base, []).append(touch)
        suspects = {base for base, touches in of.items() if not apart(touches)}
        if not suspects:
            return
        programs = self.grid[0] * self.grid[1] * self.grid[2]
        if self.ordered and handed_on(kept, suspects, spans, programs):
            return
        try:
            self._tell(Races(self.name, self.grid, False), [t for t in kept if t.allocation.base in suspects])
            return
        except KernelFault:
            if not self.ordered:
                raise
        meeting = [t for t in kept if t.is_atomic or t.allocation.base in suspects]
        self._tell_in_order(Races(self.name, self.grid, True), meeting, suspects)

    @staticmethod
    def _tell(races: Races, touches: Iterable[Touch]) -> None:
        for t in touches:
            for now in iterations(t.w):
                races.touch(t.a, now, t.allocation, t.programs, t.loads, t.stores)

    @staticmethod
    def _tell_in_order(races: Races, touches: list[Touch], suspects: set[int]) -> None:
        """As if programs had run one by one: what atomics say is the same."""
        turns: dict[int, list[tuple[Touch, int, int, int]]] = {}
        for touch in touches:
            starts, counts = touch.rows()
            harmless = touch.allocation.base not in suspects
            for i, program in enumerate(touch.programs.tolist()):
                at = i if len(starts) > 1 else 0
                count = -1 if harmless and counts[at] == 1 else counts[at]
                turns.setdefault(program, []).append((touch, i, starts[at], count))
        for program in sorted(turns):
            for t, i, start, count in turns[program]:
                if count < 0:
                    races.meet(t.a, start, program)
                    continue
                if count and races.row(t.a, t.allocation, start, count, program, t.loads, t.stores):
                    continue
                alone = t.w if t.w.programs == 1 else t.w.select(np.array([i]))
                for now in iterations(alone):
                    races.touch(t.a, now, t.allocation, np.array([program]), t.loads, t.stores)
            races.ended(program)


def apart(touches: list[Touch]) -> bool:
    """Whether no two programs touch the same bytes, other than by reading only or by atomics only. False: perhaps."""
    kinds = [("atomic" if t.is_atomic else "write" if t.stores else "read") for t in touches]
    if len(set(kinds)) == 1 and kinds[0] != "write":
        return True
    unions: dict[str, Intervals] = {}
    for kind in ("write", "atomic", "read"):
        found: list[Intervals] = []
        for touch in (t for t, k in zip(touches, kinds, strict=True) if k == kind):
            parts = spans(touch)
            if parts is None:
                return False
            found += parts
        if found:
            unions[kind] = union(*(np.concatenate(column) for column in zip(*found, strict=True)))
    if "write" in unions and (unions["write"][2] == _MANY).any():
        return False
    pairs = (("write", "read"), ("write", "atomic"), ("atomic", "read"))
    return all(x not in unions or y not in unions or _apart(unions[x], unions[y]) for x, y in pairs)


def spans(t: Touch) -> list[Intervals] | None:
    """The intervals of an access, for each iteration; None for too many."""
    found = [intervals(w, t.programs) for w in iterations(t.w)]
    return None if any(part is None for part in found) else [part for part in found if part is not None]


def intervals(w: Window, programs: Ints) -> Intervals | None:
    """What a window touches, or more; None for too many."""
    size, rank = w.itemsize, len(w.dims)
    row = next((d for d in reversed(range(rank)) if isinstance(w.terms[d], int) and w.terms[d] == size), None)
    if row is None and w.dims == (1,):
        row = 0
    others = [d for d in range(rank) if d != row and not (isinstance(w.terms[d], int) and w.terms[d] == 0)]
    most = MOST_ELEMENTS if row is None else MOST_INTERVALS
    if w.programs * int(np.prod([w.dims[d] for d in others])) > most:
        return None
    owner = np.full(1, _MANY if len(programs) > 1 else programs[0]) if w.programs == 1 else programs
    if row is None:
        address, keep = w.lanes()
        return address[keep], address[keep] + size, np.broadcast_to(owner.reshape((-1, *[1] * rank)), keep.shape)[keep]
    low, high = w.base + w.lo[:, row] * size, w.base + w.hi[:, row] * size
    shape = (-1, *[1] * len(others))
    start, keep = low.reshape(shape), (w.lo < w.hi).all(axis=1).reshape(shape)
    for i, d in enumerate(others):
        column = [1] * len(others)
        column[i] = w.dims[d]
        start = start + vector(w.terms[d], w.dims[d]).reshape((-1, *column))
        keep = keep & w.inside(d).reshape((-1, *column))
    keep = np.broadcast_to(keep, start.shape)
    end = start + (high - low).reshape(shape)
    return start[keep], end[keep], np.broadcast_to(owner.reshape(shape), start.shape)[keep]


def union(start: Ints, end: Ints, owner: Ints) -> Intervals:
    """Overlapping intervals joined, in order and apart from each other; where owners differ, it is nobody's."""
    if not len(start):
        return start, end, owner
    order = np.argsort(start)
    start, end, owner = start[order], end[order], owner[order]
    reach = np.maximum.accumulate(end)
    first = np.flatnonzero(np.concatenate([[True], start[1:] >= reach[:-1]]))
    last = np.append(first[1:], len(start)) - 1
    least, most = np.minimum.reduceat(owner, first), np.maximum.reduceat(owner, first)
    return start[first], reach[last], np.where(least == most, least, _MANY)


def _apart(x: Intervals, y: Intervals) -> bool:
    """Whether two unions meet in what one and the same program touches only."""
    if not len(x[0]):
        return True
    low, high = np.searchsorted(x[1], y[0], "right"), np.searchsorted(x[0], y[1], "left")
    met = np.flatnonzero(low < high)
    run = np.cumsum(np.concatenate([[0], np.diff(x[2]) != 0]))
    low, high, owner = low[met], high[met] - 1, y[2][met]
    return bool(((run[low] == run[high]) & (x[2][low] == owner) & (owner != _MANY)).all())


def nbytes(w: Window) -> int:
    """Host memory that a window takes, at most."""
    arrays = [w.base, w.lo, w.hi, w.rest, *w.terms]
    return sum(x.nbytes for x in arrays if isinstance(x, np.ndarray))


def iterations(w: Window) -> Iterable[Window]:
    """The window, or those of each iteration of a symbolic loop."""
    if w.trips is None:
        yield w
        return
    for t in range(int(w.trips.max())):
        now = w.iteration(np.full(w.programs, t, np.int64))
        if (w.trips <= t).any():
            now.hi = np.where((w.trips > t)[:, None], now.hi, 0)
        yield now
