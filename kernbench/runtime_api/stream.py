"""Streams, and what is known to have finished before what.

A stream keeps a *clock*: for every other stream, up to which of its commands everything lies before what is queued here
next. The host has such a clock too. An asynchronous collective puts its tensors *in flight*; a stream may touch them
once its clock, or the host's, has passed the collective.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernbench.runtime_api.errors import InFlightError
from kernbench.runtime_api.where import Where, user_line

if TYPE_CHECKING:
    from kernbench.memory import Allocation

Clock = dict[int, int]
"""Stream number -> how many of its commands are known to come before."""


@dataclass(eq=False)
class StreamState:
    """One in-order queue of a SIP."""

    number: int
    internal: bool = False
    """It carries collectives and no user ever sees it."""
    position: int = 0
    """Commands queued so far."""

    def __post_init__(self) -> None:
        self.clock: Clock = {}

    def snapshot(self) -> Clock:
        """All that comes before the next command."""
        return self.clock | {self.number: self.position}


def merge(clock: Clock, other: Clock) -> None:
    """Everything that ``other`` knows, ``clock`` knows now."""
    for stream, position in other.items():
        clock[stream] = max(clock.get(stream, 0), position)


@dataclass(eq=False)
class Flight:
    """A collective that works on an allocation."""

    what: str
    where: Where
    stream: int
    position: int
    operation: Any
    """The call it belongs to."""
    keep: Any
    """Keeps the memory alive until the collective is over."""

    def before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.position


class Flights:
    """Which allocations of one SIP are in flight."""

    def __init__(self) -> None:
        self._of: dict[int, list[Flight]] = {}

    def add(self, allocation: Allocation, flight: Flight) -> None:
        self._of.setdefault(id(allocation), []).append(flight)

    def check(self, allocations: Iterable[Allocation], *clocks: Clock) -> None:
        """Raise InFlightError if one of ``allocations`` is touched without being ordered after its collective."""
        if not self._of:
            return
        for allocation in allocations:
            for flight in self._of.get(id(allocation), ()):
                if not any(flight.before(clock) for clock in clocks):
                    raise InFlightError(
                        f"tensor '{allocation.name}' is in flight: {flight.what} at {flight.where} works on it and "
                        f"{user_line()} touches it. Wait for its handle first (handle.wait()), or, where it ran on "
                        "another stream, make this stream wait for that one."
                    )

    def land(self, clocks: list[Clock]) -> None:
        """Forget what every one of ``clocks`` has passed."""
        for key, flights in list(self._of.items()):
            left = [flight for flight in flights if not all(flight.before(clock) for clock in clocks)]
            if left:
                self._of[key] = left
            else:
                del self._of[key]

    def all(self) -> list[Flight]:
        return [flight for flights in self._of.values() for flight in flights]
