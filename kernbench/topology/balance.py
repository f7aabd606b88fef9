"""What a machine's parts add up to, and where one part holds back another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kernbench.topology.graph import NoRouteError, SystemGraph
from kernbench.topology.problem import Problem
from kernbench.topology.sip import KINDS
from kernbench.topology.units import BANDWIDTH, format_quantity

_rate = partial(format_quantity, dimension=BANDWIDTH, digits=4)


@dataclass(frozen=True)
class Totals:
    """Sums over a machine; bandwidths in bytes/s and one way."""

    pes: int
    hbm_capacity: int
    hbm_bandwidth: float
    """Of all SIPs."""
    sip_hbm_bandwidth: float
    sip_flops: dict[str, float]
    """Peak FLOP/s of one SIP by element type."""
    reachable: float
    """Share of its HBM bandwidth that a SIP's PEs can draw together through the network."""
    noc_bisection: float
    """Of one cube; the crossbar's is half its PEs' ports."""
    d2d_bisection: float
    """Of one SIP; 0 with a single cube."""
    fabric_bisection: float
    """Of the whole machine, exceptions of ``links:`` included; 0 with a single SIP."""


def totals(graph: SystemGraph) -> Totals:
    """Work out what ``kernbench topology show`` prints below the tree."""
    spec = graph.spec
    cube = spec.sip.cube
    hbm = graph.cubes_per_sip * cube.hbm.bandwidth
    types = dict.fromkeys(["f16", "bf16", *cube.pe.gemm.rate])
    mesh, grid = cube.pes, spec.sip.cubes
    across = min(mesh.rows, mesh.cols) if mesh.count > 1 else 0
    return Totals(
        pes=graph.n_sips * graph.pes_per_sip,
        hbm_capacity=graph.n_sips * graph.cubes_per_sip * cube.hbm.capacity,
        hbm_bandwidth=graph.n_sips * hbm,
        sip_hbm_bandwidth=hbm,
        sip_flops={t: graph.pes_per_sip * cube.pe.gemm.flops(t) for t in types if t != "default"},
        reachable=reachable(graph)[0],
        noc_bisection=cube.noc.bandwidth * (across if cube.noc.kind == "mesh" else mesh.count // 2),
        d2d_bisection=spec.sip.d2d.bandwidth * min(grid.rows, grid.cols) if grid.count > 1 else 0.0,
        fabric_bisection=fabric_bisection(graph),
    )


def hbm_load(graph: SystemGraph, write: bool = False) -> NDArray[np.float64]:
    """float64[L] over the links of one SIP, in bytes/s: what each carries when the SIP's PEs together read (or write)
    at the HBM's full bandwidth, every PE the same share from every cube, as interleaved addresses make them."""
    plan = graph.plan
    share = graph.spec.sip.cube.hbm.bandwidth / graph.pes_per_sip
    load = np.zeros(len(plan.src))
    for memory in range(graph.cubes_per_sip):
        for cube in range(graph.cubes_per_sip):
            for pe in range(graph.pes_per_cube):
                ends = (f"cube{memory}.hbm", f"cube{cube}.pe{pe}")
                load[list(plan.route(*(ends[::-1] if write else ends)))] += share
    return load


def reachable(graph: SystemGraph) -> tuple[float, int]:
    """(share of a SIP's HBM bandwidth that its PEs can read together, link of the SIP that holds them back)."""
    load = hbm_load(graph)
    headroom = np.divide(graph.plan.bandwidth, load, out=np.full(len(load), np.inf), where=load > 0)
    worst = int(headroom.argmin())
    return min(1.0, float(headroom[worst])), worst


def fabric_bisection(graph: SystemGraph) -> float:
    """Bytes/s one way across the cut that halves the SIPs (:meth:`SipFabric.halves`)."""
    if graph.n_sips == 1:
        return 0.0
    near = graph.fabric.halves()
    start, end = graph.fabric.edges.T
    speed = graph.link_bandwidth[-len(start) :]
    if graph.fabric.kind == "switch":
        up, down = start < graph.n_sips, end < graph.n_sips
        return float(min(speed[up][near[start[up]]].sum(), speed[down][~near[end[down]]].sum()))
    return float(speed[near[start] & ~near[end]].sum())


def imbalances(graph: SystemGraph) -> Iterator[Problem]:
    """What :func:`kernbench.topology.describe.check` reports beyond a wrong description."""
    yield from _cut_off(graph)
    yield from _narrow_links(graph)
    yield from _narrow_io(graph)


def _warn(graph: SystemGraph, path: str, message: str) -> Problem:
    """A warning at ``path``, or at the mapping around it that the description has."""
    key = path
    while key and not any(known == key or known.startswith(f"{key}.") for known in graph.provenance):
        key = key.rpartition(".")[0]
    places = [o.place for known, o in graph.provenance.items() if known == key or known.startswith(f"{key}.")]
    return Problem(message, path, places[0] if places else "", "warning")


def _narrow_links(graph: SystemGraph) -> Iterator[Problem]:
    """The worst link of each kind that cannot carry what interleaving asks of it."""
    plan, sip = graph.plan, graph.spec.sip
    total = graph.cubes_per_sip * sip.cube.hbm.bandwidth
    load = hbm_load(graph)
    paths = {"noc": "sip.cube.noc.bandwidth", "d2d": "sip.d2d.bandwidth"}
    seen = set()
    for link in np.lexsort((np.arange(len(load)), plan.bandwidth / np.maximum(load, 1))).tolist():
        src, dst = plan.nodes[plan.src[link]], plan.nodes[plan.dst[link]]
        kind = KINDS[plan.kind[link]]
        path = paths.get(kind, "sip.cube.hbm.port_bandwidth" if src.endswith("hbm") else "sip.cube.noc.bandwidth")
        if load[link] <= plan.bandwidth[link] * (1 + 1e-9) or path in seen:
            continue
        seen.add(path)
        share = plan.bandwidth[link] / load[link]
        yield _warn(
            graph,
            path,
            f"{kind} link {src}->{dst} carries {_rate(plan.bandwidth[link])}, but PEs that together read all "
            f"{_rate(total)} of HBM, interleaved over {graph.cubes_per_sip} cubes, ask {_rate(load[link])} of it: they "
            f"get at most {100 * share:.0f} % of the HBM bandwidth",
        )


def _narrow_io(graph: SystemGraph) -> Iterator[Problem]:
    sip = graph.spec.sip
    into = np.bincount(graph.fabric.edges[:, 1], minlength=graph.fabric.nodes)[: graph.n_sips]
    asked = float(into.max()) * graph.spec.system.fabric.bandwidth
    carried = graph.cubes_per_sip * sip.io_bandwidth
    if graph.n_sips > 1 and asked > carried * (1 + 1e-9):
        yield _warn(
            graph,
            "sip.io.bandwidth",
            f"the {int(into.max())} links into a SIP bring {_rate(asked)}, but its IO die reaches its "
            f"{graph.cubes_per_sip} cubes with {_rate(carried)}",
        )


def _cut_off(graph: SystemGraph) -> Iterator[Problem]:
    """Pairs of nodes that disabled links separate: one report a SIP."""
    if not graph.disabled:
        return
    inside = [graph.hbm_node(0, cube) for cube in range(graph.cubes_per_sip)]
    inside += [graph.pe_node(0, cube, pe) for cube in range(graph.cubes_per_sip) for pe in range(graph.pes_per_cube)]
    for sip in range(graph.n_sips):
        ways = [(graph.io_node(0), graph.io_node(sip)), (graph.io_node(sip), graph.io_node(0))]
        ways += [("host", graph.io_node(sip)), (graph.io_node(sip), "host")]
        if sip in graph.broken_sips:
            local = [f"sip{sip}.{node.partition('.')[2]}" for node in inside]
            ways += [(local[0], node) for node in local] + [(node, local[0]) for node in local]
            ways += [(graph.hbm_node(sip, cube), graph.io_node(sip)) for cube in range(graph.cubes_per_sip)]
        for src, dst in ways:
            try:
                graph.route(src, dst)
            except NoRouteError as error:
                yield Problem(str(error), "links", graph.provenance["links[0].from"].place if graph.provenance else "")
                break
