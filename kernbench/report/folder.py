"""The folder of a run: everything about it in files, complete or not there at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import kernbench
from kernbench.bench.runner import Run
from kernbench.report import picture
from kernbench.sim_engine.record import write_record
from kernbench.sim_engine.trace import write_trace


def write(run: Run, parent: str | Path) -> dict[str, Path]:
    """Write a run's files into a new numbered folder below ``parent`` and say what is where.

    * ``record.json``: machine, timeline, phases, checks; the same bytes on every run (schema in the file).
    * ``host.json``: wall times and versions, which differ from run to run.
    * ``trace.json``: open it at https://ui.perfetto.dev.
    * ``time.png``: where the time went; left out, with a word, where matplotlib is not installed.

    The folder is written aside and renamed when it is complete, so a crash leaves no half of one.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
    try:
        aside.chmod(0o755)
        about: dict[str, Any] = {
            "bench": run.name,
            "params": run.params,
            "enable_data": run.enable_data,
            "checks": [check.as_dict() for check in run.checks],
        }
        write_record(run.timeline, aside / "record.json", **about)
        (aside / "host.json").write_text(json.dumps(_host(run), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        merged = write_trace(run.timeline, aside / "trace.json")
        files = {"record": "record.json", f"trace ({merged}), for ui.perfetto.dev": "trace.json"}
        try:
            picture.draw(run, aside / "time.png")
            files["picture"] = "time.png"
        except ModuleNotFoundError as missing:
            files[f"no picture ({missing})"] = ""
        _sync(aside)
        final = _claim(aside, parent, run.name)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return {what: final / name for what, name in files.items()}


def _host(run: Run) -> dict[str, Any]:
    return {
        "seconds": {stage: round(seconds, 4) for stage, seconds in run.host_seconds.items()},
        "estimated_host_bytes": run.host_bytes,
        "kernbench": kernbench.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _sync(folder: Path) -> None:
    """Have the files on the disk before the folder gets its name."""
    folders = [folder] if os.name == "posix" else []  # Windows cannot open a folder, and keeps its names without it
    for path in [*folder.iterdir(), *folders]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _claim(aside: Path, parent: Path, name: str) -> Path:
    """Rename to the next free number. A rename onto an existing folder fails, so two runs never share one."""
    taken = [p.name.rpartition("-")[2] for p in parent.glob(f"{name}-*")]
    number = max((int(t) for t in taken if t.isdigit()), default=0) + 1
    while True:
        final = parent / f"{name}-{number:03d}"
        try:
            os.rename(aside, final)
            return final
        except OSError:
            if not final.exists():
                raise
            number += 1
