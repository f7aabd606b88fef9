"""Looking at a kernel's values while it runs: the block that a variable holds at a line.

::

    with dump("17:numerator", programs=[0]) as found:
        softmax_kernel[grid](...)
    print(found[0].value)

Triton keeps the names of Python variables since 3.6; before, and where it merged two variables, the value that the line
computes last is taken. A loop that would run as one matrix product runs step by step while one of its values is dumped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelError
from kernbench.kernels.plan import Compiler, Frame, Launch, Probe, element, shape_of
from kernbench.kernels.ttir import Function, Op, Pointer, Tensor, Value
from kernbench.kernels.values import AxisSum, Mask


class DumpError(KernelError):
    """Something to dump that the kernel does not have."""


@dataclass(frozen=True)
class Spot:
    """A variable at a line."""

    line: int
    name: str
    file: str = ""
    """End of the file's path; empty for any."""

    @classmethod
    def parse(cls, text: str) -> Spot:
        """``17:numerator`` or ``softmax.py:17:numerator``.

        Raises:
            DumpError: another form.
        """
        found = re.fullmatch(r"(?:(.+):)?(\d+):([A-Za-z_]\w*)", text.strip())
        if found is None:
            raise DumpError(f"cannot dump '{text}': expected LINE:NAME such as 17:numerator, or FILE.py:LINE:NAME")
        return cls(int(found[2]), found[3], found[1] or "")

    def __str__(self) -> str:
        return f"{self.file + ':' if self.file else ''}{self.line}:{self.name}"


@dataclass(frozen=True, eq=False)
class Dumped:
    """One value of one program."""

    spot: Spot
    kernel: str
    where: str
    """``file:line`` that computed it."""
    program: tuple[int, ...]
    """Its id along x, y, z."""
    iteration: int
    """How often the program had been there before."""
    dtype: str
    """Element type in the kernel; f16, bf16 and f8 values are held as float32."""
    value: NDArray[Any]
    """The block. Of pointers, offsets in elements from the start of the array they point into."""
    points_into: str = ""
    """Of pointers: the argument."""
    launch: Any = None
    """The launch it belongs to; the same object for all values of one launch."""


@dataclass(eq=False)
class Dump:
    """What is being dumped."""

    spots: tuple[Spot, ...]
    programs: frozenset[int | tuple[int, ...]] | None
    iterations: frozenset[int] | None
    found: list[Dumped] = field(default_factory=list)
    matched: set[Spot] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    """``line:name`` of what could have been dumped."""
    plans: dict[Any, dict[Any, Any]] = field(default_factory=dict)
    """Module -> its compiled forms with the steps of this dump."""
    times: dict[tuple[Launch, Op, tuple[int, ...]], int] = field(default_factory=dict)

    def wants(self, program: tuple[int, ...], grid: tuple[int, int, int]) -> bool:
        if self.programs is None:
            return True
        number = program[0] + grid[0] * (program[1] + grid[1] * program[2])
        return number in self.programs or program in self.programs


_current: Dump | None = None


def current() -> Dump | None:
    """What is dumped now, None for nothing."""
    return _current


@contextmanager
def dump(
    *spots: str | Spot,
    programs: Iterable[int | tuple[int, int, int]] | None = (0,),
    iterations: Iterable[int] | None = None,
) -> Iterator[list[Dumped]]:
    """Collect values of kernels launched in the ``with`` block.

    Args:
        spots: ``line:name`` each.
        programs: by number in the grid or id along x, y, z; None for all.
        iterations: how often a program must have been there before; None for each time.

    Raises:
        DumpError: at the end, where kernels ran and none of them has such a variable.
    """
    global _current
    chosen = tuple(s if isinstance(s, Spot) else Spot.parse(s) for s in spots)
    made = Dump(
        chosen,
        None if programs is None else frozenset(programs),
        None if iterations is None else frozenset(iterations),
    )
    before, _current = _current, made
    try:
        yield made.found
    finally:
        _current = before
    missing = [spot for spot in made.spots if spot not in made.matched]
    if missing and made.seen:
        spot = missing[0]
        known = sorted(made.seen, key=lambda s: (abs(int(s.partition(":")[0]) - spot.line), s))[:12]
        raise DumpError(
            f"no kernel that ran has a variable '{spot.name}' at line {spot.line}, or it holds a constant there; "
            f"near by are {', '.join(known)}"
        )


