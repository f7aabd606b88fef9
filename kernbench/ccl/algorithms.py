"""Which algorithms there are, by collective and name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from kernbench.ccl import direct, ring
from kernbench.ccl.schedule import Schedule, ScheduleError

Algorithm = Callable[..., Schedule]

_ALGORITHMS: dict[tuple[str, str], Algorithm] = {}


def register(collective: str, name: str, make: Algorithm) -> None:
    """Add an algorithm: ``make(ranks, **options) -> Schedule``. Options are the collective's (``root``) and its own."""
    if (collective, name) in _ALGORITHMS:
        raise ScheduleError(f"{collective} has an algorithm '{name}' already")
    _ALGORITHMS[collective, name] = lru_cache(maxsize=64)(make)


def get(collective: str, name: str | None = None) -> Algorithm:
    """The algorithm of that name, or the collective's first one.

    Raises:
        ScheduleError: there is none; the message lists what there is.
    """
    if name is None:
        name = next(iter(names(collective)), "")
    found = _ALGORITHMS.get((collective, name))
    if found is None:
        have = names(collective)
        every = sorted({of for of, _ in _ALGORITHMS})
        known = f"it has {', '.join(have)}" if have else f"collectives are {', '.join(every)}"
        raise ScheduleError(f"no algorithm '{name}' for {collective}: {known}")
    return found


def names(collective: str) -> list[str]:
    """Names of a collective's algorithms, the default first."""
    return [name for of, name in _ALGORITHMS if of == collective]


register("all_reduce", "ring", ring.all_reduce)
register("reduce_scatter", "ring", ring.reduce_scatter)
register("all_gather", "ring", ring.all_gather)
register("broadcast", "ring", ring.broadcast)
register("reduce", "ring", ring.reduce)
register("gather", "direct", direct.gather)
register("scatter", "direct", direct.scatter)
register("all_to_all", "direct", direct.all_to_all)
register("send", "direct", direct.send)
