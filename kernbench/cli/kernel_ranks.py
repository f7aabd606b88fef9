"""One kernel whose programs talk to those of other ranks (:mod:`kernbench.language`), tried on every rank of a machine.

What flags, inboxes and remote tensors are for shows in the kernel: what it puts to, copies to, signals or waits for is
symmetric memory, and starts as zeros. How large arrays are shows in a first run on large ones, of whose accesses the
record says how far they reach.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from kernbench.cli import kernel_files as files
from kernbench.cli.kernel_calls import HostCall
from kernbench.cli.kernel_files import KernelFileError
from kernbench.cli.kernel_inputs import Guess, Inputs
from kernbench.cli.kernel_roles import flow_of
from kernbench.cli.kernel_verify import Verdict
from kernbench.kernels import Kernel, sanitize
from kernbench.kernels.slices import pointer_origins
from kernbench.memory import DType, dtype
from kernbench.runtime_api.footprint import reaches

LANGUAGE = "kernbench.language"
POINTERS = {"put": (0,), "remote": (0,), "copy": (0, 1), "signal": (0,), "wait": (0,), "put_signal": (0, 2)}
INTEGERS = {
    "put": (2,), "remote": (1,), "copy": (2, 3), "signal": (1, 2), "wait": (1,), "put_signal": (3, 4), "send": (1, 2),
    "recv": (2, 3),
}  # fmt: skip
"""Arguments of its functions by what they are."""
REACHED = ("kb.remote", "kb.copy", "kb.signal", "kb.wait")
FLAGS = ("kb.signal", "kb.wait")
ROOM = 256 * 2**20
"""Bytes of an array whose size is not known yet; less where a machine has less. The host gives memory for what is
touched of it."""
FEW = 4
"""Programs along an axis of which the kernel does not ask how long it is."""
NOT_COMPARED = (
    "Triton's interpreter knows no other ranks. To compare, launch it from a script or a bench that spawns ranks "
    "(docs/device-communication.md)"
)


def communicates(function: Any) -> bool:
    """Whether a ``@triton.jit`` function calls ``kernbench.language`` itself."""
    return any(True for _ in _calls(function))


def _calls(function: Any) -> Any:
    """(name, call) of each use of ``kernbench.language``."""
    names = function.fn.__globals__
    for call in (n for n in flow_of(function.fn).nodes if isinstance(n, ast.Call)):
        of = call.func
        if isinstance(of, ast.Attribute) and isinstance(of.value, ast.Name):
            if getattr(names.get(of.value.id), "__name__", "") == LANGUAGE:
                yield of.attr, call
        elif isinstance(of, ast.Name) and getattr(names.get(of.id), "__module__", "") == LANGUAGE:
            yield of.id, call


class Ranks:
    """A kernel with what is known of its arguments.

    Args:
        kernel: the ``@triton.jit`` function, perhaps under ``heuristics``.
        given: arguments that are known.
        kind: element type of floating-point pointers.
        call: a launch of it in the file's host code.
    """

    def __init__(self, kernel: Any, given: Mapping[str, Any], kind: str, call: HostCall | None) -> None:
        self.kernel, self.function, self.given = kernel, files.function_of(kernel), dict(given)
        self.guess = Guess(kernel, given, kind, call=call)
        self._correct_roles()
        guess = self.guess
        if missing := sorted(n for n in guess.strides if n not in given):
            raise KernelFileError(
                f"{self.function.__name__} talks to other ranks, and what its strides are cannot be tried out: say "
                + " ".join(f"--arg {n}=..." for n in missing)
            )
        guess.compile()
        self.meta = {**guess.arguments(), **{n: given[n] for n in guess.strides}}
        lowered = guess.lower(self.meta)
        if self._flags_are_integers(lowered):
            self.meta = {**guess.arguments(), **{n: given[n] for n in guess.strides}}
            lowered = guess.lower(self.meta)
        self.lowered: Kernel = lowered
        self.symmetric = _reached(lowered, REACHED)

    def _correct_roles(self) -> None:
        """Let calls of ``kernbench.language`` say what parameters are."""
        roles, flow = self.guess.roles, flow_of(self.function.fn)
        for name, call in _calls(self.function):
            for at in POINTERS.get(name, ()):
                for base in flow.bases(call.args[at])[:1] if len(call.args) > at else ():
                    for others in (roles.integers, roles.floats):
                        if base in others:
                            others.remove(base)
                            roles.pointers.append(base)
            for at in INTEGERS.get(name, ()):
                for node in ast.walk(call.args[at]) if len(call.args) > at else ():
                    if isinstance(node, ast.Name) and node.id in roles.floats:
                        roles.floats.remove(node.id)
                        roles.integers.append(node.id)

    def _flags_are_integers(self, lowered: Kernel) -> bool:
        """Whether the type of a flag had to be corrected."""
        changed = False
        for name in _reached(lowered, FLAGS):
            kind = self.guess.pointers[name]
            if isinstance(kind, DType) and kind.is_floating_point and name not in self.given:
                self.guess.pointers[name] = dtype("i32")
                changed = True
        return changed

    def grid(self, pes: int) -> tuple[int, ...]:
        """Sizes where nobody said any."""
        roles = self.guess.roles
        first = pes if roles.persistent else min(FEW, pes)
        sizes = [first if axis == 0 else 2 for axis in range(max(roles.axes, default=-1) + 1)] or [1]
        return (1,) if int(np.prod(sizes)) > pes else tuple(sizes)

    def room(self, capacity: int) -> dict[str, tuple[int, DType]]:
        """Elements and type of each array while sizes are not known."""
        kinds = {
            n: k if isinstance(k, DType) else dtype(k.dtype) for n, k in self.guess.pointers.items() if k is not None
        }
        return {n: (min(ROOM, capacity // (4 * len(kinds))) // k.itemsize, k) for n, k in kinds.items()}

    def arrays(self, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What each pointer's array holds on a rank."""
        made: dict[str, np.ndarray] = {}
        for name, kind in self.guess.pointers.items():
            if kind is None:
                continue
            if not isinstance(kind, DType):
                made[name] = np.array(kind)
                continue
            if kind.is_floating_point and name not in self.symmetric:
                made[name] = rng.standard_normal(sizes[name]).astype(kind.storage)
            else:
                made[name] = np.zeros(sizes[name], kind.storage)
        return made


