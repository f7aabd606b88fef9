"""Who changed a flag, and so what a wait for it has waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from kernbench.memory import Allocation
from kernbench.sim_engine.oplog import Token


@dataclass(slots=True)
class Write:
    """A signal to one word."""

    value: Any
    """The word's value afterwards."""
    adds: bool
    """It depends on what was there before."""
    token: Token
    stream: int


@dataclass(slots=True)
class _Word:
    """What was signalled to one word, in the order in which programs took their turns."""

    start: Any
    """The value before."""
    writes: list[Write] = field(default_factory=list)


_words: WeakKeyDictionary[Allocation, dict[int, _Word]] = WeakKeyDictionary()


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


def signalled(allocation: Allocation, offset: int, write: Write, before: Any) -> None:
    """Remember who changed a word."""
    words = _words.setdefault(allocation, {})
    word = words.get(offset)
    if word is None or (word.writes and word.writes[-1].value != before):  # reset by other means, in stream order
        word = words[offset] = _Word(before)
    word.writes.append(write)


def satisfied_by(allocation: Allocation, offset: int, found: Any, holds: Callable[[Any], bool]) -> tuple[Token, ...]:
    """What has to have arrived for a condition on a word to hold, given that it does now: the signal from which on it
    held without a break and, where that one added to the word, those it added to."""
    word = _words.get(allocation, {}).get(offset)
    if word is None or not word.writes or word.writes[-1].value != found:
        return ()
    writes = word.writes
    at = len(writes) - 1
    while at and holds(writes[at - 1].value):
        at -= 1
    if at == 0 and holds(word.start):
        return ()
    latest: dict[tuple[int, int], int] = {}
    chosen: dict[tuple[int, int, int], Token] = {}
    while at >= 0:
        write = writes[at]
        sip, number, program, _ = write.token
        # Launches of a stream follow each other, and so do the signals of one program: the latest stands for all.
        if latest.setdefault((sip, write.stream), number) == number:
            chosen.setdefault((sip, number, program), write.token)
        if not write.adds:
            break
        at -= 1
    return tuple(sorted(chosen.values()))
