"""Small runs on real machines."""

from __future__ import annotations

import numpy as np

import kernbench.topology
from kernbench.policy.bind import Binder
from kernbench.sim_engine.engine import GraphEngine
from kernbench.sim_engine.oplog import (
    Access,
    Collective,
    Copy,
    EventRecord,
    HostSync,
    KernelRecord,
    Launch,
    Loop,
    OpKind,
    ProgramBlock,
    Row,
    Transfer,
)

LINES = [("kernel.py", 10), ("kernel.py", 11), ("kernel.py", 12), ("kernel.py", 13), ("kernel.py", 14)]


def kernel(programs: int, trips: int, nbytes: int, name: str = "kernel") -> KernelRecord:
    """Each program reads ``trips`` pieces, multiplies each, and writes one back: every kind of PE work."""
    base = (256 + np.arange(programs) * nbytes * 3).astype(np.int64)
    rows = [
        Row(OpKind.READ, 0, loop=0, access=Access(base, (4, nbytes // 4), (4096, 1), base_step=nbytes)),
        Row(OpKind.GEMM, 1, deps=(0,), loop=0, shape=(32, 32, 32), dtype="f16"),
        Row(OpKind.VECTOR, 2, deps=(1,), elements=1024, op="exp"),
        Row(OpKind.VECTOR, 4, deps=(2,), elements=1024, op="add"),
        Row(OpKind.WRITE, 3, deps=(3,), access=Access(base + (1 << 20), (nbytes,), (1,))),
    ]
    return KernelRecord(
        name, (programs, 1, 1), [ProgramBlock(np.arange(programs), rows, [Loop(np.full(programs, trips), 2)])], LINES
    )


KERNELS = [kernel(9, 5, 4096), kernel(130, 3, 512), kernel(1, 40, 32768)]


def engine(topology: str, *overrides: str, sips: int | None = None) -> GraphEngine:
    graph = kernbench.topology.load(topology, overrides=list(overrides), sips=sips)
    made = GraphEngine(graph)
    made.binder = Binder(graph)
    return made


def span(address: int, nbytes: int) -> Access:
    return Access.contiguous(address, nbytes)


def two_rank_run() -> GraphEngine:
    """Upload, a kernel and an exchange on each of two ranks, each in its own range."""
    run = engine("tiny", sips=2)
    for rank in range(2):
        up, gemm, swap = (run.log.range_id(name) for name in ("upload", "step/gemm", "step/swap"))
        run.log.add(rank, Copy("h2d", span(256, 1 << 18), 1 << 18, range_id=up))
        run.log.add(rank, Launch(kernel(16, 6, 2048, "matmul"), range_id=gemm))
        run.log.add(rank, EventRecord(1))
        send = Transfer(1 - rank, span(256, 1 << 16), span(1 << 19, 1 << 16), 1 << 16)
        run.log.add(rank, Collective("swap", ("world", 0), [send], ((1 - rank, 0),), nbytes=1 << 16, range_id=swap))
        run.log.add(rank, HostSync())
    return run
