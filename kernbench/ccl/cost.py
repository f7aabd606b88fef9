"""Closed forms of what schedules cost on an idle machine whose links between neighbours are all alike.

Bytes, seconds and bytes per second throughout: ``nbytes`` S is the whole buffer, ``bandwidth`` B of one link,
``latency`` a of one route from memory to memory, ``reduce`` the seconds to combine one chunk. Sources: Thakur,
Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005, with the reduction written
as a time of its own.
"""

from __future__ import annotations

import math


def reduce_time(nbytes: float, elements: float, hbm: float, vector: float) -> float:
    """Seconds to combine a chunk: the slower of ``elements`` over the ``vector`` rate of all PEs, and two reads and one
    write over the ``hbm`` bandwidth."""
    return max(elements / vector, 3 * nbytes / hbm)


def ring_all_reduce(ranks: int, nbytes: float, bandwidth: float, latency: float, reduce: float) -> float:
    """``2(N-1)(S/(N B) + a) + (N-1) reduce``: one chunk a rank, N dividing S."""
    return 2 * (ranks - 1) * (nbytes / (ranks * bandwidth) + latency) + (ranks - 1) * reduce


def ring_reduce_scatter(ranks: int, nbytes: float, bandwidth: float, latency: float, reduce: float) -> float:
    """``(N-1)(S/(N B) + a + reduce)``; S is the input of one rank."""
    return (ranks - 1) * (nbytes / (ranks * bandwidth) + latency + reduce)


def ring_all_gather(ranks: int, nbytes: float, bandwidth: float, latency: float) -> float:
    """``(N-1)(S/(N B) + a)``; S is the output of one rank."""
    return (ranks - 1) * (nbytes / (ranks * bandwidth) + latency)


def chain(ranks: int, nbytes: float, bandwidth: float, latency: float, pieces: int = 1, reduce: float = 0.0) -> float:
    """Pipelined broadcast (or reduce) along a chain: ``(N-1)(S/(P B) + a + reduce) + (P-1) max(S/(P B), reduce)``, in P
    pieces, ``reduce`` seconds to combine one."""
    piece = nbytes / (pieces * bandwidth)
    return (ranks - 1) * (piece + latency + reduce) + (pieces - 1) * max(piece, reduce)


def enough_pieces(ranks: int, nbytes: float, bandwidth: float, latency: float, within: float = 0.1) -> int:
    """The fewest pieces that bring :func:`chain` within a fraction ``within`` of what endlessly many would reach,
    ``S/B + (N-1) a``: ``P = (N-2) / (within (1 + (N-1) a B / S))``."""
    if nbytes <= 0:
        return 1
    fill = (ranks - 2) / (1 + (ranks - 1) * latency * bandwidth / nbytes)
    return max(1, math.ceil(fill / within))
