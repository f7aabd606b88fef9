"""The record of kernels that only write: filling, counting, drawing random numbers.

Their values are computed on the host in one go, so no Triton runs for them; what a device would do is written down.
"""

from __future__ import annotations

import numpy as np

from kernbench.runtime_api.where import Where
from kernbench.sim_engine.oplog import Access, KernelRecord, Loop, OpKind, ProgramBlock, Row

TILE = 16 * 1024
"""Bytes that one program writes at a time."""
SHARE = 256
"""Bytes: programs' shares of a tensor are multiples of this, so that no two meet in one channel granule."""


def record(name: str, address: int, nbytes: int, itemsize: int, pes: int, where: Where, op: str = "") -> KernelRecord:
    """``nbytes`` contiguous bytes at ``address``, written by a program on each of ``pes`` PEs (fewer for few bytes).

    Args:
        op: a vector operation that makes each element first, such as ``"rand"``; none for a plain fill.
    """
    share = -(-nbytes // (pes * SHARE)) * SHARE
    start = np.arange(0, nbytes, share, dtype=np.int64)
    left = np.minimum(share, nbytes - start)
    tile = min(TILE, share)
    write = Access(address + start, (tile,), (1,), left[:, None].copy(), base_step=tile, extent_step=(-tile,))
    rows = []
    if op:
        rows.append(Row(OpKind.VECTOR, 0, loop=0, elements=tile // itemsize, op=op))
    rows.append(Row(OpKind.WRITE, 0, deps=tuple(range(len(rows))), loop=0, access=write, op="store"))
    block = ProgramBlock(np.arange(len(start), dtype=np.int64), rows, [Loop(-(-left // tile))])
    return KernelRecord(name, (len(start), 1, 1), [block], [(where.file, where.line)], tcm_bytes=tile)
