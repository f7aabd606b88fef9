"""Runs ranks one at a time. Only the hub decides who goes on; a rank that has to wait gives way to it.

A rank is *ready*, *parked* until somebody wakes it, or *asking*: waiting until no rank can move, for those few
questions whose answer would else depend on who happened to run first. All of them are answered together, before anybody
goes on. When nobody is ready and nobody asks, the parked ones are in a deadlock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kernbench.runtime_api.errors import DeadlockError
from kernbench.runtime_api.strand import Strand
from kernbench.runtime_api.where import Where

IDLE_ROUNDS = 10_000
"""How often ranks may poll in vain, all of them and with nothing else moving, before that is called a deadlock."""


@dataclass(frozen=True)
class Wait:
    """What a parked rank waits for."""

    what: str
    """Such as ``all_reduce #3 of group 'default'``."""
    where: Where
    needs: Callable[[], Iterable[int]]
    """The ranks that have to move first."""
    details: Callable[[], Iterable[str]] = tuple
    """What else to say of it in a report of a deadlock, line by line."""


class Task:
    """One rank as the hub sees it."""

    def __init__(self, rank: int, fn: Callable[[], Any]) -> None:
        self.rank = rank
        self.strand = Strand(lambda: None if self.stopped else fn())
        self.queued = False
        """It stands in the hub's queue of ready ranks."""
        self.waiting: Wait | None = None
        self.question: Callable[[], Any] | None = None
        """What it asks while it waits for the answer."""
        self.answer: Any = None
        self.raise_next: BaseException | None = None
        """Raised in the rank as soon as it goes on."""
        self.stopped = False
        """It was told to end: every wait raises SystemExit."""

    @property
    def failed(self) -> bool:
        """It ended by an exception of its own: not told to, and not by ``sys.exit(0)``."""
        error = self.strand.error
        if error is None or self.stopped:
            return False
        return not (isinstance(error, SystemExit) and error.code in (None, 0))


class Hub:
    """Schedules the ranks of one ``spawn``.

    Args:
        seed: None runs ready ranks in turn. A number shuffles: a random ready rank goes next, and ranks give way at
            random where they could go on. Values and times do not depend on it.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.tasks: list[Task] = []
        self._ready: deque[Task] = deque()
        self._asking: list[Task] = []
        self._random = None if seed is None else random.Random(seed)
        self._idle_rounds = 0

    def add(self, rank: int, fn: Callable[[], Any]) -> Task:
        """A new rank, ready to run."""
        task = Task(rank, fn)
        self.tasks.append(task)
        self._queue(task)
        return task

    # Called by the one who drives.

    def run(self, until: Callable[[], bool]) -> None:
        """Let ranks run until ``until()`` holds or all have ended.

        Raises:
            KeyboardInterrupt: one arrived while a rank was running; the others have been stopped.
        """
        while not until():
            if self._ready:
                self._resume(self._next())
            elif not self._free_somebody():
                return

    def is_quiet(self) -> bool:
        """Nobody is ready; those that ask have not been answered."""
        return not self._ready

    def _queue(self, task: Task) -> None:
        if not task.queued:
            task.queued = True
            self._ready.append(task)

    def _next(self) -> Task:
        if self._random is not None:
            self._ready.rotate(self._random.randrange(len(self._ready)))
        task = self._ready.popleft()
        task.queued = False
        return task

    def _resume(self, task: Task) -> None:
        task.strand.resume()
        if task.strand.ended:
            self._idle_rounds = 0
            if isinstance(task.strand.error, KeyboardInterrupt):
                self._stop(self._unfinished())
                while self._ready:
                    self._next().strand.resume()
                raise task.strand.error

    def _free_somebody(self) -> bool:
        """Nobody is ready: answer those that ask, or end the parked ones. False: all have ended."""
        parked = self._unfinished()
        if any(task.failed for task in self.tasks):
            self._stop(parked)
        elif self._asking and self._idle_rounds < IDLE_ROUNDS:
            self._idle_rounds += 1
            asking, self._asking = sorted(self._asking, key=lambda task: task.rank), []
            for task in asking:
                self._answer(task)
            for task in asking:
                self._queue(task)
        elif parked:
            report = self._deadlock(parked)
            self._asking.clear()
            for task in parked:
                task.raise_next = DeadlockError(report)
                self._queue(task)
        return bool(parked)

    @staticmethod
    def _answer(task: Task) -> None:
        assert task.question is not None
        try:
            task.answer = task.question()
        except Exception as error:
            task.raise_next = error

    def _unfinished(self) -> list[Task]:
        return [task for task in self.tasks if not task.strand.ended]

    def _stop(self, tasks: list[Task]) -> None:
        self._asking.clear()
        for task in tasks:
            task.stopped = True
            self._queue(task)

    def _deadlock(self, parked: list[Task]) -> str:
        lines = ["deadlock: no rank can go on."]
        waits_for = {}
        for task in parked:
            wait = task.waiting
            if wait is None:
                lines.append(f"  rank {task.rank} asks again and again for something that nobody completes")
                continue
            waits_for[task.rank] = needs = sorted(wait.needs())
            who = _ranks(needs) if needs else "nobody that could come"
            lines.append(f"  rank {task.rank} waits in {wait.what} at {wait.where} for {who}")
            lines += [f"    {line}" for line in wait.details()]
        ended = sorted({rank for needs in waits_for.values() for rank in needs} - {task.rank for task in parked})
        if ended:
            lines.append(f"  {_ranks(ended)} {'has' if len(ended) == 1 else 'have'} already ended")
        lines.append("Every rank of a group has to make the same calls in the same order.")
        return "\n".join(lines)

    # Called within a rank.

    def park(self, task: Task, wait: Wait) -> None:
        """Give way until somebody wakes ``task``.

        Raises:
            SystemExit: another rank failed, so this one is to end.
            DeadlockError: nobody can ever wake it.
        """
        self._check(task)
        task.waiting = wait
        task.strand.give_way()
        task.waiting = None
        self._check(task)

    def ask(self, task: Task, question: Callable[[], Any]) -> Any:
        """Give way until no rank can move and return what ``question()`` says then; None if somebody wakes ``task``
        before that."""
        self._check(task)
        task.question, task.answer = question, None
        self._asking.append(task)
        task.strand.give_way()
        task.question = None
        self._check(task)
        return task.answer

    def breathe(self, task: Task) -> None:
        """Give way at random where ranks are shuffled, else do nothing."""
        self._check(task)
        if self._random is not None and self._random.random() < 0.5:
            self._queue(task)
            task.strand.give_way()
            self._check(task)

    def wake(self, task: Task) -> None:
        """``task`` can go on. It may be parked, asking, or neither."""
        self._idle_rounds = 0
        if task in self._asking:
            self._asking.remove(task)
            self._queue(task)
        elif task.waiting is not None:
            self._queue(task)

    def _check(self, task: Task) -> None:
        if task.stopped:
            raise SystemExit(f"rank {task.rank} was stopped because another rank failed")
        if task.raise_next is not None:
            error, task.raise_next = task.raise_next, None
            raise error


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"ranks {shown}"
