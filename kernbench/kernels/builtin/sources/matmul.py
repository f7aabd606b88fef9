"""Matrix product, and the sum that ends its split-K form."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    out_ptr,
    a_ptr,
    b_ptr,
    bias_ptr,
    M,
    N,
    K,
    stride_om,
    stride_on,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    width,
    k_split,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """out[M,N] = a[M,K] @ b[K,N] (+ bias[N]). A tile has ``width`` <= BLOCK_N columns, so that any number of tiles can
    share N evenly. Program axis 1 splits K into pieces of ``k_split``; piece s writes its own out[s]. Neighbouring
    programs share columns of ``b`` in groups of GROUP_M tiles."""
    pid = tl.program_id(0)
    piece = tl.program_id(1)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, width)
    group = pid // (GROUP_M * tiles_n)
    first_m = group * GROUP_M
    group_m = min(tiles_m - first_m, GROUP_M)
    within = pid % (GROUP_M * tiles_n)
    offs_m = ((first_m + within % group_m) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    first_n = (within // group_m) * width
    column = tl.arange(0, BLOCK_N)
    inside = column < min(width, N - first_n)
    offs_n = (first_n + column).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    begin = piece * k_split
    end = min(begin + k_split, K)
    in_m = offs_m[:, None] < M
    in_n = inside[None, :]
    a_ptrs = a_ptr + offs_m[:, None] * stride_am + (begin + offs_k[None, :]).to(tl.int64) * stride_ak
    b_ptrs = b_ptr + (begin + offs_k[:, None]).to(tl.int64) * stride_bk + offs_n[None, :] * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(begin, end, BLOCK_K):
        a = tl.load(a_ptrs, mask=in_m & (offs_k[None, :] < end - k), other=0.0)
        b = tl.load(b_ptrs, mask=(offs_k[:, None] < end - k) & in_n, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K * stride_ak.to(tl.int64)
        b_ptrs += BLOCK_K * stride_bk.to(tl.int64)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=inside, other=0.0).to(tl.float32)[None, :]
    piece_ptr = out_ptr + piece.to(tl.int64) * M * N
    out_ptrs = piece_ptr + offs_m[:, None] * stride_om + offs_n[None, :] * stride_on
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=in_m & in_n)


@triton.jit
def sum_pieces(
    out_ptr,
    pieces_ptr,
    bias_ptr,
    M,
    N,
    pieces,
    stride_om,
    stride_on,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[M,N] = sum over s of pieces[s,M,N] (+ bias[N]); pieces is f32 and contiguous."""
    offs_m = (tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    offs_n = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    mask = (offs_m[:, None] < M) & (offs_n[None, :] < N)
    ptrs = pieces_ptr + offs_m[:, None] * N + offs_n[None, :]
    acc = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    for _ in range(pieces):
        acc += tl.load(ptrs, mask=mask, other=0.0)
        ptrs += M.to(tl.int64) * N
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + offs_m[:, None] * stride_om + offs_n[None, :] * stride_on
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask)
