"""``CublasLt``, which Triton brings along to compare matrix products with, computed by torch on the CPU.

Like torch's own operators it takes no simulated time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from kernbench.triton.patches import patched


class CublasLt:
    """Products of A[M, K] and the transpose of B[N, K], accumulated in float32."""

    def __init__(self, workspace: Any) -> None:
        """The workspace is not needed."""

    def matmul(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        """``out[M, N] = a @ b.T``."""
        out.copy_(a.float() @ b.float().T)

    def gemm(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, out: torch.Tensor, alpha: float, beta: float
    ) -> None:
        """``out = alpha * (a @ b.T) + beta * c``."""
        out.copy_(alpha * (a.float() @ b.float().T) + beta * c.float())

    def block_scaled_matmul_mxfp8(
        self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
    ) -> None:
        """f8 operands, with one E8M0 scale for 32 elements along K."""
        x, y = (side.float() * _scales(s, side.shape, 32) for side, s in ((a, a_scale), (b, b_scale)))
        out.copy_(x @ y.T)

    def block_scaled_matmul_nvfp4(
        self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
    ) -> None:
        """Two 4-bit floats a byte, the low half first, with one f8e4m3 scale for 16 elements along K."""
        x, y = (_e2m1(side) for side in (a, b))
        x, y = (side * _scales(s, side.shape, 16) for side, s in ((x, a_scale), (y, b_scale)))
        out.copy_(x @ y.T)


def _scales(flat: torch.Tensor, shape: Any, each: int) -> torch.Tensor:
    """Scales in cuBLAS's order as float32 [rows, K]: it stores blocks of 128 rows by 4 scales, and in a block first the
    rows 0, 32, 64 and 96, then 1, 33 ..."""
    rows, k = shape
    values = torch.ldexp(torch.ones(flat.shape), flat.int() - 127) if flat.dtype == torch.uint8 else flat.float()
    blocks = values.reshape(rows // 128, k // each // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return blocks.reshape(rows, k // each).repeat_interleave(each, 1)


def _e2m1(packed: torch.Tensor) -> torch.Tensor:
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    both = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).int()
    return magnitudes[both & 7] * (1 - 2 * (both >> 3))


def installed() -> AbstractContextManager[Any]:
    """Triton's class by this one."""
    try:
        from triton._C.libtriton import nvidia
    except ImportError:
        return nullcontext()
    return patched([(nvidia.cublas, "CublasLt", CublasLt)])
