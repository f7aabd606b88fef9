"""A rank: one flow of control in one context, and the device kernels launch on while it runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from kernbench.kernels import signals
from kernbench.memory import Allocation
from kernbench.runtime_api.cooperation import RankTeam
from kernbench.runtime_api.errors import ContextError
from kernbench.runtime_api.scheduler import Hub, Task, Wait
from kernbench.runtime_api.sip import Sip
from kernbench.runtime_api.strand import Strand
from kernbench.sim_engine.oplog import KernelRecord, Launch

if TYPE_CHECKING:
    from kernbench.kernels.device import Target
    from kernbench.memory import AddressSpace
    from kernbench.runtime_api.call import Meeting
    from kernbench.runtime_api.context import RuntimeContext


_worlds: WeakKeyDictionary[Any, itertools.count[int]] = WeakKeyDictionary()


class World:
    """The ranks of one ``spawn``, or the main program alone."""

    def __init__(self, ctx: RuntimeContext, size: int, hub: Hub | None = None) -> None:
        self.ctx = ctx
        self.number = next(_worlds.setdefault(ctx.engine, itertools.count()))
        """Worlds of one engine are numbered, since they share its record."""
        self.size = size
        self.hub = hub
        self.ranks: list[Rank] = []
        self.owners: dict[int, int] = {}
        """SIP -> the rank that drives it."""
        self.groups: dict[str, Any] = {}
        """The process groups that ranks of this world have made, by name."""
        self.open: dict[tuple[str, int], Meeting] = {}
        """Collectives that some rank has still to join."""
        self.failed: list[Meeting] = []
        """Those in which the ranks made different calls."""
        self.symmetric: list[Any] = []
        """Calls for symmetric memory, in order."""
        self.team = RankTeam(self)
        """What kernels see of the ranks."""


class Rank:
    """Implements :class:`kernbench.kernels.device.Device`, among what else a rank needs."""

    def __init__(self, world: World, index: int, device: int) -> None:
        self.world, self.index, self.ctx = world, index, world.ctx
        self.task: Task | None = None
        self.device = device
        """Number of the current SIP among those the context may use."""
        self.ranges: list[str] = []
        self.rng = self.seeded(np.random.SeedSequence([self.ctx.seed, index]))
        self.local: dict[Any, Any] = {}
        """State that other packages keep per rank, such as tensor parallelism's."""
        self._makers: dict[Any, Callable[[], Any]] = {}
        self._inherited: set[Any] = set()
        self.target: Target = self.ctx.target
        self.enable_data: bool = self.ctx.enable_data
        self._touched: list[Allocation] = []
        """By the kernel that is being launched."""
        world.ranks.append(self)

    @staticmethod
    def seeded(seed: int | np.random.SeedSequence) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(seed))

    # State that ranks get from the main program, as if it had been set up for them.

    def keep(self, key: Any, value: Any, make: Callable[[], Any]) -> None:
        """Set ``local[key]``. Where the main program does, the ranks it spawns call ``make`` before anything else."""
        self.local[key] = value
        self._makers[key] = make

    def inherits(self, key: Any) -> bool:
        """Whether ``local[key]`` came with the spawn. Says so once: whoever sets it up again has it for their own."""
        inherited = key in self._inherited
        self._inherited.discard(key)
        return inherited

    def inherit(self, parent: Rank) -> None:
        """Make what ``parent`` keeps, in the order in which it came to it, if it is the main program."""
        for key, make in parent._makers.items():
            if key in parent.local and parent.task is None:
                make()
                self._inherited.add(key)

    # The SIP it drives.

    @property
    def sip(self) -> Sip:
        """The current SIP, claimed for this rank.

        Raises:
            ContextError: another rank of the same world drives it already.
        """
        sip = self.ctx.sips[self.device]
        owner = self.world.owners.setdefault(sip.index, self.index)
        if owner != self.index:
            raise ContextError(
                f"ahbm:{self.device} belongs to rank {owner}, so rank {self.index} cannot use it: one rank drives one "
                "SIP. Call ctx.ahbm.set_device(rank) first."
            )
        sip.range_path = "/".join(self.ranges)
        return sip

    def is_running(self) -> bool:
        """Whether this rank's flow of control is who runs now."""
        return Strand.current() is (None if self.task is None else self.task.strand)

    @property
    def space(self) -> AddressSpace:
        return self.sip.space

    @property
    def stream(self) -> int:
        return self.sip.current.number

    @property
    def team(self) -> RankTeam:
        return self.world.team

    @property
    def member(self) -> int:
        return self.index

    def touch(self, allocations: list[Allocation]) -> None:
        # What is in flight is checked against the bytes that the kernel turns out to touch, in submit().
        self.breathe()
        self._touched = allocations

    def submit(self, record: KernelRecord) -> None:
        sip = self.sip
        sip.touch_by_kernel(record)
        sip.queue(Launch(record, sip.current.number, placements=sip.placed(self._touched)))
        self._touched = []

    def benchmark(self, fn: Callable[[], Any]) -> float:
        # No other rank may run meanwhile: Triton's autotuner keeps what it is measuring in itself.
        task, self.task = self.task, None
        try:
            with signals.signals_aside(), self.team.aside():
                return self.ctx.benchmark(fn)
        finally:
            self.task = task

    # Waiting.

    def park_until(self, done: Callable[[], bool], wait: Wait) -> None:
        """Give way until ``done()``. Whoever makes it true wakes :attr:`task`."""
        while not done():
            if not self.is_running():
                raise ContextError(
                    f"{wait.what} at {wait.where} is rank {self.index}'s: only that rank can wait for it"
                )
            if self.task is None or self.world.hub is None:
                raise ContextError(
                    f"the main program waits in {wait.what} at {wait.where}, but it is alone: run ranks with "
                    "ctx.multiprocessing.spawn(fn, nprocs=...)"
                )
            self.world.hub.park(self.task, wait)

    def wake(self) -> None:
        """What this rank waits for has come. Called by another."""
        if self.task is not None and self.world.hub is not None:
            self.world.hub.wake(self.task)

    def ask(self, question: Callable[[], Any]) -> Any:
        """What ``question()`` says once no rank of this world can move; None if somebody wakes this one before that."""
        if self.task is None or self.world.hub is None:
            return question()
        return self.world.hub.ask(self.task, question)

    def breathe(self) -> None:
        """A point where a shuffled schedule may switch ranks."""
        if self.task is not None and self.world.hub is not None:
            self.world.hub.breathe(self.task)


# Which rank is running: each flow of control has a stack of them, since contexts nest.

_main: list[Rank] = []


def _stack() -> list[Rank]:
    strand = Strand.current()
    return _main if strand is None else strand.local.setdefault("ranks", [])


def enter(rank: Rank) -> None:
    """``rank`` runs from now on, in this flow of control."""
    _stack().append(rank)


def leave(rank: Rank) -> None:
    """The opposite of :func:`enter`."""
    _stack().remove(rank)


def current() -> Rank:
    """The rank that is running.

    Raises:
        ContextError: no context is open.
    """
    stack = _stack()
    if not stack:
        raise ContextError("no KernBench context is open: work inside `with RuntimeContext(...) as ctx:`")
    return stack[-1]


def current_in(ctx: RuntimeContext) -> Rank:
    """The rank that this flow of control is in ``ctx``."""
    for rank in reversed(_stack()):
        if rank.ctx is ctx:
            return rank
    raise ContextError(
        "this context is not open here: use it inside its `with` block, and in ranks only inside functions given to "
        "its own ctx.multiprocessing.spawn"
    )
