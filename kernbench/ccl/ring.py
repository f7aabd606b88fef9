"""Collectives on a ring: every rank talks to its two neighbours only.

``pieces`` cuts each chunk further, so that a piece travels while the one before it is being combined. Rank numbers are
those of the group, in its order.
"""

from __future__ import annotations

import numpy as np

from kernbench.ccl.schedule import Builder, Schedule, Slots


def all_reduce(ranks: int, pieces: int = 1) -> Schedule:
    """Reduce-scatter, then all-gather, in place: 2(N-1) rounds of sends, each with a 1/N of the data."""
    build = Builder("all_reduce", "ring", ranks, ranks * pieces, Slots(inputs=ranks * pieces, scratch=2 * pieces))
    rank, piece, right = _neighbours(ranks, pieces)
    for k in range(ranks - 1):
        data = (rank - k) % ranks * pieces + piece
        landing = ranks * pieces + k % 2 * pieces + piece
        build.send(rank, right, data, landing, data)
        build.combine(right, landing, data, data, data)
    for k in range(ranks - 1):
        data = (rank + 1 - k) % ranks * pieces + piece
        build.send(rank, right, data, data, data)
    return build.build()


def reduce_scatter(ranks: int, pieces: int = 1) -> Schedule:
    """Rank r ends with chunk r of the sum; inputs stay as they were."""
    outputs = ranks * pieces
    scratch = outputs + pieces
    build = Builder("reduce_scatter", "ring", ranks, ranks * pieces, Slots(ranks * pieces, pieces, 2 * pieces))
    rank, piece, right = _neighbours(ranks, pieces)
    if ranks == 1:
        build.copy(rank, piece, outputs + piece, piece)
    for k in range(ranks - 1):
        data = (rank - 1 - k) % ranks * pieces + piece
        landing = scratch + k % 2 * pieces + piece
        partial = scratch + (k - 1) % 2 * pieces + piece
        build.send(rank, right, data if k == 0 else partial, landing, data)
        build.combine(right, landing, data, landing if k < ranks - 2 else outputs + piece, data)
    return build.build()


def all_gather(ranks: int, pieces: int = 1) -> Schedule:
    """Every rank ends with every rank's input, in rank order."""
    build = Builder("all_gather", "ring", ranks, ranks * pieces, Slots(pieces, ranks * pieces))
    rank, piece, right = _neighbours(ranks, pieces)
    own = rank * pieces + piece
    build.copy(rank, piece, pieces + own, own)
    for k in range(ranks - 1):
        data = (rank - k) % ranks * pieces + piece
        build.send(rank, right, piece if k == 0 else pieces + data, pieces + data, data)
    return build.build()


def broadcast(ranks: int, root: int = 0, pieces: int = 1) -> Schedule:
    """A chain from the root around the ring, in place; piece p makes hop h in round p + h."""
    build = Builder("broadcast", "ring", ranks, pieces, Slots(inputs=pieces), root)
    for hop, piece in _wavefront(ranks - 1, pieces):
        build.send((root + hop) % ranks, (root + hop + 1) % ranks, piece, piece, piece)
    return build.build()


def reduce(ranks: int, root: int = 0, pieces: int = 1) -> Schedule:
    """A chain that ends at the root, which holds the sum in place; the others' inputs stay as they were."""
    build = Builder("reduce", "ring", ranks, pieces, Slots(inputs=pieces, scratch=pieces), root)
    for hop, piece in _wavefront(ranks - 1, pieces):
        rank, right = (root + 1 + hop) % ranks, (root + 2 + hop) % ranks
        build.send(rank, right, np.where(hop == 0, piece, pieces + piece), pieces + piece, piece)
        build.combine(right, pieces + piece, piece, np.where(right == root, piece, pieces + piece), piece)
    return build.build()


def _neighbours(ranks: int, pieces: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rank, piece, right neighbour) of every piece of every rank."""
    rank, piece = np.divmod(np.arange(ranks * pieces), pieces)
    return rank, piece, (rank + 1) % ranks


def _wavefront(hops: int, pieces: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(hop, piece) pairs of each round of a pipelined chain."""
    rounds = []
    for now in range(hops + pieces - 1 if hops else 0):
        hop = np.arange(max(0, now - pieces + 1), min(hops, now + 1))
        rounds.append((hop, now - hop))
    return rounds
