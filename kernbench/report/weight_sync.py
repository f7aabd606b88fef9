"""Simulated weight syncs side by side: a table, a record in JSON, a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kernbench.report import units
from kernbench.topology import SystemGraph
from kernbench.weight_sync.simulate import HOST, Model, Roles, Trial

DESCRIPTION = {
    "p2p": "each trainer's shards straight to the workers that need them",
    "broadcast": "shards gathered on one trainer, then a broadcast a tensor",
    "packed": "the same through buffers of many tensors",
    "ipc": "over the hosts: shared memory",
    "http": "over the hosts: HTTP on loopback",
    "disk": "over the hosts: a snapshot on disk",
}


def compared(trials: Sequence[Trial], model: Model, graph: SystemGraph, roles: Roles) -> RenderableType:
    """Two tables with a row an engine, and what to read them with."""
    when = _table("engine", "time", "transfer", "x bound", "paused", "to a worker", "busiest:link or memory")
    what = _table("engine", "trainer +", "worker +", "values:", "host stage", "took")
    for trial in trials:
        time = trial.time
        name, share = time.busiest
        when.add_row(
            time.engine,
            units.time(time.time_ps),
            units.time(time.transfer_ps),
            f"{time.ratio:.2f}",
            units.time(time.commit_ps),
            units.rate(time.rate, "B/s"),
            f"{name}, {units.percent(share)}",
        )
        what.add_row(
            time.engine,
            units.size(time.trainer_peak - time.trainer_held),
            units.size(time.worker_peak - time.worker_held),
            _verdict(trial),
            _host_stage(trial),
            f"{time.seconds + (trial.values.seconds if trial.values else 0):.1f} s",
        )
    title = f"{model.config.get('model_type', 'model')}, {units.size(model.nbytes)} in {model.dtype}, {roles}, on "
    heading = Text.assemble((title, "bold"), (graph.spec.name, "bold"))
    return Group(heading, Text(), when, Text(), what, Text(), _notes(trials))


def _table(*columns: str) -> Table:
    """The first column, and those with a colon at the end of a word of their own, are text; others are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        text = i == 0 or name.startswith(("busiest:", "values:"))
        table.add_column(name.replace(":", " "), justify="left" if text else "right", no_wrap=not text or i == 0)
    return table


def _verdict(trial: Trial) -> Text:
    if trial.values is None:
        return Text("not tried", "yellow")
    return Text("every bit right", "green") if trial.values.correct else Text("WRONG", "bold red")


def _host_stage(trial: Trial) -> str:
    if trial.time.engine not in HOST or trial.values is None:
        return ""
    return units.rate(trial.values.host_bytes / trial.values.host_seconds, "B/s")


def _notes(trials: Sequence[Trial]) -> Text:
    lines = [
        "time: simulated, from when all are ready until the last worker serves the new weights; paused: of that, the",
        "commit, in which a worker computes nothing; x bound: the transfer over what no engine can beat:",
    ]
    for bound in dict.fromkeys(trial.time.bound for trial in trials):
        names = ", ".join(t.time.engine for t in trials if t.time.bound == bound)
        lines.append(f"  {units.time(bound.seconds * 1e12)} for {names}: {bound.where}")
    held = max(t.time.trainer_held for t in trials), max(t.time.worker_held for t in trials)
    lines.append(
        f"+: device memory on top of the weights, {units.size(held[0])} a trainer, {units.size(held[1])} a worker"
    )
    small = next((t.values for t in trials if t.values is not None), None)
    if small is not None:
        part = max(t.time.worker_bytes for t in trials) / small.worker_bytes
        size = "the same run" if part == 1 else f"a model of 1/{part:.0f} of the size"
        lines.append(f"values: random bits of {size}, compared on every worker; 'time' is without values")
    if any(t.time.engine in HOST for t in trials):
        lines += [
            "ipc, http, disk: the copies over the host links are simulated. What hosts do in between is not in 'time':",
            "it was really done with the values, for one worker after another, at the rate 'host stage'",
        ]
    return Text("\n".join(lines), "dim")


def write_json(
    trials: Sequence[Trial], model: Model, graph: SystemGraph, roles: Roles, path: str | Path
) -> dict[str, Any]:
    """Everything, for other programs; all but ``seconds`` and ``host_seconds`` is the same on every run."""
    record = {
        "model": {"config": model.config, "bytes": model.nbytes, "tensors": len(model.shapes), "dtype": model.dtype},
        "machine": {"name": graph.spec.name, "sips": graph.n_sips},
        "trainers": roles.src_groups,
        "workers": roles.dst_groups,
        "engines": [
            {"time": t.time.as_dict(), "values": None if t.values is None else t.values.as_dict()} for t in trials
        ],
    }
    Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def draw(trials: Sequence[Trial], path: str | Path) -> None:
    """Bars of transfer and pause against the bound, to a PNG, SVG or PDF.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib: pip install 'kernbench[plot]'") from error
    figure = Figure(figsize=(9, 0.7 + 0.5 * len(trials)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, trial in enumerate(trials):
        time = trial.time
        first = row == 0
        transfer = (time.time_ps - time.commit_ps) * 1e-9
        axes.barh(row, transfer, color="tab:blue", label="transfer" if first else None)
        axes.barh(row, time.commit_ps * 1e-9, left=transfer, color="tab:orange", label="pause" if first else None)
        bound = time.bound.seconds * 1e3
        axes.plot([bound, bound], [row - 0.4, row + 0.4], color="black", label="lower bound" if first else None)
    names = [f"{t.time.engine}: {DESCRIPTION[t.time.engine]}" for t in trials]
    axes.set(yticks=range(len(trials)), yticklabels=names, ylim=(len(trials) - 0.5, -0.5), xlabel="simulated time, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None} if str(path).endswith(".png") else None)
