"""One fault at one step of something that happens step by step: seeded, so that the same fault strikes alike again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args

import numpy as np

from kernbench.weight_sync.arrays import from_bytes, to_bytes

Kind = Literal["drop", "duplicate", "reorder", "corrupt", "truncate", "delay", "kill"]
KINDS: tuple[Kind, ...] = get_args(Kind)
T = TypeVar("T")


class Killed(BaseException):
    """Whoever meets this fault is dead from here on: no handler of ordinary errors may go on."""


@dataclass(frozen=True)
class Fault:
    """What strikes, and when.

    Attributes:
        kind: ``drop`` (the message never comes), ``duplicate`` (it comes twice), ``reorder`` (it comes after the next),
            ``corrupt`` (one bit is flipped), ``truncate`` (its end is missing), ``delay`` (it comes late) or ``kill``.
        step: the message that it strikes, counted from 0.
        seed: decides the rest: which bit, how much is cut off.
        seconds: of a delay.
    """

    kind: Kind
    step: int
    seed: int = 0
    seconds: float = 0.001

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a fault is {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.step < 0:
            raise ValueError(f"the fault's step is {self.step}: they count from 0")


@dataclass(frozen=True)
class Damage(Generic[T]):
    """How messages of one type are damaged; each gives a new one."""

    flip: Callable[[T, np.random.Generator], T]
    cut: Callable[[T, np.random.Generator], T]


class Injector(Generic[T]):
    """Messages go through it, and its fault strikes one of them.

    Args:
        fault: None lets everything through.
        damage: how to flip and cut messages; by default they are bytes.
        kill: what being killed is, by default raising :class:`Killed`; it may do the same to a real process.
    """

    def __init__(
        self, fault: Fault | None, damage: Damage[Any] | None = None, kill: Callable[[], Any] | None = None
    ) -> None:
        self.fault, self._kill = fault, kill or _die
        self.damage: Damage[Any] = damage or BYTES
        self.steps = 0
        """Messages so far; after a run without a fault, how many steps there are to strike."""
        self.struck = False
        """Whether the fault has had its message."""
        self._held: list[T] = []

    def pass_on(self, message: T) -> list[T]:
        """What comes in the place of this message: usually itself.

        Raises:
            Killed: the fault is a kill.
        """
        mine = self.fault is not None and self.steps == self.fault.step
        self.steps += 1
        held, self._held = self._held, []
        if not mine or self.fault is None:
            return [message, *held]
        self.struck = True
        return self._strike(message, self.fault)

    def through(self, messages: Iterable[T]) -> Iterator[T]:
        """All of them, with the fault."""
        for message in messages:
            yield from self.pass_on(message)
        yield from self.rest()

    @property
    def holds(self) -> bool:
        """Whether a message waits for the next to go first."""
        return bool(self._held)

    def rest(self) -> list[T]:
        """What is still held back when no further message comes."""
        held, self._held = self._held, []
        return held

    def _strike(self, message: T, fault: Fault) -> list[T]:
        rng = np.random.default_rng(fault.seed)
        if fault.kind == "drop":
            return []
        if fault.kind == "duplicate":
            return [message, message]
        if fault.kind == "reorder":
            self._held = [message]
            return []
        if fault.kind == "corrupt":
            return [self.damage.flip(message, rng)]
        if fault.kind == "truncate":
            return [self.damage.cut(message, rng)]
        if fault.kind == "kill":
            self._kill()
        time.sleep(fault.seconds)
        return [message]


def flip_bit(data: Any, rng: np.random.Generator) -> bytes:
    """A copy with one bit flipped; of nothing, nothing."""
    made = bytearray(data)
    if made:
        made[rng.integers(len(made))] ^= 1 << int(rng.integers(8))
    return bytes(made)


def cut_end(data: Any, rng: np.random.Generator) -> bytes:
    """A copy without its end: one byte at least is missing."""
    return bytes(data)[: int(rng.integers(len(data)))] if len(data) else b""


BYTES: Damage[bytes] = Damage(flip_bit, cut_end)


def flip_tensor(pair: tuple[str, Any], rng: np.random.Generator) -> tuple[str, Any]:
    """(name, a copy of the tensor in host memory with one bit flipped)."""
    name, weight = pair
    found = to_bytes(weight)
    data = np.frombuffer(bytearray(flip_bit(found.data.tobytes(), rng)), np.uint8)
    if found.kind.name == "bool":
        data = found.data ^ (np.arange(found.data.size) == rng.integers(max(found.data.size, 1)))
    return name, from_bytes(found.kind, found.shape, data, "numpy")


def cut_tensor(pair: tuple[str, Any], rng: np.random.Generator) -> tuple[str, Any]:
    """(name, the tensor with fewer rows); a tensor without rows becomes one without elements."""
    name, weight = pair
    found = to_bytes(weight)
    rows = found.shape[0] if found.shape else 0
    shape = (int(rng.integers(rows)) if rows else 0, *found.shape[1:])
    return name, from_bytes(found.kind, shape, found.data[: found.kind.nbytes(shape)], "numpy")


TENSORS: Damage[tuple[str, Any]] = Damage(flip_tensor, cut_tensor)
"""Of (name, tensor) pairs."""


def faulty_weights(weights: Iterable[tuple[str, Any]], fault: Fault | None) -> Iterator[tuple[str, Any]]:
    """(name, tensor) pairs as a faulty trainer gives them: a step is a tensor."""
    return Injector[tuple[str, Any]](fault, TENSORS).through(weights)


def faulty_load(load_weights: Callable[[list[tuple[str, Any]]], Any], injector: Injector[tuple[str, Any]]) -> Any:
    """``load_weights`` of any engine behind a fault: a step is a tensor that the engine hands over.

    The injector needs :data:`TENSORS`. What a reorder holds back at the end is given by its ``rest()``.
    """

    def load(pairs: list[tuple[str, Any]]) -> None:
        for pair in pairs:
            if came := injector.pass_on(pair):
                load_weights(came)

    return load


def _die() -> NoReturn:
    raise Killed("killed by a fault")
