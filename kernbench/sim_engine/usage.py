"""How much of the machine a part of a run used, and what held it up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.bound import FIXED, Activity, BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.timeline import TimedCommand, Timeline
from kernbench.topology import KINDS

Floats = NDArray[np.float64]
Int64s = NDArray[np.int64]

LINK_CLASSES = {"noc": "noc", "port": "noc", "d2d": "d2d", "io": "io", "sip": "sip link", "host": "host link"}
"""Kind of link -> what reports call it."""
CLASSES = ("gemm", "vector", "hbm", "noc", "d2d", "io", "sip link", "host link", "launch")
"""Resource classes in the order of reports. ``launch`` is the host's own time: launches, copies, synchronisations."""
BINDS_FROM = 0.5
"""A resource that was busy for less than this part of a phase does not bind it: latencies do."""


@dataclass(frozen=True)
class Load:
    """How busy the resources of one class were: 0 to 1."""

    mean: float
    """Over all engines and channels of the ranks that take part; over the links that carried anything."""
    peak: float
    """Of the busiest one."""


@dataclass(frozen=True)
class Phase:
    """What ran under one ``ctx.range``; under several of the same name, all of them together."""

    name: str
    """Empty for what ran outside any range."""
    start_ps: int
    finish_ps: int
    busy_ps: int
    """Time in which at least one rank's stream was held by it."""
    commands: int
    ranks: tuple[int, ...]
    hbm_bytes: int
    flops: int
    """On the GEMM engines."""
    load: dict[str, Load]
    """By class, those with no load left out."""
    bound: str
    """The class whose busiest resource was busiest, or ``latency`` where none was busy half of the time."""


class Work:
    """Busy time, in picoseconds, that ops put on each resource."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.gemm = np.zeros((machine.ranks, machine.pes))
        self.vector = np.zeros((machine.ranks, machine.pes))
        self.channel = np.zeros((machine.ranks, machine.channels_per_sip))
        self.link = np.zeros(len(machine.link_ps_per_byte))
        self.host = np.zeros(machine.ranks)

    def add(self, bound: BoundLog, weight: Floats) -> None:
        """Add the ops of ``bound``, each with a part ``weight`` (float64[N], 0 to 1) of its work."""
        ops = np.flatnonzero(weight)
        kind, key = bound.kind[ops], bound.queue_key[bound.queue[ops]]
        rank, unit = key >> 44, key >> 4 & 0xFFFFFF
        work = weight[ops] * bound.duration[ops]
        for activity, engines in ((Activity.GEMM, self.gemm), (Activity.VECTOR, self.vector)):
            mine = kind == activity
            np.add.at(engines, (rank[mine], unit[mine]), work[mine])
        mine = kind == Activity.HOST
        np.add.at(self.host, rank[mine], work[mine])
        mine = kind == Activity.REDUCE
        np.add.at(self.vector, rank[mine], work[mine, None])
        moves = bound.pattern[ops] != FIXED
        self._transfers(bound, ops[moves], weight[ops[moves]])

    def _transfers(self, bound: BoundLog, ops: Int64s, weight: Floats) -> None:
        patterns, paths, machine = bound.patterns, bound.paths, self.machine
        message_of, owner = entries_of(patterns.message_ptr.view, bound.pattern[ops])
        path, part = bound.path[ops][owner], weight[owner]
        route = paths.slot_route.view[paths.first_slot.view[path] + patterns.slot.view[message_of]]
        carried = np.bincount(route, part * patterns.bytes.view[message_of], len(paths.request))
        used = np.flatnonzero(carried)
        link_at, owner = entries_of(paths.link_ptr.view, used)
        links = paths.link.view[link_at]
        nbytes = np.bincount(links, carried[used][owner], len(self.link))
        self.link[nbytes > 0] += (nbytes * machine.link_ps_per_byte)[nbytes > 0]
        for sets, first in (
            (patterns.source.view[message_of], paths.source_channel.view[path]),
            (patterns.destination.view[message_of], paths.destination_channel.view[path]),
        ):
            for base in np.unique(first[sets >= 0]):
                mine = (sets >= 0) & (first == base)
                times = np.bincount(sets[mine], part[mine])
                chosen = np.flatnonzero(times)
                entry, owner = entries_of(patterns.set_ptr.view, chosen)
                busy = times[chosen][owner] * patterns.set_ps.view[entry]
                self.channel[base // machine.channels_per_sip] += np.bincount(
                    patterns.set_channel.view[entry], busy, machine.channels_per_sip
                )

    def loads(self, ranks: Sequence[int], window_ps: float) -> dict[str, Load]:
        """Load by class over a time, for the ranks that take part."""
        found = {
            "gemm": self.gemm[list(ranks)].ravel(),
            "vector": self.vector[list(ranks)].ravel(),
            "hbm": self.channel[list(ranks)].ravel(),
            "launch": self.host[list(ranks)],
        }
        kinds = np.array([LINK_CLASSES[kind] for kind in KINDS])[self.machine.link_kind]
        for name in dict.fromkeys(LINK_CLASSES.values()):
            found[name] = self.link[(kinds == name) & (self.link > 0)]
        made = {}
        for name in CLASSES:
            busy = found[name]
            if busy.size and busy.any() and window_ps > 0:
                busy = np.minimum(busy, window_ps)  # a host may issue a phase before it holds a stream
                made[name] = Load(float(busy.mean() / window_ps), float(busy.max() / window_ps))
        return made


def binding(load: dict[str, Load]) -> str:
    """The class that binds: the one with the busiest resource, or ``latency``."""
    name = max(load, key=lambda n: load[n].peak, default="latency")
    return name if name in load and load[name].peak >= BINDS_FROM else "latency"


def phases(timeline: Timeline) -> list[Phase]:
    """Every phase of a run, in order of their start."""
    by_range: dict[int, list[TimedCommand]] = {}
    for command in timeline.commands:
        by_range.setdefault(command.bound.range_id, []).append(command)
    made = [_phase(timeline, timeline.ranges[number], commands) for number, commands in sorted(by_range.items())]
    return sorted(made, key=lambda p: (p.start_ps, p.name))


def utilisation(timeline: Timeline, start_ps: int, stop_ps: int) -> dict[str, Load]:
    """Load by class between two times. An op's work counts as spread evenly over its time."""
    ranks: set[int] = set()
    for _, bound, _ in timeline.segments:
        ranks.update(np.unique(bound.queue_key >> 44).tolist())
    return work_between(timeline, start_ps, stop_ps).loads(sorted(ranks), stop_ps - start_ps)


