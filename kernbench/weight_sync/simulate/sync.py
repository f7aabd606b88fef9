"""The ranks of a simulated sync: who they are, what they hold, and what they do, engine by engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.sharding import Sharding
from kernbench.weight_sync.simulate.model import Model
from kernbench.weight_sync.simulate.outcome import SYNC
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory
from kernbench.weight_sync.transfer.ipc import new_address
from kernbench.weight_sync.transfer.p2p import AHEAD, CHUNK_BYTES, P2PUpdateInfo, reshard, resharded
from kernbench.weight_sync.transfer.packed import BUFFERS


@dataclass(frozen=True)
class Roles:
    """Trainers first, then the workers' tensor-parallel groups, a SIP each.

    Attributes:
        trainers: tensor-parallel size of the trainers.
        workers: that of each group of workers, which serve a copy of the model each.
    """

    trainers: int
    workers: tuple[int, ...]

    @property
    def world(self) -> int:
        return self.trainers + sum(self.workers)

    @property
    def src_groups(self) -> list[list[int]]:
        return [list(range(self.trainers))]

    @property
    def dst_groups(self) -> list[list[int]]:
        first, made = self.trainers, []
        for size in self.workers:
            made.append(list(range(first, first + size)))
            first += size
        return made

    def place(self, rank: int) -> tuple[int, int]:
        """(tensor-parallel size, number in the group) of a rank."""
        group = next(group for group in self.src_groups + self.dst_groups if rank in group)
        return len(group), group.index(rank)

    def __str__(self) -> str:
        sizes = "+".join(map(str, self.workers))
        if len(set(self.workers)) == 1:
            sizes = f"{self.workers[0]}x{len(self.workers)}"
        return f"tp{self.trainers} to tp{sizes}"


@dataclass(frozen=True)
class Settings:
    """Attributes:
    buffer_bytes: of a packed broadcast's buffer, and of what host engines hand over at once.
    num_buffers: of a packed broadcast.
    chunk_bytes: of one message of p2p, about.
    ahead: tensors that p2p has under way at once.
    """

    buffer_bytes: int = 256 << 20
    num_buffers: int = BUFFERS
    chunk_bytes: int = CHUNK_BYTES
    ahead: int = AHEAD

    def scaled(self, by: float) -> Settings:
        """For a model that is so many times as small."""
        return replace(self, buffer_bytes=ceil(self.buffer_bytes / by), chunk_bytes=ceil(self.chunk_bytes / by))


class Sync:
    """One engine's sync on an open context, whose SIPs are the ranks.

    Args:
        values: whole published tensors; None in a timing-only run.
        folder: for what the disk engine writes.

    Attributes:
        memory: rank -> (held before the sync, most during it), in bytes.
        correct: rank -> whether a worker ended with the trainers' bits.
        host_bytes, host_seconds: what the host's transport carried in earnest.
    """

    def __init__(
        self,
        ctx: RuntimeContext,
        engine: str,
        model: Model,
        roles: Roles,
        settings: Settings,
        values: Mapping[str, NDArray[Any]] | None,
        folder: Path,
    ) -> None:
        self.ctx, self.engine, self.model, self.roles, self.settings = ctx, engine, model, roles, settings
        self.values, self.folder = values, folder
        self.sharding = {size: Sharding(model.config, model.shapes, size) for size in {roles.trainers, *roles.workers}}
        self.kind = wire_type(model.dtype)
        self.memory: dict[int, tuple[int, int]] = {}
        self.correct: dict[int, bool] = {}
        self.host_bytes, self.host_seconds = 0, 0.0
        self._on_host: dict[tuple[int, str], NDArray[Any]] = {}

    def run(self) -> None:
        """Spawn the ranks and let them do it."""
        self.ctx.multiprocessing.spawn(self._rank, nprocs=self.roles.world)

    @cached_property
    def update(self) -> dict[str, Any]:
        """Names, types and shapes."""
        names = list(self.model.shapes)
        shapes = [list(self.model.shapes[name]) for name in names]
        return {"names": names, "dtype_names": [self.kind.name] * len(names), "shapes": shapes}

    @cached_property
    def to_workers(self) -> P2PUpdateInfo:
        """Who sends what to whom, directly."""
        return self._plan(self.roles.dst_groups)

    @cached_property
    def to_first_trainer(self) -> P2PUpdateInfo:
        """How the first trainer gets whole tensors."""
        return self._plan([[0]])

    def _plan(self, dst_groups: list[list[int]]) -> P2PUpdateInfo:
        return P2PUpdateInfo(
            **self.update,
            src_groups=self.roles.src_groups,
            dst_groups=dst_groups,
            config=self.model.config,
            chunk_bytes=self.settings.chunk_bytes,
        )

    def _rank(self, rank: int) -> None:
        ctx = self.ctx
        ctx.ahbm.set_device(rank)
        ctx.distributed.init_process_group(backend="ahbm")
        readers = ctx.distributed.new_group([0, *(r for group in self.roles.dst_groups for r in group)])
        size, number = self.roles.place(rank)
        sharding = self.sharding[size]
        with ctx.range("setup"):
            if rank < self.roles.trainers:
                held = {name: self._shard(sharding, name, number) for name in sharding.names}
            else:
                params = {name: self._unset(name, shape) for name, shape in sharding.params(number).items()}
            ctx.ahbm.synchronize()
            ctx.distributed.barrier()
        ctx.ahbm.reset_peak_memory_stats()
        before = ctx.ahbm.memory_allocated()
        with ctx.range(SYNC):
            if rank < self.roles.trainers:
                with ctx.range("transfer"):
                    self._train(rank, held, readers)
                    ctx.ahbm.synchronize()
            else:
                self._serve(rank, params, readers)
        self.memory[rank] = (before, ctx.ahbm.max_memory_allocated())
        if self.values is not None and rank >= self.roles.trainers:
            self.correct[rank] = self._is_correct(sharding, number, params)

    def _shard(self, sharding: Sharding, name: str, number: int) -> Tensor:
        shape = [stop - start for start, stop in sharding.box(name, number)]
        made = self._unset(name, shape)
        if self.values is not None:
            made.copy_(self.values[name][sharding.index(name, number)])
        return made

    def _unset(self, name: str, shape: Sequence[int]) -> Tensor:
        """Memory on the device with other values than the trainers'; without values, of which nobody may ask them."""
        made = self.ctx.empty(shape, dtype=self.model.dtype, name=name)
        return made.copy_(self.ctx.host_empty(shape, dtype=self.model.dtype))

    # The trainers.

    def _train(self, rank: int, held: dict[str, Tensor], readers: Any) -> None:
        if self.engine == "p2p":
            reshard(self.to_workers, iter(held.items()), None, ahead=self.settings.ahead)
        elif self.engine in BROADCASTS:
            whole = resharded(self.to_first_trainer, iter(held.items()))
            if rank == 0:
                args = {"update_info": self._broadcast(), "group": readers}
                WeightTransferEngineFactory.engine_class("broadcast").trainer_send_weights(whole, args)
            else:
                for _ in whole:
                    pass
        else:
            for bucket in self._buckets():
                for name in bucket:
                    on_host = held[name].cpu()
                    if self.values is not None:
                        self._on_host[rank, name] = on_host.numpy()
                self.ctx.distributed.barrier()

    def _broadcast(self) -> dict[str, Any]:
        packed = self.engine == "packed"
        sizes = {"buffer_size_bytes": self.settings.buffer_bytes, "num_buffers": self.settings.num_buffers}
        return self.update | {"packed": packed} | sizes

    # The workers.

    def _serve(self, rank: int, params: dict[str, Tensor], readers: Any) -> None:
        size, number = self.roles.place(rank)
        sharding = self.sharding[size]
        whole = self.engine in BROADCASTS or (self.engine in HOST and self.values is not None)
        place = partial(sharding.place if whole else sharding.place_shard, number)
        served = ServedWeights(params, place=place, check=False)
        keep = partial(served.load, owned=True)
        served.start()
        with self.ctx.range("transfer"):
            if self.engine in HOST:
                for bucket in self._buckets():
                    self.ctx.distributed.barrier()
                    served.load(self._from_host(bucket, sharding, number)) if self.values is None else (
                        self._through_host(bucket, served.load)
                    )
            else:
                name = "broadcast" if self.engine in BROADCASTS else self.engine
                engine = WeightTransferEngineFactory.create_engine(name)
                engine.init_transfer_engine(engine.parse_init_info({"group": readers} if whole else {}))
                if whole:
                    engine.receive_weights(engine.parse_update_info(self._broadcast()), keep)
                else:
                    reshard(self.to_workers, None, keep, ahead=self.settings.ahead)
            self.ctx.ahbm.synchronize()
        with self.ctx.range("commit"):
            served.finish()
            self.ctx.ahbm.synchronize()

    def _from_host(self, bucket: Sequence[str], sharding: Sharding, number: int) -> Iterator[tuple[str, Tensor]]:
        for name in bucket:
            shape = [stop - start for start, stop in sharding.box(name, number)]
            yield name, self.ctx.host_empty(shape, dtype=self.model.dtype)

    def _through_host(self, bucket: Sequence[str], load: Callable[[list[tuple[str, Any]]], Any]) -> None:
        """Send what trainers have copied to the host by the engine's own transport, and load it as it comes."""
        weights = {name: self._assembled(name) for name in bucket}
        engine = WeightTransferEngineFactory.create_engine(self.engine)
        engine.init_transfer_engine(engine.parse_init_info({"framework": "numpy"}))
        arrived: list[tuple[str, Any]] = []
        started = time.perf_counter()
        try:
            with sending(engine, self.engine, weights, self.folder) as info:
                engine.receive_weights(engine.parse_update_info(info), arrived.extend)
        finally:
            engine.shutdown()
        self.host_seconds += time.perf_counter() - started
        load(sorted(arrived, key=lambda pair: bucket.index(pair[0])))  # files hold tensors in an order of their own
        self.host_bytes += sum(weight.nbytes for weight in weights.values())

    def _assembled(self, name: str) -> NDArray[Any]:
        sharding = self.sharding[self.roles.trainers]
        whole = np.empty(self.model.shapes[name], self.kind.storage)
        for number in range(self.roles.trainers):
            whole[sharding.index(name, number)] = self._on_host[number, name]
        return whole

    def _buckets(self) -> list[list[str]]:
        """What is on the host at once. A snapshot appears as a whole, so the disk engine has one bucket."""
        made: list[list[str]] = [[]]
        filled = 0
        for name, shape in self.model.shapes.items():
            size = self.kind.nbytes(shape)
            if made[-1] and filled + size > self.settings.buffer_bytes and self.engine != "disk":
                made.append([])
                filled = 0
            made[-1].append(name)
            filled += size
        return made

    def _is_correct(self, sharding: Sharding, number: int, params: Mapping[str, Tensor]) -> bool:
        assert self.values is not None
        want = {name: np.empty(shape, self.kind.storage) for name, shape in sharding.params(number).items()}
        for name, whole in self.values.items():
            for param, index, part in sharding.place(number, name, whole):
                want[param][index] = part
        return all(param.numpy().tobytes() == want[name].tobytes() for name, param in params.items())


