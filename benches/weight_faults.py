"""Thousands of faults against every way to transfer weights: each has to be detected, or do no harm.

``python benches/weight_faults.py [faults]`` strikes one update after another, in every engine: a message lost,
doubled, exchanged, damaged, cut off or late, a trainer that dies, a file or a disk that goes wrong. After each, the
worker has to serve wholly the old or wholly the new version, the trainer has to have got an error unless it is the new
one, and the next update, without a fault, has to work. Exits with 1 if anything else was ever seen, or if threads,
shared memory or descriptors are left behind.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.weight_sync import blocksync
from kernbench.weight_sync.arrays import digest, from_bytes
from kernbench.weight_sync.checkpoint_sync import recover, verify
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.faults import (
    KINDS,
    Fault,
    FaultyConnection,
    FaultyProxy,
    Injector,
    Killed,
    LosingDisk,
    StoppingDisk,
    damage_files,
    faulty_rank,
    faulty_weights,
)
from kernbench.weight_sync.safetensors import index_text, read_tensors, write_safetensors
from kernbench.weight_sync.snapshot import write_snapshot
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory, WeightUpdater, describe_weights
from kernbench.weight_sync.transfer.broadcast import BroadcastWeightTransferEngine
from kernbench.weight_sync.transfer.disk import DiskWeightTransferEngine
from kernbench.weight_sync.transfer.http_client import HttpTrainerArgs, send_weights
from kernbench.weight_sync.transfer.http_server import Limits, WeightServer
from kernbench.weight_sync.transfer.ipc import IpcWeightTransferEngine, new_address
from kernbench.weight_sync.transfer.p2p import P2PUpdateInfo, P2PWeightTransferEngine, digests_of_moves

Weights = dict[str, Any]
Written = tuple[int, dict[str, Any]]
"""Steps that there were, and the workers' update information."""
State = tuple[int, dict[str, str]]
"""Version and the hash of every tensor."""
SHAPES = {
    "layers.0.qkv.weight": ("bfloat16", (12, 16)),
    "layers.0.qkv.scale": ("float32", ()),
    "layers.0.up.weight": ("float8_e4m3fn", (16, 8)),
    "layers.1.qkv.weight": ("bfloat16", (12, 16)),
    "layers.1.mask": ("bool", (10,)),
    "layers.1.none": ("float16", (0, 4)),
    "norm.weight": ("float32", (8,)),
}
PATIENT = 60.0


def model(seed: int, shapes: dict[str, tuple[str, tuple[int, ...]]] = SHAPES) -> Weights:
    """Any bits; two seeds differ in every tensor that has enough of them."""
    made = {}
    for i, (name, (kind, shape)) in enumerate(shapes.items()):
        top = 2 if kind == "bool" else 256
        data = np.random.default_rng([seed, i]).integers(0, top, wire_type(kind).nbytes(shape), np.uint8)
        made[name] = from_bytes(kind, shape, data, "numpy")
    return made


def hashes(weights: Weights) -> dict[str, str]:
    return {name: digest(weight) for name, weight in weights.items()}


class Case:
    """One way to transfer weights, and what can go wrong on it."""

    name: str
    kinds: tuple[str, ...] = KINDS
    share = 1.0
    """How many of the faults it gets, relative to the others."""

    def __init__(self, stack: ExitStack) -> None:
        self.params = {name: np.zeros_like(weight) for name, weight in model(0).items()}
        self.served = ServedWeights(self.params)

    def state(self) -> State:
        """What is served now."""
        return self.served.version, self.served.digests()

    def update(self, weights: Weights, version: int, kind: str | None, step: int, seed: int) -> int:
        """Try to bring the worker to ``version``, meeting a fault; gives the steps there were.

        Raises: what trainer or worker raise.
        """
        raise NotImplementedError

    def check_hidden(self, before: State) -> None:
        """Nothing may be visible yet."""
        if self.state() != before:
            raise VisibleError

    def restore(self, weights: Weights) -> None:
        """Start anew, where an update says that nothing can be saved."""


class VisibleError(Exception):
    """Something of an update was to be seen before its finish."""


class LostError(Exception):
    """The disk has not kept what it said it had; that was found, and somebody has to write it anew."""


