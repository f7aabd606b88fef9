"""Inline PTX with predicates, literals and integer instructions, against numpy."""

import numpy as np
import pytest

pytest.importorskip("triton")

import language_kernels as kernels

from kernbench.kernels.errors import KernelError
from kernbench.kernels.standalone import StandaloneDevice

LEAKY = """
    {
      .reg .pred small;
      setp.le.f32 small, $1, 0.;
      @!small mov.f32 $0, $1;         // kept
      @small  mul.f32 $0, $1, 0.125;
      @small  add.f32 $0, $0, -1.5e-1;
    }
"""
CLAMPED = """
    .reg .pred low, high, out; .reg .b32 t;
    setp.lt.s32 low, $1, -20;
    setp.gt.or.s32 out, $1, 20, low;
    setp.gt.s32 high|low, $1, 20;
    selp.b32 t, 20, -20, high;
    selp.b32 $0, t, $1, out;
"""
HALVES = """
    { .reg .b16 low, high; mov.b32 {low, high}, $1; mov.b32 $0, {high, low}; }
"""


def bits(x, count):
    return np.array([count(f"{int(v) & 0xFFFFFFFF:032b}") for v in x], np.uint32).view(np.int32)


def directed(exact, side):
    """float64 as float32, rounded towards ``side``."""
    near = exact.astype(np.float32)
    past = np.abs(near) > np.abs(exact) if side == 0 else near < exact
    return np.where(past, np.nextafter(near, np.float32(side)), near)


FLOATS = {
    "predicates": (LEAKY, lambda x: np.where(x <= 0, x * np.float32(0.125) - np.float32(0.15), x)),
    "hex_literal": ("fma.rn.f32 $0, $1, 0f40000000, 0f3F800000;", lambda x: x * 2 + 1),
    "min_with_nan": ("{ .reg .f32 n; div.rn.f32 n, 0.0, 0.0; min.NaN.f32 $0, $1, n; }", lambda x: x * np.nan),
    "unordered": (
        "{ .reg .f32 n; .reg .pred p; div.rn.f32 n, 0.0, 0.0; setp.ltu.f32 p, $1, n; selp.f32 $0, 1.0, 2.0, p; }",
        np.ones_like,
    ),
    "whole": ("cvt.rni.f32.f32 $0, $1;", np.rint),
    "whole_below": ("cvt.rmi.f32.f32 $0, $1;", np.floor),
    "up": ("add.rp.f32 $0, $1, 0f30800000;", lambda x: directed(x + np.float64(2**-30), np.inf)),
    "towards_zero": (
        "{ .reg .f64 d; cvt.f64.f32 d, $1; mul.f64 d, d, 0d3FF000001FFFFFFF; cvt.rz.f32.f64 $0, d; }",
        lambda x: directed(x * np.float64(np.uint64(0x3FF000001FFFFFFF).view(np.float64)), 0),
    ),
    "barriers": ("bar.sync 0; fence.acq_rel.gpu; add.f32 $0, $1, 1.0; membar.cta;", lambda x: x + 1),
    "largest_with_sign": (
        "max.NaN.xorsign.abs.f32 $0, $1, -0.5;",
        lambda x: np.copysign(np.maximum(abs(x), np.float32(0.5)), -x),
    ),
    "sign": ("copysign.f32 $0, $1, 3.0;", lambda x: np.copysign(np.float32(3), x)),
}
INTEGERS = {
    "two_predicates": (CLAMPED, lambda x: np.clip(x, -20, 20)),
    "halves": (HALVES, lambda x: x.view(np.int16).reshape(-1, 2)[:, ::-1].copy().view(np.int32).ravel()),
    "popc": ("popc.b32 $0, $1;", lambda x: bits(x, lambda b: b.count("1"))),
    "clz": ("clz.b32 $0, $1;", lambda x: bits(x, lambda b: len(b) - len(b.lstrip("0")))),
    "brev": ("brev.b32 $0, $1;", lambda x: bits(x, lambda b: int(b[::-1], 2))),
    "high": ("mul.hi.s32 $0, $1, 0x10003;", lambda x: ((x.astype(np.int64) * 0x10003) >> 32).astype(np.int32)),
    "high_unsigned": (
        "mul.hi.u32 $0, $1, 0x10003;",
        lambda x: ((x.view(np.uint32).astype(np.uint64) * 0x10003) >> 32).astype(np.uint32).view(np.int32),
    ),
    "quotient": ("div.s32 $0, $1, 7;", lambda x: np.trunc(x / 7).astype(np.int32)),
    "remainder": ("rem.s32 $0, $1, 7;", lambda x: np.fmod(x, 7)),
    "funnel_left": ("shf.l.wrap.b32 $0, 0x80000001, $1, 35;", lambda x: (x << 3) | 4),
    "funnel_right": ("shf.r.clamp.b32 $0, $1, 5, 40;", lambda x: np.full_like(x, 5)),
    "field": ("bfe.s32 $0, $1, 3, 7;", lambda x: (x << 22) >> 25),
    "field_unsigned": ("bfe.u32 $0, $1, 28, 9;", lambda x: (x.view(np.uint32) >> 28).view(np.int32)),
    "field_replaced": ("bfi.b32 $0, 0xfff, $1, 4, 8;", lambda x: x | 0xFF0),
    "binary_and_octal": ("and.b32 $0, $1, 0b1011; or.b32 $0, $0, 0200;", lambda x: (x & 11) | 128),
    "bytes": (
        "{ .reg .b8 b<4>; mov.b32 {b0, b1, b2, b3}, $1; mov.b32 $0, {b3, b2, b1, b0}; }",
        lambda x: x.byteswap(),
    ),
    "dot_of_bytes": (
        "dp4a.s32.u32 $0, $1, 0x01020304, -7;",
        lambda x: (x.view(np.int8).reshape(-1, 4) * np.array([4, 3, 2, 1], np.int32)).sum(1, dtype=np.int32) - 7,
    ),
    "mad": ("mad.lo.s32 $0, $1, 5, -3;", lambda x: x * 5 - 3),
}


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


