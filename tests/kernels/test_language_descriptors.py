"""Tensor descriptors, made in the kernel and on the host, against numpy."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")

import descriptor_kernels as kernels
import triton.language as tl

PADS = "padding_option" in inspect.signature(tl.make_tensor_descriptor).parameters
"""Whether this Triton lets a descriptor say what lies beyond its tensor's edges."""


@pytest.fixture(scope="module")
def device():
    with StandaloneDevice() as made:
        yield made


def values(shape, kind, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape) * 8
    return x.astype(kind)


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    row=st.integers(-40, 80),
    col=st.integers(-40, 80),
    kind=st.sampled_from([np.float32, np.float16, np.int32, np.int8]),
    pad=st.sampled_from(["zero", "nan"]),
)
def test_blocks_are_cut_at_the_edges_and_padded(device, m, n, row, col, kind, pad):
    if pad == "nan" and (np.dtype(kind).kind == "i" or not PADS):
        return
    x = values((m, n), kind)
    out = device.empty((16, 32), kind)
    padded = device.array(np.pad(x, ((0, 0), (0, 48 - n)), constant_values=99))
    kernels.shift[(1,)](padded, out, m, n, 48, row, col, R=16, C=32, PAD=pad)
    framed = np.full((m + 240, n + 240), np.nan if pad == "nan" else 0, kind)
    framed[120 : 120 + m, 120 : 120 + n] = x
    np.testing.assert_array_equal(out.numpy(), framed[120 + row :, 120 + col :][:16, :32])


def product(device, kernel_args):
    m, n, k = 70, 96, 104
    a, b = values((m, k), np.float16, 1) / 8, values((k, n), np.float16, 2) / 8
    out = device.empty((m, n), np.float16)
    kernel_args(a, b, out, m, n, k)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected, rtol=2e-3, atol=2e-2)


def test_matmul_with_descriptors_made_in_the_kernel(device):
    def launch(a, b, out, m, n, k):
        right = device.array(np.ascontiguousarray(b.T))
        kernels.matmul[(3, 3)](device.array(a), right, out, m, n, k, M=32, N=32, K=32)

    product(device, launch)
    (block,) = device.records[-1].blocks[:1]
    assert [row.op for row in block.rows if row.op] == ["load", "load", "dot", "cast", "store"]


def test_matmul_with_descriptors_made_on_the_host(device):
    from triton.tools.tensor_descriptor import TensorDescriptor

    def describe(x, block):
        return TensorDescriptor(x, list(x.shape), list(x.stride()), block)

    def launch(a, b, out, m, n, k):
        left, right = describe(device.array(a), [32, 32]), describe(device.array(b), [32, 16])
        kernels.host_matmul[(3, 6)](left, right, describe(out, [32, 16]), k, M=32, N=16, K=32)

    product(device, launch)


@pytest.mark.skipif(not PADS, reason="this Triton's descriptors have no padding option")
def test_one_kernel_takes_host_descriptors_of_either_padding(device):
    from triton.tools.tensor_descriptor import TensorDescriptor

    x = values((20, 24), np.float16)
    source, out = device.array(x), device.empty((16, 32), np.float16)
    target = TensorDescriptor(out, [16, 32], [32, 1], [16, 32])
    for padding, beyond in (("nan", np.nan), ("zero", 0), ("nan", np.nan)):
        framed = np.full((60, 80), beyond, np.float16)
        framed[20:40, 20:44] = x
        for row, col in ((-3, 5), (9, -2)):
            made = TensorDescriptor(source, [20, 24], [24, 1], [16, 32], padding=padding)
            kernels.padded_copy[(1,)](made, target, row, col)
            np.testing.assert_array_equal(out.numpy(), framed[20 + row :, 20 + col :][:16, :32])


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 30), n=st.integers(1, 40), col=st.integers(0, 30), seed=st.integers(0, 9))
def test_gather_and_scatter_of_rows(device, m, n, col, seed):
    index = np.random.default_rng(seed).permutation(64)[:8] - 2
    x = values((m, 40), np.float32, seed)
    out = device.array(np.full((m, 40), 7, np.float32))
    kernels.rows[(1,)](device.array(x), out, m, n, 40, device.array(index.astype(np.int32)), col, R=8, C=16)
    expected = np.full((m, 40), 7, np.float32)
    for i in index:
        if 0 <= i < m:
            last = max(col, min(n, col + 16))
            expected[i, col:last] = x[i, col:last] + 1
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize(
    ("how", "kind", "apply"),
    [
        ("add", np.float32, np.add),
        ("add", np.int32, np.add),
        ("max", np.int32, np.maximum),
        ("xor", np.int32, np.bitwise_xor),
    ],
)
def test_reduction_into_a_descriptor(device, how, kind, apply):
    x, y = values((37, 52), kind, 1), values((37, 52), kind, 2)
    out = device.array(x)
    kernels.add_up[(1,)](out, device.array(y), 37, 52, R=16, C=16, HOW=how)
    np.testing.assert_array_equal(out.numpy(), apply(x, y))


@pytest.mark.parametrize("kind", [np.uint32, np.int32, np.uint64, np.int64])
@pytest.mark.parametrize(("how", "apply"), [("min", np.minimum), ("max", np.maximum)])
def test_minimum_and_maximum_know_whether_their_elements_have_a_sign(device, how, apply, kind):
    from triton.tools.tensor_descriptor import TensorDescriptor

    bits = np.iinfo(kind)
    x, y = np.random.default_rng(3).integers(bits.min, bits.max, (2, 37, 52), kind, endpoint=True)
    out = device.array(x)
    kernels.add_up[(1,)](out, device.array(y), 37, 52, R=16, C=16, HOW=how)
    np.testing.assert_array_equal(out.numpy(), apply(x, y))
    flat = device.array(x[0])
    kernels.merge[(1,)](TensorDescriptor(flat, [52], [1], [64]), device.array(y[0]), 52, R=64, HOW=how)
    np.testing.assert_array_equal(flat.numpy(), apply(x[0], y[0]))


@pytest.mark.parametrize("which", [0, 1])
def test_descriptors_go_through_branches_and_loops(device, which):
    a, b = values(32, np.float32, 1), values(32, np.float32, 2)
    out = device.empty((64,), np.float32)
    kernels.chosen[(1,)](device.array(a), device.array(b), out, 32, which, C=32)
    np.testing.assert_array_equal(out.numpy(), np.concatenate([a, b] if which else [b, b]))


def test_three_axes(device):
    x = values((3, 5, 20), np.float16)
    out = device.empty((2, 8, 16), np.float16)
    kernels.three[(1,)](device.array(x), out, 3, 5, 20, X=2, Y=8, Z=16)
    expected = np.zeros((2, 8, 16), np.float16)
    expected[:, :5] = x[0, :, :16]
    np.testing.assert_array_equal(out.numpy(), expected)


def test_a_descriptor_larger_than_its_tensor_is_caught(device):
    with pytest.raises(KernelFault, match="'source' out of bounds"):
        kernels.shift[(1,)](
            device.empty((4, 4), np.float32), device.empty((16, 32), np.float32), 8, 8, 8, 0, 0, R=16, C=32, PAD="zero"
        )
