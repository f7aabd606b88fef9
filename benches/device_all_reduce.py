"""A ring all-reduce written as a Triton kernel, against ``ctx.distributed.all_reduce``.

Chunks go once round the ring and are added up on the way, then once more to tell everybody the sum. The host starts one
kernel; what the ranks say to each other, they say inside it, block by block. Both results are compared with numpy.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

import kernbench.language as kl
from kernbench import bench as kb
from kernbench.sim_engine.overlap import span_ps


@triton.jit
def ring_all_reduce(x_ptr, inbox_ptr, flag_ptr, chunk, BLOCK: tl.constexpr):
    """Sum ``x`` [ranks*chunk] over all ranks, in place. ``inbox`` [(ranks-1)*chunk] takes what the left neighbour sends
    to be added; ``flag[p]`` counts the blocks that its program p has sent to this rank's."""
    rank, ranks = kl.rank(), kl.num_ranks()
    pid, programs = tl.program_id(0), tl.num_programs(0)
    right = (rank + 1) % ranks
    come = 0
    for step in range(ranks - 1):
        part = (rank - step + ranks) % ranks
        for at in range(pid * BLOCK, chunk, programs * BLOCK):
            i = at + tl.arange(0, BLOCK)
            value = tl.load(x_ptr + part * chunk + i, mask=i < chunk)
            if step > 0:
                come += 1
                kl.wait(flag_ptr + pid, come)
                value += tl.load(inbox_ptr + (step - 1) * chunk + i, mask=i < chunk)
            kl.put_signal(inbox_ptr + step * chunk + i, value, flag_ptr + pid, right, 1, "add", mask=i < chunk)
    part = (rank + 1) % ranks
    for at in range(pid * BLOCK, chunk, programs * BLOCK):
        i = at + tl.arange(0, BLOCK)
        value = tl.load(x_ptr + part * chunk + i, mask=i < chunk)
        if ranks > 1:
            come += 1
            kl.wait(flag_ptr + pid, come)
            value += tl.load(inbox_ptr + (ranks - 2) * chunk + i, mask=i < chunk)
            kl.put_signal(x_ptr + part * chunk + i, value, flag_ptr + pid, right, 1, "add", mask=i < chunk)
        tl.store(x_ptr + part * chunk + i, value, mask=i < chunk)
    for step in range(ranks - 1):
        part = (rank - step + ranks) % ranks
        for at in range(pid * BLOCK, chunk, programs * BLOCK):
            i = at + tl.arange(0, BLOCK)
            come += 1
            kl.wait(flag_ptr + pid, come)
            if step < ranks - 2:
                value = tl.load(x_ptr + part * chunk + i, mask=i < chunk)
                kl.put_signal(x_ptr + part * chunk + i, value, flag_ptr + pid, right, 1, "add", mask=i < chunk)


def bench(ctx, elements: int = 4 << 20, programs: int = 64, block: int = 8192, seed: int = 0):
    """All-reduce ``elements`` f32 on every SIP of the machine, both ways; returns the checks."""
    ranks = ctx.ahbm.device_count()
    chunk = -(-elements // ranks)
    rng = np.random.default_rng(seed)
    host = rng.standard_normal((ranks, ranks * chunk), np.float32)
    results = {}

    def worker(rank: int) -> None:
        ctx.distributed.init_process_group(backend="ahbm")
        memory = ctx.distributed.symmetric_memory
        x = memory.empty(ranks * chunk, dtype="f32", name="x")
        inbox = memory.empty(max(ranks - 1, 1) * chunk, dtype="f32", name="inbox")
        flag = memory.zeros(programs, dtype="i32", name="flag")
        y = ctx.empty(ranks * chunk, dtype="f32", name="y")
        with ctx.range("upload"):
            kb.upload(ctx, x, host[rank])
            kb.upload(ctx, y, host[rank])
        kb.meet(ctx)
        with ctx.range("collective"):
            ctx.distributed.all_reduce(y)
        kb.meet(ctx)
        with ctx.range("kernel"):
            ring_all_reduce[(programs,)](x, inbox, flag, chunk, block)
        kb.meet(ctx)
        results[rank] = (y.cpu(), x.cpu())

    ctx.multiprocessing.spawn(worker, nprocs=ranks)
    timeline = ctx.timeline()
    collective, kernel = span_ps(timeline, "collective") * 1e-6, span_ps(timeline, "kernel") * 1e-6
    print(
        f"all-reduce of {4 * ranks * chunk / 2**20:.1f} MiB: {collective:.2f} us as a collective, {kernel:.2f} us in "
        f"a kernel ({collective / kernel:.2f}x faster)"
    )
    if not ctx.enable_data:
        return []
    want = np.tile(host.astype(np.float64).sum(0), (ranks, 1))
    return [
        kb.compare(name, np.stack([results[r][i].numpy() for r in range(ranks)]), want, within=1e-5)
        for i, name in enumerate(("ctx.distributed.all_reduce", "ring all-reduce in a kernel"))
    ]