def _reached(lowered: Kernel, names: tuple[str, ...]) -> set[str]:
    """Pointer arguments that operations of these names go through."""
    origins = pointer_origins(lowered.function)
    found = [origins.get(op.operands[0], set()) for op in lowered.function.walk() if op.name in names]
    return {lowered.arg_names[i] for places in found for i in places}


def _launch(ctx: Any, ranks: Ranks, grid: tuple[int, ...], arrays: Sequence[dict[str, np.ndarray]]) -> Any:
    """Launch on every rank. Returns what the arrays of rank 0 hold then."""
    held: dict[str, np.ndarray] = {}

    def worker(rank: int) -> None:
        ctx.distributed.init_process_group()
        tensors = {}
        for name, values in arrays[rank].items():
            make = ctx.distributed.symmetric_memory.empty if name in ranks.symmetric else ctx.empty
            tensors[name] = make(values.shape, dtype=dtype(values.dtype).name, name=name)
            tensors[name].copy_(ctx.from_numpy(values))
        ctx.distributed.barrier()
        ranks.kernel[grid](**{**ranks.meta, **tensors})
        ctx.distributed.barrier()
        if rank == 0:
            held.update((name, tensor.numpy()) for name, tensor in tensors.items())

    ctx.multiprocessing.spawn(worker, nprocs=len(arrays))
    return held


