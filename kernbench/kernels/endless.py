"""Memory without end, for runs that ask where a kernel reaches before anybody knows how large its arrays are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelError
from kernbench.kernels.window import Window
from kernbench.memory import INTERLEAVED, Allocation

Formula = Callable[[NDArray[np.int64]], NDArray[Any]]
"""Values of elements by their numbers, counted from where the pointer points; the numbers may be negative."""


class SurveyError(KernelError):
    """The kernel's addresses depend on values that nobody gave; the text is the argument's name."""


class Endless(Allocation):
    """A span of address space around a pointer. It holds nothing; what is read from it follows from a formula."""

    def __init__(self, start: int, span: int, name: str, formula: Formula | None = None) -> None:
        super().__init__(start, span, name, INTERLEAVED, 0, span)
        self.formula, self.middle = formula, start + span // 2

    @property
    def bytes(self) -> NDArray[np.uint8]:
        raise SurveyError(self.name)

    def read(self, w: Window, itemsize: int, out: NDArray[Any]) -> None:
        """Fill ``out`` [P, *dims] where the window's mask leaves elements.

        Raises:
            SurveyError: there is no formula.
        """
        if self.formula is None:
            raise SurveyError(self.name)
        address, inside = w.lanes()
        values = np.asarray(self.formula((address - self.middle) // itemsize))
        np.copyto(out, values.astype(out.dtype), where=np.broadcast_to(inside, out.shape))
