"""The ``broadcast`` engine: the trainer's rank broadcasts to every other rank of a group, over ``ctx.distributed``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.arrays import describe, framework_of, to_bytes
from kernbench.weight_sync.dtypes import WireType
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    TensorListInfo,
    WeightTransferEngine,
    WeightTransferInitInfo,
    trainer_arguments,
)
from kernbench.weight_sync.transfer.packed import BUFFER_BYTES, BUFFERS, Chunk, check_buffers, cut, length


@dataclass
class BroadcastInitInfo(WeightTransferInitInfo):
    """Attributes:
    src: global rank of the trainer.
    group: the process group of trainer and workers; None is all ranks.
    """

    src: int = 0
    group: Any = None


@dataclass
class BroadcastUpdateInfo(TensorListInfo):
    """Attributes:
    packed: many tensors a broadcast, through buffers; else one broadcast a tensor.
    buffer_size_bytes, num_buffers: the same as the trainer's.
    """

    _: KW_ONLY
    packed: bool = False
    buffer_size_bytes: int = BUFFER_BYTES
    num_buffers: int = BUFFERS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_buffers(self.buffer_size_bytes, self.num_buffers)


@dataclass
class BroadcastTrainerArgs:
    """Attributes:
    update_info: as the workers get it; what is sent is compared with it, before it goes out.
    packed, buffer_size_bytes, num_buffers: where there is no ``update_info``.
    """

    update_info: dict[str, Any] | None = None
    src: int = 0
    group: Any = None
    packed: bool = False
    buffer_size_bytes: int = BUFFER_BYTES
    num_buffers: int = BUFFERS

    def __post_init__(self) -> None:
        check_buffers(self.buffer_size_bytes, self.num_buffers)


class BroadcastWeightTransferEngine(WeightTransferEngine[BroadcastInitInfo, BroadcastUpdateInfo]):
    """Works inside a rank of a spawn. Received tensors are device tensors with memory of their own."""

    init_info_cls = BroadcastInitInfo
    update_info_cls = BroadcastUpdateInfo
    gives_away = True

    def init_transfer_engine(self, init_info: BroadcastInitInfo) -> None:
        """Raises:
        ValueError: this rank is the trainer's, or not in the group.
        """
        distributed = ranks.current().ctx.distributed
        if distributed.get_rank(init_info.group) < 0:
            raise ValueError(f"rank {distributed.get_rank()} is not in the group of the weight transfer")
        if distributed.get_rank() == init_info.src:
            raise ValueError(f"rank {init_info.src} is the trainer: it sends with trainer_send_weights")
        super().init_transfer_engine(init_info)

    def receive_weights(self, update_info: BroadcastUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over one tensor a call, or in packed mode those that a buffer completes.

        Raises:
            RuntimeError: "not initialized".
            ValueError: a tensor does not have the announced hash.
        """
        wire = _Wire(self.info.src, self.info.group)
        load = update_info.checked(load_weights)
        if update_info.packed:
            _receive_packed(wire, update_info, load)
            return
        for name, kind, shape in update_info.metadata:
            tensor = wire.new(name, kind, shape)
            if tensor.nbytes:
                wire.broadcast(tensor)
            load([(name, tensor)])
            del tensor

    @staticmethod
    def trainer_send_weights(
        iterator: Iterator[tuple[str, Any]], trainer_args: dict[str, Any] | BroadcastTrainerArgs
    ) -> None:
        """Broadcast the weights, while every worker of the group receives. Host weights are copied to the device.

        Raises:
            ValueError: "Invalid trainer_args"; or the weights are not those that ``update_info`` announced.
        """
        args = trainer_arguments(BroadcastTrainerArgs, trainer_args)
        packed, size, buffers = args.packed, args.buffer_size_bytes, args.num_buffers
        if args.update_info is not None:
            info = BroadcastUpdateInfo(**args.update_info)
            iterator = info.check_sent(iterator)
            packed, size, buffers = info.packed, info.buffer_size_bytes, info.num_buffers
        wire = _Wire(args.src, args.group)
        if packed:
            _send_packed(wire, iterator, size, buffers)
            return
        for name, weight in iterator:
            tensor = wire.on_device(name, weight)
            if tensor.nbytes:
                wire.broadcast(tensor)


