"""Which ranks share a model (tensor parallelism) and which repeat it (data parallelism). Every rank has its own state.

Ranks ``[0, tp)``, ``[tp, 2 tp)`` ... are the tensor-parallel groups; ranks with the same place in them are the
data-parallel groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.group import ProcessGroup


@dataclass(frozen=True)
class ParallelState:
    """The groups one rank is in."""

    tensor: ProcessGroup
    data: ProcessGroup


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    virtual_pipeline_model_parallel_size: int | None = None,
    *,
    context_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    **other: Any,
) -> None:
    """Make the groups. All ranks have to call it, after ``init_process_group``; or the main program does before it
    spawns them, and they have the groups from their start.

    Raises:
        AssertionError: the process group is not initialised, or the model-parallel state is already.
        RuntimeError: the world size is no multiple of the tensor-parallel size.
        NotImplementedError: pipeline, context or expert parallelism.
    """
    not_one = {
        "pipeline_model_parallel_size": pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual_pipeline_model_parallel_size or 1,
        "context_parallel_size": context_parallel_size,
        "expert_model_parallel_size": expert_model_parallel_size,
    }
    for name, size in not_one.items():
        if size != 1:
            raise NotImplementedError(f"{name}={size}: only tensor and data parallelism are here; leave it at 1")
    asked = [name for name, value in other.items() if name not in _IRRELEVANT and value not in _NOTHING]
    if asked:
        raise NotImplementedError(f"initialize_model_parallel({asked[0]}={other[asked[0]]!r}): not here; leave it out")
    me = ranks.current()
    distributed = me.ctx.distributed
    assert distributed.is_initialized(), "torch.distributed is not initialized: call ctx.distributed.init_process_group"
    world, size = distributed.get_world_size(), tensor_model_parallel_size
    if me.inherits(_KEY) and me.local[_KEY].tensor.size() == size:
        return
    assert _KEY not in me.local, "tensor model parallel group is already initialized"
    if size < 1 or world % size:
        raise RuntimeError(
            f"world_size ({world}) is not divisible by tensor_model_parallel_size ({size}): choose a divisor of the "
            "number of ranks that were spawned"
        )
    tensor = [list(range(first, first + size)) for first in range(0, world, size)]
    data = [list(range(place, world, size)) for place in range(size)]
    groups = {
        kind: [distributed.new_group(members, group_desc=f"{kind}-parallel") for members in several]
        for kind, several in (("tensor", tensor), ("data", data))
    }
    state = ParallelState(**{kind: _own(several) for kind, several in groups.items()})
    me.keep(_KEY, state, lambda: initialize_model_parallel(size))


_KEY = "kernbench.tp"
_IRRELEVANT = ("distributed_timeout_minutes", "create_gloo_process_groups", "high_priority_stream_groups")
"""Arguments of Megatron's that change nothing in a simulator."""
_NOTHING = (None, False, "tp-cp-ep-dp-pp")


def _own(groups: list[Any]) -> ProcessGroup:
    return next(group for group in groups if isinstance(group, ProcessGroup))


def is_initialized() -> bool:
    return _KEY in ranks.current().local


model_parallel_is_initialized = is_initialized


def destroy_model_parallel() -> None:
    """Forget the calling rank's groups."""
    ranks.current().local.pop(_KEY, None)


def _state(what: str) -> ParallelState:
    state = ranks.current().local.get(_KEY)
    assert state is not None, f"{what} parallel group is not initialized: call tp.initialize_model_parallel first"
    return state


def get_tensor_model_parallel_group() -> ProcessGroup:
    return _state("tensor model").tensor


def get_tensor_model_parallel_world_size() -> int:
    return get_tensor_model_parallel_group().size()


def get_tensor_model_parallel_rank() -> int:
    """The calling rank's number in its tensor-parallel group."""
    return get_tensor_model_parallel_group().rank()


def get_tensor_model_parallel_src_rank() -> int:
    """Global rank of the first member of the calling rank's tensor-parallel group."""
    return get_tensor_model_parallel_group().ranks[0]


def get_data_parallel_group() -> ProcessGroup:
    return _state("data").data


def get_data_parallel_world_size() -> int:
    return get_data_parallel_group().size()


def get_data_parallel_rank() -> int:
    """The calling rank's number in its data-parallel group."""
    return get_data_parallel_group().rank()
