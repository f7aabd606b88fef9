"""Streams, and what is known to have finished before what.

A stream keeps a *clock*: for every other stream, up to which of its commands everything lies before what is queued here
next. The host has such a clock too. An asynchronous collective puts its tensors *in flight*; a stream may write them,
and read what the collective writes, once its clock or the host's has passed the collective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kernbench.runtime_api.errors import InFlightError
from kernbench.runtime_api.where import user_line

if TYPE_CHECKING:
    from kernbench.runtime_api.call import Call
    from kernbench.runtime_api.tensor import Tensor

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
    """A collective that reads, or writes, a range of device memory."""

    tensor: Tensor
    """Also keeps the memory alive until the collective is over."""
    writes: bool
    call: Call
    stream: int
    position: int

    def __post_init__(self) -> None:
        self.start, self.end = self.tensor._range()

    def before(self, clock: Clock) -> bool:
        return clock.get(self.stream, 0) >= self.position


class Flights:
    """What is in flight on one SIP."""

    def __init__(self) -> None:
        self.all: list[Flight] = []

    def __bool__(self) -> bool:
        return bool(self.all)

    def check(self, start: Any, end: Any, writes: bool, clocks: tuple[Clock, ...], by: str = "") -> None:
        """Ranges of bytes are touched: that has to come after the collectives that write there and, if it writes
        itself, after those that read there.

        Args:
            start, end: one range, or arrays of them.
            clocks: what comes before the touch.
            by: who touches, where it is not just the user's line.

        Raises:
            InFlightError: it does not come after one of them.
        """
        for flight in self.all:
            if not (writes or flight.writes) or any(flight.before(clock) for clock in clocks):
                continue
            if np.any((start < flight.end) & (end > flight.start)):
                doing = "writes" if writes else "reads"
                raise InFlightError(
                    f"tensor '{flight.tensor.name}' is in flight: {flight.call.name} at {flight.call.where} "
                    f"{'writes' if flight.writes else 'reads'} it and {by or user_line()} {doing} it. Wait for its "
                    "handle first (handle.wait()), or, where it ran on another stream, make this stream wait for that "
                    "one."
                )

    def land(self, clocks: list[Clock]) -> None:
        """Forget what every one of ``clocks`` has passed."""
        self.all = [flight for flight in self.all if not all(flight.before(clock) for clock in clocks)]