class _Wire:
    """The calling rank's end of the broadcasts."""

    def __init__(self, src: int, group: Any) -> None:
        self.ctx: RuntimeContext = ranks.current().ctx
        self.src, self.group = src, group

    def broadcast(self, tensor: Tensor, async_op: bool = False) -> Any:
        return self.ctx.distributed.broadcast(tensor, src=self.src, group=self.group, async_op=async_op)

    def new(self, name: str, kind: WireType | str, shape: tuple[int, ...]) -> Tensor:
        return self.ctx.empty(shape, dtype=str(kind), name=name)

    def on_device(self, name: str, weight: Any) -> Tensor:
        """The weight without gaps in this rank's memory: itself where it is that already."""
        if framework_of(weight) == "kernbench" and not weight.is_cpu:
            return weight.contiguous()
        kind, shape = describe(weight)
        made = self.new(name, kind, shape)
        made.copy_(to_bytes(weight).to("numpy"))
        return made


def _send_packed(wire: _Wire, weights: Iterator[tuple[str, Any]], size: int, count: int) -> None:
    tensors: dict[int, Tensor] = {}

    def sizes() -> Iterator[int]:
        for number, (name, weight) in enumerate(weights):
            tensors[number] = as_bytes(wire.on_device(name, weight))
            yield tensors[number].nbytes

    buffers: list[Tensor] = []
    works: list[Any] = []
    for turn, chunk in enumerate(cut(sizes(), size)):
        slot = turn % count
        if not length(chunk):
            continue
        if slot == len(buffers):
            buffers.append(wire.new("buffer of a weight transfer", "uint8", (size,)))
            works.append(None)
        wire.ctx.wait(works[slot])
        for segment in chunk:
            part = tensors[segment.tensor].narrow(0, segment.start, segment.nbytes)
            if segment.nbytes:
                buffers[slot].narrow(0, segment.offset, segment.nbytes).copy_(part)
            if segment.last:
                del tensors[segment.tensor]
        works[slot] = wire.broadcast(buffers[slot].narrow(0, 0, length(chunk)), async_op=True)
    wire.ctx.wait(works)


def _receive_packed(wire: _Wire, info: BroadcastUpdateInfo, load: LoadWeights) -> None:
    metadata = info.metadata
    chunks = list(cut([kind.nbytes(shape) for _, kind, shape in metadata], info.buffer_size_bytes))
    count = min(info.num_buffers, len(chunks))
    buffers = [wire.new("buffer of a weight transfer", "uint8", (info.buffer_size_bytes,)) for _ in range(count)]
    works = [_receive_chunk(wire, buffers[turn], chunks[turn]) for turn in range(count)]
    tensors: dict[int, Tensor] = {}
    for turn, chunk in enumerate(chunks):
        slot = turn % count
        wire.ctx.wait(works[slot])
        complete: list[tuple[str, Any]] = []
        for segment in chunk:
            name, kind, shape = metadata[segment.tensor]
            if not segment.start:
                tensors[segment.tensor] = wire.new(name, kind, shape)
            if segment.nbytes:
                target = as_bytes(tensors[segment.tensor]).narrow(0, segment.start, segment.nbytes)
                target.copy_(buffers[slot].narrow(0, segment.offset, segment.nbytes))
            if segment.last:
                complete.append((name, tensors.pop(segment.tensor)))
        if turn + count < len(chunks):
            works[slot] = _receive_chunk(wire, buffers[slot], chunks[turn + count])
        if complete:
            load(complete)


def _receive_chunk(wire: _Wire, buffer: Tensor, chunk: Chunk) -> Any:
    """Start it; the handle, or None if there is nothing to send."""
    return wire.broadcast(buffer.narrow(0, 0, length(chunk)), async_op=True) if length(chunk) else None


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as uint8[n]."""
    return tensor.view(-1).view("uint8")
