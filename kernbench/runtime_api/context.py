"""``RuntimeContext``: a machine, its ranks and its record, behind names that read like the ``torch`` module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

from kernbench.kernels import device as kernel_device
from kernbench.kernels import sanitize
from kernbench.kernels.device import Target
from kernbench.memory import DType, dtype
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.ahbm import Ahbm
from kernbench.runtime_api.call import Work
from kernbench.runtime_api.distributed import Distributed
from kernbench.runtime_api.errors import ContextError
from kernbench.runtime_api.factories import Factories
from kernbench.runtime_api.functional import Functional
from kernbench.runtime_api.multiprocessing import Multiprocessing, SpawnContext
from kernbench.runtime_api.rank import Rank, World
from kernbench.runtime_api.sip import Sip
from kernbench.runtime_api.tensor import Tensor
from kernbench.runtime_api.types import Device, DeviceSelector
from kernbench.sim_engine.oplog import Collective, Command, OpLog

if TYPE_CHECKING:
    from kernbench.sim_engine.engine import GraphEngine
    from kernbench.sim_engine.timeline import Timeline
    from kernbench.topology import SystemGraph

ENTERED = -1
"""As a step of a collective in the record: a rank's entry into it."""


class RuntimeContext(Factories, Functional):
    """Open it with ``with``; inside, the main program drives the first SIP alone, and ``multiprocessing.spawn`` makes
    ranks that drive one SIP each.

    Args:
        engine: the machine and where the run is recorded.
        target_device: which SIPs may be used; all of them without.
        correlation_id: the caller's name for this run, kept as an attribute.
        spec: the machine's description; the engine's own without.
        seed: of the ranks' random generators.
        shuffle: a number makes the scheduler run ranks in random order. Values and times do not depend on it.

    Attributes:
        ahbm: devices, streams, events, memory.
        distributed: process groups and collectives.
        multiprocessing: ``spawn``.
        on_range: called with the path of a phase when rank 0 enters or leaves one.
    """

    def __init__(
        self,
        engine: GraphEngine,
        target_device: DeviceSelector | None = None,
        correlation_id: str | None = None,
        spec: Any = None,
        *,
        seed: int = 0,
        shuffle: int | None = None,
    ) -> None:
        self.engine = engine
        self.spec = engine.spec if spec is None else spec
        self.correlation_id = correlation_id
        self.enable_data = engine.enable_data
        self.seed = seed
        self.target = Target.from_spec(self.spec)
        cubes, cube = self.spec.sip.cubes, self.spec.sip.cube
        count, pes = cubes.rows * cubes.cols, cube.pes.rows * cube.pes.cols
        granule = int(cube.hbm.interleave.granule)
        self._sip_shape = {"cubes": count, "pes_per_cube": pes, "granule": granule}
        capacity = count * int(cube.hbm.capacity)
        chosen = (target_device or DeviceSelector()).indices(engine.graph.n_sips)
        self.sips = [Sip(self, number, index, capacity, engine.log) for number, index in enumerate(chosen)]
        self.ahbm = Ahbm(self)
        self.distributed = Distributed(self)
        self.multiprocessing = Multiprocessing(self)
        self.Tensor, self.device = Tensor, Device
        self.on_range: Callable[[str], Any] = lambda path: None
        self.running: list[SpawnContext] = []
        """Spawns with ``join=False`` that may not have ended."""
        self._main = Rank(World(self, 1), 0, 0)
        self._shuffle = None if shuffle is None else Random(shuffle)
        self._before: list[Any] = []
        self._checks: tuple[sanitize.Checks | None, ...] = ()
        """What ``open(check=...)`` asked for; empty for what is set elsewhere."""
        self._checks_before: sanitize.Checks | None = None
        self._fence_due = False
        self._ranges_sorted = len(engine.log.ranges)
        if engine.binder is None:
            from kernbench.policy.bind import Binder

            engine.binder = Binder(engine.graph)

    @classmethod
    def open(
        cls,
        topology: str | Path | SystemGraph,
        *,
        enable_data: bool = True,
        overrides: Sequence[str] = (),
        sips: int | None = None,
        check: bool | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> RuntimeContext:
        """A context on a fresh engine: ``with RuntimeContext.open("ahbm-4sip") as ctx:``.

        Args:
            topology: preset, YAML file, or a machine loaded already.
            enable_data: False computes no values and gives the same timeline.
            overrides: changes such as ``sip.cube.hbm.bandwidth=2 TB/s``.
            sips: number of SIPs instead of the file's.
            check: True, or names of :mod:`kernbench.kernels.sanitize`: check kernels while the context is open. None
                leaves it to the environment variable ``KERNBENCH_CHECK``.
        """
        import kernbench.topology
        from kernbench.sim_engine.engine import GraphEngine

        if isinstance(topology, str | Path):
            topology = kernbench.topology.load(topology, overrides=overrides, sips=sips)
        made = cls(GraphEngine(topology, enable_data=enable_data), DeviceSelector("all"), **kwargs)
        if check is not None:
            made._checks = (sanitize.checks(check),)
        return made

    def __enter__(self) -> RuntimeContext:
        if self._before:
            raise ContextError("this context is open already")
        ranks.enter(self._main)
        self._before.append(kernel_device.set_provider(cast(Any, ranks.current)))
        if self._checks:
            self._checks_before = sanitize.switch(self._checks[0])
        return self

    def __exit__(self, *_: object) -> None:
        kernel_device.set_provider(self._before.pop())
        if self._checks:
            sanitize.switch(self._checks_before)
        ranks.leave(self._main)

    # Element types, under torch's names: ctx.float16, ctx.bfloat16, ctx.int32 ...

    def __getattr__(self, name: str) -> DType:
        try:
            return dtype(name)
        except TypeError:
            raise AttributeError(
                f"RuntimeContext has no '{name}'. It has torch's tensor functions that run as built-in kernels, and "
                "ahbm, distributed and multiprocessing"
            ) from None

    # Waiting.

    def wait(self, handle: Any) -> None:
        """Wait for the handle of an asynchronous collective, or for a list of them; None is no handle. Gives way to
        other ranks until it is complete, and returns at once if it is."""
        handles = [handle] if isinstance(handle, Work) or handle is None else handle
        for one in handles:
            if one is not None:
                one.wait()

    # Phases and time.

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        """Name a phase, in the record and in every report. Phases nest."""
        rank = ranks.current_in(self)
        rank.ranges.append(name)
        self._tell(rank)
        try:
            yield
        finally:
            rank.ranges.pop()
            self._tell(rank)

    def _tell(self, rank: Rank) -> None:
        if rank.index == 0:
            self.on_range("/".join(rank.ranges))

    def timeline(self) -> Timeline:
        """When everything recorded so far runs. Within a rank it first lets every other rank go as far as it can, so
        that the answer does not depend on who happened to run first."""
        rank = ranks.current_in(self) if self._before else self._main
        if rank.task is None:
            for context in self.running:
                context.settle()
        return rank.ask(self._replay)

    def benchmark(self, fn: Callable[[], Any]) -> float:
        """Simulated milliseconds of what ``fn`` launches, alone on an idle machine and left out of the record."""
        rank = ranks.current_in(self)
        sip = rank.sip
        kept, sip.log = sip.log, OpLog.empty(self.engine.graph.n_sips)
        try:
            fn()
            commands: list[Command] = sip.log.commands[sip.index]
        finally:
            sip.log = kept
        return self.engine.time_alone(commands, sip.index) * 1e-9

    # Inside.

    def next_seed(self) -> int | None:
        """Of the next spawn's scheduler; None runs ranks in turn."""
        return None if self._shuffle is None else self._shuffle.getrandbits(32)

    def fence_next(self) -> None:
        """Ranks begin or have ended: whatever comes next, on any SIP, comes after all that has been recorded."""
        self._fence_due = any(self.engine.log.commands)

    def fence_if_due(self) -> None:
        """Record the fence. Called before any command is recorded; costs the hosts a synchronisation and no traffic."""
        if not self._fence_due:
            return
        self._fence_due = False
        first, others = self.sips[0], self.sips[1:]
        number = len(self.engine.log.commands[first.index])  # no fence was recorded at this place before
        gather, release = ("spawn gather", number), ("spawn release", number)
        for sip in self.sips:
            sip.synchronize()
        if not others:
            return
        first.add(Collective("spawn", gather, [], tuple((sip.index, ENTERED) for sip in others)))
        for sip in others:
            sip.add(Collective("spawn", gather, [], ()))
        for sip in self.sips:
            sip.add(Collective("spawn", release, [], () if sip is first else ((first.index, ENTERED),)))
            sip.synchronize()

    def _replay(self) -> Timeline:
        self._sort_ranges()
        return self.engine.replay()

    def _sort_ranges(self) -> None:
        """Number the phases by rank and first use, whoever happened to come first."""
        log, known = self.engine.log, self._ranges_sorted
        if len(log.ranges) > known:
            used = dict.fromkeys(c.range_id for commands in log.commands for c in commands if c.range_id >= known)
            rest = [i for i in range(known, len(log.ranges)) if i not in used]
            order = [*used, *rest]
            number = {old: known + new for new, old in enumerate(order)}
            log.ranges[known:] = [log.ranges[old] for old in order]
            for commands in log.commands:
                for command in commands:
                    command.range_id = number.get(command.range_id, command.range_id)
        self._ranges_sorted = len(log.ranges)
