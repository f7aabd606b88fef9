"""Atomic operations on one allocation's elements, with the results of lane after lane in the order of programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelError

_FUNCTIONS: dict[str, Any] = {
    "fadd": np.add,
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "max": np.maximum,
    "min": np.minimum,
    "umax": np.maximum,
    "umin": np.minimum,
}


def apply_rmw(
    kind: str, memory: NDArray[Any], at: NDArray[np.int64], x: NDArray[Any], used: bool, name: str
) -> NDArray[Any]:
    """Read-modify-write.

    Args:
        kind: TTIR's name: ``fadd add and or xor max min umax umin exch``.
        memory: the allocation as elements of their storage type; changed in place.
        at: int64[lanes], element of each lane; repeats happen in order.
        x: [lanes], operands on the carrier.
        used: whether anybody looks at the result.
        name: element type.

    Returns:
        What each lane found, on the carrier (arbitrary where not ``used``).
    """
    carrier = x.dtype
    x = x.astype(memory.dtype)
    if kind.startswith("u"):
        view = np.dtype(f"u{memory.dtype.itemsize}")
        memory, x = memory.view(view), x.view(view)
    if kind != "exch" and not used:
        _FUNCTIONS[kind].at(memory, at, x)
        return np.zeros(len(at), carrier)
    if kind == "exch" and len(at) == 1:  # a lock's: what programs that take turns do all day
        before = memory[at]
        memory[at] = x
        return _carried(before, carrier)
    turns = Turns(at)
    if kind == "exch":
        return _carried(turns.exchange(memory, x), carrier)
    return _carried(turns.accumulate(memory, x, _FUNCTIONS[kind]), carrier)


def apply_cas(
    memory: NDArray[Any], at: NDArray[np.int64], expected: NDArray[Any], new: NDArray[Any], name: str
) -> NDArray[Any]:
    """Compare and swap; returns what each lane found. Floats compare by their bits, as hardware does."""
    carrier = expected.dtype
    expected, new = expected.astype(memory.dtype), new.astype(memory.dtype)
    if memory.dtype.itemsize not in (2, 4, 8):
        raise KernelError(f"atomic_cas on {name} is not supported: use 16, 32 or 64 bits")
    bits = np.dtype(f"u{memory.dtype.itemsize}")
    raw, want, put = memory.view(bits), np.ascontiguousarray(expected).view(bits), np.ascontiguousarray(new).view(bits)
    return _carried(Turns(at).compare_and_swap(raw, want, put).view(memory.dtype), carrier)


_FIRST, _ONCE = np.zeros(1, np.intp), np.ones(1, np.intp)


class Turns:
    """Lanes that name the same elements, in the order in which they get their turn."""

    ROUNDS = 32
    """Turns that are taken for all elements together. Elements with more go on alone, all their turns at once."""

    def __init__(self, at: NDArray[np.int64]) -> None:
        self.at = at
        if len(at) == 1:
            self.order = self.starts = _FIRST
            self.counts = _ONCE
            return
        self.order = np.argsort(at, kind="stable")
        """Lanes by element, those of one element in their order."""
        place = at[self.order]
        first = np.ones(len(at), np.bool_)
        first[1:] = place[1:] != place[:-1]
        self.starts = np.flatnonzero(first)
        self.counts = np.diff(self.starts, append=len(at))
        """Where each element's lanes begin in ``order``, and how many there are."""

    def one_by_one(self) -> Iterator[NDArray[np.intp]]:
        """Lanes that may go together: the first of every element, the second, and so on."""
        for turn in range(int(self.counts.max(initial=0))):
            yield self.order[self.starts[self.counts > turn] + turn]

    def long(self) -> Iterator[NDArray[np.intp]]:
        """The lanes of each element with more than ``ROUNDS``, from there on."""
        long = self.counts > self.ROUNDS
        for start, count in zip(self.starts[long].tolist(), self.counts[long].tolist(), strict=True):
            yield self.order[start + self.ROUNDS : start + count]

    def exchange(self, memory: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        """Every lane leaves its value and finds the one before."""
        before = np.empty(len(self.at), memory.dtype)
        before[self.order[1:]] = x[self.order[:-1]]
        first = self.order[self.starts]
        before[first] = memory[self.at[first]]
        last = self.order[self.starts + self.counts - 1]
        memory[self.at[last]] = x[last]
        return before

    def compare_and_swap(self, memory: NDArray[Any], want: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
        """Every lane puts its value where it finds the one it wants, and says what it found. Bits, all three.

        Only a lane that swaps changes what the next find: each round goes as far as the next swap of every element.
        """
        if len(self.at) == 1:
            found = memory[self.at]
            memory[self.at] = np.where(found == want, new, found)
            return found
        before = np.empty(len(self.at), memory.dtype)
        element = np.repeat(np.arange(len(self.starts)), self.counts)
        left, holds = np.arange(len(self.at)), memory[self.at[self.order[self.starts]]]
        for _ in range(self.ROUNDS):
            lanes, of = self.order[left], element[left]
            before[lanes] = holds[of]
            swaps = np.flatnonzero(want[lanes] == holds[of])
            if not len(swaps):
                left = left[:0]
                break
            which, first = np.unique(of[swaps], return_index=True)
            first = left[swaps[first]]
            holds[which] = new[self.order[first]]
            past = np.full(len(holds), len(self.at))
            past[which] = first
            left = left[left > past[of]]
        for lane, of in zip(self.order[left].tolist(), element[left].tolist(), strict=True):
            before[lane] = holds[of]
            if holds[of] == want[lane]:
                holds[of] = new[lane]
        memory[self.at[self.order[self.starts]]] = holds
        return before

    def accumulate(self, memory: NDArray[Any], x: NDArray[Any], function: np.ufunc) -> NDArray[Any]:
        """Every lane combines its value into the element, which is rounded each time, and finds what was there."""
        before = np.empty(len(self.at), memory.dtype)
        for turn, lanes in enumerate(self.one_by_one()):
            if turn == self.ROUNDS:
                break
            place = self.at[lanes]
            before[lanes] = memory[place]
            memory[place] = function(before[lanes], x[lanes])
        for lanes in self.long():
            place = self.at[lanes[0]]
            values = function.accumulate(np.append(memory[place : place + 1], x[lanes]), dtype=memory.dtype)
            before[lanes], memory[place] = values[:-1], values[-1]
        return before


def _carried(x: NDArray[Any], carrier: np.dtype) -> NDArray[Any]:
    return x.view(carrier) if x.dtype.kind == "u" and carrier.kind == "i" else x.astype(carrier)
