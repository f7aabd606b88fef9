"""What one launch is watched for: every memory operation reports here, with its window, before bytes move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.plan import Frame, Launch, where
from kernbench.kernels.recorder import Index, Recorder
from kernbench.kernels.sanitize import Checks
from kernbench.kernels.sanitize.origins import Origins
from kernbench.kernels.sanitize.races import Races
from kernbench.kernels.sanitize.team_races import TeamRaces, of_launch, watched
from kernbench.kernels.sanitize.touches import Touches, iterations
from kernbench.kernels.ttir import Op
from kernbench.kernels.window import Owners, Window
from kernbench.memory import Allocation

if TYPE_CHECKING:
    from kernbench.kernels.device import Device
    from kernbench.kernels.executor import Prepared
    from kernbench.kernels.ops_memory import Access
    from kernbench.kernels.tape import Tape


LOADS = frozenset({"tt.load", "kb.wait"})
STORES = frozenset({"tt.store"})


@dataclass(eq=False)
class Watch:
    """The checks of one launch.

    Args:
        checks: what to look for.
        name: the kernel's.
        grid: programs along x, y, z.
        written: bases of the allocations the launch may write.
        ordered: atomics may order programs.
        serial: programs run one by one.
    """

    checks: Checks
    name: str
    grid: tuple[int, int, int]
    written: frozenset[int]
    ordered: bool = False
    serial: bool = False
    ranks: TeamRaces | None = None
    """Where its programs communicate, or other ranks may reach its memory."""
    races: Races | Touches | None = None
    stores: dict[int, tuple[Access, Allocation]] = field(default_factory=dict)
    """Base of an allocation -> the latest operation that wrote to it."""
    fused: dict[Op, dict[int, Allocation]] = field(default_factory=dict)
    """Loads of loops that ran as one matrix product -> what they read."""
    origins: Origins = field(init=False)
    """Of NaNs and infinities."""
    warned: set[Op] = field(default_factory=set)

    tape: Tape | None = None
    """Where launches like this one leave what they found."""
    repeated: bool = False
    """The launch reads the tape: one with the same accesses ended well."""
    _looked_at: dict[int, NDArray[np.bool_] | None] = field(default_factory=dict)
    """Base of an allocation -> the map of its unwritten bytes, None where there is nothing to look for."""
    _fresh: set[int] = field(default_factory=set)
    """Those that had nothing written before the launch, and that it has not read."""
    _filled: list[Allocation] = field(default_factory=list)
    """Allocations that the launch will have written as a whole."""

    def __post_init__(self) -> None:
        self.origins = Origins(self.grid[0] * self.grid[1] * self.grid[2])
        together = self.ranks is not None and self.ranks.turns
        if "race" in self.checks.names and not self.repeated and not together:
            self.races = (Races if self.serial else Touches)(self.name, self.grid, self.ordered)

    def programs(self, f: Frame) -> NDArray[np.int64]:
        """int64[P], the frame's programs by their number in the grid."""
        x, y, z = f.pids
        if f.count == 1 and type(x) is type(y) is type(z) is int:
            return np.array([x + self.grid[0] * (y + self.grid[1] * z)])
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
            if w.trips is not None:
                self.fused.setdefault(a.op, {})[allocation.base] = allocation
            if stores:
                self.stores[allocation.base] = (a, allocation)
            races, ranks = self.races, self.ranks
            if races is not None and allocation.base not in self.written:
                races = None
            if ranks is not None and not (watched(allocation) or (ranks.turns and allocation.base in self.written)):
                ranks = None
            marked = allocation.unwritten is not None and self._may_be_unwritten(allocation)
            if not marked and races is None and ranks is None:
                continue
            part = w.of(members, allocation)
            if marked and loads:
                self._fresh.discard(allocation.base)
                for now in iterations(part):
                    self._initialised(f, a, now, allocation, members if w.programs > 1 else None)
            if marked and stores:
                self._wrote(a, part, allocation)
            programs = self.programs(f)
            chosen = programs if members is None or w.programs == 1 else programs[members]
            if isinstance(races, Touches):
                races.touch(a, part, allocation, chosen, loads, stores)
                races = None
            for looks in (races, ranks):
                if looks is not None:
                    for now in iterations(part):
                        looks.touch(a, now, allocation, chosen, loads, stores)

    def element(self, f: Frame, a: Access, address: int, allocation: Allocation) -> None:
        """:meth:`access` of one element by one program."""
        if self.ranks is None and (allocation.unwritten is None or not self._may_be_unwritten(allocation)):
            loads, stores = a.op.name not in STORES, a.op.name not in LOADS
            if stores:
                self.stores[allocation.base] = (a, allocation)
            if self.races is None or allocation.base not in self.written:
                return
            program = int(self.programs(f)[0])
            if isinstance(self.races, Races) and self.races.row(a, allocation, address, 1, program, loads, stores):
                return
        self.access(f, a, a.window(f), [(None, allocation)])

    # Of programs that communicate.

    def told(self, f: Frame) -> Any:
        """What a program knows to be done, for those who go on after it."""
        return None if self.ranks is None else self.ranks.told(int(self.programs(f)[0]))

    def signalled(self, f: Frame, w: Window, allocation: Allocation) -> Any:
        """The same, of one that signals a flag."""
        return None if self.ranks is None else self.ranks.signalled(int(self.programs(f)[0]), w, allocation)

    def learned(self, f: Frame, known: Iterable[Any]) -> None:
        """A program goes on after others."""
        if self.ranks is not None:
            self.ranks.learned(int(self.programs(f)[0]), known)

    def found(self, f: Frame, w: Window, allocation: Allocation) -> None:
        """A program has found a flag as it wants it, by no signal."""
        if self.ranks is not None:
            self.ranks.found(int(self.programs(f)[0]), w, allocation)

    def ended(self, program: int) -> None:
        """A program is over, in a launch where they run one by one or in turns."""
        for races in (self.races, self.ranks):
            if races is not None and not isinstance(races, Touches):
                races.ended(program)

    def end(self) -> None:
        """The launch is over: memory written as a whole need not be watched any more."""
        if self.ranks is not None:
            self.ranks.end()
        if isinstance(self.races, Touches):
            self.races.end()
        for base, (_, allocation) in self.stores.items():
            if self._looked_at.get(base) is not None and not _any(allocation.unwritten):
                allocation.unwritten = self._looked_at[base] = None
                if self.tape is not None and base in self._fresh:
                    self.tape.fills.add(base)
        if self.tape is not None:
            self.tape.unwritten |= {base: ref(marks) for base, marks in self._looked_at.items() if marks is not None}

    def fill(self) -> None:
        """The launch, which repeats one, has ended or was stopped."""
        for allocation in self._filled:
            allocation.unwritten = None

    def _may_be_unwritten(self, allocation: Allocation) -> bool:
        """Whether the launch may read bytes that nothing ever wrote, or has some to note that it writes first."""
        if allocation.base not in self._looked_at:
            marks = allocation.unwritten
            assert marks is not None
            before = self.tape.unwritten.get(allocation.base) if self.repeated and self.tape is not None else None
            if self.repeated and self.tape is not None and allocation.base in self.tape.fills:
                self._filled.append(allocation)
                marks = None
            elif before is not None and before() is marks:
                marks = None
            elif marks.flags.writeable and not marks.any():
                allocation.unwritten = marks = None
            elif self.tape is not None and (not marks.flags.writeable or marks.all()):
                self._fresh.add(allocation.base)
            self._looked_at[allocation.base] = marks
        return self._looked_at[allocation.base] is not None

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
        w.tiles(allocation.base).load(allocation.unwritten_map().view(np.uint8), "", marks.dtype, marks)
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
        unwritten = self._looked_at[allocation.base] = allocation.unwritten_map()
        w.tiles(allocation.base).store(unwritten.view(np.uint8), "", clear.dtype, clear)


