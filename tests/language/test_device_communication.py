"""Kernels that communicate: values and simulated time."""

from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
import comm_kernels as kernels

import kernbench.topology
from kernbench import bench
from kernbench.kernels import sanitize
from kernbench.kernels.signals import Write, satisfied_by, signalled
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.memory import AddressSpace
from kernbench.runtime_api.context import RuntimeContext
from kernbench.sim_engine import native
from kernbench.sim_engine.bound import Activity
from kernbench.sim_engine.overlap import span_ps

FLOATS = [np.float16, np.float32, ml_dtypes.bfloat16]
BENCHES = Path(__file__).parents[2] / "benches"


@cache
def machine(ranks, *overrides):
    return kernbench.topology.load("tiny", sips=ranks, overrides=overrides)


@cache
def ring():
    return bench.load(BENCHES / "device_all_reduce.py").ring_all_reduce


@pytest.fixture
def device():
    with StandaloneDevice() as opened:
        yield opened


def spawn(ranks, worker, graph=None, **options):
    """The context after ``worker(ctx, rank)`` has run on every rank; what it returned is in ``results``."""
    with RuntimeContext.open(graph or machine(ranks), **options) as ctx:
        ctx.results = [None] * ranks

        def body(rank):
            ctx.distributed.init_process_group()
            ctx.results[rank] = worker(ctx, rank)

        ctx.multiprocessing.spawn(body, nprocs=ranks)
        ctx.result = ctx.timeline()
    return ctx


def all_reduce(ranks, dtype="f32", chunk=300, programs=3, ask=False, **options):
    """(what every rank has, what it had, timeline) of the all-reduce that is a kernel."""
    rng = np.random.default_rng(ranks)
    host = rng.integers(-4, 5, (ranks, ranks * chunk)).astype({"f32": "f4", "f16": "f2", "i32": "i4"}[dtype])

    def worker(ctx, rank):
        memory = ctx.distributed.symmetric_memory
        x = memory.empty(ranks * chunk, dtype=dtype)
        inbox = memory.empty(max(ranks - 1, 1), chunk, dtype=dtype)
        flag = memory.zeros(programs, dtype="i32")
        x.copy_(ctx.from_numpy(host[rank]) if ctx.enable_data else ctx.host_empty(x.shape, dtype=dtype))
        ctx.distributed.barrier()
        for _ in range(rank):
            ctx.empty(1)  # a place where ranks may be shuffled
        begin, end = ctx.ahbm.Event(enable_timing=True), ctx.ahbm.Event(enable_timing=True)
        begin.record()
        with ctx.range("ring"):
            ring()[(programs,)](x, inbox, flag, chunk, 128)
        end.record()
        if ask and rank == 1:
            ctx.elapsed = begin.elapsed_time(end)  # while others are anywhere
        out = x.cpu()
        return out.numpy() if ctx.enable_data else None

    ctx = spawn(ranks, worker, **options)
    return ctx.results, host, ctx


