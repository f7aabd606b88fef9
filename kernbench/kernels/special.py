"""Functions numpy lacks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    return (x.dtype.type(1) / np.sqrt(x)).astype(x.dtype, copy=False)


def round_half_away(x: Any) -> Any:
    """To the nearest integer, halves away from zero."""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(1, x), 0).astype(whole.dtype)


_SERIES = [(-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(33)]


def _erfc_tail(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """erfc(x) for x >= 2 by its continued fraction (Abramowitz and Stegun 7.1.14), evaluated from the inside."""
    fraction = np.zeros_like(x)
    for k in range(60, 0, -1):
        fraction = (k / 2) / (x + fraction)
    return np.exp(-x * x) / (math.sqrt(math.pi) * (x + fraction))


def _erf64(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """erf in double precision: its Taylor series near zero, one minus the tail beyond 2."""
    size = np.abs(x)
    small = np.minimum(size, 2.0)
    total = np.zeros_like(small)
    square = small * small
    for coefficient in reversed(_SERIES):
        total = total * square + coefficient
    near = small * total * (2 / math.sqrt(math.pi))
    out = near
    far = size > 2
    if far.any():
        out = np.where(far, 1 - _erfc_tail(np.where(far, np.minimum(size, 27.0), 2.0)), near)
    return np.copysign(np.where(np.isnan(x), x, out), x)


def erf(x: Any) -> Any:
    """The error function, in the precision of ``x``."""
    return _erf64(np.asarray(x, np.float64)).astype(x.dtype)[()]


def erfc(x: Any) -> Any:
    """1 - erf(x), without cancellation for large x."""
    wide = np.asarray(x, np.float64)
    return np.where(wide > 2, _erfc_tail(np.clip(wide, 2.0, 27.0)), 1 - _erf64(wide)).astype(x.dtype)[()]


def erfcx(x: Any) -> Any:
    """exp(x^2) erfc(x), which stays in range where erfc does not."""
    wide = np.asarray(x, np.float64)
    tail = _erfc_tail(np.clip(wide, 2.0, 26.0)) * np.exp(np.square(np.clip(wide, 2.0, 26.0)))
    with np.errstate(over="ignore"):
        near = np.exp(np.square(np.minimum(wide, 2.0))) * (1 - _erf64(np.minimum(wide, 2.0)))
    return np.where(wide > 2, np.where(wide > 26, 1 / (wide * math.sqrt(math.pi)), tail), near).astype(x.dtype)[()]
