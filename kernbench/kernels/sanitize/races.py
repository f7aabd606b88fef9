"""Two programs on the same bytes, at least one of them writing, with nothing between them that says who comes first.

Every allocation that a launch may write has shadows: who wrote each element last, who read it last, and one reader
besides. An entry is the number of an *event*, one program's part in one memory operation. Numbers grow over launches,
so that old entries need no clearing.

Where atomics may order programs, these run one by one and each carries a vector clock (Mattern 1989; the last-access
form is FastTrack's, Flanagan and Freund, PLDI 2009): a releasing atomic leaves its program's clock at the address, an
acquiring one takes it over, and an event is ordered before a program that knows of it. Elsewhere any two programs are
unordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.numerics import Tiles
from kernbench.kernels.plan import where
from kernbench.kernels.values import vector
from kernbench.kernels.window import Window
from kernbench.memory import Allocation

if TYPE_CHECKING:
    from kernbench.kernels.ops_memory import Access

Events = NDArray[np.int32]
_LIMIT = 1 << 30
"""Events before the numbers start over."""
MANY_LANES = 64
"""An atomic on more lanes keeps one clock for its whole allocation: it may order too much, never too little."""


class Shadow:
    """Events of one allocation, one entry per ``granule`` bytes; 0 for none."""

    def __init__(self, nbytes: int, granule: int) -> None:
        self.nbytes, self.granule = nbytes, granule
        self.maps: dict[str, Events] = {}

    def map(self, name: str) -> NDArray[np.uint8]:
        if name not in self.maps:
            self.maps[name] = np.zeros(-(-self.nbytes // self.granule), np.int32)
        return self.maps[name].view(np.uint8)

    def refine(self, granule: int) -> None:
        """Shrink the granule."""
        if granule < self.granule:
            factor = self.granule // granule
            self.maps = {name: np.repeat(events, factor) for name, events in self.maps.items()}
            self.granule = granule

    def tiles(self, w: Window, origin: int) -> Tiles | Span:
        """Where a window's elements are in the maps; elements of several granules get one axis more."""
        g = self.granule
        if w.programs == 1 and w.itemsize == g and w.is_row:
            return Span(int(w.base[0] - origin) // g, int(w.lo[0, 0]), int(w.hi[0, 0]), w.dims)
        base = (w.base - origin) // g * 4
        offsets = [vector(t, n) // g * 4 for t, n in zip(w.terms, w.dims, strict=True)]
        contiguous = [isinstance(t, int) and t == g for t in w.terms]
        dims, lo, hi, rest = w.dims, w.lo, w.hi, w.rest
        count = w.itemsize // g
        if count > 1:
            dims = (*dims, count)
            offsets.append(np.arange(count, dtype=np.int64)[None] * 4)
            contiguous.append(True)
            lo = np.concatenate([lo, np.zeros((len(lo), 1), np.int64)], axis=1)
            hi = np.concatenate([hi, np.full((len(hi), 1), count, np.int64)], axis=1)
            rest = None if rest is None else rest[..., None]
        return Tiles(dims, base, offsets, contiguous, lo, hi, rest)


class Span:
    """Consecutive entries of one program: what :class:`Tiles` does, without its preparations."""

    def __init__(self, start: int, lo: int, hi: int, dims: tuple[int, ...]) -> None:
        self.entries, self.kept, self.dims = slice(start + lo, start + max(lo, hi)), slice(lo, max(lo, hi)), dims

    def load(self, memory: NDArray[np.uint8], name: str, storage: np.dtype, out: NDArray[Any]) -> None:
        out[0, self.kept] = memory.view(storage)[self.entries]

    def store(self, memory: NDArray[np.uint8], name: str, storage: np.dtype, values: NDArray[Any]) -> None:
        memory.view(storage)[self.entries] = values[0, self.kept] if values.shape[1] > 1 else values[0]


_shadows: WeakKeyDictionary[Allocation, Shadow] = WeakKeyDictionary()
_next = 1


def granule_of(w: Window, origin: int) -> int:
    """The largest power of two, at most an element, that all of a window's addresses are multiples of."""
    g = w.itemsize
    while g > 1 and (
        ((w.base - origin) % g).any() or any(np.any(np.asarray(t) % g) for t, n in zip(w.terms, w.dims, strict=True))
    ):
        g //= 2
    return g


class Races:
    """Looks for races in one launch.

    Args:
        name: the kernel's.
        grid: programs along x, y, z.
        ordered: each :meth:`touch` is of one program, and atomics order programs.
    """

    def __init__(self, name: str, grid: tuple[int, int, int], ordered: bool) -> None:
        global _next
        if _next > _LIMIT:
            _shadows.clear()
            _next = 1
        self.name, self.grid, self.ordered = name, grid, ordered
        self.first = _next
        self._log = np.zeros((3, 64), np.int64)
        """Of each memory operation: its first event, its clock (where atomics order programs), whether it is atomic."""
        self._program: list[NDArray[np.int64]] = []
        self._owners = np.zeros(64, np.int64)
        """The program of each event, where programs run one by one."""
        self._site: list[tuple[Access, str]] = []
        self._released: dict[int, NDArray[np.int32]] = {}
        """Address -> the clock that the next acquire there takes over."""
        self._dense = True
        """No other launch has had events since the first."""
        self._running = -1
        self._known = np.zeros(grid[0] * grid[1] * grid[2] if ordered else 0, np.int32)
        """int32[programs]: how much of each other program the running one knows to be done."""
        self._paused: dict[int, NDArray[np.int32]] = {}
        """The same of programs whose turn it is not."""

    def touch(
        self, a: Access, w: Window, allocation: Allocation, programs: NDArray[np.int64], loads: bool, stores: bool
    ) -> None:
        """Programs access elements, all at once. ``programs``: int64[P], or several that share a window of one.

        Raises:
            KernelFault: a race; the message names both programs and lines, the argument and the element.
        """
        if self.ordered and w.programs == 1 and w.is_row:
            low, count = int(w.lo[0, 0]), int(w.hi[0, 0] - w.lo[0, 0])
            start = int(w.base[0]) + low * w.itemsize
            if count <= 0 or self.row(a, allocation, start, count, int(programs[0]), loads, stores):
                return
        active = w.active()
        if not active.any():
            return
        atomic = (loads and stores) or bool(a.op.attrs.get("isVolatile"))
        if self.ordered:
            self._turn(int(programs[0]))
            if atomic:
                self._acquire(a, self._places(w, allocation))
        shared = w.programs == 1 and len(programs) > 1
        if shared and stores and not atomic:
            raise self._fault(a, w, allocation, self._first(w), programs[0], programs[1], a, True)
        mine = programs[:1] if shared else programs
        shadow = self._shadow(allocation, w)
        tiles = shadow.tiles(w, allocation.base)
        ids = self._events(mine, a, "atomic" if atomic else "store" if stores else "load")
        column = ids.reshape((-1,) + (1,) * len(tiles.dims))
        site = (a, w, allocation, mine, atomic)
        self._against(shadow, "writes", tiles, site)
        if stores:
            if shadow.maps.keys() & {"reads", "others"}:
                self._against(shadow, "reads", tiles, site)
                self._against(shadow, "others", tiles, site)
            tiles.store(shadow.map("writes"), "", np.dtype(np.int32), column)
            if not atomic and len(mine) > 1:
                now = np.broadcast_to(column, (len(mine), *tiles.dims)).copy()
                tiles.load(shadow.map("writes"), "", np.dtype(np.int32), now)
                if (now != column).any():
                    at = np.argwhere(now != column)[0]
                    other = int(self._owner(now[tuple(at)])[0])
                    raise self._fault(a, w, allocation, at, int(mine[at[0]]), other, a, True)
        else:
            self._read(shadow, tiles, column, programs[1:2] if shared else None, site)
        if self.ordered and atomic:
            self._release(a, self._places(w, allocation))

    def row(
        self, a: Access, allocation: Allocation, start: int, count: int, program: int, loads: bool, stores: bool
    ) -> bool:
        """:meth:`touch` of elements side by side by one program, where programs run one by one. False: it takes a
        closer look, and nothing is written down."""
        shadow, g = _shadows.get(allocation), a.itemsize
        first, rest = divmod(start - allocation.base, g)
        atomic = (loads and stores) or bool(a.op.attrs.get("isVolatile"))
        if shadow is None or shadow.granule != g or rest or not self._dense or (atomic and count > 1):
            return False
        self._turn(program)
        if atomic:
            self._acquire(a, (start,))
        entries, maps = slice(first, first + count), shadow.maps
        for name in ("writes", "reads", "others") if stores else ("writes",):
            if name in maps and not self._known_to_be_done(maps[name][entries], program, atomic):
                return False
        event = self._events(np.array([program]), a, "atomic" if atomic else "store" if stores else "load")[0]
        if stores:
            shadow.map("writes").view(np.int32)[entries] = event
        else:
            reads = shadow.map("reads").view(np.int32)[entries]
            if int(reads[0] if count == 1 else reads.max()) >= self.first:
                others = shadow.map("others").view(np.int32)[entries]
                live = reads >= self.first
                live &= self._owners[np.where(live, reads - self.first, 0)] != program
                np.copyto(others, reads, where=live)
            reads[...] = event
        if atomic:
            self._release(a, (start,))
        return True

    def meet(self, a: Access, address: int, program: int) -> None:
        """A program's atomic on an element that nothing but atomics touches: it orders, and races with nobody."""
        self._turn(program)
        self._acquire(a, (address,))
        self._release(a, (address,))

    def _known_to_be_done(self, events: Events, program: int, atomic: bool) -> bool:
        """Whether a program comes after others' events, or need not."""
        latest = int(events[0] if len(events) == 1 else events.max())
        if latest < self.first:
            return True
        found: Any = latest - self.first
        if len(events) == 1 or int(events.min()) == latest:
            owner = int(self._owners[found])
            return bool(
                owner == program or self._log[1, found] <= self._known[owner] or (atomic and self._log[2, found])
            )
        found = events[events >= self.first] - self.first
        owner = self._owners[found]
        bad = (owner != program) & (self._log[1][found] > self._known[owner])
        if atomic:
            bad &= self._log[2][found] == 0
        return not np.any(bad)

    def _read(self, shadow: Shadow, tiles: Tiles | Span, column: Events, second: Any, site: Any) -> None:
        """Remember who reads: the latest, and somebody else where there was one."""
        a, w, allocation, _, atomic = site
        kind = np.dtype(np.int32)
        before = np.zeros((len(column), *tiles.dims), np.int32)
        if "reads" in shadow.maps:
            tiles.load(shadow.map("reads"), "", kind, before)
        tiles.store(shadow.map("reads"), "", kind, column)
        extra, more, other = np.zeros(before.shape, np.bool_), column, np.zeros_like(before)
        known = False
        if len(column) > 1:
            now = np.broadcast_to(column, before.shape).copy()
            tiles.load(shadow.map("reads"), "", kind, now)
            if (now != column).any():  # who of several is the first, where `now` is the last
                tiles.load(shadow.map("others"), "", kind, other)
                known = True
                backwards = shadow.tiles(w.select(np.arange(len(column))[::-1]), allocation.base)
                backwards.store(shadow.map("others"), "", kind, column[::-1])
                more = now.copy()
                tiles.load(shadow.map("others"), "", kind, more)
                extra = more != now
        live = before >= self.first
        if live.any():
            mine = self._owner(column)
            live &= self._owner(np.where(live, before, self.first)) != mine
        if second is not None:
            more, extra = self._events(second, a, "atomic" if atomic else "load").reshape(column.shape), ~live
        if not (live.any() or extra.any()):
            return
        if not known:
            tiles.load(shadow.map("others"), "", kind, other)
        tiles.store(shadow.map("others"), "", kind, np.where(extra, more, np.where(live, before, other)))

    def _against(self, shadow: Shadow, name: str, tiles: Tiles | Span, site: Any) -> None:
        """Compare with what is remembered in a map."""
        if name not in shadow.maps:
            return
        a, w, allocation, mine, atomic = site
        old = np.zeros((len(mine), *tiles.dims), np.int32)
        tiles.load(shadow.map(name), "", np.dtype(np.int32), old)
        if int(old.max()) < self.first:
            return
        hit = old >= self.first
        events = np.where(hit, old, self.first)
        owner = self._owner(events)
        bad = hit & (owner != mine.reshape((-1,) + (1,) * len(tiles.dims)))
        if not bad.any():
            return
        at_op = self._operation(events)
        if atomic:
            bad &= self._log[2][at_op] == 0
        if self.ordered:
            bad &= self._log[1][at_op] > self._known[owner]
        if bad.any():
            at = np.argwhere(bad)[0]
            before, kind = self._site[int(at_op[tuple(at)])]
            raise self._fault(a, w, allocation, at, int(owner[tuple(at)]), int(mine[at[0]]), before, kind != "load")

    @staticmethod
    def _first(w: Window) -> NDArray[np.int64]:
        """The index of the first element that the mask leaves."""
        return np.argwhere(w.lanes()[1])[0]

    def _shadow(self, allocation: Allocation, w: Window) -> Shadow:
        granule = granule_of(w, allocation.base)
        found = _shadows.get(allocation)
        if found is None:
            found = _shadows[allocation] = Shadow(allocation.nbytes, granule)
        found.refine(granule)
        return found

    def _events(self, programs: NDArray[np.int64], a: Access, kind: str) -> Events:
        """Numbers for a new event of each program, int32[P]."""
        global _next
        start, _next = _next, _next + len(programs)
        at = len(self._program)
        self._dense &= start == self.first + at
        if at == self._log.shape[1]:
            self._log = np.concatenate([self._log, np.zeros_like(self._log)], axis=1)
        clock = int(self._known[self._running]) if self.ordered else 0
        self._log[:, at] = start, clock, kind == "atomic"
        self._program.append(programs)
        self._site.append((a, kind))
        if self.ordered:
            if at == len(self._owners):
                self._owners = np.concatenate([self._owners, np.zeros_like(self._owners)])
            self._owners[at] = programs[0]
        return np.arange(start, _next, dtype=np.int32)

    def _operation(self, events: NDArray[Any]) -> NDArray[np.int64]:
        """Which operation each event belongs to. Of one program, each is an event."""
        if self.ordered and self._dense:
            return np.asarray(events - self.first, np.int64)
        found = np.searchsorted(self._log[0, : len(self._program)], events, "right") - 1
        return np.asarray(np.maximum(found, 0), np.int64)

    def _owner(self, events: Any) -> NDArray[np.int64]:
        """The program of each event."""
        events = np.asarray(events).reshape(np.shape(events) or (1,))
        if self.ordered:
            return np.asarray(self._owners[self._operation(events)])
        starts = self._log[0, : len(self._program)]
        low = int(np.searchsorted(starts, int(events.min()), "right")) - 1
        high = int(np.searchsorted(starts, int(events.max()), "right"))
        return np.asarray(np.concatenate(self._program[low:high])[events - starts[low]])

    def _turn(self, program: int) -> None:
        if program != self._running:
            if self._running >= 0:
                self._paused[self._running] = self._known
            self._running = program
            known = self._paused.pop(program, None)
            if known is None:
                known = np.zeros_like(self._known)
                known[program] = 1
            self._known = known

    def ended(self, program: int) -> None:
        """A program is over."""
        self._paused.pop(program, None)
        if self._running == program:
            self._running = -1

    def _places(self, w: Window, allocation: Allocation) -> list[int]:
        address, keep = w.lanes()
        places = address[keep]
        return sorted(set(places.tolist())) if len(places) <= MANY_LANES else [-allocation.base - 1]

    def _acquire(self, a: Access, places: Sequence[int]) -> None:
        if semantics(a) in ("acquire", "acq_rel"):
            for place in places:
                if place in self._released:
                    np.maximum(self._known, self._released[place], out=self._known)

    def _release(self, a: Access, places: Sequence[int]) -> None:
        if semantics(a) not in ("release", "acq_rel") or a.op.name == "tt.load":
            return
        for place in places:
            before = self._released.get(place)
            self._released[place] = self._known.copy() if before is None else np.maximum(before, self._known)
        self._known[self._running] += 1

    def _fault(
        self,
        a: Access,
        w: Window,
        allocation: Allocation,
        at: NDArray[np.int64],
        other: int,
        program: int,
        before: Access,
        wrote: bool,
    ) -> KernelFault:
        from kernbench.kernels.sanitize.watch import coordinates, target

        rank = len(w.dims)
        byte = int(w.lanes()[0][tuple(at[: rank + 1])]) - allocation.base
        does = {"tt.load": "reads", "tt.store": "writes"}.get(a.op.name, "changes")
        did = "wrote" if wrote else "read"
        return KernelFault(
            f"{where(a.op.loc)}: kernel '{self.name}': race on {target(a)}: program "
            f"{coordinates(int(program), self.grid)} {does} element {byte // a.itemsize} of '{allocation.name}' (bytes "
            f"{byte}..{byte + a.itemsize - 1}), which program {coordinates(int(other), self.grid)} {did} at "
            f"{where(before.op.loc)}, and nothing orders the two. Give each program elements of its own, use atomics "
            "for both, or order them by an atomic that one releases and the other acquires."
        )


def semantics(a: Access) -> str:
    """An atomic's memory order."""
    if a.op.name == "tt.load":
        return "acquire"
    words = a.op.attrs.get("words", ())
    return next((w for w in words if w in ("relaxed", "acquire", "release", "acq_rel")), "acq_rel")
