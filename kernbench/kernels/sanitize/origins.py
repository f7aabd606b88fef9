"""Which operation made the first NaN or infinity of each program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.ttir import Op, Value

Ints = NDArray[np.int64]


@dataclass(eq=False)
class _Made:
    """What one operation made, by program."""

    when: Ints
    """The largest integer where it made none."""
    element: Ints
    """Which of its block."""
    is_nan: NDArray[np.bool_]
    of: NDArray[np.float64]
    """[programs, operands], where it is elementwise."""


@dataclass(eq=False)
class Origins:
    """Of a launch of so many ``programs``."""

    programs: int
    _made: dict[Op, _Made] = field(default_factory=dict)
    _count: int = 0

    def add(self, op: Op, kind: str, programs: Ints, element: Ints, of: Sequence[NDArray[Any]]) -> None:
        """Programs make one, in an element of their block each, of some operands. Only a program's first counts."""
        if op not in self._made:
            n = self.programs
            never = np.full(n, np.iinfo(np.int64).max)
            self._made[op] = _Made(never, np.zeros(n, np.int64), np.zeros(n, np.bool_), np.zeros((n, len(of))))
        found = self._made[op]
        new = found.when[programs] == np.iinfo(np.int64).max
        at = programs[new]
        found.when[at], found.element[at], found.is_nan[at] = self._count, element[new], kind == "NaN"
        for i, values in enumerate(of):
            found.of[at, i] = values[new]
        self._count += 1

    def first(self, sources: frozenset[Value], programs: Ints) -> list[Op | None]:
        """The operation that was the first of each program to make one, among those that make ``sources``."""
        ops = [op for op in self._made if any(r in sources for r in op.results)]
        if not ops:
            return [None] * len(programs)
        when = np.stack([self._made[op].when[programs] for op in ops])
        earliest = when.argmin(axis=0)
        none = when.min(axis=0) == np.iinfo(np.int64).max
        return [None if no else ops[i] for i, no in zip(earliest.tolist(), none.tolist(), strict=True)]

    def describe(self, op: Op, program: int) -> str:
        """What an operation made in a program, and of what."""
        found = self._made[op]
        kind = "NaN" if found.is_nan[program] else "inf"
        made_of = " and ".join(f"{v:.6g}" for v in found.of[program].tolist())
        made_of = made_of or ("finite operands" if kind == "inf" else "operands without one")
        return f"{op.name} makes the first {kind}, of {made_of} (element {found.element[program]} of its block)"
