"""``ctx.distributed``: torch.distributed's functions for the ranks of a spawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernbench.runtime_api import reductions
from kernbench.runtime_api.arguments import NON_GROUP_MEMBER, contiguous, flat, in_place, parts
from kernbench.runtime_api.call import Work
from kernbench.runtime_api.group import ProcessGroup, subgroup
from kernbench.runtime_api.messages import Messages, P2POp
from kernbench.runtime_api.pieces import chain_pieces
from kernbench.runtime_api.reductions import ReduceOp
from kernbench.runtime_api.symmetric import SymmetricMemory
from kernbench.runtime_api.tensor import Tensor
from kernbench.runtime_api.types import DEVICE_TYPE
from kernbench.runtime_api.where import user_line

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext


class GroupMember:
    """What ``new_group`` gives to a rank that is no member."""

    NON_GROUP_MEMBER = NON_GROUP_MEMBER


class Distributed(Messages):
    """Every function works on the calling rank. ``group=None`` is the group of all ranks; ``src`` and ``dst`` are
    global ranks. Collectives return None, or a :class:`Work` with ``async_op=True``."""

    def __init__(self, ctx: RuntimeContext) -> None:
        self._ctx = ctx
        self.ReduceOp, self.GroupMember, self.P2POp = ReduceOp, GroupMember, P2POp
        self.Work, self.ProcessGroup = Work, ProcessGroup
        self.symmetric_memory = SymmetricMemory(ctx)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"ctx.distributed has no '{name}'. It has all_reduce, broadcast, reduce, all_gather, reduce_scatter, "
            "gather, scatter, all_to_all, barrier, send, recv, their async and single-tensor forms, and new_group. "
            "Python objects need no collective: ranks share one process"
        )

    # Setting up.

    def is_available(self) -> bool:
        return True

    def init_process_group(
        self,
        backend: str | None = None,
        init_method: Any = None,
        timeout: Any = None,
        world_size: int = -1,
        rank: int = -1,
    ) -> None:
        """Join the group of all ranks of this spawn.

        In the main program it is the group of all SIPs, one rank each: ``get_world_size()`` then says how many ranks to
        spawn, and these are members from their start (a call of their own changes nothing).

        Raises:
            ValueError: it is initialised already, another backend is asked for, or the world size or the rank given is
                not the spawn's.
        """
        me = self._me()
        if "default" in me.local and not me.inherits("default"):
            raise ValueError("trying to initialize the default process group twice!")
        if backend not in (None, DEVICE_TYPE):
            raise ValueError(f"init_process_group(backend={backend!r}): the backend is '{DEVICE_TYPE}'")
        size = me.world.size if me.task is not None else len(self._ctx.sips)
        if world_size not in (-1, size):
            raise ValueError(
                f"init_process_group(world_size={world_size}): this spawn has {size} ranks; leave it out, or "
                f"spawn with nprocs={world_size}"
            )
        if rank not in (-1, me.index):
            raise ValueError(f"init_process_group(rank={rank}): this is rank {me.index}; leave it out")
        group = me.world.groups.setdefault("default", ProcessGroup(me.world, "default", tuple(range(size))))
        me.keep("default", group, lambda: self.init_process_group(backend))

    def is_initialized(self) -> bool:
        return "default" in self._me().local

    def destroy_process_group(self, group: ProcessGroup | None = None) -> None:
        """Leave the group of all ranks, or one made by ``new_group``."""
        if group is None:
            self._default()
            del self._me().local["default"]

    def get_rank(self, group: Any = None) -> int:
        """The calling rank's number in the group; -1 outside it."""
        group = self._group(group)
        return -1 if group is None else group.number_of(self._me().index)

    def get_world_size(self, group: Any = None) -> int:
        group = self._group(group)
        return -1 if group is None or group.number_of(self._me().index) < 0 else group.size()

    def get_backend(self, group: Any = None) -> str:
        self._group(group)
        return DEVICE_TYPE

    def new_group(self, ranks: Sequence[int] | None = None, group_desc: str | None = None, **_: Any) -> Any:
        """A group of some ranks. All ranks have to call it, in the same order; who is no member gets
        ``GroupMember.NON_GROUP_MEMBER``."""
        default, me = self._default(), self._me()
        members = default.ranks if ranks is None else tuple(sorted(ranks))
        if len(set(members)) != len(members):
            raise ValueError(f"new_group(ranks={list(members)}): ranks are given twice")
        wrong = [r for r in members if r not in default.ranks]
        if wrong:
            raise ValueError(f"new_group: there is no rank {wrong[0]}; ranks are 0 to {default.size() - 1}")
        group = subgroup(me.world, me, members, user_line(), group_desc or "group")
        return group if me.index in members else NON_GROUP_MEMBER

    def get_process_group_ranks(self, group: ProcessGroup | None = None) -> list[int]:
        found = self._group(group)
        return [] if found is None else list(found.ranks)

    def get_global_rank(self, group: ProcessGroup, group_rank: int) -> int:
        if not 0 <= group_rank < group.size():
            raise ValueError(f"Group rank {group_rank} is not part of group {group}")
        return group.ranks[group_rank]

    def get_group_rank(self, group: ProcessGroup, global_rank: int) -> int:
        return self._number(group, global_rank)

    # Collectives.

    def all_reduce(self, tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        """Combine the tensors of all ranks, in place. Every rank gets the same bits."""
        group = self._member(group)
        if group is None:
            return None
        kind = reductions.check(op, self._tensor(tensor).dtype)
        whole, after = in_place(tensor)
        work = group.call(self._me(), "all_reduce", [whole], op=kind, result=[tensor], after=after)
        return _finish(work, async_op)

    def broadcast(
        self,
        tensor: Tensor,
        src: int | None = None,
        group: Any = None,
        async_op: bool = False,
        group_src: int | None = None,
    ) -> Any:
        """Everyone gets ``src``'s values."""
        group = self._member(group)
        if group is None:
            return None
        root = self._root(group, src, group_src)
        whole, after = in_place(self._tensor(tensor))
        pieces = chain_pieces(self._ctx, group.size(), whole.nbytes)
        work = group.call(self._me(), "broadcast", [whole], root=root, result=[tensor], after=after, pieces=pieces)
        return _finish(work, async_op)

    def reduce(
        self,
        tensor: Tensor,
        dst: int | None = None,
        op: ReduceOp = ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
        group_dst: int | None = None,
    ) -> Any:
        """``dst`` gets the combination, in place; the others' tensors stay as they are."""
        group = self._member(group)
        if group is None:
            return None
        root = self._root(group, dst, group_dst)
        kind = reductions.check(op, self._tensor(tensor).dtype)
        whole, after = in_place(tensor)
        pieces = chain_pieces(self._ctx, group.size(), whole.nbytes)
        work = group.call(
            self._me(), "reduce", [whole], op=kind, root=root, result=[tensor], after=after, pieces=pieces
        )
        return _finish(work, async_op)

    def all_gather(self, tensor_list: list[Tensor], tensor: Tensor, group: Any = None, async_op: bool = False) -> Any:
        """Entry r of the list gets rank r's tensor."""
        group = self._member(group)
        if group is None:
            return None
        self._list(tensor_list, group.size(), self._tensor(tensor), "all_gather")
        outputs = [contiguous(t, "all_gather's outputs") for t in tensor_list]
        work = group.call(self._me(), "all_gather", [flat(tensor)], outputs, result=tensor_list)
        return _finish(work, async_op)

    def all_gather_into_tensor(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        """The inputs one after another in one output of N times their size."""
        group = self._member(group)
        if group is None:
            return None
        self._sizes("all_gather_into_tensor", output_tensor, input_tensor, group.size())
        outputs = parts(output_tensor, group.size())
        work = group.call(self._me(), "all_gather", [flat(input_tensor)], outputs, result=[output_tensor])
        return _finish(work, async_op)

    all_gather_single = all_gather_into_tensor

    def reduce_scatter(
        self,
        output: Tensor,
        input_list: list[Tensor],
        op: ReduceOp = ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        """Rank r gets the combination of everyone's entry r."""
        group = self._member(group)
        if group is None:
            return None
        kind = reductions.check(op, self._tensor(output).dtype)
        self._list(input_list, group.size(), output, "reduce_scatter")
        inputs = [flat(t) for t in input_list]
        target = contiguous(output, "reduce_scatter's output")
        work = group.call(self._me(), "reduce_scatter", inputs, [target], op=kind, result=[output])
        return _finish(work, async_op)

    def reduce_scatter_tensor(
        self, output: Tensor, input: Tensor, op: ReduceOp = ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        """Rank r gets part r of the combination of all inputs, which are N times as large."""
        group = self._member(group)
        if group is None:
            return None
        kind = reductions.check(op, self._tensor(output).dtype)
        self._sizes("reduce_scatter_tensor", input, output, group.size())
        inputs = parts(input.contiguous(), group.size())
        target = contiguous(output, "reduce_scatter's output")
        work = group.call(self._me(), "reduce_scatter", inputs, [target], op=kind, result=[output])
        return _finish(work, async_op)

    reduce_scatter_single = reduce_scatter_tensor

    def gather(
        self,
        tensor: Tensor,
        gather_list: list[Tensor] | None = None,
        dst: int | None = 0,
        group: Any = None,
        async_op: bool = False,
        group_dst: int | None = None,
    ) -> Any:
        """``dst``'s list gets every rank's tensor."""
        group = self._member(group)
        if group is None:
            return None
        root = self._root(group, dst if group_dst is None else None, group_dst)
        outputs = self._rooted(group, root, gather_list, self._tensor(tensor), "gather_list", "destination")
        work = group.call(self._me(), "gather", [flat(tensor)], outputs, root=root, result=outputs)
        return _finish(work, async_op)

    def scatter(
        self,
        tensor: Tensor,
        scatter_list: list[Tensor] | None = None,
        src: int | None = 0,
        group: Any = None,
        async_op: bool = False,
        group_src: int | None = None,
    ) -> Any:
        """Rank r gets entry r of ``src``'s list."""
        group = self._member(group)
        if group is None:
            return None
        root = self._root(group, src if group_src is None else None, group_src)
        given = self._rooted(group, root, scatter_list, self._tensor(tensor), "scatter_list", "source")
        target = contiguous(tensor, "scatter's output")
        work = group.call(self._me(), "scatter", [flat(t) for t in given], [target], root=root, result=[tensor])
        return _finish(work, async_op)

    def all_to_all(
        self,
        output_tensor_list: list[Tensor],
        input_tensor_list: list[Tensor],
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        """Entry s of rank r's outputs gets entry r of rank s's inputs. All entries are of one size."""
        group = self._member(group)
        if group is None:
            return None
        like = self._tensor(input_tensor_list[0])
        self._list(input_tensor_list, group.size(), like, "all_to_all")
        self._list(output_tensor_list, group.size(), like, "all_to_all")
        outputs = [contiguous(t, "all_to_all's outputs") for t in output_tensor_list]
        inputs = [flat(t) for t in input_tensor_list]
        work = group.call(self._me(), "all_to_all", inputs, outputs, result=output_tensor_list)
        return _finish(work, async_op)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        output_split_sizes: Sequence[int] | None = None,
        input_split_sizes: Sequence[int] | None = None,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        """Part s of rank r's output gets part r of rank s's input; all parts are of one size."""
        if output_split_sizes or input_split_sizes:
            raise NotImplementedError("all_to_all_single with split sizes: pad the parts to one size")
        group = self._member(group)
        if group is None:
            return None
        n = group.size()
        if output.shape[0] % n or input.shape[0] % n or output.numel() != input.numel():
            raise RuntimeError("Split sizes doesn't match total dim 0 size")
        outputs, inputs = parts(output, n), parts(input.contiguous(), n)
        return _finish(group.call(self._me(), "all_to_all", inputs, outputs, result=[output]), async_op)

    def barrier(self, group: Any = None, async_op: bool = False, device_ids: Any = None) -> Any:
        """Nobody goes on before all have come: an all-reduce of one number that the host waits for."""
        group = self._member(group)
        if group is None:
            return None
        me = self._me()
        token = self._ctx._new((1,), "i32", "token of a barrier")
        work = group.call(me, "barrier", [token], collective="all_reduce", op="sum", result=[])
        if async_op:
            return work
        work.wait()
        sip = me.sip
        sip.synchronize_with(sip.current.snapshot(), stream=sip.current.number)
        return None


def _finish(work: Work, async_op: bool) -> Work | None:
    if async_op:
        return work
    work.wait()
    return None
