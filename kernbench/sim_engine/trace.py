"""A timeline as a Chrome trace, which Perfetto and chrome://tracing open.

Every rank is a process with its host, its streams, its phases and its collectives; every cube is a process with a
thread for each PE's queues. What overlaps on one queue is drawn on several threads. Counters show bandwidth over time.
Each source line of a kernel has a thread of its own in its rank, with a slice per launch: when its ops ran, and their
sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapreplace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.sim_engine.bound import Activity
from kernbench.sim_engine.queues import HOST, Role
from kernbench.sim_engine.timeline import OpTable, Timeline
from kernbench.sim_engine.traffic import counters

MERGED = (
    "every op",
    "iterations of a program's loop merged by source line",
    "programs of a PE merged by source line",
    "programs of a PE merged by queue",
    "no PEs, only commands",
)
"""What one slice stands for, from the finest to the coarsest level."""
MOST_LINES = 20_000
"""Slices of source lines; a run with more launches than that allows has none."""
_KINDS = {
    Role.READ: (Activity.READ,),
    Role.WRITE: (Activity.WRITE, Activity.ATOMIC, Activity.SEND),
    Role.GEMM: (Activity.GEMM,),
    Role.VECTOR: (Activity.VECTOR,),
}
_ROLES = {Role.READ: "read", Role.WRITE: "write", Role.GEMM: "gemm", Role.VECTOR: "vector"}


@dataclass(frozen=True)
class Slices:
    """What is drawn on PEs: S slices, each of one op or of several merged ones."""

    command: NDArray[np.int64]
    rank: NDArray[np.int64]
    unit: NDArray[np.int64]
    role: NDArray[np.int64]
    line: NDArray[np.int64]
    start: NDArray[np.int64]
    finish: NDArray[np.int64]
    bytes: NDArray[np.int64]
    flops: NDArray[np.int64]
    ops: NDArray[np.int64]


def write_trace(timeline: Timeline, path: str | Path, limit: int = 100_000, bins: int = 400) -> str:
    """Write the trace and return how far ops were merged to stay within ``limit`` slices on PEs (see
    :data:`MERGED`)."""
    level, slices = _choose(timeline.ops, limit)
    with open(path, "w", encoding="utf-8") as out:
        about = {"tool": "kernbench", "digest": timeline.digest(), "merged": MERGED[level]}
        out.write(f'{{"displayTimeUnit": "ns", "otherData": {json.dumps(about)}, "traceEvents": [\n')
        events = _events(timeline, slices, bins)
        out.write(next(events))
        for event in events:
            out.write(",\n" + event)
        out.write("\n]}\n")
    return MERGED[level]


def _events(timeline: Timeline, slices: Slices | None, bins: int) -> Iterator[str]:
    threads: dict[tuple[int, int], str] = {}
    yield from _processes(timeline)
    yield from _commands(timeline, threads)
    yield from _lines(timeline, threads)
    if slices is not None:
        yield from _on_pes(timeline, slices, threads)
    for (pid, tid), name in sorted(threads.items()):
        yield _json({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
        yield _json({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}})
    if timeline.makespan_ps:
        for (rank, name), (edges, rate) in sorted(counters(timeline, bins).items()):
            for at, value in zip(edges.tolist(), [*rate.tolist(), 0.0], strict=True):
                yield (
                    f'{{"ph": "C", "name": "{name} GB/s", "pid": {_pid(timeline, rank)}, "ts": {_us(at)}, '
                    f'"args": {{"GB/s": {value / 1e9:.3f}}}}}'
                )


def _processes(timeline: Timeline) -> Iterator[str]:
    machine = timeline.machine
    for rank in sorted({command.bound.rank for command in timeline.commands}) or [0]:
        names = [f"rank {rank}", *(f"rank {rank} cube {cube}" for cube in range(machine.cubes))]
        for offset, name in enumerate(names):
            pid = _pid(timeline, rank) + offset
            yield _json({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
            yield _json({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}})


def _commands(timeline: Timeline, threads: dict[tuple[int, int], str]) -> Iterator[str]:
    """Host work, commands on their streams, phases, and the steps of collectives."""
    ops = timeline.ops
    lanes = _Lanes()
    for number, timed in enumerate(timeline.commands):
        bound, pid = timed.bound, _pid(timeline, timed.bound.rank)
        span = slice(timed.first, timed.first + bound.count)
        phase = timeline.ranges[bound.range_id]
        args: dict[str, Any] = {"phase": phase} if phase else {}
        name = bound.name if bound.kind in ("launch", "host", bound.name) else f"{bound.kind} {bound.name}"
        for op in (np.flatnonzero((ops.kind[span] == Activity.HOST) & (ops.duration[span] > 0)) + timed.first).tolist():
            threads[pid, 1] = "host"
            yield _slice(pid, 1, f"{bound.kind} {bound.name}", ops.start[op], ops.finish[op], args)
        if bound.stream == HOST or timed.finish_ps == timed.reached_ps:
            continue
        tid = 100 + bound.stream
        threads[pid, tid] = f"stream {bound.stream}"
        totals = {"bytes": int(ops.bytes[span].sum()), "flops": int(ops.flops[span].sum()), "programs": bound.programs}
        args |= {key: value for key, value in totals.items() if value}
        yield _slice(pid, tid, name, timed.reached_ps, timed.finish_ps, args)
        if phase:
            tid = 2 + lanes.take((pid, "phase"), timed.ready_ps, timed.finish_ps)
            threads[pid, tid] = "phases"
            yield _slice(pid, tid, phase, timed.ready_ps, timed.finish_ps, {})
        if bound.kind == "collective":
            yield from _steps(timeline, number, span, lanes, threads)


def _lines(timeline: Timeline, threads: dict[tuple[int, int], str]) -> Iterator[str]:
    """For each launch, its source lines: from the first op's start to the last one's finish."""
    launches = [t for t in timeline.commands if t.bound.kind == "launch"]
    if sum(len(t.bound.lines) for t in launches) > MOST_LINES:
        return
    ops, lanes = timeline.ops, _Lanes()
    places = sorted({line for timed in launches for line in timed.bound.lines})
    for timed in sorted(launches, key=lambda t: (t.reached_ps, t.first)):
        bound, pid = timed.bound, _pid(timeline, timed.bound.rank)
        span = slice(timed.first, timed.first + bound.count)
        line, start, finish = ops.line[span], ops.start[span], ops.finish[span]
        everything = int((finish - start)[line >= 0].sum()) or 1
        found = []
        for number in np.unique(line[line >= 0]).tolist():
            mine = line == number
            found.append((int(start[mine].min()), int(finish[mine].max()), number, mine))
        for first, last, number, mine in sorted(found, key=lambda f: f[:3]):
            file, at = bound.lines[number]
            kinds = sorted({int(k) for k in ops.kind[span][mine]})
            busy = int((finish - start)[mine].sum())
            args = {
                "kernel": bound.name,
                "line": f"{file}:{at}",
                "op": ", ".join(bound.ops[number, k] for k in kinds if (number, k) in bound.ops),
                "share": round(busy / everything, 4),
                "busy_us": busy / 1e6,
                "ops": int(mine.sum()),
                "bytes": int(ops.bytes[span][mine].sum()),
                "flops": int(ops.flops[span][mine].sum()),
            }
            where = places.index((file, at))
            tid = 20_000 + 32 * where + min(31, lanes.take((pid, where), first, last))
            name = f"{Path(file).name}:{at}"
            threads[pid, tid] = f"line {name}"
            yield _slice(pid, tid, f"{name} {args['op']}", first, last, {k: v for k, v in args.items() if v})


def _steps(
    timeline: Timeline, number: int, span: slice, lanes: _Lanes, threads: dict[tuple[int, int], str]
) -> Iterator[str]:
    ops, command = timeline.ops, timeline.commands[number].bound
    pid = _pid(timeline, command.rank)
    steps = np.flatnonzero(np.isin(ops.kind[span], (Activity.SEND, Activity.REDUCE))) + span.start
    for op in steps[np.argsort(ops.start[steps], kind="stable")].tolist():
        send = ops.kind[op] == Activity.SEND
        what = f"send to rank {ops.unit[op]}" if send else "reduce"
        lane = lanes.take((pid, what), int(ops.start[op]), int(ops.finish[op]))
        tid = (10_000 + 64 * int(ops.unit[op]) if send else 9_000) + lane
        threads[pid, tid] = what
        yield _slice(pid, tid, f"{command.name}: {what}", ops.start[op], ops.finish[op], {"bytes": int(ops.bytes[op])})


def _on_pes(timeline: Timeline, slices: Slices, threads: dict[tuple[int, int], str]) -> Iterator[str]:
    per_cube = timeline.machine.graph.pes_per_cube
    lanes = _Lanes()
    order = np.lexsort((slices.finish, slices.start))
    columns = [getattr(slices, name)[order].tolist() for name in Slices.__dataclass_fields__]
    labels: dict[tuple[int, int, int], tuple[str, str]] = {}
    for command, rank, unit, role, line, start, finish, nbytes, flops, count in zip(*columns, strict=True):
        key = (command, role, line)
        if key not in labels:
            labels[key] = _label(timeline, *key)
        name, args = labels[key]
        pid, pe = _pid(timeline, rank) + 1 + unit // per_cube, unit % per_cube
        lane = lanes.take((pid, pe, role), start, finish)
        tid = pe * 256 + role * 32 + lane
        threads.setdefault((pid, tid), f"pe{pe} {_ROLES[Role(role)]}")
        more = f', "bytes": {nbytes}' if nbytes else ""
        more += f', "flops": {flops}' if flops else ""
        more += f', "ops": {count}' if count > 1 else ""
        yield (
            f'{{"ph": "X", "name": {name}, "pid": {pid}, "tid": {tid}, "ts": {_us(start)}, '
            f'"dur": {_us(finish - start)}, "args": {{{args}{more}}}}}'
        )


def _label(timeline: Timeline, command: int, role: int, line: int) -> tuple[str, str]:
    """(name, first arguments) of a slice, as JSON."""
    bound = timeline.commands[command].bound
    args = f'"kernel": {json.dumps(bound.name)}'
    name = _ROLES[Role(role)]
    if 0 <= line < len(bound.lines):
        file, number = bound.lines[line]
        args += f', "line": {json.dumps(f"{file}:{number}")}'
        does = ", ".join(bound.ops[line, kind] for kind in _KINDS[Role(role)] if (line, kind) in bound.ops)
        args += f', "op": {json.dumps(does)}' if does else ""
        name += f" {Path(file).name}:{number}"
    return json.dumps(name), args


class _Lanes:
    """Spreads what overlaps over as few lanes as possible. Ask in order of start."""

    def __init__(self) -> None:
        self._free: dict[tuple, list[tuple[int, int]]] = {}

    def take(self, group: tuple, start: int, finish: int) -> int:
        """A lane of the group that is free at ``start``; it is taken up to ``finish``."""
        heap = self._free.setdefault(group, [])
        if heap and heap[0][0] <= start:
            lane = heap[0][1]
            heapreplace(heap, (finish, lane))
            return lane
        lane = len(heap)
        heap.append((finish, lane))
        at = lane
        while at and heap[at] < heap[(at - 1) // 2]:
            heap[at], heap[(at - 1) // 2] = heap[(at - 1) // 2], heap[at]
            at = (at - 1) // 2
        return lane


def _choose(ops: OpTable, limit: int) -> tuple[int, Slices | None]:
    """The finest level of merging with at most ``limit`` slices."""
    on_pe = (ops.role >= Role.READ) & (ops.role <= Role.VECTOR)
    chosen = np.flatnonzero(on_pe)
    program = np.cumsum(ops.role == Role.PROGRAM)[chosen]
    commands, rows = ops.command[chosen], ops.line[chosen]
    queue = (ops.rank[chosen].astype(np.int64) << 32) + (ops.unit[chosen].astype(np.int64) << 8) + ops.role[chosen]
    level_keys = (
        (np.arange(len(chosen)),),
        (program, queue, rows, commands),
        (queue, rows, commands),
        (queue, commands),
    )
    for level, keys in enumerate(level_keys):
        if level == 0 and len(chosen) > limit:
            continue
        order = np.lexsort(keys)
        changed = np.zeros(len(order), np.bool_)
        changed[:1] = True
        for key in keys:
            changed[1:] |= np.diff(key[order]) != 0
        first = np.flatnonzero(changed)
        if len(first) > limit:
            continue
        picked = chosen[order]
        head = picked[first]

        def total(column: NDArray, at: NDArray = first, rows: NDArray = picked) -> NDArray:
            return np.add.reduceat(column[rows].astype(np.int64), at) if len(at) else np.empty(0, np.int64)

        start = np.minimum.reduceat(ops.start[picked], first) if len(first) else np.empty(0, np.int64)
        finish = np.maximum.reduceat(ops.finish[picked], first) if len(first) else np.empty(0, np.int64)
        lines = ops.line[head] if level < 3 else np.full(len(head), -1)
        command, rank, unit, role, line = (
            column.astype(np.int64)
            for column in (ops.command[head], ops.rank[head], ops.unit[head], ops.role[head], lines)
        )
        sums = total(ops.bytes), total(ops.flops), total(np.ones_like(ops.bytes))
        return level, Slices(command, rank, unit, role, line, start, finish, *sums)
    return len(MERGED) - 1, None


def _pid(timeline: Timeline, rank: int) -> int:
    return 1 + rank * (timeline.machine.cubes + 1)


def _us(ps: int) -> str:
    """Microseconds, exactly."""
    return f"{ps // 10**6}.{ps % 10**6:06d}"


def _slice(pid: int, tid: int, name: str, start: int, finish: int, args: dict[str, Any]) -> str:
    return (
        f'{{"ph": "X", "name": {json.dumps(name)}, "pid": {pid}, "tid": {tid}, "ts": {_us(int(start))}, '
        f'"dur": {_us(int(finish) - int(start))}, "args": {json.dumps(args)}}}'
    )


def _json(event: dict[str, Any]) -> str:
    return json.dumps(event)
