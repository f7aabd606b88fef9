"""Writes down one program of a launch whose programs run in turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.recorder import Deps, Recorder, RowKind, Silent
from kernbench.sim_engine.oplog import Awaits, OpKind, ProgramBlock, Token

Mark = tuple[int, dict[int, Deps], dict[int, Deps], int]
_MEMORY = (OpKind.READ, OpKind.WRITE, OpKind.ATOMIC)


class ProgramRecorder(Recorder):
    """Rows of one program; :meth:`finish` adds them to those of the whole launch.

    Args:
        whole: the launch's recorder.
        token: what the tokens of this program begin with: SIP, launch and program.
    """

    def __init__(self, whole: Recorder, token: tuple[int, int, int]) -> None:
        super().__init__()
        self._blocks = whole._blocks
        self._token = token
        self._signal = -1
        """The row of the latest signal."""
        self.awaits: dict[int, tuple[Token, ...]] = {}
        self.targets: dict[int, tuple[int, int, int]] = {}
        self.sources: dict[int, int] = {}
        """Rows that copy from memory to memory -> the address they copy from."""
        self.begin(1)

    def signal(self, kind: RowKind, deps: Deps) -> Token:
        """A row that says: all that was read so far is here, all that was written has arrived."""
        since = self._signal + 1
        done = (at for at, row in enumerate(self._rows[since:], since) if row.kind.kind in _MEMORY)
        token = self.token(self.add(kind, tuple(sorted({*deps, *done})), None))
        self._signal = token[3]
        return token

    def receive(self, kind: RowKind, deps: Deps, awaits: tuple[Token, ...]) -> Deps:
        """A row that waits for rows of other programs."""
        rows = self.add(kind, deps, None)
        self.awaits[rows[0]] = awaits
        return rows

    def send(self, kind: RowKind, deps: Deps, target: tuple[int, int, int], awaits: tuple[Token, ...]) -> Token:
        """A row that sends to a program of a SIP so many bytes."""
        rows = self.receive(kind, deps, awaits)
        self.targets[rows[0]] = target
        return self.token(rows)

    def token(self, rows: Deps) -> Token:
        """What others know a row by."""
        return (*self._token, rows[0])

    def finish(self, programs: NDArray[np.int64]) -> None:
        super().finish(programs)
        self._rows, self.stored, self.readers = [], {}, {}

    def mark(self) -> Mark:
        """Where the program is now, for :meth:`rewind`."""
        return len(self._rows), dict(self.stored), dict(self.readers), len(self._choices)

    def rewind(self, mark: Mark) -> bool:
        """Forget the rows since then. False: they stay, since others may wait for a signal among them."""
        if self._signal >= mark[0]:
            return False
        rows, self.stored, self.readers, choices = mark
        while self.awaits and next(reversed(self.awaits)) >= rows:
            self.awaits.popitem()
        del self._rows[rows:], self._choices[choices:]
        return True


class SilentProgram(Silent):
    """Stands in for a program's recorder where the record is known already."""

    def mark(self) -> Mark:
        return 0, {}, {}, 0

    def rewind(self, mark: Mark) -> bool:
        return True


def add_crossings(blocks: list[ProgramBlock], recorders: dict[int, ProgramRecorder]) -> None:
    """Fill in what rows wait for in other programs, and where they send to. ``recorders``: by program."""
    for block in blocks:
        mine = [recorders[p] for p in block.programs.tolist()]
        for number, row in enumerate(block.rows):
            found = [recorder.awaits.get(number, ()) for recorder in mine]
            if any(found):
                ptr = np.cumsum([0, *map(len, found)]).astype(np.int64)
                row.awaits = Awaits(ptr, np.array([t for tokens in found for t in tokens], np.int64).reshape(-1, 4))
            if number in mine[0].sources:
                row.source = np.array([recorder.sources[number] for recorder in mine], np.int64)
            if row.kind == OpKind.SEND:
                row.target = np.array([recorder.targets[number] for recorder in mine], np.int64)
