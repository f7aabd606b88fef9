"""Where the time went, drawn: the whole run, the phase that matters by rank, and what was busy meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kernbench.bench.runner import Run
from kernbench.report import units
from kernbench.report.tree import Node, busiest_group, phase_tree
from kernbench.sim_engine.timeline import Timeline
from kernbench.sim_engine.usage import utilisation

BINS = 120
_SHOWN = {"gemm": "GEMM engines", "vector": "vector engines", "hbm": "HBM", "noc": "NoC", "sip link": "SIP links"}
"""Classes that the lowest panel draws."""
_SCALES = ((1e12, "s"), (1e9, "ms"), (1e6, "us"), (1e3, "ns"), (1, "ps"))


def draw(run: Run, path: str | Path) -> None:
    """Draw a run to a PNG, SVG or PDF, by the ending of ``path``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to get it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'kernbench[plot]'") from error

    tree = phase_tree(run.timeline)
    focus = busiest_group(tree)
    ranks = run.graph.n_sips
    heights = [0.9, 0.6 + 0.32 * min(ranks, 16), 2.4] if focus else [0.9]
    figure = Figure(figsize=(11, 1.6 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    title = f"{run.name} on {run.graph.spec.name}: {units.time(run.timeline.makespan_ps)} simulated"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    _whole(panels[0], tree)
    if focus is not None:
        leaves = [node for _, node in focus.walk() if node.phase is not None and not node.children]
        colours = _colours([leaf.path for leaf in leaves])
        _by_rank(panels[1], run.timeline, focus, leaves, colours, ranks)
        _busy(panels[2], run.timeline, focus)
    figure.savefig(path, dpi=150, metadata={"Software": None} if str(path).endswith(".png") else None)


def _colours(names: list[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _scale(span_ps: float) -> tuple[float, str]:
    return next((size, unit) for size, unit in _SCALES if span_ps >= size or size == 1)


def _whole(axes: Any, tree: list[Node]) -> None:
    """One bar for the run, a piece for each top-level phase."""
    end = max([1, *(node.finish_ps for node in tree)])
    size, unit = _scale(end)
    colours = _colours([node.path for node in tree])
    for node in tree:
        label = f"{node.name}  {units.time(node.span_ps)}"
        axes.barh(
            0, node.span_ps / size, left=node.start_ps / size, color=colours[node.path], edgecolor="white", label=label
        )
    axes.set(yticks=[], xlim=(0, end / size), ylim=(-0.5, 0.5), xlabel=f"whole run, {unit}")
    if tree:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=8)
    _plain(axes)


def _by_rank(
    axes: Any, timeline: Timeline, focus: Node, leaves: list[Node], colours: dict[str, Any], ranks: int
) -> None:
    """What held each rank's streams, phase by phase, from the beginning of the focus."""
    size, unit = _scale(focus.span_ps)
    for command in timeline.commands:
        name = timeline.ranges[command.bound.range_id]
        if name not in colours or command.bound.kind in ("sync", "event", "wait"):
            continue
        start = (command.ready_ps - focus.start_ps) / size
        width = (command.finish_ps - command.ready_ps) / size
        axes.barh(
            command.bound.rank, width, left=start, height=0.8, color=colours[name], edgecolor="white", linewidth=0.5
        )
    for leaf in leaves:
        label = f"{leaf.path.removeprefix(focus.path + '/')}  {units.time(leaf.span_ps)}"
        if leaf.phase is not None and leaf.phase.bound != "latency":
            label += f", bound by {leaf.phase.bound}"
        axes.barh(0, 0, color=colours[leaf.path], label=label)
    axes.set(
        xlim=(0, focus.span_ps / size),
        ylim=(ranks - 0.5, -0.5),
        yticks=range(ranks) if ranks <= 16 else [0, ranks - 1],
        ylabel="rank",
        xlabel=f"{focus.name}, {unit}",
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    _plain(axes)


def _busy(axes: Any, timeline: Timeline, focus: Node) -> None:
    """How busy each class of resource was over the focus: its busiest link, or the mean of its engines and channels."""
    size, unit = _scale(focus.span_ps)
    edges = np.linspace(focus.start_ps, focus.finish_ps, BINS + 1).astype(np.int64)
    lines: dict[str, list[float]] = {name: [] for name in _SHOWN}
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        load = utilisation(timeline, start, max(stop, start + 1))
        for name, values in lines.items():
            found = load.get(name)
            values.append(0.0 if found is None else found.peak if name in ("noc", "sip link") else found.mean)
    times = (edges - focus.start_ps) / size
    for name, values in lines.items():
        if any(values):
            axes.stairs(np.minimum(values, 1.0) * 100, times, label=_SHOWN[name], linewidth=1.4)
    axes.set(xlim=(0, focus.span_ps / size), ylim=(0, 105), ylabel="busy, %", xlabel=f"{focus.name}, {unit}")
    axes.legend(loc="upper right", frameon=False, fontsize=8, ncols=5, bbox_to_anchor=(1, 1.16))
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
