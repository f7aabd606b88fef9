"""Every part of Triton's language against numpy, each in two element types or more."""

import math
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from kernbench.kernels.errors import KernelError, KernelFault
from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")

import language_kernels as kernels
import triton
import triton.language as tl

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
KINDS = [np.float32, np.float16, np.float64, np.int32]


@pytest.fixture(scope="module")
def device():
    with StandaloneDevice() as made:
        yield made


def values(shape, kind, seed=0, scale=4):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(kind)


@pytest.mark.skipif(not hasattr(tl, "map_elementwise"), reason="this Triton has no map_elementwise")
@pytest.mark.parametrize("kind", KINDS)
def test_map_elementwise(device, kind):
    a, b = values(64, kind, 1), values(64, kind, 2)
    out, other = device.empty((64,), kind), device.empty((64,), kind)
    kernels.mapped[(1,)](device.array(a), device.array(b), out, other, B=64)
    np.testing.assert_array_equal(out.numpy(), np.where(a > b, a, b * 2))
    np.testing.assert_array_equal(other.numpy(), (a + b) * (a - b))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32])
def test_compare_and_swap_of_a_block(device, kind):
    x, new = values(32, kind, 1), values(32, kind, 2)
    expected = np.where(np.arange(32) % 3 == 0, x, x + 1)
    memory, out = device.array(x), device.empty((32,), kind)
    kernels.swapped[(1,)](memory, device.array(expected), device.array(new), out, B=32)
    np.testing.assert_array_equal(out.numpy(), x)
    np.testing.assert_array_equal(memory.numpy(), np.where(expected == x, new, x))


def _sorted_scan(x, axis):
    return np.cumsum(x.astype(np.float64 if x.dtype.kind == "f" else x.dtype), axis=axis)


