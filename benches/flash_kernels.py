"""Flash attention, forward, as Triton's tutorial 06 writes it: with descriptors, and with blocks of pointers."""

import triton
import triton.language as tl


@triton.jit
def _as_descriptor(x, shape, strides, block):
    if isinstance(x, tl.tensor_descriptor):
        return x
    else:
        return tl.make_tensor_descriptor(x, shape, strides, block)


@triton.jit
def _inner(
    acc, l_i, m_i, q, k_desc, v_desc, offset, qk_scale, start_m, M: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
    STAGE: tl.constexpr, offs_m, offs_n, n_ctx, WS: tl.constexpr,
):  # fmt: skip
    if STAGE == 1:
        lo, hi = 0, start_m * M
    elif STAGE == 2:
        lo, hi = start_m * M, (start_m + 1) * M
        lo = tl.multiple_of(lo, M)
    else:
        lo, hi = 0, n_ctx
    for start_n in tl.range(lo, hi, N, warp_specialize=WS):
        start_n = tl.multiple_of(start_n, N)
        k = k_desc.load([offset + start_n, 0]).T
        qk = tl.dot(q, k)
        if STAGE == 2:
            keep = offs_m[:, None] >= (start_n + offs_n[None, :])
            qk = qk * qk_scale + tl.where(keep, 0, -1.0e6)
            m_ij = tl.maximum(m_i, tl.max(qk, 1))
            qk -= m_ij[:, None]
        else:
            m_ij = tl.maximum(m_i, tl.max(qk, 1) * qk_scale)
            qk = qk * qk_scale - m_ij[:, None]
        p = tl.math.exp2(qk)
        alpha = tl.math.exp2(m_i - m_ij)
        l_ij = tl.sum(p, 1)
        acc = acc * alpha[:, None]
        v = v_desc.load([offset + start_n, 0])
        acc = tl.dot(p.to(v.dtype), v, acc)
        l_i = l_i * alpha + l_ij
        m_i = m_ij
    return acc, l_i, m_i


@triton.jit
def attention(
    sm_scale, lse, z, h, desc_q, desc_k, desc_v, desc_o, n_ctx, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    STAGE: tl.constexpr, WS: tl.constexpr = False,
):  # fmt: skip
    start_m, off_hz = tl.program_id(0), tl.program_id(1)
    rows = z * h * n_ctx
    desc_q = _as_descriptor(desc_q, [rows, D], [D, 1], [M, D])
    desc_k = _as_descriptor(desc_k, [rows, D], [D, 1], [N, D])
    desc_v = _as_descriptor(desc_v, [rows, D], [D, 1], [N, D])
    desc_o = _as_descriptor(desc_o, [rows, D], [D, 1], [M, D])
    offset = off_hz * n_ctx
    offs_m, offs_n = start_m * M + tl.arange(0, M), tl.arange(0, N)
    m_i = tl.zeros([M], dtype=tl.float32) - float("inf")
    l_i = tl.zeros([M], dtype=tl.float32) + 1.0
    acc = tl.zeros([M, D], dtype=tl.float32)
    qk_scale = sm_scale * 1.44269504  # 1/log(2)
    q = desc_q.load([offset + start_m * M, 0])
    if STAGE & 1:
        acc, l_i, m_i = _inner(
            acc, l_i, m_i, q, desc_k, desc_v, offset, qk_scale, start_m, M, D, N, 4 - STAGE, offs_m, offs_n, n_ctx, WS
        )
    if STAGE & 2:
        acc, l_i, m_i = _inner(
            acc, l_i, m_i, q, desc_k, desc_v, offset, qk_scale, start_m, M, D, N, 2, offs_m, offs_n, n_ctx, WS
        )
    m_i += tl.math.log2(l_i)
    tl.store(lse + off_hz * n_ctx + offs_m, m_i)
    desc_o.store([offset + start_m * M, 0], (acc / l_i[:, None]).to(q.dtype))


@triton.jit
def attention_by_pointers(
    q_ptr, k_ptr, v_ptr, o_ptr, sm_scale, n_ctx, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    start_m, head = tl.program_id(0), tl.program_id(1)
    base = head.to(tl.int64) * n_ctx * D
    offs_m, offs_n, offs_d = start_m * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    rows = offs_m[:, None] * D + offs_d[None, :]
    q = tl.load(q_ptr + base + rows, mask=offs_m[:, None] < n_ctx, other=0.0)
    k_ptrs = k_ptr + base + offs_n[None, :] * D + offs_d[:, None]
    v_ptrs = v_ptr + base + offs_n[:, None] * D + offs_d[None, :]
    m_i = tl.full([M], float("-inf"), tl.float32)
    l_i = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    end = tl.minimum((start_m + 1) * M, n_ctx) if CAUSAL else n_ctx
    for start_n in range(0, end, N):
        inside = start_n + offs_n < n_ctx
        k = tl.load(k_ptrs + start_n * D, mask=inside[None, :], other=0.0)
        qk = tl.dot(q, k) * (sm_scale * 1.44269504)
        keep = inside[None, :]
        if CAUSAL:
            keep = keep & (offs_m[:, None] >= start_n + offs_n[None, :])
        qk = tl.where(keep, qk, float("-inf"))
        m_ij = tl.maximum(m_i, tl.max(qk, 1))
        p = tl.exp2(qk - m_ij[:, None])
        alpha = tl.exp2(m_i - m_ij)
        l_i = l_i * alpha + tl.sum(p, 1)
        v = tl.load(v_ptrs + start_n * D, mask=inside[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
        m_i = m_ij
    tl.store(o_ptr + base + rows, (acc / l_i[:, None]).to(o_ptr.dtype.element_ty), mask=offs_m[:, None] < n_ctx)
