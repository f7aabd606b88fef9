"""Who changed a flag, and so what a wait for it has waited for.

Every wait asks since when its condition has held, of a word that may have been signalled very often. Each comparison
has its own short way there: the last value below a bound is among those that no later value is below, which form a
stack with ascending values; likewise from above; and for an equality one knows since when the value has stayed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from kernbench.kernels.comm import COMPARE
from kernbench.memory import Allocation
from kernbench.sim_engine.oplog import Token

KEPT_LAUNCHES = 2
"""Of each stream: those whose signals to a word are kept one by one. Of earlier ones, the latest of each program is."""
SHORTEST = 64
"""Signals to a word before the earlier ones are dropped."""


@dataclass(slots=True)
class Write:
    """A signal to one word."""

    value: Any
    """The word's value afterwards."""
    adds: bool
    """It depends on what was there before."""
    token: Token
    stream: int
    known: Any = None
    """What its program knew to be done, where races are looked for."""


@dataclass(slots=True)
class _Launch:
    """Signals of one launch to one word: the places in the history, of all and by program."""

    number: int
    first: int
    programs: dict[int, list[int]] = field(default_factory=dict)


_Latest = dict[tuple[int, int], dict[int, Write]]
"""(SIP, stream) -> of its latest launch, by program, the latest signal."""


class _Word:
    """What was signalled to one word, in the order in which programs took their turns."""

    def __init__(self, start: Any, dropped: _Latest | None = None, below: _Latest | None = None) -> None:
        self.start = start
        """The value before; None where it is not known."""
        self.dropped = dropped
        """Signals before the history begins; None where it is whole."""
        self.below = below or {}
        """Those of them that its first signal adds to."""
        self.writes: list[Write] = []
        self.sets: list[int] = []
        """Places of signals that do not depend on what was there before."""
        self.same_since = 0
        """The place from which the word has had the value it has now."""
        self.lows: list[int] = []
        """Places with a value below all later ones; their values ascend."""
        self.highs: list[int] = []
        """Places with a value above all later ones; their values descend."""
        self.last: dict[Any, int] = {}
        """Value -> the last place that has it."""
        self.launches: dict[tuple[int, int], list[_Launch]] = {}
        """(SIP, stream) -> its launches, in order."""
        self.settled = SHORTEST
        """Signals from which on it is worth the while to drop some."""

    def append(self, write: Write) -> None:
        at, value = len(self.writes), write.value
        if value != (self.writes[-1].value if at else self.start):
            self.same_since = at
        while self.lows and self.writes[self.lows[-1]].value >= value:
            self.lows.pop()
        while self.highs and self.writes[self.highs[-1]].value <= value:
            self.highs.pop()
        self.writes.append(write)
        self.lows.append(at)
        self.highs.append(at)
        self.last[value] = at
        if not write.adds:
            self.sets.append(at)
        sip, number, program, _ = write.token
        launches = self.launches.setdefault((sip, write.stream), [])
        if not launches or launches[-1].number != number:
            launches.append(_Launch(number, at))
        launches[-1].programs.setdefault(program, []).append(at)

    def fails_last(self, compare: str, bound: Any) -> int:
        """The last place whose value does not compare with ``bound`` as told; -1 where all do."""
        find = bisect_left if compare in ("ge", "le") else bisect_right
        if compare in ("ge", "gt"):
            failing = find(self.lows, bound, key=lambda place: self.writes[place].value)
            return self.lows[failing - 1] if failing else -1
        if compare in ("le", "lt"):
            failing = find(self.highs, -bound, key=lambda place: -self.writes[place].value)
            return self.highs[failing - 1] if failing else -1
        if compare == "ne":
            return self.last.get(bound, -1)
        return self.same_since - 1

    def needed(self, at: int) -> list[Write]:
        """The signal at a place and, where it added to the word, those it added to."""
        sets = bisect_right(self.sets, at)
        begin = self.sets[sets - 1] if sets else 0
        return [w for ws in self._latest(begin, at, {} if sets else self.below).values() for w in ws.values()]

    def _latest(self, begin: int, at: int, below: _Latest) -> _Latest:
        """Of the signals from one place to another. Launches of a stream follow each other, and so do the signals of
        one program: the latest stands for all. ``below``: of streams that have none there."""
        found = dict(below)
        for stream, launches in self.launches.items():
            number = bisect_right(launches, at, key=lambda launch: launch.first) - 1
            if number < 0:
                continue
            places = [p[bisect_right(p, at) - 1] for p in launches[number].programs.values()]
            programs = {self.writes[p].token[2]: self.writes[p] for p in places if begin <= p <= at}
            if programs:
                found[stream] = programs
        return found

    def shortened(self) -> _Word:
        """The history from a launch on that all it drops of that stream came before."""
        old = [launches for launches in self.launches.values() if len(launches) > KEPT_LAUNCHES]
        cut = max((launches[-KEPT_LAUNCHES].first for launches in old), default=0)
        if not cut:
            self.settled = 2 * len(self.writes)
            return self
        sets = bisect_right(self.sets, cut - 1)
        begin, below = (self.sets[sets - 1], {}) if sets else (0, self.below)
        made = _Word(
            self.writes[cut - 1].value,
            self._latest(0, cut - 1, self.dropped or {}),
            self._latest(begin, cut - 1, below),
        )
        for write in self.writes[cut:]:
            made.append(write)
        made.settled = max(SHORTEST, 2 * len(made.writes))
        return made


Words = WeakKeyDictionary[Allocation, dict[int, _Word]]
_words: Words = WeakKeyDictionary()


@contextmanager
def signals_aside() -> Iterator[None]:
    """What is signalled in the block is forgotten afterwards, and what was before is not known in it: for launches that
    do not get into the record."""
    global _words
    kept, _words = _words, WeakKeyDictionary()
    try:
        yield
    finally:
        _words = kept


def signalled(allocation: Allocation, offset: int, write: Write, before: Any, of: Words | None = None) -> None:
    """Remember who changed a word, among those ``of`` a launch or of all."""
    words = (_words if of is None else of).setdefault(allocation, {})
    word = words.get(offset)
    if word is None or (word.writes and word.writes[-1].value != before):  # reset by other means, in stream order
        word = words[offset] = _Word(before)
    elif len(word.writes) >= word.settled:
        word = words[offset] = word.shortened()
    word.append(write)


def satisfied_by(
    allocation: Allocation, offset: int, found: Any, compare: str, bound: Any, of: Words | None = None
) -> list[Write]:
    """What has to have arrived for a condition on a word to hold, given that it does now: the signal from which on it
    held without a break and, where that one added to the word, those it added to; of each program the latest. Where it
    has held since before the history begins, that is all from before.

    Args:
        found: the word's value.
        compare, bound: the condition, by a name of :data:`kernbench.kernels.comm.COMPARE` and its right side.
        of: the words of a launch; all by default.
    """
    word = (_words if of is None else of).get(allocation, {}).get(offset)
    if word is None or not word.writes or word.writes[-1].value != found:
        return []
    at = word.fails_last(compare, bound) + 1
    if at == 0 and word.start is not None and COMPARE[compare](word.start, bound):
        needed = [w for writes in (word.dropped or {}).values() for w in writes.values()]
    else:
        needed = word.needed(at)
    return sorted(needed, key=lambda write: write.token)
