"""Process groups: who takes part in a collective, and how a rank's call becomes a part of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kernbench import ccl
from kernbench.runtime_api import lowering
from kernbench.runtime_api import rank as running
from kernbench.runtime_api.call import Call, Meeting, Work
from kernbench.runtime_api.errors import MismatchError
from kernbench.runtime_api.storage import Storage
from kernbench.runtime_api.where import Where, user_line
from kernbench.sim_engine.oplog import Collective

if TYPE_CHECKING:
    from kernbench.runtime_api.rank import Rank, World
    from kernbench.runtime_api.tensor import Tensor

PENDING = ((-1, 0),)
"""What a part waits for until all parts have arrived and its steps are known: a rank that there is not."""


class ProcessGroup:
    """Ranks that make collectives together. One object serves all of them."""

    def __init__(
        self, world: World, name: str, ranks: tuple[int, ...], made_by: tuple[int, Where] = (0, Where("?", 0))
    ) -> None:
        self.world, self.name, self.ranks = world, name, ranks
        self.made_by = made_by
        """The first rank that asked for it, and where."""
        self._calls: dict[tuple[int, str], int] = {}
        """(global rank, channel) -> how many calls it has made there."""

    def size(self) -> int:
        return len(self.ranks)

    def rank(self) -> int:
        """The running rank's number in this group; -1 if it is no member."""
        return self.number_of(running.current_in(self.world.ctx).index)

    def number_of(self, rank: int) -> int:
        """The number in this group of a global rank, or -1."""
        return self.ranks.index(rank) if rank in self.ranks else -1

    def __repr__(self) -> str:
        return f"ProcessGroup('{self.name}', ranks={list(self.ranks)})"

    def has_message(self, sender: int, receiver: int, channel: str) -> bool:
        """Whether the receiver's next message on a channel has been sent already. Global ranks."""
        number = self._calls.get((receiver, channel), -1) + 1
        meeting = self.world.open.get((self.name + channel, number))
        return meeting is not None and sender in meeting.calls

    # Making calls.

    def call(
        self,
        rank: Rank,
        name: str,
        inputs: list[Tensor],
        outputs: list[Tensor] | None = None,
        *,
        collective: str | None = None,
        op: str = "",
        root: int | None = None,
        result: list[Tensor] | None = None,
        after: list[Callable[[], None]] | None = None,
        members: tuple[int, ...] | None = None,
        channel: str = "",
        **options: Any,
    ) -> Work:
        """Enter a collective.

        Args:
            name: what the user called.
            inputs, outputs: contiguous device tensors of one size each, as the schedule of ``collective`` wants them.
            root: group rank of the root, where there is one.
            result: what :meth:`Work.result` gives.
            after: actions of this rank once it has waited.
            members: global ranks that take part, where it is not the whole group, in the schedule's order.
            channel: calls on different channels need not come in one order.
            options: for the algorithm, such as ``pieces``.
        """
        members = members or self.ranks
        collective = collective or name
        if root is not None:
            options["root"] = root
        schedule = ccl.get(collective)(len(members), **options)
        tensors = inputs + (outputs or [])
        sip = rank.sip
        rank.breathe()
        writes = outputs or ([] if schedule.slots.outputs else inputs)
        for tensor in tensors:
            sip.touch(tensor, any(tensor is written for written in writes))
        call = Call(
            name=name,
            rank=rank,
            sip=sip,
            where=user_line(),
            dtype=tensors[0].dtype,
            inputs=inputs,
            outputs=outputs or [],
            schedule=schedule,
            op=op,
            root=None if root is None else members[root],
            after=after or [],
            result=result if result is not None else tensors,
        )
        given = len(members) if collective in ("reduce_scatter", "scatter", "all_to_all") else 1
        return self._enter(call, members, channel, lowering.scratch_bytes(schedule, call.elements, given, call.dtype))

    def _enter(self, call: Call, members: tuple[int, ...], channel: str, scratch: int) -> Work:
        rank = call.rank
        number = self._calls[rank.index, channel] = self._calls.get((rank.index, channel), -1) + 1
        key = (self.name + channel, number)
        meeting = self.world.open.get(key)
        if meeting is None:
            of = f"#{number} {channel.lstrip(':')}" if channel else f"#{number} of group '{self.name}'"
            meeting = self.world.open[key] = Meeting(members, of, lowering.carry_out)
        call.meeting = meeting
        if len(call.schedule.steps):
            self._queue(call, key, scratch)
        meeting.arrive(call)
        if meeting.complete:
            del self.world.open[key]
            if meeting.error is not None:
                self.world.failed.append(meeting)
        return Work(call, meeting)

    def _queue(self, call: Call, key: tuple[str, int], scratch: int) -> None:
        """Put this rank's part into the record, on a stream of its own that comes after the current one."""
        sip = call.sip
        carrier = sip.carrier(key[0])
        sip.order(sip.current, carrier)
        if scratch:
            # It belongs to the carrier's stream, so that nothing else can have it before the collective is over, and
            # the next collective there may.
            current, sip.current = sip.current, carrier
            try:
                call.scratch = Storage(sip, scratch, f"scratch of {call.name}")
            finally:
                sip.current = current
        sent = sum(t.nbytes for t in call.inputs) or sum(t.nbytes for t in call.outputs)
        tensors = call.inputs + call.outputs
        storages = {id(t._storage): t._storage for t in tensors if t._storage is not None}
        name = (f"{self.world.number}/{key[0]}", key[1])  # a later spawn counts from 0 again
        call.command = Collective(call.name, name, [], PENDING, carrier.number, sent)
        call.command.placements = sip.placed(s.allocation for s in storages.values())
        sip.queue(call.command, carrier)
        call.ended = sip.record_event(carrier)
        in_place = not call.schedule.slots.outputs
        for tensor in call.inputs:
            sip.take_off(tensor, in_place, call, carrier)
        for tensor in call.outputs:
            sip.take_off(tensor, True, call, carrier)


def subgroup(world: World, rank: Rank, members: tuple[int, ...], where: Where, name: str) -> ProcessGroup:
    """The group that this rank's next ``new_group`` makes; the first rank to come makes it for all.

    Raises:
        MismatchError: another rank's call at the same place in the order named other ranks.
    """
    count = rank.local.setdefault("new_group", itertools.count(1))
    name = f"{name} {next(count)}"
    if name not in world.groups:
        world.groups[name] = ProcessGroup(world, name, members, (rank.index, where))
    group: ProcessGroup = world.groups[name]
    if group.ranks != members:
        raise MismatchError(
            f"new_group: rank {group.made_by[0]} asked for ranks {list(group.ranks)} at {group.made_by[1]}, rank "
            f"{rank.index} for {list(members)} at {where}. Every rank, members or not, has to make the same groups in "
            "the same order."
        )
    return group
