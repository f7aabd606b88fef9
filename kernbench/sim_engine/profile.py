"""Where a kernel's time goes, by source line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernbench.sim_engine.bound import Activity
from kernbench.sim_engine.timeline import Timeline


@dataclass(frozen=True)
class LineTime:
    """What one source line of a kernel did, over all its launches and programs."""

    kernel: str
    file: str
    line: int
    ops: int
    busy_ps: int
    """Sum over ops of the time from start to finish; ops overlap, so lines add up to more than the kernel's time."""
    engine_ps: int
    """Sum of the time that its ops kept a GEMM or vector engine busy."""
    bytes: int
    flops: int


def line_profile(timeline: Timeline, kernel: str | None = None) -> list[LineTime]:
    """Every source line of every kernel (or of one), those that took longest first."""
    ops = timeline.ops
    names: dict[tuple[str, str, int], int] = {}
    lines_of: dict[int, np.ndarray] = {}
    for number, command in enumerate(timeline.commands):
        bound = command.bound
        if bound.kind == "launch" and kernel in (None, bound.name):
            lines_of[number] = np.array(
                [names.setdefault((bound.name, file, line), len(names)) for file, line in bound.lines], np.int64
            )
    if not names:
        return []
    first = np.array([c.first for c in timeline.commands])
    count = np.array([c.bound.count for c in timeline.commands])
    totals = np.zeros((len(names), 5))
    for number, lines in lines_of.items():
        part = slice(first[number], first[number] + count[number])
        mine = ops.line[part] >= 0
        at = lines[ops.line[part][mine]]
        busy = (ops.finish[part] - ops.start[part])[mine]
        columns = (np.ones_like(busy), busy, ops.duration[part][mine], ops.bytes[part][mine], ops.flops[part][mine])
        for i, column in enumerate(columns):
            totals[:, i] += np.bincount(at, column.astype(np.float64), len(names))
    made = [LineTime(*name, *(int(v) for v in totals[index])) for name, index in names.items() if totals[index, 0]]
    return sorted(made, key=lambda t: (-t.busy_ps, t.kernel, t.file, t.line))


def kernel_totals(timeline: Timeline) -> dict[str, dict[str, int]]:
    """For each kernel: launches, device time (begin to end, summed), bytes and FLOPs."""
    ops = timeline.ops
    made: dict[str, dict[str, int]] = {}
    for command in timeline.commands:
        if command.bound.kind != "launch":
            continue
        part = slice(command.first, command.first + command.bound.count)
        total = made.setdefault(command.bound.name, {"launches": 0, "time_ps": 0, "bytes": 0, "flops": 0})
        total["launches"] += 1
        total["time_ps"] += command.finish_ps - command.reached_ps
        total["bytes"] += int(ops.bytes[part].sum())
        total["flops"] += int(ops.flops[part][ops.kind[part] == Activity.GEMM].sum())
    return made
