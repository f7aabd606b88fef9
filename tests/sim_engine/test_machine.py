"""Links, paths and collapsed hops of real machines."""

import numpy as np
import pytest
from engine_runs import KERNELS, engine

import kernbench.topology
from kernbench.policy.bind import Binder
from kernbench.sim_engine.engine import replay
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.oplog import Launch, OpLog
from kernbench.sim_engine.state import ResourceState


def latency_of(machine, path, slot):
    paths = machine.paths
    route = paths.slot_route.view[paths.first_slot.view[path] + slot]
    hops = slice(*paths.hop_ptr.view[route : route + 2])
    return int(paths.hop_latency.view[hops].sum()), int(paths.request.view[route])


@pytest.mark.parametrize("topology", ["tiny", "ahbm-1sip"])
def test_collapsing_hops_changes_no_time(topology):
    graph = kernbench.topology.load(topology)
    fewer = []
    for kernel in KERNELS:
        log = OpLog.empty(1)
        log.add(0, Launch(kernel))
        found = []
        for collapse in (True, False):
            binder = Binder(graph, Machine(graph, collapse))
            found.append(replay(binder.bind(log), binder.machine, ResourceState.idle(binder.machine)))
        np.testing.assert_array_equal(found[0].start, found[1].start)
        np.testing.assert_array_equal(found[0].finish, found[1].finish)
        fewer.append(found[0].events < found[1].events)
    assert any(fewer) == (topology == "tiny")  # the larger cube has no link that only one other feeds


def test_collapsed_hops_keep_their_latency():
    graph = kernbench.topology.load("ahbm-1sip")
    machine, whole = Machine(graph), Machine(graph, collapse=False)
    for pe in (0, 3, 37, 63):
        reading, writing = (m.pe_paths(0) for m in (machine, whole))
        for cube in range(4):
            there = graph.route(graph.hbm_node(0, cube), graph.pe_node(0, *divmod(pe, 16)))
            back = graph.route(graph.pe_node(0, *divmod(pe, 16)), graph.hbm_node(0, cube))
            expected = graph.latency_ps(there), graph.latency_ps(back)
            assert latency_of(machine, reading[0][pe], cube) == latency_of(whole, writing[0][pe], cube) == expected
            assert latency_of(machine, reading[1][pe], cube) == (graph.latency_ps(back), 0)


def test_a_slower_link_behind_its_feeder_stays_contended():
    degraded = "links=[{from: sip0.cube0.r0c0, to: sip0.cube0.r0c1, bandwidth: 1 GB/s}]"
    run = engine("tiny")
    slow = engine("tiny", degraded)
    times = [e.time_alone([Launch(KERNELS[0])]) for e in (run, slow)]
    assert times[1] > 2 * times[0]


def test_paths_between_sips_use_both_memories():
    machine = Machine(kernbench.topology.load("tiny", sips=3))
    path = machine.exchange_path(2, 0)
    assert machine.exchange_path(2, 0) == path
    assert machine.paths.source_channel.view[path] == 2 * machine.channels_per_sip
    assert machine.paths.destination_channel.view[path] == 0
    assert machine.paths.access.view[path] == machine.access_ps
    local = machine.local_path(1)
    assert machine.paths.access.view[local] == 0
