"""Kernels of several ranks that wait for each other: they run together, once no rank can do anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernbench.kernels import sanitize
from kernbench.kernels.crew import Crew
from kernbench.kernels.team import Team, run_together, symmetric
from kernbench.runtime_api.scheduler import Wait
from kernbench.runtime_api.where import user_line

if TYPE_CHECKING:
    from kernbench.memory import AddressSpace
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.runtime_api.rank import Rank, World
    from kernbench.runtime_api.sip import Sip
    from kernbench.runtime_api.tensor import Tensor


class RankTeam(Team):
    """The ranks of one world."""

    def __init__(self, world: World) -> None:
        super().__init__((), ())
        self._world = world
        self._crews: dict[int, Crew] = {}
        """Rank -> the programs of the kernel that it is launching."""

    @property
    def size(self) -> int:
        return self._world.size

    def space(self, member: int) -> AddressSpace:
        return self._sip(member).space

    def sip(self, member: int) -> int:
        return self._sip(member).index

    def next_number(self, member: int) -> int:
        sip = self._sip(member)
        sip.communicating += 1
        return sip.communicating - 1

    def _sip(self, member: int) -> Sip:
        rank = self._world.ranks[member]
        return rank.ctx.sips[rank.device]

    def carry_out(self, member: int, crew: Crew) -> None:
        """Run a crew to its end together with those of the other ranks. Which these are does not depend on who came
        first, since none runs before every rank has gone as far as it can.

        Raises:
            DeadlockError: no rank and no program can go on.
        """
        rank = self._world.ranks[member]
        if rank.task is None or self.size == 1:
            super().carry_out(member, crew)
            return
        wait = Wait(f"kernel '{crew.name}'", user_line(), lambda: self._others(rank), crew.waiting)
        self._crews[member] = crew
        try:
            rank.ask(self._together)
            rank.park_until(lambda: crew.done, wait)
        finally:
            del self._crews[member]

    def pass_turn(self, member: int) -> None:
        super().pass_turn(member)
        self._world.ranks[member].ask(self._together)

    def _together(self) -> None:
        """Let all crews go as far as they can."""
        members = sorted(member for member, crew in self._crews.items() if not crew.done)
        run_together([self._crews[member] for member in members])
        for member in members:
            if self._crews[member].done:
                self._world.ranks[member].wake()

    # Where races are looked for: what ranks learn of each other between launches.

    def knows(self, rank: Rank) -> Any:
        """What a rank knows to be done."""
        return None if self.history is None else self.history.hosts[rank.index]

    def learns(self, rank: Rank, known: Sequence[Any]) -> None:
        """A rank goes on after others who knew that."""
        if self.history is not None:
            self.history.learn(rank.index, known)

    def _others(self, rank: Rank) -> list[int]:
        return [other.index for other in self._world.ranks if other is not rank and not _has_ended(other)]


def touch(ctx: RuntimeContext, tensor: Tensor, writes: bool) -> None:
    """The running rank's host copies, fills or reads a tensor: see that no other rank's kernel is at it.

    Raises:
        KernelFault: one may be.
    """
    from kernbench.runtime_api import rank as ranks

    checks = sanitize.current()
    rank, storage = ranks.current_in(ctx), tensor._storage
    if checks is None or "race" not in checks.names or storage is None or rank.world.size == 1:
        return
    if storage.allocation in symmetric and tensor.is_contiguous() and tensor.nbytes:
        from kernbench.kernels.sanitize.team_races import host_touches

        start, end = (x - storage.allocation.base for x in tensor._range())
        host_touches(rank.team, rank.index, storage.allocation, start, end, writes, str(user_line()))


def _has_ended(rank: Rank) -> bool:
    return rank.task is not None and rank.task.strand.ended
