"""Proves a schedule right without numbers: every chunk of every rank arrives where it should, exactly once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernbench.ccl.execute import execute
from kernbench.ccl.schedule import Schedule, ScheduleError


def verify(schedule: Schedule) -> None:
    """Follow every input symbolically and compare the final contents with what the collective promises.

    A value is a vector that counts how often each rank's each input slot went into it, so that a copy is the vector and
    a reduction is the sum.

    Raises:
        ScheduleError: naming the first rank and slot that end wrong, what they hold and what they should.
    """
    slots, ranks = schedule.slots, schedule.ranks
    memory = np.zeros((ranks, slots.total, ranks * slots.inputs), np.int32)
    memory[:, slots.inputs :] = -1000  # whoever uses a slot before it was written ends with nonsense
    each = np.arange(ranks * slots.inputs).reshape(ranks, slots.inputs)
    memory[np.arange(ranks)[:, None], np.arange(slots.inputs), each] = 1
    execute(schedule, memory, np.add)
    for rank, slot, inputs in promised(schedule):
        want = np.zeros(ranks * slots.inputs, np.int32)
        want[[r * slots.inputs + s for r, s in inputs]] = 1
        got = memory[rank, slot]
        if not np.array_equal(got, want):
            raise ScheduleError(
                f"{schedule.collective} by {schedule.algorithm} on {ranks} ranks: rank {rank}'s "
                f"{schedule.slot_name(slot)} ends with {_sum(schedule, got)}, expected {_sum(schedule, want)}"
            )


def promised(schedule: Schedule) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """What a collective must leave: (rank, slot, the (rank, input slot) pairs whose sum it holds)."""
    n, inputs, outputs, root = schedule.ranks, schedule.slots.inputs, schedule.slots.outputs, schedule.root
    everyone = range(n)

    def total(slot: int) -> list[tuple[int, int]]:
        return [(r, slot) for r in everyone]

    match schedule.collective:
        case "all_reduce":
            return [(r, s, total(s)) for r in everyone for s in range(inputs)]
        case "reduce":
            kept = [(r, s, [(r, s)]) for r in everyone if r != root for s in range(inputs)]
            return [(root, s, total(s)) for s in range(inputs)] + kept
        case "broadcast":
            return [(r, s, [(root, s)]) for r in everyone for s in range(inputs)]
        case "reduce_scatter":
            return [(r, inputs + s, total(r * outputs + s)) for r in everyone for s in range(outputs)]
        case "all_gather":
            return [(r, inputs + s, [divmod(s, inputs)]) for r in everyone for s in range(outputs)]
        case "gather":
            return [(root, inputs + s, [(s, 0)]) for s in range(outputs)]
        case "scatter":
            return [(r, inputs, [(root, r)]) for r in everyone]
        case "all_to_all":
            return [(r, inputs + s, [(s, r)]) for r in everyone for s in range(outputs)]
        case "send":
            return [(1, inputs, [(0, 0)])]
    raise ScheduleError(f"'{schedule.collective}' is no collective this check knows")


def _sum(schedule: Schedule, counts: NDArray[np.int32]) -> str:
    terms = []
    for at in np.flatnonzero(counts):
        rank, slot = divmod(int(at), schedule.slots.inputs)
        times = "" if counts[at] == 1 else f"{counts[at]} x "
        terms.append(f"{times}rank {rank}'s {schedule.slot_name(slot)}")
    return " + ".join(terms) or "nothing"
