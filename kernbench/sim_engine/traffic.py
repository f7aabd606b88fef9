"""Bytes that ops move, by class of resource, and how they spread over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.bound import FIXED, BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.timeline import Timeline
from kernbench.sim_engine.usage import LINK_CLASSES, entries_of
from kernbench.topology import KINDS

Floats = NDArray[np.float64]
TRAFFIC = ("hbm", *dict.fromkeys(LINK_CLASSES.values()))
"""Classes that carry bytes."""


def bytes_by_class(bound: BoundLog, machine: Machine) -> dict[str, Floats]:
    """float64[N] for each class: bytes that op n puts on its channels, or on its links counted once for each of
    them."""
    patterns, paths = bound.patterns, bound.paths
    ops = np.flatnonzero(bound.pattern != FIXED)
    message, owner = entries_of(patterns.message_ptr.view, bound.pattern[ops])
    nbytes = patterns.bytes.view[message].astype(np.float64)
    channels = (patterns.source.view[message] >= 0).astype(np.int64) + (patterns.destination.view[message] >= 0)
    route = paths.slot_route.view[paths.first_slot.view[bound.path[ops]][owner] + patterns.slot.view[message]]
    routes = len(paths.request)
    link, of_route = entries_of(paths.link_ptr.view, np.arange(routes))
    kind = np.array([LINK_CLASSES[k] for k in KINDS])[machine.link_kind[paths.link.view[link]]]
    found = {}
    for name in TRAFFIC:
        times = channels if name == "hbm" else np.bincount(of_route[kind == name], minlength=routes)[route]
        column = np.zeros(bound.count)
        column[ops] = np.bincount(owner, nbytes * times, len(ops))
        found[name] = column
    return found


def rates(start: NDArray[np.int64], finish: NDArray[np.int64], nbytes: Floats, edges: NDArray[np.int64]) -> Floats:
    """float64[E-1], bytes/s between consecutive ``edges`` (ps), with each op's bytes spread evenly over its time."""
    speed = nbytes / np.maximum(finish - start, 1)
    moved = _ramp(start, speed, edges) - _ramp(finish, speed, edges)
    return np.diff(moved) / np.maximum(np.diff(edges), 1) * 1e12


def _ramp(begin: NDArray[np.int64], speed: Floats, edges: NDArray[np.int64]) -> Floats:
    """Sum over ops of ``speed * max(0, edge - begin)`` for each edge."""
    order = np.argsort(begin)
    total = np.concatenate([[0.0], np.cumsum(speed[order])])
    moment = np.concatenate([[0.0], np.cumsum(speed[order] * begin[order])])
    upto = np.searchsorted(begin[order], edges, "right")
    return total[upto] * edges - moment[upto]


def counters(timeline: Timeline, bins: int) -> dict[tuple[int, str], tuple[NDArray[np.int64], Floats]]:
    """(rank, class) -> (int64[bins + 1] times in ps, float64[bins] bytes/s). A send counts for the rank that sends."""
    edges = np.linspace(0, timeline.makespan_ps, bins + 1).astype(np.int64)
    found: dict[tuple[int, str], Floats] = {}
    for _, bound, done in timeline.segments:
        rank = bound.queue_key[bound.queue] >> 44
        for name, nbytes in bytes_by_class(bound, timeline.machine).items():
            moving = nbytes > 0
            for r in np.unique(rank[moving]).tolist():
                mine = moving & (rank == r)
                rate = rates(done.start[mine], done.finish[mine], nbytes[mine], edges)
                found[r, name] = found.get((r, name), np.zeros(bins)) + rate
    return {key: (edges, rate) for key, rate in found.items()}
