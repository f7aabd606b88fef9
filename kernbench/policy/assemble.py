"""Puts ops of all ranks together into one bound log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernbench.policy.expand import Ops
from kernbench.policy.patterns import PatternBook
from kernbench.sim_engine.bound import FIXED, Activity, BoundCommand, BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.progress import Progress
from kernbench.sim_engine.queues import HOST, QueueName, Queues, Role


class Step(NamedTuple):
    """An op that may not have a number yet: a step of a collective, or (step ENTER) a rank's entry into it."""

    key: tuple[str, int]
    rank: int
    step: int


ENTER = -1
Dep = int | Step


class _Op(NamedTuple):
    queue: int
    kind: Activity
    pattern: int
    path: int
    duration: int
    nbytes: int
    flops: int
    deps: Sequence[Dep]


class Assembly:
    """Ops in the order of their numbers. Numbers count over the whole run: ``progress.ops`` is the first one here."""

    def __init__(self, machine: Machine, book: PatternBook, progress: Progress) -> None:
        self.machine, self.book, self._progress = machine, book, progress
        self._base = progress.ops
        self._pieces: list[list[_Op] | tuple[Ops, np.ndarray, np.ndarray, int]] = []
        self._queues: dict[int, int] = {}
        """Queue key -> its place in order of first use."""
        self._steps: dict[Step, int] = {}
        self._commands: list[BoundCommand] = []

    def begin(self, rank: int, index: int, kind: str, name: str, stream: int, range_id: int, **more: Any) -> None:
        """What is added from here to :meth:`end` belongs to one command."""
        first = self._progress.ops - self._base
        self._commands.append(BoundCommand(rank, index, kind, name, stream, range_id, first, 0, **more))

    def end(self) -> None:
        command = self._commands[-1]
        command.count = self._progress.ops - self._base - command.first

    def op(
        self,
        queue: QueueName,
        kind: Activity,
        deps: Sequence[Dep],
        pattern: int = FIXED,
        path: int = 0,
        duration: int = 0,
        nbytes: int = 0,
        flops: int = 0,
    ) -> int:
        """Append one op; returns its number."""
        if not self._pieces or not isinstance(self._pieces[-1], list):
            self._pieces.append([])
        piece = self._pieces[-1]
        assert isinstance(piece, list)
        piece.append(_Op(self._place(queue.key), kind, pattern, path, duration, nbytes, flops, deps))
        self._progress.ops += 1
        return self._progress.ops - 1

    def host(self, rank: int, duration: int, deps: Sequence[Dep] = ()) -> int:
        """The host of a rank is busy."""
        op = self.op(QueueName(rank, HOST, Role.STREAM), Activity.HOST, deps, duration=duration)
        self._progress.streams[rank, HOST] = op
        return op

    def host_now(self, rank: int) -> list[int]:
        """The newest op of a rank's host; empty before the first."""
        op = self._progress.streams.get((rank, HOST))
        return [] if op is None else [op]

    def on_stream(self, rank: int, stream: int, kind: Activity, deps: Sequence[Dep], *args: Any, **kwargs: Any) -> int:
        """An op in a stream's own queue."""
        op = self.op(QueueName(rank, stream, Role.STREAM), kind, deps, *args, **kwargs)
        self._progress.streams[rank, stream] = op
        return op

    def event(self, rank: int, event: int, stream: int) -> None:
        self._progress.events[rank, event] = self.on_stream(rank, stream, Activity.MARK, self.host_now(rank))

    def event_op(self, rank: int, event: int) -> int:
        """The op that records an event."""
        op = self._progress.events.get((rank, event))
        if op is None:
            raise ValueError(f"rank {rank} waits for event {event}, which it has not recorded")
        return op

    def waited_for(self, rank: int, event: int | None, stream: int | None) -> list[int]:
        """What a host synchronisation waits for: an event, a stream, or everything."""
        if event is not None:
            return [self.event_op(rank, event)]
        streams = self._progress.streams
        if stream is not None:
            return [streams[rank, stream]] if (rank, stream) in streams else []
        return sorted(op for (r, s), op in streams.items() if r == rank and s != HOST)

    def name_step(self, step: Step, op: int) -> None:
        """Say which op a step has become."""
        self._steps[step] = op

    def kernel(self, rank: int, stream: int, ops: Ops, host: int) -> None:
        """Append a launch, which begins after the op ``host``."""
        base = QueueName(rank, stream, Role.STREAM).key
        queues = [self._place(base + local) for local in ops.queues.tolist()]
        paths = np.concatenate(self.machine.pe_paths(rank))
        if ops.crossings is not None:
            paths = np.concatenate([paths, ops.crossings.paths])
            self._progress.launches[rank, ops.crossings.number] = self._progress.ops, ops.crossings.published
        self._pieces.append((ops, np.array(queues, np.int32), paths, host))
        self._progress.ops += ops.count
        self._progress.streams[rank, stream] = self._progress.ops - 1
        self._commands[-1].programs = ops.programs

    def build(self) -> BoundLog:
        """The bound log of everything added."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _DTYPES}
        dep_sizes: list[np.ndarray] = []
        at = 0
        for piece in self._pieces:
            if isinstance(piece, list):
                at += self._small(piece, columns, dep_sizes)
            else:
                at += self._kernel(piece, at, columns, dep_sizes)
        arrays = {
            name: np.concatenate([np.empty(0, d), *columns[name]]).astype(d, copy=False) for name, d in _DTYPES.items()
        }
        sizes = np.concatenate([np.empty(0, np.int64), *dep_sizes])
        dep_ptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        keys = np.array(list(self._queues), np.int64)
        order = np.argsort(keys)
        renumber = np.empty(len(keys), np.int32)
        renumber[order] = np.arange(len(keys))
        arrays["queue"] = renumber[arrays["queue"]]
        depth, issue, engine = self._queue_table(keys[order])
        return BoundLog(
            dep_ptr=dep_ptr,
            queue_key=keys[order],
            queue_depth=depth,
            queue_issue=issue,
            queue_engine=engine,
            commands=self._commands,
            patterns=self.book.patterns,
            paths=self.machine.paths,
            **arrays,
        )

    def _place(self, key: int) -> int:
        return self._queues.setdefault(key, len(self._queues))

    def _small(self, ops: list[_Op], columns: dict[str, list[np.ndarray]], dep_sizes: list[np.ndarray]) -> int:
        deps: list[int] = []
        release, sizes = [], []
        for op in ops:
            numbers = [self._steps[d] if isinstance(d, Step) else d for d in op.deps]
            here = [d - self._base for d in numbers if d >= self._base]
            release.append(max((self._progress.finished_at(d) for d in numbers if d < self._base), default=0))
            deps += here
            sizes.append(len(here))
        for name, index in (
            ("queue", 0),
            ("kind", 1),
            ("pattern", 2),
            ("path", 3),
            ("duration", 4),
            ("bytes", 5),
            ("flops", 6),
        ):
            columns[name].append(np.array([op[index] for op in ops], _DTYPES[name]))
        columns["release"].append(np.array(release, np.int64))
        columns["line"].append(np.full(len(ops), -1, np.int32))
        columns["deps"].append(np.array(deps, np.int32))
        dep_sizes.append(np.array(sizes, np.int64))
        return len(ops)

    def _kernel(
        self,
        piece: tuple[Ops, np.ndarray, np.ndarray, int],
        at: int,
        columns: dict[str, list[np.ndarray]],
        dep_sizes: list[np.ndarray],
    ) -> int:
        ops, queues, paths, host = piece
        columns["queue"].append(queues[ops.queue])
        columns["path"].append(paths[ops.path])
        for name in ("pattern", "duration", "kind", "line", "bytes", "flops"):
            columns[name].append(getattr(ops, name))
        release, deps = np.zeros(ops.count, np.int64), ops.deps + np.int32(at)
        sizes = np.diff(ops.dep_ptr)
        if ops.crossings is not None:
            deps = self._cross(ops, deps, sizes, release)
        columns["release"].append(release)
        columns["deps"] += [np.array([host - self._base], np.int32), deps]
        sizes[0] += 1  # the begin, which waits for nothing else, waits for the host
        dep_sizes.append(sizes)
        return ops.count

    def _cross(self, ops: Ops, deps: np.ndarray, sizes: np.ndarray, release: np.ndarray) -> np.ndarray:
        """Add what ops of a launch wait for elsewhere: to ``deps`` (returned) and ``sizes``, or to ``release`` where an
        earlier replay knows when it was. A launch that was never recorded, as those of a benchmark, holds up nobody."""
        assert ops.crossings is not None
        op, token = ops.crossings.op, ops.crossings.token
        launches, which = np.unique(token[:, :2], axis=0, return_inverse=True)
        here = [np.empty((0, 2), np.int64)]
        for i, launch in enumerate(launches.tolist()):
            known = self._progress.launches.get((launch[0], launch[1]))
            if known is None:
                continue
            mine = np.ravel(which) == i
            number = known[0] + known[1].find(token[mine, 2], token[mine, 3])
            if known[0] >= self._base:
                here.append(np.stack([op[mine], number - self._base], axis=1))
            else:
                done = np.array([self._progress.finished_at(n) for n in number.tolist()], np.int64)
                np.maximum.at(release, op[mine], done)
        pairs = np.concatenate(here)
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        np.add.at(sizes, pairs[:, 0], 1)
        return np.insert(deps, ops.dep_ptr[pairs[:, 0] + 1], pairs[:, 1].astype(np.int32))

    def _queue_table(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(depth, issue interval, engine) of each queue."""
        machine = self.machine
        rank, _, role, unit = Queues.of_keys(keys)
        dma = (role == Role.READ) | (role == Role.WRITE)
        depth = np.ones(len(keys), np.int32)
        depth[dma] = machine.dma_depth
        depth[role == Role.SEND] = 0
        issue = np.where(dma, machine.dma_issue, 0).astype(np.int64)
        gemm, vector = role == Role.GEMM, role == Role.VECTOR
        engine = np.where(gemm | vector, rank * 2 * machine.pes + unit + machine.pes * vector, -1).astype(np.int32)
        return depth, issue, engine


_DTYPES: dict[str, Any] = {
    "queue": np.int32,
    "pattern": np.int32,
    "path": np.int32,
    "duration": np.int64,
    "release": np.int64,
    "deps": np.int32,
    "kind": np.uint8,
    "line": np.int32,
    "bytes": np.int64,
    "flops": np.int64,
}
