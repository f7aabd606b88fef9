"""Simulated memory: address spaces with their true bytes, element types, and which channel a byte lives on."""

from kernbench.memory.dtype import DType, dtype
from kernbench.memory.placement import INTERLEAVED, Axis, Placement
from kernbench.memory.space import AccessError, AddressSpace, Allocation, OutOfMemoryError

__all__ = [
    "INTERLEAVED",
    "AccessError",
    "AddressSpace",
    "Allocation",
    "Axis",
    "DType",
    "OutOfMemoryError",
    "Placement",
    "dtype",
]
