import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_machines import hops, machine

from kernbench import topology

SHAPE = st.tuples(st.integers(1, 3), st.integers(1, 4))
FABRICS = ("ring", "fully_connected", "mesh", "torus", "switch")
MACHINES = st.builds(
    machine, SHAPE, SHAPE, st.integers(1, 6), st.sampled_from(FABRICS), st.sampled_from(["mesh", "crossbar"])
)


def ends(graph):
    """Strategy for a node that routes begin or end at."""
    sip, cube = st.integers(0, graph.n_sips - 1), st.integers(0, graph.cubes_per_sip - 1)
    return st.one_of(
        st.just("host"),
        st.builds(graph.io_node, sip),
        st.builds(graph.hbm_node, sip, cube),
        st.builds(graph.pe_node, sip, cube, st.integers(0, graph.pes_per_cube - 1)),
    )


def test_links_of_the_smallest_machine_keep_their_numbers():
    graph = topology.load("tiny", sips=2)
    pair = lambda a, b: [f"{a}->{b}", f"{b}->{a}"]  # noqa: E731
    expected = []
    for sip in ("sip0", "sip1"):
        c = f"{sip}.cube0"
        for pe, router in enumerate(("r0c0", "r0c1", "r1c0", "r1c1")):
            expected += pair(f"{c}.pe{pe}", f"{c}.{router}")
        for a, others in (("r0c0", ("r0c1", "r1c0")), ("r0c1", ("r0c0", "r1c1")), ("r1c0", ("r0c0", "r1c1"))):
            expected += [f"{c}.{a}->{c}.{b}" for b in others]
        expected += [f"{c}.r1c1->{c}.r0c1", f"{c}.r1c1->{c}.r1c0"]
        expected += pair(f"{c}.hbm", f"{c}.r0c0") + pair(f"{c}.hbm", f"{c}.r1c0")
        expected += pair(f"{c}.hub", f"{c}.r0c1") + pair(f"{c}.hub", f"{c}.r1c1") + pair(f"{c}.hbm", f"{c}.hub")
        expected += pair(f"{c}.hub", f"{sip}.io") + pair("host", f"{sip}.io")
    expected += pair("sip0.io", "sip1.io")
    assert [link.name for link in graph.links] == expected


@settings(max_examples=40, deadline=None)
@given(MACHINES)
def test_links(graph):
    names = [link.name for link in graph.links]
    assert len(set(names)) == len(names) == graph.n_links
    for i, link in enumerate(graph.links):
        assert graph.link_id(link.src, link.dst) == i
        assert topology.KINDS[graph.link_kind[i]] == link.kind
        assert link.bandwidth == graph.link_bandwidth[i] > 0
        assert link.latency_ps == graph.link_latency_ps[i] >= 0
        back = graph.links[graph.link_id(link.dst, link.src)]
        assert (back.kind, back.bandwidth) == (link.kind, link.bandwidth)
    assert graph.links[-1] == graph.links[len(names) - 1]
    assert [link.name for link in graph.links[2:5]] == names[2:5]


@settings(max_examples=120, deadline=None)
@given(MACHINES, st.data())
def test_routes(graph, data):
    src, dst = data.draw(ends(graph)), data.draw(ends(graph))
    route = graph.route(src, dst)
    if src == dst:
        assert route == ()
        return
    nodes = hops(graph, src, dst)
    assert (nodes[0], nodes[-1]) == (src, dst)
    assert len(set(route)) == len(route)
    assert len(set(nodes)) == len(nodes)
    assert not any(node == "host" or ".pe" in node or node.endswith(".hbm") for node in nodes[1:-1])
    assert graph.latency_ps(route) == graph.latency_ps(graph.route(dst, src))
    assert graph.bottleneck(route) == min(graph.links[i].bandwidth for i in route)
    assert topology.SystemGraph(graph.spec).route(src, dst) == route


