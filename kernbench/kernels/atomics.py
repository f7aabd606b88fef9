"""Atomic operations on one allocation's elements, lane after lane in the order of programs."""

from __future__ import annotations

from collections.abc import Callable
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
    if len(np.unique(at)) == len(at):
        old = memory[at]
        memory[at] = x if kind == "exch" else _FUNCTIONS[kind](old, x)
        return _carried(old, carrier)
    if kind == "add":
        return _counted(memory, at, x)
    change: Callable[[Any, Any], Any] = (lambda old, new: new) if kind == "exch" else _FUNCTIONS[kind]
    before = np.empty(len(at), memory.dtype)
    for lane, place in enumerate(at.tolist()):
        before[lane] = memory[place]
        memory[place] = change(memory[place], x[lane])
    return _carried(before, carrier)


def _counted(memory: NDArray[Any], at: NDArray[np.int64], x: NDArray[Any]) -> NDArray[Any]:
    """Integer addition with repeats: each lane finds the sum of those before it on the same element."""
    order = np.argsort(at, kind="stable")
    place, amount = at[order], x[order]
    running = np.cumsum(amount, dtype=memory.dtype) - amount
    first = np.ones(len(place), np.bool_)
    first[1:] = place[1:] != place[:-1]
    start = np.maximum.accumulate(np.where(first, np.arange(len(place)), 0))
    before = np.empty_like(x)
    before[order] = memory[place] + (running - running[start])
    np.add.at(memory, at, x)
    return before


def apply_cas(
    memory: NDArray[Any], at: NDArray[np.int64], expected: NDArray[Any], new: NDArray[Any], name: str
) -> NDArray[Any]:
    """Compare and swap; returns what each lane found. Floats compare by their bits, as hardware does."""
    carrier = expected.dtype
    expected, new = expected.astype(memory.dtype), new.astype(memory.dtype)
    if memory.dtype.itemsize not in (2, 4, 8):
        raise KernelError(f"atomic_cas on {name} is not supported: use 16, 32 or 64 bits")
    bits = np.dtype(f"u{memory.dtype.itemsize}")
    raw, want = memory.view(bits), np.ascontiguousarray(expected).view(bits)
    if len(at) == 1 or len(np.unique(at)) == len(at):
        old = memory[at]
        same = raw[at] == want
        memory[at[same]] = new[same]
        return _carried(old, carrier)
    before = np.empty(len(at), memory.dtype)
    for lane, place in enumerate(at.tolist()):
        before[lane] = memory[place]
        if raw[place] == want[lane]:
            memory[place] = new[lane]
    return _carried(before, carrier)


def _carried(x: NDArray[Any], carrier: np.dtype) -> NDArray[Any]:
    return x.view(carrier) if x.dtype.kind == "u" and carrier.kind == "i" else x.astype(carrier)
