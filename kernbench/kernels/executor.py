"""Runs a kernel: all programs of the grid, a chunk at a time, for their values and for the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import (  # noqa: F401  emitters
    comm,
    control,
    dumps,
    ops_asm,
    ops_comm,
    ops_debug,
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
from kernbench.kernels.crew import Crew
from kernbench.kernels.handover import Handovers, spins
from kernbench.kernels.plan import Frame, Launch, Plan
from kernbench.kernels.program_recorder import ProgramRecorder, SilentProgram, add_crossings
from kernbench.kernels.recorder import Recorder, Silent
from kernbench.kernels.sanitize import alignment  # noqa: F401  an emitter
from kernbench.kernels.slices import orders, synchronises, written_args
from kernbench.kernels.tape import Reader, Tapes
from kernbench.kernels.team import TeamSpace, complete, deadlock, run_together
from kernbench.kernels.ttir import Module, Pointer, Scalar
from kernbench.memory import AddressSpace
from kernbench.sim_engine.oplog import KernelRecord

if TYPE_CHECKING:
    from kernbench.kernels.device import Device, Target
    from kernbench.kernels.kernel import Kernel

CHUNK_ELEMENTS = 1 << 17
"""Elements of the largest block times programs that run together: what fits a core's cache. It is a constant, because
values may depend on it in their last bits, and no result may depend on the host's cache."""
STEPPED = 4
"""Times more where a loop with matrix products (flash attention) runs step by step: fewer, larger steps."""
MOST_PROGRAMS = 1 << 14
"""Programs that run together at most."""
MOST_DECIDING = 64 << 20
"""Bytes of each tensor of indices and sizes that are looked at to tell whether launches are alike."""

_plans: WeakKeyDictionary[Module, dict[tuple[int, sanitize.Checks | None], Prepared]] = WeakKeyDictionary()


@cache
def _keep_freed_memory() -> None:
    """Let the C library keep what launches free, rather than give it back to the system and fault it in again, page by
    page, for the next operation's result: that takes longer than most operations.

    glibc does so for blocks up to the size of the largest that it has seen freed, of at most 32 MiB.
    """
    np.empty((32 << 20) - (1 << 16), np.uint8)  # freed at once; never touched, it costs nothing


