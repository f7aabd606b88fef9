"""One transformer MLP block under tensor parallelism, with Llama-3.1-8B's sizes.

``down(silu(gate(x)) * up(x))``: gate and up are column-parallel, down is row-parallel and ends in an all-reduce. The
result of rank 0 is compared with numpy in float32 on the same float16 weights.
"""

from __future__ import annotations

import numpy as np

from kernbench import bench as kb
from kernbench.kernels import builtin
from kernbench.tp import ColumnParallelLinear, RowParallelLinear, initialize_model_parallel


def host_memory(ranks: int, tokens: int = 128, hidden: int = 4096, intermediate: int = 14336, data: bool = True) -> int:
    """Bytes of host memory the bench takes at its peak.

    Weights stand once in the ranks' HBM as float16; with values, also as float32 for the reference and as the cast that
    the GEMMs keep.
    """
    weights = 3 * hidden * intermediate
    activations = ranks * tokens * (3 * intermediate // ranks + 2 * hidden)
    return weights * (2 + 2 + (4 + 4) * data) + activations * 6


def make(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A float16 matrix of N(0, 1/rows), so that a product keeps its input's scale."""
    return (rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(rows))).astype(np.float16)


def bench(ctx, tokens: int = 128, hidden: int = 4096, intermediate: int = 14336, seed: int = 0):
    """Run the block on every SIP of the machine; returns the checks."""
    ranks = ctx.ahbm.device_count()
    if intermediate % ranks:
        raise ValueError(f"intermediate={intermediate} does not divide over {ranks} SIPs: choose a multiple of {ranks}")
    part = intermediate // ranks
    data: dict[str, np.ndarray] = {}
    if ctx.enable_data:
        rng = np.random.default_rng(seed)
        shapes = {"gate": (hidden, intermediate), "up": (hidden, intermediate), "down": (intermediate, hidden)}
        data = {name: make(rng, *shape) for name, shape in shapes.items()}
        data["x"] = rng.standard_normal((tokens, hidden), np.float32).astype(np.float16)
    results = {}

    def worker(rank: int) -> None:
        ctx.ahbm.set_device(rank)
        ctx.distributed.init_process_group(backend="ahbm")
        initialize_model_parallel(ranks)
        columns = slice(rank * part, (rank + 1) * part)
        with ctx.range("upload"):
            gate = ColumnParallelLinear(in_features=hidden, out_features=intermediate, torch=ctx)
            up = ColumnParallelLinear(in_features=hidden, out_features=intermediate, torch=ctx)
            down = RowParallelLinear(in_features=intermediate, out_features=hidden, torch=ctx)
            x = ctx.empty((tokens, hidden), dtype="f16", name="x")
            kb.upload(ctx, gate.weight, data["gate"][:, columns] if data else None)
            kb.upload(ctx, up.weight, data["up"][:, columns] if data else None)
            kb.upload(ctx, down.weight, data["down"][columns] if data else None)
            kb.upload(ctx, x, data.get("x"))
            ctx.ahbm.synchronize()
            ctx.distributed.barrier()
        with ctx.range("steady"):
            with ctx.range("gate_up"):
                g, u = gate.forward(x), up.forward(x)
            with ctx.range("activation"):
                h = ctx.empty(g.shape, dtype="f16", name="h")
                builtin.silu_mul(h, g, u)
            with ctx.range("down"):
                y = down.forward(h)
            ctx.ahbm.synchronize()
        if rank == 0:
            with ctx.range("download"):
                out = y.cpu()
            if ctx.enable_data:
                results["y"] = out.numpy()

    ctx.multiprocessing.spawn(worker, nprocs=ranks)
    if not ctx.enable_data:
        return []
    x, gate, up, down = (data[name].astype(np.float32) for name in ("x", "gate", "up", "down"))
    g = x @ gate
    want = (g / (1 + np.exp(-g)) * (x @ up)) @ down
    return [kb.compare("tensor-parallel MLP", results["y"], want, within=0.01)]
