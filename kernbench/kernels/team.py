"""The devices whose kernels reach each other's memory, and what travels between their programs.

A pointer into another member's memory is an address with the member's number plus one above bit 48; a pointer into
one's own has nothing there. Only *symmetric* memory may be reached that way: allocations that every member has at the
same address.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from kernbench.kernels import workers
from kernbench.kernels.crew import Crew
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.signals import Write, satisfied_by, signalled
from kernbench.memory import AddressSpace, Allocation
from kernbench.sim_engine.oplog import KernelRecord, ProgramBlock, Token

if TYPE_CHECKING:
    from kernbench.kernels.device import Device

SHIFT = 48
"""Addresses of one memory are below ``2**SHIFT``."""
MESSAGE_SLOTS = 2
"""Messages that one program may have on their way to another: the buffers in the receiver's scratchpad."""

symmetric: WeakSet[Allocation] = WeakSet()
"""Allocations that every member of their team has at the same address."""


class Reached:
    """Another member's allocation as this one addresses it."""

    def __init__(self, allocation: Allocation, above: int) -> None:
        self._of = allocation
        self.base, self.end = allocation.base | above, allocation.end | above

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def real(allocation: Any) -> Allocation:
    """The allocation itself."""
    return allocation._of if isinstance(allocation, Reached) else allocation


@dataclass(eq=False, slots=True)
class Message:
    value: Any
    kind: str
    """The type, as TTIR writes it."""
    token: Token
    known: Any = None
    """What its sender knew to be done, where races are looked for."""


@dataclass(eq=False, slots=True)
class Box:
    """Messages from one program to another, first in, first out."""

    messages: deque[Message] = field(default_factory=deque)
    freed: deque[Token] = field(default_factory=deque)
    """Rows that emptied a slot which nobody has filled since."""
    sent: int = 0
    kernel: str = ""
    """The sender's."""


@dataclass(eq=False, slots=True)
class Gathering:
    """A barrier: who has come, and what those that wait for it wait for."""

    arrived: dict[int, list[Token]] = field(default_factory=dict)
    """Member -> a token of each of its programs that has come."""
    needed: dict[int, int] = field(default_factory=dict)
    """Member -> how many programs it has."""
    leaders: dict[int, tuple[Any, Any, Any]] = field(default_factory=dict)
    """Member -> the recorder of its first program, the kind of row, and the rows that it has to wait for anyway."""
    release: dict[int, Token] = field(default_factory=dict)
    """Member -> the row of its first program that says that all have come."""
    known: list[Any] = field(default_factory=list)
    """What each that has come knew to be done, where races are looked for."""


