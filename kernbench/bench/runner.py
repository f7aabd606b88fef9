"""Loads a bench file, runs it on a machine, and gathers what happened.

A bench is a Python file with ``bench(ctx, **params)``. It uses ``ctx`` as it would torch and returns a list of
:class:`~kernbench.bench.check.Check`. Its keyword parameters, which need defaults, can be set from the command line. An
optional ``host_memory(ranks, **params, data=bool)`` says how many bytes of host memory it is going to take.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kernbench.bench.check import Check

if TYPE_CHECKING:
    from kernbench.sim_engine.timeline import Timeline
    from kernbench.topology import SystemGraph

Progress = Callable[[str], None]


class BenchError(ValueError):
    """A bench file or one of its parameters cannot be used; the message says what to change."""


@dataclass
class Run:
    """What a bench left behind. Everything but ``host_seconds`` is the same on every run."""

    name: str
    graph: SystemGraph
    params: dict[str, Any]
    enable_data: bool
    checks: list[Check]
    timeline: Timeline
    host_seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage: ``kernels`` (recording and values), ``replay``, ``total``."""
    host_bytes: int | None = None
    """Estimated before the run; None where the bench gives no estimate."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def load(path: str | Path) -> ModuleType:
    """Import a bench file.

    Raises:
        BenchError: there is no such file, or it has no ``bench`` function.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f"; {path.parent}/ has {', '.join(near)}" if near else ""
        raise BenchError(f"{path}: no such bench file{hint}")
    spec = importlib.util.spec_from_file_location(f"kernbench_bench_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and Triton look their module up by name
    spec.loader.exec_module(module)
    if not callable(getattr(module, "bench", None)):
        raise BenchError(
            f"{path}: has no function bench(ctx, ...): define one that runs the experiment and returns its checks"
        )
    return module


def parameters(module: ModuleType, given: Mapping[str, str]) -> dict[str, Any]:
    """The bench's parameters with ``given`` texts converted to the types of their defaults.

    Raises:
        BenchError: an unknown name or a text that does not convert.
    """
    declared = {
        name: p.default
        for name, p in inspect.signature(module.bench).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    values = dict(declared)
    for name, text in given.items():
        if name not in declared:
            raise BenchError(f"unknown parameter '{name}': this bench has {', '.join(declared) or 'none'}")
        kind = type(declared[name])
        try:
            values[name] = _boolean(text) if kind is bool else kind(text)
        except ValueError:
            raise BenchError(
                f"parameter {name}={text}: expected {kind.__name__}, like {name}={declared[name]}"
            ) from None
    return values


def run(
    path: str | Path,
    topology: str | Path,
    *,
    overrides: Sequence[str] = (),
    sips: int | None = None,
    params: Mapping[str, str] | None = None,
    enable_data: bool = True,
    progress: Progress = lambda text: None,
) -> Run:
    """Run a bench on a machine and replay its record.

    Args:
        path: the bench file.
        topology: preset name or YAML file.
        overrides: ``key=value`` changes of the machine, such as ``sip.cube.hbm.bandwidth=2 TB/s``.
        sips: number of SIPs instead of the file's.
        params: texts for the bench's parameters.
        enable_data: False skips floating-point work and gives the same timeline.
        progress: called with a short text whenever a new stage begins.

    Raises:
        BenchError: bad file or parameters, or not enough host memory.
        TopologyError: the machine's description is wrong.
    """
    import kernbench.topology
    from kernbench.runtime_api.context import RuntimeContext

    started = time.perf_counter()
    progress("reading the machine")
    graph = kernbench.topology.load(topology, overrides=overrides, sips=sips)
    module = load(path)
    values = parameters(module, params or {})
    need = _estimate(module, graph.n_sips, values, enable_data)
    with RuntimeContext.open(graph, enable_data=enable_data) as ctx:
        ctx.on_range = lambda name: progress(f"running {name}" if name else "running")
        progress("running")
        checks = module.bench(ctx, **values) or []
        ran = time.perf_counter()
        progress("replaying")
        timeline = ctx.timeline()
    ended = time.perf_counter()
    seconds = {"kernels": ran - started, "replay": ended - ran, "total": ended - started}
    return Run(Path(path).stem, graph, values, enable_data, list(checks), timeline, seconds, need)


def _boolean(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _estimate(module: ModuleType, ranks: int, params: dict[str, Any], data: bool) -> int | None:
    estimate = getattr(module, "host_memory", None)
    if estimate is None:
        return None
    accepted = inspect.signature(estimate).parameters
    need = int(estimate(ranks, **{k: v for k, v in {**params, "data": data}.items() if k in accepted}))
    free = _available_memory()
    if free is not None and need > free:
        raise BenchError(
            f"this bench needs about {need / 2**30:.1f} GiB of host memory and {free / 2**30:.1f} GiB are free: "
            "make it smaller with -p, or use --no-data, which computes no values"
        )
    return need


def _available_memory() -> int | None:
    """Bytes that can be taken without swapping, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
