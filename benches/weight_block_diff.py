"""Block diff against memcmp over the same bytes and against a Python loop of 4 KB slices: both ratios in one run.

``python benches/weight_block_diff.py [MiB]`` compares weights in memory with a mapped file, as a sync does, once equal
and once with 1 % of the blocks changed; memcmp stops at the first difference, so its side always reads the equal ones.
Everything is in the page cache, far more than the processor's caches. The simple loop slices both sides as buffers,
without a copy; loops over slices of numpy arrays and of byte strings, which cost the interpreter less, are printed
beside it. Exits with 1 where a target is missed.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernbench.weight_sync.blockdiff import BLOCK, differing_runs

MEMCMP_TARGET = 0.9
LOOP_TARGET = 15.0


def weights(size: int, dirty: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(some bytes, a copy with one byte changed in a fraction ``dirty`` of the blocks)."""
    rng = np.random.default_rng(0)
    old = rng.integers(0, 256, size, np.uint8)
    new = old.copy()
    chosen = rng.choice(size // BLOCK, int(dirty * (size // BLOCK)), replace=False)
    new[chosen * BLOCK + rng.integers(0, BLOCK, len(chosen))] ^= 1
    return old, new


def buffer_loop(old: mmap.mmap, new: NDArray[np.uint8]) -> int:
    """Changed bytes, block by block: slices of two buffers."""
    a, b = memoryview(old), memoryview(new)  # type: ignore[arg-type]
    changed = 0
    for start in range(0, len(b), BLOCK):
        block = b[start : start + BLOCK]
        if a[start : start + BLOCK] != block:
            changed += len(block)
    return changed


def array_loop(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> int:
    """The same with slices of arrays."""
    changed = 0
    for start in range(0, len(old), BLOCK):
        block = new[start : start + BLOCK]
        if not np.array_equal(old[start : start + BLOCK], block):
            changed += len(block)
    return changed


def copying_loop(old: mmap.mmap, new: NDArray[np.uint8]) -> int:
    """The same with slices that are byte strings."""
    data = new.tobytes()
    changed = 0
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        if old[start : start + BLOCK] != block:
            changed += len(block)
    return changed


def best(*functions: Callable[[], object], repeats: int = 7) -> list[float]:
    """The fastest of some runs of each, in seconds; taken in turn, so that a busy moment hits all of them."""
    seconds = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def main() -> int:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 512) << 20
    same, new = weights(size, 0.01)
    memcmp = ctypes.CDLL(None).memcmp
    with tempfile.TemporaryFile() as stored:
        same.tofile(stored)
        stored.flush()
        mapping = mmap.mmap(stored.fileno(), size, access=mmap.ACCESS_READ)
        old = np.frombuffer(mapping, np.uint8)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (old, same)] + [ctypes.c_size_t(size)]
        whole, equal, dirty = best(
            lambda: memcmp(*pointers), lambda: differing_runs(old, same), lambda: differing_runs(old, new)
        )
        loop, arrays, copying = best(
            lambda: buffer_loop(mapping, new),
            lambda: array_loop(old, new),
            lambda: copying_loop(mapping, new),
            repeats=2,
        )
        changed = int(differing_runs(old, new)[:, 1].sum())
        assert changed == buffer_loop(mapping, new) == array_loop(old, new) == copying_loop(mapping, new)
    for name, seconds in (
        ("memcmp, equal", whole),
        ("block diff, equal", equal),
        ("block diff, 1 % dirty", dirty),
        ("loop of buffer slices", loop),
        ("loop of array slices", arrays),
        ("loop of byte strings", copying),
    ):
        print(f"{name:24} {seconds * 1e3:9.1f} ms {size / seconds / 1e9:7.2f} GB/s")
    print(f"block diff / memcmp      {whole / equal:.2f} equal, {whole / dirty:.2f} dirty (target {MEMCMP_TARGET})")
    print(
        f"block diff / loop        {loop / dirty:.1f} (target {LOOP_TARGET}); "
        f"of array slices {arrays / dirty:.1f}, of byte strings {copying / dirty:.1f}"
    )
    return 0 if min(whole / equal, whole / dirty) >= MEMCMP_TARGET and loop / dirty >= LOOP_TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
