"""Bessel functions, which numpy lacks (but ``i0``): those of the first and second kind are the C library's."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


@cache
def _of_the_c_library(name: str) -> Any:
    """``name(x)``, or ``name(n, x)`` for ``jn`` and ``yn``, on numbers.

    Raises:
        NotImplementedError: the system's C library has no such function.
    """
    for library in (None, ctypes.util.find_library("m")):
        found = getattr(ctypes.CDLL(library), name, None)
        if found is not None:
            found.restype = ctypes.c_double
            found.argtypes = [ctypes.c_int, ctypes.c_double] if name.endswith("n") else [ctypes.c_double]
            return found
    raise NotImplementedError(f"the system's C library has no Bessel function {name}")


def bessel(name: str) -> Callable[..., Any]:
    """``j0 j1 jn y0 y1 yn`` over arrays, in float64."""

    def over(*xs: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.vectorize(_of_the_c_library(name), otypes=[np.float64])(*xs)

    return over


_POINTS = np.cos(np.pi * (np.arange(64) + 0.5) / 128)
"""Of a quarter of the circle: the integral below has its four symmetries."""


def i1(x: Any) -> Any:
    """The modified Bessel function of the first kind of order 1, in float64: the mean of sinh(x cos t) cos t over the
    circle, by midpoints, whose error falls exponentially with their number (Abramowitz and Stegun 9.6.19)."""
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = (np.sinh(x[..., None] * _POINTS) * _POINTS).mean(-1)
    return np.where(np.isnan(mean) | np.isinf(x), x, mean)
