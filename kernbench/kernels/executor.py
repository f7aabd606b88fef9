"""Runs a kernel: all programs of the grid, a chunk at a time, for their values and for the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import (  # noqa: F401  emitters
    control,
    ops_asm,
    ops_float,
    ops_int,
    ops_map,
    ops_memory,
    ops_reduce,
    ops_scaled,
    ops_shape,
    sanitize,
    workers,
)
from kernbench.kernels.plan import Frame, Launch, Plan
from kernbench.kernels.recorder import Recorder
from kernbench.kernels.slices import synchronises, written_args
from kernbench.kernels.ttir import Module, Pointer, Scalar
from kernbench.memory import AddressSpace
from kernbench.sim_engine.oplog import KernelRecord

if TYPE_CHECKING:
    from kernbench.kernels.device import Target
    from kernbench.kernels.kernel import Kernel

CHUNK_ELEMENTS = 1 << 17
"""Elements of the largest block times programs that run together: what fits a core's cache. It is a constant, because
values may depend on it in their last bits, and no result may depend on the host's cache."""
STEPPED = 4
"""Times more where a loop with matrix products (flash attention) runs step by step: fewer, larger steps."""
MOST_PROGRAMS = 1 << 14
"""Programs that run together at most."""

_plans: WeakKeyDictionary[Module, dict[tuple[int, sanitize.Checks | None], Prepared]] = WeakKeyDictionary()


class Prepared:
    """A module compiled: its plan and what a launch asks of it."""

    def __init__(self, module: Module, num_stages: int, checks: sanitize.Checks | None = None) -> None:
        function = module.kernel
        if checks is None:
            self.plan: Plan = control.compile_function(function, module.functions, num_stages)
        else:
            from kernbench.kernels.sanitize.probes import probing

            with probing(checks):
                self.plan = control.compile_function(function, module.functions, num_stages)
        self.serial = synchronises(module.functions.values())
        self.functions = module.functions
        self.written = written_args(function)
        self.args = function.args

    def chunk(self, enable_data: bool) -> int:
        """Programs to run together, where none waits for another."""
        largest = self.plan.largest_tile if enable_data else self.plan.largest_needed
        elements = CHUNK_ELEMENTS * (STEPPED if self.plan.stepped_dots else 1)
        return max(1, min(MOST_PROGRAMS, elements // largest))


def check(module: Module, num_stages: int = 1) -> None:
    """See that every operation of a module can run.

    Raises:
        KernelError: one cannot; the message names it, its source line, and what to do.
    """
    prepare(module, num_stages)


def prepare(module: Module, num_stages: int, checks: sanitize.Checks | None = None) -> Prepared:
    """The compiled form of a module, kept as long as the module lives."""
    kept = _plans.setdefault(module, {})
    key = (num_stages, checks)
    if key not in kept:
        kept[key] = Prepared(module, num_stages, checks)
    return kept[key]


def execute(
    kernel: Kernel,
    grid: tuple[int, int, int],
    args: Sequence[int | float | bool],
    space: AddressSpace,
    target: Target | None = None,
    enable_data: bool = True,
    chunk: int | None = None,
) -> KernelRecord:
    """Run every program of a grid.

    Args:
        kernel: what to run.
        grid: programs along x, y, z.
        args: one per parameter of the TTIR function; pointers as byte addresses in ``space``.
        space: the memory that loads and stores go to.
        target: unused by execution; the record is the same on every machine.
        enable_data: False computes only what addresses, masks and control flow depend on. The record is the same.
        chunk: programs to run together, for tests; the record and (but for the last bits of sums) the values are the
            same for any.

    Raises:
        KernelError: the kernel uses an operation that KernBench does not run. Nothing has run then.
        KernelFault: an access out of bounds, with the source line.
        ValuesNeeded: without data, control flow or an address needs what an earlier launch did not compute.
    """
    del target
    checks = sanitize.current()
    prepared = prepare(kernel.module, kernel.num_stages, checks)
    recorder = Recorder()
    values = [_argument(a.type, x) for a, x in zip(prepared.args, args, strict=True)]
    written = set()
    for i in prepared.written:
        owner = space.find(int(args[i]))
        if owner is not None:
            written.add(owner.base)
    launch = Launch(kernel.name, space, recorder, grid, kernel.num_stages, frozenset(written))
    order = np.arange(grid[0] * grid[1] * grid[2], dtype=np.int64)
    together = 1 if prepared.serial else chunk or prepared.chunk(enable_data)
    if checks is None:
        _run(prepared, launch, values, order, together, enable_data)
    else:
        from kernbench.kernels.sanitize.watch import checked

        checked(checks, prepared, launch, order, together, enable_data, values, _run)
    return KernelRecord(kernel.name, grid, recorder.blocks(), list(prepared.plan.lines))


def _run(
    prepared: Prepared,
    launch: Launch,
    values: Sequence[Any],
    order: NDArray[np.int64],
    together: int,
    enable_data: bool,
) -> None:
    """Run programs by their numbers in the grid, ``together`` at a time."""
    plan, recorder = prepared.plan, launch.recorder
    with np.errstate(all="ignore"), workers.single_threaded_blas():
        for first in range(0, len(order), together):
            programs = order[first : first + together]
            recorder.begin(len(programs))
            v: list[Any] = [None] * plan.slots
            for slot, value in zip(plan.args, values, strict=True):
                v[slot] = value
            frame = Frame(launch, recorder, v, [()] * plan.dep_slots, len(programs), _pids(programs, launch.grid))
            plan.run(frame, enable_data)
            recorder.finish(programs)


def _argument(kind: Any, x: int | float | bool) -> Any:
    """A launch's argument as the executor holds a value of its type."""
    if isinstance(kind, Pointer):
        return int(x)
    assert isinstance(kind, Scalar)
    if kind.name == "i1":
        return bool(x)
    if kind.name.startswith("i"):
        return ops_int.wrap(int(x), ops_int.BITS[kind.name])
    return ops_float.scalar_argument(float(x), kind.name)


def _pids(programs: NDArray[np.int64], grid: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Program ids along each axis: ints where all agree."""
    x, y, z = programs % grid[0], programs // grid[0] % grid[1], programs // (grid[0] * grid[1])
    return tuple(int(p[0]) if len(p) == 1 or grid[i] == 1 else p.astype(np.int32) for i, p in enumerate((x, y, z)))  # type: ignore[return-value]
