"""All-gather and matrix product, one after the other and in one kernel.

A column-parallel layer under sequence parallelism: every rank has some rows of ``a`` and some columns of ``b``, and
needs all rows of ``a`` times its columns. Unfused, ``a`` is gathered and then multiplied. Fused, one kernel sends the
rank's rows to the others and multiplies its own while theirs are on their way. Both are compared with numpy in
float32.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

import kernbench.language as kl
from kernbench import bench as kb
from kernbench.sim_engine.overlap import overlap


@triton.jit
def away(i, ranks):
    """The i-th nearest place on a ring, as steps to the right: 0, 1, -1, 2, -2 ..."""
    return tl.where(i % 2 == 1, (i + 1) // 2, ranks - i // 2) % ranks


@triton.jit
def ag_gemm(
    out_ptr,
    a_ptr,
    b_ptr,
    arrived_ptr,
    rows,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[ranks*rows, N] = a[ranks*rows, K] @ b[K, N], all row-major, where this rank starts with its ``rows`` of a.
    Each program sends its part of them to all others, the nearest first; ``arrived[shard]`` counts those parts. Tiles
    come in the order in which shards arrive."""
    rank, ranks = kl.rank(), kl.num_ranks()
    pid, programs = tl.program_id(0), tl.num_programs(0)
    size = rows.to(tl.int64) * K
    part = tl.cdiv(size, programs)
    mine = a_ptr + rank * size + pid * part
    for i in range(1, ranks):
        peer = (rank + away(i, ranks)) % ranks
        kl.copy(mine, mine, min(part, size - pid * part), peer)
        kl.signal(arrived_ptr + rank, peer, 1, "add")
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(rows, BLOCK_M) * tiles_n
    for number in range(pid, ranks * tiles, programs):
        tile = number % tiles
        shard = (rank + away(number // tiles, ranks)) % ranks
        if shard != rank:
            kl.wait(arrived_ptr + shard, programs)
        offs_m = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        offs_k = tl.arange(0, BLOCK_K)
        row = shard.to(tl.int64) * rows + offs_m[:, None]
        a_ptrs = a_ptr + row * K + offs_k[None, :]
        b_ptrs = b_ptr + offs_k[:, None] * N + offs_n[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            a = tl.load(a_ptrs, mask=(offs_m[:, None] < rows) & (offs_k[None, :] < K - k), other=0.0)
            b = tl.load(b_ptrs, mask=(offs_k[:, None] < K - k) & (offs_n[None, :] < N), other=0.0)
            acc = tl.dot(a, b, acc)
            a_ptrs += BLOCK_K
            b_ptrs += BLOCK_K * N
        tl.store(
            out_ptr + row * N + offs_n[None, :],
            acc.to(tl.float16),
            mask=(offs_m[:, None] < rows) & (offs_n[None, :] < N),
        )


def host_memory(ranks: int, m: int = 4096, n: int = 16384, k: int = 2048, data: bool = True) -> int:
    """Bytes of host memory the bench takes at its peak."""
    tensors = ranks * 2 * (3 * m * k + k * n // ranks + 2 * m * n // ranks)
    return tensors + data * (2 * tensors + 24 * m * n)  # casts to float32; results and reference in float64


def bench(ctx, m: int = 4096, n: int = 16384, k: int = 2048, seed: int = 0):
    """Run both ways on every SIP of the machine; returns the checks."""
    ranks = ctx.ahbm.device_count()
    if m % ranks or n % ranks:
        raise ValueError(f"m={m} and n={n} have to divide over {ranks} SIPs")
    rows, columns = m // ranks, n // ranks
    rng = np.random.default_rng(seed)
    a_host = (rng.standard_normal((m, k), np.float32) / np.float32(np.sqrt(k))).astype(np.float16)
    b_host = rng.standard_normal((k, n), np.float32).astype(np.float16)
    results = {}

    def worker(rank: int) -> None:
        ctx.distributed.init_process_group(backend="ahbm")
        own = slice(rank * rows, (rank + 1) * rows)
        gathered = ctx.distributed.symmetric_memory.empty(m, k, dtype="f16", name="a")
        arrived = ctx.distributed.symmetric_memory.zeros(ranks, dtype="i32", name="arrived")
        shard, whole = ctx.empty(rows, k, dtype="f16"), ctx.empty(m, k, dtype="f16")
        b, fused = ctx.empty(k, columns, dtype="f16", name="b"), ctx.empty(m, columns, dtype="f16", name="out")
        with ctx.range("upload"):
            kb.upload(ctx, gathered[own], a_host[own])
            kb.upload(ctx, shard, a_host[own])
            kb.upload(ctx, b, b_host[:, rank * columns : (rank + 1) * columns])
            kb.meet(ctx)
        with ctx.range("unfused"):
            with ctx.range("all_gather"):
                ctx.distributed.all_gather_into_tensor(whole, shard)
            with ctx.range("gemm"):
                unfused = whole @ b
        kb.meet(ctx)
        with ctx.range("fused"):
            ag_gemm[(ctx.target.pes,)](fused, gathered, b, arrived, rows, columns, k, 512, 256, 64)
        results[rank] = (unfused.cpu(), fused.cpu())

    ctx.multiprocessing.spawn(worker, nprocs=ranks)
    print(overlap(ctx.timeline(), "unfused", "fused", "unfused/gemm"))
    if not ctx.enable_data:
        return []
    want = a_host.astype(np.float32) @ b_host.astype(np.float32)
    return [
        kb.compare(name, np.hstack([results[r][i].numpy() for r in range(ranks)]), want, within=0.01)
        for i, name in enumerate(("all-gather, then GEMM", "all-gather + GEMM in one kernel"))
    ]