def new_folder(stack: ExitStack) -> Path:
    """In memory where there is such a file system: what a disk loses is simulated, so fsync need not take its time."""
    where = "/dev/shm" if os.path.isdir("/dev/shm") else None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", dir=where)))


def fault_of(kind: str | None, step: int, seed: int) -> Fault | None:
    return None if kind is None else Fault(kind, step, seed)  # type: ignore[arg-type]


class HttpCase(Case):
    form = "octet-stream"
    towards = "server"

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        server = stack.enter_context(WeightServer(self.served, limits=Limits(abandoned=0)))
        host, port = server.url.removeprefix("http://").split(":")
        self.address = host, int(port)

    def update(self, weights: Weights, version: int, kind: str | None, step: int, seed: int) -> int:
        before = self.state()
        with ExitStack() as stack:
            address, proxy = self.address, None
            if kind or self.served.version == 0:
                proxy = FaultyProxy(address, fault_of(kind, step, seed), towards=self.towards)  # type: ignore[arg-type]
                address = stack.enter_context(proxy).address
            args = HttpTrainerArgs(
                [f"http://{address[0]}:{address[1]}"],
                version=version,
                form=self.form,  # type: ignore[arg-type]
                batch_bytes=400,
                concurrent=1,
                retries=seed % 2 if kind else 5,
                timeout=PATIENT,
                before_finish=lambda: self.check_hidden(before),
            )
            send_weights(iter(weights.items()), args)
            return proxy.steps if proxy else 0


class Octets(HttpCase):
    name = "http, octet-stream"


class Json(HttpCase):
    name, form, share = "http, JSON", "json", 0.5


class Answers(HttpCase):
    name, towards, share = "http, answers", "client", 0.5


class Ipc(Case):
    name, share = "ipc, messages", 2.5

    def update(self, weights: Weights, version: int, kind: str | None, step: int, seed: int) -> int:
        before = self.state()
        injector: Injector[bytes] = Injector(fault_of(kind, step, seed))
        timeout = PATIENT if kind in (None, "delay") else 0.05
        raised: list[BaseException] = []
        updater = WeightUpdater(IpcWeightTransferEngine(), self.served)
        updater.init_weight_transfer_engine({"framework": "numpy"})
        updater.start_weight_update(version)
        address = new_address()

        def work() -> None:
            try:
                updater.update_weights({"address": address, "timeout": timeout})
            except BaseException as error:
                raised.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        args = {
            "address": address,
            "buffer_size_bytes": 200,
            "num_buffers": 2,
            "timeout": timeout,
            "wrap": self.wrap(injector),
        }
        try:
            IpcWeightTransferEngine.trainer_send_weights(self.given(weights, kind, step, seed), args)
            worker.join()
            if raised:
                raise raised[0]
        except BaseException:
            worker.join()
            updater.abort_weight_update()
            raise
        self.check_hidden(before)
        updater.finish_weight_update(hashes(weights))
        return injector.steps or len(weights)

    def given(self, weights: Weights, kind: str | None, step: int, seed: int) -> Iterator[tuple[str, Any]]:
        return iter(weights.items())

    def wrap(self, injector: Injector[bytes]) -> Callable[..., Any] | None:
        return lambda connection, buffer: FaultyConnection(connection, injector)


class IpcMemory(Ipc):
    name, share, kinds = "ipc, memory", 1.0, ("corrupt",)

    def wrap(self, injector: Injector[bytes]) -> Callable[..., Any] | None:
        return lambda connection, buffer: FaultyConnection(connection, injector, buffer)


class Trainer(Ipc):
    """What the trainer gives is not what it says: the same for every engine, so here through ipc. Steps are tensors."""

    name, share = "ipc, trainer's tensors", 1.0

    def given(self, weights: Weights, kind: str | None, step: int, seed: int) -> Iterator[tuple[str, Any]]:
        return faulty_weights(weights.items(), fault_of(kind, step % len(SHAPES), seed))

    def wrap(self, injector: Injector[bytes]) -> Callable[..., Any] | None:
        return None


