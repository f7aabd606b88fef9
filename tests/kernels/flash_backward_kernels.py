"""Flash attention, backward, as Triton's tutorial 06 cuts it: each program does a block of keys, then one of queries.

Arrays are [heads, n_ctx, D], contiguous; ``lse`` is the forward pass' log2 of the sum of exp2.
"""

import triton
import triton.language as tl


@triton.jit
def row_products(o, do, delta, n_ctx, M: tl.constexpr, D: tl.constexpr):
    """``delta[h, i] = sum(o[h, i] * do[h, i])``."""
    row = tl.program_id(1) * n_ctx + tl.program_id(0) * M + tl.arange(0, M)
    at = row[:, None] * D + tl.arange(0, D)[None, :]
    product = tl.load(o + at).to(tl.float32) * tl.load(do + at).to(tl.float32)
    tl.store(delta + row, tl.sum(product, 1))


@triton.jit
def _to_keys(
    dk, dv, k, v, q_ptr, do_ptr, lse, delta, first_n, first_m, steps, scale, M: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What ``steps`` blocks of M queries add to the gradients of one block of keys and values."""
    n, d, m = first_n + tl.arange(0, N), tl.arange(0, D), first_m + tl.arange(0, M)
    q_turned = q_ptr + m[None, :] * D + d[:, None]
    do_rows = do_ptr + m[:, None] * D + d[None, :]
    tl.static_assert(N % M == 0)
    for _ in range(steps):
        q = tl.load(q_turned)
        p = tl.math.exp2(tl.dot(k, q, input_precision="ieee") * scale - tl.load(lse + m)[None, :])
        if MASKED:
            p = tl.where(m[None, :] >= n[:, None], p, 0.0)
        do = tl.load(do_rows)
        dv += tl.dot(p.to(do.dtype), do, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = p * (dp - tl.load(delta + m)[None, :])
        dk += tl.dot(ds.to(q.dtype), tl.trans(q), input_precision="ieee")
        m += M
        q_turned += M * D
        do_rows += M * D
    return dk, dv


@triton.jit
def _to_queries(
    dq, q, do, m_lse, m_delta, k_ptr, v_ptr, first_m, first_n, steps, scale, M: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What ``steps`` blocks of N keys add to the gradient of one block of queries."""
    m, d = first_m + tl.arange(0, M), tl.arange(0, D)
    at = first_n
    turned = tl.arange(0, N)[None, :] * D + d[:, None]
    tl.static_assert(M % N == 0)
    for _ in range(steps):
        k, v = tl.load(k_ptr + at * D + turned), tl.load(v_ptr + at * D + turned)
        p = tl.math.exp2(tl.dot(q, k, input_precision="ieee") * scale - m_lse)
        if MASKED:
            p = tl.where(m[:, None] >= (at + tl.arange(0, N))[None, :], p, 0.0)
        ds = p * (tl.dot(do, v, input_precision="ieee") - m_delta)
        dq += tl.dot(ds.to(k.dtype), tl.trans(k), input_precision="ieee")
        at += N
    return dq


@triton.jit
def attention_backward(
    q, k, v, do, lse, delta, dq, dk, dv, sm_scale, n_ctx, M1: tl.constexpr, N1: tl.constexpr, M2: tl.constexpr,
    N2: tl.constexpr, SLICES: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Grid (n_ctx / N1, 1, heads), with N1 == M2. Blocks on the diagonal are masked, and cut into ``SLICES``."""
    LOG2E: tl.constexpr = 1.4426950408889634
    pid, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    base = head * n_ctx
    q += base * D
    k += base * D
    v += base * D
    do += base * D
    dq += base * D
    dk += base * D
    dv += base * D
    lse += base
    delta += base
    scale = sm_scale * LOG2E

    first_n, first_m = pid * N1, 0
    rows = (first_n + tl.arange(0, N1))[:, None] * D + tl.arange(0, D)[None, :]
    keys, values = tl.load(k + rows), tl.load(v + rows)
    to_k, to_v = tl.zeros([N1, D], tl.float32), tl.zeros([N1, D], tl.float32)
    if CAUSAL:
        slices = N1 // (M1 // SLICES)
        to_k, to_v = _to_keys(
            to_k, to_v, keys, values, q, do, lse, delta, first_n, first_n, slices, scale, M1 // SLICES, N1, D, True
        )
        first_m = first_n + N1
    to_k, to_v = _to_keys(
        to_k, to_v, keys, values, q, do, lse, delta, first_n, first_m, (n_ctx - first_m) // M1, scale, M1, N1, D, False
    )
    tl.store(dv + rows, to_v)
    tl.store(dk + rows, to_k * sm_scale)

    first_m, last_n = pid * M2, n_ctx
    m = first_m + tl.arange(0, M2)
    rows = m[:, None] * D + tl.arange(0, D)[None, :]
    queries, gradient = tl.load(q + rows), tl.load(do + rows)
    m_lse, m_delta = tl.load(lse + m)[:, None], tl.load(delta + m)[:, None]
    to_q = tl.zeros([M2, D], tl.float32)
    if CAUSAL:
        slices = M2 // (N2 // SLICES)
        to_q = _to_queries(
            to_q, queries, gradient, m_lse, m_delta, k, v, first_m, first_m, slices, scale, M2, N2 // SLICES, D, True
        )
        last_n = first_m
    to_q = _to_queries(to_q, queries, gradient, m_lse, m_delta, k, v, first_m, 0, last_n // N2, scale, M2, N2, D, False)
    tl.store(dq + rows, to_q * sm_scale)
