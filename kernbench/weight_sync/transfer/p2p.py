"""The ``p2p`` engine: trainers' shards straight to workers' shards, over ``ctx.distributed``; nothing is gathered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.arrays import describe, digest
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    TensorListInfo,
    WeightTransferEngine,
    WeightTransferInitInfo,
    not_initialized,
    trainer_arguments,
)
from kernbench.weight_sync.transfer.broadcast import as_bytes
from kernbench.weight_sync.transfer.plan import Division, Move, reshard_plan, tensor_parallel

AHEAD = 2


@dataclass
class P2PInitInfo(WeightTransferInitInfo):
    """Attributes:
    group: the process group of trainers and workers; None is all ranks.
    """

    group: Any = None


@dataclass
class P2PUpdateInfo(TensorListInfo):
    """The same for every trainer and worker. ``shapes`` are those of the whole tensors.

    What a worker gets are its own shards: with ``is_checkpoint_format=False`` they become its parameters as they are.

    Attributes:
        src_groups: the trainers' tensor-parallel groups, as lists of global ranks; groups repeat each other.
        dst_groups: the workers'.
        src_axes: of each tensor the axis along which trainers divide it, None if every rank has all of it.
        dst_axes: the workers'.
        move_digests: hash of each move, of :func:`digests_of_moves` of all trainers; None checks nothing.

    Raises:
        ValueError: lists differ in length, an axis cannot be divided, or ``digests`` is given.
    """

    _: KW_ONLY
    src_groups: list[list[int]]
    dst_groups: list[list[int]]
    src_axes: list[int | None]
    dst_axes: list[int | None]
    move_digests: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("src_axes", "dst_axes"):
            if len(getattr(self, key)) != len(self.names):
                sizes = f"{len(getattr(self, key))} and {len(self.names)}"
                raise ValueError(f"`{key}` should be of the same size as `names`: got {sizes}")
        if self.digests is not None:
            raise ValueError("digests are those of whole tensors, which no worker gets: give move_digests instead")
        self._divisions = [
            Division(
                name,
                kind.itemsize,
                tensor_parallel(shape, src, self.src_groups),
                tensor_parallel(shape, dst, self.dst_groups),
            )
            for (name, kind, shape), src, dst in zip(self.metadata, self.src_axes, self.dst_axes, strict=True)
        ]

    @property
    def divisions(self) -> list[Division]:
        """How each tensor lies before and after."""
        return self._divisions

    def plan(self) -> dict[str, list[Move]]:
        """The moves of each tensor."""
        made: dict[str, list[Move]] = {name: [] for name in self.names}
        for move in reshard_plan(self.divisions):
            made[move.name].append(move)
        return made


@dataclass
class P2PTrainerArgs:
    """Attributes:
    update_info: as the workers get it.
    """

    update_info: dict[str, Any]
    group: Any = None


class P2PWeightTransferEngine(WeightTransferEngine[P2PInitInfo, P2PUpdateInfo]):
    """Works inside a rank of a spawn. A rank that trains and serves calls :func:`reshard` instead of both ends."""

    init_info_cls = P2PInitInfo
    update_info_cls = P2PUpdateInfo
    _info: P2PInitInfo | None = None

    def init_transfer_engine(self, init_info: P2PInitInfo) -> None:
        self._info = init_info

    def receive_weights(self, update_info: P2PUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over this rank's shard of one tensor a call.

        Raises:
            RuntimeError: "not initialized".
            ValueError: a range does not have the announced hash; or this rank is not a worker, or a trainer too.
        """
        if self._info is None:
            raise not_initialized(self)
        reshard(update_info, None, load_weights, self._info.group)

    def shutdown(self) -> None:
        self._info = None

    @staticmethod
    def trainer_send_weights(
        iterator: Iterator[tuple[str, Any]], trainer_args: dict[str, Any] | P2PTrainerArgs
    ) -> None:
        """Send this rank's shards, device tensors, in the order of ``update_info``.

        Raises:
            ValueError: "Invalid trainer_args"; or a shard is not what ``update_info`` says.
        """
        args = trainer_arguments(P2PTrainerArgs, trainer_args)
        reshard(P2PUpdateInfo(**args.update_info), iterator, None, args.group)


