"""Triton's tutorials 08 (grouped), 09 (persistent) and 10 (block scaled matrix products), against numpy in double."""

import ml_dtypes
import numpy as np
import pytest

from kernbench.kernels.standalone import StandaloneDevice
from kernbench.memory import dtype

triton = pytest.importorskip("triton")

import gemm_kernels as kernels  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

# One rounding of the result; float32 also rounds every sum.
ROUNDING = {"f32": 2.0**-20, "f16": 2.0**-10, "bf16": 2.0**-7}
TRITONS = {"f32": tl.float32, "f16": tl.float16, "bf16": tl.bfloat16}
PROGRAMS = 5


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


def random(shape, kind, seed):
    """Values that ``kind`` holds exactly, as float64."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(dtype(kind).storage).astype(np.float64)


def check(found, expected, kind, k):
    error = np.abs(found.numpy().astype(np.float64) - expected).max()
    assert error <= ROUNDING[kind] * np.abs(expected).max() + 2.0**-22 * k


@pytest.mark.parametrize("kind", TRITONS)
@pytest.mark.parametrize("described", [False, True])
def test_08_grouped_products(device, kind, described):
    """Matrices found through tables of addresses: groups of different sizes, shared out among five programs."""
    sizes = np.array([(64, 96, 32), (32, 32, 128), (128, 32, 64)], np.int32)
    a = [random((m, k), kind, i) for i, (m, n, k) in enumerate(sizes)]
    b = [random((k, n), kind, 10 + i) for i, (m, n, k) in enumerate(sizes)]
    left, right = [device.array(x, kind) for x in a], [device.array(x.T if described else x, kind) for x in b]
    out = [device.empty((m, n), kind) for m, n, _ in sizes]
    tables = [device.array(np.array([x.data_ptr() for x in group]), "i64") for group in (left, right, out)]
    strides = np.array([[x.stride(0) for x in group] for group in zip(left, right, out, strict=True)], np.int32)
    kernel = kernels.grouped_with_descriptors if described else kernels.grouped
    kernel[(PROGRAMS,)](
        *tables, device.array(sizes, "i32"), device.array(strides, "i32"), len(sizes), DTYPE=TRITONS[kind],
        PROGRAMS=PROGRAMS, M=32, N=32, K=32,
    )  # fmt: skip
    for x, y, found in zip(a, b, out, strict=True):
        check(found, x @ y, kind, x.shape[1])


@pytest.mark.parametrize("kind", TRITONS)
@pytest.mark.parametrize("form", ["pointers", "kernel", "host", "halves", "tiles"])
def test_09_persistent_products(device, kind, form):
    """With pointers, with descriptors made in the kernel or on the host, tiles stored whole or in halves; tiles that
    hang over every edge, and more tiles than programs."""
    m, n, k = 136, 104, 72
    a, b = random((m, k), kind, 1), random((k, n), kind, 2)
    left, right, out = device.array(a, kind), device.array(b.T, kind), device.empty((m, n), kind)
    cut = {"M": 32, "N": 32, "K": 32, "GROUP": 3}
    if form == "pointers":
        strides = (*left.stride(), right.stride(1), right.stride(0), *out.stride())
        kernels.persistent[(PROGRAMS,)](left, right, out, m, n, k, *strides, **cut, PROGRAMS=PROGRAMS)
    else:
        halves, operands = form == "halves", (left, right, out)
        if form in ("host", "tiles"):
            operands = [TensorDescriptor.from_tensor(x, [32, 32]) for x in operands]
        if form == "tiles":
            kernels.tile_per_program[(5 * 4,)](*operands, m, n, k, DTYPE=TRITONS[kind], **cut, SPECIALIZE=True)
        else:
            kernels.persistent_with_descriptors[(PROGRAMS,)](
                *operands, m, n, k, DTYPE=TRITONS[kind], **cut, PROGRAMS=PROGRAMS, HALVES=halves,
                FLATTEN=form != "kernel", SPECIALIZE=form != "host",
            )  # fmt: skip
    check(out, a @ b, kind, k)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def operand(format, rows, k, seed):
    """(bytes as they are stored, two 4-bit values each where they are such, what they mean)."""
    rng = np.random.default_rng(seed)
    if format == "e4m3":
        values = rng.standard_normal((rows, k)).astype(ml_dtypes.float8_e4m3fn)
        return values, values.astype(np.float64)
    bits = rng.integers(0, 16, (rows, k), np.uint8)
    return bits[:, ::2] | bits[:, 1::2] << 4, E2M1[bits]


def scales(rows, k, each, seed):
    """(in blocks as the tensor cores take them, by row and place along K)."""
    rng = np.random.default_rng(seed)
    shape = (rows, k // each)
    stored = (
        rng.uniform(0.1, 2, shape).astype(ml_dtypes.float8_e4m3fn)
        if each == 16
        else rng.integers(124, 131, shape, np.uint8)
    )
    meant = stored.astype(np.float64) if each == 16 else 2.0 ** (stored.astype(np.float64) - 127)
    blocks = stored.reshape(rows // 128, 4, 32, k // each // 4, 4).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(blocks).reshape(1, rows // 128, k // each // 4, 2, 256), np.repeat(meant, each, 1)


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize(
    ("a_format", "b_format", "each"),
    [("e2m1", "e2m1", 16), ("e2m1", "e2m1", 32), ("e4m3", "e4m3", 32), ("e4m3", "e2m1", 32)],
    ids=["nvfp4", "mxfp4", "mxfp8", "mixed"],
)
def test_10_block_scaled_products(device, a_format, b_format, each, kind):
    m, n, k = 256, 128, 256
    (a, a_values), (b, b_values) = operand(a_format, m, k, 1), operand(b_format, n, k, 2)
    (a_scale, by_a), (b_scale, by_b) = scales(m, k, each, 3), scales(n, k, each, 4)
    pack = {"e2m1": 2, "e4m3": 1}

    def described(x, block):
        return TensorDescriptor.from_tensor(device.array(x), block)

    deep = 128 // each // 4
    out = device.empty((m, n), kind)
    kernels.block_scaled[(2, 1)](
        described(a, [128, 128 // pack[a_format]]), described(a_scale, [1, 1, deep, 2, 256]),
        described(b, [128, 128 // pack[b_format]]), described(b_scale, [1, 1, deep, 2, 256]),
        TensorDescriptor.from_tensor(out, [128, 128]), k, A_FORMAT=a_format, B_FORMAT=b_format,
        A_PACK=pack[a_format], B_PACK=pack[b_format], EACH=each, M=128, N=128, K=128, DTYPE=TRITONS[kind],
    )  # fmt: skip
    check(out, (a_values * by_a) @ (b_values * by_b).T, kind, k)
