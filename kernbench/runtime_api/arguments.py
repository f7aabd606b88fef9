"""The groups, ranks and tensors that users name in calls of ``ctx.distributed``, checked with torch's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernbench.runtime_api import copies
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.group import ProcessGroup
from kernbench.runtime_api.tensor import Tensor
from kernbench.runtime_api.types import DEVICE_TYPE

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.runtime_api.rank import Rank

NON_GROUP_MEMBER = -100


class Arguments:
    """Mixed into Distributed."""

    _ctx: RuntimeContext

    def _me(self) -> Rank:
        return ranks.current_in(self._ctx)

    def _default(self) -> ProcessGroup:
        group = self._me().local.get("default")
        if group is None:
            raise ValueError(
                "Default process group has not been initialized, please make sure to call init_process_group."
            )
        return group

    def _group(self, group: Any) -> ProcessGroup | None:
        default = self._default()
        if group is None:
            return default
        return None if group == NON_GROUP_MEMBER else group

    def _member(self, group: Any) -> Any:
        """The group if this rank is a member, else None, as torch's collectives do nothing then."""
        found = self._group(group)
        return found if found is not None and found.number_of(self._me().index) >= 0 else None

    def _number(self, group: ProcessGroup, rank: int) -> int:
        number = group.number_of(rank)
        if number < 0:
            raise ValueError(f"Global rank {rank} is not part of group {group}")
        return number

    def _root(self, group: ProcessGroup, rank: int | None, group_rank: int | None) -> int:
        """Group rank of the one that a global or a group rank names."""
        if group_rank is not None and rank is not None:
            raise ValueError("Can't specify both group_rank and global_rank")
        if group_rank is not None:
            if not 0 <= group_rank < group.size():
                raise ValueError(f"Group rank {group_rank} is not part of group {group}")
            return group_rank
        if rank is None:
            raise ValueError("Must specify global_rank or group_rank")
        return self._number(group, rank)

    def _tensor(self, tensor: Any) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"Invalid function argument. Expected parameter `tensor` of type Tensor, got {type(tensor).__name__}"
            )
        if tensor.is_cpu:
            raise RuntimeError(
                f"tensor '{tensor.name}' is on the host: collectives need device tensors; .to('{DEVICE_TYPE}') it"
            )
        copies.driver(tensor)
        return tensor

    def _list(self, tensors: list[Tensor], count: int, like: Tensor, name: str) -> None:
        if len(tensors) != count:
            raise RuntimeError(
                f"{name}: a list of one tensor for each rank (expected length {count}, got {len(tensors)})"
            )
        for i, tensor in enumerate(tensors):
            self._tensor(tensor)
            if tensor.numel() != like.numel() or tensor.dtype != like.dtype:
                raise RuntimeError(
                    f"{name}: invalid tensor size at index {i} (expected {like.shape} {like.dtype.name}, "
                    f"got {tensor.shape} {tensor.dtype.name})"
                )

    def _sizes(self, name: str, large: Tensor, small: Tensor, count: int) -> None:
        self._tensor(large), self._tensor(small)
        if large.dtype != small.dtype or large.numel() != count * small.numel():
            raise RuntimeError(
                f"{name}: invalid tensor size: expected {count} x {small.numel()} elements of {small.dtype.name} for "
                f"{small.shape} on {count} ranks, got {large.numel()} of {large.dtype.name} {large.shape}"
            )

    def _rooted(
        self, group: ProcessGroup, root: int, tensors: list[Tensor] | None, like: Tensor, name: str, role: str
    ) -> list[Tensor]:
        mine = group.number_of(self._me().index) == root
        if mine and tensors is None:
            raise ValueError(f"Argument ``{name}`` must be specified on {role} rank.")
        if not mine and tensors:
            raise ValueError(f"Argument ``{name}`` must NOT be specified on non-{role} ranks.")
        if not mine or tensors is None:
            return []
        self._list(tensors, group.size(), like, name)
        return [contiguous(t, name) if name == "gather_list" else t for t in tensors]


def flat(tensor: Tensor) -> Tensor:
    """What is read, contiguous and in one dimension; a copy where it has to be."""
    return tensor.contiguous().view(-1)


def in_place(tensor: Tensor) -> tuple[Tensor, list[Any]]:
    """A contiguous tensor to work in, and what to do afterwards."""
    if tensor.is_contiguous():
        return tensor, []
    copy = tensor.contiguous()
    return copy, [lambda: tensor.copy_(copy)]


def contiguous(tensor: Tensor, what: str) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError(f"{what} must be contiguous, got strides {tensor.stride()} for shape {tensor.shape}")
    return tensor


def parts(tensor: Tensor, count: int) -> list[Tensor]:
    """Equal parts of a contiguous tensor, as flat views."""
    whole = contiguous(tensor, "the tensor").view(-1)
    size = whole.numel() // count
    return [whole.narrow(0, i * size, size) for i in range(count)]
