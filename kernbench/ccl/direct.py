"""Collectives in which every pair that has something to say talks directly."""

from __future__ import annotations

import numpy as np

from kernbench.ccl.schedule import Builder, Schedule, Slots


def gather(ranks: int, root: int = 0) -> Schedule:
    """The root ends with every rank's input, in rank order."""
    build = Builder("gather", "direct", ranks, ranks, Slots(inputs=1, outputs=ranks), root)
    others = _others(ranks, root)
    build.copy(root, 0, 1 + root, root)
    build.send(others, root, 0, 1 + others, others)
    return build.build()


def scatter(ranks: int, root: int = 0) -> Schedule:
    """Rank r ends with the root's input r."""
    build = Builder("scatter", "direct", ranks, ranks, Slots(inputs=ranks, outputs=1), root)
    others = _others(ranks, root)
    build.copy(root, root, ranks, root)
    build.send(root, others, others, ranks, others)
    return build.build()


def all_to_all(ranks: int) -> Schedule:
    """Rank r's output s is rank s's input r. In round k every rank sends to the one k places further, so that each
    receives from one rank at a time."""
    build = Builder("all_to_all", "direct", ranks, 1, Slots(inputs=ranks, outputs=ranks))
    rank = np.arange(ranks)
    build.copy(rank, rank, ranks + rank, 0)
    for k in range(1, ranks):
        to = (rank + k) % ranks
        build.send(rank, to, to, ranks + rank, 0)
    return build.build()


def send(ranks: int = 2) -> Schedule:
    """Rank 0's input becomes rank 1's output."""
    build = Builder("send", "direct", ranks, 1, Slots(inputs=1, outputs=1))
    build.send(0, 1, 0, 1, 0)
    return build.build()


def _others(ranks: int, root: int) -> np.ndarray:
    return (root + np.arange(1, ranks)) % ranks