class Files(Case):
    """A snapshot's files are damaged between its writing and its loading."""

    name, share = "disk, files", 2.5
    kinds = ("drop", "duplicate", "reorder", "corrupt", "truncate")
    delta = False

    def __init__(self, stack: ExitStack) -> None:
        super().__init__(stack)
        self.folder = new_folder(stack)
        self.path.mkdir()

    @property
    def path(self) -> Path:
        return self.folder / "snapshots"

    def update(self, weights: Weights, version: int, kind: str | None, step: int, seed: int) -> int:
        files, info = self.write(weights, version, kind, step, seed)
        before = self.state()
        updater = WeightUpdater(WeightTransferEngineFactory.create_engine("disk"), self.served)
        updater.init_weight_transfer_engine({"framework": "numpy"})
        updater.start_weight_update(version)
        updater.update_weights(info | {"prefetch": bool(seed % 2)})
        self.check_hidden(before)
        updater.finish_weight_update(hashes(weights))
        return files

    def write(
        self, weights: Weights, version: int, kind: str | None, step: int, seed: int
    ) -> tuple[int, dict[str, Any]]:
        args = {"path": str(self.path), "version": version, "part_bytes": 400, "delta": self.delta and kind is not None}
        info = DiskWeightTransferEngine.trainer_send_weights(iter(weights.items()), args)
        files = sorted(path for path in self.path.iterdir() if not path.name.endswith(".lock"))
        if kind is not None:
            damage_files(files, Fault(kind, step, seed))  # type: ignore[arg-type]
        return len(files), info


class Deltas(Files):
    """A delta, or the snapshot that it leads from, is damaged; the next update is a snapshot again."""

    name, share, delta = "disk, deltas", 1.0, True


DISK_KINDS = ("kill before", "kill in the middle", "kill after", "power loss", "lost fsync")


def faulty_disk(kind: str | None, step: int, shadow: Path) -> StoppingDisk:
    if kind in ("power loss", "lost fsync"):
        return LosingDisk(shadow, step, "middle" if step % 2 else "before", lying=kind == "lost fsync")
    when = {"kill before": "before", "kill in the middle": "middle", "kill after": "after"}.get(kind or "", "before")
    return StoppingDisk(None if kind is None else step, when)  # type: ignore[arg-type]


class Crashes(Files):
    """The writer of a snapshot dies, and maybe the machine with it; what the disk has is loaded all the same."""

    name, kinds, share = "disk, crashing writer", DISK_KINDS, 0.5

    def write(
        self, weights: Weights, version: int, kind: str | None, step: int, seed: int
    ) -> tuple[int, dict[str, Any]]:
        shadow = self.folder / "shadow"
        disk = faulty_disk(kind, step, shadow)
        try:
            with suppress(Killed):
                write_snapshot(self.path, 0, "weights", weights, part_bytes=400, version=version, disk=disk)
            if isinstance(disk, LosingDisk):
                disk.power_loss(seed)
        finally:
            shutil.rmtree(shadow, ignore_errors=True)
        return disk.done, {"path": str(self.path), "version": version}


class Blocks(Case):
    """A checkpoint sync dies between two steps, or in the middle of a block."""

    name, kinds, share = "checkpoint sync", DISK_KINDS, 0.12
    publish = False
    FILES = ("model-1.safetensors", "model-2.safetensors")

    def __init__(self, stack: ExitStack) -> None:
        self.folder = new_folder(stack)
        self.model = self.folder / "model"
        self._make(model(0))

    def _make(self, weights: Weights) -> None:
        shutil.rmtree(self.model, ignore_errors=True)
        self.model.mkdir()
        for file, tensors in self._split(weights).items():
            write_safetensors(self.model / file, tensors)
        names = {name: file for file, tensors in self._split(weights).items() for name in tensors}
        (self.model / "model.safetensors.index.json").write_bytes(index_text(names, 0))
        blocksync.sync_files(self.model, self._split(weights), 512)

    def _split(self, weights: Weights) -> dict[str, Weights]:
        names = list(weights)
        return {file: {name: weights[name] for name in names[i::2]} for i, file in enumerate(self.FILES)}

    def state(self) -> State:
        found: Weights = {}
        for file in self.FILES:
            found |= read_tensors(self.model / file, framework="numpy")
        return verify(self.model).version, hashes({name: found[name] for name in SHAPES})

    def update(self, weights: Weights, version: int, kind: str | None, step: int, seed: int) -> int:
        shadow = self.folder / "shadow"
        disk = faulty_disk(kind, step, shadow)
        try:
            with suppress(Killed):
                blocksync.sync_files(self.model, self._split(weights), 512, publish=self.publish, disk=disk)
            if isinstance(disk, LosingDisk):
                disk.power_loss(seed)
        finally:
            shutil.rmtree(shadow, ignore_errors=True)
        try:
            recover(self.model)
            if not verify(self.model).ok:
                raise ValueError("verify finds damage")
        except (ValueError, OSError) as error:
            raise (LostError(str(error)) if kind == "lost fsync" else error) from None
        if disk.stopped and self.state()[1] != hashes(weights):
            raise Killed
        return disk.done

    def restore(self, weights: Weights) -> None:
        self._make(weights)


