"""The ``p2p`` engine: trainers' shards straight to workers' shards, over ``ctx.distributed``; nothing is gathered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.arrays import describe, digest
from kernbench.weight_sync.dtypes import WireType
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    TensorListInfo,
    WeightTransferEngine,
    WeightTransferInitInfo,
    trainer_arguments,
)
from kernbench.weight_sync.transfer.plan import (
    Box,
    Division,
    Holders,
    Move,
    in_chunks,
    in_rounds,
    reshard_plan,
    sharded,
    tensor_parallel,
)

AHEAD = 8
CHUNK_BYTES = 32 << 20


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
        config: the model's ``config.json``, from which follows who holds what of its published tensors
            (:class:`~kernbench.weight_sync.sharding.Sharding`, whose ``place_shard`` says where a worker keeps it).
            Without it, the next three say so.
        src_axes: of each tensor the axis along which trainers divide it, None if every rank has all of it.
        dst_axes: the workers'.
        units: of each tensor how many things lie along its axes that no rank may cut (of K and V the number of KV
            heads), so that groups with more ranks repeat them; None for others. See :func:`tensor_parallel`.
        chunk_bytes: of one message, about.
        move_digests: hash of each move, of :func:`digests_of_moves` of all trainers; None checks nothing.

    Raises:
        ValueError: lists differ in length, an axis cannot be divided, ``digests`` is given, or ``chunk_bytes`` below 1.
    """

    _: KW_ONLY
    src_groups: list[list[int]]
    dst_groups: list[list[int]]
    config: dict[str, Any] | None = None
    src_axes: list[int | None] | None = None
    dst_axes: list[int | None] | None = None
    units: list[int | None] | None = None
    chunk_bytes: int = CHUNK_BYTES
    move_digests: dict[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.digests is not None:
            raise ValueError("digests are those of whole tensors, which no worker gets: give move_digests instead")
        if self.chunk_bytes < 1:
            raise ValueError(f"chunk_bytes is {self.chunk_bytes}: give at least 1")
        src, dst = (self._holders(side) for side in ("src", "dst"))
        self._divisions = [Division(name, kind.itemsize, src[name], dst[name]) for name, kind, _ in self.metadata]

    def _holders(self, side: str) -> Mapping[str, Holders]:
        """What each rank holds of each tensor."""
        groups: list[list[int]] = getattr(self, f"{side}_groups")
        axes: list[int | None] | None = getattr(self, f"{side}_axes")
        if (self.config is None) == (axes is None):
            raise ValueError(f"give either config or {side}_axes")
        shapes = {name: shape for name, _, shape in self.metadata}
        if self.config is not None:
            return sharded(self.config, shapes, groups)
        units = [None] * len(shapes) if self.units is None else self.units
        for key, given in ((f"{side}_axes", axes or []), ("units", units)):
            if len(given) != len(shapes):
                raise ValueError(f"`{key}` should be of the same size as `names`: got {len(given)} and {len(shapes)}")
        return {
            name: tensor_parallel(shape, axis, groups, whole)
            for (name, shape), axis, whole in zip(shapes.items(), axes or [], units, strict=True)
        }

    @property
    def divisions(self) -> list[Division]:
        """How each tensor lies before and after."""
        return self._divisions

    @cached_property
    def plan(self) -> dict[str, list[Move]]:
        """The moves of each tensor, in the order in which every rank begins its own."""
        made: dict[str, list[Move]] = {name: [] for name in self.names}
        for move in reshard_plan(self.divisions):
            made[move.name].append(move)
        return {name: in_chunks(in_rounds(moves), self.chunk_bytes) for name, moves in made.items()}


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
    gives_away = True

    def receive_weights(self, update_info: P2PUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over this rank's shard of one tensor a call.

        Raises:
            RuntimeError: "not initialized".
            ValueError: a range does not have the announced hash; or this rank is not a worker, or a trainer too.
        """
        reshard(update_info, None, load_weights, self.info.group)

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
        load_weights: gets what it holds as a worker; None if it is none.
        others: as :func:`resharded`.
    """
    _check_place("src_groups", info.src_groups, shards is not None)
    _check_place("dst_groups", info.dst_groups, load_weights is not None)
    for pair in resharded(info, shards, group, ahead):
        if load_weights is not None:
            load_weights([pair])


def resharded(
    info: P2PUpdateInfo, shards: Iterator[tuple[str, Any]] | None, group: Any = None, ahead: int = AHEAD
) -> Iterator[tuple[str, Tensor]]:
    """As :func:`reshard`, giving the shards one by one; a rank that is no worker goes through it for nothing.

    With one worker, itself a trainer, its fellows' shards arrive there as whole tensors.

    Args:
        shards: what the rank holds as a trainer; None if it is none.
        ahead: tensors under way at once.

    Raises:
        ValueError: the arguments do not fit the rank's place in the groups.
    """
    ctx = ranks.current().ctx
    me = ctx.distributed.get_rank()
    _check_place("src_groups", info.src_groups, shards is not None)
    plan = info.plan
    pending: deque[tuple[list[Any], _Arrival | None]] = deque()
    for number, ((name, kind, _), division) in enumerate(zip(info.metadata, info.divisions, strict=True)):
        mine = _next_shard(shards, kind, division, me) if shards is not None else None
        arrival = _Arrival(info, name, mine, division.dst[me], str(kind)) if me in division.dst else None
        works: list[Any] = []
        for place, move in enumerate(plan[name], number):
            tag = place % (ahead + 1)  # messages of one tag come one after another, for which small ones would wait
            if move.src == me != move.dst:
                works.append(ctx.distributed.isend(_cut(mine, move.src_slice), move.dst, group, tag))
            elif move.dst == me and arrival is not None:
                arrival.expect(move, works, group, tag)
        pending.append((works, arrival))
        if len(pending) > ahead:
            yield from _settled(pending)
    while pending:
        yield from _settled(pending)
    if shards is not None and (more := next(shards, None)) is not None:
        raise ValueError(f"rank {me} sends '{more[0]}', of which its update_info says nothing")


def digests_of_moves(info: P2PUpdateInfo, shards: Mapping[str, Any], rank: int) -> dict[str, str]:
    """Hash of each range that ``rank`` sends, for :attr:`P2PUpdateInfo.move_digests`; merge those of all trainers."""
    moves = [move for several in info.plan.values() for move in several if move.src == rank]
    return {move.key: digest(_cut(shards[move.name], move.src_slice)) for move in moves}


class _Arrival:
    """One tensor on its way to this rank: ranges without gaps land where they belong, others are put there once they
    are here."""

    def __init__(self, info: P2PUpdateInfo, name: str, mine: Tensor | None, box: Box, kind: str) -> None:
        self.info, self.name, self.mine = info, name, mine
        self.ctx = ranks.current().ctx
        self.whole = self.ctx.empty([stop - start for start, stop in box], dtype=kind, name=name)
        self.ranges: list[tuple[Move, Tensor]] = []

    def expect(self, move: Move, works: list[Any], group: Any, tag: int) -> None:
        """Begin to receive a range, or remember to take it from the rank's own shard."""
        piece = _cut(self.whole, move.dst_slice)
        if move.src == move.dst:
            piece = _cut(self.mine, move.src_slice)
        else:
            if not piece.is_contiguous():
                piece = self.ctx.empty(piece.shape, dtype=piece.dtype, name=self.name)
            works.append(self.ctx.distributed.irecv(piece, move.src, group, tag))
        self.ranges.append((move, piece))

    def put_together(self) -> Tensor:
        """All of it has come."""
        digests = self.info.move_digests
        if not all(piece._has_values() for _, piece in self.ranges):
            self.whole._mark(valid=False)  # at once: range by range would take a map as large as the tensor
        for move, piece in self.ranges:
            if digests is not None and (found := digest(piece)) != (expected := digests.get(move.key)):
                raise ValueError(f"{move.key} arrived damaged: it hashes to {found}, the trainer's to {expected}")
            target = _cut(self.whole, move.dst_slice)
            if piece.data_ptr() != target.data_ptr():
                target.copy_(piece)
        self.ranges = []
        return self.whole


def _settled(pending: deque[tuple[list[Any], _Arrival | None]]) -> Iterator[tuple[str, Tensor]]:
    """Wait for the oldest tensor under way, and give it if it comes here."""
    works, arrival = pending.popleft()
    ranks.current().ctx.wait(works)
    works.clear()
    if arrival is not None:
        yield arrival.name, arrival.put_together()


def _next_shard(shards: Iterator[tuple[str, Any]], wanted: WireType, division: Division, me: int) -> Tensor:
    expected = (division.name, [b - a for a, b in division.src[me]])
    name, shard = next(shards, (None, None))
    if name is None:
        raise ValueError(f"rank {me} ends before '{division.name}', which its update_info announced")
    kind, shape = describe(shard)
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


def _check_place(what: str, groups: list[list[int]], given: bool) -> None:
    me = ranks.current().ctx.distributed.get_rank()
    if any(me in group for group in groups) != given:
        raise ValueError(
            f"rank {me} is {'not ' if given else ''}in {what} {groups}: trainers send, workers receive, and a rank "
            "that is both calls reshard"
        )
