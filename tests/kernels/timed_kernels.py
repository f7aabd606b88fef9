"""Kernels whose simulated time follows from what they move and multiply."""

import triton
import triton.language as tl


@triton.jit
def strided(x, out, stride, BLOCK: tl.constexpr):
    """out[i] = x[i * stride]"""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i * stride))


@triton.jit
def gather(x, index, out, BLOCK: tl.constexpr):
    """out[i] = x[index[i]]"""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + tl.load(index + i)))


@triton.jit
def transpose(x, out, n, ROWS: tl.constexpr, COLS: tl.constexpr):
    """out = x.T, a tile of ROWS x COLS of the square x a program"""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    tl.store(out + j * n + i, tl.load(x + i * n + j))


@triton.jit
def stream(x, out, n, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """out = the sum over blocks of x"""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=STAGES):
        total += tl.load(x + start + i)
    tl.store(out + i, total)