def work_between(timeline: Timeline, start_ps: int, stop_ps: int) -> Work:
    """Busy time of each resource between two times, as :func:`utilisation` counts it."""
    work = Work(timeline.machine)
    for _, bound, done in timeline.segments:
        length = np.maximum(done.finish - done.start, 1)
        inside = np.minimum(done.finish, stop_ps) - np.maximum(done.start, start_ps)
        work.add(bound, np.clip(inside / length, 0, 1))
    return work


def _phase(timeline: Timeline, name: str, commands: list[TimedCommand]) -> Phase:
    work = Work(timeline.machine)
    hbm_bytes = flops = 0
    firsts = [segment.first for segment in timeline.segments]
    by_segment: dict[int, list[TimedCommand]] = {}
    for command in commands:
        by_segment.setdefault(bisect_right(firsts, command.first) - 1, []).append(command)
    for number, some in by_segment.items():
        bound = timeline.segments[number].bound
        weight = np.zeros(bound.count)
        for command in some:
            at = command.bound.first
            weight[at : at + command.bound.count] = 1
        chosen = weight > 0
        moved = np.isin(bound.kind, (Activity.READ, Activity.WRITE, Activity.ATOMIC, Activity.REDUCE))
        hbm_bytes += int(bound.bytes[chosen & moved].sum())
        flops += int(bound.flops[chosen & (bound.kind == Activity.GEMM)].sum())
        work.add(bound, weight)
    spans = [(c.ready_ps, c.finish_ps) for c in commands if c.bound.kind not in ("sync", "event")]
    start = min(c.ready_ps for c in commands)
    finish = max(c.finish_ps for c in commands)
    ranks = tuple(sorted({c.bound.rank for c in commands}))
    busy = union_length(spans)
    load = work.loads(ranks, busy)
    return Phase(name, start, finish, busy, len(commands), ranks, hbm_bytes, flops, load, binding(load))


def union_length(spans: Iterable[tuple[int, int]]) -> int:
    """Total length of what intervals cover."""
    total, end = 0, -1
    for a, b in sorted(spans):
        total += max(0, b - max(a, end))
        end = max(end, b)
    return total


def entries_of(ptr: Int64s, chosen: NDArray) -> tuple[Int64s, Int64s]:
    """(entries, owner): the entries ``ptr[c]:ptr[c+1]`` of each c in ``chosen``, and which of them each belongs to."""
    first = ptr[chosen]
    size = ptr[chosen + 1] - first
    owner = np.repeat(np.arange(len(chosen)), size)
    return np.arange(len(owner)) - np.repeat(np.cumsum(size) - size - first, size), owner
