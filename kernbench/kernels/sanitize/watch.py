"""What one launch is watched for: every memory operation reports here, with its window, before bytes move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.plan import Frame, Launch, where
from kernbench.kernels.recorder import Index, Recorder
from kernbench.kernels.sanitize import Checks
from kernbench.kernels.sanitize.races import Races
from kernbench.kernels.slices import ATOMICS
from kernbench.kernels.ttir import Function, Op
from kernbench.kernels.window import Owners, Window
from kernbench.memory import Allocation

if TYPE_CHECKING:
    from kernbench.kernels.executor import Prepared
    from kernbench.kernels.ops_memory import Access


LOADS = frozenset({"tt.load", "kb.wait"})
STORES = frozenset({"tt.store"})


def orders(functions: Iterable[Function]) -> bool:
    """Whether atomics may order programs: somebody looks at what one returned."""
    for function in functions:
        ops = list(function.walk())
        used = {v for op in ops for v in op.operands}
        used |= {v for op in ops for _, handed in op.successors for v in handed}
        if any(op.name in ATOMICS and any(r in used for r in op.results) for op in ops):
            return True
    return False


@dataclass(eq=False)
class Watch:
    """The checks of one launch.

    Args:
        checks: what to look for.
        name: the kernel's.
        grid: programs along x, y, z.
        written: bases of the allocations the launch may write.
        ordered: programs run one by one, and atomics order them.
    """

    checks: Checks
    name: str
    grid: tuple[int, int, int]
    written: frozenset[int]
    ordered: bool
    races: Races | None = None
    stores: dict[int, tuple[Access, Allocation]] = field(default_factory=dict)
    """Base of an allocation -> the latest operation that wrote to it."""
    fused: dict[Op, dict[int, Allocation]] = field(default_factory=dict)
    """Loads of loops that ran as one matrix product -> what they read."""
    origins: dict[tuple[Op, int], tuple[int, str, int]] = field(default_factory=dict)
    """(operation, program) -> when it first made a NaN or inf, which of them, and in which element."""
    warned: set[Op] = field(default_factory=set)

    def __post_init__(self) -> None:
        if "race" in self.checks.names:
            self.races = Races(self.name, self.grid, self.ordered)

    def programs(self, f: Frame) -> NDArray[np.int64]:
        """int64[P], the frame's programs by their number in the grid."""
        x, y, z = f.pids
        number = x + self.grid[0] * (np.asarray(y, np.int64) + self.grid[1] * np.asarray(z, np.int64))
        return np.broadcast_to(number, (f.count,))

    def access(self, f: Frame, a: Access, w: Window, allocations: Owners) -> None:
        """A memory operation is about to happen.

        Raises:
            KernelFault: it reads what nobody wrote, or races with another program.
        """
        loads = a.op.name not in STORES and a.op.attrs.get("how") != "set"
        stores = a.op.name not in LOADS
        for members, allocation in allocations:
            part = w.of(members, allocation)
            if w.trips is not None:
                self.fused.setdefault(a.op, {})[allocation.base] = allocation
            if allocation.unwritten is not None:
                if loads:
                    for now in iterations(part):
                        self._initialised(f, a, now, allocation, members if w.programs > 1 else None)
                if stores:
                    self._wrote(a, part, allocation)
            if stores:
                self.stores[allocation.base] = (a, allocation)
            if self.races is not None and allocation.base in self.written:
                programs = self.programs(f)
                chosen = programs if members is None or w.programs == 1 else programs[members]
                for now in iterations(part):
                    self.races.touch(a, now, allocation, chosen, loads, stores)

    def acquired(self, f: Frame, a: Access, w: Window, allocation: Allocation) -> None:
        """A program has waited for a flag."""
        if self.races is not None and allocation.base in self.written:
            self.races.acquired(a, w, allocation, int(self.programs(f)[0]))

    def arrived(self, f: Frame, barrier: object) -> None:
        """A program has come to a barrier."""
        if self.races is not None:
            self.races.arrived(int(self.programs(f)[0]), barrier)

    def released(self, f: Frame, barrier: object) -> None:
        """It goes on, now that all have come."""
        if self.races is not None:
            self.races.released(int(self.programs(f)[0]), barrier)

    def ended(self, program: int) -> None:
        """A program is over, in a launch where they run one by one or in turns."""
        if self.races is not None:
            self.races.ended(program)

    def end(self) -> None:
        """The launch is over: memory written as a whole need not be watched any more."""
        for _, allocation in self.stores.values():
            if allocation.unwritten is not None and not allocation.unwritten.any():
                allocation.unwritten = None

    def _initialised(self, f: Frame, a: Access, w: Window, allocation: Allocation, members: Index | None) -> None:
        unwritten = allocation.unwritten
        assert unwritten is not None
        active = w.active()
        if not active.any():
            return
        low, high = w.reach()
        if not unwritten[int(low[active].min()) - allocation.base : int(high[active].max()) - allocation.base].any():
            return
        marks = np.zeros((w.programs, *w.dims), f"u{a.itemsize}")
        w.tiles(allocation.base).load(unwritten.view(np.uint8), "", marks.dtype, marks)
        if not marks.any():
            return
        at = np.argwhere(marks)[0]
        address = int(w.lanes()[0][tuple(at)]) - allocation.base
        programs = self.programs(f)
        if members is not None:
            programs = programs[members]
        program = coordinates(int(programs[at[0]]), self.grid)
        element = address // a.itemsize
        raise KernelFault(
            f"{where(a.op.loc)}: kernel '{self.name}', program {program}: uninitialised read of "
            f"{target(a)}: element {element} of '{allocation.name}' (bytes {address}..{address + a.itemsize - 1}, "
            f"index {position(w, at[1:])} of the block) was never written. Make the tensor with zeros or full, store "
            "to it first, or mask the element out."
        )

    def _wrote(self, a: Access, w: Window, allocation: Allocation) -> None:
        assert allocation.unwritten is not None
        clear = np.zeros((1,) * (len(w.dims) + 1), f"u{a.itemsize}")
        w.tiles(allocation.base).store(allocation.unwritten.view(np.uint8), "", clear.dtype, clear)


