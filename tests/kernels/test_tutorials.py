"""Triton's tutorials 01 to 05, 07 and 11, launched with ``kernel[grid](...)``, against numpy and torch in double."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels.standalone import StandaloneDevice
from kernbench.memory import dtype

pytest.importorskip("triton")

import triton.language as tl
import tutorial_kernels as tutorials

TOLERANCE = {"f16": 2e-3, "bf16": 1.6e-2, "f32": 2e-6}


@pytest.fixture(scope="module")
def device():
    with StandaloneDevice() as made:
        yield made


def random(shape, kind="f32", seed=0):
    """Values that ``kind`` holds exactly, as float64."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(dtype(kind).storage).astype(np.float64)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5000), block=st.sampled_from([16, 128, 1024]), kind=st.sampled_from(sorted(TOLERANCE)))
def test_01_vector_add(device, n, block, kind):
    x, y = random(n, kind, 1), random(n, kind, 2)
    out = device.empty((n,), kind)
    tutorials.add(device.array(x, kind), device.array(y, kind), out, block)
    expected = (x.astype(np.float32) + y.astype(np.float32)).astype(dtype(kind).storage)
    assert out.numpy().tobytes() == expected.tobytes()


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 200),
    cols=st.integers(1, 900),
    padding=st.integers(0, 5),
    programs=st.sampled_from([1, 7, 64]),
    kind=st.sampled_from(sorted(TOLERANCE)),
)
def test_02_fused_softmax(device, rows, cols, padding, programs, kind):
    x = random((rows, cols + padding), kind)
    out = device.empty((rows, cols), kind)
    tutorials.softmax(device.array(x, kind)[:, :cols], out, programs)
    e = np.exp(x[:, :cols] - x[:, :cols].max(1, keepdims=True))
    tolerance = max(1e-5, TOLERANCE[kind])
    found = out.numpy().astype(np.float64)
    np.testing.assert_allclose(found, e / e.sum(1, keepdims=True), rtol=tolerance, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 200),
    n=st.integers(1, 200),
    k=st.integers(1, 200),
    kind=st.sampled_from(sorted(TOLERANCE)),
    tile=st.sampled_from([(16, 16, 16), (64, 32, 32), (128, 128, 64)]),
    activation=st.sampled_from(["", "leaky_relu"]),
    turned=st.booleans(),
)
def test_03_matmul(device, m, n, k, kind, tile, activation, turned):
    a, b = random((m, k), kind, 1), random((k, n), kind, 2)
    right = device.array(b.T, kind).T if turned else device.array(b, kind)
    out = device.empty((m, n), kind)
    tutorials.matmul(device.array(a, kind), right, out, activation, tile)
    expected = a @ b
    if activation:
        expected = np.where(expected >= 0, expected, 0.01 * expected)
    tolerance = TOLERANCE[kind]
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected, rtol=tolerance, atol=tolerance * np.sqrt(k))


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 3000), p=st.sampled_from([0.0, 0.25, 0.5]), kind=st.sampled_from(sorted(TOLERANCE)))
def test_04_dropout(device, n, p, kind):
    x, keep, out = random(n, kind), np.random.default_rng(n).random(n) > p, device.empty((n,), kind)
    tutorials.dropout_kernel[(-(-n // 512),)](device.array(x, kind), device.array(keep, "i32"), out, n, p, BLOCK=512)
    expected = np.where(keep, x / (1 - p), 0)
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected, rtol=TOLERANCE[kind])


@pytest.mark.parametrize("kind", TOLERANCE)
def test_04_seeded_dropout(device, kind):
    """The same seed keeps the same elements, however they are cut into blocks; about the share that was asked for."""
    x, seen = random(4000, kind) + 9, {}
    for seed, block in ((123, 1024), (123, 256), (512, 1024)):
        out = device.empty((4000,), kind)
        grid = (-(-4000 // block),)
        tutorials.seeded_dropout_kernel[grid](device.array(x, kind), out, 4000, 0.3, seed, BLOCK=block)
        seen[seed, block] = out.numpy().astype(np.float64)
    kept = seen[123, 1024] != 0
    np.testing.assert_array_equal(seen[123, 1024], seen[123, 256])
    assert (kept != (seen[512, 1024] != 0)).mean() > 0.3
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    expected = x.astype(dtype(kind).storage).astype(np.float64)[kept] / 0.7
    np.testing.assert_allclose(seen[123, 1024][kept], expected, rtol=2 * TOLERANCE[kind])


def layer_norm(device, rows, cols, kind, block):
    """Forward and backward of tutorial 05; gives y, dx, dw, db and what torch gives in double."""
    torch = pytest.importorskip("torch")
    x, w, b, dy = (random(s, kind, i) for i, s in enumerate([(rows, cols), (cols,), (cols,), (rows, cols)]))
    eps, groups = 1e-5, 8
    to = {name: device.array(value, kind) for name, value in {"x": x, "w": w, "b": b, "dy": dy}.items()}
    y, dx = device.empty((rows, cols), kind), device.empty((rows, cols), kind)
    mean, rstd = device.empty((rows,), "f32"), device.empty((rows,), "f32")
    tutorials.layer_norm_fwd_fused[(rows,)](to["x"], y, to["w"], to["b"], mean, rstd, cols, cols, eps, BLOCK_SIZE=block)

    locks = device.array(np.zeros(2 * groups), "i32")
    partial_w, partial_b = device.empty((groups, cols), kind), device.empty((groups, cols), kind)
    dw, db = device.empty((cols,), kind), device.empty((cols,), kind)
    width = 1 << (cols - 1).bit_length()
    tutorials.layer_norm_bwd_dx_fused[(rows,)](
        dx, to["dy"], partial_w, partial_b, to["x"], to["w"], mean, rstd, locks, cols, cols,
        GROUP_SIZE_M=groups, BLOCK_SIZE_N=width,
    )  # fmt: skip
    tutorials.layer_norm_bwd_dwdb[(-(-cols // 64),)](
        partial_w, partial_b, dw, db, min(groups, rows), cols, BLOCK_SIZE_M=4, BLOCK_SIZE_N=64
    )
    leaves = [torch.tensor(v, requires_grad=True) for v in (x, w, b)]
    reference = torch.nn.functional.layer_norm(leaves[0], (cols,), leaves[1], leaves[2], eps)
    reference.backward(torch.tensor(dy))
    expected = [reference.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]
    return [t.numpy().astype(np.float64) for t in (y, dx, dw, db)], expected


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 40), cols=st.integers(2, 300), block=st.sampled_from([64, 512]))
def test_05_layer_norm_forward_and_backward(device, rows, cols, block):
    found, expected = layer_norm(device, rows, cols, "f32", block)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_05_layer_norm_in_half_precision(device, kind):
    found, expected = layer_norm(device, 50, 200, kind, 128)
    y, dx, dw, db = (np.abs(got - want).max() for got, want in zip(found, expected, strict=True))
    unit = {"f16": 2.0**-11, "bf16": 2.0**-8}[kind]
    assert y < 8 * unit
    assert dx < 16 * unit
    # Seven additions per group, each rounded to the narrow type, of sums as large as 20.
    assert max(dw, db) < 8 * 7 * 20 * unit


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_07_a_function_of_libdevice(device, kind):
    x = np.linspace(-1, 1, 1000).astype(dtype(kind).storage)
    out = device.empty((1000,), kind)
    tutorials.asin_kernel[(8,)](device.array(x, kind), out, 1000, BLOCK=128)
    np.testing.assert_allclose(out.numpy(), np.arcsin(x.astype(np.float64)), rtol={"f32": 1e-6, "f64": 1e-15}[kind])


@pytest.mark.skipif(
    "_semantic" not in inspect.signature(tl.extra.cuda.gdc_wait).parameters,
    reason="Triton 3.4 cannot call its own gdc_wait",
)
@pytest.mark.parametrize("kind", TOLERANCE)
def test_11_a_launch_that_depends_on_the_one_before(device, kind):
    x, y = device.array(random(1000, kind, 1), kind), device.array(random(1000, kind, 2), kind)
    twice, out = device.empty((1000,), kind), device.empty((1000,), kind)
    for left, right, to in ((x, x, twice), (twice, y, out)):
        tutorials.dependent_add_kernel[(4,)](left, right, to, 1000, BLOCK=256, launch_pdl=True)
    expected = 2 * random(1000, kind, 1) + random(1000, kind, 2)
    np.testing.assert_allclose(out.numpy().astype(np.float64), expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])


def test_the_same_kernel_gives_the_same_bytes_and_record_twice(device):
    seen = []
    for _ in range(2):
        with StandaloneDevice() as fresh:
            a, b = fresh.array(random((200, 130), "f16", 1), "f16"), fresh.array(random((130, 170), "f16", 2), "f16")
            out = fresh.empty((200, 170), "f16")
            tutorials.matmul(a, b, out, tile=(64, 64, 32))
            (record,) = fresh.records
            seen.append((out.numpy().tobytes(), repr(record)))
    assert seen[0] == seen[1]
