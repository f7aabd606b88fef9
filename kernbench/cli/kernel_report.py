"""What a run of a kernel shows, as text for a person and as JSON for a program."""

from __future__ import annotations

import linecache
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.cli import kernel_repair as repairs
from kernbench.cli.kernel_run import Launched, Ran, Refused
from kernbench.cli.kernel_verify import Compared, Verdict
from kernbench.kernels.dumps import Dumped
from kernbench.memory import dtype
from kernbench.report import units

SCHEMA = "kernbench.kernel/1"
SCHEMA_OF_SEVERAL = "kernbench.kernels/1"
HOTTEST = 8
"""Source lines that are shown."""


def bound(ran: Ran) -> tuple[str, dict[str, float]]:
    """What limits the kernels (a class of resources, or ``latency``), and how busy the busiest of each class was."""
    from kernbench.sim_engine.usage import binding, utilisation

    spans = [(c.reached_ps, c.finish_ps) for c in ran.timeline.commands if c.bound.kind == "launch"]
    if not spans:
        return "latency", {}
    longest = max(spans, key=lambda s: s[1] - s[0])
    load = {n: v for n, v in utilisation(ran.timeline, *longest).items() if n != "launch"}
    return binding(load), {n: round(v.peak, 4) for n, v in load.items()}


def all_as_json(runs: list[Ran | Refused]) -> dict[str, Any]:
    """:func:`as_json` of the only run; of several kernels of a file, each under ``kernels``."""
    if len(runs) == 1 and isinstance(runs[0], Ran):
        return as_json(runs[0])
    return {
        "schema": SCHEMA_OF_SEVERAL,
        "file": str(runs[0].file),
        "passed": all(ran.passed for ran in runs),
        "kernels": [
            as_json(ran) if isinstance(ran, Ran) else {"kernel": ran.kernel, "passed": False, "refused": ran.why}
            for ran in runs
        ],
    }


