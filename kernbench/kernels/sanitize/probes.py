"""Steps that a checked plan has after its operations: do offsets wrap, and which one makes the first NaN or inf."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.descriptors import MARK
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.magnitude import beyond, makes
from kernbench.kernels.numerics import NARROW, rounded
from kernbench.kernels.ops_int import BITS, in_full
from kernbench.kernels.plan import CARRIER, Compiler, Frame, Probe, element, where
from kernbench.kernels.sanitize import Checks, NumericWarning
from kernbench.kernels.sanitize.alignment import alignment
from kernbench.kernels.sanitize.watch import coordinates
from kernbench.kernels.slices import needed_sources
from kernbench.kernels.ttir import Function, Op, Pointer, Tensor, Value
from kernbench.kernels.values import AxisSum
from kernbench.memory import Allocation

if TYPE_CHECKING:
    from kernbench.kernels.ops_memory import Access

_WIDE: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "arith.addi": ("+", lambda a, b: a + b),
    "arith.subi": ("-", lambda a, b: a - b),
    "arith.muli": ("*", lambda a, b: a * b),
    "arith.shli": ("<<", lambda a, b: a << b),
}
_LINEAR = frozenset(
    {*_WIDE, "arith.extsi", "arith.index_cast", "arith.select", "arith.minsi", "arith.maxsi", "arith.divsi", "tt.splat"}
    | {"tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans", "scf.for", "scf.if", "scf.while"}
)
"""Operations through which a wrapped offset reaches a pointer; behind others (``%``, ``&``, shifts) it is a hash."""
_MAKERS = frozenset(
    {"tt.dot", "tt.reduce", "tt.scan", "tt.precise_divf", "tt.precise_sqrt", "tt.extern_elementwise", "tt.clampf"}
    | {"tt.fp_to_fp"}
)
PROBED = frozenset({"nan", "overflow", "alignment"})
"""Checks that have steps of their own."""
_WHOLE = frozenset({"tt.dot", "tt.reduce", "tt.scan"})
"""Operations whose elements depend on many elements of their operands."""
_told: WeakSet[Allocation] = WeakSet()
"""Memory whose NaNs somebody was told of: who reads them on is not the one to look at."""


@contextmanager
def probing(checks: Checks | None) -> Iterator[None]:
    """Plans compiled meanwhile have the steps that ``checks`` ask for."""
    before = Probe.on
    Probe.on = None if checks is None or not checks.names & PROBED else lambda c, op: attach(c, op, checks)
    try:
        yield
    finally:
        Probe.on = before


def attach(c: Compiler, op: Op, checks: Checks) -> None:
    """Add what an operation needs."""
    if "overflow" in checks.names and op.name in _WIDE and op.results[0] in offsets(c.function):
        overflow(c, op)
    if "alignment" in checks.names and op.name == MARK:
        alignment(c, op)
    if "nan" not in checks.names:
        return
    if op.name == "tt.store" and _is_float(op.operands[1]):
        store(c, op)
    elif op.results and _is_float(op.results[0]):
        if op.name in _MAKERS or (op.name.startswith(("arith.", "math.")) and op.name not in _CARRIERS):
            origin(c, op)
        elif op.name == "scf.for" and any(o.name == "tt.dot" for o in op.regions[0].entry.ops):
            fused(c, op)


_CARRIERS = frozenset({"arith.constant", "arith.select", "arith.bitcast", "arith.extf"})


def _is_float(value: Value) -> bool:
    kind = value.type.elem if isinstance(value.type, Tensor) else value.type
    return getattr(kind, "name", "").startswith(("f", "bf"))


@lru_cache(64)
def offsets(function: Function) -> frozenset[Value]:
    """Integers that pointers are moved by, and those they are computed from."""
    maker = {r: op for op in function.walk() for r in op.results}
    sources = needed_sources(function)
    pending = [v for op in function.walk() if op.name == "tt.addptr" for v in op.operands[1:]]
    found: set[Value] = set()
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        if value not in maker or maker[value].name in _LINEAR:
            pending += sources.get(value, ())
    return frozenset(found)


@lru_cache(64)
def reaches(function: Function, value: Value) -> frozenset[Value]:
    """All values that one is computed from, and itself."""
    sources = needed_sources(function)
    pending, found = [value], set()
    while pending:
        at = pending.pop()
        if at not in found:
            found.add(at)
            pending += sources.get(at, ())
    return frozenset(found)


def overflow(c: Compiler, op: Op) -> None:
    """Fault where an offset does not fit its type."""
    name = element(op.results[0].type)
    if name not in ("i8", "i16", "i32"):
        return
    sign, fn = _WIDE[op.name]
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])

    def step(f: Frame) -> None:
        made = f.v[out]
        if isinstance(made, AxisSum):
            return
        x, y = (in_full(f.v[s], np.int64) for s in (a, b))
        x, y = (v.astype(np.int64) if isinstance(v, np.ndarray) else int(v) for v in (x, y))
        wide = fn(x, y)
        bad = np.asarray(wide != made)
        if not bad.any():
            return
        at = np.argwhere(bad)[0] if bad.ndim else np.zeros(0, np.int64)
        left, right, exact = (int(np.broadcast_to(v, bad.shape)[tuple(at)]) for v in (x, y, wide))
        program = f.program(int(at[0]) if len(at) and bad.shape[0] == f.count else 0)
        raise KernelFault(
            f"{where(op.loc)}: kernel '{f.launch.name}', program {program}: an offset overflows: {left} {sign} {right} "
            f"= {exact} does not fit in {BITS[name]} bits and wraps to {int(np.asarray(made)[tuple(at)])}. "
            "Make one side 64 bits wide first, as in pid.to(tl.int64)."
        )

    c.check(step, (*op.operands, *op.results))
    if op.results[0] in c.needed:
        c.code.timing.append(step)


def origin(c: Compiler, op: Op) -> None:
    """Remember in which programs an operation makes a NaN, or an inf of finite operands."""
    slots = [c.slot(v) for v in op.operands if _is_float(v)]
    out, whole = c.slot(op.results[0]), op.name in _WHOLE

    def step(f: Frame) -> None:
        x = f.v[out]
        if not beyond(x) or f.launch.watch is None:
            return
        x = np.asarray(x)
        operands = [np.asarray(f.v[s]) for s in slots]
        nan, inf = (True, True) if whole else makes(x, operands)
        if nan:
            note(f, "NaN", np.isnan(x), [np.isnan(v) for v in operands], operands)
        if inf:
            note(f, "inf", np.isinf(x), [~np.isfinite(v) for v in operands], operands)

    def note(f: Frame, kind: str, made: Any, had: list[Any], operands: list[Any]) -> None:
        if not made.any():
            return
        if whole:
            made, had = rows(made, f), [rows(h, f) for h in had]
        for h in had:
            made = made & ~h
        if made.any():
            remember(f, op, kind, made, () if whole else operands)

    c.check(step)


def rows(x: NDArray[np.bool_], f: Frame) -> NDArray[np.bool_]:
    """bool[P or 1]: programs with any."""
    return np.asarray(x.reshape(len(x), -1).any(axis=1)) if x.ndim else x.reshape(1)


def remember(f: Frame, op: Op, kind: str, made: NDArray[np.bool_], operands: Sequence[NDArray[Any]] = ()) -> None:
    """Write down the first element of each program that has one, and what an elementwise operation made it of."""
    watch = f.launch.watch
    shape = made.shape or (1,)
    made = made.reshape(shape[0], -1)
    numbers = watch.programs(f)
    which = np.flatnonzero(made.any(axis=1))
    at = made[which].argmax(axis=1)
    place = (which, *np.unravel_index(at, shape[1:])) if len(shape) > 1 else (which,)
    of = [np.broadcast_to(v, shape)[place] for v in operands]
    if len(made) != f.count:  # all programs make the same
        at, of = np.repeat(at, f.count), [np.repeat(v, f.count) for v in of]
    else:
        numbers = numbers[which]
    watch.origins.add(op, kind, numbers, at, of)


def fused(c: Compiler, op: Op) -> None:
    """The same for a loop that ran as one matrix product of what its loads read."""
    body = op.regions[0].entry.ops
    dot = next(o for o in body if o.name == "tt.dot")
    pairs = [(c.slot(s), c.slot(r)) for s, r in zip(op.operands[3:], op.results, strict=True) if _is_float(r)]

    def step(f: Frame) -> None:
        watch = f.launch.watch
        if watch is None or not any(beyond(f.v[r]) for _, r in pairs):
            return
        read = [(o, found) for o in body if o.name == "tt.load" for found in watch.fused.get(o, {}).values()]
        if not read:
            return
        for o, allocation in read:
            name = element(o.results[0].type)
            storage = NARROW[name][1] if name in NARROW else CARRIER[name]
            values = allocation.bytes[: allocation.nbytes // storage.itemsize * storage.itemsize].view(storage)
            if not np.isfinite(values.astype(CARRIER[name])).all():
                return
        for start, result in pairs:
            x = np.asarray(f.v[result])
            if not beyond(f.v[start]):
                for kind, made in (("NaN", np.isnan(x)), ("inf", np.isinf(x))):
                    if made.any():
                        remember(f, dot, kind, made)

    c.check(step)


def store(c: Compiler, op: Op) -> None:
    """Report the origin of a NaN or inf that reaches memory."""
    from kernbench.kernels.ops_memory import access_of

    a = access_of(c, op, 2)
    value = op.operands[1]
    slot, name = c.slot(value), element(value.type)
    most = float(ml_dtypes.finfo(NARROW[name][1]).max) if name in NARROW else None
    function = c.function
    arguments, sources = Arguments(c), reaches(function, value)
    inputs = [
        (o, c.argument(o.operands[0]))
        for o in function.walk()
        if o.name == "tt.load" and o.results[0] in sources and _is_float(o.results[0])
    ]

    def step(f: Frame) -> None:
        watch = f.launch.watch
        x = f.v[slot]
        if watch is None or not beyond(x, most):
            return
        w = a.window(f) if f.launch.known is None else f.launch.known.latest
        keep = w.kept()
        x = np.asarray(x)
        x = x.reshape(-1, 1) if a.scalar else x.reshape((len(x) if x.ndim else 1, *x.shape[1:]))
        after = rounded(x, name) if name in NARROW else x
        shape = (max(len(keep), len(x)), *a.dims)
        bad = np.broadcast_to(~np.isfinite(after), shape)
        if w.masked():
            bad = bad & keep.reshape((len(keep), *(a.dims if w.dims != a.dims else keep.shape[1:])))
        bad = bad.reshape(shape[0], -1)
        programs = np.flatnonzero(bad.any(axis=1))
        if not len(programs):
            return
        lanes = bad[programs].argmax(axis=1)
        place = (programs, *np.unravel_index(lanes, a.dims))
        too_large, nan = (np.broadcast_to(m(v), shape)[place] for m, v in ((np.isfinite, x), (np.isnan, after)))
        numbers = watch.programs(f)[programs if shape[0] == f.count else np.zeros_like(programs)]
        origins = watch.origins.first(sources, numbers)
        if any(source is None and nan[i] and not too_large[i] for i, source in enumerate(origins)):
            brought(f, a, inputs, arguments)
        for i, source in enumerate(origins):
            if source is None and too_large[i]:
                source = op
            if source is None or source in watch.warned:
                continue
            watch.warned.add(source)
            tell(f, a, arguments)
            lane, number = int(lanes[i]), int(numbers[i])
            reason = f"a finite value is too large for {name} and becomes inf (element {lane})"
            if source is not op:
                reason = watch.origins.describe(source, number)
            text = (
                f"{where(source.loc)}: kernel '{f.launch.name}', program {coordinates(number, watch.grid)}: {reason}; "
                f"it reaches '{a.argument or 'memory'}' at {where(op.loc)}, element {lane} of the stored block."
            )
            if watch.checks.nan == "fault":
                raise KernelFault(text)
            warnings.warn(text, NumericWarning, stacklevel=2)

    c.check(step)


class Arguments:
    """The memory that pointer arguments of a kernel name."""

    def __init__(self, c: Compiler) -> None:
        self._numbers = {arg.name: i for i, arg in enumerate(c.function.args) if isinstance(arg.type, Pointer)}

    def memory(self, f: Frame, name: str) -> tuple[Allocation, int] | None:
        """The allocation that an argument lies in, and where in it."""
        if name not in self._numbers:
            return None
        address = f.launch.arguments[self._numbers[name]]
        owner = f.launch.space.find(address)
        return None if owner is None else (owner, address - owner.base)


def brought(f: Frame, a: Access, inputs: Sequence[tuple[Op, str]], arguments: Arguments) -> None:
    """Tell that a NaN which a store puts into memory was in an argument already: once, and not where an earlier launch
    was told to make it. Never a fault, since this kernel does not make it.

    Args:
        inputs: the loads that the stored value comes from, and the argument that each reads.
    """
    watch = f.launch.watch
    if a.op in watch.warned:
        return
    for load, name in inputs:
        found = arguments.memory(f, name)
        if found is None or found[0].base in f.launch.written:
            continue
        owner, offset = found
        kind = element(load.results[0].type)
        storage = np.dtype(NARROW[kind][1] if kind in NARROW else CARRIER[kind])
        held = owner.bytes[offset:]
        bad = np.isnan(held[: held.nbytes // storage.itemsize * storage.itemsize].view(storage))
        if bad.any():
            watch.warned.add(a.op)
            if owner not in _told:
                warnings.warn(
                    f"{where(load.loc)}: kernel '{f.launch.name}': a NaN comes in: element {int(bad.argmax())} of "
                    f"'{name}' was one before the launch; it reaches '{a.argument or 'memory'}' at "
                    f"{where(a.op.loc)}. Look at who wrote it.",
                    NumericWarning,
                    stacklevel=2,
                )
            tell(f, a, arguments)
            return


def tell(f: Frame, a: Access, arguments: Arguments) -> None:
    """Remember that the NaNs a store writes were reported."""
    found = arguments.memory(f, a.argument)
    if found is not None:
        _told.add(found[0])
