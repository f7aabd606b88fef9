"""What one flow of control knows of others: vector clocks (Mattern 1989) over the programs of all members of a team.

A member's launches come one after the other, so what is known of a member is how many of its launches are over and, of
the one after those, how far each program is known to have come.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int32]
Clock = dict[int, tuple[int, Counts]]
"""Member -> (launches that are over, int32[programs of the next one], or nothing of it). Never changed in place."""
NOTHING: Counts = np.zeros(0, np.int32)


def joined(clocks: Iterable[Clock | None]) -> Clock:
    """All that any of them knows."""
    made: Clock = {}
    for clock in clocks:
        for member, (launches, counts) in (clock or {}).items():
            known, before = made.get(member, (-1, NOTHING))
            if launches > known or (launches == known and not len(before)):
                made[member] = launches, counts
            elif launches == known and len(counts) and counts is not before:
                made[member] = launches, np.maximum(before, counts)
    return made


class Line:
    """A program, or a host: what it knows and how far it has come itself."""

    def __init__(self, clock: Clock, member: int, program: int, programs: int) -> None:
        self._clock, self._member, self._program, self._programs = clock, member, program, programs
        self.count = 1
        """Its events have this number; the next after others have been told of them."""
        self._table: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None

    def learn(self, clocks: Iterable[Clock | None]) -> None:
        """It goes on after others."""
        found = [clock for clock in clocks if clock]
        if found:
            self._clock, self._table = joined([self._clock, *found]), None

    def tell(self) -> Clock:
        """What others that go on after it will know."""
        launches, counts = self._clock[self._member]
        mine = np.zeros(self._programs, np.int32) if not len(counts) else counts.copy()
        mine[self._program] = self.count
        self.count += 1
        return {**self._clock, self._member: (launches, mine)}

    def heard(self) -> Clock:
        """What it knows of others."""
        return self._clock

    def table(self, members: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """(int64[members], launches that are over; int32[members, width], how far programs of the next one are)."""
        if self._table is None or self._table[1].shape[1] < width:
            launches, counts = np.zeros(members, np.int64), np.zeros((members, width), np.int32)
            for member, (over, known) in self._clock.items():
                launches[member] = over
                counts[member, : len(known)] = known
            self._table = launches, counts
        if self._programs:
            self._table[1][self._member, self._program] = self.count
        return self._table
