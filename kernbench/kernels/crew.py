"""Programs of one launch that wait for each other: each is a coroutine, and they take turns.

A program runs until it has to wait; then the next one runs, in the order of their numbers, round after round. Nothing
else decides who runs, so values are the same on every run. When a whole round changes nothing, none can go on before
somebody outside the launch does something; where there is nobody outside, that is a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from greenlet import getcurrent, greenlet

MOST_LISTED = 8
"""Waiting programs that a report names one by one."""


@dataclass(eq=False)
class Program:
    """One program of the launch."""

    number: int
    body: greenlet
    ready: Callable[[], bool] | None = None
    """Says whether it can go on; None: nothing but running it tells."""
    what: Callable[[], str] | None = None
    """What it waits for, for people; None while it need not wait."""
    idle: bool = False
    """It gave way without having changed anything since it gave way before."""


class Crew:
    """The programs of one launch.

    Args:
        name: the kernel's.
        numbers: the programs, in the order of their turns.
        run: ``run(number)`` executes one; called within its coroutine.
        multiplies: whether they multiply matrices.

    Attributes:
        error: what a program raised; the launch is over then.
        running: the program whose turn it is.
    """

    def __init__(self, name: str, numbers: Sequence[int], run: Callable[[int], None], multiplies: bool = False) -> None:
        self.name, self.multiplies = name, multiplies
        self._left = [Program(int(n), greenlet(lambda n=int(n): run(n))) for n in numbers]
        self.running: Program | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Nobody is left to run."""
        return not self._left

    def advance(self) -> bool:
        """One round. Returns whether anything moved."""
        moved = False
        left: list[Program] = []
        for program in self._left:
            if program.ready is not None and not program.ready():
                left.append(program)
                continue
            self.running = program
            program.ready, program.what, program.idle = None, None, False
            program.body.parent = getcurrent()
            try:
                program.body.switch()
            except Exception as error:
                self.error, self._left = error, []
                return True
            finally:
                self.running = None
            moved |= not program.idle
            if not program.body.dead:
                left.append(program)
        self._left = left
        return moved

    def waiting(self) -> Iterator[str]:
        """A line for each program that cannot go on."""
        for program in self._left[:MOST_LISTED]:
            yield program.what() if program.what is not None else f"program {program.number} of kernel '{self.name}'"
        if len(self._left) > MOST_LISTED:
            yield f"and {len(self._left) - MOST_LISTED} more programs of kernel '{self.name}'"

    # Called within a program.

    def wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """Give way until ``ready()``. ``what()`` says for what, should that never be."""
        program = self.running
        assert program is not None
        while not ready():
            program.ready, program.what = ready, what
            self._give_way(program)

    def spin(self, what: Callable[[], str], idle: bool) -> None:
        """Give way once; ``idle``: nothing has changed since the last time."""
        program = self.running
        assert program is not None
        program.what, program.idle = what, idle
        self._give_way(program)

    @staticmethod
    def _give_way(program: Program) -> Any:
        parent = program.body.parent
        assert parent is not None
        return parent.switch()
