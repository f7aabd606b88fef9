"""Records of kernels and collectives, written by hand."""

from __future__ import annotations

import numpy as np

import kernbench.topology
from kernbench.policy.bind import Binder
from kernbench.sim_engine.engine import GraphEngine
from kernbench.sim_engine.oplog import (
    Access,
    Collective,
    KernelRecord,
    Loop,
    OpKind,
    ProgramBlock,
    Reduce,
    Row,
    Transfer,
)

START = 256
"""First address that is ever allocated."""


def engine(topology: str, *overrides: str, sips: int | None = None) -> GraphEngine:
    """A machine that is ready to run."""
    graph = kernbench.topology.load(topology, overrides=list(overrides), sips=sips)
    made = GraphEngine(graph)
    made.binder = Binder(graph)
    return made


def stream(pes: int, reads: int, nbytes: int) -> KernelRecord:
    """One program a PE, each reading ``reads`` times ``nbytes`` of its own memory."""
    base = (START + np.arange(pes) * reads * nbytes).astype(np.int64)
    row = Row(OpKind.READ, 0, loop=0, access=Access(base, (nbytes,), (1,), base_step=nbytes))
    loop = Loop(np.full(pes, reads))
    return KernelRecord("stream", (pes, 1, 1), [ProgramBlock(np.arange(pes), [row], [loop])], [("stream.py", 1)])


def matmul(m: int, n: int, k: int, tile: tuple[int, int, int], stages: int = 4, group: int = 8) -> KernelRecord:
    """``C = A @ B`` in f16, row-major, one program a tile of C, in Triton tutorial 03's grouped order."""
    bm, bn, bk = tile
    down, across = m // bm, n // bn
    program = np.arange(down * across)
    first = program // (group * across) * group
    height = np.minimum(down - first, group)
    row, column = first + program % (group * across) % height, program % (group * across) // height
    a, b, c = START, START + 2 * m * k, START + 2 * (m * k + k * n)
    of_a = Access(a + row * bm * k * 2, (bm, bk * 2), (k * 2, 1), base_step=bk * 2)
    of_b = Access(b + column * bn * 2, (bk, bn * 2), (n * 2, 1), base_step=bk * n * 2)
    of_c = Access(c + (row * bm * n + column * bn) * 2, (bm, bn * 2), (n * 2, 1))
    rows = [
        Row(OpKind.READ, 0, loop=0, op="load", access=of_a),
        Row(OpKind.READ, 1, loop=0, op="load", access=of_b),
        Row(OpKind.GEMM, 2, deps=(0, 1), loop=0, shape=(bm, bn, bk), dtype="f16", op="dot"),
        Row(OpKind.VECTOR, 3, deps=(2,), elements=bm * bn, op="cast"),
        Row(OpKind.WRITE, 4, deps=(3,), op="store", access=of_c),
    ]
    block = ProgramBlock(program, rows, [Loop(np.full(len(program), k // bk), stages)])
    return KernelRecord("matmul", (len(program), 1, 1), [block], [("matmul.py", line) for line in range(10, 15)])


def ring_all_reduce(ranks: int, nbytes: int, itemsize: int = 4) -> list[Collective]:
    """Each rank's part, for N dividing the elements: reduce-scatter into scratch memory behind the data, all-gather."""
    chunk = nbytes // ranks
    data, scratch = START, START + nbytes
    parts = []
    for rank in range(ranks):
        left, right = (rank - 1) % ranks, (rank + 1) % ranks
        steps: list[Transfer | Reduce] = []
        for k in range(ranks - 1):  # step 2k sends, step 2k + 1 adds what the left neighbour sent
            out, mine = data + (rank - k) % ranks * chunk, data + (rank - 1 - k) % ranks * chunk
            landing = scratch + k * chunk
            after = ((rank, 2 * k - 1),) if k else ()
            steps.append(Transfer(right, span(out, chunk), span(landing, chunk), chunk, after))
            reads = (span(landing, chunk), span(mine, chunk))
            steps.append(Reduce(reads, span(mine, chunk), chunk // itemsize, "f32", chunk, ((left, 2 * k),)))
        for k in range(ranks - 1):
            out = data + (rank + 1 - k) % ranks * chunk
            before = (left, 2 * (ranks - 1) + k - 1) if k else (rank, 2 * (ranks - 1) - 1)
            steps.append(Transfer(right, span(out, chunk), span(out, chunk), chunk, (before,)))
        done = ((left, len(steps) - 1),) if steps else ()
        parts.append(Collective("all_reduce", ("world", 0), steps, done, nbytes=nbytes))
    return parts


def span(address: int, nbytes: int) -> Access:
    return Access.contiguous(address, nbytes)
