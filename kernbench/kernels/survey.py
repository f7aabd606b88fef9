"""How far a kernel reaches: its programs run without values, on memory without end.

A kernel says nowhere how large the arrays behind its pointers are. Running it for its addresses alone shows which bytes
of each it touches, and which programs of a grid store anything at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import executor
from kernbench.kernels.endless import Endless, Formula
from kernbench.kernels.errors import KernelError
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.plan import Frame, Launch
from kernbench.kernels.recorder import Recorder
from kernbench.kernels.window import Owners, Window, window
from kernbench.memory import INTERLEAVED, AddressSpace, Allocation

SPAN = 1 << 58
"""Bytes of address space around each pointer argument."""
PATIENCE = 6_000
"""Memory operations before a launch counts as one that takes too long."""


class TooLong(KernelError):
    """There are more memory operations than are worth the wait."""


@dataclass
class Reach:
    """What the programs of a launch touched around one pointer, in bytes from where it points."""

    low: int = 0
    high: int = 0
    """One past the last byte; equal to ``low`` where nothing was touched."""
    reads: bool = False
    writes: bool = False
    atomics: bool = False

    def widen(self, low: int, high: int) -> None:
        untouched = self.low == self.high
        self.low, self.high = (low, high) if untouched else (min(self.low, low), max(self.high, high))


@dataclass
class Survey:
    """What :func:`survey` saw."""

    reach: dict[str, Reach]
    """By the name of the pointer argument."""
    last_store: int = -1
    """The highest number of a program that stored anything."""
    last_load: int = -1
    """The highest number of a program that loaded anything."""
    elements: int = 0
    """Elements of all blocks that were loaded and stored."""


class _Waters(AddressSpace):
    """One span of addresses per pointer, which points to the middle of its own."""

    def __init__(self) -> None:
        super().__init__(0, "survey")
        self.owners: list[Allocation] = []

    def add(self, name: str, contents: NDArray[Any] | Formula | None) -> int:
        """The address of a new pointer argument; ``contents`` are its elements where they are known."""
        start = (len(self.owners) + 1) * SPAN
        middle = start + SPAN // 2
        if isinstance(contents, np.ndarray):
            raw = np.ascontiguousarray(contents).reshape(-1).view(np.uint8)
            made = Allocation(middle, len(raw), name, INTERLEAVED, 0, len(raw))
            made._bytes = raw
        else:
            made = Endless(start, SPAN, name, contents)
        self.owners.append(made)
        return middle

    def find(self, address: int) -> Allocation | None:
        number = address // SPAN - 1
        if not 0 <= number < len(self.owners):
            return None
        found = self.owners[number]
        return found if found.base <= address < found.end else None

    def describe(self, address: int, nbytes: int) -> str:
        return f"byte {address % SPAN - SPAN // 2} from where an argument points"


class _Surveyor:
    """Stands where the checks of a launch stand: every memory operation reports here before bytes move."""

    def __init__(self, waters: _Waters, grid: tuple[int, int, int], most: int | None) -> None:
        self.found = Survey({owner.name: Reach() for owner in waters.owners})
        self.grid, self.accesses, self.most = grid, 0, math.inf if most is None else most

    def access(self, f: Frame, a: Any, w: Window, allocations: Owners) -> None:
        self.accesses += 1
        if self.accesses > PATIENCE:
            raise TooLong("a loop waits for a value in memory, or runs very long")
        trips = 1 if w.trips is None else int(np.maximum(w.trips, 1).max())
        self.found.elements += f.count * trips * math.prod(w.dims)
        if self.found.elements > self.most:
            raise TooLong("its run would take too long")
        stores = a.op.name != "tt.load"
        for members, allocation in allocations:
            part = w if members is None or len(members) == w.programs else w.select(members)
            low, high = part.reach()
            reach = self.found.reach[allocation.name]
            middle = (allocation.base // SPAN) * SPAN + SPAN // 2
            reach.widen(int(low.min()) - middle, int(high.max()) - middle)
            reach.reads |= a.op.name == "tt.load"
            reach.writes |= stores
            reach.atomics |= stores and a.op.name != "tt.store"
            x, y, z = (np.broadcast_to(np.asarray(p, np.int64), (f.count,)) for p in f.pids)
            number = x + self.grid[0] * (y + self.grid[1] * z)
            last = int((number if members is None or w.programs == 1 else number[members]).max())
            if stores:
                self.found.last_store = max(self.found.last_store, last)
            else:
                self.found.last_load = max(self.found.last_load, last)
        if stores:
            allocations.clear()  # nothing is to be marked as changed

    def element(self, f: Frame, a: Any, address: int, allocation: Allocation) -> None:
        """One element that all programs of a frame mean."""
        self.access(f, a, window(address, None, (1,), a.itemsize), [(None, allocation)])

    def ended(self, program: int) -> None:
        """A program is over."""


def survey(
    kernel: Kernel,
    grid: tuple[int, int, int],
    args: Mapping[str, int | float | bool],
    contents: Mapping[str, NDArray[Any] | Formula] | None = None,
    most: int | None = None,
) -> Survey:
    """Run a launch for its addresses.

    Args:
        kernel: what to run.
        grid: programs along x, y, z.
        args: the values of the arguments that are not pointers.
        contents: what is behind pointers whose values decide addresses, masks or branches: an array, or the values as
            a function of the elements' numbers.
        most: elements loaded and stored above which it is given up.

    Raises:
        SurveyError: such values are missing; its text is the argument's name.
        KernelFault: a known array is left.
        TooLong: there are more memory operations, or elements, than are worth the wait.
    """
    waters = _Waters()
    values: list[int | float | bool] = []
    for name, arg in zip(kernel.arg_names, kernel.function.args, strict=True):
        if kernel.is_pointer(arg):
            values.append(waters.add(name, (contents or {}).get(name)))
        else:
            values.append(args[name])
    prepared = executor.prepare(kernel.module, kernel.num_stages)
    numbers: Sequence[Any] = [convert(x) for convert, x in zip(prepared.converters, values, strict=True)]
    launch = Launch(kernel.name, waters, Recorder(), grid, kernel.num_stages, arguments=numbers)
    surveyor = launch.watch = _Surveyor(waters, grid, most)
    order = np.arange(grid[0] * grid[1] * grid[2], dtype=np.int64)
    executor._run(prepared, launch, numbers, order, 1 if prepared.serial else prepared.chunk(False), False)
    return surveyor.found
