"""Loops that wait for other programs by looking at memory again and again.

A loop's iteration is decided by what it carries and by what it finds in memory, and so is what it writes. When two in a
row carry and find the same, the second has changed nothing, and the next will not either unless another program does
something: the program gives way, and what it did in vain leaves no trace in the record, unless others saw of it: a
lock, say, that it took, to look at what the lock protects, and gave back.

That does not hold where an iteration tells others something that it does not find itself, by an atomic whose result
nobody uses or by an operation of ``kernbench.language``. Such a loop gives way too, now and then, and keeps its trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernbench.kernels import comm
from kernbench.kernels.ops_int import itemsize
from kernbench.kernels.plan import Compiler, Frame, element, where
from kernbench.kernels.program_recorder import ProgramRecorder, SilentProgram
from kernbench.kernels.recorder import Deps
from kernbench.kernels.slices import ATOMICS
from kernbench.kernels.ttir import Op, Pointer
from kernbench.kernels.values import AxisSum

OFTEN = 64
"""Iterations that find the same, while they carry something else (a count of tries) or tell others something, before
others get a turn."""


class Spin:
    """What is known of one loop before it runs."""

    def __init__(self, found: Sequence[int], first: Op, argument: str, pointer: int, tells: bool) -> None:
        self.found, self.first, self.argument, self.pointer, self.tells = found, first, argument, pointer, tells

    @classmethod
    def of(cls, c: Compiler, loop: Op) -> Spin | None:
        """None for a loop that never looks at memory."""
        looks = comm.polls(loop)
        if not looks:
            return None
        pointer = c.slot(looks[0].operands[0]) if looks[0].name != "tt.call" else -1
        argument = c.argument(looks[0].operands[0]) if looks[0].operands else ""
        tells = any(
            op.name in comm.TELLING or (op.name in ATOMICS and not any(r in c.users for r in op.results))
            for op in loop.walk()
        )
        return cls([c.slot(r) for op in looks for r in op.results], looks[0], argument, pointer, tells)

    def begin(self, f: Frame) -> Turns | None:
        """The loop starts in a program that takes turns with others."""
        return Turns(self, f) if f.count == 1 and isinstance(f.recorder, ProgramRecorder | SilentProgram) else None

    def describe(self, f: Frame) -> str:
        """What the program spins on, for people."""
        x, y, z = f.program(0)
        on = f"'{self.argument}'" if self.argument else "memory"
        pointer = f.v[self.pointer] if self.pointer >= 0 else None
        at = int(pointer) if isinstance(pointer, int | np.integer) else -1
        owner = f.launch.space.find(at) if at >= 0 else None
        value = f.v[self.found[0]] if self.found else None
        if owner is not None and isinstance(value, int | float | np.generic):
            kind = self.first.operands[0].type
            assert isinstance(kind, Pointer)
            width = itemsize(element(kind.pointee))
            on += f", element {(at - owner.base) // width} of '{owner.name}': it is {value}"
        return (
            f"{where(self.first.loc)}: program {(x, y, z)} of kernel '{f.launch.name}' spins on {on}, and only "
            "another program can change that"
        )


class Turns:
    """One run of such a loop in one program."""

    def __init__(self, spin: Spin, f: Frame) -> None:
        assert isinstance(f.recorder, ProgramRecorder | SilentProgram)
        self._spin, self._f, self._recorder = spin, f, f.recorder
        self._carried: list[Any] = []
        """By the iteration that has just run."""
        self._found: list[Any] | None = None
        """By the one before that; None where there was none."""
        self._begun = False
        self._same = 0
        self._gave_way = False
        """It has given way, and found and done nothing new since."""
        self._before: Any = None

    def next(self, values: list[Any], deps: list[Deps]) -> tuple[list[Any], list[Deps]]:
        """Before each iteration: what it is to start with."""
        f = self._f
        found = [f.v[s] for s in self._spin.found] if self._begun else None
        if self._found is not None:
            finds_the_same = _equal(found, self._found)
            self._same = self._same + 1 if finds_the_same else 0
            self._gave_way &= finds_the_same
            if finds_the_same and not self._spin.tells and _equal(values, self._carried):
                mark, deps_before, control = self._before
                if self._recorder.rewind(mark):
                    deps, f.control = deps_before, control
                f.launch.crew.spin(lambda: self._spin.describe(f), idle=self._gave_way)
                self._gave_way = True
            elif self._same >= OFTEN:
                self._same = 0
                f.launch.crew.spin(lambda: self._spin.describe(f), idle=False)
        self._carried, self._found, self._begun = values, found, True
        self._before = self._recorder.mark(), deps, f.control
        return values, deps


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, AxisSum) and isinstance(b, AxisSum):
        return _equal((a.shape, a.base, a.terms, a.step), (b.shape, b.base, b.terms, b.step))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )
    return a is b or bool(a == b) or bool(a != a and b != b)  # NaN is NaN here
