"""``ctx.multiprocessing.spawn``: ranks, with torch.multiprocessing's way of starting and failing."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.errors import DeadlockError, MismatchError
from kernbench.runtime_api.rank import Rank, World
from kernbench.runtime_api.scheduler import Hub
from kernbench.runtime_api.where import is_internal

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext


class SpawnException(Exception):
    """Ranks failed.

    Attributes:
        errors: rank -> its exception, of those that failed by themselves. Ranks that were stopped because of them are
            not among them.
        error_index: the lowest of these ranks.
        msg: the message.
        error_pid: as torch has it; the rank, since ranks are no processes.
    """

    def __init__(self, msg: str, errors: dict[int, BaseException]) -> None:
        super().__init__(msg)
        self.msg = msg
        self.errors = errors
        self.error_index = self.error_pid = min(errors)


class ProcessRaisedException(SpawnException):
    """A rank raised."""


class ProcessExitedException(SpawnException):
    """A rank called ``sys.exit`` with a code other than 0, which is in ``exit_code``."""

    def __init__(self, msg: str, errors: dict[int, BaseException], exit_code: int) -> None:
        super().__init__(msg, errors)
        self.exit_code = exit_code
        self.signal_name = None


class SpawnContext:
    """The ranks of one spawn. They run while somebody joins them."""

    def __init__(self, ctx: RuntimeContext, fn: Callable[..., Any], args: tuple[Any, ...], nprocs: int) -> None:
        self.hub = Hub(ctx.next_seed())
        self.world = World(ctx, nprocs, self.hub)
        self._ctx = ctx
        self._joined: set[int] = set()
        self._closed = False
        self._parent = ranks.current_in(ctx)
        for index in range(nprocs):
            rank = Rank(self.world, index, index)
            rank.task = self.hub.add(index, self._body(rank, fn, args))

    def _body(self, rank: Rank, fn: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], None]:
        def body() -> None:
            ranks.enter(rank)
            try:
                rank.inherit(self._parent)
                fn(rank.index, *args)
            finally:
                ranks.leave(rank)

        return body

    def pids(self) -> list[int]:
        """torch gives process ids; these are the ranks."""
        return [rank.index for rank in self.world.ranks]

    def settle(self) -> None:
        """Run until no rank can move without an answer to what it asks the scheduler."""
        self.hub.run(until=self.hub.is_quiet)

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """Run until at least one more rank has ended. True once all have. The arguments are torch's and change nothing.

        Raises:
            SpawnException: ranks failed. All have ended then.
        """
        self.hub.run(until=lambda: len(self._ended()) > len(self._joined))
        self._joined = self._ended()
        if any(task.failed for task in self.hub.tasks):
            self.hub.run(until=lambda: False)
            self._joined = self._ended()
        if len(self._joined) < self.world.size:
            return False
        self._close()
        return True

    def _ended(self) -> set[int]:
        return {task.rank for task in self.hub.tasks if task.strand.ended}

    def _close(self) -> None:
        """After the last rank: give the SIPs back, and raise what went wrong."""
        if self._closed:
            return
        self._closed = True
        errors = {task.rank: task.strand.error for task in self.hub.tasks if task.failed}
        if not errors:
            errors = self._left_undone()
        for sip in self._ctx.sips:
            if sip.index in self.world.owners:
                sip.release()
        self._ctx.fence_next()
        if errors:
            raise _exception({rank: error for rank, error in sorted(errors.items()) if error is not None})

    def _left_undone(self) -> dict[int, BaseException | None]:
        """Asynchronous collectives that went wrong and that nobody waited for, and messages between programs."""
        errors: dict[int, BaseException | None] = {}
        if lost := self.world.team.unreceived():
            errors[lost[0][1]] = self.world.team.lost(lost)
        for _, meeting in sorted(self.world.open.items()):
            who = ", ".join(map(str, meeting.missing()))
            for rank, call in meeting.calls.items():
                errors.setdefault(rank, DeadlockError(f"{call} by rank {rank} was never joined by ranks {who}"))
        for meeting in self.world.failed:
            for rank, call in meeting.calls.items():
                if not call.observed:
                    errors.setdefault(rank, MismatchError(meeting.error))
        return errors


def _exception(errors: dict[int, BaseException]) -> SpawnException:
    first, error = next(iter(errors.items()))
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        made: SpawnException = ProcessExitedException(f"process {first} terminated with exit code {code}", errors, code)
    else:
        text = "".join(traceback.format_exception(type(error), error, _from_user(error.__traceback__)))
        made = ProcessRaisedException(f"\n\n-- Process {first} terminated with the following error:\n{text}", errors)
    made.__cause__ = error
    return made


def _from_user(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that lead from the scheduler to the user's function."""
    while trace is not None and trace.tb_next is not None and is_internal(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


class Multiprocessing:
    """``ctx.multiprocessing``."""

    def __init__(self, ctx: RuntimeContext) -> None:
        self._ctx = ctx
        self.SpawnException = self.ProcessException = SpawnException
        self.ProcessRaisedException, self.ProcessExitedException = ProcessRaisedException, ProcessExitedException
        self.SpawnContext = self.ProcessContext = SpawnContext

    def spawn(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        nprocs: int = 1,
        join: bool = True,
        daemon: bool = False,
        start_method: str = "spawn",
    ) -> SpawnContext | None:
        """Run ``fn(rank, *args)`` on ``nprocs`` ranks, each with the SIP of its number. ``fn`` may be a closure.

        Returns:
            None once all have ended, or with ``join=False`` a context whose ``join()`` runs them.

        Raises:
            ValueError: more ranks than SIPs.
            SpawnException: ranks failed; ``.errors`` says which and how.
        """
        have = len(self._ctx.sips)
        if nprocs > have:
            raise ValueError(
                f"spawn(nprocs={nprocs}): the machine has {have} SIP{'s' if have > 1 else ''} and one rank drives one. "
                f"Spawn {have}, or ask for a machine with {nprocs} (--sips {nprocs}, or sips={nprocs} in the load)."
            )
        if nprocs < 0:
            raise ValueError(f"spawn(nprocs={nprocs}): expected 0 or more")
        self._ctx.fence_next()
        context = SpawnContext(self._ctx, fn, args, nprocs)
        if not join:
            self._ctx.running.append(context)
            return context
        while not context.join():
            pass
        return None
