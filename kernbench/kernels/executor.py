"""Runs a kernel: all programs of the grid, a chunk at a time, for their values and for the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import control, ops_float, ops_int, ops_memory, ops_reduce, ops_shape, workers  # noqa: F401  emitters
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
MOST_PROGRAMS = 1 << 14
"""Programs that run together at most."""

_plans: WeakKeyDictionary[Module, dict[int, Prepared]] = WeakKeyDictionary()


class Prepared:
    """A module compiled: its plan and what a launch asks of it."""

    def __init__(self, module: Module, num_stages: int) -> None:
        function = module.kernel
        self.plan: Plan = control.compile_function(function, module.functions, num_stages)
        self.serial = synchronises(module.functions.values())
        self.written = written_args(function)
        self.args = function.args

    def chunk(self, enable_data: bool) -> int:
        """Programs to run together, where none waits for another."""
        largest = self.plan.largest_tile if enable_data else self.plan.largest_needed
        return max(1, min(MOST_PROGRAMS, CHUNK_ELEMENTS // largest))


def check(module: Module, num_stages: int = 1) -> None:
    """See that every operation of a module can run.

    Raises:
        KernelError: one cannot; the message names it, its source line, and what to do.
    """
    prepare(module, num_stages)


def prepare(module: Module, num_stages: int) -> Prepared:
    """The compiled form of a module, kept as long as the module lives."""
    kept = _plans.setdefault(module, {})
    if num_stages not in kept:
        kept[num_stages] = Prepared(module, num_stages)
    return kept[num_stages]


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
    prepared = prepare(kernel.module, kernel.num_stages)
    plan = prepared.plan
    recorder = Recorder()
    values = [_argument(a.type, x) for a, x in zip(prepared.args, args, strict=True)]
    written = set()
    for i in prepared.written:
        owner = space.find(int(args[i]))
        if owner is not None:
            written.add(owner.base)
    launch = Launch(kernel.name, space, recorder, grid, kernel.num_stages, frozenset(written))
    total = grid[0] * grid[1] * grid[2]
    together = 1 if prepared.serial else chunk or prepared.chunk(enable_data)
    with np.errstate(all="ignore"), workers.single_threaded_blas():
        for first in range(0, total, together):
            programs = np.arange(first, min(total, first + together), dtype=np.int64)
            recorder.begin(len(programs))
            v: list[Any] = [None] * plan.slots
            for slot, value in zip(plan.args, values, strict=True):
                v[slot] = value
            frame = Frame(launch, recorder, v, [()] * plan.dep_slots, len(programs), _pids(programs, grid))
            plan.run(frame, enable_data)
            recorder.finish(programs)
    return KernelRecord(kernel.name, grid, recorder.blocks(), list(plan.lines))


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
