"""The replay as a SimPy user would write it, with the engine's own rules: a process for each queue and each message.

What happens at one time SimPy orders by priority first: an arrival at something shared has the engine's number (queue,
position, message) as its priority, and comes after everything that has none. So both give the same times.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise

import numpy as np
import simpy
from numpy.typing import NDArray

from kernbench.sim_engine.bound import FIXED, BoundLog
from kernbench.sim_engine.machine import Machine


def replay(bound: BoundLog, machine: Machine) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(start, finish) of every op on an idle machine, in picoseconds."""
    run = _Run(bound, machine)
    run.env.run()
    return np.array(run.start, np.int64), np.array(run.finish, np.int64)


class _Arrival(simpy.Event):
    """A message, or an op, comes to something that it shares with others."""

    def __init__(self, env: simpy.Environment, time: int, number: int) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, number, time - env.now)


class _Run:
    def __init__(self, bound: BoundLog, machine: Machine) -> None:
        self.env = simpy.Environment()
        self.access_of = bound.paths.access.view.tolist()
        self.channels_free = [0] * machine.channels
        self.links_free = [0] * len(machine.link_ps_per_byte)
        self.engines_free = [0] * machine.engines
        self.ps_per_byte = machine.link_ps_per_byte.tolist()
        self.start = [-1] * bound.count
        self.finish = [-1] * bound.count
        self.done: list[simpy.Event | None] = [None] * bound.count
        self.pending = [0] * bound.count
        self.latest = [0] * bound.count
        self._take(bound)
        order = np.argsort(bound.queue, kind="stable")
        self.number = [0] * bound.count
        number = 2  # above SimPy's own two priorities
        for op in order.tolist():
            self.number[op] = number
            number += 1 if self.pattern[op] == FIXED else len(self.messages[self.pattern[op]])
        ends = np.cumsum(np.bincount(bound.queue, minlength=len(bound.queue_key)))
        for queue, ops in enumerate(np.split(order, ends[:-1])):
            limits = (int(bound.queue_depth[queue]), int(bound.queue_issue[queue]), int(bound.queue_engine[queue]))
            self.env.process(self._queue(ops.tolist(), *limits))

    def _take(self, bound: BoundLog) -> None:
        """Everything as Python lists, which Python reads faster than arrays."""
        patterns, paths = bound.patterns, bound.paths
        self.pattern, self.path = bound.pattern.tolist(), bound.path.tolist()
        self.duration, self.release = bound.duration.tolist(), bound.release.tolist()
        ptr, deps = bound.dep_ptr.tolist(), bound.deps.tolist()
        self.deps = [deps[a:b] for a, b in pairwise(ptr)]
        ptr = patterns.set_ptr.view.tolist()
        entries = list(zip(patterns.set_channel.view.tolist(), patterns.set_ps.view.tolist(), strict=True))
        self.sets = [entries[a:b] for a, b in pairwise(ptr)]
        ptr = patterns.message_ptr.view.tolist()
        columns = (patterns.slot, patterns.bytes, patterns.source, patterns.destination)
        messages = list(zip(*(column.view.tolist() for column in columns), strict=True))
        self.messages = [messages[a:b] for a, b in pairwise(ptr)]
        ptr = paths.hop_ptr.view.tolist()
        hops = list(zip(paths.hop_link.view.tolist(), paths.hop_latency.view.tolist(), strict=True))
        self.hops = [hops[a:b] for a, b in pairwise(ptr)]
        self.request, self.slot_route = paths.request.view.tolist(), paths.slot_route.view.tolist()
        self.first_slot = paths.first_slot.view.tolist()
        self.source_channel = paths.source_channel.view.tolist()
        self.destination_channel = paths.destination_channel.view.tolist()

    def _queue(self, ops: list[int], depth: int, issue: int, engine: int) -> Generator[simpy.Event, None, None]:
        env = self.env
        earliest = 0
        for n, op in enumerate(ops):
            for dep in self.deps[op]:
                if self.finish[dep] < 0:
                    yield self._done(dep)
            if depth and n >= depth and self.finish[ops[n - depth]] < 0:
                yield self._done(ops[n - depth])
            earliest = max(earliest, self.release[op])
            if env.now < earliest:
                yield env.timeout(earliest - env.now)
            earliest = env.now + issue
            self.start[op] = env.now
            if self.pattern[op] != FIXED:
                self._send(op)
                continue
            if engine >= 0:
                yield _Arrival(env, env.now, self.number[op])
                self.start[op] = max(env.now, self.engines_free[engine])
                self.engines_free[engine] = self.start[op] + self.duration[op]
            self.latest[op] = self.start[op] + self.duration[op]
            env.process(self._end(op))

    def _done(self, op: int) -> simpy.Event:
        event = self.done[op]
        if event is None:
            event = self.done[op] = self.env.event()
        return event

    def _finished(self, op: int) -> None:
        self.finish[op] = self.env.now
        event = self.done[op]
        if event is not None:
            event.succeed()

    def _send(self, op: int) -> None:
        messages = self.messages[self.pattern[op]]
        self.pending[op] = len(messages)
        self.latest[op] = self.env.now + self.duration[op]
        if not messages:
            self.env.process(self._end(op))
        for number, message in enumerate(messages, self.number[op]):
            self.env.process(self._message(op, number, *message))

    def _end(self, op: int) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(self.latest[op] - self.env.now)
        self._finished(op)

    def _message(
        self, op: int, number: int, slot: int, nbytes: int, source: int, destination: int
    ) -> Generator[simpy.Event, None, None]:
        env, path = self.env, self.path[op]
        route = self.slot_route[self.first_slot[path] + slot]
        head = tail = env.now + self.request[route]
        if source >= 0:
            yield _Arrival(env, head, number)
            head, tail = self._channels(self.sets[source], self.source_channel[path], tail, self.access_of[path])
        for link, latency in self.hops[route]:
            yield _Arrival(env, head, number)
            start = max(head, self.links_free[link])
            self.links_free[link] = start + max(1, int(nbytes * self.ps_per_byte[link] + 0.5))
            tail = max(tail, self.links_free[link]) + latency
            head = start + latency
        if destination >= 0:
            yield _Arrival(env, head, number)
            sets, first = self.sets[destination], self.destination_channel[path]
            tail = self._channels(sets, first, tail, self.access_of[path])[1]
        self.latest[op] = max(self.latest[op], tail)
        self.pending[op] -= 1
        if self.pending[op] == 0:
            yield env.timeout(self.latest[op] - env.now)
            self._finished(op)

    def _channels(self, entries: list[tuple[int, int]], first: int, tail: int, access: int) -> tuple[int, int]:
        """(head, tail) after the channels."""
        now, free = self.env.now, self.channels_free
        head = None
        for channel, busy in entries:
            start = max(now, free[first + channel])
            free[first + channel] = start + busy
            head = start if head is None else min(head, start)
            tail = max(tail, start + busy)
        return (now if head is None else head) + access, tail + access
