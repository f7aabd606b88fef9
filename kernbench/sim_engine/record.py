"""The record of a run as JSON: what ran, when, what bound it. Two runs of one program write the same bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernbench.sim_engine.profile import kernel_totals, line_profile
from kernbench.sim_engine.timeline import Timeline
from kernbench.sim_engine.usage import phases

SCHEMA = "kernbench.run/1"
"""Name and version. The version grows whenever a key changes its meaning or goes away; new keys may come at any
time."""


def run_record(timeline: Timeline, **about: Any) -> dict[str, Any]:
    """Everything that is the same on every run; times are picoseconds and never wall time.

    Args:
        about: more keys for the top level, such as ``bench``, ``params`` and ``checks``.
    """
    graph = timeline.machine.graph
    return {
        "schema": SCHEMA,
        **about,
        "machine": {"name": graph.spec.name, "spec": graph.spec.model_dump(mode="json", by_alias=True)},
        "timeline": {
            "digest": timeline.digest(),
            "makespan_ps": timeline.makespan_ps,
            "ops": timeline.count,
            "clamped": timeline.clamped,
            "held_back": timeline.held_back,
        },
        "phases": [_rounded(asdict(phase)) for phase in phases(timeline)],
        "kernels": kernel_totals(timeline),
        "lines": [asdict(line) for line in line_profile(timeline)],
        "commands": [
            {
                "rank": c.bound.rank,
                "index": c.bound.index,
                "kind": c.bound.kind,
                "name": c.bound.name,
                "stream": c.bound.stream,
                "range": timeline.ranges[c.bound.range_id],
                "issued_ps": c.issued_ps,
                "reached_ps": c.reached_ps,
                "finish_ps": c.finish_ps,
            }
            for c in sorted(timeline.commands, key=lambda c: (c.bound.rank, c.bound.index))
        ],
    }


def write_record(timeline: Timeline, path: str | Path, **about: Any) -> dict[str, Any]:
    """Write :func:`run_record` to a file and return it."""
    made = run_record(timeline, **about)
    Path(path).write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return made


def _rounded(value: Any) -> Any:
    """Six decimals: what a sum of floats may differ by from one processor to another does not show."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 6) if isinstance(value, float) else value