def checked(
    checks: Checks,
    prepared: Prepared,
    launch: Launch,
    order: NDArray[np.int64],
    together: int,
    enable_data: bool,
    values: Sequence[Any],
    run: Callable[..., None],
) -> None:
    """Run a launch, watched. Where atomics may order programs these run one by one, which changes no record.

    Raises:
        KernelFault: a check found something.
    """
    ordered = "race" in checks.names and (prepared.serial or orders(prepared.functions.values()))
    watch = launch.watch = Watch(checks, launch.name, launch.grid, launch.written, ordered)
    shuffle = None
    if checks.shuffle is not None and enable_data and not prepared.communicates:
        from kernbench.kernels.sanitize.shuffle import Shuffle

        shuffle = Shuffle(launch.space, launch.written)
    run(prepared, launch, values, order, 1 if ordered else together, enable_data)
    watch.end()
    if shuffle is not None and checks.shuffle is not None:
        again = replace(launch, recorder=Recorder(), watch=None)
        shuffle.compare(
            watch, len(order), checks.shuffle, lambda drawn: run(prepared, again, values, drawn, 1, enable_data)
        )


def iterations(w: Window) -> Iterable[Window]:
    """The window, or those of each iteration of a symbolic loop."""
    if w.trips is None:
        yield w
        return
    for t in range(int(w.trips.max())):
        now = w.iteration(np.full(w.programs, t, np.int64))
        if (w.trips <= t).any():
            now.hi = np.where((w.trips > t)[:, None], now.hi, 0)
        yield now


def coordinates(program: int, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """A program's number as its id along x, y, z."""
    return program % grid[0], program // grid[0] % grid[1], program // (grid[0] * grid[1])


def target(a: Access) -> str:
    return f"'{a.argument}'" if a.argument else "memory"


def position(w: Window, index: NDArray[np.int64]) -> tuple[int, ...]:
    """An element's index in its block."""
    if w.block is not None:
        index = np.array(np.unravel_index(int(index[0]), w.block))
    return tuple(int(i) for i in index)
