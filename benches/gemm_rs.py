"""Matrix product and reduce-scatter, one after the other and in one kernel.

A row-parallel layer under sequence parallelism: every rank has some columns of ``a`` and some rows of ``b``; the sum of
their products is wanted, each rank's own rows of it. Unfused, the product is computed and then reduced and scattered.
Fused, one kernel computes the rows of the farthest rank first and its own last, sends each tile to the rank that owns
it as soon as it is done, and adds up what has come from the others. Both are compared with numpy in float32.
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
def gemm_rs(
    out_ptr,
    parts_ptr,
    arrived_ptr,
    a_ptr,
    b_ptr,
    rows,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[rows, N] = this rank's rows of the sum over ranks of a[ranks*rows, K] @ b[K, N], all row-major. ``parts[r]``
    takes rank r's share of it, ``arrived[t]`` counts the shares of tile t that have come."""
    rank, ranks = kl.rank(), kl.num_ranks()
    pid, programs = tl.program_id(0), tl.num_programs(0)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(rows, BLOCK_M) * tiles_n
    for number in range(pid, ranks * tiles, programs):
        tile = number % tiles
        owner = (rank + away(ranks - 1 - number // tiles, ranks)) % ranks
        offs_m = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        offs_k = tl.arange(0, BLOCK_K)
        a_ptrs = a_ptr + (owner.to(tl.int64) * rows + offs_m[:, None]) * K + offs_k[None, :]
        b_ptrs = b_ptr + offs_k[:, None] * N + offs_n[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            a = tl.load(a_ptrs, mask=(offs_m[:, None] < rows) & (offs_k[None, :] < K - k), other=0.0)
            b = tl.load(b_ptrs, mask=(offs_k[:, None] < K - k) & (offs_n[None, :] < N), other=0.0)
            acc = tl.dot(a, b, acc)
            a_ptrs += BLOCK_K
            b_ptrs += BLOCK_K * N
        where = offs_m[:, None] * N + offs_n[None, :]
        inside = (offs_m[:, None] < rows) & (offs_n[None, :] < N)
        size = rows.to(tl.int64) * N
        if owner != rank:
            kl.put(parts_ptr + rank * size + where, acc.to(tl.float16), owner, mask=inside)
            kl.signal(arrived_ptr + tile, owner, 1, "add")
        else:
            kl.wait(arrived_ptr + tile, ranks - 1)
            for i in range(1, ranks):
                part = parts_ptr + (rank + i) % ranks * size
                acc += tl.load(part + where, mask=inside, other=0.0).to(tl.float32)
            tl.store(out_ptr + where, acc.to(tl.float16), mask=inside)


TILE = (512, 256, 64)


def host_memory(ranks: int, m: int = 4096, n: int = 4096, k: int = 8192, data: bool = True) -> int:
    """Bytes of host memory the bench takes at its peak."""
    tensors = ranks * 2 * (2 * m * n + k * (m + n) // ranks)
    return tensors + data * (2 * tensors + 24 * m * n)  # casts to float32; results and reference in float64


def bench(ctx, m: int = 4096, n: int = 4096, k: int = 8192, seed: int = 0):
    """Run both ways on every SIP of the machine; returns the checks."""
    ranks = ctx.ahbm.device_count()
    if m % ranks or k % ranks:
        raise ValueError(f"m={m} and k={k} have to divide over {ranks} SIPs")
    rows, depth = m // ranks, k // ranks
    rng = np.random.default_rng(seed)
    a_host = (rng.standard_normal((m, k), np.float32) / np.float32(np.sqrt(k))).astype(np.float16)
    b_host = rng.standard_normal((k, n), np.float32).astype(np.float16)
    results = {}

    def worker(rank: int) -> None:
        ctx.distributed.init_process_group(backend="ahbm")
        tiles = -(-rows // TILE[0]) * -(-n // TILE[1])
        parts = ctx.distributed.symmetric_memory.empty(ranks, rows, n, dtype="f16", name="parts")
        arrived = ctx.distributed.symmetric_memory.zeros(tiles, dtype="i32", name="arrived")
        a, b = ctx.empty(m, depth, dtype="f16", name="a"), ctx.empty(depth, n, dtype="f16", name="b")
        unfused, fused = ctx.empty(rows, n, dtype="f16"), ctx.empty(rows, n, dtype="f16", name="out")
        with ctx.range("upload"):
            mine = slice(rank * depth, (rank + 1) * depth)
            kb.upload(ctx, a, a_host[:, mine])
            kb.upload(ctx, b, b_host[mine])
            kb.meet(ctx)
        with ctx.range("unfused"):
            with ctx.range("gemm"):
                product = a @ b
            with ctx.range("reduce_scatter"):
                ctx.distributed.reduce_scatter_tensor(unfused, product)
        kb.meet(ctx)
        with ctx.range("fused"):
            gemm_rs[(ctx.target.pes,)](fused, parts, arrived, a, b, rows, n, depth, *TILE)
        kb.meet(ctx)
        results[rank] = (unfused.cpu(), fused.cpu())

    ctx.multiprocessing.spawn(worker, nprocs=ranks)
    print(overlap(ctx.timeline(), "unfused", "fused", "unfused/gemm"))
    if not ctx.enable_data:
        return []
    want = a_host.astype(np.float32) @ b_host.astype(np.float32)
    return [
        kb.compare(name, np.vstack([results[r][i].numpy() for r in range(ranks)]), want, within=0.01)
        for i, name in enumerate(("GEMM, then reduce-scatter", "GEMM + reduce-scatter in one kernel"))
    ]
