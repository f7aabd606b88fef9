"""Which hash of address to channel keeps a GEMM's memory balanced, and what it costs to replay.

Runs the tutorial's matrix multiplication (4096^3 in float16, tiles 128 x 128 x 64) timing-only on one AHBM SIP, once
for each hash, and on matrices whose rows are padded by one granule. Prints how long binding and replay take, how many
events there are, and how evenly the channels are used. Needs Triton.
"""

from __future__ import annotations

import time

import tutorial_kernels
from rich.console import Console
from rich.table import Table

from kernbench.runtime_api.context import RuntimeContext
from kernbench.sim_engine.usage import phases

SIZE = 4096
GRANULE = 256


def measure(hash_name: str, padding: int) -> tuple[str, ...]:
    """One row of the table: a matrix row takes ``SIZE`` elements and ``padding`` bytes."""
    overrides = [f"sip.cube.hbm.interleave.hash={hash_name}"]
    with RuntimeContext.open("ahbm-1sip", overrides=overrides, enable_data=False) as ctx:
        a, b, c = (ctx.empty((SIZE, SIZE + padding // 2), dtype="f16")[:, :SIZE] for _ in range(3))
        with ctx.range("gemm"):
            tutorial_kernels.matmul(a, b, c)
        started = time.perf_counter()
        timeline = ctx.timeline()
        took = time.perf_counter() - started
    gemm = next(phase for phase in phases(timeline) if phase.name == "gemm")
    hbm = gemm.load["hbm"]
    return (
        hash_name,
        f"{padding} B",
        f"{timeline.makespan_ps / 1e6:.0f} us",
        f"{hbm.mean:.1%}",
        f"{hbm.peak:.1%}",
        f"{gemm.load['gemm'].mean:.1%}",
        f"{timeline.count:,}",
        f"{timeline.events:,}",
        f"{took * 1e3:.0f} ms",
    )


def main() -> None:
    table = Table(title=f"tutorial 03 at {SIZE}^3 on 64 PEs, 128 channels, granule {GRANULE} B")
    for column in ("hash", "row padding", "time", "HBM mean", "HBM peak", "GEMM", "ops", "events", "bind + replay"):
        table.add_column(column, justify="right")
    measure("xor", 0)  # the first launch compiles the kernel
    for hash_name in ("xor", "modulo"):
        for padding in (0, GRANULE):
            table.add_row(*measure(hash_name, padding))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
