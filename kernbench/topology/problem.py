"""What is wrong with a machine description, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One finding. ``str()`` is one line: ``place: path: message``."""

    message: str
    """What was found, what was expected, what to do."""
    path: str = ""
    """Dotted path of the key, ``sip.cube.hbm.bandwidth``; empty where the whole file is meant."""
    place: str = ""
    """``file:line``, ``--set`` or empty."""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        mark = "warning" if self.severity == "warning" else ""
        return ": ".join(part for part in (self.place, mark, self.path, self.message) if part)


class TopologyError(ValueError):
    """A machine description that cannot be used. The text has one line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


Key = tuple[str | int, ...]
"""Where a value stands in a description: ``("links", 0, "to")``."""


def dotted(key: Key) -> str:
    """``links[0].to`` for ``("links", 0, "to")``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def near(word: str, known: Sequence[str]) -> list[str]:
    """The known words most like ``word``, best first: at most two, and none when none is alike."""
    swapped = [other for other in known if sorted(other) == sorted(word)]  # letters in another order
    if swapped:
        return swapped[:2]
    found = get_close_matches(word, known, n=2, cutoff=0.6)
    likeness = [SequenceMatcher(None, word, other).ratio() for other in found]
    return [other for other, ratio in zip(found, likeness, strict=True) if ratio > likeness[0] - 0.12]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """A question naming the known words nearest to ``word``, or what is known where none is near."""
    if found := near(word, known):
        return f"did you mean {any_of(found)}?"
    return f"expected one of {listed(known)}"


def any_of(words: Iterable[str]) -> str:
    return " or ".join(f"`{word}`" for word in words)


def listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
