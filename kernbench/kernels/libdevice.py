"""CUDA's libdevice by symbol: what ``tl.extra.libdevice`` calls become in TTIR, on numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from kernbench.kernels import directed
from kernbench.kernels.bessel import bessel, i1
from kernbench.kernels.special import erf, erfc, erfcx, round_half_away, rsqrt


def _each(fn: Callable[[float], float], poles: float = math.nan) -> Callable[[Any], Any]:
    """A function of Python's floats over an array; ``poles`` where it has no value."""

    def one(x: float) -> float:
        try:
            return fn(x)
        except (ValueError, OverflowError, ZeroDivisionError):
            return math.nan if math.isnan(x) else poles

    return lambda x: np.vectorize(one, otypes=[np.float64])(np.asarray(x, np.float64))


def _quantile(p: float) -> float:
    return {0.0: -math.inf, 1.0: math.inf}.get(p) or NormalDist().inv_cdf(p)


_normcdfinv = _each(_quantile)
_HALF = math.sqrt(0.5)


def _erfinv(x: Any) -> Any:
    """By way of the normal distribution's lower tail, where nothing cancels."""
    x = np.asarray(x, np.float64)
    return np.copysign(_normcdfinv((1 - np.abs(x)) / 2) * _HALF, x)


def _normcdf(x: Any) -> Any:
    return 0.5 * erfc(-np.asarray(x, np.float64) * _HALF)


def _unsigned(x: Any) -> Any:
    x = np.asarray(x)
    return x.view(f"u{x.dtype.itemsize}")


def _leading_zeros(x: Any) -> Any:
    bits = 8 * np.asarray(x).dtype.itemsize
    left, count = _unsigned(x).astype(np.uint64), np.full(np.shape(x), bits, np.int32)
    for _ in range(bits):
        count = count - (left > 0)
        left = left >> np.uint64(1)
    return count


def _lowest_set(x: Any) -> Any:
    x = np.asarray(x)
    lowest = _unsigned(x & -x)
    return np.where(x == 0, 0, 8 * x.dtype.itemsize - _leading_zeros(lowest))


def _reversed_bits(x: Any) -> Any:
    left, out = _unsigned(x), np.zeros_like(_unsigned(x))
    for _ in range(8 * left.dtype.itemsize):
        out = (out << 1) | (left & 1)
        left = left >> 1
    return out.view(np.asarray(x).dtype)


def _high(x: Any, y: Any) -> Any:
    return (np.asarray(x, np.int64) * np.asarray(y, np.int64)) >> 32


def _high_64(x: Any, y: Any) -> Any:
    """The upper 64 bits of the product of two words, unsigned."""
    x, y = _unsigned(x), _unsigned(y)
    low, half = np.uint64(2**32 - 1), np.uint64(32)
    a, b, c, d = x >> half, x & low, y >> half, y & low
    middle = a * d + ((b * d) >> half)
    return a * c + (middle >> half) + (((middle & low) + b * c) >> half)


def _signed_high_64(x: Any, y: Any) -> Any:
    x, y = np.asarray(x), np.asarray(y)
    return _high_64(x, y).view(np.int64) - np.where(x < 0, y, 0) - np.where(y < 0, x, 0)


def _low_24(x: Any) -> Any:
    return (np.asarray(x, np.int64) << 40) >> 40


def _low_24_unsigned(x: Any) -> Any:
    return np.asarray(x, np.int64) & 0xFFFFFF


