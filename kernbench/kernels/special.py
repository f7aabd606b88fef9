"""Functions numpy lacks, and CUDA's libdevice by name."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def _lgamma(x: Any) -> Any:
    return np.vectorize(math.lgamma, otypes=[np.float64])(x)


_BY_NAME: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "fabs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh,
    "atan": np.arctan, "atan2": np.arctan2, "atanh": np.arctanh, "cbrt": np.cbrt, "ceil": np.ceil,
    "copysign": np.copysign, "cos": np.cos, "cosh": np.cosh, "erf": erf, "erfc": erfc, "exp": np.exp, "exp2": np.exp2,
    "exp10": lambda x: np.power(x.dtype.type(10), x), "expm1": np.expm1, "floor": np.floor, "fmod": np.fmod,
    "fma": lambda x, y, z: x * y + z, "fmax": np.fmax, "fmin": np.fmin, "hypot": np.hypot, "isinfd": np.isinf,
    "isnand": np.isnan, "isinf": np.isinf, "isnan": np.isnan, "finite": np.isfinite, "isfinited": np.isfinite,
    "ldexp": np.ldexp, "lgamma": _lgamma, "llrint": np.rint, "log": np.log, "log10": np.log10, "log1p": np.log1p,
    "log2": np.log2, "nearbyint": np.rint, "pow": np.power, "powi": np.power, "rint": np.rint, "round": round_half_away,
    "rsqrt": rsqrt, "signbit": np.signbit, "signbitd": np.signbit, "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt,
    "tan": np.tan, "tanh": np.tanh, "trunc": np.trunc, "fast_exp": np.exp, "fast_log": np.log, "fast_tanh": np.tanh,
    "fast_sin": np.sin, "fast_cos": np.cos, "fast_pow": np.power, "fast_div": np.divide, "fdiv_rn": np.divide,
    "fast_divide": np.divide, "saturate": lambda x: np.clip(x, 0, 1), "rcp_rn": np.reciprocal, "add_rn": np.add,
    "mul_rn": np.multiply, "sub_rn": np.subtract, "div_rn": np.divide, "sqrt_rn": np.sqrt,
}  # fmt: skip
LIBDEVICE: dict[str, Callable[..., Any]] = {
    f"__nv_{prefix}{name}{suffix}": fn
    for name, fn in _BY_NAME.items()
    for prefix, suffix in (("", ""), ("", "f"), ("f", ""))
}
"""libdevice's symbols, for double and single precision, that KernBench knows."""
