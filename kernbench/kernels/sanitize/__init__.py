"""Checks of a kernel while it runs: uninitialised reads, races, wrapping offsets, the origin of a NaN, misaligned
tensor descriptors.

One switch turns them on, for everything that is launched meanwhile::

    with sanitize.enabled():                       # all but the shuffle
        kernel[grid](...)
    with sanitize.enabled(("race", "uninitialised"), shuffle=7):
        ...

and so do ``KERNBENCH_CHECK=1`` (or a list of names, ``KERNBENCH_CHECK=race,nan``),
``RuntimeContext.open(check=True)``, ``kernbench run --check`` and ``pytest --kb-check``. A finding is a
:class:`KernelFault` with the source line; the origin of a NaN is a :class:`NumericWarning` unless ``nan="fault"``.
Accesses out of bounds and deadlocks are always faults. Checks change no record, and no value but for the last bits of
sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NAMES = ("uninitialised", "race", "overflow", "nan", "alignment")


class NumericWarning(UserWarning):
    """A kernel wrote a NaN or an infinity that it made itself; the message names the line it came from."""


@dataclass(frozen=True)
class Checks:
    """What is looked for."""

    names: frozenset[str]
    nan: str = "warn"
    """``"warn"`` or ``"fault"``."""
    shuffle: int | None = None
    """Seed of a second run in another order of programs; None: no second run."""


_ENVIRONMENT = object()
_current: Checks | object | None = _ENVIRONMENT


def checks(names: Iterable[str] | bool | None = None, nan: str = "warn", shuffle: int | None = None) -> Checks | None:
    """A choice of checks: all of them by default, those named, or none at all for False.

    Raises:
        ValueError: a name that is no check, or a report other than ``warn`` and ``fault``.
    """
    if names is False:
        return None
    chosen = frozenset(NAMES if names is None or names is True else names)
    if unknown := sorted(chosen - set(NAMES)):
        raise ValueError(f"unknown checks {', '.join(unknown)}: choose from {', '.join(NAMES)}")
    if nan not in ("warn", "fault"):
        raise ValueError(f"nan={nan!r}: choose 'warn' or 'fault'")
    return Checks(chosen, nan, shuffle)


def current() -> Checks | None:
    """The checks that are on, None for none."""
    global _current
    if _current is _ENVIRONMENT:
        _current = _from_environment()
    return _current  # type: ignore[return-value]


def _from_environment() -> Checks | None:
    text = os.environ.get("KERNBENCH_CHECK", "").strip()
    if text in ("", "0"):
        return None
    return checks(None if text == "1" else [name.strip() for name in text.split(",")])


def switch(to: Checks | None) -> Checks | None:
    """Turn checks on or off and return what was set before."""
    global _current
    before, _current = current(), to
    return before


@contextmanager
def enabled(names: Iterable[str] | None = None, nan: str = "warn", shuffle: int | None = None) -> Iterator[None]:
    """Checks for what is launched, and allocated, in the ``with`` block; see :func:`checks`."""
    before = switch(checks(names, nan, shuffle))
    try:
        yield
    finally:
        switch(before)


def tracks_writes() -> bool:
    """Whether new memory should remember which of its bytes were ever written."""
    now = current()
    return now is not None and "uninitialised" in now.names