def _permuted_bytes(x: Any, y: Any, selector: Any) -> Any:
    """Four bytes, each chosen out of the eight of (y, x) by a nibble; its top bit asks for the sign instead."""
    both = _unsigned(x).astype(np.uint64) | (_unsigned(y).astype(np.uint64) << np.uint64(32))
    chosen, out = _unsigned(selector).astype(np.uint64), np.uint64(0)
    for i in range(4):
        nibble = (chosen >> np.uint64(4 * i)) & np.uint64(15)
        byte = (both >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        byte = np.where(nibble >= 8, (byte >> np.uint64(7)) * np.uint64(255), byte)
        out = out | (byte << np.uint64(8 * i))
    return out.astype(np.uint32).view(np.int32)


def _words(x: Any) -> Any:
    """The 32-bit words of float64, [..., 2], the low one first."""
    x = np.asarray(x, np.float64)
    return np.ascontiguousarray(x).reshape(-1).view(np.int32).reshape(*x.shape, 2)


def _of_words(high: Any, low: Any) -> Any:
    return np.stack(np.broadcast_arrays(low, high), -1).astype(np.int32).view(np.float64)[..., 0]


def _to_int(rounding: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    """A float to an integer, clipped to its range; NaN becomes 0."""
    info = np.iinfo(kind)

    def convert(x: Any) -> Any:
        whole = np.nan_to_num(rounding(np.asarray(x, np.float64)), nan=0.0)
        inside = (whole >= float(info.min)) & (whole < float(info.max))
        made = np.where(inside, whole, 0).astype(kind)
        return np.where(inside, made, np.where(whole < 0, info.min, np.where(whole == 0, 0, info.max))).astype(kind)

    return convert


def _exponent(x: Any) -> Any:
    return np.frexp(x)[1] - 1


def _norm(*xs: Any) -> Any:
    return np.sqrt(sum(np.square(np.asarray(x, np.float64)) for x in xs))


_BY_NAME: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "fabs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh,
    "atan": np.arctan, "atan2": np.arctan2, "atanh": np.arctanh, "cbrt": np.cbrt, "ceil": np.ceil,
    "copysign": np.copysign, "cos": np.cos, "cosh": np.cosh, "cospi": lambda x: np.cos(np.pi * np.fmod(x, 2)),
    "cyl_bessel_i0": np.i0, "cyl_bessel_i1": i1,
    "erf": erf, "erfc": erfc, "erfcinv": lambda x: -_normcdfinv(x / 2) * _HALF,
    "erfcx": erfcx, "erfinv": _erfinv, "exp": np.exp, "exp2": np.exp2,
    "exp10": lambda x: np.power(x.dtype.type(10), x), "expm1": np.expm1,
    "fdim": lambda x, y: np.where(np.isnan(x) | np.isnan(y), np.nan, np.maximum(x - y, 0)), "floor": np.floor,
    "fmod": np.fmod, "fma": directed.fma, "fmax": np.fmax, "fmin": np.fmin, "hypot": np.hypot,
    "ilogb": _exponent, "isinfd": np.isinf, "isnand": np.isnan, "isinf": np.isinf, "isnan": np.isnan,
    "finite": np.isfinite, "isfinited": np.isfinite, "ldexp": np.ldexp, "lgamma": _each(math.lgamma, math.inf),
    "llabs": np.abs, "llrint": np.rint, "llround": round_half_away, "log": np.log, "log10": np.log10,
    "log1p": np.log1p, "log2": np.log2, "logb": _exponent, "nearbyint": np.rint, "nextafter": np.nextafter,
    "norm3d": _norm, "norm4d": _norm, "normcdf": _normcdf, "normcdfinv": _normcdfinv, "pow": np.power,
    "j0": bessel("j0"), "j1": bessel("j1"), "jn": bessel("jn"), "y0": bessel("y0"), "y1": bessel("y1"),
    "yn": bessel("yn"), "powi": np.power, "rcbrt": lambda x: 1 / np.cbrt(x),
    "remainder": lambda x, y: np.asarray(x, np.float64) - y * np.rint(np.asarray(x, np.float64) / y),
    "rhypot": lambda x, y: 1 / np.hypot(x, y), "rint": np.rint, "rnorm3d": lambda *xs: 1 / _norm(*xs),
    "rnorm4d": lambda *xs: 1 / _norm(*xs), "round": round_half_away, "rsqrt": rsqrt, "scalbn": np.ldexp,
    "signbit": np.signbit, "signbitd": np.signbit, "sin": np.sin, "sinh": np.sinh,
    "sinpi": lambda x: np.sin(np.pi * np.fmod(x, 2)), "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh,
    "tgamma": _each(math.gamma, math.nan), "trunc": np.trunc,
    "fast_exp": np.exp, "fast_exp10": lambda x: np.power(x.dtype.type(10), x), "fast_log": np.log,
    "fast_log2": np.log2, "fast_log10": np.log10, "fast_tanh": np.tanh, "fast_sin": np.sin, "fast_cos": np.cos,
    "fast_tan": np.tan, "fast_pow": np.power, "fast_div": np.divide, "fast_divide": np.divide,
    "fast_fdivide": np.divide, "saturate": lambda x: np.clip(x, 0, 1),
    "add_rn": np.add, "mul_rn": np.multiply, "sub_rn": np.subtract, "div_rn": np.divide, "sqrt_rn": np.sqrt,
    "rcp_rn": np.reciprocal, "rsqrt_rn": rsqrt, "fma_rn": directed.fma,
    "popc": lambda x: np.bitwise_count(_unsigned(x)), "popcll": lambda x: np.bitwise_count(_unsigned(x)),
    "clz": _leading_zeros, "clzll": _leading_zeros, "ffs": _lowest_set, "ffsll": _lowest_set,
    "brev": _reversed_bits, "brevll": _reversed_bits, "mulhi": _high,
    "umulhi": lambda x, y: _high(_unsigned(x), _unsigned(y)), "mul64hi": _signed_high_64, "umul64hi": _high_64,
    "umul24": lambda x, y: _low_24_unsigned(x) * _low_24_unsigned(y), "byte_perm": _permuted_bytes,
    "mul24": lambda x, y: _low_24(x) * _low_24(y),
    "sad": lambda x, y, z: np.abs(np.asarray(x, np.int64) - y) + z,
    "hadd": lambda x, y: (np.asarray(x, np.int64) + y) >> 1,
    "rhadd": lambda x, y: (np.asarray(x, np.int64) + y + 1) >> 1,
    "usad": lambda x, y, z: np.abs(np.asarray(_unsigned(x), np.int64) - _unsigned(y)) + z,
    "uhadd": lambda x, y: (np.asarray(_unsigned(x), np.int64) + _unsigned(y)) >> 1,
    "urhadd": lambda x, y: (np.asarray(_unsigned(x), np.int64) + _unsigned(y) + 1) >> 1,
    "double2hiint": lambda x: _words(x)[..., 1], "double2loint": lambda x: _words(x)[..., 0],
    "hiloint2double": _of_words, "rcp64h": lambda x: _of_words(_words(1 / x)[..., 1], 0),
    "float_as_int": lambda x: np.asarray(x).view(np.int32), "float_as_uint": lambda x: np.asarray(x).view(np.int32),
    "int_as_float": lambda x: np.asarray(x).view(np.float32), "uint_as_float": lambda x: np.asarray(x).view(np.float32),
    "double_as_longlong": lambda x: np.asarray(x).view(np.int64),
    "longlong_as_double": lambda x: np.asarray(x).view(np.float64), "double2float_rn": lambda x: x,
}  # fmt: skip
_INTEGERS = {"int": "i4", "uint": "u4", "ll": "i8", "ull": "u8"}
_ROUNDINGS = {"rn": np.rint, "rd": np.floor, "ru": np.ceil, "rz": np.trunc}
for _name, _kind in _INTEGERS.items():
    for _suffix, _rounding in _ROUNDINGS.items():
        for _source in ("float", "double"):
            _BY_NAME[f"{_source}2{_name}_{_suffix}"] = _to_int(_rounding, _kind)
    for _target in ("float", "double"):
        _BY_NAME[f"{_name}2{_target}_rn"] = _unsigned if _name.startswith("u") else (lambda x: x)

for _suffix in ("rd", "ru", "rz"):
    _BY_NAME[f"double2float_{_suffix}"] = directed.converted(_suffix, np.float32)
    for _target, _dtype in (("float", np.float32), ("double", np.float64)):
        _convert = directed.converted(_suffix, _dtype)
        for _name in _INTEGERS:
            _unsigned_source = _name.startswith("u")
            _BY_NAME[f"{_name}2{_target}_{_suffix}"] = (
                (lambda x, convert=_convert: convert(_unsigned(x))) if _unsigned_source else _convert
            )
for _name in ("add", "sub", "mul", "div", "rcp", "sqrt", "fma"):
    for _suffix in ("rd", "ru", "rz"):
        _BY_NAME[f"{_name}_{_suffix}"] = directed.arithmetic(_name, _suffix)

LIBDEVICE: dict[str, Callable[..., Any]] = {
    f"__nv_{prefix}{name}{suffix}": fn
    for name, fn in _BY_NAME.items()
    for prefix, suffix in (("", ""), ("", "f"), ("f", ""), ("d", ""))
} | {f"__nv_fmaf_{_suffix}": _BY_NAME[f"fma_{_suffix}"] for _suffix in _ROUNDINGS}
"""libdevice's symbols, for double and single precision, that KernBench knows."""