def checked(
    checks: Checks,
    prepared: Prepared,
    launch: Launch,
    order: NDArray[np.int64],
    together: int,
    enable_data: bool,
    values: Sequence[Any],
    run: Callable[..., None],
    device: Device | None = None,
) -> None:
    """Run a launch, watched.

    Raises:
        KernelFault: a check found something.
    """
    ranks = of_launch(checks, launch, device, values)
    ordered, serial = prepared.serial or prepared.ordered, prepared.serial
    watch = Watch(checks, launch.name, launch.grid, launch.written, ordered, serial, ranks, tape=launch.tape)
    launch.watch = watch
    shuffle = None
    if checks.shuffle is not None and enable_data and not prepared.communicates:
        from kernbench.kernels.sanitize.shuffle import Shuffle

        shuffle = Shuffle(launch.space, launch.written)
    try:
        run(prepared, launch, values, order, together, enable_data)
    except KernelFault:
        if isinstance(watch.races, Touches):
            watch.races.end()  # a race may be what led there
        raise
    watch.end()
    if shuffle is not None and checks.shuffle is not None:
        again = replace(launch, recorder=Recorder(), watch=None)
        shuffle.compare(
            watch, len(order), checks.shuffle, lambda drawn: run(prepared, again, values, drawn, 1, enable_data)
        )


def checked_again(
    checks: Checks, launch: Launch, device: Device | None, values: Sequence[Any], run: Callable[[], None]
) -> None:
    """Watch a launch that reads a tape, for what may differ from the one that wrote it: the values, which bytes were
    ever written, and what other ranks do meanwhile.

    Raises:
        KernelFault: a check found something.
    """
    assert launch.known is not None
    ranks = of_launch(checks, launch, device, values)
    launch.watch = Watch(
        checks, launch.name, launch.grid, launch.written, ranks=ranks, tape=launch.known.tape, repeated=True
    )
    try:
        run()
    finally:
        launch.watch.fill()
    launch.watch.end()


def _any(marks: NDArray[np.bool_] | None) -> bool:
    """Whether any byte is marked."""
    return marks is not None and bool(marks.any())


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
