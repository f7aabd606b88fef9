"""Arithmetic on the device and on the host against torch."""

import numpy as np
import pytest
import torch

from kernbench.runtime_api.tensor import Tensor


def both(ctx, *shape, kind="f16", seed=0, low=-2.0):
    values = torch.from_numpy(np.random.default_rng(seed).uniform(low, 2, shape).astype(np.float32)).half()
    if kind == "i32":
        values = (values * 5).int()
    return ctx.tensor(values), values


def close(mine, theirs, tolerance=2e-3):
    assert mine.shape == tuple(theirs.shape)
    np.testing.assert_allclose(
        np.asarray(mine).astype(np.float32), theirs.float().numpy(), rtol=tolerance, atol=tolerance
    )


FORMS = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / (b + 5),
    lambda a, b: a + 1,
    lambda a, b: 2 - a,
    lambda a, b: 3 * a - 0.5,
    lambda a, b: 1 / (b + 5),
    lambda a, b: -a,
    lambda a, b: a + b[0],
    lambda a, b: a * b[:, :1],
    lambda a, b: a.T + b.T,
    lambda a, b: a.maximum(b).minimum(b + 1),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["ahbm", "cpu"])
def test_elementwise(ctx, form, place):
    (a, x), (b, y) = both(ctx, 6, 8), both(ctx, 6, 8, seed=1)
    close(form(a.to(place), b.to(place)), form(x, y))


def test_in_place(ctx):
    (a, x), (b, y) = both(ctx, 6, 8), both(ctx, 6, 8, seed=1)
    address = a.data_ptr()
    a += b
    a *= 2
    a.sub_(b).div_(4)
    a[:, 2:4].add_(1)
    x = (x + y) * 2
    x = (x - y) / 4
    x[:, 2:4] += 1
    close(a, x)
    assert a.data_ptr() == address


@pytest.mark.parametrize("name", ["silu", "gelu", "relu", "sigmoid", "tanh", "exp"])
def test_activations(ctx, name):
    a, x = both(ctx, 6, 8)
    reference = getattr(torch.nn.functional, name, None) or getattr(torch, name)
    close(getattr(ctx.nn.functional, name)(a), reference(x.float()))
    close(getattr(ctx, name)(a.cpu()), reference(x.float()))
    close(ctx.gelu(a, approximate="tanh"), torch.nn.functional.gelu(x.float(), approximate="tanh"))


def test_rowwise(ctx):
    a, x = both(ctx, 5, 64)
    w, v = both(ctx, 64, seed=1)
    close(a.softmax(-1), x.float().softmax(-1))
    close(ctx.layer_norm(a, (64,), w, w), torch.nn.functional.layer_norm(x.float(), (64,), v.float(), v.float()), 5e-3)
    close(ctx.rms_norm(a, (64,), w), torch.nn.functional.rms_norm(x.float(), (64,), v.float(), 1e-6), 5e-3)
    with pytest.raises(NotImplementedError, match="only the last"):
        a.softmax(0)


SHAPES = [((5, 16), (16, 7)), ((2, 3, 16), (16, 7)), ((16,), (16, 7)), ((5, 16), (16,)), ((2, 5, 16), (2, 16, 7))]


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("place", ["ahbm", "cpu"])
def test_matmul(ctx, left, right, place):
    (a, x), (b, y) = both(ctx, *left), both(ctx, *right, seed=1)
    close(a.to(place) @ b.to(place), x.float() @ y.float(), 1e-2)


def test_linear_and_transposed_operands(ctx):
    (a, x), (w, y), (b, z) = both(ctx, 5, 16), both(ctx, 7, 16, seed=1), both(ctx, 7, seed=2)
    close(ctx.nn.functional.linear(a, w, b), x.float() @ y.float().T + z.float(), 1e-2)
    close(ctx.addmm(b, a, w.T), x.float() @ y.float().T + z.float(), 1e-2)


def test_joining(ctx):
    (a, x), (b, y) = both(ctx, 3, 4), both(ctx, 2, 4, seed=1)
    close(ctx.cat([a, b]), torch.cat([x, y]), 0)
    close(ctx.cat([a.T, b.T], dim=-1), torch.cat([x.T, y.T], dim=-1), 0)
    close(ctx.stack([b, b], dim=1), torch.stack([y, y], dim=1), 0)
    with pytest.raises(RuntimeError, match="differ in another"):
        ctx.cat([a, b], dim=1)


def test_types_promote_as_in_torch(ctx):
    for left in ("float16", "bfloat16", "float32", "int32", "int64"):
        for right in ("float16", "bfloat16", "float32", "int32", "int64"):
            mine = Tensor((2,), left) + Tensor((2,), right)
            theirs = torch.zeros(2, dtype=getattr(torch, left)) + torch.zeros(2, dtype=getattr(torch, right))
            assert str(mine.dtype) == str(theirs.dtype)
    assert (ctx.ones(2, dtype="i32") / 2).tolist() == [0.5, 0.5]
    assert (ctx.ones(2, dtype="i32") + 0.5).dtype == ctx.float32
    assert (ctx.ones(2) + ctx.ones(2, dtype="f32")).dtype == ctx.float32


def test_host_reductions_and_comparisons():
    tensor = Tensor((2, 3), "f16")
    tensor.copy_(np.arange(6).reshape(2, 3))
    assert tensor.sum().item() == 15
    assert tensor.mean(0).tolist() == [1.5, 2.5, 3.5]
    assert (tensor.max().item(), tensor.min().item(), (-tensor).abs().sum().item()) == (5, 0, 15)
    assert (tensor > 2).tolist() == [[False] * 3, [True] * 3]
    assert (tensor == tensor).all()
    assert not (tensor != tensor).any()
    assert ((tensor <= 5).all() and (tensor >= 0).all() and (tensor < 6).all()).item()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda c: c.ones(2, 3) @ c.ones(2, 3), RuntimeError, r"cannot be multiplied \(2x3 and 2x3\)"),
        (lambda c: c.ones(2, 2) @ c.ones(2, 2, dtype="f32"), RuntimeError, "same dtype"),
        (lambda c: c.ones(2) + c.ones(3), RuntimeError, r"shapes \(2,\) and \(3,\) do not fit"),
        (lambda c: c.ones(2) + c.ones(2, device="cpu"), RuntimeError, "same device, found ahbm:0, cpu"),
        (lambda c: c.ones(2).add_(c.ones(3, 2)), RuntimeError, r"in place: the result is torch.float16 \(3, 2\)"),
        (lambda c: c.ones(2).sum(), NotImplementedError, r"use \.cpu\(\)\.sum\(\)"),
        (lambda c: c.softmax(c.ones(2, device="cpu")), NotImplementedError, "put it on the device"),
    ],
)
def test_mistakes(ctx, make, error, words):
    with pytest.raises(error, match=words):
        make(ctx)