BROADCASTS = ("broadcast", "packed")
HOST = ("ipc", "http", "disk")
PATIENCE = 60.0
"""Seconds that one end of a host's transport waits for the other."""


@contextmanager
def sending(engine: Any, name: str, weights: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The trainer's end of a host engine, while the caller is its only worker; gives the worker's ``update_info``.

    Args:
        engine: the worker's, initialised.
        folder: for the disk engine's snapshot, which is written once, for all workers.

    Raises: what the trainer's end raised, once the caller is done.
    """
    if name == "disk":
        if not (folder / "written").exists():
            engine.trainer_send_weights(iter(weights.items()), {"path": str(folder), "version": 1})
            (folder / "written").touch()
        yield {"path": str(folder), "version": 1}
        return
    args = {"urls": [engine.url]} if name == "http" else {"address": new_address()}
    failed: list[BaseException] = []

    def send() -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                engine.trainer_send_weights(iter(weights.items()), args)
                return
            except BaseException as error:
                # A server turns trainers away until its worker receives, which it is about to do.
                if getattr(error, "status", None) != 409 or time.monotonic() > deadline:
                    failed.append(error)
                    return
                time.sleep(0.002)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield {"timeout": PATIENCE} if name == "http" else args | {"timeout": PATIENCE}
    finally:
        sender.join()
    if failed:
        raise failed[0]
