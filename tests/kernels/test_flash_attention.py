"""Flash attention, as in Triton's tutorial 06, forward and backward, against torch in a wider type."""

import numpy as np
import pytest

from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")
pytest.importorskip("torch")

import flash_backward_kernels as backward
import flash_kernels as kernels
import torch


def inputs(heads, n, d, seed=0):
    r = np.random.default_rng(seed)
    return [r.standard_normal((heads, n, d)).astype(np.float16) for _ in range(3)]


def expected(q, k, v, scale, causal):
    as_tensor = [torch.from_numpy(x.astype(np.float32)) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*as_tensor, is_causal=causal, scale=scale).numpy()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("where", ["kernel", "host"])
def test_with_descriptors(causal, where):
    from triton.tools.tensor_descriptor import TensorDescriptor

    heads, n, d, scale = 3, 256, 64, 0.125
    q, k, v = inputs(heads, n, d)
    with StandaloneDevice() as device:
        given = [device.array(x.reshape(-1, d)) for x in (q, k, v)]
        out, lse = device.empty((heads * n, d), np.float16), device.empty((heads, n), np.float32)
        args = [*given, out]
        if where == "host":
            args = [
                TensorDescriptor(x, [heads * n, d], [d, 1], [rows, d])
                for x, rows in zip(args, (64, 32, 32, 64), strict=True)
            ]
        kernels.attention[(n // 64, heads)](scale, lse, 1, heads, *args, n, D=d, M=64, N=32, STAGE=3 if causal else 1)
    want = expected(q, k, v, scale, causal)
    np.testing.assert_allclose(out.numpy().reshape(want.shape).astype(np.float32), want, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n", [128, 200])
def test_with_pointers(causal, n):
    heads, d, scale = 2, 32, 0.2
    q, k, v = inputs(heads, n, d)
    with StandaloneDevice() as device:
        given = [device.array(x) for x in (q, k, v)]
        out = device.empty((heads, n, d), np.float16)
        kernels.attention_by_pointers[(-(-n // 64), heads)](*given, out, scale, n, D=d, M=64, N=32, CAUSAL=causal)
    want = expected(q, k, v, scale, causal)
    np.testing.assert_allclose(out.numpy().astype(np.float32), want, rtol=4e-3, atol=2e-3)


class Attention(torch.autograd.Function):
    """Of q, k, v [batch, heads, n, d], with descriptors forward and pointers backward."""

    @staticmethod
    def forward(ctx, q, k, v, causal, scale, warp_specialize):
        batch, heads, n, d = q.shape
        o, lse = torch.empty_like(q), torch.empty(q.shape[:3])
        kernels.attention[(n // 64, batch * heads)](
            scale, lse, batch, heads, q, k, v, o, n, D=d, M=64, N=32, STAGE=3 if causal else 1, WS=warp_specialize
        )
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.causal, ctx.scale = causal, scale
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, o, lse = ctx.saved_tensors
        batch, heads, n, d = q.shape
        delta, gradients = torch.empty_like(lse), [torch.empty_like(x) for x in (q, k, v)]
        backward.row_products[(n // 64, batch * heads)](o, do, delta, n, M=64, D=d)
        backward.attention_backward[(n // 64, 1, batch * heads)](
            q, k, v, do, lse, delta, *gradients, ctx.scale, n, M1=32, N1=64, M2=64, N2=32, SLICES=2, D=d,
            CAUSAL=ctx.causal,
        )  # fmt: skip
        return *gradients, None, None, None


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_forward_and_backward(kind, causal):
    torch.manual_seed(0)
    given = [(torch.randn(2, 3, 192, 32) / 2).to(kind).requires_grad_() for _ in range(3)]
    do = torch.randn(2, 3, 192, 32).to(kind)
    exact = [x.detach().double().requires_grad_() for x in given]
    want = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=causal, scale=0.3)
    want.backward(do.double())
    with StandaloneDevice():
        found = Attention.apply(*given, causal, 0.3, not causal)
        found.backward(do)
    # One rounding of the result, and of the probabilities and their gradients, which are operands of products.
    unit = {torch.float32: 2.0**-21, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[kind]
    for got, expected in zip([found, *(x.grad for x in given)], [want, *(x.grad for x in exact)], strict=True):
        assert (got.double() - expected).abs().max() < 4 * unit * expected.abs().max()