def _sizes(ctx: Any, ranks: Ranks, grid: tuple[int, ...]) -> dict[str, int]:
    """How many elements of each array any rank reaches."""
    room = ranks.room(ctx.sips[0].space.capacity)
    places: dict[int, dict[str, tuple[int, int]]] = {}

    def worker(rank: int) -> None:
        ctx.distributed.init_process_group()
        tensors = {}
        for name, (count, kind) in room.items():
            make = ctx.distributed.symmetric_memory.empty if name in ranks.symmetric else ctx.empty
            tensors[name] = make(count, dtype=kind.name, name=name)
        places[rank] = {name: (t.data_ptr(), t.nbytes) for name, t in tensors.items()}
        ctx.distributed.barrier()
        ranks.kernel[grid](**{**ranks.meta, **tensors})
        ctx.distributed.barrier()

    ctx.multiprocessing.spawn(worker, nprocs=ctx.ahbm.device_count())
    reach = dict.fromkeys(room, 1)
    for rank, commands in enumerate(ctx.engine.log.commands):
        for end in (e for c in commands if hasattr(c, "kernel") for e in reaches(c.kernel)):
            for name, (start, nbytes) in places.get(rank, {}).items():
                inside = end[(end > start) & (end <= start + nbytes)]
                reach[name] = max(reach[name], int(inside.max(initial=start)) - start)
    return {name: -(-nbytes // room[name][1].itemsize) for name, nbytes in reach.items()}


def run(ran: Any, kernel: Any, given: Mapping[str, Any], call: HostCall | None, options: Any, machine: Any) -> Any:
    """Try a kernel on all ranks of the machine.

    Args:
        ran: what to fill in, a :class:`kernbench.cli.kernel_run.Ran`.
        given: arguments that are known.
        options: what the command line says.
        machine: opens the context.

    Raises:
        KernelFileError: the kernel does not compile with what is made up, or reaches further than arrays go.
    """
    from kernbench.cli.kernel_run import Launched
    from kernbench.runtime_api.multiprocessing import SpawnException

    ranks = Ranks(kernel, given, options.kind, call)
    name = ranks.function.__name__
    with machine() as ctx, sanitize.enabled(()):
        count = ctx.ahbm.device_count()
        grid = tuple(files.grid(options.grid, ranks.meta) if options.grid else ranks.grid(ctx.target.pes))
        try:
            sizes = _sizes(ctx, ranks, grid)
        except SpawnException as error:
            ran.faults += dict.fromkeys(map(str, error.errors.values()))
            inputs = Inputs(ranks.meta, _origin(ranks), grid=grid)
            ran.launches = [Launched(name, grid, _numbers(ranks), {}, inputs)]
            return ran
    before = [ranks.arrays(sizes, np.random.default_rng([options.seed, rank])) for rank in range(count)]
    inputs = Inputs({**ranks.meta, **before[0]}, _origin(ranks), grid=grid)
    ran.launches = [Launched(name, grid, {**_numbers(ranks), **before[0]}, {}, inputs)]
    for checked in (True, False) if options.check else (False,):
        with machine() as ctx, warnings.catch_warnings(record=True) as caught, options.dumping() as dumped:
            warnings.simplefilter("always")
            try:
                with sanitize.enabled() if checked else nullcontext():
                    after = _launch(ctx, ranks, grid, before)
            except SpawnException as error:
                ran.faults += [text for e in error.errors.values() if (text := str(e)) not in ran.faults]
                continue
            ran.notes += [str(w.message) for w in caught if issubclass(w.category, sanitize.NumericWarning)]
            ran.timeline, ran.tcm, ran.tcm_capacity = ctx.timeline(), ranks.lowered.tcm, ctx.target.tcm_capacity
            ran.records = [c.kernel for cs in ctx.engine.log.commands for c in cs if hasattr(c, "kernel")]
            ran.records = [record for record in ran.records if record.name == name]
            ran.dumped = list(dumped)
            ran.launches[0].after, ran.launches[0].verdict = after, Verdict("", NOT_COMPARED)
            where = f"ran on {count} ranks, of which rank 0's arrays are shown"
            ran.notes.append(where if count > 1 else "ran on one rank, its own neighbour: -t ahbm-4sip has four")
            break
    return ran


def _numbers(ranks: Ranks) -> dict[str, Any]:
    return {n: v for n, v in ranks.meta.items() if n not in ranks.guess.pointers}


def _origin(ranks: Ranks) -> dict[str, str]:
    return {**ranks.guess.origin, **dict.fromkeys(ranks.symmetric - set(ranks.given), "symmetric, zeros")}
