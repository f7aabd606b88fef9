"""The replay, in Python: the specification that the compiled core is held to.

Rules. Time is integer picoseconds. Whatever happens at one time happens by (queue, position in the queue, message).

- A queue issues its ops in order: an op when all it waits for has finished, the one before it has issued (and the issue
  interval has passed), and the one ``depth`` places before it has finished.
- A fixed op occupies its queue's engine. An engine that one queue feeds needs no event: its op starts as soon as both
  are ready. One that several queues feed serves them in the order they come.
- A transfer sends all its messages at once. A message first asks for its source channels, ``request`` later: each
  channel c that it uses starts at ``s_c = max(t, free_c)`` and is busy until ``free_c = s_c + bytes_c / B_c``. Its head
  leaves a memory latency after the first start, its tail a memory latency after the last end.
- It then passes the links of its route by cut-through, with one event for each: at time t, ``s = max(t, free)``,
  ``free = s + bytes / B``, and the head reaches the next link at ``s + latency``. The tail follows: it passes no link
  before ``free``.
- Destination channels work as source channels do, from when the head arrives. The message is done when its tail is.
- The op has finished when its last message has, and no sooner than its duration after its start.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

import numpy as np

from kernbench.sim_engine.bound import FIXED, BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.state import Replay, ResourceState, check_finished, queue_order, shared_engines

SOURCE, ROUTE, DESTINATION, ENGINE = range(4)


class _Flight:
    """A message on its way, or a fixed op that waits for a shared engine."""

    __slots__ = ("bytes", "destination", "hop", "hop_end", "op", "source", "stage", "tail")

    def __init__(self, op: int) -> None:
        self.op = op
        self.stage = ENGINE
        self.bytes = self.hop = self.hop_end = 0
        self.source = self.destination = -1
        self.tail = 0
        """When the end of the message has passed what it has passed so far."""


def replay(bound: BoundLog, machine: Machine, state: ResourceState) -> Replay:
    """Run every op of ``bound`` on the machine; ``state`` is carried on.

    Raises:
        CyclicWaitError: some ops can never start.
    """
    return _Reference(bound, machine, state).run()


class _Reference:
    def __init__(self, bound: BoundLog, machine: Machine, state: ResourceState) -> None:
        self.bound, self.machine, self.state = bound, machine, state
        self.rows = state.queues(bound)
        self.order, self.ptr = queue_order(bound)
        self.shared = shared_engines(bound, machine.engines)
        self.start = [-1] * bound.count
        self.finish = [-1] * bound.count
        self.moved = [False] * bound.count
        self.pending = [0] * bound.count
        """Messages of each op still on their way, and when the latest of the others arrived."""
        self.latest = [0] * bound.count
        self.waiting: dict[int, list[int]] = {}
        """Op -> queues whose next op waits for it."""
        self.waits_for = [-1] * len(bound.queue_key)
        self.at = self.ptr[:-1].tolist()
        """Position of each queue's next op in ``order``."""
        self.issued = state.queue_issued[self.rows].tolist()
        self.number = self._event_numbers()
        """Each queue's next event number: what orders events of one time."""
        self.heap: list[tuple[int, int, _Flight]] = []
        self.events = 0

    def _event_numbers(self) -> list[int]:
        bound = self.bound
        messages = np.diff(bound.patterns.message_ptr.view)
        per_op = np.ones(bound.count, np.int64)
        transfer = bound.pattern != FIXED
        per_op[transfer] = messages[bound.pattern[transfer]]
        before = np.concatenate([[0], np.cumsum(per_op[self.order])])
        numbers: list[int] = before[self.ptr[:-1]].tolist()
        return numbers

    def run(self) -> Replay:
        ready = list(range(len(self.bound.queue_key)))
        self._issue(ready)
        while self.heap:
            time, number, flight = heappop(self.heap)
            self.events += 1
            self._step(time, number, flight)
        done = Replay(
            np.array(self.start, np.int64), np.array(self.finish, np.int64), np.array(self.moved, np.bool_), self.events
        )
        check_finished(self.bound, done.finish, np.array(self.waits_for, np.int64))
        self.state.advance(self.bound, self.rows, self.order, self.ptr, done)
        return done

    def _issue(self, queues: list[int]) -> None:
        """Issue what these queues can, and what that sets free."""
        while queues:
            queue = queues.pop()
            while self.at[queue] < self.ptr[queue + 1]:
                op = int(self.order[self.at[queue]])
                time = self._ready(queue, op)
                if time is None:
                    break
                self.waits_for[queue] = -1
                self.at[queue] += 1
                self._begin(queue, op, time)
                if self.finish[op] >= 0:
                    queues += self.waiting.pop(op, [])

    def _ready(self, queue: int, op: int) -> int | None:
        """When the next op of a queue can issue; None (and the queue is put to wait) while that is not known."""
        bound, finish = self.bound, self.finish
        time = max(int(bound.release[op]), self.issued[queue])
        for dep in bound.deps[bound.dep_ptr[op] : bound.dep_ptr[op + 1]].tolist():
            if finish[dep] < 0:
                self._wait(queue, dep)
                return None
            time = max(time, finish[dep])
        depth = int(bound.queue_depth[queue])
        if depth:
            n = self.at[queue] - int(self.ptr[queue])
            if n < depth:
                time = max(time, int(self.state.queue_tail[self.rows[queue], n]))
            else:
                before = int(self.order[self.at[queue] - depth])
                if finish[before] < 0:
                    self._wait(queue, before)
                    return None
                time = max(time, finish[before])
        return time

    def _wait(self, queue: int, op: int) -> None:
        self.waiting.setdefault(op, []).append(queue)
        self.waits_for[queue] = op

    def _begin(self, queue: int, op: int, time: int) -> None:
        bound = self.bound
        self.start[op] = time
        self.issued[queue] = time + int(bound.queue_issue[queue])
        if bound.pattern[op] != FIXED:
            self._send(queue, op, time)
            return
        engine = int(bound.queue_engine[queue])
        if engine >= 0 and self.shared[engine]:
            heappush(self.heap, (time, self.number[queue], _Flight(op)))
        elif engine >= 0:
            self._occupy(engine, op, time)
        else:
            self.finish[op] = time + int(bound.duration[op])
        self.number[queue] += 1

    def _occupy(self, engine: int, op: int, time: int) -> None:
        state = self.state
        self.moved[op] |= time < int(state.engine_last[engine])
        state.engine_last[engine] = max(int(state.engine_last[engine]), time)
        self.start[op] = max(time, int(state.engine_free[engine]))
        self.finish[op] = self.start[op] + int(self.bound.duration[op])
        state.engine_free[engine] = self.finish[op]

    def _send(self, queue: int, op: int, time: int) -> None:
        patterns, paths = self.bound.patterns, self.bound.paths
        pattern = int(self.bound.pattern[op])
        first, end = patterns.message_ptr.view[pattern : pattern + 2].tolist()
        self.pending[op] = end - first
        self.latest[op] = time + int(self.bound.duration[op])
        if first == end:
            self.finish[op] = self.latest[op]
        for message in range(first, end):
            slot = int(paths.first_slot.view[self.bound.path[op]]) + int(patterns.slot.view[message])
            route = int(paths.slot_route.view[slot])
            flight = _Flight(op)
            flight.bytes = int(patterns.bytes.view[message])
            flight.hop, flight.hop_end = paths.hop_ptr.view[route : route + 2].tolist()
            flight.source = int(patterns.source.view[message])
            flight.destination = int(patterns.destination.view[message])
            flight.stage = SOURCE if flight.source >= 0 else ROUTE
            flight.tail = time + int(paths.request.view[route])
            self._onward(flight.tail, self.number[queue], flight)
            self.number[queue] += 1

    def _onward(self, head: int, number: int, flight: _Flight) -> None:
        """The head goes to the next thing that the message needs, if there is one."""
        if flight.stage == ROUTE and flight.hop == flight.hop_end:
            if flight.destination < 0:
                self._arrive(flight)
                return
            flight.stage = DESTINATION
        heappush(self.heap, (head, number, flight))

    def _step(self, time: int, number: int, flight: _Flight) -> None:
        if flight.stage == ENGINE:
            self._occupy(int(self.bound.queue_engine[self.bound.queue[flight.op]]), flight.op, time)
            self._finished(flight.op)
        elif flight.stage == ROUTE:
            self._hop(time, number, flight)
        else:
            self._channels(time, number, flight)

    def _hop(self, time: int, number: int, flight: _Flight) -> None:
        paths, state = self.bound.paths, self.state
        link, latency = int(paths.hop_link.view[flight.hop]), int(paths.hop_latency.view[flight.hop])
        self.moved[flight.op] |= time < int(state.link_last[link])
        state.link_last[link] = max(int(state.link_last[link]), time)
        start = max(time, int(state.link_free[link]))
        busy = max(1, math.floor(flight.bytes * float(self.machine.link_ps_per_byte[link]) + 0.5))
        state.link_free[link] = start + busy
        flight.tail = max(flight.tail, start + busy) + latency
        flight.hop += 1
        self._onward(start + latency, number, flight)

    def _channels(self, time: int, number: int, flight: _Flight) -> None:
        patterns, paths, state = self.bound.patterns, self.bound.paths, self.state
        path = self.bound.path[flight.op]
        leaving = flight.stage == SOURCE
        chosen = flight.source if leaving else flight.destination
        base = int((paths.source_channel if leaving else paths.destination_channel).view[path])
        stack = base // self.machine.channels_per_cube + int(patterns.set_stack.view[chosen])
        self.moved[flight.op] |= time < int(state.stack_last[stack])
        state.stack_last[stack] = max(int(state.stack_last[stack]), time)
        first, end = patterns.set_ptr.view[chosen : chosen + 2].tolist()
        channels = base + patterns.set_channel.view[first:end]
        starts = np.maximum(state.channel_free[channels], time)
        state.channel_free[channels] = ends = starts + patterns.set_ps.view[first:end]
        access = int(paths.access.view[path])
        flight.tail = max(flight.tail, int(ends.max())) + access
        if leaving:
            flight.stage = ROUTE
            self._onward(int(starts.min()) + access, number, flight)
        else:
            self._arrive(flight)

    def _arrive(self, flight: _Flight) -> None:
        op = flight.op
        self.latest[op] = max(self.latest[op], flight.tail)
        self.pending[op] -= 1
        if self.pending[op] == 0:
            self.finish[op] = self.latest[op]
            self._finished(op)

    def _finished(self, op: int) -> None:
        self._issue(self.waiting.pop(op, []))
