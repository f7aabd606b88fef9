"""Races between programs of all members of a team: what a peer puts into memory against what others read and write
there.

It is :mod:`~kernbench.kernels.sanitize.races` with clocks over the programs of all members. What orders them is what
orders them in simulated time: a wait comes after the signals that made it true, and after nothing else that happens to
have been done by then; after a barrier one knows all that those knew who came; a message brings what its sender knew;
a member's launches follow each other; and members that meet in a collective between launches know of each other's
earlier ones. Atomics in memory order as their semantics say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.plan import Launch, where
from kernbench.kernels.sanitize import Checks
from kernbench.kernels.sanitize.clocks import NOTHING, Clock, Line, joined
from kernbench.kernels.sanitize.races import MANY_LANES, Shadow, Span, granule_of, semantics
from kernbench.kernels.team import SHIFT, Team, real, symmetric
from kernbench.kernels.window import Window
from kernbench.memory import AddressSpace, Allocation

if TYPE_CHECKING:
    from kernbench.kernels.device import Device
    from kernbench.kernels.ops_memory import Access

FLAGS = frozenset({"kb.signal", "kb.wait"})
_INT32 = np.dtype(np.int32)
_LIMIT = 1 << 30
"""Events before the numbers start over."""
_FORGET = 1 << 14
"""Events that everybody knows to be over before they are dropped."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where events come from."""

    member: int
    kernel: str
    """Its name; empty for the host."""
    grid: tuple[int, int, int]
    place: str
    target: str
    """The argument."""
    kind: str
    """``"load"``, ``"store"`` or ``"atomic"``."""


