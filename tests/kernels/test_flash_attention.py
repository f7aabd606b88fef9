"""Flash attention forward, as in Triton's tutorial 06, against torch in float32."""

import numpy as np
import pytest

from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")
pytest.importorskip("torch")

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
