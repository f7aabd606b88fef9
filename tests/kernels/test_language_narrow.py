"""Floats of 8 and 16 bits: every code of the 8-bit types, and one rounding where hardware rounds once."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton")

import narrow_kernels as kernels
import triton.language as tl

from kernbench.kernels.standalone import StandaloneDevice
from kernbench.triton import impersonate

CODES = np.arange(256, dtype=np.uint8)


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


def e4b15(codes):
    """Sign, 4 bits of exponent biased by 15, 3 of mantissa; neither infinities nor NaN."""
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7).astype(float)
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-14, (1 + mantissa / 8) * 2.0 ** (exponent - 15))
    return np.where(codes & 128, -size, size)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_every_fp8e4b15_widens(device, kind):
    out = device.empty((256,), kind)
    kernels.widened[(1,)](device.array(CODES), out, B=256, KIND=tl.float8e4b15)
    np.testing.assert_array_equal(out.numpy(), e4b15(CODES))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_fp8e4b15_takes_the_nearest_and_saturates(device, kind):
    # Every code, the points between it and the next, and what is too large; ties go away from zero.
    values = e4b15(CODES[:127])
    x = np.concatenate([values, values[:-1] * 0.75 + values[1:] * 0.25, (values[:-1] + values[1:]) / 2, [2, 9, 65504]])
    expected = np.concatenate([np.arange(127), np.arange(126), np.arange(1, 127), [126] * 3])
    x, expected = np.append(x, -x), np.append(expected, expected + 128).astype(np.uint8)
    block = np.zeros(1024, kind)
    block[: len(x)] = x
    out = device.empty((1024,), np.uint8)
    kernels.narrowed[(1,)](device.array(block), out, B=1024, KIND=tl.float8e4b15)
    np.testing.assert_array_equal(out.numpy()[: len(x)], expected)


@pytest.mark.parametrize("kind", ["float8e4b8", "float8e5b16", "float8e4nv", "float8e5", "float8e4b15"])
def test_narrow_pointers_step_by_a_byte(device, kind):
    # NaN may lose its payload on the way through a register, so codes that mean NaN are left out.
    codes = CODES[(CODES & 127) < 0x7C][:200]
    codes = codes[codes != 128]
    out = device.empty(codes.shape, np.uint8)
    kernels.copied[(4,)](device.array(codes), out, len(codes), B=64, KIND=getattr(tl, kind))
    np.testing.assert_array_equal(out.numpy(), codes)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_float64_is_rounded_once(device, kind):
    # Just beside a tie of the narrow type, by less than float32 can tell.
    bits = 10 if kind == np.float16 else 7
    whole = 1 + np.arange(64) * 2.0**-bits
    tie = whole + 2.0 ** -(bits + 1)
    x = np.concatenate([tie + 2.0**-40, tie - 2.0**-40])
    out = device.empty((128,), kind)
    kernels.rounded[(1,)](device.array(x), out, B=128)
    expected = np.concatenate([whole + 2.0**-bits, whole])
    np.testing.assert_array_equal(out.numpy().astype(np.float64), expected)


def nearest(exact, kind):
    """The number of a narrow type nearest to a fraction, ties to even."""
    near = np.array(float(exact)).astype(np.float32).astype(kind)
    bits = int(near.view(np.uint16))
    around = [np.array(bits + d, np.uint16).view(kind) for d in (-1, 0, 1)]
    return min(around, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint16)) & 1))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_narrow_fma_rounds_once(device, kind):
    r = np.random.default_rng(3)
    x, y = ((1 + r.random(256)).astype(kind) for _ in range(2))
    # The product's low half ends in a tie more often than chance has it, and z is far below.
    z = (r.choice([-1, 1], 256) * 2.0 ** r.integers(-24, -9, 256)).astype(kind)
    out = device.empty((256,), kind)
    kernels.fused[(1,)](*(device.array(v) for v in (x, y, z)), out, B=256)
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in zip(x, y, z, strict=True)]
    expected = np.array([nearest(e, kind) for e in exact], kind)
    np.testing.assert_array_equal(out.numpy().view(np.uint16), expected.view(np.uint16))


def test_float32_fma_of_a_false_tie(device):
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 is half way between two float32, and the addend, which float64 loses, decides.
    x = np.full(16, 1 + 2.0**-12, np.float32)
    z = np.full(16, 2.0**-80, np.float32)
    z[8:] *= -1
    out = device.empty((16,), np.float32)
    kernels.fused[(1,)](device.array(x), device.array(x), device.array(z), out, B=16)
    np.testing.assert_array_equal(out.numpy()[:8], np.float32(1 + 2.0**-11 + 2.0**-23))
    np.testing.assert_array_equal(out.numpy()[8:], np.float32(1 + 2.0**-11))


@pytest.mark.parametrize("source", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("signed", [True, False])
def test_floats_that_no_integer_holds_become_the_nearest(device, source, bits, signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    x = np.array([1.9, -1.9, 0.5, -0.5, 1e30, -1e30, np.inf, -np.inf, np.nan, 2.0**bits, -(2.0**bits), 100, 7, 0, 3, 5])
    out = device.empty((16,), f"i{bits}")
    kernels.truncated[(1,)](
        device.array(x.astype(source)), out, B=16, KIND=getattr(tl, f"{'' if signed else 'u'}int{bits}")
    )
    expected = [0 if np.isnan(v) else min(max(int(np.clip(v, -1e40, 1e40)), low), high) for v in x]
    assert [int(v) % 2**bits for v in out.numpy()] == [v % 2**bits for v in expected]


@pytest.mark.parametrize("by", [0, 5, 31, 32, 63, 200, -1])
def test_shifts_by_more_than_the_width_leave_nothing(device, by):
    out = device.empty((2,), np.int32)
    kernels.shifted[(1,)](out, -7, by)
    within = 0 <= by < 32
    left = (-7 << by) % 2**32 if within else 0
    assert out.numpy().view(np.uint32).tolist() == [left, (-7 >> (by if within else 31)) % 2**32]


def test_a_gpu_wants_warps_in_powers_of_two(device):
    pytest.importorskip("torch")
    out = device.empty((2,), np.int32)
    with impersonate("cuda:90"):
        kernels.shifted[(1,)](out, 1, 1, num_warps=2)
        with pytest.raises(AssertionError, match="num_warps=3 must be a power of 2"):
            kernels.shifted[(1,)](out, 1, 1, num_warps=3)