class History:
    """Events in the memory of a team, and what each member's host knows to be over."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.hosts: list[Clock] = [dict.fromkeys(range(members), (0, NOTHING)) for _ in range(members)]
        self.first = self._next = self._base = 1
        """Events before ``first`` are over for everybody; ``_base`` is the first that is kept."""
        self._events = np.zeros((5, 1024), np.int64)
        """Of each: member, launch, program, clock, site."""
        self.sites: list[Site] = []
        self._numbers: dict[Site, int] = {}
        self._shadows: WeakKeyDictionary[Allocation, Shadow] = WeakKeyDictionary()
        self.released: WeakKeyDictionary[Allocation, dict[int, tuple[Clock, Clock]]] = WeakKeyDictionary()
        """Allocation -> address -> what those knew who released there: by atomics, and by signals too."""
        self._launches: deque[tuple[int, int, int]] = deque()
        """(member, number, first event) of those that somebody does not know to be over."""
        self.widest = 1
        """Programs of the largest launch that communicates."""

    def begin(self, member: int, programs: int) -> int:
        """A launch; returns its number among the member's."""
        number = self.hosts[member][member][0]
        self.widest = max(self.widest, programs)
        self._launches.append((member, number, self._next))
        while self._launches:
            other, launch, self.first = self._launches[0]
            if any(host.get(other, (0,))[0] <= launch for host in self.hosts):
                break
            self._launches.popleft()
        if self._next > _LIMIT:
            self._shadows.clear()
            self._launches.clear()
            self.first = self._next = self._base = 1
        elif self.first - self._base > _FORGET:
            self._events = self._events[:, self.first - self._base :].copy()
            self._base = self.first
        return number

    def end(self, member: int, clocks: Iterable[Clock]) -> None:
        """The member's launch is over, and what its programs knew its next one will."""
        number = self.hosts[member][member][0]
        self.hosts[member] = {**joined([self.hosts[member], *clocks]), member: (number + 1, NOTHING)}

    def learn(self, member: int, clocks: Iterable[Clock | None]) -> None:
        """A host goes on after others."""
        self.hosts[member] = joined([self.hosts[member], *clocks])

    def add(self, member: int, launch: int, programs: NDArray[np.int64], clock: int, site: Site) -> NDArray[np.int32]:
        """Numbers for a new event of each program, int32[P]."""
        if site not in self._numbers:
            self._numbers[site] = len(self.sites)
            self.sites.append(site)
        start, self._next = self._next, self._next + len(programs)
        low, high = start - self._base, self._next - self._base
        if high > self._events.shape[1]:
            more = np.zeros((5, max(high, self._events.shape[1])), np.int64)
            self._events = np.concatenate([self._events, more], axis=1)
        self._events[:, low:high] = [[member], [launch], [0], [clock], [self._numbers[site]]]
        self._events[2, low:high] = programs
        return np.arange(start, self._next, dtype=np.int32)

    def of(self, events: NDArray[Any]) -> NDArray[np.int64]:
        """int64[5, ...]: member, launch, program, clock and site of events."""
        return np.asarray(self._events[:, events - self._base])

    def is_atomic(self, sites: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.array([site.kind == "atomic" for site in self.sites])[sites]

    def shadow(self, allocation: Allocation, granule: int) -> Shadow:
        """Who touched an allocation, in entries of at most ``granule`` bytes."""
        found = self._shadows.get(allocation)
        if found is None:
            found = self._shadows[allocation] = Shadow(allocation.nbytes, granule)
        found.refine(granule)
        return found


def history(team: Team) -> History:
    """That of a team, begun where there is none."""
    if team.history is None:
        team.history = History(team.size)
    found: History = team.history
    return found


class TeamRaces:
    """Looks for races of one launch with everybody's.

    Args:
        team, member: who launches.
        name: the kernel's.
        grid: programs along x, y, z.
        turns: its programs communicate, and each :meth:`touch` is of one; else only other members are looked at.
    """

    def __init__(self, team: Team, member: int, name: str, grid: tuple[int, int, int], turns: bool) -> None:
        self.history, self.member, self.name, self.grid, self.turns = history(team), member, name, grid, turns
        self._programs = grid[0] * grid[1] * grid[2] if turns else 0
        self.launch = self.history.begin(member, self._programs)
        self._host = self.history.hosts[member]
        self._lines: dict[int, Line] = {}
        self._over: list[Clock] = []
        self._sites: dict[tuple[Access, str], Site] = {}

    def _line(self, program: int) -> Line:
        if not self.turns:
            program = 0
        if program not in self._lines:
            self._lines[program] = Line(self._host, self.member, program, self._programs)
        return self._lines[program]

    def touch(
        self, a: Access, w: Window, allocation: Allocation, programs: NDArray[np.int64], loads: bool, stores: bool
    ) -> None:
        """Programs access elements, all at once. ``programs``: int64[P], or several that share a window of one.

        Raises:
            KernelFault: a race; the message names both ranks and programs, both lines, the argument and the element.
        """
        if not w.active().any():
            return
        flag = a.op.name in FLAGS
        atomic = flag or (loads and stores) or bool(a.op.attrs.get("isVolatile"))
        line = self._line(int(programs[0]))
        if atomic and not flag and self.turns and semantics(a) in ("acquire", "acq_rel"):
            line.learn(both[1] for both in self._released(w, allocation))
        if w.programs == 1:
            programs = programs[:1]
        kind = "atomic" if atomic else "store" if stores else "load"
        shadow = self.history.shadow(real(allocation), granule_of(w, allocation.base))
        tiles = shadow.tiles(w, allocation.base)
        found = self._note(shadow, tiles, programs, line, self._site(a, kind))
        if found is not None:
            at, before, other = found
            byte = int(w.lanes()[0][at[: len(w.dims) + 1]]) - allocation.base
            does = {"tt.load": "reads", "tt.store": "writes"}.get(a.op.name, "changes")
            owner = (allocation.base >> SHIFT) - 1
            raise KernelFault(
                f"{where(a.op.loc)}: kernel '{self.name}': race on {self._site(a, kind).target}: "
                f"{self._who(self._site(a, kind), int(programs[at[0]]))} {does} element {byte // a.itemsize} of "
                f"{self._place(allocation, owner)} (bytes {byte}..{byte + a.itemsize - 1}), {self._did(before, other)}"
            )
        if atomic and not flag and self.turns and a.op.name != "tt.load" and semantics(a) in ("release", "acq_rel"):
            self._release(w, allocation, line.tell(), True)

    def touch_by_host(self, allocation: Allocation, start: int, end: int, writes: bool, line: str) -> None:
        """The host copies, fills or reads bytes [start, end) of an allocation, at a line of its program.

        Raises:
            KernelFault: a race.
        """
        granule = start & -start | end & -end | 8
        shadow = self.history.shadow(allocation, granule & -granule)
        tiles = Span(start // shadow.granule, 0, (end - start) // shadow.granule, ((end - start) // shadow.granule,))
        site = Site(self.member, "", self.grid, line, "", "store" if writes else "load")
        found = self._note(shadow, tiles, np.zeros(1, np.int64), self._line(0), site)
        if found is not None:
            at, before, other = found
            byte = start + int(at[1]) * shadow.granule
            raise KernelFault(
                f"{line}: race: {self._who(site, 0)} {'writes' if writes else 'reads'} byte {byte} of "
                f"{self._place(allocation, -1)}, {self._did(before, other)}"
            )

    def _note(
        self, shadow: Shadow, tiles: Any, programs: NDArray[np.int64], line: Line, site: Site
    ) -> tuple[tuple[int, ...], Site, int] | None:
        """Remember an access. Returns, of one that it races with, (where in the window, the site, the program)."""
        column = self.history.add(self.member, self.launch, programs, line.count, site)
        column = column.reshape((-1,) + (1,) * len(tiles.dims))
        atomic, reads = site.kind == "atomic", site.kind == "load"
        found = self._against(shadow, "writes", tiles, len(programs), line, atomic)
        if reads:
            self._read(shadow, tiles, column)
        else:
            for name in ("reads", "others"):
                found = found or self._against(shadow, name, tiles, len(programs), line, atomic)
            tiles.store(shadow.map("writes"), "", _INT32, column)
        return found

    def _read(self, shadow: Shadow, tiles: Any, column: NDArray[np.int32]) -> None:
        """Remember who reads: the latest, and of those before the latest other program."""
        before = np.zeros((len(column), *tiles.dims), np.int32)
        tiles.load(shadow.map("reads"), "", _INT32, before)
        tiles.store(shadow.map("reads"), "", _INT32, column)
        latest = int(before.max(initial=0))
        if latest < self.history.first:
            return
        if len(column) == 1 and latest == int(before.min()):
            then, mine = self.history.of(np.array([latest, column.flat[0]]))[:3].T
            if (then == mine).all():
                return
        live = before >= self.history.first
        then, mine = self.history.of(np.where(live, before, column))[:3], self.history.of(column)[:3]
        live &= (then != mine).any(axis=0)
        if live.any():
            other = np.zeros(before.shape, np.int32)
            tiles.load(shadow.map("others"), "", _INT32, other)
            tiles.store(shadow.map("others"), "", _INT32, np.where(live, before, other))

    def _against(
        self, shadow: Shadow, name: str, tiles: Any, programs: int, line: Line, atomic: bool
    ) -> tuple[tuple[int, ...], Site, int] | None:
        """Compare with what is remembered in a map."""
        if name not in shadow.maps:
            return None
        old = np.zeros((programs, *tiles.dims), np.int32)
        tiles.load(shadow.map(name), "", _INT32, old)
        latest = int(old.max(initial=0))
        if latest < self.history.first:
            return None
        if latest == int(old.min()):  # one event did it all: what holds for one element holds for all
            old = old[(slice(1),) * old.ndim]
        live = old >= self.history.first
        member, launch, program, clock, site = self.history.of(np.where(live, old, self.history.first))
        over, counts = line.table(self.history.members, self.history.widest)
        reached = counts[member, np.minimum(program, counts.shape[1] - 1)]
        bad = live & (launch >= over[member]) & ~((launch == over[member]) & (clock <= reached))
        if not self.turns:
            bad &= member != self.member
        if atomic and bad.any():
            bad &= ~self.history.is_atomic(site)
        if not bad.any():
            return None
        at = tuple(np.argwhere(bad)[0].tolist())
        return at, self.history.sites[int(site[at])], int(program[at])

    # What orders programs.

    def told(self, program: int) -> Clock:
        """What one knows who goes on after a program."""
        return self._line(program).tell()

    def learned(self, program: int, clocks: Iterable[Clock | None]) -> None:
        """A program goes on after others."""
        self._line(program).learn(clocks)

    def signalled(self, program: int, w: Window, allocation: Allocation) -> Clock:
        """A program signals: what those will know who wait for that."""
        known = self.told(program)
        self._release(w, allocation, known, False)
        return known

    def found(self, program: int, w: Window, allocation: Allocation) -> None:
        """A program need not wait for a flag, which atomics may have changed."""
        self._line(program).learn(both[0] for both in self._released(w, allocation))

    def ended(self, program: int) -> None:
        """A program is over."""
        line = self._lines.pop(program, None)
        if line is not None and line.heard() is not self._host:
            self._over.append(line.heard())

    def end(self) -> None:
        """The launch is over."""
        self.history.end(self.member, self._over)

    def _places(self, w: Window, allocation: Allocation) -> list[int]:
        address, keep = w.lanes()
        places = address[keep] - allocation.base
        return sorted(set(places.tolist())) if len(places) <= MANY_LANES else [-1]

    def _released(self, w: Window, allocation: Allocation) -> Iterator[tuple[Clock, Clock]]:
        known = self.history.released.get(real(allocation), {})
        for place in self._places(w, allocation):
            if place in known:
                yield known[place]

    def _release(self, w: Window, allocation: Allocation, clock: Clock, by_atomic: bool) -> None:
        known = self.history.released.setdefault(real(allocation), {})
        for place in self._places(w, allocation):
            atomics, anything = known.get(place, ({}, {}))
            known[place] = joined([atomics, clock]) if by_atomic else atomics, joined([anything, clock])

    # What is said.

    def _site(self, a: Access, kind: str) -> Site:
        if (a, kind) not in self._sites:
            target = f"'{a.argument}'" if a.argument else "memory"
            self._sites[a, kind] = Site(self.member, self.name, self.grid, where(a.op.loc), target, kind)
        return self._sites[a, kind]

    def _place(self, allocation: Any, owner: int) -> str:
        """``owner``: whose memory it is; -1 for one's own."""
        return f"'{allocation.name}'" + (f" of rank {owner if owner >= 0 else self.member}" if self._many() else "")

    def _many(self) -> bool:
        return self.history.members > 1

    def _who(self, site: Site, program: int) -> str:
        x, y, _ = site.grid
        what = f"program {(program % x, program // x % y, program // (x * y))}" if site.kernel else "the host"
        return f"rank {site.member}, {what}" if self._many() else what

    def _did(self, before: Site, other: int) -> str:
        did = {"load": "read", "store": "wrote", "atomic": "changed"}[before.kind]
        kernel = f" of kernel '{before.kernel}'" if before.kernel and before.kernel != self.name else ""
        through = f" through {before.target}" if before.kernel else ""
        return (
            f"which {self._who(before, other)}{kernel} {did}{through} at {before.place}, and nothing orders the two. "
            "Let the one signal when it has done so and the other wait for that first, or let both meet in a barrier "
            f"in between{', of the kernel or of ctx.distributed' if self._many() else ''}."
        )


def watched(allocation: Any) -> bool:
    """Whether other members may reach an allocation."""
    return real(allocation) in symmetric


def concerns(checks: Checks | None, device: Device | None, space: AddressSpace, values: Iterable[Any]) -> bool:
    """Whether a launch with these arguments has to be watched for races with other members, though its programs do not
    communicate: it may touch memory that others reach."""
    if checks is None or "race" not in checks.names or device is None or device.team.size == 1 or not symmetric:
        return False
    return any(space.find(x) in symmetric for x in values if type(x) is int and x > 0)


def host_touches(
    team: Team, member: int, allocation: Allocation, start: int, end: int, writes: bool, line: str
) -> None:
    """The host of a member copies, fills or reads bytes [start, end) of symmetric memory of its own.

    Raises:
        KernelFault: another member writes or reads there, and nothing orders the two.
    """
    races = TeamRaces(team, member, "", (1, 1, 1), turns=False)
    races.touch_by_host(allocation, start, end, writes, line)
    races.end()


def of_launch(checks: Checks, launch: Launch, device: Device | None, values: Iterable[Any]) -> TeamRaces | None:
    """What looks for a launch's races with other members, None where it has none."""
    if launch.party is not None and "race" in checks.names:
        return TeamRaces(launch.party.team, launch.party.member, launch.name, launch.grid, turns=True)
    if device is not None and launch.party is None and concerns(checks, device, launch.space, values):
        return TeamRaces(device.team, device.member, launch.name, launch.grid, turns=False)
    return None
