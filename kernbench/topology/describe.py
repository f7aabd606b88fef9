"""A machine for people: its tree, what it adds up to, where every number comes from, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernbench.topology import balance
from kernbench.topology.draw import draw
from kernbench.topology.graph import SystemGraph
from kernbench.topology.loader import load
from kernbench.topology.problem import Problem, TopologyError
from kernbench.topology.schema import SystemSpec
from kernbench.topology.units import BANDWIDTH, BYTES, DURATION, FREQUENCY, format_quantity
from kernbench.topology.validate import paths

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.tree import Tree

__all__ = ["check", "draw", "show"]

_rate = partial(format_quantity, dimension=BANDWIDTH, digits=4)
_size = partial(format_quantity, dimension=BYTES, digits=4)
_time = partial(format_quantity, dimension=DURATION, digits=4)
_clock = partial(format_quantity, dimension=FREQUENCY, digits=4)


def check(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> list[Problem]:
    """Everything wrong with a machine: errors of its description, or, where there are none, nodes that disabled links
    cut off (errors) and parts that hold back others (warnings, with numbers)."""
    try:
        return list(balance.imbalances(load(source, overrides)))
    except TopologyError as error:
        return list(error.problems)


def show(graph: SystemGraph) -> RenderableType:
    """The machine as text for a terminal: a tree of its parts, derived totals, and each number with its source."""
    from rich.console import Group

    return Group(_tree(graph), "", _totals(graph), "", _peaks(graph), "", _numbers(graph))


def _tree(graph: SystemGraph) -> Tree:
    from rich.tree import Tree

    spec = graph.spec
    sip, cube, host, fabric = spec.sip, spec.sip.cube, spec.system.host, spec.system.fabric
    about = f": {spec.description}" if spec.description else ""
    root = Tree(f"[bold]{spec.name}[/]{about}", highlight=False)
    at_host = f"{_rate(host.link.bandwidth)}, {_time(host.link.latency)} to each SIP"
    root.add(f"[bold]host[/]  {at_host}; a launch costs {_time(host.launch)}, a copy {_time(host.copy)}")
    if graph.n_sips > 1:
        shape = " x ".join(map(str, graph.fabric.shape)) + " " if graph.fabric.kind in ("mesh", "torus") else ""
        kind = fabric.kind.replace("_", " ")
        root.add(f"[bold]fabric[/]  {shape}{kind}, {_rate(fabric.bandwidth)} a link each way, {_time(fabric.latency)}")
    if graph.spec.links:
        changed, off = len(graph.spec.links), len(graph.disabled)
        root.add(f"[bold]exceptions[/]  {changed} in `links`, {off} directions disabled", style="yellow")
    at_sip = root.add(f"[bold]{graph.n_sips} x SIP[/]  {graph.pes_per_sip} PEs")
    at_sip.add(f"[bold]IO die[/]  {_rate(sip.io_bandwidth)}, {_time(sip.io.latency)} to each cube")
    if graph.cubes_per_sip > 1:
        at_sip.add(f"[bold]d2d[/]  {_rate(sip.d2d.bandwidth)} each way, {_time(sip.d2d.latency)} between neighbours")
    grid, mesh = sip.cubes, cube.pes
    at_cube = at_sip.add(f"[bold]{grid.count} x cube[/]  {grid.rows} x {grid.cols}")
    hbm, pe = cube.hbm, cube.pe
    at_cube.add(
        f"[bold]HBM[/]  {_size(hbm.capacity)}, {_rate(hbm.bandwidth)} over {hbm.channels} channels, "
        f"{_time(hbm.latency)}; {_size(hbm.burst)} bursts, {_size(hbm.interleave.granule)} granules, "
        f"{hbm.interleave.hash}"
    )
    at_cube.add(
        f"[bold]NoC[/]  {cube.noc.kind}, {_rate(cube.noc.bandwidth)} a link each way, {_time(cube.noc.latency)} a hop; "
        f"{cube.hbm_ports} HBM ports of {_rate(cube.hbm_port_bandwidth)}"
    )
    at_pe = at_cube.add(
        f"[bold]{mesh.count} x PE[/]  {mesh.rows} x {mesh.cols}, {pe.programs_in_flight} programs in flight"
    )
    at_pe.add(f"[bold]TCM[/]  {_size(pe.tcm.capacity)}")
    at_pe.add(f"[bold]DMA[/]  {pe.dma.depth} in flight, one every {_time(pe.dma.issue)}")
    gemm = pe.gemm
    flow = gemm.dataflow.replace("_", " ")
    at_pe.add(f"[bold]GEMM[/]  {gemm.rows} x {gemm.cols} at {_clock(gemm.clock)}, {flow}")
    at_pe.add(f"[bold]vector[/]  {pe.vector.lanes} lanes at {_clock(pe.vector.clock)}")
    return root


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _totals(graph: SystemGraph) -> Table:
    sums = balance.totals(graph)
    table = _table("adds up to", "", "")
    table.show_header = False
    rows = [
        ("PEs", f"{sums.pes:,}"),
        ("HBM", f"{_size(sums.hbm_capacity)}, {_rate(sums.hbm_bandwidth)}"),
        (
            "HBM of a SIP",
            f"{_rate(sums.sip_hbm_bandwidth)}, of which its PEs can draw {100 * sums.reachable:.0f} % together",
        ),
        ("NoC bisection of a cube", _rate(sums.noc_bisection)),
        ("d2d bisection of a SIP", _rate(sums.d2d_bisection)),
        ("fabric bisection", _rate(sums.fabric_bisection)),
    ]
    for what, value in rows:
        if not value.startswith("0 "):
            table.add_row(what, value)
    return table


def _peaks(graph: SystemGraph) -> Table:
    sums = balance.totals(graph)
    table = _table(
        "peak of the GEMM engines", "type", "PE, TFLOP/s", "SIP, TFLOP/s", "all, TFLOP/s", "FLOP a byte of HBM"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for dtype, flops in sums.sip_flops.items():
        each = (flops / graph.pes_per_sip, flops, flops * graph.n_sips)
        table.add_row(dtype, *(f"{f / 1e12:,.4g}" for f in each), f"{flops / sums.sip_hbm_bandwidth:,.4g}")
    return table


def _numbers(graph: SystemGraph) -> Table:
    table = _table("numbers and where they come from", "key", "value", "source")
    table.columns[0].no_wrap = True
    order = {name: i for i, name in enumerate(paths(SystemSpec))}
    keys = [key for key in graph.provenance if key not in ("name", "description")]
    keys.sort(key=lambda key: order.get(key, order.get(key.rpartition(".")[0], len(order))))
    for (parent, source), group in groupby(keys, lambda key: (key.rpartition(".")[0], graph.provenance[key].source)):
        values = [(key.removeprefix(f"{parent}."), graph.provenance[key]) for key in group]
        if source and len(values) > 1:
            table.add_row(parent, ", ".join(f"{name} {origin.text}" for name, origin in values), source)
        else:
            for name, origin in values:
                table.add_row(f"{parent}.{name}", origin.text, origin.source or f"[dim]{origin.place}[/]")
    return table