@settings(max_examples=60, deadline=None)
@given(SHAPE, SHAPE, st.data())
def test_routes_inside_a_sip_are_as_long_as_the_grids_ask(cubes, pes, data):
    """Hops counted from coordinates: Manhattan distance between cubes, and along the PE's row inside one."""
    graph = machine(cubes, pes)
    spec = graph.spec.sip
    memory = data.draw(st.integers(0, graph.cubes_per_sip - 1))
    cube = data.draw(st.integers(0, graph.cubes_per_sip - 1))
    pe = data.draw(st.integers(0, graph.pes_per_cube - 1))
    row, col = divmod(pe, pes[1])
    between = abs(memory // cubes[1] - cube // cubes[1]) + abs(memory % cubes[1] - cube % cubes[1])
    routers = (col if memory == cube else pes[1] - 1 - col) + 1
    links = [graph.links[i] for i in graph.route(graph.hbm_node(0, memory), graph.pe_node(0, cube, pe))]
    assert [link.kind for link in links].count("d2d") == between
    assert [link.kind for link in links].count("noc") == routers - 1
    assert sum(link.latency_ps for link in links) == routers * spec.cube.noc.latency + between * spec.d2d.latency
    entered = [link.dst for link in links if link.kind == "port" and link.dst.rpartition(".")[2].startswith("r")]
    assert entered == [f"sip0.cube{cube}.r{row}c{0 if memory == cube else pes[1] - 1}"]


def test_the_ways_drawn_in_the_documentation():
    graph = topology.load("ahbm-4sip")
    assert hops(graph, "sip0.cube0.hbm", "sip0.cube0.pe6") == [
        "sip0.cube0.hbm", "sip0.cube0.r1c0", "sip0.cube0.r1c1", "sip0.cube0.r1c2", "sip0.cube0.pe6",
    ]  # fmt: skip
    assert hops(graph, "sip1.cube3.hbm", "sip1.cube0.pe6") == [
        "sip1.cube3.hbm", "sip1.cube3.hub", "sip1.cube2.hub", "sip1.cube0.hub",
        "sip1.cube0.r1c3", "sip1.cube0.r1c2", "sip1.cube0.pe6",
    ]  # fmt: skip
    assert hops(graph, "sip0.cube1.hbm", "sip3.cube2.hbm") == [
        "sip0.cube1.hbm", "sip0.cube1.hub", "sip0.io", "sip3.io", "sip3.cube2.hub", "sip3.cube2.hbm",
    ]  # fmt: skip
    assert hops(graph, "host", "sip2.cube1.hbm") == ["host", "sip2.io", "sip2.cube1.hub", "sip2.cube1.hbm"]
    assert hops(graph, "sip0.cube0.pe1", "sip0.cube0.pe14") == [
        "sip0.cube0.pe1", "sip0.cube0.r0c1", "sip0.cube0.r0c2", "sip0.cube0.r1c2", "sip0.cube0.r2c2",
        "sip0.cube0.r3c2", "sip0.cube0.pe14",
    ]  # fmt: skip


def test_near_and_far_memory_reach_a_pe_from_opposite_sides():
    """Only the port of the PE itself is shared, so a cube draws its own HBM and its neighbours' at the same time."""
    graph = topology.load("ahbm-1sip")
    near, far = {}, {}
    for pe in range(graph.pes_per_cube):
        near[pe] = set(graph.route("sip0.cube0.hbm", graph.pe_node(0, 0, pe)))
        far[pe] = set(graph.route("sip0.cube1.hbm", graph.pe_node(0, 0, pe)))
    shared = set().union(*near.values()) & set().union(*far.values())
    assert sorted(graph.links[i].dst for i in shared) == sorted(graph.pe_node(0, 0, pe) for pe in near)
    cube, rows = graph.spec.sip.cube, graph.spec.sip.cube.pes.rows
    entries = [graph.links[graph.link_id("sip0.cube0.hub", f"sip0.cube0.r{row}c3")] for row in range(rows)]
    assert sum(link.bandwidth for link in entries) >= 2 * graph.spec.sip.d2d.bandwidth
    assert rows * cube.hbm_port_bandwidth >= cube.hbm.bandwidth


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.sampled_from(FABRICS))
def test_between_sips_routes_are_shortest(sips, fabric):
    graph = machine(sips=sips, fabric=fabric)
    for sip in range(1, sips):
        route = graph.route(graph.io_node(0), graph.io_node(sip))
        without_host = graph.graph.subgraph(n for n in graph.graph if n.endswith(".io") or n == "switch")
        assert len(route) == networkx.shortest_path_length(without_host, graph.io_node(0), graph.io_node(sip))


def test_bandwidths_change_and_numbers_stay():
    plain = topology.load("ahbm-4sip")
    other = topology.load("ahbm-4sip", ["sip.cube.noc.bandwidth=1 TB/s", "system.fabric.latency=9 us"])
    assert [link.name for link in plain.links] == [link.name for link in other.links]
    pair = ("sip0.cube2.hbm", "sip3.cube1.hbm")
    assert plain.route(*pair) == other.route(*pair)
    assert other.latency_ps(other.route(*pair)) - plain.latency_ps(plain.route(*pair)) == 8_500_000
    wider = topology.load("ahbm-4sip", sips=7)
    assert [link.name for link in wider.links[: 4 * 410]] == [link.name for link in plain.links[: 4 * 410]]


def test_the_graph_has_every_link_once():
    graph = topology.load("ahbm-1sip", sips=3)
    drawn = graph.graph
    assert drawn.number_of_edges() == graph.n_links
    assert sorted(i for _, _, i in drawn.edges(data="id")) == list(range(graph.n_links))
    assert networkx.is_strongly_connected(drawn)