@contextmanager
def probing() -> Iterator[None]:
    """Plans compiled meanwhile have the steps that the current dump asks for, after those of the checks."""
    wanted = _current
    if wanted is None:
        yield
        return
    outer, stepwise = Probe.on, Probe.stepwise
    targets: dict[Function, dict[Op, list[tuple[Spot, Value]]]] = {}

    def of(function: Function) -> dict[Op, list[tuple[Spot, Value]]]:
        if function not in targets:
            targets[function] = _targets(wanted, function)
        return targets[function]

    def on(c: Compiler, op: Op) -> None:
        c.repeats = False  # a launch that read a tape would not pass here
        if outer is not None:
            outer(c, op)
        for spot, value in of(c.function).get(op, ()):
            _attach(c, op, spot, value, wanted)

    def inside(c: Compiler, loop: Op) -> bool:
        chosen = of(c.function)
        return any(op in chosen for op in loop.walk() if op is not loop)

    Probe.on, Probe.stepwise = on, inside
    try:
        yield
    finally:
        Probe.on, Probe.stepwise = outer, stepwise


def variable(value: Value) -> str:
    """The Python variable that a value's name comes from: ``off`` of ``%off_4``; empty where it has none."""
    name = re.sub(r"(_\d+)?(#\d+)?$", "", value.name.lstrip("%"))
    return "" if name.isdigit() else name


def _targets(wanted: Dump, function: Function) -> dict[Op, list[tuple[Spot, Value]]]:
    """Operations after which something is dumped."""
    made: dict[Op, list[tuple[Spot, Value]]] = {}
    ops = [op for op in function.walk() if op.results and op.name != "arith.constant"]
    named = [(op, r, variable(r)) for op in ops for r in op.results]
    wanted.seen |= {f"{op.loc[1]}:{name}" for op, _, name in named if name and op.loc[1]}
    for spot in wanted.spots:
        here = [(op, r, name) for op, r, name in named if op.loc[0].endswith(spot.file)]
        same = [(op, r) for op, r, name in here if name == spot.name and op.loc[1] <= spot.line]
        line = max((op.loc[1] for op, _ in same), default=0)
        found = [(op, r) for op, r in same if op.loc[1] == line]
        if not found:
            before = sorted({op.loc[1] for op, _, _ in here if op.loc[1] <= spot.line}, reverse=True)
            line = next((n for n in before if _assigns(here, replace(spot, line=n))), 0)
            found = [(op, r) for op, r, _ in here if op.loc[1] == line]
        if found:
            op, value = found[-1]
            made.setdefault(op, []).append((spot, value))
            wanted.matched.add(spot)
    return made


def _assigns(here: list[tuple[Op, Value, str]], spot: Spot) -> bool:
    """Whether the source of a line assigns the variable."""
    import linecache

    files = {op.loc[0] for op, _, _ in here if op.loc[1] == spot.line}
    pattern = rf"\s*{re.escape(spot.name)}\s*([-+*/|&^%@]|//|<<|>>)?=[^=]"
    return any(re.match(pattern, linecache.getline(file, spot.line)) for file in files)


def _attach(c: Compiler, op: Op, spot: Spot, value: Value, wanted: Dump) -> None:
    slot, kind = c.slot(value), value.type
    shape = shape_of(kind)
    pointer = kind.elem if isinstance(kind, Tensor) else kind
    argument = c.argument(value) if isinstance(pointer, Pointer) else ""
    width = _width(pointer) if isinstance(pointer, Pointer) else 0
    where = f"{PurePath(op.loc[0]).name}:{op.loc[1]}"

    def step(f: Frame) -> None:
        for p in range(f.count):
            program = f.program(p)
            if not wanted.wants(program, f.launch.grid):
                continue
            key = (f.launch, op, program)
            time = wanted.times[key] = wanted.times.get(key, -1) + 1
            if wanted.iterations is not None and time not in wanted.iterations:
                continue
            block = _block(f.v[slot], p, f.count, shape)
            if width:
                owner = f.launch.space.find(int(block.flat[0]))
                block = (block - (owner.base if owner is not None else 0)) // width
            dtype = str(pointer) if width else element(kind)
            wanted.found.append(Dumped(spot, f.launch.name, where, program, time, dtype, block, argument, f.launch))

    c.code.full.append(step)


def _width(pointer: Pointer) -> int:
    from kernbench.kernels.ops_int import itemsize

    return itemsize(element(pointer.pointee))


def _block(x: Any, p: int, count: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """One program's part of a value, in full."""
    full = x.dense() if isinstance(x, AxisSum) else x.full() if isinstance(x, Mask) else np.asarray(x)
    if full.ndim == 0:
        return np.full(shape, full)
    row = full[p if len(full) == count else 0]
    return np.array(np.broadcast_to(row if shape or row.ndim == 0 else row.reshape(()), shape))