def reshard(
    info: P2PUpdateInfo,
    shards: Iterator[tuple[str, Any]] | None,
    load_weights: LoadWeights | None,
    group: Any = None,
    ahead: int = AHEAD,
) -> None:
    """The calling rank's part of an update: what it sends, what it receives, and what it keeps.

    Args:
        shards: what it holds as a trainer; None if it is none.
        load_weights: gets what it holds as a worker; None if it is none.
        ahead: tensors under way at once.

    Raises:
        ValueError: the arguments do not fit the rank's place in the groups.
    """
    ctx = ranks.current().ctx
    me = ctx.distributed.get_rank()
    _check_place(me, "src_groups", info.src_groups, shards is not None)
    _check_place(me, "dst_groups", info.dst_groups, load_weights is not None)
    pending: deque[tuple[list[Any], Callable[[], None]]] = deque()

    def settle(limit: int) -> None:
        while len(pending) > limit:
            works, finish = pending.popleft()
            ctx.wait(works)
            finish()

    plan = info.plan()
    for (name, kind, _), division in zip(info.metadata, info.divisions, strict=True):
        mine = _next_shard(shards, info, division, me) if shards is not None else None
        works: list[Any] = []
        arriving: list[tuple[Move, Tensor]] = []
        for move in plan[name]:
            if move.src == me:
                assert mine is not None
                piece = _cut(mine, move.src_slice)
                if move.dst == me:
                    arriving.append((move, piece))
                else:
                    works.append(ctx.distributed.isend(as_bytes(piece.contiguous()), move.dst, group))
            elif move.dst == me:
                sizes = [s.stop - s.start for s in move.dst_slice]
                piece = ctx.empty(sizes, dtype=str(kind), name=name)
                works.append(ctx.distributed.irecv(as_bytes(piece), move.src, group))
                arriving.append((move, piece))
        if load_weights is not None:
            box = division.dst[me]
            pending.append((works, _Arrival(info, name, str(kind), [b - a for a, b in box], arriving, load_weights)))
        else:
            pending.append((works, _nothing))
        settle(ahead)
    settle(0)
    if shards is not None and (more := next(shards, None)) is not None:
        raise ValueError(f"rank {me} sends '{more[0]}', of which its update_info says nothing")


def digests_of_moves(info: P2PUpdateInfo, shards: Mapping[str, Any], rank: int) -> dict[str, str]:
    """Hash of each range that ``rank`` sends, for :attr:`P2PUpdateInfo.move_digests`; merge those of all trainers."""
    moves = [move for several in info.plan().values() for move in several if move.src == rank]
    return {move.key: digest(_cut(shards[move.name], move.src_slice)) for move in moves}


@dataclass
class _Arrival:
    """One tensor on its way to this rank: puts its ranges together, once they are here."""

    info: P2PUpdateInfo
    name: str
    kind: str
    shape: list[int]
    ranges: list[tuple[Move, Tensor]]
    load: LoadWeights

    def __call__(self) -> None:
        if self.info.move_digests is not None:
            for move, piece in self.ranges:
                expected, found = self.info.move_digests.get(move.key), digest(piece)
                if found != expected:
                    raise ValueError(f"{move.key} arrived damaged: it hashes to {found}, the trainer's to {expected}")
        if len(self.ranges) == 1 and self.ranges[0][0].src != self.ranges[0][0].dst:
            whole = self.ranges[0][1]
        else:
            whole = ranks.current().ctx.empty(self.shape, dtype=self.kind, name=self.name)
            for move, piece in self.ranges:
                _cut(whole, move.dst_slice).copy_(piece)
        self.ranges = []
        self.load([(self.name, whole)])


def _nothing() -> None:
    pass


def _next_shard(shards: Iterator[tuple[str, Any]], info: P2PUpdateInfo, division: Division, me: int) -> Tensor:
    expected = (division.name, [b - a for a, b in division.src[me]])
    name, shard = next(shards, (None, None))
    if name is None:
        raise ValueError(f"rank {me} ends before '{division.name}', which its update_info announced")
    kind, shape = describe(shard)
    wanted = info.metadata[info.names.index(division.name)][1]
    if (name, list(shape)) != expected or kind != wanted:
        raise ValueError(
            f"rank {me} sends '{name}' ({kind} {list(shape)}) where its update_info announced '{expected[0]}' "
            f"({wanted} {expected[1]})"
        )
    if not isinstance(shard, Tensor) or shard.is_cpu:
        raise TypeError(f"'{name}' is on the host: p2p sends device tensors; .to('ahbm') it first")
    return shard


def _cut(tensor: Any, index: tuple[slice, ...]) -> Any:
    return tensor[index] if index else tensor


def _check_place(me: int, what: str, groups: list[list[int]], given: bool) -> None:
    if any(me in group for group in groups) != given:
        raise ValueError(
            f"rank {me} is {'not ' if given else ''}in {what} {groups}: trainers send, workers receive, and a rank "
            "that is both calls reshard"
        )