REORDERED = {
    "sort": lambda x: np.sort(x, 1),
    "descending": lambda x: -np.sort(-x, 1),
    "topk": lambda x: -np.sort(-x, 1)[:, :4],
    "flip": lambda x: x[:, ::-1],
    "trans": lambda x: x.T,
    "permute": lambda x: x.reshape(8, 4, 4).transpose(2, 0, 1),
    "interleave": lambda x: np.stack([x, x + 1], -1),
    "join": lambda x: np.stack([x, x * 2], -1),
    "split": lambda x: x[:, ::2] - x[:, 1::2],
    "cat": lambda x: np.concatenate([x.ravel(), x.ravel() + 1]),
    "gather": lambda x: np.take_along_axis(x, (np.arange(16) * 7 + np.arange(8)[:, None]) % 16, 1),
    "cumsum": lambda x: _sorted_scan(x, 1),
    "cumsum_reverse": lambda x: _sorted_scan(x[::-1], 0)[::-1],
    "cumprod": lambda x: np.cumprod(x.astype(np.float64 if x.dtype.kind == "f" else x.dtype), 1),
    "sum": lambda x: x.sum(1, dtype=np.float64),
    "max": lambda x: x.max(0),
    "min": lambda x: x.min(1),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(0),
}


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.float16])
@pytest.mark.parametrize("how", REORDERED)
def test_blocks_reordered_scanned_and_reduced(device, how, kind):
    x = values((8, 16), kind, 3, 1.5)
    expected = REORDERED[how](x)
    out = device.empty((expected.size,), kind)
    kernels.reordered[(1,)](device.array(x), out, R=8, C=16, HOW=how, K=4)
    exact = how not in ("cumsum", "cumsum_reverse", "cumprod", "sum") or kind == np.int32
    tolerance = 0 if exact else 2e-2 if kind == np.float16 else 1e-5
    np.testing.assert_allclose(
        out.numpy().astype(np.float64), expected.ravel().astype(np.float64), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("reverse", [False, True])
def test_associative_scan_of_pairs(device, kind, reverse):
    a, b = values(128, kind, 1, 0.5), values(128, kind, 2)
    out = device.empty((128,), kind)
    kernels.recurrence[(1,)](device.array(a), device.array(b), out, N=128, REVERSE=reverse)
    h, expected = 0.0, np.empty(128)
    for i in range(127, -1, -1) if reverse else range(128):
        h = float(a[i]) * h + float(b[i])
        expected[i] = h
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bins", [16, 8])
def test_histogram(device, bins):
    x = np.random.default_rng(0).integers(0, bins, 256).astype(np.int32)
    out = device.empty((bins,), np.int32)
    kernels.counted[(1,)](device.array(x), out, N=256, BINS=bins)
    np.testing.assert_array_equal(out.numpy(), np.bincount(x[x != 3], minlength=bins))


def philox(counter, seed, rounds=10):
    """Philox-4x32 as Salmon et al. define it, one counter at a time."""
    mask = 0xFFFFFFFF
    c, k = [counter, 0, 0, 0], [seed & mask, seed >> 32]
    for _ in range(rounds):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


@pytest.mark.parametrize("seed", [0, 12345, (7 << 32) + 3])
def test_philox_bits(device, seed):
    out = device.empty((64, 4), np.int32)
    kernels.random_bits[(2,)](out, seed, B=32)
    expected = np.array([philox(i, seed) for i in range(64)], np.uint32)
    np.testing.assert_array_equal(out.numpy().view(np.uint32), expected)


def test_random_numbers_have_their_distribution(device):
    uniform, normal = device.empty((1 << 14,), np.float32), device.empty((1 << 14,), np.float32)
    kernels.random_numbers[(16,)](uniform, normal, 42, B=1024)
    u, z = uniform.numpy(), normal.numpy()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003
    assert abs(z.mean()) < 0.03 and abs(z.var() - 1) < 0.05
    bits = np.array([philox(i, 42)[0] for i in range(64)], np.uint32).view(np.int32).astype(np.int64)
    expected = np.where(bits < 0, -bits - 1, bits) * 4.6566127342e-10
    np.testing.assert_allclose(u[:64], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_function_that_is_not_inlined(device, kind):
    x = values(8, kind)
    out = device.empty((8,), kind)
    kernels.called[(8,)](device.array(x), out, N=8)
    n = np.arange(8)
    np.testing.assert_allclose(out.numpy(), np.where(n > 2, x * x * x, x * n), rtol=1e-6)


def test_print_goes_to_stdout_in_the_order_of_programs(device, capsys):
    x = np.arange(8, dtype=np.float32)
    kernels.printed[(4,)](device.array(x), B=2)
    lines = capsys.readouterr().out.splitlines()
    for name, expected in (("value", 4), ("scalar", 4), ("done", 4)):
        seen = [line for line in lines if name in line]
        assert [re.match(r"pid \((\d), 0, 0\)", line)[1] for line in seen] == ["0", "1", "2", "3"]
        assert len(seen) == expected
    assert any("[2. 3.]" in line for line in lines) and any("scalar: 6" in line for line in lines)
    written = "\n".join(lines)
    assert "bits: [0x0.0p+0 0x1.0000000000000p+0]" in written and "bits: [0xffffffff 0x00000000]" in written
    assert "byte: [255   0]" in written and re.search(r"at: 0x[0-9a-f]{16}$", written, re.M)


def test_a_failed_assertion_names_its_message_and_line(device):
    bad = device.array(np.array([1, 2, -3, 4], np.float32))
    kernels.asserted[(1,)](bad, B=4)  # off unless asked for, as on a GPU
    with pytest.raises(KernelFault, match=r"language_kernels.py:\d+: .*expected only positive numbers"):
        kernels.asserted[(1,)](bad, B=4, debug=True)
    kernels.asserted[(1,)](device.array(np.ones(4, np.float32)), B=4, debug=True)


F8 = {"f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2}
EDGE = [0.0, -0.0, 1e9, -1e9, 447, 449, 465, 57344, 61440, 1e-9, 2**-9, 3 * 2**-11, np.inf, -np.inf, np.nan, 1.0625]


@pytest.mark.parametrize("kind", F8)
@pytest.mark.parametrize("source", [np.float32, np.float16])
def test_casts_to_8_bit_floats_round_to_even_and_saturate(device, kind, source):
    with np.errstate(over="ignore"):
        x = np.concatenate([values(48, np.float32, 1, 100), np.array(EDGE)]).astype(source)
    out = device.empty((64,), kind)
    kernels.cast[(1,)](device.array(x), out, B=64, DOWN="rtne")
    largest = float(ml_dtypes.finfo(F8[kind]).max)
    expected = np.clip(x.astype(np.float32), -largest, largest).astype(F8[kind])
    np.testing.assert_array_equal(out.numpy().astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f8e5m2"])
def test_casts_towards_zero(device, kind):
    x = values(64, np.float32, 1, 100)
    out = device.empty((64,), kind)
    kernels.cast[(1,)](device.array(x), out, B=64, DOWN="rtz")
    found = out.numpy().astype(np.float64)
    next_up = np.nextafter(out.numpy(), np.array(np.inf, out.numpy().dtype) * np.sign(found).astype(out.numpy().dtype))
    assert (np.abs(found) <= np.abs(x)).all()
    assert (np.abs(next_up.astype(np.float64)) > np.abs(x)).all()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_8_bit_floats_between_operations(device, kind):
    x = values(64, kind, 5, 3)
    out = device.empty((64,), np.float32)
    kernels.bent[(1,)](device.array(x), out, B=64)
    expected = sum(x.astype(F8[k]).astype(np.float32) for k in F8)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_8_bit_floats_without_negative_zero(device, kind):
    x = values(64, kind, 5, 60)
    out = device.empty((64,), np.float32)
    kernels.bent_without_zero[(1,)](device.array(x), out, B=64)
    narrow = [ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz]
    np.testing.assert_array_equal(out.numpy(), sum(x.astype(k).astype(np.float32) for k in narrow))


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def mx(rows, k, kind, seed, k_axis):
    """(stored bytes, their values, scale bytes, scale values): a random block in an MX format."""
    r = np.random.default_rng(seed)
    if kind == "e2m1":
        codes = r.integers(0, 16, (rows, k))
        numbers = np.where(codes & 8, -1, 1) * FP4[codes & 7]
        stored = (codes[:, ::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    else:
        dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}.get(kind, ml_dtypes.bfloat16)
        stored = r.standard_normal((rows, k)).astype(dtype)
        numbers = stored.astype(np.float64)
    scales = r.integers(120, 134, (rows, k // 32)).astype(np.uint8)
    worth = np.repeat(2.0 ** (scales.astype(np.float64) - 127), 32, 1)
    return (stored if k_axis else np.ascontiguousarray(stored.T)), numbers, scales, worth


@pytest.mark.parametrize(
    ("left", "right"), [("e2m1", "e2m1"), ("e2m1", "e4m3"), ("e4m3", "e4m3"), ("e5m2", "e2m1"), ("e4m3", "bf16")]
)
def test_dot_of_scaled_blocks(device, left, right):
    m, n, k = 32, 16, 64
    a, a_values, a_scale, a_worth = mx(m, k, left, 1, True)
    b, b_values, b_scale, b_worth = mx(n, k, right, 2, False)
    scaled_b = right != "bf16"
    out = device.empty((m, n), np.float32)
    kernels.scaled[(1,)](
        device.array(a), device.array(a_scale), device.array(b), device.array(b_scale), out,
        M=m, N=n, K=k, A=left, B=right, SCALED_B=scaled_b,
    )  # fmt: skip
    expected = (a_values * a_worth) @ (b_values * (b_worth if scaled_b else 1)).T
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
    (row,) = [r for b in device.records[-1].blocks for r in b.rows if r.op == "dot_scaled"]
    assert row.shape == (m, n, k)


def tf32(x):
    bits = x.view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


PTX = {
    "tf32": ("cvt.rna.tf32.f32 $0, $1;", "=r,r", 1, np.float32, np.float32, tf32),
    "ex2": ("ex2.approx.ftz.f32 $0, $1;", "=f,f", 1, np.float32, np.float32, np.exp2),
    "tanh": ("tanh.approx.f32 $0, $1;", "=f,f", 1, np.float32, np.float32, np.tanh),
    "half": ("cvt.rn.f16.f32 $0, $1;", "=h,f", 1, np.float32, np.float16, lambda x: x.astype(np.float16)),
    "shift": ("shl.b32 $0, $1, 3;", "=r,r", 1, np.int32, np.int32, lambda x: x << 3),
    "signed": ("shr.s32 $0, $1, 2;", "=r,r", 1, np.int32, np.int32, lambda x: x >> 2),
    "pairs": (
        "{ .reg .b32 t; mul.f16x2 t, $1, $1; add.f16x2 $0, t, $1; }", "=r,r", 2, np.float16, np.float16,
        lambda x: x * x + x,
    ),
    "bytes": ("and.b32 $0, $1, 0x0F0F0F0F;", "=r,r", 4, np.int8, np.int8, lambda x: x & 15),
    "f8": (
        "cvt.rn.satfinite.e4m3x2.f32 $0, $2, $1;", "=h,f,f", 2, np.float32, "f8e4m3",
        lambda x: np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn),
    ),
    "integer": ("cvt.rzi.s32.f32 $0, $1;", "=r,f", 1, np.float32, np.int32, lambda x: np.trunc(x).astype(np.int32)),
}  # fmt: skip


@pytest.mark.parametrize("name", PTX)
def test_inline_ptx(device, name):
    text, constraints, pack, source, target, expected = PTX[name]
    x = values(64, source, 1, 3 if np.dtype(source).kind == "f" else 50)
    out = device.empty((64,), target)
    kernels.assembled[(1,)](device.array(x), out, B=64, TEXT=text, HOW=constraints, PACK=pack)
    want = expected(x)
    tolerance = {"ex2": 1e-6, "tanh": 1e-6}.get(name, 0)
    np.testing.assert_allclose(out.numpy().astype(np.float64), want.astype(np.float64), rtol=tolerance)


def test_unknown_ptx_is_refused_before_anything_runs(device):
    x, out = device.array(np.ones(4, np.float32)), device.empty((4,), np.float32)
    with pytest.raises(KernelError, match=r"language_kernels.py:\d+.*'ld.global.b32 \$0"):
        kernels.assembled[(1,)](x, out, B=4, TEXT="ld.global.b32 $0, [$1];", HOW="=r,r", PACK=1)


LIBDEVICE = {
    "acos": math.acos, "asin": math.asin, "atan": math.atan, "erf": math.erf, "erfc": math.erfc, "cbrt": np.cbrt,
    "expm1": math.expm1, "log1p": math.log1p, "lgamma": math.lgamma, "tgamma": math.gamma, "sinpi":
    lambda x: math.sin(math.pi * x), "normcdf": lambda x: 0.5 * math.erfc(-x / math.sqrt(2)), "rsqrt":
    lambda x: x**-0.5, "exp10": lambda x: 10**x, "tanh": math.tanh, "sinh": math.sinh, "cosh": math.cosh,
    "log10": math.log10, "trunc": math.trunc, "rint": np.rint, "floor": math.floor, "ceil": math.ceil,
    "fast_expf": math.exp, "fast_logf": math.log, "cyl_bessel_i0": np.i0,
    "erfcx": lambda x: math.exp(x * x) * math.erfc(x),
}  # fmt: skip
PAIRS = {
    "pow": math.pow, "atan2": math.atan2, "hypot": math.hypot, "fmod": math.fmod, "copysign": math.copysign,
    "fdim": lambda x, y: max(x - y, 0), "remainder": math.remainder, "nextafter": np.nextafter,
}  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*LIBDEVICE, *PAIRS])
def test_libdevice(device, name, kind):
    if kind == np.float64 and name.startswith("fast_"):
        pytest.skip("single precision only")
    r = np.random.default_rng(1)
    x, y = r.uniform(0.05, 0.95, 32).astype(kind), r.uniform(0.5, 2, 32).astype(kind)
    out = device.empty((32,), kind)
    kernels.device_function[(1,)](device.array(x), device.array(y), out, B=32, NAME=name, BINARY=name in PAIRS)
    if name in PAIRS:
        expected = [PAIRS[name](a, b) for a, b in zip(x, y, strict=True)]
    else:
        expected = [LIBDEVICE[name](float(a)) for a in x]
    np.testing.assert_allclose(
        out.numpy(), np.array(expected, np.float64), rtol=3e-6 if kind == np.float32 else 1e-10, atol=1e-7
    )


@pytest.mark.parametrize("name", ["clz", "popc", "ffs", "brev"])
def test_libdevice_on_integers(device, name):
    x = np.array([0, 1, -1, 256, 0x7FFFFFFF, -(2**31), 12345, 6], np.int32)
    out = device.empty((8,), np.int32)
    kernels.device_function[(1,)](device.array(x), device.array(x), out, B=8, NAME=name, BINARY=False)
    bits = [f"{int(v) & 0xFFFFFFFF:032b}" for v in x]
    expected = {
        "clz": [32 if "1" not in b else b.index("1") for b in bits],
        "popc": [b.count("1") for b in bits],
        "ffs": [32 - b.rindex("1") if "1" in b else 0 for b in bits],
        "brev": [int(b[::-1], 2) for b in bits],
    }[name]
    np.testing.assert_array_equal(out.numpy().view(np.uint32), np.array(expected, np.uint32))


FLOAT_OPS = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "min": np.fmin, "max": np.fmax,
    "where": lambda a, b: np.where(a < b, a, b), "neg": lambda a, b: -a, "abs": lambda a, b: np.abs(a),
    "exp": lambda a, b: np.exp(a), "fma": lambda a, b: a * b + a, "clamp": lambda a, b: np.clip(a, -1, 1),
    "%": np.fmod,
}  # fmt: skip
INT_OPS = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "&": np.bitwise_and, "|": np.bitwise_or, "^": np.bitwise_xor,
    "<<": lambda a, b: a << (b & 7), ">>": lambda a, b: a >> (b & 7), "min": np.minimum, "max": np.maximum,
    "//": lambda a, b: np.trunc(a / b), "%": np.fmod, "where": lambda a, b: np.where(a < b, a, b),
    "neg": lambda a, b: -a, "abs": lambda a, b: np.abs(a),
}  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("op", FLOAT_OPS)
def test_operators_on_floats(device, op, kind):
    a, b = values(64, kind, 1, 2), values(64, kind, 2, 2)
    out = device.empty((64,), kind)
    kernels.operators[(1,)](device.array(a), device.array(b), out, B=64, OP=op)
    expected = FLOAT_OPS[op](a.astype(np.float64), b.astype(np.float64))
    unit = float(ml_dtypes.finfo(np.float32 if op == "exp" and kind == np.float64 else kind).eps)
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected, rtol=2 * unit, atol=4 * unit)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fma_rounds_once(device, kind):
    a, b = values(64, kind, 1, 2), values(64, kind, 2, 2)
    out = device.array(a * b)
    kernels.lost_in_products[(1,)](device.array(a), device.array(b), out, B=64)
    exact = [Fraction(float(x)) * Fraction(float(y)) - Fraction(float(x * y)) for x, y in zip(a, b, strict=True)]
    assert [Fraction(float(x)) for x in out.numpy()] == exact and any(exact)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("op", INT_OPS)
def test_operators_on_integers(device, op, kind):
    r = np.random.default_rng(1)
    a, b = r.integers(-100, 100, 64).astype(kind), r.integers(1, 100, 64).astype(kind)
    out = device.empty((64,), kind)
    kernels.operators[(1,)](device.array(a), device.array(b), out, B=64, OP=op)
    np.testing.assert_array_equal(out.numpy(), INT_OPS[op](a, b).astype(kind))


def test_debugging_finds_integers_that_wrap(device):
    a, out = device.array(np.full(64, 2**31 - 1, np.int32)), device.empty((64,), np.int32)
    kernels.operators[(1,)](a, a, out, B=64, OP="+")
    with pytest.raises(KernelFault, match=r"language_kernels.py:\d+: int32 overflow detected for operation add"):
        kernels.operators[(1,)](a, a, out, B=64, OP="+", debug=True)


@pytest.mark.skipif(VERSION >= (3, 9), reason="block pointers ended with Triton 3.8")
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_block_pointers(device, kind):
    m, n, k = 50, 70, 40
    a, b = values((m, k), kind, 1, 1), values((k, n), kind, 2, 1)
    out = device.empty((m, n), kind)
    kernels.block_pointers[(2, 3)](
        device.array(a), device.array(np.ascontiguousarray(b.T)), out, m, n, k, M=32, N=32, K=16
    )
    expected = a.astype(np.float64) @ b.astype(np.float64)
    unit = {2: 2.0**-8 if kind is ml_dtypes.bfloat16 else 2.0**-11, 4: 2.0**-20}[np.dtype(kind).itemsize]
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected, rtol=unit, atol=unit * 20)
