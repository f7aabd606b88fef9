"""A finished run as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernbench.bench.runner import Run
from kernbench.report import units
from kernbench.report.tree import Node, phase_tree
from kernbench.sim_engine.usage import Load


def summary(run: Run) -> RenderableType:
    """Verdict, simulated time by phase with what bounds each, and what the simulation cost."""
    return Group(_title(run), *_verdict(run), Text(), _phases(run), Text(), _totals(run))


def files(written: Mapping[str, Path]) -> RenderableType:
    """Where things were written, and what to do with them."""
    table = Table.grid(padding=(0, 2))
    for what, path in written.items():
        table.add_row(Text(what), Text(str(path)))
    return table


def _title(run: Run) -> Text:
    graph = run.graph
    params = "  ".join(f"{name}={value}" for name, value in run.params.items())
    sips = f"{graph.n_sips} SIP" + "s" * (graph.n_sips > 1)
    machine = f"{graph.spec.name}: {sips} x {graph.pes_per_sip} PEs"
    return Text.assemble((run.name, "bold"), " on ", (machine, "bold"), f"   {params}")


def _verdict(run: Run) -> list[Text]:
    if not run.enable_data:
        return [Text("no values computed (--no-data): the timeline is the same as with them", "yellow")]
    return [Text(str(check), "green" if check.passed else "bold red") for check in run.checks]


def _phases(run: Run) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for column in ("GEMM", "vector", "HBM", "NoC", "link"):
        table.add_column(column, justify="right", no_wrap=True)
    for top in phase_tree(run.timeline):
        for depth, node in top.walk():
            table.add_row(*_row(node, depth), style="" if depth else "bold")
    return table


def _row(node: Node, depth: int) -> list[str]:
    name, span = "  " * depth + node.name, units.time(node.span_ps)
    if node.phase is None or node.children:
        return [name, span]
    load, bound = node.phase.load, node.phase.bound
    by = f"{bound} {units.percent(load[bound].peak)}" if bound in load else bound
    return [
        name,
        span,
        by,
        *(_mean(load.get(c)) for c in ("gemm", "vector", "hbm")),
        *(_peak(load.get(c)) for c in ("noc", "sip link")),
    ]


def _mean(load: Load | None) -> str:
    return units.percent(load.mean) if load else ""


def _peak(load: Load | None) -> str:
    return units.percent(load.peak) if load else ""


def _totals(run: Run) -> Text:
    timeline, host = run.timeline, run.host_seconds
    text = Text.assemble(("simulated ", "bold"), units.time(timeline.makespan_ps), ("   host ", "bold"))
    text.append(f"{host['total']:.1f} s: kernels and values {host['kernels']:.1f}, replay {host['replay']:.2f}")
    if run.host_bytes is not None:
        text.append(f"; memory about {units.size(run.host_bytes)}")
    text.append(f"\nreplayed  {timeline.count:,} ops, {timeline.events:,} events")
    if timeline.clamped:
        text.append(f"\n{timeline.clamped} ops were recorded after their time had been replayed and run late", "yellow")
    text.append("\nGEMM, vector, HBM: busy on average; NoC, link between SIPs, 'bound by': the busiest one", "dim")
    return text
