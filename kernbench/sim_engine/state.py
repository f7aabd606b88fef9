"""What a machine's resources remember from one replay to the next, and the result of a replay."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.bound import Activity, BoundLog
from kernbench.sim_engine.machine import Machine

Int64s = NDArray[np.int64]


class CyclicWaitError(RuntimeError):
    """Ops of a bound log wait for each other; the message names a cycle of them."""


@dataclass(slots=True)
class Replay:
    """When each of N ops ran, in picoseconds."""

    start: Int64s
    finish: Int64s
    moved: NDArray[np.bool_]
    """bool[N]: ops that came to a resource earlier than one that an earlier replay had already served there, and so
    were put behind it."""
    events: int
    """How many went through the event queue."""


@dataclass(slots=True)
class ResourceState:
    """``free`` is when a resource has done all its work so far, ``last`` when the newest piece of it arrived."""

    link_free: Int64s
    link_last: Int64s
    channel_free: Int64s
    stack_last: Int64s
    """Of the channels of one cube together."""
    engine_free: Int64s
    engine_last: Int64s
    queue_key: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    queue_issued: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    """int64[Q]: earliest next issue as far as the last one decides it."""
    queue_tail: Int64s = field(default_factory=lambda: np.empty((0, 1), np.int64))
    """int64[Q, D]: op n of the next replay issues after ``queue_tail[q, n]``, for n below the queue's depth."""

    @classmethod
    def idle(cls, machine: Machine) -> ResourceState:
        """Everything free since time 0."""

        def zeros(n: int) -> Int64s:
            return np.zeros(n, np.int64)

        links, engines = len(machine.link_ps_per_byte), machine.engines
        return cls(
            zeros(links), zeros(links), zeros(machine.channels), zeros(machine.stacks), zeros(engines), zeros(engines)
        )

    def copy(self) -> ResourceState:
        """The same, in arrays of its own."""
        return ResourceState(*(getattr(self, one.name).copy() for one in fields(self)))

    def queues(self, bound: BoundLog) -> NDArray[np.int64]:
        """Make room for the queues of ``bound``; returns where each of them stands here."""
        keys = np.union1d(self.queue_key, bound.queue_key)
        depth = max(int(bound.queue_depth.max(initial=1)), self.queue_tail.shape[1])
        old = np.searchsorted(keys, self.queue_key)
        tail = np.zeros((len(keys), depth), np.int64)
        tail[old, : self.queue_tail.shape[1]] = self.queue_tail
        issued = np.zeros(len(keys), np.int64)
        issued[old] = self.queue_issued
        self.queue_key, self.queue_tail, self.queue_issued = keys, tail, issued
        return np.searchsorted(keys, bound.queue_key)

    def advance(self, bound: BoundLog, rows: NDArray[np.int64], order: Int64s, ptr: Int64s, replay: Replay) -> None:
        """Remember what the queues did. ``order[ptr[q]:ptr[q+1]]`` are the ops of queue q."""
        count = np.diff(ptr)
        used = count > 0
        last = order[ptr[1:][used] - 1]
        self.queue_issued[rows[used]] = replay.start[last] + bound.queue_issue[used]
        depth = bound.queue_depth.astype(np.int64)
        tail = self.queue_tail[rows]
        new = tail.copy()
        for n in range(tail.shape[1]):  # op n - depth of the next replay is op `count + n - depth` of this one
            at = count + n - depth
            mine = (n < depth) & used
            old = mine & (at < 0)
            new[old, n] = tail[old, (n + count)[old]]
            now = mine & (at >= 0)
            new[now, n] = replay.finish[order[ptr[:-1][now] + at[now]]]
        self.queue_tail[rows] = new


def queue_order(bound: BoundLog) -> tuple[Int64s, Int64s]:
    """(order, ptr): the ops queue by queue, each queue's in the order of their numbers."""
    order = np.argsort(bound.queue, kind="stable").astype(np.int64)
    ptr = np.zeros(len(bound.queue_key) + 1, np.int64)
    np.cumsum(np.bincount(bound.queue, minlength=len(bound.queue_key)), out=ptr[1:])
    return order, ptr


def shared_engines(bound: BoundLog, engines: int) -> NDArray[np.bool_]:
    """bool[engines]: those that more than one queue with work feeds."""
    used = np.bincount(bound.queue, minlength=len(bound.queue_key)) > 0
    fed = bound.queue_engine[used]
    return np.bincount(fed[fed >= 0], minlength=engines) > 1


def check_finished(bound: BoundLog, finish: Int64s, waits_for: Int64s) -> None:
    """Raise unless all ops have finished. ``waits_for[q]`` is the op that queue q's next op waits for, or -1."""
    if bound.count == 0 or finish.min() >= 0:
        return
    order, ptr = queue_order(bound)
    next_op: dict[int, int] = {}
    for queue in np.flatnonzero(waits_for >= 0).tolist():
        ops = order[ptr[queue] : ptr[queue + 1]]
        next_op[queue] = int(ops[np.argmax(finish[ops] < 0)])
    queue = next(iter(next_op))
    seen: list[int] = []
    while queue not in seen:  # whoever it waits for stands in a queue that is stuck too
        seen.append(queue)
        queue = int(bound.queue[waits_for[queue]])
    cycle = seen[seen.index(queue) :]
    lines = [f"  {describe(bound, next_op[q])} waits for {describe(bound, int(waits_for[q]))}" for q in cycle]
    stuck = int((finish < 0).sum())
    raise CyclicWaitError(
        f"{stuck} of {bound.count} ops can never start, because these wait for each other:\n" + "\n".join(lines)
    )


def describe(bound: BoundLog, op: int) -> str:
    """An op in words: rank, command, kind, source line."""
    what = Activity(int(bound.kind[op])).name.lower()
    for command in bound.commands:
        if command.first <= op < command.first + command.count:
            line = int(bound.line[op])
            at = "{}:{}".format(*command.lines[line]) if 0 <= line < len(command.lines) else ""
            return (
                f"op {op} ({what}{' at ' + at if at else ''} of rank {command.rank}'s {command.kind} '{command.name}')"
            )
    return f"op {op} ({what}, queue {int(bound.queue_key[bound.queue[op]]):#x})"
