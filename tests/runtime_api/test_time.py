"""Simulated time of what the runtime records."""

import pytest

import kernbench.topology
from kernbench.ccl import cost
from kernbench.kernels import builtin
from kernbench.policy.placement.dp import DPPolicy
from kernbench.runtime_api.context import RuntimeContext

SPEED = ["system.fabric.latency=5 us"]


def span(timeline, name):
    """(first, last) picosecond of the collectives of that name, over all ranks."""
    chosen = [c for c in timeline.commands if c.bound.name == name]
    return max(c.reached_ps for c in chosen), max(c.finish_ps for c in chosen)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("nbytes", [1 << 19, 1 << 21])
def test_ring_all_reduce_meets_its_closed_form(ranks, nbytes):
    machine = kernbench.topology.load("tiny", sips=ranks, overrides=SPEED)
    with RuntimeContext.open(machine, enable_data=False) as ctx:

        def worker(rank):
            ctx.distributed.init_process_group()
            tensor = ctx.zeros(nbytes // 2)
            ctx.distributed.all_reduce(tensor)

        ctx.multiprocessing.spawn(worker, nprocs=ranks)
        start, end = span(ctx.timeline(), "all_reduce")
    cube, vector = machine.spec.sip.cube, machine.spec.sip.cube.pe.vector
    chunk = nbytes / ranks
    reduce = cost.reduce_time(
        chunk,
        chunk / 2,
        hbm=machine.cubes_per_sip * cube.hbm.bandwidth,
        vector=machine.pes_per_sip * vector.lanes * vector.clock / vector.cycles["default"],
    )
    latency = route_latency(machine)
    want = cost.ring_all_reduce(ranks, nbytes, machine.spec.system.fabric.bandwidth, latency, reduce)
    assert (end - start) * 1e-12 == pytest.approx(want, rel=0.01)


def route_latency(machine):
    """Seconds from the memory of one SIP to its neighbour's, an access of both included."""
    hops = machine.route(machine.hbm_node(0, 0), machine.hbm_node(1, 0))
    return (sum(machine.links[link].latency_ps for link in hops) + 2 * machine.spec.sip.cube.hbm.latency) * 1e-12


def test_a_time_in_the_middle_is_the_time_at_the_end(run):
    def worker(rank, ctx):
        begin, end = ctx.ahbm.Event(enable_timing=True), ctx.ahbm.Event(enable_timing=True)
        begin.record()
        ctx.zeros(10_000)
        ctx.distributed.all_reduce(ctx.ones(1000))
        end.record()
        early = begin.elapsed_time(end)
        ctx.distributed.all_reduce(ctx.ones(1000))
        return early, begin.elapsed_time(end)

    ctx = run(3, worker)
    for early, late in ctx.results:
        assert early == late > 0
    assert ctx.engine.replay().clamped == 0


def test_phases_are_recorded_and_told(run):
    told = []

    def worker(rank, ctx):
        if rank == 0:
            ctx.on_range = told.append
        with ctx.range("outer"):
            ctx.zeros(4)
            with ctx.range("inner"):
                ctx.zeros(4)
        ctx.zeros(4)

    log = run(2, worker).engine.log
    paths = [[log.ranges[c.range_id] for c in commands if type(c).__name__ == "Launch"] for commands in log.commands]
    assert paths == [["outer", "outer/inner", ""]] * 2
    assert told[:4] == ["outer", "outer/inner", "outer", ""]


def test_do_bench_leaves_no_trace(ctx):
    a, out = ctx.ones((64, 64)), ctx.empty((64, 64))
    before = len(ctx.engine.log.commands[0])
    milliseconds = ctx.benchmark(lambda: builtin.matmul(out, a, a))
    assert milliseconds > 0
    assert ctx.benchmark(lambda: builtin.matmul(out, a, a)) == milliseconds
    assert len(ctx.engine.log.commands[0]) == before


def test_larger_copies_take_longer(ctx):
    def upload(count):
        begin, end = ctx.ahbm.Event(enable_timing=True), ctx.ahbm.Event(enable_timing=True)
        target, source = ctx.empty(count), ctx.host_empty(count)
        begin.record()
        target.copy_(source)
        end.record()
        return begin.elapsed_time(end)

    small, large = upload(1 << 10), upload(1 << 22)
    link = ctx.spec.system.host.link
    assert large - small == pytest.approx(2 * ((1 << 22) - (1 << 10)) / link.bandwidth * 1e3, rel=0.02)


def test_placement_changes_time_and_no_value():
    times, values = set(), []
    for policy in (
        None,
        DPPolicy(cube="row_wise", num_cubes=1, pe="row_wise", num_pes=2),
        DPPolicy(pe="replicate", num_pes=2),
    ):
        with RuntimeContext.open("tiny") as ctx:
            tensor = ctx.zeros((256, 256), dp=policy)
            tensor.copy_(ctx.full((256, 256), 3.0))
            out = tensor + 1
            values.append(out.numpy().tobytes())
            times.add(ctx.timeline().makespan_ps)
    assert len(set(values)) == 1
    assert len(times) == 3
