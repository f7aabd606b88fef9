"""Which bytes the programs of a kernel read and write, from its record."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.oplog import Access, KernelRecord, OpKind, ProgramBlock, Row

Int64s = NDArray[np.int64]


def of_kernel(record: KernelRecord) -> Iterator[tuple[bool, Int64s, Int64s, tuple[str, int]]]:
    """For every DMA row of the record: whether it writes, the first byte and the end of what each program touches, and
    the kernel's source line. Strided programs are given by the range they lie in. What reaches into other ranks' memory
    is left out."""
    for block in record.blocks:
        for row in block.rows:
            if row.source is not None and row.access is not None:
                yield False, row.source, row.source + math.prod(row.access.counts), record.lines[row.line]
            if row.access is not None and row.peer is None:
                start, end = _span(block, row, row.access)
                touched = end > start
                if row.active is not None:
                    touched &= row.active
                yield row.kind != OpKind.READ, start[touched], end[touched], record.lines[row.line]


def reaches(record: KernelRecord) -> Iterator[Int64s]:
    """For every DMA row of the record, where each program's bytes end; in whose memory, it does not say."""
    for block in record.blocks:
        for row in block.rows:
            if row.source is not None and row.access is not None:
                yield row.source + math.prod(row.access.counts)
            if row.access is not None:
                yield _span(block, row, row.access)[1]


def _span(block: ProgramBlock, row: Row, access: Access) -> tuple[Int64s, Int64s]:
    if access.run_ptr is not None and access.run_addr is not None and access.run_bytes is not None:
        return _of_runs(access.run_ptr, access.run_addr, access.run_addr + access.run_bytes)
    trips = block.loops[row.loop].trips if row.loop >= 0 else np.ones(len(access.base), np.int64)
    start, end = access.base, access.base
    for t in _turns(access, trips):
        low, high = _in_iteration(access, t)
        some, none = (high > low) & (trips > 0), end <= start
        start = np.where(some, np.where(none, low, np.minimum(start, low)), start)
        end = np.where(some, np.where(none, high, np.maximum(end, high)), end)
    return start, end


def _turns(access: Access, trips: Int64s) -> Iterator[Int64s]:
    """Iterations among which the lowest and the highest byte are reached: between two of them both move evenly. They
    are the first, the last, and those about which the clip of some axis begins or ends to bite."""
    last = np.maximum(trips - 1, 0)
    yield np.zeros_like(last)
    yield last
    if access.extent is None or access.extent_step is None:
        return
    for axis, step in enumerate(access.extent_step):
        if step:
            for bound in (access.counts[axis], 1):
                at = (bound - access.extent[:, axis]) // step
                yield np.clip(at, 0, last)
                yield np.clip(at + 1, 0, last)


def _in_iteration(access: Access, t: Int64s) -> tuple[Int64s, Int64s]:
    base = access.base + t * access.base_step
    counts = np.broadcast_to(np.array(access.counts, np.int64), (len(base), len(access.counts)))
    if access.extent is not None:
        step = np.array(access.extent_step or (0,) * len(access.counts), np.int64)
        counts = np.clip(access.extent + t[:, None] * step, 0, counts)
    reach = (np.maximum(counts - 1, 0) * np.array(access.strides, np.int64)).sum(1) + 1
    return base, np.where((counts > 0).all(1), base + reach, base)


def _of_runs(ptr: Int64s, address: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """The range of each program's runs; an empty one where it has none."""
    used = ptr[1:] > ptr[:-1]
    start, stop = np.zeros(len(used), np.int64), np.zeros(len(used), np.int64)
    if used.any():
        start[used] = np.minimum.reduceat(address, ptr[:-1][used])
        stop[used] = np.maximum.reduceat(end, ptr[:-1][used])
    return start, stop