def summary(runs: list[Ran | Refused]) -> Any:
    """One line a kernel."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("kernel")
    made.add_column("simulated", justify="right", no_wrap=True)
    made.add_column("", overflow="fold")
    for ran in runs:
        if isinstance(ran, Refused):
            made.add_row(Text(ran.kernel), "", Text("not run", "bold red"))
            continue
        name = ran.launches[0].kernel if ran.launches else ""
        verdict = ran.launches[0].verdict if ran.launches else None
        checked = verdict.passed if verdict is not None else None
        text = Text({True: "values match", False: "VALUES DO NOT MATCH", None: "values not checked"}[checked])
        text.append(f", {len(ran.faults)} fault{'s' * (len(ran.faults) > 1)}" if ran.faults else "")
        text.stylize("green" if checked and ran.passed else "yellow" if ran.passed else "bold red")
        time = "" if ran.timeline is None else units.time(_total(ran))
        made.add_row(Text(name), time, text)
    return made


def _total(ran: Ran) -> int:
    from kernbench.sim_engine.profile import kernel_totals

    return sum(int(total["time_ps"]) for total in kernel_totals(ran.timeline).values())


def as_json(ran: Ran) -> dict[str, Any]:
    """Everything but wall time; the same on every run."""
    from kernbench.sim_engine.profile import kernel_totals, line_profile

    made: dict[str, Any] = {
        "schema": SCHEMA,
        "file": str(ran.file),
        "mode": ran.mode,
        "machine": ran.machine,
        "passed": ran.passed,
        "faults": ran.faults,
        "notes": ran.notes,
        "error": None if ran.error is None else f"{type(ran.error).__name__}: {ran.error}",
        "launches": [_launch(one) for one in ran.launches],
    }
    if ran.compared:
        made["model"] = [_compared(one) for one in ran.compared]
    if ran.timeline is not None:
        limit, load = bound(ran)
        made["time"] = {
            "kernels": kernel_totals(ran.timeline),
            "makespan_ps": ran.timeline.makespan_ps,
            "digest": ran.timeline.digest(),
            "bound": limit,
            "load": load,
        }
        made["lines"] = [
            {
                "kernel": entry.kernel,
                "file": entry.file,
                "line": entry.line,
                "busy_ps": entry.busy_ps,
                "ops": entry.ops,
                "bytes": entry.bytes,
                "flops": entry.flops,
                "source": linecache.getline(entry.file, entry.line).strip(),
            }
            for entry in line_profile(ran.timeline)
        ]
    if ran.records:
        made["tcm"] = {
            "bytes": max(r.tcm_bytes for r in ran.records),
            "capacity": ran.tcm_capacity,
            "programs_in_flight": min(r.programs_in_flight for r in ran.records),
            "tiles": [] if ran.tcm is None else [str(tile).strip() for tile in ran.tcm.tiles],
        }
    made["autotune"] = [
        {
            "kernel": tuning.kernel,
            "key": [str(k) for k in tuning.key],
            "best": tuning.trials[tuning.best].config,
            "trials": [
                {
                    "config": t.config,
                    "ms": t.milliseconds if math.isfinite(t.milliseconds) else None,
                    "tcm_bytes": t.tcm_bytes,
                    "why": t.why,
                }
                for t in tuning.trials
            ],
        }
        for tuning in ran.tunings
    ]
    made["dumps"] = [
        {
            "line": one.spot.line,
            "name": one.spot.name,
            "where": one.where,
            "program": list(one.program),
            "iteration": one.iteration,
            "dtype": one.dtype,
            "shape": list(one.value.shape),
            "points_into": one.points_into,
            "first": [_number(x) for x in one.value.reshape(-1)[:16].tolist()],
        }
        for one in ran.dumped
    ]
    return made


def _number(x: Any) -> Any:
    """JSON has no NaN and no infinities."""
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def _launch(one: Launched) -> dict[str, Any]:
    origin = {} if one.inputs is None else one.inputs.origin
    verdict = one.verdict
    return {
        "kernel": one.kernel,
        "grid": list(one.grid),
        "inputs": [
            {"name": n, "value": _shown(v), "origin": origin.get(n, "filled in" if one.inputs else "given")}
            for n, v in one.before.items()
        ],
        "outputs": [
            {"name": n, "xxh64": _checksum(v), **_numbers(v)}
            for n, v in one.after.items()
            if v.tobytes() != one.before[n].tobytes()
        ],
        "values": None
        if verdict is None
        else {
            "against": verdict.against,
            "passed": verdict.passed,
            "reason": verdict.reason,
            "arrays": [_compared(a) for a in verdict.arrays],
        },
    }


def _compared(one: Compared) -> dict[str, Any]:
    return {
        "name": one.name,
        "elements": one.elements,
        "wrong": one.wrong,
        "worst": one.worst if math.isfinite(one.worst) else None,
        "first": one.first,
    }


def _shown(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"{dtype(value.dtype).name}[{','.join(map(str, value.shape))}]"
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _checksum(array: np.ndarray) -> str:
    import xxhash

    return xxhash.xxh64_hexdigest(np.ascontiguousarray(array).tobytes())


def _numbers(array: np.ndarray) -> dict[str, Any]:
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, mean, high = (float(f(finite)) if finite.size else None for f in (np.min, np.mean, np.max))
    return {"min": low, "mean": mean, "max": high, "not_finite": int(numbers.size - finite.size)}


def as_text(ran: Ran | Refused) -> Any:
    """The same for a terminal."""
    from rich.console import Group
    from rich.text import Text

    if isinstance(ran, Refused):
        return Text.assemble((f"{ran.kernel} of {ran.file}\n", "dim"), ("error: ", "bold red"), ran.why)
    parts: list[Any] = [Text(_heading(ran), "dim"), Text()]
    for one in ran.launches:
        parts += [_arguments(one), Text()]
        if one.verdict is not None:
            parts += [_verdict(one.verdict, one.kernel if len(ran.launches) > 1 else ""), Text()]
    if ran.compared:
        against = Verdict("model", "", ran.compared)
        parts += [_verdict(against, "ModelNew"), Text()]
    for tuning in ran.tunings:
        from kernbench.kernels.triton_backend.tuning import table

        parts += [table(tuning), Text()]
    if ran.timeline is not None:
        parts += [*_times(ran), Text(), _lines(ran)]
    for value in ran.dumped:
        parts += [Text(), Text(_named(value), "bold"), Text(np.array2string(value.value, threshold=64, edgeitems=3))]
    parts += [Text.assemble(("note: ", "bold yellow"), note) for note in ran.notes]
    for fault in ran.faults:
        parts += [Text(), Text.assemble(("fault: ", "bold red"), fault), *_source(fault)]
    if ran.error is not None:
        parts.append(Text.assemble(("error: ", "bold red"), f"{type(ran.error).__name__}: {ran.error}"))
        if hint := repairs.explain(ran.error):
            parts.append(Text(hint))
    return Group(*parts)


def _named(one: Dumped) -> str:
    into = f", elements of '{one.points_into}'" if one.points_into else ""
    program = ", ".join(map(str, one.program))
    shape = ",".join(map(str, one.value.shape))
    return f"{one.spot.name} = {one.dtype}[{shape}] at {one.where}, program ({program}), time {one.iteration}{into}"


def save(dumped: list[Dumped], folder: Path) -> list[Path]:
    """Write each value as ``LINE-NAME-pX-Y-Z-iN.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for one in dumped:
        program = "-".join(map(str, one.program))
        written.append(folder / f"{one.spot.line}-{one.spot.name}-p{program}-i{one.iteration}.npy")
        np.save(written[-1], one.value, allow_pickle=False)
    return written


