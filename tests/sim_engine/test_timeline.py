"""What a timeline tells: digests, events, phases, loads, lines; and replaying in pieces."""

from itertools import pairwise

import pytest
from engine_runs import KERNELS, engine, kernel, span, two_rank_run

from kernbench.sim_engine.bound import Activity
from kernbench.sim_engine.engine import GraphEngine
from kernbench.sim_engine.oplog import Collective, EventRecord, HostSync, HostWork, Launch, Transfer
from kernbench.sim_engine.profile import kernel_totals, line_profile
from kernbench.sim_engine.usage import Load, binding, phases, union_length, utilisation


def test_two_runs_have_the_same_digest_and_a_change_has_another():
    digests = [two_rank_run().replay().digest() for _ in range(2)]
    assert digests[0] == digests[1]
    changed = two_rank_run()
    changed.log.add(0, HostWork("more", 1))
    assert changed.replay().digest() != digests[0]


def test_the_order_in_which_ranks_record_does_not_matter():
    run, other = two_rank_run(), engine("tiny", sips=2)
    for rank in (1, 0):
        other.log.commands[rank] = run.log.commands[rank]
    assert run.replay().digest() == other.replay().digest()


def test_an_engine_needs_a_binder():
    with pytest.raises(RuntimeError, match="binder is not set"):
        GraphEngine(engine("tiny").graph).replay()


def test_an_empty_run_has_an_empty_timeline():
    timeline = engine("tiny").replay()
    assert (timeline.count, timeline.makespan_ps, timeline.events, timeline.clamped) == (0, 0, 0, 0)
    assert phases(timeline) == [] and line_profile(timeline) == [] and timeline.ops.start.size == 0


def test_replaying_in_pieces_continues():
    whole, pieces = engine("tiny"), engine("tiny")
    for step, one in enumerate(KERNELS):
        for command in (Launch(one), EventRecord(step), HostSync()):
            whole.log.add(0, command)
            pieces.log.add(0, command)
        timeline = pieces.replay()
        assert timeline.event_ps(0, step) <= timeline.makespan_ps
    assert pieces.replay().digest() == whole.replay().digest()
    assert len(timeline.segments) == 3 and timeline.clamped == 0


def test_without_the_compiled_core_the_reference_runs(monkeypatch):
    expected = two_rank_run().replay().digest()
    monkeypatch.setattr("kernbench.sim_engine.native.available", lambda: False)
    monkeypatch.setattr("kernbench.sim_engine.native.replay", None)
    assert two_rank_run().replay().digest() == expected


def send(run, source, destination, number, nbytes=1 << 16):
    """Rank ``source`` sends, rank ``destination`` receives."""
    key = ("p2p", number)
    step = Transfer(destination, span(256, nbytes), span(256, nbytes), nbytes)
    run.log.add(source, Collective("send", key, [step], ()))
    run.log.add(destination, Collective("recv", key, [], ((source, 0),)))


def test_what_comes_too_late_is_put_behind_and_counted():
    run = engine("tiny", sips=8)
    run.log.add(0, HostWork("long", 10**9))
    send(run, 0, 1, 0)
    end = run.replay().makespan_ps
    run.log.add(3, Launch(kernel(4, 2, 1024)))
    assert run.replay().clamped == 0  # early, but on hardware of its own
    send(run, 7, 2, 1)  # around the ring over the link from 0 to 1, at a time when the replay has already been there
    late = run.replay()
    assert late.clamped > 0
    assert late.makespan_ps > end > 10**9


def test_phases_partition_a_stream_and_name_what_binds():
    found = {phase.name: phase for phase in phases(two_rank_run().replay())}
    assert list(found) == ["upload", "step/gemm", "step/swap", ""] or set(found) == {
        "upload",
        "step/gemm",
        "step/swap",
        "",
    }
    assert found["upload"].bound == "host link"
    assert found["step/swap"].bound == "sip link"
    assert found["upload"].ranks == (0, 1)
    assert found["step/gemm"].flops == 2 * 16 * 6 * 2 * 32**3
    assert found["step/gemm"].hbm_bytes == 2 * 16 * (6 * 2048 + 2048)
    order = [found[name] for name in ("upload", "step/gemm", "step/swap")]
    for before, after in pairwise(order):
        assert before.finish_ps >= after.start_ps  # nothing lies between: waiting counts for who waits
    for phase in found.values():
        for load in phase.load.values():
            assert 0 < load.mean <= load.peak <= 1 + 1e-9


def test_a_phase_of_tiny_launches_is_bound_by_launching():
    run = engine("tiny")
    for _ in range(20):
        run.log.add(0, Launch(kernel(1, 1, 64), range_id=run.log.range_id("tiny")))
    phase = phases(run.replay())[0]
    assert phase.bound == "launch" and phase.load["launch"].peak > 0.9


def test_nothing_busy_is_latency():
    assert binding({"hbm": Load(0.1, 0.4), "noc": Load(0.3, 0.3)}) == "latency"
    assert binding({"hbm": Load(0.1, 0.6), "noc": Load(0.5, 0.5)}) == "hbm"
    assert binding({}) == "latency"


def test_utilisation_of_an_interval_adds_up_to_the_whole():
    timeline = two_rank_run().replay()
    end = timeline.makespan_ps
    whole = utilisation(timeline, 0, end)
    halves = [utilisation(timeline, 0, end // 2), utilisation(timeline, end // 2, end)]
    for name in ("gemm", "hbm", "launch"):
        parts = [half[name].mean if name in half else 0.0 for half in halves]
        assert sum(parts) / 2 == pytest.approx(whole[name].mean, rel=1e-3)


def test_gemm_load_is_the_time_of_its_ops():
    timeline = two_rank_run().replay()
    ops = timeline.ops
    busy = ops.duration[ops.kind == Activity.GEMM].sum()
    machine = timeline.machine
    mean = utilisation(timeline, 0, timeline.makespan_ps)["gemm"].mean
    assert mean == pytest.approx(busy / (machine.ranks * machine.pes * timeline.makespan_ps))


def test_line_profile_and_kernel_totals():
    lines = {line.line: line for line in line_profile(two_rank_run().replay())}
    assert {number: line.ops for number, line in lines.items()} == {10: 192, 11: 192, 12: 32, 13: 32, 14: 32}
    assert lines[10].bytes == 192 * 2048 and lines[11].flops == 192 * 2 * 32**3
    assert lines[11].engine_ps > 0 and lines[10].engine_ps == 0
    totals = kernel_totals(two_rank_run().replay())["matmul"]
    assert totals["launches"] == 2 and totals["bytes"] == 2 * 16 * 7 * 2048
    assert line_profile(two_rank_run().replay(), "other") == []


def test_union_length():
    assert union_length([(0, 5), (3, 8), (10, 12), (11, 11)]) == 10
    assert union_length([]) == 0
