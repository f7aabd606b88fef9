"""Elementwise kernels over rows and columns. A contiguous tensor is one long row; a row stride of 0 repeats a row."""

import triton
import triton.language as tl


@triton.jit
def _offsets(R, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's rows [BLOCK_R, 1], columns [1, BLOCK_C], and which of them exist."""
    rows = (tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    cols = (tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[None, :]
    return rows, cols, (rows < R) & (cols < C)


@triton.jit
def _wide(x):
    """Narrow floats compute in f32."""
    if x.dtype.is_floating() and x.dtype.primitive_bitwidth < 32:
        x = x.to(tl.float32)
    return x


@triton.jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def _combine(a, b, OP: tl.constexpr):
    if OP == "add":
        r = a + b
    elif OP == "sub":
        r = a - b
    elif OP == "mul":
        r = a * b
    elif OP == "div":
        r = a / b
    elif OP == "max":
        r = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(OP == "min")
        r = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return r


@triton.jit
def binary(
    out_ptr, a_ptr, b_ptr, R, C, stride_o, stride_a, stride_b,
    OP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[R,C] = OP(a[R,C], b[R,C])."""
    rows, cols, mask = _offsets(R, C, BLOCK_R, BLOCK_C)
    a = _wide(tl.load(a_ptr + rows * stride_a + cols, mask=mask))
    b = _wide(tl.load(b_ptr + rows * stride_b + cols, mask=mask))
    tl.store(out_ptr + rows * stride_o + cols, _combine(a, b, OP).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def binary_number(
    out_ptr, a_ptr, b, R, C, stride_o, stride_a,
    OP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[R,C] = OP(a[R,C], b) with a number b."""
    rows, cols, mask = _offsets(R, C, BLOCK_R, BLOCK_C)
    a = _wide(tl.load(a_ptr + rows * stride_a + cols, mask=mask))
    tl.store(out_ptr + rows * stride_o + cols, _combine(a, b, OP).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def unary(
    out_ptr, x_ptr, R, C, stride_o, stride_x,
    OP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[R,C] = OP(x[R,C])."""
    rows, cols, mask = _offsets(R, C, BLOCK_R, BLOCK_C)
    x = _wide(tl.load(x_ptr + rows * stride_x + cols, mask=mask))
    if OP == "silu":
        y = x * tl.sigmoid(x)
    elif OP == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif OP == "gelu_tanh":
        y = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif OP == "relu":
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif OP == "sigmoid":
        y = tl.sigmoid(x)
    elif OP == "tanh":
        y = _tanh(x)
    elif OP == "exp":
        y = tl.exp(x)
    else:
        tl.static_assert(OP == "neg")
        y = -x
    tl.store(out_ptr + rows * stride_o + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def silu_mul(
    out_ptr, gate_ptr, up_ptr, R, C, stride_o, stride_g, stride_u,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[R,C] = silu(gate[R,C]) * up[R,C]."""
    rows, cols, mask = _offsets(R, C, BLOCK_R, BLOCK_C)
    gate = tl.load(gate_ptr + rows * stride_g + cols, mask=mask).to(tl.float32)
    up = tl.load(up_ptr + rows * stride_u + cols, mask=mask).to(tl.float32)
    tl.store(out_ptr + rows * stride_o + cols, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def copy(
    out_ptr, src_ptr, R, C, stride_ob, stride_or, stride_oc, stride_sb, stride_sr, stride_sc,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[B,R,C] = src[B,R,C], cast to out's type; program axis 2 counts B."""
    rows, cols, mask = _offsets(R, C, BLOCK_R, BLOCK_C)
    batch = tl.program_id(2).to(tl.int64)
    x = tl.load(src_ptr + batch * stride_sb + rows * stride_sr + cols * stride_sc, mask=mask)
    out_ptrs = out_ptr + batch * stride_ob + rows * stride_or + cols * stride_oc
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fill(out_ptr, value, R, C, stride_o, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """out[R,C] = value."""
    rows, cols, mask = _offsets(R, C, BLOCK_R, BLOCK_C)
    x = tl.full((BLOCK_R, BLOCK_C), value, out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows * stride_o + cols, x, mask=mask)