def _heading(ran: Ran) -> str:
    if ran.mode == "script":
        return (
            f"{ran.file} was run as it is, since it launches kernels itself; --kernel NAME runs one on made-up inputs"
        )
    kernel = ran.launches[0].kernel if ran.launches else ""
    inputs = ran.launches[0].inputs if ran.launches else None
    made_up = inputs is not None and "generated" in inputs.origin.values()
    hint = " (generated: made up here; --arg NAME=VALUE sets it)" if made_up else ""
    return f"{kernel} of {ran.file} on {ran.machine}{hint}"


def _source(message: str) -> list[Any]:
    """The line that a message begins with."""
    from rich.text import Text

    found = re.match(r"(?:.*?, )?(\S+\.py):(\d+): ", message)
    text = linecache.getline(found[1], int(found[2])).strip() if found else ""
    return [Text(f"    {text}", "dim")] if text else []


def _arguments(one: Launched) -> Any:
    from rich.table import Table
    from rich.text import Text

    origin = {} if one.inputs is None else one.inputs.origin
    rows = [n for n, v in one.before.items() if isinstance(v, np.ndarray)]
    others = [
        f"{n}={_shown(v)}" + (" (generated)" if origin.get(n) == "generated" else "")
        for n, v in one.before.items()
        if n not in rows
    ]
    made = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("array", "", "", "min", "mean", "max", "")
    for column in heads:
        number = column in ("min", "mean", "max")
        made.add_column(column, justify="right" if number else "left", no_wrap=True, min_width=7 if number else None)
    for name in rows:
        now = one.after.get(name, one.before[name])
        numbers = _numbers(now)
        changed = name in one.after and now.tobytes() != one.before[name].tobytes()
        stats = ["" if numbers[n] is None else f"{numbers[n]:.3g}" for n in ("min", "mean", "max")]
        lost = numbers["not_finite"]
        row = [
            f"{name}: {_shown(now)}",
            origin.get(name, ""),
            f"written {_checksum(now)[:8]}" if changed else "",
            *stats,
            f"{lost:,} not finite" if lost else "",
        ]
        made.add_row(*map(Text, row), style="bold" if changed else "")
    grid = f"grid {' x '.join(map(str, one.grid))}" if one.grid else ""
    made.caption = Text("  ".join([*others, grid]).strip())
    made.caption_justify = "left"
    return made


