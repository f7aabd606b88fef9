"""libdevice's directed roundings, conversions and integer functions against exact arithmetic in Python."""

import math
from fractions import Fraction

import numpy as np
import pytest

from kernbench.kernels.libdevice import LIBDEVICE

OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "rcp": lambda a: 1 / a,
    "fma": lambda a, b, c: a * b + c,
}
PREFIX = {np.float32: "f", np.float64: "d"}


def numbers(kind, seed, n=400):
    r = np.random.default_rng(seed)
    return (r.standard_normal(n) * 2.0 ** r.integers(-20, 20, n)).astype(kind)


def symbol(name, kind, direction):
    if name == "fma":
        return f"__nv_fma{'f' if kind == np.float32 else ''}_{direction}"
    return f"__nv_{PREFIX[kind]}{name}_{direction}"


def check(exact, down, up, to_zero):
    """``down`` and ``up`` are neighbours, or one number, with the exact result between them."""
    for e, low, high, zero in zip(exact, down, up, to_zero, strict=True):
        assert Fraction(float(low)) <= e <= Fraction(float(high))
        assert (low == high) == (Fraction(float(low)) == e)
        assert low == high or np.nextafter(low, high) == high
        assert zero == (low if e > 0 else high)


@pytest.mark.parametrize("kind", PREFIX)
@pytest.mark.parametrize("name", OPERATIONS)
def test_directed_arithmetic(name, kind):
    xs = [numbers(kind, seed) for seed in range(OPERATIONS[name].__code__.co_argcount)]
    down, up, to_zero = (LIBDEVICE[symbol(name, kind, d)](*xs) for d in ("rd", "ru", "rz"))
    assert down.dtype == up.dtype == to_zero.dtype == kind
    exact = [OPERATIONS[name](*(Fraction(float(x)) for x in row)) for row in zip(*xs, strict=True)]
    check(exact, down, up, to_zero)


@pytest.mark.parametrize("kind", PREFIX)
def test_directed_square_root(kind):
    x = np.abs(numbers(kind, 3))
    down, up = (LIBDEVICE[symbol("sqrt", kind, d)](x) for d in ("rd", "ru"))
    for a, low, high in zip(x, down, up, strict=True):
        assert Fraction(float(low)) ** 2 <= Fraction(float(a)) <= Fraction(float(high)) ** 2
        assert low == high or np.nextafter(low, high) == high


def test_directed_arithmetic_at_the_ends():
    big, one, zero = (np.array([v], np.float32) for v in (np.finfo(np.float32).max, 1, 0))
    assert LIBDEVICE["__nv_fadd_rz"](big, big) == big
    assert LIBDEVICE["__nv_fadd_ru"](big, big) == np.inf
    assert LIBDEVICE["__nv_fadd_rd"](-big, -big) == -np.inf
    assert LIBDEVICE["__nv_fdiv_rz"](one, zero) == np.inf
    assert np.isnan(LIBDEVICE["__nv_fsqrt_rd"](-one))


@pytest.mark.parametrize("kind", PREFIX)
def test_fma_keeps_what_the_product_loses(kind):
    a, b = numbers(kind, 5), numbers(kind, 6)
    product = a * b
    lost = LIBDEVICE["__nv_fmaf" if kind == np.float32 else "__nv_fma"](a, b, -product)
    for x, y, p, e in zip(a, b, product, lost, strict=True):
        assert Fraction(float(x)) * Fraction(float(y)) - Fraction(float(p)) == Fraction(float(e))


@pytest.mark.parametrize("source", ["int", "uint", "ll", "ull"])
def test_directed_conversion(source):
    kind = {"int": np.int32, "uint": np.uint32, "ll": np.int64, "ull": np.uint64}[source]
    info = np.iinfo(kind)
    x = np.random.default_rng(7).integers(info.min, info.max, 200, kind, endpoint=True)
    raw = x.view(f"i{x.itemsize}")  # as kernels carry them
    down, up, to_zero = (LIBDEVICE[f"__nv_{source}2float_{d}"](raw) for d in ("rd", "ru", "rz"))
    check([Fraction(int(v)) for v in x], down, up, to_zero)


def test_integer_functions():
    r = np.random.default_rng(8)
    x, y = (r.integers(-(2**63), 2**63, 100, np.int64) for _ in range(2))
    high = LIBDEVICE["__nv_mul64hi"](x, y)
    assert high.tolist() == [int(a) * int(b) >> 64 for a, b in zip(x, y, strict=True)]
    unsigned = LIBDEVICE["__nv_umul64hi"](x, y).view(np.uint64)
    assert unsigned.tolist() == [(int(a) % 2**64) * (int(b) % 2**64) >> 64 for a, b in zip(x, y, strict=True)]
    a, b = x.astype(np.int32), y.astype(np.int32)
    swapped = LIBDEVICE["__nv_byte_perm"](a, b, np.full(100, 0x0123, np.int32))
    np.testing.assert_array_equal(swapped, a.byteswap())
    mixed = LIBDEVICE["__nv_byte_perm"](a, b, np.full(100, 0xF654, np.int32)).view(np.uint32)
    expected = (b.view(np.uint32) & 0xFFFFFF) | np.where(b < 0, 0xFF000000, 0).astype(np.uint32)
    np.testing.assert_array_equal(mixed, expected)


def test_words_of_a_double():
    x = numbers(np.float64, 9)
    high, low = LIBDEVICE["__nv_double2hiint"](x), LIBDEVICE["__nv_double2loint"](x)
    np.testing.assert_array_equal(LIBDEVICE["__nv_hiloint2double"](high, low), x)
    assert [math.copysign(1, v) < 0 for v in x] == (high < 0).tolist()


def test_bessel_functions():
    x = np.linspace(0.25, 40, 160)
    t = np.pi * (np.arange(512) + 0.5) / 512
    j = [np.cos(n * t - x[:, None] * np.sin(t)).mean(1) for n in range(5)]  # Bessel's integral
    np.testing.assert_allclose(LIBDEVICE["__nv_j0"](x), j[0], atol=1e-13)
    np.testing.assert_allclose(LIBDEVICE["__nv_j1"](x), j[1], atol=1e-13)
    np.testing.assert_allclose(LIBDEVICE["__nv_jn"](np.full(160, 4, np.int32), x), j[4], atol=1e-13)
    y0, y1 = LIBDEVICE["__nv_y0"](x), LIBDEVICE["__nv_y1"](x)
    np.testing.assert_allclose(j[1] * y0 - j[0] * y1, 2 / (np.pi * x), rtol=1e-11)  # their Wronskian
    y2 = LIBDEVICE["__nv_yn"](np.full(160, 2, np.int32), x)
    np.testing.assert_allclose(y2, 2 * y1 / x - y0, rtol=1e-9, atol=1e-12)
    modified = LIBDEVICE["__nv_cyl_bessel_i1"](np.array([-650.0, 1e-9, 0.5, 700.0, 1e4]))
    scaled = (np.exp(650 * (np.cos(t) - 1)) * np.cos(t)).mean() * math.exp(650)
    series = sum(0.25 ** (2 * k + 1) / (math.factorial(k) * math.factorial(k + 1)) for k in range(10))
    np.testing.assert_allclose(modified[:3], [-scaled, 5e-10, series], rtol=1e-13)
    assert np.isfinite(modified[3]) and np.isinf(modified[4])
