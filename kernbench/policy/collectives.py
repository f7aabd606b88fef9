"""Binds collectives: which are wholly recorded, and what each rank's part becomes. Launches that wait for other ranks'
are held back like them."""

from __future__ import annotations

from collections.abc import Mapping

from kernbench.policy.assemble import ENTER, Assembly, Dep, Step
from kernbench.policy.crossings import needs
from kernbench.sim_engine.bound import Activity
from kernbench.sim_engine.oplog import Collective, Launch, OpLog, Transfer
from kernbench.sim_engine.progress import Progress
from kernbench.sim_engine.queues import QueueName, Role

Key = tuple[str, int]


def complete_keys(log: OpLog, progress: Progress) -> tuple[dict[Key, dict[int, Collective]], list[int]]:
    """(parts, ends): the collectives recorded since ``progress``, and how many commands of each rank can be bound: up
    to its first collective that some other rank has not reached, or its first launch that waits for one of another
    rank which that one has not reached."""
    parts: dict[Key, dict[int, Collective]] = {}
    at: dict[Key, dict[int, int]] = {}
    launches: dict[tuple[int, int], int] = {}
    waits: list[tuple[int, int, tuple[int, int]]] = []
    for rank, commands in enumerate(log.commands):
        for index in range(progress.bound[rank], len(commands)):
            command = commands[index]
            if isinstance(command, Collective):
                parts.setdefault(command.key, {})[rank] = command
                at.setdefault(command.key, {})[rank] = index
            elif isinstance(command, Launch) and command.kernel.number >= 0:
                launches[rank, command.kernel.number] = index
                waits += [(rank, index, launch) for launch in needs(command.kernel) if launch[0] != rank]
    missing = {key for key, some in parts.items() if not _members(some) <= some.keys()}
    ends = [len(commands) for commands in log.commands]
    moved = True
    while moved:  # a rank that stops makes what others wait for incomplete too
        before = list(ends)
        for key, some in at.items():
            if key in missing or any(index >= ends[rank] for rank, index in some.items()):
                for rank, index in some.items():
                    ends[rank] = min(ends[rank], index)
        for rank, index, launch in waits:
            if launch not in progress.launches and launches.get(launch, ends[launch[0]]) >= ends[launch[0]]:
                ends[rank] = min(ends[rank], index)
        moved = ends != before
    return parts, ends


def _members(parts: Mapping[int, Collective]) -> set[int]:
    """The ranks that the given parts speak of."""
    found: set[int] = set()
    for part in parts.values():
        found.update(rank for rank, _ in part.done)
        for step in part.steps:
            found.update(rank for rank, _ in step.deps)
            if isinstance(step, Transfer):
                found.add(step.peer)
    return found


def bind_collective(out: Assembly, rank: int, command: Collective, parts: Mapping[int, Collective]) -> None:
    """One rank's part: its entry, its steps and its end.

    Sends stand in one queue for each peer, reduces in one of their own, both in the order of the steps; a send waits
    until its peer has entered.
    """
    machine, book, key = out.machine, out.book, command.key
    host = out.host(rank, machine.costs.collective_ps)
    enter = out.on_stream(rank, command.stream, Activity.MARK, [host])
    out.name_step(Step(key, rank, ENTER), enter)
    own: list[Dep] = []
    for number, step in enumerate(command.steps):
        deps: list[Dep] = [enter, *(Step(key, *other) for other in step.deps)]
        if isinstance(step, Transfer):
            peer = parts[step.peer]
            pattern = book.exchange(step.src, command.placements, step.dst, peer.placements)
            op = out.op(
                QueueName(rank, command.stream, Role.SEND, step.peer),
                Activity.SEND,
                [*deps, Step(key, step.peer, ENTER)],
                pattern,
                machine.exchange_path(rank, step.peer),
                nbytes=step.nbytes,
            )
        else:
            share = -(-step.elements // machine.pes)
            op = out.op(
                QueueName(rank, command.stream, Role.REDUCE),
                Activity.REDUCE,
                deps,
                book.local_pass(step.reads, [step.write], command.placements),
                machine.local_path(rank),
                duration=machine.costs.vector.time(share, "add"),
                nbytes=(len(step.reads) + 1) * step.nbytes,
                flops=(len(step.reads) - 1) * step.elements,
            )
        out.name_step(Step(key, rank, number), op)
        own.append(op)
    out.on_stream(rank, command.stream, Activity.MARK, [enter, *own, *(Step(key, *other) for other in command.done)])