def _verdict(verdict: Any, kernel: str) -> Any:
    from rich.console import Group
    from rich.text import Text

    what = {
        "reference": "the file's reference()",
        "model": "the file's Model",
        "interpreter": "Triton's interpreter",
    }.get(verdict.against, "")
    of = f" of {kernel}" if kernel else ""
    if verdict.passed is None:
        return Text(f"values{of} not checked: {verdict.reason}", "yellow")
    worst = max((a.worst for a in verdict.arrays), default=0.0)
    detail = f" ({verdict.reason})" if verdict.reason else ""
    if verdict.passed:
        near = f", largest difference {worst:.2g} of the tolerance" if worst else ", exactly"
        return Text(f"values{of} match {what}{detail}{near}", "green")
    lines = [Text(f"values{of} DO NOT MATCH {what}{detail}", "bold red")]
    lines += [Text(f"  {a.name}: {a.wrong:,} of {a.elements:,} elements; {a.first}") for a in verdict.arrays if a.wrong]
    return Group(*lines)


def _times(ran: Ran) -> list[Any]:
    """Simulated time of each kernel, what limits it, and the scratchpad."""
    from rich.text import Text

    from kernbench.sim_engine.profile import kernel_totals

    parts: list[Any] = []
    limit, load = bound(ran)
    totals = kernel_totals(ran.timeline)
    for name, total in totals.items():
        text = Text.assemble((name, "bold"), "  ", (units.time(total["time_ps"]), "bold"), " simulated")
        if total["launches"] > 1:
            text.append(f" in {total['launches']:,} launches")
        text.append(f" ({units.time(ran.timeline.makespan_ps)} with its launch)" if len(totals) == 1 else "")
        text.append(f"   {units.size(total['bytes'])} moved")
        if total["flops"]:
            text.append(f", {total['flops'] / 1e9:.3g} GFLOP on the GEMM engines")
        parts.append(text)
    busy = ", ".join(f"{name} {units.percent(peak)}" for name, peak in load.items())
    parts.append(Text(f"bound by {limit}" + (f"   busiest: {busy}" if busy else "")))
    if ran.records:
        need = max(r.tcm_bytes for r in ran.records)
        flight = min(r.programs_in_flight for r in ran.records)
        parts.append(
            Text(f"TCM {units.size(need)} a program of {units.size(ran.tcm_capacity)}, {flight} programs in flight")
        )
    return parts


def _lines(ran: Ran) -> Any:
    from rich.table import Table
    from rich.text import Text

    from kernbench.sim_engine.profile import line_profile

    made = Table(box=None, pad_edge=False, header_style="bold")
    lines = line_profile(ran.timeline)
    longest = max((len(f"{Path(e.file).name}:{e.line}") for e in lines[:HOTTEST]), default=0)
    made.add_column("line", no_wrap=True, min_width=min(longest, 24))
    for column in ("share", "ops", "bytes"):
        made.add_column(column, justify="right", no_wrap=True, min_width=8 if column == "bytes" else 6)
    made.add_column("source", no_wrap=True, overflow="ellipsis", max_width=60)
    everything = sum(entry.busy_ps for entry in lines) or 1
    for entry in lines[:HOTTEST]:
        # Triton's cache remembers where a kernel lay when it was first compiled.
        moved = not Path(entry.file).is_file() and Path(entry.file).name == ran.file.name
        source = linecache.getline(str(ran.file) if moved else entry.file, entry.line).strip()
        made.add_row(
            f"{Path(entry.file).name}:{entry.line}",
            units.percent(entry.busy_ps / everything),
            f"{entry.ops:,}",
            units.size(entry.bytes) if entry.bytes else "",
            Text(source),
        )
    return made
