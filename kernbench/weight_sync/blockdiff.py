"""Which blocks of two equally long buffers differ, at the speed at which memory can be read."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from kernbench import _native

Bytes = NDArray[np.uint8]
Runs = NDArray[np.int64]
BLOCK = 4096
_STRIDE = 64 << 10
_CAPACITY = 4096
"""Runs that one call of the compiled core may return; a longer answer takes more calls."""


def differing_runs(old: Bytes, new: Bytes, block: int = BLOCK) -> Runs:
    """int64[n, 2]: (first byte, bytes) of each run of blocks in which ``new`` differs from ``old``.

    Blocks of ``block`` bytes are counted from the first byte; the last may be short. Runs ascend, and neighbours are
    merged.

    Args:
        old, new: uint8[n], contiguous.

    Raises:
        ValueError: the lengths differ, or ``block`` is not positive.
    """
    if old.size != new.size:
        raise ValueError(f"cannot compare {old.size} bytes with {new.size}: they must be equally long")
    if block < 1:
        raise ValueError(f"the block size is {block} bytes: give at least 1")
    library = _native.library()
    return _reference(old, new, block) if library is None else _compiled(library, old, new, block)


def _compiled(library: ctypes.CDLL, old: Bytes, new: Bytes, block: int) -> Runs:
    function = library.kb_diff_blocks
    function.restype = ctypes.c_int64
    position = ctypes.c_int64(0)
    out = np.empty((_CAPACITY, 2), np.int64)
    found: list[Runs] = []
    while position.value < old.size:
        count = function(
            ctypes.c_void_p(old.ctypes.data),
            ctypes.c_void_p(new.ctypes.data),
            ctypes.c_int64(old.size),
            ctypes.c_int64(block),
            ctypes.byref(position),
            ctypes.c_void_p(out.ctypes.data),
            ctypes.c_int64(_CAPACITY),
        )
        found.append(out[:count].copy())
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _reference(old: Bytes, new: Bytes, block: int) -> Runs:
    """The same in numpy: whole strides first, single blocks only where a stride differs."""
    stride = max(_STRIDE // block, 1) * block
    dirty: list[NDArray[np.int64]] = []
    for start in range(0, old.size, stride):
        a, b = old[start : start + stride], new[start : start + stride]
        if np.array_equal(a, b):
            continue
        differs = np.logical_or.reduceat(a != b, np.arange(0, a.size, block))
        dirty.append(start // block + np.flatnonzero(differs))
    if not dirty:
        return np.empty((0, 2), np.int64)
    blocks = np.concatenate(dirty)
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    first = blocks[np.r_[0, breaks]] * block
    last = np.minimum((blocks[np.r_[breaks - 1, len(blocks) - 1]] + 1) * block, old.size)
    return np.stack([first, last - first], axis=1)
