"""Kernels that come with KernBench, written in Triton, stored as TTIR and always run from the store.

Every function launches on the current device (see :mod:`kernbench.kernels.device`) and returns None. A *tensor* is
anything with ``data_ptr()``, ``shape``, ``stride()`` (in elements) and ``dtype``; outputs come first, as in numpy's
``out=``. Shapes are checked, dtypes must be among those listed, and arithmetic is done in float32 for floats.

    matmul(out, a, b, bias=None)        out[M,N] = a[M,K] @ b[K,N] (+ bias[N]); any strides, transposed views included;
                                        a, b (and bias) one of f16, bf16, f32; out that dtype or f32; f32 accumulation
    silu_mul(out, gate, up=None)        silu(gate) * up; without up, gate's last axis holds [gate | up] side by side
    elementwise(op, out, a, b)          op in add sub mul div max min; b a tensor (of out's shape or of its last
                                        axis) or a number
    activation(op, out, x)              op in silu gelu gelu_tanh relu sigmoid tanh exp neg
    copy(out, src)                      any strides and any pair of dtypes: also the cast and `.contiguous()`
    fill(out, value)
    combine(op, dst, src)               dst = op(dst, src), op in sum prod max min: the reduction of collectives
    softmax(out, x)                     over the last axis
    layer_norm(out, x, weight=None, bias=None, eps=1e-5)     over the last axis
    rms_norm(out, x, weight=None, eps=1e-6)                  over the last axis

``pick(name, shapes, dtypes, target) -> Choice`` says which stored kernel, grid and constexprs a call would use.
``python -m kernbench.kernels.builtin`` writes the store anew (needs Triton); ``--check`` compares instead.

Raises (all of them): ShapeError (a ValueError) or DTypeError (a TypeError), naming the function, what was found and
what was expected.
"""

from kernbench.kernels.builtin.calls import (
    DTypeError,
    ShapeError,
    activation,
    combine,
    copy,
    elementwise,
    fill,
    layer_norm,
    matmul,
    rms_norm,
    silu_mul,
    softmax,
)
from kernbench.kernels.builtin.choice import Choice, pick
from kernbench.kernels.builtin.store import StoreError

__all__ = [
    "Choice",
    "DTypeError",
    "ShapeError",
    "StoreError",
    "activation",
    "combine",
    "copy",
    "elementwise",
    "fill",
    "layer_norm",
    "matmul",
    "pick",
    "rms_norm",
    "silu_mul",
    "softmax",
]
