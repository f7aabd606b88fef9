"""The Chrome trace and the run's record."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from engine_runs import kernel, two_rank_run

from kernbench.sim_engine.bound import Activity
from kernbench.sim_engine.profile import line_profile
from kernbench.sim_engine.record import SCHEMA, write_record
from kernbench.sim_engine.trace import MERGED, write_trace
from kernbench.sim_engine.traffic import counters


@pytest.fixture(scope="module")
def timeline():
    return two_rank_run().replay()


def written(timeline, tmp_path, **options):
    merged = write_trace(timeline, tmp_path / "trace.json", **options)
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"]["merged"] == merged
    return merged, trace["traceEvents"]


def test_every_op_of_a_pe_is_a_slice_with_its_work_and_line(timeline, tmp_path):
    merged, events = written(timeline, tmp_path)
    assert merged == MERGED[0]
    on_pes = [e for e in events if e["ph"] == "X" and "kernel" in e["args"] and "share" not in e["args"]]
    ops = timeline.ops
    assert len(on_pes) == (ops.kind <= Activity.VECTOR).sum()
    assert sum(e["args"].get("bytes", 0) for e in on_pes) == ops.bytes[ops.kind <= Activity.VECTOR].sum()
    assert sum(e["args"].get("flops", 0) for e in on_pes) == ops.flops.sum()
    assert {(e["args"]["line"], e["args"]["op"]) for e in on_pes} == {
        ("kernel.py:10", "read"),
        ("kernel.py:11", "gemm"),
        ("kernel.py:12", "exp"),
        ("kernel.py:13", "write"),
        ("kernel.py:14", "add"),
    }


@pytest.mark.parametrize("limit", [10**6, 1])
def test_every_source_line_has_a_thread_with_its_sums(timeline, tmp_path, limit):
    _, events = written(timeline, tmp_path, limit=limit)
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    shown = {}
    for e in events:
        if e["ph"] == "X" and "share" in e["args"]:
            line = e["args"]["line"]
            assert threads[e["pid"], e["tid"]] == f"line {line}"
            assert e["name"] == f"{line} {e['args']['op']}"
            shown.setdefault(line, []).append(e)
    profile = {f"{entry.file}:{entry.line}": entry for entry in line_profile(timeline)}
    assert set(shown) == set(profile)
    for line, slices in shown.items():
        assert len(slices) == 2  # a launch on each rank
        for key in ("ops", "bytes", "flops"):
            assert sum(e["args"].get(key, 0) for e in slices) == getattr(profile[line], key)
        assert round(sum(e["args"]["busy_us"] for e in slices) * 1e6) == profile[line].busy_ps
    assert sum(e["args"]["share"] for slices in shown.values() for e in slices) == pytest.approx(2, abs=1e-3)
    ops, launch = timeline.ops, next(c for c in timeline.commands if c.bound.kind == "launch" and c.bound.rank == 0)
    span = slice(launch.first, launch.first + launch.bound.count)
    reads = ops.line[span] == 0
    (first,) = [e for e in shown["kernel.py:10"] if e["pid"] == 1]
    assert round(first["ts"] * 1e6) == ops.start[span][reads].min()
    assert round((first["ts"] + first["dur"]) * 1e6) == ops.finish[span][reads].max()


def test_processes_and_threads_are_named(timeline, tmp_path):
    _, events = written(timeline, tmp_path)
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert set(processes.values()) == {"rank 0", "rank 0 cube 0", "rank 1", "rank 1 cube 0"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {e["pid"] for e in events} == set(processes)
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} == set(threads)
    assert {"host", "stream 0", "phases", "pe0 read", "pe3 gemm"} <= set(threads.values())
    assert any(name.startswith("send to rank") for name in threads.values())


@pytest.mark.parametrize("limit", [10**6, 150, 40])
def test_slices_of_a_thread_never_overlap_and_stay_in_time(timeline, tmp_path, limit):
    _, events = written(timeline, tmp_path, limit=limit)
    threads = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            threads[e["pid"], e["tid"]].append((round(e["ts"] * 1e6), round((e["ts"] + e["dur"]) * 1e6)))
    for spans in threads.values():
        spans.sort()
        assert all(a[1] <= b[0] + 1 for a, b in pairwise(spans))
        assert spans[0][0] >= 0 and spans[-1][1] <= timeline.makespan_ps + 1


def test_merging_keeps_the_work(timeline, tmp_path):
    ops = timeline.ops
    for limit, level in ((10**6, 0), (180, 1), (40, 2), (33, 3)):
        merged, events = written(timeline, tmp_path, limit=limit)
        on_pes = [e for e in events if e["ph"] == "X" and "kernel" in e["args"] and "share" not in e["args"]]
        assert merged == MERGED[level] and len(on_pes) <= limit
        assert sum(e["args"].get("ops", 1) for e in on_pes) == (ops.kind <= Activity.VECTOR).sum()
        assert sum(e["args"].get("flops", 0) for e in on_pes) == ops.flops.sum()
    assert written(timeline, tmp_path, limit=1)[0] == MERGED[4]


def test_counters_carry_all_bytes(timeline):
    found = counters(timeline, 50)
    edges, rate = found[0, "hbm"]
    moved = (rate * (edges[1:] - edges[:-1]) * 1e-12).sum()
    ops = timeline.ops
    mine = ops.rank == 0
    once = ops.bytes[mine & (ops.kind != Activity.SEND)].sum()
    twice = 2 * ops.bytes[mine & (ops.kind == Activity.SEND)].sum()  # read here, written there
    assert moved == pytest.approx(once + twice, rel=1e-6)
    assert {name for _, name in found if found[_, name][1].any()} >= {"hbm", "noc", "sip link", "host link"}


def test_a_record_is_the_same_on_every_run(tmp_path):
    for name in ("a", "b"):
        write_record(two_rank_run().replay(), tmp_path / name, bench="two ranks", params={"n": 2})
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    record = json.loads(text)
    assert record["schema"] == SCHEMA and record["bench"] == "two ranks"
    assert record["timeline"]["held_back"] == 0
    assert next(p["name"] for p in record["phases"]) == "upload"
    assert record["machine"]["spec"]["sip"]["cube"]["hbm"]["bandwidth"] == 100e9
    assert len(record["commands"]) == 10
    assert "seconds" not in text


def test_a_kernel_alone_needs_no_ranges(tmp_path):
    from engine_runs import engine

    from kernbench.sim_engine.oplog import Launch

    run = engine("tiny")
    run.log.add(0, Launch(kernel(3, 2, 256)))
    _, events = written(run.replay(), tmp_path)
    assert any(e["name"] == "kernel" and e["ph"] == "X" for e in events)
