"""How a tensor enters and leaves a tensor-parallel region, forward. All do nothing in a group of one."""

from __future__ import annotations

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.group import ProcessGroup
from kernbench.runtime_api.tensor import Tensor
from kernbench.tp import parallel_state
from kernbench.tp.utils import split_tensor_along_last_dim


def copy_to_tensor_model_parallel_region(input_: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Every rank has the whole tensor already: the tensor itself."""
    return input_


def reduce_from_tensor_model_parallel_region(input_: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum over ranks, in place where the tensor is contiguous; use what is returned."""
    group = group or parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return input_
    whole = input_.contiguous()
    ranks.current().ctx.distributed.all_reduce(whole, group=group)
    return whole


def scatter_to_tensor_model_parallel_region(input_: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """This rank's part of the last axis, contiguous."""
    group = group or parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return input_
    return split_tensor_along_last_dim(input_, group.size())[group.rank()].contiguous()


def gather_from_tensor_model_parallel_region(input_: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All ranks' parts, one after another along the last axis."""
    group = group or parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return input_
    ctx = ranks.current().ctx
    parts = [ctx.empty(input_.shape, dtype=input_.dtype, name="gathered part") for _ in range(group.size())]
    ctx.distributed.all_gather(parts, input_.contiguous(), group=group)
    return ctx.cat(parts, dim=-1)
