"""Fewer of an autotuner's configurations, so that a kernel with hundreds of them is tried in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST = 8
"""Configurations of one autotuner that are tried."""


@contextmanager
def fewer(kernel: Any) -> Iterator[str]:
    """Leave :data:`MOST` configurations to each autotuner of a kernel, spread over the list that it has.

    An autotuner that prunes its configurations keeps them all, since it may want particular ones.

    Gives:
        What to tell of it; empty where all are left.
    """
    kept: list[tuple[Any, list[Any]]] = []
    told, outer = "", kernel
    while outer is not None:
        configs = getattr(outer, "configs", None) or []
        prunes = getattr(outer, "early_config_prune", None) or getattr(outer, "perf_model", None)
        if len(configs) > MOST and not prunes:
            kept.append((outer, configs))
            outer.configs = [configs[i * (len(configs) - 1) // (MOST - 1)] for i in range(MOST)]
            told = (
                f"{MOST} of {len(configs)} autotuning configurations were tried, to save time: host code that launches "
                "the kernel tries all"
            )
        outer = getattr(outer, "fn", None) if hasattr(outer, "arg_names") else None
    try:
        yield told
    finally:
        for tuner, configs in kept:
            tuner.configs = configs
