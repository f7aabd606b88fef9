"""Binding: a logical record and a machine give the arrays that the engine replays.

Every rank has a queue for its host and one for each stream; kernels add the queues of their PEs. A command becomes its
host op (the time the host spends issuing it) and what it puts on the stream, which waits for the host and, because the
stream's queue runs in order, for the stream's earlier commands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from kernbench.policy.assemble import Assembly
from kernbench.policy.collectives import bind_collective, complete_keys
from kernbench.policy.expand import Ops, expand
from kernbench.policy.patterns import PatternBook
from kernbench.sim_engine.bound import Activity, BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.oplog import (
    Collective,
    Command,
    Copy,
    EventRecord,
    EventWait,
    HostSync,
    HostWork,
    Launch,
    OpLog,
)
from kernbench.sim_engine.progress import Progress

if TYPE_CHECKING:
    from kernbench.topology import SystemGraph

_KEEP = 256 * 2**20
"""Bytes of expanded kernels kept for launches that repeat."""


class Binder:
    """Binds logs to one machine. What it works out for a descriptor or a kernel is kept for the next time."""

    def __init__(self, graph: SystemGraph, machine: Machine | None = None) -> None:
        self.machine = machine or Machine(graph)
        self.book = PatternBook(self.machine)
        self._kernels: OrderedDict[str, Ops] = OrderedDict()
        self._kept = 0

    def bind(self, log: OpLog, progress: Progress | None = None) -> BoundLog:
        """Everything that was recorded since ``progress`` (which moves on). A rank's commands from the first one on
        that waits for what another rank has not yet recorded, a part of a collective or a launch, stay for the next
        time."""
        if progress is None:
            progress = Progress.begin(len(log.commands))
        if len(log.commands) > self.machine.ranks:
            raise ValueError(
                f"the record has {len(log.commands)} ranks, the machine {self.machine.ranks} SIPs: "
                "load it with more SIPs"
            )
        complete, ends = complete_keys(log, progress)
        out = Assembly(self.machine, self.book, progress)
        for rank, commands in enumerate(log.commands):
            for index in range(progress.bound[rank], ends[rank]):
                self._command(out, log, rank, index, commands[index], complete)
            progress.bound[rank] = ends[rank]
        return out.build()

    def _command(self, out: Assembly, log: OpLog, rank: int, index: int, command: Command, parts: dict) -> None:
        costs = self.machine.costs
        if isinstance(command, HostWork):
            out.begin(rank, index, "host", command.name, -1, command.range_id)
            out.host(rank, command.duration_ps)
        elif isinstance(command, Launch):
            kernel = command.kernel
            out.begin(
                rank,
                index,
                "launch",
                kernel.name,
                command.stream,
                command.range_id,
                lines=kernel.lines,
                ops=kernel.line_ops(),
            )
            host = out.host(rank, costs.launch_ps)
            out.kernel(rank, command.stream, self._expanded(command, rank), host)
        elif isinstance(command, Copy):
            out.begin(rank, index, "copy", command.direction, command.stream, command.range_id)
            host = out.host(rank, costs.copy_ps)
            pattern, path = self._copy(rank, command)
            op = out.on_stream(rank, command.stream, Activity.COPY, [host], pattern, path, nbytes=command.nbytes)
            if command.blocking:
                out.host(rank, 0, [op])
        elif isinstance(command, Collective):
            out.begin(rank, index, "collective", command.name, command.stream, command.range_id)
            bind_collective(out, rank, command, parts[command.key])
        elif isinstance(command, EventRecord):
            out.begin(rank, index, "event", "event", command.stream, command.range_id, event=command.event)
            out.event(rank, command.event, command.stream)
        elif isinstance(command, EventWait):
            out.begin(rank, index, "wait", "wait", command.stream, command.range_id)
            out.on_stream(rank, command.stream, Activity.MARK, [*out.host_now(rank), out.event_op(rank, command.event)])
        elif isinstance(command, HostSync):
            out.begin(rank, index, "sync", "sync", -1, command.range_id)
            out.host(rank, 0, out.waited_for(rank, command.event, command.stream))
            out.host(rank, costs.sync_ps)
        else:
            raise TypeError(f"rank {rank}, command {index}: expected one of oplog's commands, found {command!r}")
        out.end()

    def _copy(self, rank: int, command: Copy) -> tuple[int, int]:
        machine, book, placed = self.machine, self.book, command.placements
        if command.direction == "h2d":
            return book.of_command("write", command.access, placed), machine.host_path(rank, upload=True)
        if command.direction == "d2h":
            return book.of_command("read", command.access, placed), machine.host_path(rank, upload=False)
        if command.direction == "d2d" and command.source is not None:
            pattern = book.exchange(command.source, placed, command.access, placed)
            return pattern, machine.exchange_path(rank, rank)
        given = "given" if command.source else "missing"
        raise ValueError(
            f"copy of rank {rank}: found direction {command.direction!r} with its source {given}, "
            "expected h2d, d2h, or d2d with a source"
        )

    def _expanded(self, launch: Launch, rank: int) -> Ops:
        machine, kernel = self.machine, launch.kernel
        if kernel.number >= 0:  # no other launch has this one's tokens
            return expand(kernel, machine.pes, machine.costs, self.book, launch.placements, rank)
        key = fingerprint((kernel, launch.placements))
        ops = self._kernels.get(key)
        if ops is None:
            ops = expand(kernel, machine.pes, machine.costs, self.book, launch.placements)
            self._kernels[key] = ops
            self._kept += ops.nbytes
            while self._kept > _KEEP and len(self._kernels) > 1:
                self._kept -= self._kernels.popitem(last=False)[1].nbytes
        self._kernels.move_to_end(key)
        return ops


def bind(log: OpLog, graph: SystemGraph) -> BoundLog:
    """Bind a whole log at once."""
    return Binder(graph).bind(log)


def fingerprint(thing: Any) -> str:
    """A digest of nested dataclasses, sequences and arrays that says whether two are the same."""
    digest = xxhash.xxh3_128()
    _feed(digest, thing)
    return digest.hexdigest()


def _feed(digest: Any, thing: Any) -> None:
    if isinstance(thing, np.ndarray):
        digest.update(f"{thing.dtype.str}{thing.shape}".encode())
        digest.update(np.ascontiguousarray(thing))
    elif is_dataclass(thing) and not isinstance(thing, type):
        digest.update(type(thing).__name__.encode())
        for one in fields(thing):
            _feed(digest, getattr(thing, one.name))
    elif isinstance(thing, Sequence) and not isinstance(thing, (str, bytes)):
        digest.update(f"[{len(thing)}".encode())
        for item in thing:
            _feed(digest, item)
    else:
        digest.update(f"{thing!r};".encode())
