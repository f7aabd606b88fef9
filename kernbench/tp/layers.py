"""Linear layers whose weight is divided over the ranks of the tensor-parallel group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kernbench.runtime_api import ops
from kernbench.runtime_api.tensor import Tensor
from kernbench.tp import mappings, parallel_state
from kernbench.tp.utils import divide

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext

InitMethod = Callable[[Tensor], Any]


class _ParallelLinear:
    """What both layers share.

    Args:
        in_features, out_features: of the whole layer.
        torch: the context that makes the weights.
        bias: whether there is one.
        skip_bias_add: ``forward`` returns (output, bias) and leaves adding it to the caller.
        init_method: called with the whole weight as a host tensor (in, out), f32, to fill it; this rank keeps its part.
            It has to give every rank the same values, so that results do not depend on the number of ranks. Without
            one, weights are zeros.
        dtype: of the weights.

    Attributes:
        weight: device tensor.
        bias: device tensor, or None.

    Raises:
        AssertionError: a feature count that the group size does not divide, or no parallel state.
    """

    _split: int
    """Axis of the weight that is divided."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        torch: RuntimeContext,
        bias: bool = False,
        skip_bias_add: bool = False,
        init_method: InitMethod | None = None,
        sequence_parallel: bool = False,
        dtype: Any = "f16",
        name: str | None = None,
    ) -> None:
        if sequence_parallel:
            raise NotImplementedError(
                f"{type(self).__name__}(sequence_parallel=True): keep activations whole on every rank, or call "
                "ctx.distributed.reduce_scatter_tensor and all_gather_into_tensor around the layers yourself"
            )
        self.ctx, self.skip_bias_add = torch, skip_bias_add
        self.in_features, self.out_features = in_features, out_features
        self.group = parallel_state.get_tensor_model_parallel_group()
        whole = [in_features, out_features]
        mine = list(whole)
        mine[self._split] = divide(whole[self._split], self.group.size())
        name = name or type(self).__name__
        self.weight = torch.zeros(mine, dtype=dtype, name=f"{name}.weight")
        self.bias = torch.zeros(mine[1], dtype=dtype, name=f"{name}.bias") if bias else None
        if init_method is not None:
            master = Tensor(whole, "f32", f"{name}.weight")
            init_method(master)
            part = mine[self._split]
            self.weight.copy_(master.narrow(self._split, self.group.rank() * part, part))

    def __call__(self, x: Tensor) -> Any:
        return self.forward(x)

    def forward(self, x: Tensor) -> Any:
        raise NotImplementedError("use ColumnParallelLinear or RowParallelLinear")

    def parameters(self) -> list[Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def __repr__(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{type(self).__name__}({sizes}, tp_size={self.group.size()})"


class ColumnParallelLinear(_ParallelLinear):
    """``y = x @ W + b`` with W (in, out) divided by columns: a rank holds (in, out // tp) and gives (..., out // tp).

    Args:
        gather_output: give every rank the whole (..., out) instead.
        others: see above; the bias is divided like the columns.
    """

    _split = 1

    def __init__(self, in_features: int, out_features: int, *, gather_output: bool = False, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self.gather_output = gather_output

    def forward(self, x: Tensor) -> Any:
        """(..., in) on every rank to (..., out // tp), or (..., out) with ``gather_output``.

        Raises:
            RuntimeError: the last size of ``x`` is not ``in_features``.
        """
        x = mappings.copy_to_tensor_model_parallel_region(x, self.group)
        with self.ctx.range("gemm"):
            y = ops.matmul(x, self.weight, None if self.skip_bias_add else self.bias)
        if self.gather_output:
            with self.ctx.range("all_gather"):
                y = mappings.gather_from_tensor_model_parallel_region(y, self.group)
        return (y, self.bias) if self.skip_bias_add else y


class RowParallelLinear(_ParallelLinear):
    """``y = x @ W + b`` with W (in, out) divided by rows: a rank holds (in // tp, out), multiplies its part of x's last
    axis, and the products are summed over ranks. Every rank gets the same bits.

    Args:
        input_is_parallel: ``x`` is this rank's part already (the default), else it is divided here.
        others: see above; the bias is whole on every rank and added after the sum.
    """

    _split = 0

    def __init__(self, in_features: int, out_features: int, *, input_is_parallel: bool = True, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, **kwargs)
        self.input_is_parallel = input_is_parallel

    def forward(self, x: Tensor) -> Any:
        """(..., in // tp), or (..., in) without ``input_is_parallel``, to (..., out).

        Raises:
            RuntimeError: the last size of ``x`` is not this rank's part of ``in_features``.
        """
        if not self.input_is_parallel:
            x = mappings.scatter_to_tensor_model_parallel_region(x, self.group)
        with self.ctx.range("gemm"):
            y = ops.matmul(x, self.weight)
        with self.ctx.range("all_reduce"):
            y = mappings.reduce_from_tensor_model_parallel_region(y, self.group)
        if self.bias is not None and not self.skip_bias_add:
            y = y + self.bias
        return (y, self.bias) if self.skip_bias_add else y
