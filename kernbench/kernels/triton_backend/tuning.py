"""What ``triton.autotune`` tried: every configuration with its simulated time and scratchpad.

Configurations are compared by simulated time, so the same one wins on every run; among equals the first does. With
``TRITON_PRINT_AUTOTUNING=1`` a table is printed each time a key is tuned.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernbench.kernels import device as devices
from kernbench.kernels import foreign

KEPT = 64
"""Tunings remembered."""


@dataclass(frozen=True)
class Trial:
    """One configuration."""

    config: str
    milliseconds: float
    """Simulated; infinite where it did not run."""
    tcm_bytes: int | None
    """Scratchpad one program needs; None where it was not even compiled."""
    why: str = ""
    """Why it did not run."""


@dataclass(frozen=True)
class Tuning:
    """One tuning of one kernel."""

    kernel: str
    key: tuple[Any, ...]
    trials: tuple[Trial, ...]
    best: int
    """Into ``trials``."""


tunings: list[Tuning] = []
"""The latest tunings, oldest first."""
_latest: Any = None
"""The kernel launched last."""
_trial = False
listener: Callable[[str, int, int], None] | None = None
"""Called before a configuration is tried: the kernel's name, the configuration's number, and how many there are."""
_needs: dict[Any, int | None] = {}
"""Configurations of the tuning that runs -> scratchpad."""


def is_trial() -> bool:
    """Whether what is launched now is a configuration that is tried."""
    return _trial


def launching(kernel: Any) -> None:
    """A kernel is about to be launched."""
    global _latest
    _latest = kernel


def watched_bench(bench: Callable[..., Any]) -> Callable[..., Any]:
    """``Autotuner._bench``, remembering what each configuration needs."""

    @functools.wraps(bench)
    def with_needs(self: Any, *args: Any, config: Any, **meta: Any) -> Any:
        global _latest, _trial
        _latest, _trial = None, True
        if listener is not None:
            listener(self.base_fn.__name__, len(_needs) + 1, len(self.configs))
        try:
            return bench(self, *args, config=config, **meta)
        finally:
            _trial = False
            _needs[config] = None if _latest is None else _latest.tcm.nbytes

    return with_needs


def watched_run(run: Callable[..., Any]) -> Callable[..., Any]:
    """``Autotuner.run``, telling of each tuning, and taking numpy arrays."""

    @functools.wraps(run)
    def with_table(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(foreign.of_numpy(a) if isinstance(a, foreign.NUMPY) else a for a in args)
        kwargs = {name: foreign.of_numpy(a) if isinstance(a, foreign.NUMPY) else a for name, a in kwargs.items()}
        before = getattr(self, "configs_timings", None)
        known = set(self.cache)
        _needs.clear()
        try:
            return run(self, *args, **kwargs)
        finally:
            timings = getattr(self, "configs_timings", None)
            new = [key for key in self.cache if key not in known]
            if timings is not None and timings is not before and new:
                _tell(self, new[-1], timings)

    return with_table


def _tell(tuner: Any, key: tuple[Any, ...], timings: dict[Any, Any]) -> None:
    trials = []
    for config in tuner.configs:
        need = _needs.get(config)
        time = timings.get(config, math.inf)
        milliseconds = float(time[0] if isinstance(time, list | tuple) else time)
        why = ""
        if config not in timings:
            why = "pruned before it ran"
        elif math.isinf(milliseconds):
            capacity = devices.current().target.tcm_capacity
            why = "does not compile" if need is None else "out of TCM" if need > capacity else "failed"
        trials.append(Trial(_text(config), milliseconds, need, why))
    made = Tuning(tuner.base_fn.__name__, key, tuple(trials), tuner.configs.index(tuner.cache[key]))
    tunings.append(made)
    del tunings[:-KEPT]
    import triton

    if triton.knobs.autotuning.print:
        from rich.console import Console

        Console(highlight=False).print(table(made))


def _text(config: Any) -> str:
    names = {**config.kwargs, "num_stages": config.num_stages}
    return "  ".join(f"{name}={value}" for name, value in names.items())


def table(tuning: Tuning) -> Any:
    """A rich table of a tuning, fastest first."""
    from rich.table import Table

    key = ", ".join(str(k) for k in tuning.key)
    made = Table(
        title=f"autotuning {tuning.kernel} ({key})", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    made.add_column("configuration")
    for name in ("simulated", "TCM a program", ""):
        made.add_column(name, justify="right" if name else "left", no_wrap=True)
    order = sorted(range(len(tuning.trials)), key=lambda i: (tuning.trials[i].milliseconds, i))
    for i in order:
        trial = tuning.trials[i]
        time = "" if math.isinf(trial.milliseconds) else f"{trial.milliseconds * 1e3:,.3f} us"
        need = "" if trial.tcm_bytes is None else f"{trial.tcm_bytes / 1024:,.1f} KiB"
        made.add_row(trial.config, time, need, "chosen" if i == tuning.best else trial.why)
    return made