class Team:
    """Members are numbered from 0. A device on its own is a team of one.

    Args:
        spaces: the memory of each member.
        sips: what the record calls each.
    """

    def __init__(self, spaces: Sequence[AddressSpace], sips: Sequence[int] = (0,)) -> None:
        self._spaces, self._sips = spaces, sips
        self.boxes: dict[tuple[int, int, int, int, int], Box] = {}
        """By turn, and member and program of the sender and of the receiver."""
        self._gatherings: dict[tuple[Any, ...], Gathering] = {}
        self._turns: dict[int, int] = {}
        self._absent: set[tuple[int, int]] = set()
        """(turn, member) of launches without any programs."""
        self._over: set[tuple[int, int]] = set()
        """(turn, member) of launches that have ended."""
        self.history: Any = None
        """What has happened in the members' memory, where races are looked for:
        :class:`kernbench.kernels.sanitize.team_races.History`."""

    @property
    def size(self) -> int:
        return len(self._spaces)

    def space(self, member: int) -> AddressSpace:
        return self._spaces[member]

    def sip(self, member: int) -> int:
        return self._sips[member]

    def next_number(self, member: int) -> int:
        """Of a member's next launch of a communicating kernel, among all of its SIP."""
        return self._turns.get(member, -1) + 1

    def join(self, device: Device, grid: tuple[int, int, int]) -> Party:
        """A launch of a communicating kernel."""
        member, number = device.member, self.next_number(device.member)
        turn = self._take_turn(member)
        return Party(self, member, number, turn, grid[0] * grid[1] * grid[2], device.target.pes, device.stream)

    def pass_turn(self, member: int) -> None:
        """A launch of a communicating kernel with an empty grid: nobody has to wait for its programs.

        Raises:
            KernelFault: another member has sent a message to one of them.
        """
        turn = self._take_turn(member)
        self._absent.add((turn, member))
        self.end(turn, member)

    def _take_turn(self, member: int) -> int:
        turn = self._turns[member] = self._turns.get(member, -1) + 1
        oldest = min(self._turns.get(m, -1) for m in range(self.size))
        self.boxes = {key: box for key, box in self.boxes.items() if key[0] >= oldest}
        self._gatherings = {key: g for key, g in self._gatherings.items() if key[0] >= oldest}
        self._absent = {key for key in self._absent if key[0] >= oldest}
        self._over = {key for key in self._over if key[0] >= oldest}
        return turn

    def absent(self, turn: int) -> int:
        """How many members take this turn without any programs."""
        return sum(1 for t, _ in self._absent if t == turn)

    def end(self, turn: int, member: int) -> None:
        """A member's launch is over.

        Raises:
            KernelFault: of messages to or from its programs, some will never be received.
        """
        self._over.add((turn, member))
        over = {m for t, m in self._over if t == turn}
        lost = [k for k in self.unreceived() if k[0] == turn and member in (k[1], k[3]) and {k[1], k[3]} <= over]
        if lost:
            raise self.lost(lost)

    def unreceived(self) -> list[tuple[int, int, int, int, int]]:
        """Keys of the boxes with messages that nobody has taken."""
        return sorted(key for key, box in self.boxes.items() if box.messages)

    def lost(self, keys: Sequence[tuple[int, int, int, int, int]]) -> KernelFault:
        """The error for messages that will never be taken."""
        _, member, sender, other, receiver = keys[0]
        of = [f" of rank {m}" if self.size > 1 else "" for m in (member, other)]
        more = f", and {len(keys) - 1} more pairs of programs likewise" if len(keys) > 1 else ""
        return KernelFault(
            f"kernel '{self.boxes[keys[0]].kernel}': program {sender}{of[0]} sent program {receiver}{of[1]} a message "
            f"that it never received{more}. Let every send have its recv, in the launch of the receiver's rank with "
            "the same place among its launches that communicate"
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Launches in the block do not get into the record: they take none of the turns by which members' launches
        belong together, and meet nobody."""
        names = ("boxes", "_gatherings", "_turns", "_absent", "_over", "history")
        kept = [getattr(self, name) for name in names]
        self.boxes, self._gatherings, self._turns, self._absent, self._over, self.history = (
            {},
            {},
            {},
            set(),
            set(),
            None,
        )
        try:
            yield
        finally:
            for name, value in zip(names, kept, strict=True):
                setattr(self, name, value)

    def carry_out(self, member: int, crew: Crew) -> None:
        """Run a crew to its end.

        Raises:
            KernelFault: its programs wait for each other and nobody else can help them.
        """
        run_together([crew])
        if not crew.done:
            raise deadlock(crew)

    def gathering(self, key: tuple[Any, ...]) -> Gathering:
        return self._gatherings.setdefault(key, Gathering())


def run_together(crews: Sequence[Crew]) -> None:
    """Run crews in turns until each has ended or can go no further. They come in the order of their members."""
    with workers.single_threaded_blas() if any(crew.multiplies for crew in crews) else nullcontext():
        moved = True
        while moved:
            moved = False
            for crew in crews:
                moved |= not crew.done and crew.advance()


def deadlock(crew: Crew) -> KernelFault:
    """The error for programs that can never go on."""
    lines = "\n".join(f"  {line}" for line in crew.waiting())
    return KernelFault(
        f"kernel '{crew.name}': deadlock: no program can go on.\n{lines}\nSee that every flag is signalled, every lock "
        "freed on all paths, every message sent, that flags start at the value they are thought to, and that all "
        "programs come to each barrier."
    )


@dataclass(eq=False)
class Party:
    """One launch's place in its team.

    Attributes:
        member, sip: who launches; the number in the team and in the record.
        number: of the launch among those of its SIP that communicate.
        turn: of the launch among those of its member in this team: launches with the same turn belong together.
        programs, pes: of the launch and of the device.
        stream: it runs on.
    """

    team: Team
    member: int
    number: int
    turn: int
    programs: int
    pes: int
    stream: int
    barriers: dict[int, dict[str, int]] = field(default_factory=dict)
    """Program -> how many barriers of each scope it has come to."""

    @property
    def sip(self) -> int:
        return self.team.sip(self.member)

    def find(self, address: int) -> Any:
        """The allocation that an address lies in, of whichever member; None where there is none."""
        member = (address >> SHIFT) - 1
        if member < 0:
            return self.team.space(self.member).find(address)
        found = self.team.space(member).find(address & ((1 << SHIFT) - 1))
        return None if found is None else Reached(found, address >> SHIFT << SHIFT)

    def pe(self, program: int) -> int:
        return program % self.pes

    def signal(
        self, allocation: Any, offset: int, value: Any, before: Any, adds: bool, token: Token, known: Any = None
    ) -> None:
        """Remember that a word has been changed by the program whose row is ``token``. ``known``: what it knew then."""
        signalled(real(allocation), offset, Write(value, adds, token, self.stream, known), before)

    def awaited(self, allocation: Any, offset: int, found: Any, compare: str, bound: Any) -> list[Write]:
        """See :func:`satisfied_by`."""
        return satisfied_by(real(allocation), offset, found, compare, bound)

    def box(self, sender: tuple[int, int], receiver: tuple[int, int]) -> Box:
        """Between two programs, each (member, program)."""
        return self.team.boxes.setdefault((self.turn, *sender, *receiver), Box())

    def gathering(self, program: int, scope: str) -> Gathering:
        """The next barrier of a program."""
        met = self.barriers.setdefault(program, {})
        met[scope] = met.get(scope, -1) + 1
        return self.team.gathering((self.turn, scope, self.member if scope == "rank" else -1, met[scope]))


class TeamSpace:
    """The memory a party's kernel addresses: its own, and through remote pointers that of others."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._own = party.team.space(party.member)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def find(self, address: int) -> Any:
        return self._party.find(address)

    def describe(self, address: int, nbytes: int) -> str:
        member = (address >> SHIFT) - 1
        if member < 0:
            return self._own.describe(address, nbytes)
        below = address & ((1 << SHIFT) - 1)
        return f"in the memory of rank {member}, {self._party.team.space(member).describe(below, nbytes)}"


def split_addresses(blocks: Sequence[ProgramBlock], party: Party) -> None:
    """Take the members out of a record's addresses and name the SIPs instead."""
    below = (1 << SHIFT) - 1
    sips = np.array([party.sip, *(party.team.sip(m) for m in range(party.team.size))], np.int64)
    for block in blocks:
        for row in block.rows:
            access = row.access
            if access is None:
                continue
            if access.run_ptr is None or access.run_addr is None:
                members = access.base >> SHIFT
                access.base = access.base & below
            else:
                some = np.diff(access.run_ptr) > 0
                members = np.zeros(len(some), np.int64)
                if some.any():
                    first = access.run_ptr[:-1][some]
                    members[some] = access.run_addr[first] >> SHIFT
                    if (np.repeat(members, np.diff(access.run_ptr)) != access.run_addr >> SHIFT).any():
                        raise KernelFault(
                            "one load or store of a communicating kernel reaches into the memory of several ranks: "
                            "give each rank a load or store of its own"
                        )
                access.run_addr = access.run_addr & below
            if members.any():
                row.peer = sips[members]


def complete(record: KernelRecord, party: Party) -> None:
    """Fill in what the record of a communicating kernel says besides its rows.

    Raises:
        KernelFault: a program sent what no other received.
    """
    party.team.end(party.turn, party.member)
    record.number = party.number
    split_addresses(record.blocks, party)
