"""Carries out a schedule on values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernbench.ccl.schedule import Schedule

Combine = Callable[[NDArray, NDArray], NDArray]


def execute(schedule: Schedule, memory: NDArray, combine: Combine) -> None:
    """Run every round on ``memory``, in place.

    Args:
        memory: [ranks, slots, ...]: what each slot of each rank holds; scratch and outputs may hold anything.
        combine: elementwise reduction ``combine(a, b)`` of equally shaped arrays, rounded as the hardware would. The
            order of the operations is the schedule's, so results are bit-identical to its step-by-step execution.
    """
    steps = schedule.steps
    owner = np.where(steps["peer"] >= 0, steps["peer"], steps["rank"])
    for now in schedule.rounds:
        rank, a, b, out = (steps[name][now] for name in ("rank", "a", "b", "out"))
        value = memory[rank, a]
        two = b >= 0
        if two.all():
            value = combine(value, memory[rank, b])
        elif two.any():
            value[two] = combine(value[two], memory[rank[two], b[two]])
        memory[owner[now], out] = value
