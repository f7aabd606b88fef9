"""Simulated time against formulas: a stream, a ring all-reduce, a GEMM on machines balanced three ways."""

import numpy as np
import pytest
from policy_records import engine, matmul, ring_all_reduce, stream

from kernbench.sim_engine.oplog import Launch
from kernbench.sim_engine.usage import phases

STRIPES = {"tiny": (4, 2048), "ahbm-1sip": (64, 32768)}
"""PEs, and the bytes of one granule on every channel."""


@pytest.mark.parametrize("depth", [1, 4, 16])
@pytest.mark.parametrize(("topology", "latency"), [("tiny", "4 us"), ("ahbm-1sip", "20 us"), ("ahbm-1sip", "90 ns")])
def test_a_stream_is_bound_by_latency_or_by_bandwidth(topology, latency, depth):
    pes, nbytes = STRIPES[topology]
    run = engine(topology, f"sip.cube.pe.dma.depth={depth}", f"sip.cube.hbm.latency={latency}")
    reads = 100 * depth
    alone = run.time_alone([Launch(stream(1, 1, nbytes))])
    time = run.time_alone([Launch(stream(pes, reads, nbytes))])
    bandwidth = run.graph.cubes_per_sip * run.spec.sip.cube.hbm.bandwidth * 1e-12
    reached = pes * reads * nbytes / (time * bandwidth)
    assert reached == pytest.approx(min(1, pes * depth * nbytes / (alone * bandwidth)), rel=0.02)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("nbytes", [21 * 2**16, 21 * 2**23])
@pytest.mark.parametrize("slow", ["fabric", "vector"])
def test_ring_all_reduce(ranks, nbytes, slow):
    overrides = ["sip.cube.pe.vector.lanes=1"] if slow == "vector" else []
    run = engine("ahbm-4sip", *overrides, sips=ranks)
    for rank, part in enumerate(ring_all_reduce(ranks, nbytes)):
        run.log.add(rank, part)
    timeline = run.replay()
    time = timeline.makespan_ps - run.spec.system.host.collective

    graph, spec = run.graph, run.spec
    chunk = nbytes / ranks
    route = graph.route(graph.hbm_node(0, 0), graph.hbm_node(1, 0))
    latency = graph.latency_ps(route) + 2 * spec.sip.cube.hbm.latency
    hbm = graph.cubes_per_sip * spec.sip.cube.hbm.bandwidth * 1e-12
    vector = graph.pes_per_sip * spec.sip.cube.pe.vector.lanes * spec.sip.cube.pe.vector.clock * 1e-12
    reduce = max(chunk / 4 / vector, 3 * chunk / hbm)
    step = chunk / (spec.system.fabric.bandwidth * 1e-12) + latency
    assert time == pytest.approx(2 * (ranks - 1) * step + (ranks - 1) * reduce, rel=0.01)


GEMM_MACHINES = {
    "gemm": ["sip.cube.hbm.bandwidth=4 TB/s", "sip.cube.noc.bandwidth=1 TB/s", "sip.d2d.bandwidth=16 TB/s"],
    "hbm": ["sip.cube.noc.bandwidth=512 GB/s", "sip.d2d.bandwidth=4 TB/s"],
    "noc": ["sip.cube.hbm.bandwidth=4 TB/s", "sip.cube.noc.bandwidth=32 GB/s", "sip.d2d.bandwidth=16 TB/s"],
}


def network_bandwidth(graph):
    """Bytes/s that the network brings all PEs together when each reads evenly from every cube: up to the busiest
    link."""
    share = np.zeros(graph.n_links)
    for pe in range(graph.pes_per_sip):
        for cube in range(graph.cubes_per_sip):
            route = graph.route(graph.hbm_node(0, cube), graph.pe_node(0, *divmod(pe, graph.pes_per_cube)))
            share[list(route)] += 1 / (graph.cubes_per_sip * graph.pes_per_sip)
    return (graph.link_bandwidth[share > 0] / share[share > 0]).min()


@pytest.mark.parametrize("bound", GEMM_MACHINES)
def test_a_large_gemm_reaches_the_roof_of_its_machine(bound):
    run = engine("ahbm-1sip", *GEMM_MACHINES[bound])
    m, tile = 2048, (128, 128, 64)
    run.log.add(0, Launch(matmul(m, m, m, tile), range_id=run.log.range_id("matmul")))
    timeline = run.replay()
    time = timeline.makespan_ps - run.spec.system.host.launch

    graph, cube = run.graph, run.spec.sip.cube
    flops = 2 * m**3
    programs = (m // tile[0]) * (m // tile[1])
    moved = programs * (m // tile[2]) * 2 * tile[2] * (tile[0] + tile[1])
    intensity = flops / moved
    peak = graph.pes_per_sip * cube.pe.gemm.flops("f16")
    roofs = {
        "gemm": peak,
        "hbm": intensity * graph.cubes_per_sip * cube.hbm.bandwidth,
        "noc": intensity * network_bandwidth(graph),
    }
    assert min(roofs, key=roofs.get) == bound
    assert flops / (time * 1e-12) == pytest.approx(roofs[bound], rel=0.05)
    assert phases(timeline)[0].bound == bound
