"""How fast the simulator is, each ratio with both of its sides measured in this run.

(a) the replay of what tutorial 03's kernel leaves at 4096^3, against SimPy under the same rules on the same ops;
(b) that kernel's second launch, record and replay, timing-only and with values;
(c) warm launches of small kernels, and of others against Triton's interpreter.

``python benches/simulator_speed.py`` prints all of them; with ``replay`` as its argument, only the first. Needs Triton
and SimPy, (c) torch too.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import speed_kernels
import tutorial_kernels
from peers import simpy_replay
from speed_kernels import LARGE, LARGE_TILE, Measurement, seconds, table

from kernbench.kernels.device import Target
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.policy.bind import Binder
from kernbench.sim_engine import native
from kernbench.sim_engine.oplog import KernelRecord, Launch, OpLog
from kernbench.sim_engine.state import ResourceState
from kernbench.sim_engine.timeline import Timeline
from kernbench.sim_engine.usage import utilisation
from kernbench.topology import load

REPLAY_TARGET = 60.0


def matmul_record(target: Target) -> KernelRecord:
    """What tutorial 03's kernel does at 4096^3 in f16."""
    with StandaloneDevice(target, enable_data=False) as device:
        a, b, c = (device.empty((LARGE, LARGE), "f16") for _ in range(3))
        tutorial_kernels.matmul(a, b, c, tile=LARGE_TILE)
        return device.records[-1]


def against_simpy() -> tuple[list[Measurement], list[str]]:
    """The measurement, and lines that say what was replayed."""
    graph = load("ahbm-1sip")
    binder = Binder(graph)
    machine = binder.machine
    log = OpLog.empty(1)
    log.add(0, Launch(matmul_record(Target.from_spec(graph.spec))))
    bind_cold = seconds(lambda: binder.bind(log), 1)
    bind_again = seconds(lambda: binder.bind(log))
    bound = binder.bind(log)
    done = native.replay(bound, machine, ResourceState.idle(machine))
    ours = seconds(lambda: native.replay(bound, machine, ResourceState.idle(machine)), 5)

    started = time.perf_counter()
    finish = simpy_replay.replay(bound, machine)[1]
    theirs = time.perf_counter() - started

    timeline = Timeline(machine, [""])
    timeline.add(bound, done)
    loads = utilisation(timeline, timeline.commands[0].reached_ps, timeline.makespan_ps)
    if not np.array_equal(finish, done.finish):
        raise AssertionError("SimPy and the core disagree about when ops end: one of them is wrong")
    about = [
        f"replayed: {bound.count} ops, {len(bound.deps)} dependencies, {done.events} events "
        f"({done.events / ours / 1e6:.1f} M/s), {done.events / bound.count:.1f} an op",
        f"bind: {bind_cold * 1e3:.0f} ms the first time, {bind_again * 1e3:.1f} ms again",
        f"simulated: {timeline.makespan_ps / 1e6:.2f} us; SimPy gives the same picosecond for every op",
        "utilisation (mean, busiest): "
        + ", ".join(f"{name} {load.mean:.0%} {load.peak:.0%}" for name, load in loads.items()),
    ]
    return [Measurement(f"replay of matmul {LARGE}^3 against SimPy", ours, theirs, REPLAY_TARGET)], about


def main() -> int:
    found, about = against_simpy()
    if "replay" not in sys.argv[1:]:
        kernels, extra = speed_kernels.measure()
        found += kernels
        about += [f"{name}: {value:.3f} s" for name, value in extra.items()]
    print(table(found))
    print("\n".join(f"  {line}" for line in about))
    return 0 if all(m.met for m in found) else 1


if __name__ == "__main__":
    sys.exit(main())