def test_a_thousand_sips_share_one_plan():
    graph = topology.load("ahbm-1sip", sips=1024)
    assert graph.n_links == 1024 * 410 + 2 * 1024
    assert len(graph.route("sip0.cube0.hbm", "sip512.cube0.hbm")) == 512 + 4
    assert graph.links[graph.n_links - 1].name == "sip1023.io->sip1022.io"
    assert np.count_nonzero(graph.link_kind == topology.KINDS.index("sip")) == 2048


def test_an_exception_changes_one_connection():
    links = [
        {"from": "sip0.io", "to": "sip1.io", "bandwidth": "5 GB/s", "latency": "9 us"},
        {"from": "sip1.io", "to": "sip2.io", "latency": "7 us", "one_way": True},
    ]
    plain, graph = machine(sips=4), machine(sips=4, links=links)
    changed = {link.name: link for link, old in zip(graph.links, plain.links, strict=True) if link != old}
    assert set(changed) == {"sip0.io->sip1.io", "sip1.io->sip0.io", "sip1.io->sip2.io"}
    assert changed["sip1.io->sip0.io"].bandwidth == 5e9
    assert changed["sip0.io->sip1.io"].latency_ps == 9_000_000
    assert (changed["sip1.io->sip2.io"].bandwidth, changed["sip1.io->sip2.io"].latency_ps) == (16e9, 7_000_000)


def test_routes_go_round_a_disabled_link_and_say_when_there_is_no_way():
    cut = {"from": "sip0.io", "to": "sip1.io", "disabled": True}
    graph = machine(sips=4, links=[cut])
    assert hops(graph, "sip0.io", "sip1.io") == ["sip0.io", "sip3.io", "sip2.io", "sip1.io"]
    assert hops(graph, "sip0.io", "sip3.io") == ["sip0.io", "sip3.io"]
    assert graph.link_id("sip0.io", "sip1.io") in graph.disabled
    assert not graph.graph.has_edge("sip0.io", "sip1.io")
    split = machine(sips=4, links=[cut, {"from": "sip2.io", "to": "sip3.io", "disabled": True, "one_way": True}])
    assert hops(split, "sip0.io", "sip1.io") == ["sip0.io", "sip3.io", "sip2.io", "sip1.io"]
    with pytest.raises(topology.NoRouteError, match=r"no route from sip1.io to sip0.io: .*sip2.io->sip3.io"):
        split.route("sip1.cube0.hbm", "sip0.cube0.pe0")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_detours_inside_a_sip_are_shortest_and_only_where_needed(data):
    plain = machine(cubes=(2, 2), pes=(3, 3), sips=2)
    inside = [link for link in plain.links if link.src.startswith("sip1.") and link.kind in ("noc", "d2d", "io")]
    broken = data.draw(st.lists(st.sampled_from(inside), unique=True, max_size=12))
    links = [{"from": link.src, "to": link.dst, "disabled": True, "one_way": True} for link in broken]
    graph = machine(cubes=(2, 2), pes=(3, 3), sips=2, links=links)
    node = st.sampled_from([n for n in plain.graph if n.startswith("sip1.") and (".pe" in n or n.endswith(".hbm"))])
    src, dst = data.draw(node), data.draw(node)
    passed = [n for n in graph.graph if n in (src, dst) or not (".pe" in n or n.endswith(".hbm") or n == "host")]
    left = graph.graph.subgraph(passed)
    if not networkx.has_path(left, src, dst):
        with pytest.raises(topology.NoRouteError):
            graph.route(src, dst)
        return
    route, old = graph.route(src, dst), plain.route(src, dst)
    assert graph.disabled.isdisjoint(route)
    if graph.disabled.isdisjoint(old):
        assert route == old
    else:
        assert len(route) == networkx.shortest_path_length(left, src, dst)
    assert machine(cubes=(2, 2), pes=(3, 3), sips=2, links=links).route(src, dst) == route


def test_other_machines_fit_the_same_schema():
    """A GPU is one cube with SMs on a crossbar; a TPU one cube with few, large arrays."""
    gpu = machine(pes=(11, 12), noc="crossbar", sips=8, fabric="switch")
    assert (gpu.pes_per_sip, gpu.cubes_per_sip) == (132, 1)
    assert hops(gpu, "sip0.cube0.hbm", "sip0.cube0.pe131") == ["sip0.cube0.hbm", "sip0.cube0.xbar", "sip0.cube0.pe131"]
    assert hops(gpu, "sip0.io", "sip5.io") == ["sip0.io", "switch", "sip5.io"]
    tpu = machine(pes=(1, 1), sips=16, fabric="torus")
    assert tpu.fabric.shape == (4, 4)
    assert hops(tpu, "sip0.io", "sip15.io") == ["sip0.io", "sip3.io", "sip15.io"]