class Prepared:
    """A module compiled: its plan and what a launch asks of it."""

    def __init__(self, module: Module, num_stages: int, checks: sanitize.Checks | None = None) -> None:
        _keep_freed_memory()
        function = module.kernel
        looked_at: AbstractContextManager[object] = nullcontext()
        if checks is not None:
            from kernbench.kernels.sanitize.probes import probing

            looked_at = probing(checks)
        with looked_at, dumps.probing():
            self.plan: Plan = control.compile_function(function, module.functions, num_stages, taped=True)
        self.communicates = comm.communicates(module.functions.values())
        self.serial = self.communicates or synchronises(module.functions.values())
        """Whether programs take turns."""
        self.spins = self.serial and spins(module.functions.values())
        """Whether programs may find what others leave for them in memory."""
        self.ordered = orders(module.functions.values())
        """Whether atomics may order programs."""
        self.multiplies = any(op.name in ("tt.dot", "tt.dot_scaled") for op in function.walk())
        self.written = written_args(function)
        self.args = function.args
        self.converters = [_converter(arg.type) for arg in function.args]
        decides = frozenset(self.plan.deciding)
        self.deciding = [
            i
            for i, (arg, slot) in enumerate(zip(self.args, self.plan.args, strict=True))
            if slot in decides or isinstance(arg.type, Pointer)
        ]
        """Arguments that launches alike share."""
        once = dumps.current() is None and (checks is None or checks.shuffle is None)
        self.tapes = Tapes() if self.plan.repeats and not self.communicates and once else None

    def contents(self, args: Sequence[Any], space: AddressSpace) -> tuple[int, ...] | None:
        """Digests of the memory that decides what a launch does: launches alike share that too. None where it is too
        large to look at, not computed, or where the launch may also write data."""
        decide = self.plan.deciding_args
        if not decide:
            return ()
        data = {a.base for i in self.written if i not in decide and (a := space.find(int(args[i]))) is not None}
        found = [space.find(int(args[i])) for i in decide]
        if any(a is None or a.nbytes > MOST_DECIDING or a.base in data or a.invalid is not None for a in found):
            return None
        return tuple(a.digest() for a in found if a is not None)

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
    dumping = dumps.current()
    kept = (_plans if dumping is None else dumping.plans).setdefault(module, {})
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
    device: Device | None = None,
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
        device: whose team the programs may wait for, and with ``kernbench.language`` reach; None for nobody's.

    Raises:
        KernelError: the kernel uses an operation that KernBench does not run. Nothing has run then.
        KernelFault: an access out of bounds, with the source line.
        ValuesNeeded: without data, control flow or an address needs what an earlier launch did not compute.
    """
    del target
    checks = sanitize.current()
    prepared = prepare(kernel.module, kernel.num_stages, checks)
    recorder = Recorder()
    values = [convert(x) for convert, x in zip(prepared.converters, args, strict=True)]
    written = set()
    for i in prepared.written:
        owner = space.find(int(args[i]))
        if owner is not None:
            written.add(owner.base)
    launch = Launch(kernel.name, space, recorder, grid, kernel.num_stages, frozenset(written), values)
    if device is not None:
        launch.help = lambda crew: device.team.carry_out(device.member, crew)
    if prepared.communicates and device is not None:
        launch.party = device.team.join(device, grid)
        if checks is None or "race" not in checks.names:
            device.team.history = None  # what this launch orders, it would not know
        launch.space = cast("AddressSpace", TeamSpace(launch.party))
    together = 1 if prepared.serial else chunk or prepared.chunk(enable_data)
    shared = False  # with other ranks, whose accesses may be in the way of these
    if checks is not None:
        from kernbench.kernels.sanitize.team_races import concerns

        shared = concerns(checks, device, space, values)
    contents = None if prepared.tapes is None or shared else prepared.contents(args, space)
    if prepared.tapes is not None and contents is not None:
        numbers = tuple(values[i] for i in prepared.deciding)
        tape = prepared.tapes.find((grid, enable_data, together, contents), numbers, space)
        if isinstance(tape, Reader):
            launch.known, launch.recorder = tape, Silent()
            if checks is None:
                _run_again(prepared, launch, tape, values, enable_data)
            else:
                from kernbench.kernels.sanitize.watch import checked_again

                checked_again(
                    checks, launch, device, values, lambda: _run_again(prepared, launch, tape, values, enable_data)
                )
            return KernelRecord(kernel.name, grid, tape.tape.blocks, list(prepared.plan.lines))
        launch.tape = tape
    if prepared.spins:
        launch.handovers = Handovers(launch.party)
    order = np.arange(grid[0] * grid[1] * grid[2], dtype=np.int64)
    if checks is None:
        _run(prepared, launch, values, order, together, enable_data)
    else:
        from kernbench.kernels.sanitize.watch import checked

        checked(checks, prepared, launch, order, together, enable_data, values, _run, device)
    blocks = recorder.blocks()
    if launch.crossings:
        add_crossings(blocks, launch.crossings)
    if launch.tape is not None and prepared.tapes is not None:
        prepared.tapes.add(launch.tape, blocks)
    record = KernelRecord(kernel.name, grid, blocks, list(prepared.plan.lines))
    if launch.party is not None:
        complete(record, launch.party)
    return record


def _run(
    prepared: Prepared,
    launch: Launch,
    values: Sequence[Any],
    order: NDArray[np.int64],
    together: int,
    enable_data: bool,
) -> None:
    """Run programs by their numbers in the grid, ``together`` at a time, or in turns where they may wait for each
    other."""
    if prepared.serial:
        return _run_in_turns(prepared, launch, values, order, enable_data)
    plan, recorder = prepared.plan, launch.recorder
    with np.errstate(all="ignore"), workers.single_threaded_blas():
        for first in range(0, len(order), together):
            programs = order[first : first + together]
            recorder.begin(len(programs))
            v: list[Any] = [None] * plan.slots
            for slot, value in zip(plan.args, values, strict=True):
                v[slot] = value
            frame = Frame(launch, recorder, v, [()] * plan.dep_slots, len(programs), _pids(programs, launch.grid))
            if launch.tape is not None:
                launch.tape.begin(frame.count, frame.pids)
            plan.run(frame, enable_data)
            recorder.finish(programs)


def _run_in_turns(
    prepared: Prepared, launch: Launch, values: Sequence[Any], order: NDArray[np.int64], enable_data: bool
) -> None:
    """Run programs that may wait for each other, and for those of other ranks.

    Raises:
        KernelFault: some wait for what nobody will do; the message names them.
    """
    plan, party = prepared.plan, launch.party
    head = (-1, -1) if party is None else (party.sip, party.number)
    kept: dict[int, ProgramRecorder] = {}

    def program(number: int) -> None:
        one = np.array([number], np.int64)
        pids = _pids(one, launch.grid)
        mine, recorder = launch, None
        if launch.known is not None:
            mine = replace(launch, known=launch.known.of_program(number))
        else:
            recorder = ProgramRecorder(launch.recorder, (*head, number))
            if party is not None or launch.handovers is not None:
                kept[number] = recorder
            if launch.tape is not None and launch.tape.is_too_large():
                launch.tape = None
            if launch.tape is not None:
                mine = replace(launch, tape=launch.tape.of_program(pids))
        v: list[Any] = [None] * plan.slots
        for slot, value in zip(plan.args, values, strict=True):
            v[slot] = value
        frame = Frame(mine, recorder or SilentProgram(), v, [()] * plan.dep_slots, 1, pids)
        with np.errstate(all="ignore"):
            plan.run(frame, enable_data)
        if recorder is not None:
            recorder.finish(one)
        if mine.tape is None:
            launch.tape = None
        elif launch.tape is not None:
            launch.tape.nbytes += mine.tape.nbytes
        if launch.watch is not None:
            launch.watch.ended(number)

    crew = launch.crew = Crew(launch.name, order.tolist(), program, prepared.multiplies)
    if party is None:
        run_together([crew])
    if not crew.done:
        if launch.help is None:
            raise deadlock(crew)
        launch.tape = None  # what others do decides too
        launch.help(crew)
    if crew.error is not None:
        raise crew.error
    launch.crossings = kept


def _run_again(prepared: Prepared, launch: Launch, tape: Reader, values: Sequence[Any], enable_data: bool) -> None:
    """Run what a tape leaves to do."""
    plan = prepared.plan
    if prepared.serial:
        return _run_in_turns(prepared, launch, values, np.arange(len(tape.tape.chunks)), enable_data)
    with np.errstate(all="ignore"), workers.single_threaded_blas() if prepared.multiplies else nullcontext():
        for chunk in tape.chunks():
            v: list[Any] = [None] * plan.slots
            for slot, value in zip(plan.args, values, strict=True):
                v[slot] = value
            frame = Frame(launch, launch.recorder, v, [()] * plan.dep_slots, chunk.count, chunk.pids)
            plan.run(frame, enable_data)


def _converter(kind: Any) -> Callable[[int | float | bool], Any]:
    """From a launch's argument to what the executor holds for a value of its type."""
    if isinstance(kind, Pointer):
        return int
    assert isinstance(kind, Scalar)
    name = kind.name
    if name == "i1":
        return bool
    if name.startswith("i"):
        bits = ops_int.BITS[name]
        return lambda x: ops_int.wrap(int(x), bits)
    return lambda x: ops_float.scalar_argument(float(x), name)


def _pids(programs: NDArray[np.int64], grid: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Program ids along each axis: ints where all agree."""
    x, y, z = programs % grid[0], programs // grid[0] % grid[1], programs // (grid[0] * grid[1])
    return tuple(int(p[0]) if len(p) == 1 or grid[i] == 1 else p.astype(np.int32) for i, p in enumerate((x, y, z)))  # type: ignore[return-value]
