"""One rank's part in a collective, the meeting of all the parts, and the handle that waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kernbench.ccl import Schedule
from kernbench.memory import DType
from kernbench.runtime_api.errors import MismatchError
from kernbench.runtime_api.scheduler import Wait
from kernbench.runtime_api.stream import Clock
from kernbench.runtime_api.where import Where
from kernbench.sim_engine.oplog import Collective

if TYPE_CHECKING:
    from kernbench.runtime_api.rank import Rank
    from kernbench.runtime_api.sip import Sip
    from kernbench.runtime_api.storage import Storage
    from kernbench.runtime_api.tensor import Tensor


@dataclass(eq=False)
class Call:
    """What one rank asked for."""

    name: str
    rank: Rank
    sip: Sip
    where: Where
    dtype: DType
    inputs: list[Tensor]
    """Contiguous device tensors of one size, the schedule's inputs in order. Empty where this rank gives nothing."""
    outputs: list[Tensor]
    """Likewise its outputs; empty for a collective in place and where this rank gets nothing."""
    schedule: Schedule
    op: str = ""
    """The reduction: ``sum``, ``avg`` ...; empty for a collective that moves only."""
    root: int | None = None
    """Global rank, for people."""
    scratch: Storage | None = None
    command: Collective | None = None
    """Its line in the record; None where the collective does nothing at all."""
    ended: tuple[int, Clock] | None = None
    """The event behind it on its stream, and what comes before that."""
    after: list[Callable[[], None]] = field(default_factory=list)
    """What the rank does itself once it has waited."""
    result: list[Tensor] = field(default_factory=list)
    """What the user asked to be written."""
    observed: bool = False
    """The rank has waited for it."""
    meeting: Meeting | None = None
    known: Any = None
    """What the rank knew to be done when it came, where races are looked for."""
    before: list[Any] = field(default_factory=list)
    """What those knew whose parts come before the end of its own."""

    @property
    def elements(self) -> int:
        """Of one input or output."""
        return next((t.numel() for t in (*self.inputs, *self.outputs)), 0)

    def complete(self) -> None:
        """Give way until every rank has joined. Orders nothing after it."""
        assert self.meeting is not None
        self.meeting.wait_for(self.rank, self.name, self.where)

    def matches(self) -> tuple[Any, ...]:
        """What has to be alike on all ranks."""
        what = "message" if self.schedule.collective == "send" else self.name
        return what, self.elements, self.dtype.name, self.op, self.root

    def comes_after(self, other: Call) -> bool:
        """Whether this rank's part ends only once another's has begun."""
        what = self.schedule.collective
        if what in ("broadcast", "scatter"):
            return other.rank.index == self.root
        if what in ("reduce", "gather"):
            return self.rank.index == self.root
        return what != "send" or bool(other.inputs)

    def __str__(self) -> str:
        sized = self.inputs or self.outputs
        parts = [f"{tuple(sized[0].shape)} {self.dtype.name}" if sized else "nothing"]
        if self.op:
            parts.append(self.op)
        if self.root is not None:
            parts.append(f"root {self.root}")
        return f"{self.name}({', '.join(parts)}) at {self.where}"


class Meeting:
    """Where the parts of one collective come together. The last one to arrive carries it out.

    Args:
        members: global ranks that take part, in group order.
        what: its name for people, such as ``#3 of group 'default'``.
    """

    def __init__(self, members: tuple[int, ...], what: str, carry_out: Callable[[list[Call]], None]) -> None:
        self.members, self.what = members, what
        self.calls: dict[int, Call] = {}
        self.complete = False
        self.error: str | None = None
        self._carry_out = carry_out
        self._waiting: list[Rank] = []

    def missing(self) -> list[int]:
        """The members that have not come."""
        return [] if self.complete else [rank for rank in self.members if rank not in self.calls]

    def arrive(self, call: Call) -> None:
        self.calls[call.rank.index] = call
        call.known = call.rank.world.team.knows(call.rank)
        if len(self.calls) < len(self.members):
            return
        calls = [self.calls[rank] for rank in self.members]
        if len({call.matches() for call in calls}) > 1:
            lines = [f"the ranks of collective {self.what} made different calls:"]
            lines += [f"  rank {call.rank.index}: {call}" for call in calls]
            lines.append("Every rank has to make the same call with the same number of elements, dtype and options.")
            self.error = "\n".join(lines)
            for call in calls:
                if call.command is not None:
                    call.command.done = ()  # in the record it does nothing
        else:
            self._carry_out(calls)
            for call in calls:
                call.before = [other.known for other in calls if call.comes_after(other)]
            self.calls = {}  # they hold memory, which now dies with the last tensor and handle on it
        self.complete = True
        for rank in self._waiting:
            rank.wake()
        self._waiting.clear()

    def wait_for(self, rank: Rank, name: str, where: Where) -> None:
        """Give way until every part has arrived."""
        if not self.complete:
            self._waiting.append(rank)
            rank.park_until(lambda: self.complete, Wait(f"{name} {self.what}", where, self.missing))

    def poll(self, rank: Rank) -> bool:
        """Whether every part has arrived by the time that no rank can move: so that the answer does not depend on who
        happened to run first."""
        if self.complete:
            return True
        self._waiting.append(rank)
        answer = rank.ask(lambda: self.complete)
        if rank in self._waiting:
            self._waiting.remove(rank)
        return self.complete if answer is None else answer


class Work:
    """The handle of an asynchronous collective."""

    def __init__(self, call: Call, meeting: Meeting) -> None:
        self._call, self._meeting = call, meeting

    def wait(self, timeout: Any = None) -> bool:
        """Give way until the collective is carried out; what this rank queues on its current stream from now on comes
        after it. Waiting again does nothing. Returns True.

        Raises:
            MismatchError: the ranks made different calls.
            DeadlockError: a rank that is needed will never come.
        """
        call = self._call
        call.complete()
        first, call.observed = not call.observed, True
        if self._meeting.error is not None:
            raise MismatchError(self._meeting.error)
        if call.ended is not None and call.rank.is_running():
            call.sip.wait_event(call.sip.current, *call.ended)
        if first:
            call.rank.world.team.learns(call.rank, call.before)
            for action in call.after:
                action()
        return True

    def is_completed(self) -> bool:
        """Whether all ranks have joined. Asks for no simulated time."""
        return self._meeting.poll(self._call.rank)

    def is_success(self) -> bool:
        return self.is_completed() and self._meeting.error is None

    def exception(self) -> Exception | None:
        return None if self._meeting.error is None else MismatchError(self._meeting.error)

    def result(self) -> list[Tensor]:
        """What was written, after :meth:`wait`."""
        self.wait()
        return self._call.result

    def get_future(self) -> Future:
        return Future(self)


class Future:
    """Of a :class:`Work`: ``wait()`` and ``value()`` give the tensors written."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def wait(self) -> list[Tensor]:
        return self._work.result()

    value = wait

    def done(self) -> bool:
        return self._work.is_completed()
