"""What host code asks of a GPU and a PE has no counterpart of, by compute capability."""

from __future__ import annotations

WARP = 32
REGISTERS = 65536
"""Of a multiprocessor, on every GPU of the last ten years."""
REGISTERS_A_THREAD = 32
"""Of any kernel: as many as leave such a GPU full."""
MEMORY_BUS = 4096
"""Bits; with it, host code works out the bandwidth from a memory clock."""

_KIB = 1024
_SHARED = {70: 96, 72: 96, 75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99}
"""KiB of shared memory that one block may have ("CUDA C++ Programming Guide", technical specifications per compute
capability)."""


def shared_memory(capability: int) -> int:
    """Bytes of shared memory that one block may have, on a GPU of a compute capability (90 is 9.0)."""
    known = max((c for c in _SHARED if c <= capability), default=None)
    return (48 if known is None else _SHARED[known]) * _KIB


def shared_memory_of_processor(capability: int) -> int:
    """Bytes of shared memory of a multiprocessor: each block takes 1 KiB more than it may use, from 8.0 on."""
    return shared_memory(capability) + (_KIB if capability >= 80 else 0)


def memory_clock(bandwidth: float) -> int:
    """kHz at which a bus of :data:`MEMORY_BUS` bits, with two transfers a cycle, has a bandwidth in bytes/s."""
    return round(bandwidth * 8 / (2 * MEMORY_BUS) / 1e3)