@pytest.mark.parametrize("dtype", ["f32", "f16", "i32"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_ring_all_reduce(ranks, dtype):
    results, host, ctx = all_reduce(ranks, dtype)
    for got in results:
        np.testing.assert_array_equal(got, host.sum(0, dtype=host.dtype))  # whole numbers: exact in any order
    assert ctx.result.clamped == ctx.result.held_back == 0


def test_one_timeline_however_it_is_run(monkeypatch):
    _, _, first = all_reduce(3)
    assert all_reduce(3, enable_data=False)[2].result.digest() == first.result.digest()
    for seed in range(8):
        assert all_reduce(3, shuffle=seed)[2].result.digest() == first.result.digest()
    monkeypatch.setattr(native, "available", lambda: False)
    assert all_reduce(3)[2].result.digest() == first.result.digest()


def test_checks_change_nothing():
    _, _, first = all_reduce(3)
    with sanitize.enabled():
        results, host, checked = all_reduce(3)
    assert checked.result.digest() == first.result.digest()
    np.testing.assert_array_equal(results[1], host.sum(0))


def test_asking_for_times_midway_changes_nothing_that_others_see():
    runs = [all_reduce(3, ask=True, shuffle=seed)[2] for seed in (None, 1, 2, 3)]
    assert len({(run.elapsed, run.result.digest()) for run in runs}) == 1
    assert runs[0].elapsed * 1e9 == pytest.approx(span_ps(runs[0].result, "ring"), rel=0.2)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("n", [1 << 14, 1 << 20])
def test_time_of_copies_round_a_ring(ranks, n):
    """Each step takes its bytes through the narrowest link, the latency of the way, and the last poll of the flag."""
    graph, steps = machine(ranks), 3

    def worker(ctx, rank):
        memory = ctx.distributed.symmetric_memory
        x, flag = memory.empty(steps + 1, n, dtype="i8"), memory.zeros(steps, dtype="i32")
        x[0].fill_(rank)
        ctx.ahbm.synchronize()
        ctx.distributed.barrier()
        ctx.ahbm.synchronize()
        with ctx.range("ring"):
            kernels.pass_on[(1,)](x, flag, n, STEPS=steps)
        ctx.ahbm.synchronize()
        return x[steps].numpy()

    ctx = spawn(ranks, worker)
    for rank, got in enumerate(ctx.results):
        assert set(got.tolist()) == {(rank - steps) % ranks}
    (launch,) = [c for c in ctx.result.commands if c.bound.name == "pass_on" and c.bound.rank == 0]
    time = launch.finish_ps - launch.reached_ps
    hbm = [graph.hbm_node(r, 0) for r in (0, 1)]
    access, pe = graph.spec.sip.cube.hbm.latency, graph.pe_node(0, 0, 0)
    route = graph.route(*hbm)
    step = n / (graph.bottleneck(route) * 1e-12) + graph.latency_ps(route) + 2 * access
    poll = graph.latency_ps(graph.route(pe, hbm[0])) + graph.latency_ps(graph.route(hbm[0], pe)) + access
    least = steps * (step + poll)
    busy = n / (graph.spec.sip.cube.hbm.bandwidth * 1e-12)  # channels that a poll may find taken by another copy
    skew = (ranks - 2) * graph.latency_ps(route)  # ranks leave the barrier before one after the other
    assert 0.99 * least <= time <= 1.01 * least + (ranks > 2) * (steps * busy + skew)


def test_identities():
    def worker(ctx, rank):
        out = ctx.zeros(7, 5, dtype="i32")
        kernels.identities[(7,)](out)
        return out.numpy()

    for rank, got in enumerate(spawn(2, worker).results):
        assert got.tolist() == [[rank, 2, p % 4, 4, p] for p in range(7)]  # four PEs


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i64"])
def test_messages_between_programs(device, dtype):
    x = device.array(np.arange(6 * 32), dtype)
    out = device.empty((6 * 32,), dtype)
    kernels.rotate[(6,)](out, x, 32, 4)
    np.testing.assert_array_equal(out.numpy().reshape(6, 32), np.roll(x.numpy().reshape(6, 32), 4, 0))


def test_messages_and_barriers_between_ranks():
    def worker(ctx, rank):
        x, out = ctx.full((4, 16), rank, dtype="f32"), ctx.zeros(4, 16, dtype="f32")
        kernels.message_to_next_rank[(4,)](out, x, 16)
        scratch, back = ctx.distributed.symmetric_memory.zeros(4, dtype="i32"), ctx.zeros(4, dtype="i32")
        ctx.distributed.barrier()
        kernels.reverse_by_barrier[(4,)](back, scratch, SCOPE="world")
        return set(out.numpy().ravel().tolist()), back.numpy().tolist()

    ctx = spawn(3, worker)
    for rank, (values, back) in enumerate(ctx.results):
        left = (rank - 1) % 3
        assert values == {left} and back == [100 * left + p for p in (3, 2, 1, 0)]


def test_what_is_measured_takes_no_turn():
    def worker(ctx, rank):
        kernels.tuned[(1,)](ctx.zeros(64, dtype="i32"), 16)  # the first rank tries out, the others take its choice
        x, out = ctx.full((4, 16), rank, dtype="f32"), ctx.zeros(4, 16, dtype="f32")
        kernels.message_to_next_rank[(4,)](out, x, 16)
        return set(out.numpy().ravel().tolist())

    assert spawn(2, worker).results == [{1.0}, {0.0}]


def test_time_of_a_message():
    """From scratchpad to scratchpad it takes the latency of the way and its bytes through the narrowest link."""
    graph, n = machine(2), 4096

    def worker(ctx, rank):
        kernels.message_to_next_rank[(1,)](ctx.zeros(n, dtype="f32"), ctx.zeros(n, dtype="f32"), n)

    timeline = spawn(2, worker).result
    route = graph.route(graph.pe_node(0, 0, 0), graph.pe_node(1, 0, 0))
    for command in (c for c in timeline.commands if c.bound.name == "message_to_next_rank"):
        ops = slice(command.first, command.first + command.bound.count)
        (send,) = command.first + np.flatnonzero(timeline.ops.kind[ops] == Activity.SEND)
        took = timeline.ops.finish[send] - timeline.ops.start[send]
        assert took == pytest.approx(graph.latency_ps(route) + 4 * n / (graph.bottleneck(route) * 1e-12), rel=0.001)


def test_nobody_leaves_a_barrier_before_the_last_has_come():
    """Rank 2 comes late by a long kernel of its own; each rank's read after the barrier starts after that."""

    def worker(ctx, rank):
        scratch, back = ctx.distributed.symmetric_memory.zeros(4, dtype="i32"), ctx.zeros(4, dtype="i32")
        ctx.distributed.barrier()
        if rank == 2:
            with ctx.range("late"):
                ctx.zeros(1 << 20, dtype="f32")
        with ctx.range("met"):
            kernels.reverse_by_barrier[(4,)](back, scratch, SCOPE="world")

    timeline = spawn(3, worker).result
    late = max(c.finish_ps for c in timeline.commands if timeline.ranges[c.bound.range_id] == "late")
    met = [c for c in timeline.commands if timeline.ranges[c.bound.range_id] == "met"]
    assert len(met) == 3 and min(c.reached_ps for c in met) < late
    for command in met:
        ops = slice(command.first, command.first + command.bound.count)
        reads = timeline.ops.kind[ops] == 0
        assert timeline.ops.start[ops][reads].min() > late


@pytest.mark.parametrize("programs", [1, 2, 33])
@pytest.mark.parametrize("kernel", ["look_ahead", "look_back"])
def test_programs_that_spin_for_earlier_and_for_later_ones(device, kernel, programs):
    out, flag = device.empty((programs,), "i32"), device.empty((programs,), "i32")
    getattr(kernels, kernel)[(programs,)](out, flag)
    want = np.arange(programs)
    want = want[::-1].cumsum()[::-1] if kernel == "look_ahead" else want.cumsum()
    assert out.numpy().tolist() == want.tolist()


def test_a_handshake_in_both_directions(device):
    ball, out = device.empty((1,), "i32"), device.empty((1,), "i32")
    kernels.ping_pong[(2,)](ball, out, 5)
    want = 0
    for i in range(10):
        want = want * 3 + i % 2 + 1
    assert out.numpy()[0] == want and ball.numpy()[0] == 10


def test_what_is_tried_in_vain_is_not_in_the_record(device):
    out, flag = device.empty((8,), "i32"), device.empty((8,), "i32")
    kernels.look_ahead[(8,)](out, flag)
    polls = [row for block in device.records[-1].blocks for row in block.rows if row.op == "load"]
    assert len(polls) < 3 * len(device.records[-1].blocks) + 1


def test_a_spin_that_counts_its_tries(device):
    flag, out = device.empty((1,), "i32"), device.empty((1,), "i32")
    kernels.impatient[(2,)](flag, out)
    assert 0 < out.numpy()[0] < 1000
    flag.zero_()
    kernels.impatient[(1,)](flag, out)
    assert out.numpy()[0] == 1000


def test_a_spin_on_nan(device):
    out, flag = device.array(np.zeros(1), "f32"), device.array(np.full(1, np.nan), "f32")
    kernels.leaves_nan[(2,)](out, flag)
    assert out.numpy() == 3


def test_a_spin_that_tells_others_something(device):
    count, go, out = (device.empty((1,), "i32") for _ in range(3))
    kernels.spin_and_tell[(2,)](count, go, out)
    assert out.numpy()[0] >= 200


def test_atomics_from_afar():
    def worker(ctx, rank):
        x = ctx.distributed.symmetric_memory.zeros(1, dtype="i32")
        ctx.distributed.barrier()
        kernels.count_everywhere[(4,)](x)
        ctx.distributed.barrier()
        return x.item()

    assert spawn(3, worker).results == [12, 12, 12]


def test_reading_from_afar():
    """Values of all ranks; and a load from another rank takes the way there and back longer."""
    graph = machine(2)

    def worker(ctx, rank):
        x, out = ctx.distributed.symmetric_memory.empty(64, dtype="f16"), ctx.empty(2, 64, dtype="f16")
        x.fill_(rank + 1)
        ctx.distributed.barrier()
        kernels.pull[(1,)](out, x, 64)
        return out.numpy()

    ctx = spawn(2, worker)
    for got in ctx.results:
        assert got[0].tolist() == [1] * 64 and got[1].tolist() == [2] * 64
    (launch,) = [c for c in ctx.result.commands if c.bound.name == "pull" and c.bound.rank == 0]
    ops = slice(launch.first, launch.first + launch.bound.count)
    reads = np.flatnonzero(ctx.result.ops.kind[ops] == 0) + launch.first
    near, far = (ctx.result.ops.finish[reads] - ctx.result.ops.start[reads]).tolist()
    pe, there = graph.pe_node(0, 0, 0), graph.hbm_node(1, 0)
    way = graph.latency_ps(graph.route(pe, there)) + graph.latency_ps(graph.route(there, pe))
    assert far >= way + graph.spec.sip.cube.hbm.latency and near < way


def test_counters_and_reset_flags(device):
    flag, out = device.empty((1,), "i32"), device.empty((6,), "i32")
    kernels.counter[(4,)](flag, out, 3)
    assert flag.numpy()[0] == 12
    flag.zero_()
    kernels.reset_flag[(2,)](flag, out, 5)
    assert out.numpy().tolist() == [4, 0, 1, 2, 3, 4]


def test_ranks_that_spin_on_flags_of_others():
    def worker(ctx, rank):
        flag, out = ctx.distributed.symmetric_memory.zeros(1, dtype="i32"), ctx.zeros(1, dtype="i32")
        kernels.one_rank_flag[(1,)](flag, out)
        return out.item()

    assert spawn(2, worker).results == [0, 1]


def test_what_a_wait_waits_for():
    """The signal from which on the condition has held, and what that one added to."""
    word = AddressSpace(1 << 20, "memory").alloc(8)

    def write(value, before, program, adds=True, launch=0):
        signalled(word, 0, Write(value, adds, (0, launch, program, 0), 0), before)

    def programs(found, *condition):
        return [(write.token[1], write.token[2]) for write in satisfied_by(word, 0, found, *condition)]

    assert programs(0, "eq", 0) == []
    for i in range(3):
        write(i + 1, i, i)
    assert programs(3, "ge", 2) == [(0, 0), (0, 1)]
    assert programs(3, "ge", 0) == []  # held before anybody signalled
    write(0, 3, 9, adds=False)
    write(1, 0, 4)
    assert programs(1, "eq", 1) == [(0, 4), (0, 9)]  # not the first time it was 1
    write(2, 1, 5, launch=1)
    assert programs(2, "eq", 2) == [(1, 5)]  # the launch before it on the same stream is over
    write(8, 7, 6)  # reset to 7 by other means
    assert programs(8, "eq", 8) == [(0, 6)]


@pytest.mark.parametrize("name", ["ag_gemm", "gemm_rs"])
def test_fused_kernels(name):
    right = bench.run(BENCHES / f"{name}.py", "ahbm-4sip", params={"m": "256", "n": "512", "k": "128"})
    assert len(right.checks) == 2 and right.passed
    shape = {"m": "4096", "n": "16384", "k": "1024"} if name == "ag_gemm" else {"m": "4096", "n": "4096", "k": "4096"}
    timed = bench.run(BENCHES / f"{name}.py", "ahbm-4sip", params=shape, enable_data=False)
    assert span_ps(timed.timeline, "unfused") > 1.15 * span_ps(timed.timeline, "fused")


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 16), st.integers(1, 70), st.booleans(), st.booleans(), st.sampled_from(FLOATS)
)
def test_products_of_what_a_launch_also_writes(m, n, k, a_by_columns, b_by_columns, dtype):
    rng = np.random.default_rng(m * n * k)
    x, y = (rng.standard_normal(shape).astype(ml_dtypes.finfo(dtype).dtype) for shape in ((m, k), (k, n)))
    room = np.zeros(3, x.dtype)
    with StandaloneDevice() as device:
        a = device.array(np.concatenate([np.ravel(x, "F" if a_by_columns else "C"), room]))
        b = device.array(np.concatenate([np.ravel(y, "F" if b_by_columns else "C"), room]))
        out = device.empty((m, n), "f32")
        sa, ka = (1, m) if a_by_columns else (k, 1)
        sb, kb = (k, 1) if b_by_columns else (1, n)
        kernels.product_beside_writes[(3,)](out, a, b, m, n, k, sa, sb, ka, kb, BLOCK=16, STEP=16)
    want = x.astype(np.float64) @ y.astype(np.float64) + 0.5
    np.testing.assert_allclose(out.numpy(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [256, 200])
def test_a_large_product_of_one_program_is_the_same_in_parts(device, m, monkeypatch):
    n, k, found = 256, 300, []
    x, y = (np.random.default_rng(m).standard_normal(shape).astype("f2") for shape in ((m, k), (k, n)))
    for rows in (64, 1 << 20):  # in parts, and whole
        monkeypatch.setattr("kernbench.kernels.panel_reads.ROWS", rows)
        a, b = (device.array(np.append(values.ravel(), np.zeros(1, "f2"))) for values in (x, y))
        out = device.empty((m, n), "f32")
        kernels.product_beside_writes[(1,)](out, a, b, m, n, k, k, 1, 1, n, BLOCK=256, STEP=64)
        found.append(out.numpy())
    np.testing.assert_allclose(found[0], x.astype("f8") @ y.astype("f8") + 0.5, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-5)
