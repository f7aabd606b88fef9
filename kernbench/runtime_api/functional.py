"""Functions of tensors, as in ``torch`` and ``torch.nn.functional``. All of them run as built-in kernels."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from kernbench.runtime_api import ops
from kernbench.runtime_api.tensor import Tensor


class Functional:
    """Mixed into RuntimeContext; also its ``nn.functional``."""

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.matmul(a, b)

    mm = bmm = matmul

    def addmm(self, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b + bias`` with a vector as bias."""
        return ops.matmul(a, b, bias)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias``: the weight is (out, in), as in torch."""
        return ops.matmul(x, weight.T, bias)

    def add(self, a: Any, b: Any) -> Tensor:
        return ops.binary("add", a, b)

    def sub(self, a: Any, b: Any) -> Tensor:
        return ops.binary("sub", a, b)

    def mul(self, a: Any, b: Any) -> Tensor:
        return ops.binary("mul", a, b)

    def div(self, a: Any, b: Any) -> Tensor:
        return ops.binary("div", a, b)

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.binary("max", a, b)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.binary("min", a, b)

    def silu(self, x: Tensor) -> Tensor:
        return ops.unary("silu", x)

    def gelu(self, x: Tensor, approximate: str = "none") -> Tensor:
        return ops.unary("gelu_tanh" if approximate == "tanh" else "gelu", x)

    def relu(self, x: Tensor) -> Tensor:
        return ops.unary("relu", x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return ops.unary("sigmoid", x)

    def tanh(self, x: Tensor) -> Tensor:
        return ops.unary("tanh", x)

    def exp(self, x: Tensor) -> Tensor:
        return ops.unary("exp", x)

    def softmax(self, x: Tensor, dim: int = -1) -> Tensor:
        return x.softmax(dim)

    def layer_norm(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        _last("layer_norm", x, normalized_shape)
        return ops.rowwise("layer_norm", x, weight, bias, eps)

    def rms_norm(
        self, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        _last("rms_norm", x, normalized_shape)
        return ops.rowwise("rms_norm", x, weight, 1e-6 if eps is None else eps)

    def cat(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        """One after another along ``dim``; copies on the device."""
        first = tensors[0]
        at = dim % first.ndim
        for t in tensors:
            if t.shape[:at] + t.shape[at + 1 :] != first.shape[:at] + first.shape[at + 1 :]:
                raise RuntimeError(f"cat along dim {dim}: shapes {first.shape} and {t.shape} differ in another one")
        shape = (*first.shape[:at], sum(t.shape[at] for t in tensors), *first.shape[at + 1 :])
        made = ops.like(first, shape, first.dtype)
        start = 0
        for t in tensors:
            made.narrow(at, start, t.shape[at]).copy_(t)
            start += t.shape[at]
        return made

    def stack(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        return self.cat([t.unsqueeze(dim) for t in tensors], dim)

    def split(self, x: Tensor, size: int, dim: int = 0) -> tuple[Tensor, ...]:
        return x.split(size, dim)

    def chunk(self, x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        return x.chunk(chunks, dim)

    @property
    def nn(self) -> Any:
        return SimpleNamespace(functional=self)


def _last(name: str, x: Tensor, normalized: Sequence[int]) -> None:
    if tuple(normalized) != x.shape[-1:]:
        raise NotImplementedError(f"{name} over {tuple(normalized)} of {x.shape}: only the last axis; reshape first")
