"""Kernels on floats of 8 and 16 bits."""

import triton
import triton.language as tl


@triton.jit
def widened(codes, out, B: tl.constexpr, KIND: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(out + r, tl.load(codes + r).to(KIND, bitcast=True).to(out.dtype.element_ty))


@triton.jit
def narrowed(x, codes, B: tl.constexpr, KIND: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(codes + r, tl.load(x + r).to(KIND).to(tl.uint8, bitcast=True))


@triton.jit
def copied(codes, out, n, B: tl.constexpr, KIND: tl.constexpr):
    """Through pointers to the narrow type: what is one byte in memory moves as one byte."""
    r = tl.program_id(0) * B + tl.arange(0, B)
    x = tl.load(codes.to(tl.pointer_type(KIND)) + r, mask=r < n)
    tl.store(out.to(tl.pointer_type(KIND)) + r, x, mask=r < n)


@triton.jit
def rounded(x, out, B: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(out + r, (tl.load(x + r).to(out.dtype.element_ty) + 0.0).to(out.dtype.element_ty))


@triton.jit
def fused(x, y, z, out, B: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(out + r, tl.fma(tl.load(x + r), tl.load(y + r), tl.load(z + r)))


@triton.jit
def truncated(x, out, B: tl.constexpr, KIND: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(out + r, tl.load(x + r).to(KIND).to(out.dtype.element_ty, bitcast=True))


@triton.jit
def shifted(out, x, by):
    """Of numbers, not of blocks."""
    tl.store(out, x << by)
    tl.store(out + 1, x >> by)
