"""Arithmetic rounded down, up or towards zero: libdevice's ``_rd``, ``_ru`` and ``_rz`` functions.

The result rounded to nearest is at most one step away from the one asked for, and the sign of what it misses the exact
value by says which. For float32 that error is exact enough in float64; for float64 it is computed in fractions.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

_Error = Callable[..., Any]
"""Sign of (exact result - r), from ``r`` and the operands: in float64, or in fractions, one element."""


def _sum_error(r: Any, a: Any, b: Any) -> Any:
    if isinstance(r, Fraction):
        return a + b - r
    total, lost = _two_sum(a, b)
    return (total - r) + lost


def fma(a: Any, b: Any, c: Any) -> Any:
    """``a*b + c`` of float32 or float64 rounded once: exactly for float32, and but for rare ties for float64."""
    dtype = np.result_type(a, b, c)
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    with np.errstate(all="ignore"):
        if dtype == np.float64:
            product = a * b
            total, lost = _two_sum(product, c)
            better = total + (lost + _product_error(a, b, product))
            return np.where(np.isfinite(better), better, total)
        return _fma_to_odd(a, b, c).astype(dtype)


def fma_of_narrow(a: Any, b: Any, c: Any) -> Any:
    """``a*b + c`` of float16 or bfloat16 numbers as a float32 that rounds to their type as the exact result does."""
    with np.errstate(all="ignore"):
        return rounded_to_odd(_fma_to_odd(*(np.asarray(x, np.float64) for x in (a, b, c))))


def _fma_to_odd(a: Any, b: Any, c: Any) -> Any:
    """Of numbers of at most 24 bits, held in float64, so that the product is exact."""
    return _odd(*_two_sum(a * b, c))


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """a + b as float64 has it, and what that misses, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _odd(near: Any, missing: Any) -> Any:
    """The exact number ``near + missing`` rounded to odd: inexact results get an odd last bit, which keeps a second
    rounding, to fewer bits, from seeing a tie where there is none."""
    near = np.asarray(near)
    even = (near.view(f"i{near.dtype.itemsize}") & 1) == 0
    towards = np.where(missing > 0, np.inf, -np.inf).astype(near.dtype)
    return np.where((missing != 0) & even & np.isfinite(near), np.nextafter(near, towards), near)


def rounded_to_odd(x: Any) -> Any:
    """float64 as float32, rounded to odd."""
    x = np.asarray(x)
    with np.errstate(over="ignore", invalid="ignore"):
        near = x.astype(np.float32)
        return _odd(near, x - near)


def _product_error(a: Any, b: Any, product: Any) -> Any:
    """What float64 ``product`` misses of ``a*b`` (Dekker's algorithm, with Veltkamp's splitting)."""
    halves = []
    for x in (a, b):
        scaled = x * (2.0**27 + 1)
        high = scaled - (scaled - x)
        halves += [high, x - high]
    a_high, a_low, b_high, b_low = halves
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


_ERRORS: dict[str, _Error] = {
    "add": _sum_error,
    "sub": lambda r, a, b: _sum_error(r, a, -b),
    "mul": lambda r, a, b: a * b - r,
    "div": lambda r, a, b: (a - r * b) * (1 - 2 * (b < 0)),
    "rcp": lambda r, b: (1 - r * b) * (1 - 2 * (b < 0)),
    "sqrt": lambda r, a: a - r * r,
    "fma": lambda r, a, b, c: _sum_error(r, a * b, c),
}
_NEAREST: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "fma": fma,
}

NAMES = frozenset(_NEAREST)
"""What :func:`arithmetic` knows."""


def _error_in_fractions(name: str, r: Any, *xs: Any) -> Any:
    def one(r: float, *xs: float) -> int:
        if not all(np.isfinite((r, *xs))):
            return 0
        error = _ERRORS[name](*(Fraction(x) for x in (r, *xs)))
        return (error > 0) - (error < 0)

    return np.vectorize(one, otypes=[np.int64])(r, *xs)


def arithmetic(name: str, direction: str) -> Callable[..., Any]:
    """A function of arrays of one type, float32 or float64.

    Args:
        name: one of :data:`NAMES`.
        direction: ``rd``, ``ru`` or ``rz``.
    """

    def apply(*xs: Any) -> Any:
        xs = tuple(np.asarray(x) for x in xs)
        with np.errstate(all="ignore"):
            near = np.asarray(_NEAREST[name](*xs))
            if near.dtype == np.float64:
                error = _error_in_fractions(name, near, *xs)
            else:
                error = _ERRORS[name](*(x.astype(np.float64) for x in (near, *xs)))
            overflowed = np.isinf(near)
            for x in xs:
                overflowed = overflowed & np.isfinite(x)
            if name in ("div", "rcp"):
                overflowed = overflowed & (xs[-1] != 0)
            # The error of an infinite result points back to the finite numbers.
            error = np.where(overflowed, -near, np.where(np.isfinite(near), error, 0))
        return _chosen(near, error, direction)

    return apply


def converted(direction: str, dtype: type[np.floating[Any]]) -> Callable[[Any], Any]:
    """A function from integers or float64 to a float type, with such a rounding."""

    def sign(exact: Any, near: Any) -> int:
        return (exact > near) - (exact < near)  # Python compares integers with floats exactly

    def apply(x: Any) -> Any:
        with np.errstate(over="ignore"):
            near = np.asarray(x).astype(dtype)
        return _chosen(near, np.vectorize(sign, otypes=[np.int64])(x, near), direction)

    return apply


def _chosen(near: Any, error: Any, direction: str) -> Any:
    """The neighbour of ``near``, or itself, on the side that the direction and the sign of the error say."""
    with np.errstate(over="ignore"):
        down, up = (np.nextafter(near, near.dtype.type(side)) for side in (-np.inf, np.inf))
    if direction == "rz":
        return np.where((near > 0) & (error < 0), down, np.where((near < 0) & (error > 0), up, near))
    return np.where(error < 0, down, near) if direction == "rd" else np.where(error > 0, up, near)
