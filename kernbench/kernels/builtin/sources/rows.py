"""Kernels that reduce over the last axis: softmax and normalisations.

A program holds BLOCK_R whole rows where they fit in BLOCK_C columns; the ``_long`` forms go over a row block by block.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(R, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    cols = tl.arange(0, BLOCK_C)[None, :]
    return rows, cols, (rows < R) & (cols < C)


@triton.jit
def softmax(out_ptr, x_ptr, R, C, stride_o, stride_x, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """out = exp(x - max) / sum, along rows."""
    rows, cols, mask = _tile(R, C, BLOCK_R, BLOCK_C)
    x = tl.load(x_ptr + rows * stride_x + cols, mask=mask, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=1)[:, None])
    y = e / tl.sum(e, axis=1)[:, None]
    tl.store(out_ptr + rows * stride_o + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def softmax_long(out_ptr, x_ptr, R, C, stride_o, stride_x, BLOCK_C: tl.constexpr):
    """softmax of one row, block by block, the maximum corrected as it grows."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_C)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, C, BLOCK_C):
        x = tl.load(x_ptr + row * stride_x + start + cols, mask=cols < C - start, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), axis=0)
        top = higher
    for start in range(0, C, BLOCK_C):
        x = tl.load(x_ptr + row * stride_x + start + cols, mask=cols < C - start, other=float("-inf")).to(tl.float32)
        y = tl.exp(x - top) / total
        tl.store(out_ptr + row * stride_o + start + cols, y.to(out_ptr.dtype.element_ty), mask=cols < C - start)


@triton.jit
def norm(
    out_ptr, x_ptr, weight_ptr, bias_ptr, R, C, stride_o, stride_x, eps,
    CENTRE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """layer norm (CENTRE) or RMS norm of rows, in f32, times weight[C] plus bias[C] where given."""
    rows, cols, mask = _tile(R, C, BLOCK_R, BLOCK_C)
    x = tl.load(x_ptr + rows * stride_x + cols, mask=mask, other=0.0).to(tl.float32)
    if CENTRE:
        mean = tl.sum(x, axis=1) / C
        x = tl.where(mask, x - mean[:, None], 0.0)
    variance = tl.sum(x * x, axis=1) / C
    y = x * (1.0 / tl.sqrt(variance + eps))[:, None]
    if weight_ptr is not None:
        y = y * tl.load(weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y = y + tl.load(bias_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows * stride_o + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_long(
    out_ptr, x_ptr, weight_ptr, bias_ptr, R, C, stride_o, stride_x, eps,
    CENTRE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``norm`` of one row, block by block."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_C)
    mean = tl.full((), 0.0, tl.float32)
    if CENTRE:
        sums = tl.zeros((BLOCK_C,), tl.float32)
        for start in range(0, C, BLOCK_C):
            sums += tl.load(x_ptr + row * stride_x + start + cols, mask=cols < C - start, other=0.0).to(tl.float32)
        mean = tl.sum(sums, axis=0) / C
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, C, BLOCK_C):
        x = tl.load(x_ptr + row * stride_x + start + cols, mask=cols < C - start, other=0.0).to(tl.float32)
        x = tl.where(cols < C - start, x - mean, 0.0)
        squares += x * x
    scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / C + eps)
    for start in range(0, C, BLOCK_C):
        mask = cols < C - start
        x = tl.load(x_ptr + row * stride_x + start + cols, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean) * scale
        if weight_ptr is not None:
            y = y * tl.load(weight_ptr + start + cols, mask=mask, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            y = y + tl.load(bias_ptr + start + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * stride_o + start + cols, y.to(out_ptr.dtype.element_ty), mask=mask)
