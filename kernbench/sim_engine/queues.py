"""What in-order queues a machine has, and what they are called."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HOST = -1
"""Stands for a stream where the host's own queue is meant."""


class Role(IntEnum):
    """What a queue is for. Each (rank, stream) has those of its kernels, on every PE, and those of its collectives."""

    STREAM = 0
    """The stream's own queue: begin and end of kernels, copies, events. The host's for stream HOST."""
    READ = 1
    WRITE = 2
    """Atomics too."""
    GEMM = 3
    VECTOR = 4
    PROGRAM = 5
    """Where a PE's programs retire, in order."""
    SEND = 6
    """Sends of collectives, one queue for each peer."""
    REDUCE = 7
    SIGNAL = 8
    """Where what programs of a PE signalled becomes visible, in order."""
    RECEIVE = 9
    """Where programs of a PE wait for messages and barriers."""


class QueueName(NamedTuple):
    """One queue. Names sort by rank, stream, unit and role."""

    rank: int
    stream: int
    role: Role
    unit: int = 0
    """PE of the rank; for sends the peer."""

    @property
    def key(self) -> int:
        """The name as a number that sorts the same way."""
        return self.rank << 44 | (self.stream + 1) << 28 | self.unit << 4 | self.role


class Queues(NamedTuple):
    """Many names, column by column."""

    rank: NDArray[np.int64]
    stream: NDArray[np.int64]
    role: NDArray[np.int64]
    unit: NDArray[np.int64]

    @classmethod
    def of_keys(cls, keys: NDArray[np.int64]) -> Queues:
        return cls(keys >> 44, (keys >> 28 & 0xFFFF) - 1, keys & 0xF, keys >> 4 & 0xFFFFFF)