class Publishes(Blocks):
    name, publish = "checkpoint sync, publish", True


class Ranks(Case):
    """Rank 0 of a simulated machine trains, rank 1 serves."""

    share = 0.12
    engine: type[Any] = BroadcastWeightTransferEngine
    packed = False

    def info(self, weights: Weights) -> dict[str, Any]:
        about = describe_weights(weights.items())
        return about | {"packed": self.packed, "buffer_size_bytes": 300}

    def update(self, weights: Weights, version: int, kind: str | None, step: int, seed: int) -> int:
        info, before = self.info(weights), self.state()
        updater = WeightUpdater(self.engine(), self.served)
        with (
            RuntimeContext.open(_machine()) as ctx,
            faulty_rank(ctx, 0, fault_of(kind, step, seed)) as injector,
        ):

            def body(rank: int) -> None:
                ctx.ahbm.set_device(rank)
                ctx.distributed.init_process_group(backend="ahbm")
                if rank == 0:
                    self.engine.trainer_send_weights(self.given(ctx, weights), {"update_info": info})
                    return
                updater.init_weight_transfer_engine({})
                updater.start_weight_update(version)
                updater.update_weights(info)
                self.check_hidden(before)
                updater.finish_weight_update(hashes(weights))

            try:
                ctx.multiprocessing.spawn(body, nprocs=2)
            except SpawnException as error:
                raise next(iter(error.errors.values())) from None
            return injector.steps

    def given(self, ctx: RuntimeContext, weights: Weights) -> Iterator[tuple[str, Any]]:
        return iter(weights.items())


class Broadcast(Ranks):
    name = "broadcast"


class Packed(Ranks):
    name, packed = "broadcast, packed", True


class P2P(Ranks):
    name, engine = "p2p", P2PWeightTransferEngine

    def info(self, weights: Weights) -> dict[str, Any]:
        axes = [None] * len(weights)
        groups = {"src_groups": [[0]], "dst_groups": [[1]], "src_axes": axes, "dst_axes": axes}
        about = describe_weights(weights.items(), digests=False) | groups
        return about | {"move_digests": digests_of_moves(P2PUpdateInfo(**about), weights, 0)}

    def given(self, ctx: RuntimeContext, weights: Weights) -> Iterator[tuple[str, Any]]:
        for name, weight in weights.items():
            tensor = ctx.empty(weight.shape, dtype=wire_type(weight.dtype).name, name=name)
            tensor.copy_(weight)
            yield name, tensor


_MACHINES: list[Any] = []


def _machine() -> Any:
    if not _MACHINES:
        _MACHINES.append(kernbench.topology.load("tiny", sips=2))
    return _MACHINES[0]


CASES: tuple[type[Case], ...] = (
    Octets, Json, Answers, Ipc, IpcMemory, Trainer, Files, Deltas, Crashes, Blocks, Publishes, Broadcast, Packed, P2P,
)  # fmt: skip


@dataclass
class Tally:
    """What became of the faults of one kind on one way."""

    faults: int = 0
    detected: Counter[str] = field(default_factory=Counter)
    """By the error's class, where the old version went on being served."""
    after: int = 0
    """Errors after which the new version was served, as only an answer was lost."""
    harmless: int = 0
    """No error, and the new version is served."""
    silent: list[str] = field(default_factory=list)
    """Anything else."""


