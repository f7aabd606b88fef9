"""When everything ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from kernbench.sim_engine.bound import BoundCommand, BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.queues import HOST, Queues
from kernbench.sim_engine.state import Replay

Int64s = NDArray[np.int64]


class Segment(NamedTuple):
    """One replay: ops ``first`` up to ``first + bound.count`` of the run."""

    first: int
    bound: BoundLog
    replay: Replay


@dataclass(slots=True)
class TimedCommand:
    """A command and its times in picoseconds."""

    bound: BoundCommand
    first: int
    """Number of its first op in the run."""
    issued_ps: int
    """Its host op began."""
    reached_ps: int
    """Host and stream were both ready for it: its first op on the stream began."""
    ready_ps: int
    """The stream had nothing else to do, and the host had begun to issue it: from here on it holds the stream."""
    finish_ps: int


class Addition(NamedTuple):
    """A replay, and what a timeline is to remember of it."""

    segment: Segment
    commands: list[TimedCommand]
    stream_free: dict[tuple[int, int], int]
    """(rank, stream) -> when its work ends."""
    events: dict[tuple[int, int], int]
    """(rank, event) -> when it happened."""


class Timeline:
    """Every op of a run with its start and finish. Grows as more of the record is replayed.

    Attributes:
        machine: what it ran on.
        ranges: names of the phases; ``BoundCommand.range_id`` counts into it.
        segments: the replays, in order.
        commands: in the order of the segments, within them rank by rank.
        held_back: commands that wait for a collective some rank has not recorded yet, and so have no time.
    """

    def __init__(self, machine: Machine, ranges: Sequence[str]) -> None:
        self.machine = machine
        self.ranges = ranges
        self.segments: list[Segment] = []
        self.commands: list[TimedCommand] = []
        self.held_back = 0
        self._stream_free: dict[tuple[int, int], int] = {}
        self._events: dict[tuple[int, int], int] = {}

    def add(self, bound: BoundLog, replay: Replay) -> None:
        """Append a replay."""
        self.append(self.timed(bound, replay))

    def timed(self, bound: BoundLog, replay: Replay) -> Addition:
        """What :meth:`append` is to add for a replay; nothing changes yet."""
        first = self.count
        new = Addition(Segment(first, bound, replay), [], dict(self._stream_free), {})
        for command in bound.commands:
            ops = slice(command.first, command.first + command.count)
            start, finish = replay.start[ops], replay.finish[ops]
            if not command.count:
                continue
            end = int(finish.max())
            key = (command.rank, command.stream)
            free = new.stream_free.get(key, 0) if command.stream != HOST else 0
            issued = int(start[0])
            reached = int(start[min(1, len(start) - 1)])
            new.commands.append(TimedCommand(command, first + command.first, issued, reached, max(issued, free), end))
            new.stream_free[key] = end
            if command.kind == "event":
                new.events[command.rank, command.event] = end
        return new

    def append(self, new: Addition) -> None:
        """Append what :meth:`timed` made."""
        self.segments.append(new.segment)
        self.__dict__.pop("ops", None)
        self.commands += new.commands
        self._stream_free = new.stream_free
        self._events.update(new.events)

    @property
    def count(self) -> int:
        """Number of ops."""
        return self.segments[-1].first + self.segments[-1].bound.count if self.segments else 0

    @property
    def events(self) -> int:
        """How many events the replays took."""
        return sum(segment.replay.events for segment in self.segments)

    @property
    def clamped(self) -> int:
        """Ops put behind work that an earlier replay had already served: their times are late, never early."""
        return sum(int(segment.replay.moved.sum()) for segment in self.segments)

    @property
    def makespan_ps(self) -> int:
        """When the last op finished."""
        return max((int(segment.replay.finish.max()) for segment in self.segments), default=0)

    def event_ps(self, rank: int, event: int) -> int:
        """When a rank's event happened; where it was recorded more than once, the last time.

        Raises:
            KeyError: it was not recorded, or what it waits for has not been replayed.
        """
        if (rank, event) not in self._events:
            raise KeyError(f"event {event} of rank {rank} has no time: it was not recorded, or waits for another rank")
        return self._events[rank, event]

    @cached_property
    def ops(self) -> OpTable:
        """All ops, column by column."""
        return OpTable.of(self)

    def digest(self) -> str:
        """xxh3-128 over start and finish of every op, by rank, command and place in the command. Two runs have the same
        one if and only if their timelines are the same; when times were asked for does not matter."""
        whole = xxhash.xxh3_128()
        times = [np.stack([s.replay.start, s.replay.finish], 1) for s in self.segments]
        ends = np.array([s.first for s in self.segments], np.int64)
        for command in sorted(self.commands, key=lambda c: (c.bound.rank, c.bound.index)):
            segment = int(np.searchsorted(ends, command.first, "right")) - 1
            at = command.first - int(ends[segment])
            head = (command.bound.rank, command.bound.index, command.bound.count)
            whole.update(np.array(head, "<i8").tobytes())
            whole.update(times[segment][at : at + command.bound.count].astype("<i8").tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class OpTable:
    """N ops: times in picoseconds, and what they are."""

    start: Int64s
    finish: Int64s
    kind: NDArray[np.uint8]
    """An ``Activity``."""
    rank: NDArray[np.int32]
    stream: NDArray[np.int32]
    role: NDArray[np.int8]
    """A ``Role``: the kind of queue it stood in."""
    unit: NDArray[np.int32]
    """PE, or peer of a send."""
    command: NDArray[np.int32]
    """Into ``Timeline.commands``."""
    line: NDArray[np.int32]
    """Into the command's ``lines``; -1 for none."""
    bytes: Int64s
    flops: Int64s
    duration: Int64s
    """Time on the engine, for what runs on one."""

    @classmethod
    def of(cls, timeline: Timeline) -> OpTable:
        def gather(column: str) -> NDArray:
            return np.concatenate([getattr(s.bound, column) for s in timeline.segments])

        if not timeline.segments:
            nothing = np.empty(0, np.int64)
            return cls(*[nothing] * 12)  # type: ignore[arg-type]
        names = [Queues.of_keys(s.bound.queue_key) for s in timeline.segments]

        def queue(column: str, dtype: type) -> NDArray:
            return np.concatenate(
                [getattr(n, column).astype(dtype)[s.bound.queue] for n, s in zip(names, timeline.segments, strict=True)]
            )

        counts = [c.bound.count for c in timeline.commands]
        return cls(
            start=np.concatenate([s.replay.start for s in timeline.segments]),
            finish=np.concatenate([s.replay.finish for s in timeline.segments]),
            kind=gather("kind"),
            rank=queue("rank", np.int32),
            stream=queue("stream", np.int32),
            role=queue("role", np.int8),
            unit=queue("unit", np.int32),
            command=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            line=gather("line"),
            bytes=gather("bytes"),
            flops=gather("flops"),
            duration=gather("duration"),
        )
