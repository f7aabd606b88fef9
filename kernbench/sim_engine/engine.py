"""The engine: a machine, the record of what runs on it, and the replay that says when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kernbench.sim_engine import native, reference
from kernbench.sim_engine.bound import BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.oplog import Command, OpLog
from kernbench.sim_engine.progress import Progress
from kernbench.sim_engine.state import Replay, ResourceState
from kernbench.sim_engine.timeline import Timeline

if TYPE_CHECKING:
    from kernbench.topology import SystemGraph


class Binder(Protocol):
    """What turns a record into ops of a machine: :class:`kernbench.policy.bind.Binder`."""

    machine: Machine

    def bind(self, log: OpLog, progress: Progress | None = None) -> BoundLog:
        """Bind what was recorded since ``progress``, which moves on."""


def replay(bound: BoundLog, machine: Machine, state: ResourceState) -> Replay:
    """Run a bound log by the compiled core where there is one, else by the reference. Both give the same."""
    return (native if native.available() else reference).replay(bound, machine, state)


class GraphEngine:
    """One machine and one run on it.

    Attributes:
        graph, spec: the machine.
        enable_data: whether kernels compute values; the timeline is the same either way.
        log: what has been recorded.
        binder: decides PEs, channels and routes. The runtime sets a :class:`kernbench.policy.bind.Binder`.
    """

    def __init__(self, system_graph: SystemGraph, enable_data: bool = True) -> None:
        self.graph = system_graph
        self.spec = system_graph.spec
        self.enable_data = enable_data
        self.log = OpLog.empty(system_graph.n_sips)
        self.binder: Binder | None = None
        self._progress = Progress.begin(system_graph.n_sips)
        self._state: ResourceState | None = None
        self._timeline: Timeline | None = None
        self._writing = False
        """Between the first and the last thing that a finished replay changes."""

    def replay(self) -> Timeline:
        """Replay what was recorded since the last time and return the timeline of the whole run so far.

        A collective that some rank has not recorded yet holds back that and later commands of the others, which run in
        a later replay; :attr:`Timeline.clamped` counts the ops that this made late.

        A replay that is interrupted (Ctrl-C, a time limit of a test) leaves everything as it was: the next one begins
        where it began.

        Raises:
            CyclicWaitError: the record can never run to its end.
            RuntimeError: an earlier replay was interrupted just when its result was being written down.
        """
        if self._writing:
            raise RuntimeError(
                "an earlier replay was interrupted while its times were being written down, and the rest of this run "
                "can have none: open a new RuntimeContext (or GraphEngine)"
            )
        binder = self._binder()
        if self._timeline is None or self._state is None:
            self._timeline = Timeline(binder.machine, self.log.ranges)
            self._state = ResourceState.idle(binder.machine)
        progress, state = self._progress.ahead(), self._state.copy()
        bound = binder.bind(self.log, progress)
        if bound.count:
            done = replay(bound, binder.machine, state)
            timed = self._timeline.timed(bound, done)
            self._writing = True
            self._progress.take(progress, done.finish)
            self._state = state
            self._timeline.append(timed)
            self._writing = False
        else:
            self._progress.bound = progress.bound
        recorded = sum(len(commands) for commands in self.log.commands)
        self._timeline.held_back = recorded - sum(self._progress.bound)
        return self._timeline

    def time_alone(self, commands: Sequence[Command], rank: int = 0) -> int:
        """Picoseconds that commands of one rank take on an idle machine, outside the run's record: from when the first
        reaches its stream to the end of the last, with the host running ahead."""
        binder = self._binder()
        log = OpLog.empty(self.graph.n_sips)
        for command in commands:
            log.add(rank, command)
        bound = binder.bind(log)
        if not bound.count:
            return 0
        done = replay(bound, binder.machine, ResourceState.idle(binder.machine))
        alone = Timeline(binder.machine, [""])
        alone.add(bound, done)
        begins = [c.reached_ps for c in alone.commands if c.bound.stream >= 0]
        return alone.makespan_ps - min(begins, default=0)

    def _binder(self) -> Binder:
        if self.binder is None:
            raise RuntimeError(
                "GraphEngine.binder is not set: give it a kernbench.policy.bind.Binder(graph), as RuntimeContext does"
            )
        return self.binder