def strike(case: Case, kind: str, step: int, seed: int, tally: Tally) -> None:
    """One update that meets a fault, and one after it that does not."""
    old, weights = case.state(), model(seed * 2 + 1)
    new = old[0] + 1, hashes(weights)
    tally.faults += 1
    where = f"{case.name}, {kind} at step {step}, seed {seed}: "
    error: BaseException | None = None
    try:
        case.update(weights, new[0], kind, step, seed)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        error = raised
    if isinstance(error, LostError):
        tally.detected[type(error).__name__] += 1
        case.restore(weights)
    else:
        try:
            now = case.state()
        except Exception as unreadable:
            now = -1, {"": repr(unreadable)}
        if now not in (old, new):
            tally.silent.append(where + "neither the old nor the new version is served")
        elif isinstance(error, VisibleError | AssertionError):
            tally.silent.append(where + repr(error))
        elif error is None and now == old:
            tally.silent.append(where + "no error, and yet the old version is served")
        elif error is None:
            tally.harmless += 1
        elif now == old:
            tally.detected[type(error).__name__] += 1
        else:
            tally.after += 1
    weights = model(seed * 2 + 2)
    try:
        version = case.state()[0] + 1
        case.update(weights, version, None, 0, seed)
        if case.state() != (version, hashes(weights)):
            tally.silent.append(where + "the next update went wrong")
    except Exception as raised:
        tally.silent.append(where + f"the next update fails: {raised!r}")


def left_behind() -> dict[str, int]:
    """What may not grow: threads, descriptors, shared memory, folders of sockets."""
    folder = Path(tempfile.gettempdir())
    return {
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "segments": len(list(Path("/dev/shm").glob(f"kernbench-{os.getpid()}-*"))) if os.path.isdir("/dev/shm") else 0,
        "sockets": len(list(folder.glob(f"kernbench-transfer-{os.getpid()}-*"))),
    }


def run(faults: int, seed: int = 0, cases: tuple[type[Case], ...] = CASES) -> dict[tuple[str, str], Tally]:
    """About that many faults, divided among all ways and kinds.

    Raises:
        RuntimeError: something is left behind.
    """
    tallies: dict[tuple[str, str], Tally] = {}
    shares = sum(one.share for one in cases)
    for cls in cases:
        with ExitStack() as stack:
            case = cls(stack)
            weights = model(2 * seed + 2 * faults)
            steps = case.update(weights, case.state()[0] + 1, None, 0, seed)
            gc.collect()
            before = left_behind()
            count = max(round(faults * cls.share / shares), len(cls.kinds))
            rng = np.random.default_rng(seed)
            for i in range(count):
                kind = cls.kinds[i % len(cls.kinds)]
                tally = tallies.setdefault((cls.name, kind), Tally())
                strike(case, kind, int(rng.integers(steps)), seed + i, tally)
            gc.collect()
            for _ in range(100):  # threads that have been told to end need a moment
                after = left_behind()
                grown = any(after[what] > before[what] for what in before)
                if not grown:
                    break
                time.sleep(0.02)
            if grown:
                raise RuntimeError(f"{cls.name} leaves something behind: {before} before, {after} after")
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="?", type=int, default=10_400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # of every fault that is met
    start = time.perf_counter()
    tallies = run(options.faults, options.seed)
    table = Table("way", "fault", "struck", "detected", "error, yet done", "harmless", "silent", "as")
    for (name, kind), one in tallies.items():
        said = ", ".join(f"{error} {n}" for error, n in one.detected.most_common(3))
        numbers = (one.faults, one.detected.total(), one.after, one.harmless, len(one.silent))
        table.add_row(name, kind, *map(str, numbers), said)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(table)
    silent = [text for one in tallies.values() for text in one.silent]
    total = sum(one.faults for one in tallies.values())
    console.print(
        f"{total} faults in {time.perf_counter() - start:.0f} s, {len(silent)} of them neither found nor harmless"
    )
    for text in silent[:20]:
        console.print(f"  {text}", markup=False)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