def run(device, text, x, how):
    out = device.empty(x.shape, x.dtype)
    kernels.assembled[(1,)](device.array(x), out, B=len(x), TEXT=text, HOW=how, PACK=1)
    return out.numpy()


@pytest.mark.parametrize("name", FLOATS)
def test_on_floats(device, name):
    text, expected = FLOATS[name]
    x = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    np.testing.assert_array_equal(run(device, text, x, "=f,f"), expected(x))


@pytest.mark.parametrize("name", INTEGERS)
def test_on_integers(device, name):
    text, expected = INTEGERS[name]
    x = np.random.default_rng(2).integers(-(2**31) // 8, 2**31 // 8, 64).astype(np.int32)
    x[:8] = (0, 1, -1, 20, 21, -20, -21, 7)
    np.testing.assert_array_equal(run(device, text, x, "=r,r"), expected(x))


def test_results_of_several_types_from_packed_bytes(device):
    x = np.random.default_rng(3).integers(0, 256, 64).astype(np.uint8)
    whole, real = device.empty((64,), np.int32), device.empty((64,), np.float32)
    kernels.unpacked_bytes[(1,)](device.array(x), whole, real, B=64)
    np.testing.assert_array_equal(whole.numpy(), x)
    np.testing.assert_array_equal(real.numpy(), x / 2)


def test_in_a_combine_function_and_on_numbers(device):
    x = np.random.default_rng(4).standard_normal((4, 8)).astype(np.float32)
    x[2, 3] = np.nan
    out = device.empty((5,), np.float32)
    kernels.largest_of_rows[(2,)](device.array(x), out, M=4, N=8)
    np.testing.assert_array_equal(out.numpy(), [*np.maximum.reduce(x, axis=1), x[0, :2].max()])


def test_registers_that_say_where_a_program_runs(device):
    out = device.empty((6, 5), np.int32)
    kernels.placed[(3, 2)](out)
    x, y, width, unit, later = out.numpy().T
    np.testing.assert_array_equal(x, [0, 1, 2] * 2)
    np.testing.assert_array_equal(y, [0] * 3 + [1] * 3)
    assert (width == 3).all() and (later > 0).all()
    assert set(unit) <= set(range(device.target.pes)) and len(set(unit)) == min(6, device.target.pes)


@pytest.mark.parametrize(
    "text",
    [
        "mov.u32 $0, %laneid;",
        "ld.global.b32 $0, [$1];",
        "@p bra done;",
        "add.s32 $0, $1, never_set;",
        "cvt.rp.f16.f32 $0, $1;",
    ],
)
def test_what_has_no_counterpart_is_refused(device, text):
    with pytest.raises(KernelError, match=r"language_kernels.py:\d+.*the PTX instruction"):
        run(device, text, np.ones(4, np.int32), "=r,r")


def test_four_bit_floats():
    """Two to a byte, the first source in the upper half; rounded to even, saturated, and no NaN."""
    x = np.array(
        [0.25, 0.75, 1.26, 2.5, 3.5, 5.0, 7.0, -100.0, np.nan, np.inf, -0.2, 4.9, 0.0, -3.0, 6.0, 1.0], np.float32
    )
    text = "{ .reg .b8 pair; cvt.rn.satfinite.e2m1x2.f32 pair, $2, $1; cvt.rn.f16x2.e2m1x2 $0, pair; }"
    with StandaloneDevice() as device:
        out = device.empty((16,), np.float16)
        kernels.assembled[(1,)](device.array(x), out, B=16, TEXT=text, HOW="=r,f,f", PACK=2)
    assert out.numpy().tolist() == [0, 1, 1.5, 2, 4, 4, 6, -6, 6, 6, -0.0, 4, 0, -3, 6, 1]
