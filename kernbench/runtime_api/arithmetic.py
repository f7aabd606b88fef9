"""The operators and arithmetic methods of tensors; what they do is in :mod:`kernbench.runtime_api.ops`."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from kernbench.runtime_api import ops

if TYPE_CHECKING:
    from kernbench.runtime_api.tensor import Tensor


class Arithmetic:
    """Mixed into Tensor."""

    def add(self, other: Any) -> Tensor:
        return ops.binary("add", self, other)

    def sub(self, other: Any) -> Tensor:
        return ops.binary("sub", self, other)

    def mul(self, other: Any) -> Tensor:
        return ops.binary("mul", self, other)

    def div(self, other: Any) -> Tensor:
        return ops.binary("div", self, other)

    def maximum(self, other: Any) -> Tensor:
        return ops.binary("max", self, other)

    def minimum(self, other: Any) -> Tensor:
        return ops.binary("min", self, other)

    __add__, __sub__, __mul__, __truediv__ = add, sub, mul, div

    def __radd__(self, other: Any) -> Tensor:
        return ops.binary("add", other, self)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.binary("sub", other, self)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.binary("mul", other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.binary("div", other, self)

    def add_(self: Any, other: Any) -> Tensor:
        return ops.binary("add", self, other, out=self)

    def sub_(self: Any, other: Any) -> Tensor:
        return ops.binary("sub", self, other, out=self)

    def mul_(self: Any, other: Any) -> Tensor:
        return ops.binary("mul", self, other, out=self)

    def div_(self: Any, other: Any) -> Tensor:
        return ops.binary("div", self, other, out=self)

    __iadd__, __isub__, __imul__, __itruediv__ = add_, sub_, mul_, div_

    def matmul(self: Any, other: Tensor) -> Tensor:
        return ops.matmul(self, other)

    __matmul__ = mm = matmul

    def neg(self: Any) -> Tensor:
        return ops.unary("neg", self)

    __neg__ = neg

    def exp(self: Any) -> Tensor:
        return ops.unary("exp", self)

    def relu(self: Any) -> Tensor:
        return ops.unary("relu", self)

    def sigmoid(self: Any) -> Tensor:
        return ops.unary("sigmoid", self)

    def tanh(self: Any) -> Tensor:
        return ops.unary("tanh", self)

    def softmax(self: Any, dim: int = -1) -> Tensor:
        if dim not in (-1, self.ndim - 1):
            raise NotImplementedError(f"softmax over dim {dim}: only the last one; transpose first")
        return ops.rowwise("softmax", self)

    # Comparisons and reductions: of host tensors.

    def __eq__(self: Any, other: object) -> Any:
        return ops.compare(operator.eq, self, other)

    def __ne__(self: Any, other: object) -> Any:
        return ops.compare(operator.ne, self, other)

    def __lt__(self: Any, other: Any) -> Tensor:
        return ops.compare(operator.lt, self, other)

    def __le__(self: Any, other: Any) -> Tensor:
        return ops.compare(operator.le, self, other)

    def __gt__(self: Any, other: Any) -> Tensor:
        return ops.compare(operator.gt, self, other)

    def __ge__(self: Any, other: Any) -> Tensor:
        return ops.compare(operator.ge, self, other)

    __hash__ = object.__hash__

    def sum(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return ops.reduce("sum", self, *args, **kwargs)

    def mean(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return ops.reduce("mean", self, *args, **kwargs)

    def max(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return ops.reduce("max", self, *args, **kwargs)

    def min(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return ops.reduce("min", self, *args, **kwargs)

    def abs(self: Any) -> Tensor:
        return ops.reduce("abs", self)

    def all(self: Any) -> Tensor:
        return ops.reduce("all", self)

    def any(self: Any) -> Tensor:
        return ops.reduce("any", self)
