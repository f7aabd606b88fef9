"""Programs that meet, of which one hands on to the other by an atomic each.

The last of all adds up what the others left, say, and a counter tells it that it is the last. So do most kernels whose
atomics order programs, and no clocks are needed to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.sanitize.races import semantics

if TYPE_CHECKING:
    from kernbench.kernels.sanitize.touches import Intervals, Touch

Ints = NDArray[np.int64]
Event = tuple[Ints, Ints]
"""Programs, and when each of them does it."""
Spans = Callable[["Touch"], "list[Intervals] | None"]
MOST_ATOMICS = 8
"""Atomics of a program."""
MOST_MEETINGS = 1 << 20
"""Of programs; with more, or more atomics, clocks have to tell."""
_NOWHERE = -1


def handed_on(touches: Sequence[Touch], suspects: set[int], spans: Spans, programs: int) -> bool:
    """Whether every two programs that meet are ordered by an atomic of the first, after its access, that releases, and
    one of the second on the same element, before its access, that acquires. False: perhaps.

    Args:
        touches: of a launch, each program's in its order.
        suspects: bases of the allocations where programs meet.
        spans: the intervals of an access; None for too many.
        programs: how many there are.
    """
    atomics = _atomics(touches, programs)
    if not atomics:
        return False
    for base in suspects:
        meetings = _meetings([(when, t) for when, t in enumerate(touches) if t.allocation.base == base], spans)
        if meetings is None:
            return False
        (first, accessed), (second, accesses) = meetings
        ordered = np.zeros(len(first), np.bool_)
        for place, when in atomics:
            left, released = place[first], when[first] > accessed
            for other_place, other_when in atomics:
                acquired = (left == other_place[second]) & (other_when[second] < accesses)
                ordered |= released & acquired & (left != _NOWHERE)
        if not ordered.all():
            return False
    return True


def _atomics(touches: Sequence[Touch], programs: int) -> list[Event]:
    """The first atomic of each program that orders it, the second, and so on: its address, and when it is. Empty for
    too many."""
    found = [(np.full(programs, _NOWHERE), np.zeros(programs, np.int64)) for _ in range(MOST_ATOMICS)]
    turn = np.zeros(programs, np.int64)
    for when, t in enumerate(touches):
        if not t.is_atomic or t.a.op.name == "tt.load" or semantics(t.a) != "acq_rel":
            continue
        starts, counts = (np.broadcast_to(np.array(x), len(t.programs)) for x in t.rows())
        who, start = t.programs[counts == 1], starts[counts == 1]
        if len(who) and turn[who].max() == MOST_ATOMICS:
            return []
        for k in np.unique(turn[who]).tolist():
            now = turn[who] == k
            found[k][0][who[now]], found[k][1][who[now]] = start[now], when
        turn[who] += 1
    return found[: int(turn.max(initial=0))]


def _meetings(touches: list[tuple[int, Touch]], spans: Spans) -> tuple[Event, Event] | None:
    """Every two programs of which one writes what the other reads, the lower number first; None for too many, or where
    several write the same, or by atomics."""
    columns: dict[bool, list[Intervals]] = {True: [], False: []}
    times: dict[bool, list[Ints]] = {True: [], False: []}
    for when, t in touches:
        parts = spans(t)
        if parts is None or t.is_atomic or any((owner < 0).any() for _, _, owner in parts):
            return None
        columns[t.stores] += parts
        times[t.stores] += [np.full(len(owner), when) for _, _, owner in parts]
    if not columns[True] or not columns[False]:
        return None
    start, end, writer = (np.concatenate(column) for column in zip(*columns[True], strict=True))
    low, high, reader = (np.concatenate(column) for column in zip(*columns[False], strict=True))
    wrote, read = (np.concatenate(times[kind]) for kind in (True, False))
    order = np.argsort(start)
    start, end, writer, wrote = start[order], end[order], writer[order], wrote[order]
    if (start[1:] < end[:-1]).any():
        return None
    from_ = np.searchsorted(end, low, "right")
    count = np.maximum(np.searchsorted(start, high, "left") - from_, 0)
    if count.sum() > MOST_MEETINGS:
        return None
    r = np.repeat(np.arange(len(low)), count)
    w = np.arange(len(r)) - np.repeat(np.cumsum(count) - count - from_, count)
    r, w = r[reader[r] != writer[w]], w[reader[r] != writer[w]]
    wrote_first = writer[w] < reader[r]
    pairs = (writer[w], wrote[w], reader[r], read[r]), (reader[r], read[r], writer[w], wrote[w])
    a, at, b, then = (np.where(wrote_first, x, y) for x, y in zip(*pairs, strict=True))
    return (a, at), (b, then)
