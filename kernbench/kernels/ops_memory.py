"""Loads, stores and atomics: bounds, bytes, and the rows they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import handover
from kernbench.kernels.atomics import apply_cas, apply_rmw
from kernbench.kernels.describe import describe
from kernbench.kernels.endless import Endless
from kernbench.kernels.errors import KernelFault, ValuesNeeded
from kernbench.kernels.numerics import NARROW
from kernbench.kernels.ops_int import in_full, itemsize
from kernbench.kernels.ops_shape import one
from kernbench.kernels.plan import (
    CARRIER,
    Compiler,
    Frame,
    element,
    emits,
    join,
    record_dtype,
    shape_of,
    unsupported,
    where,
)
from kernbench.kernels.provenance import parameters
from kernbench.kernels.recorder import Columns, Deps, Layout, RowKind
from kernbench.kernels.team import real
from kernbench.kernels.ttir import Op, Pointer, Tensor
from kernbench.kernels.values import uniform
from kernbench.kernels.window import Owners, Window, owners, window
from kernbench.memory import Allocation
from kernbench.sim_engine.oplog import OpKind


@dataclass(frozen=True, eq=False)
class Access:
    """The static side of one memory operation."""

    op: Op
    dims: tuple[int, ...]
    """The block's shape; ``(1,)`` for a scalar."""
    scalar: bool
    name: str
    """Element type."""
    itemsize: int
    storage: np.dtype
    carrier: np.dtype
    argument: str
    """The parameter whose memory this is, where known."""
    pointer: int
    mask: int
    """Slots; -1 for no mask."""
    homes: tuple[int, ...] = ()
    """Numbers of the parameters that the pointer is an offset from; empty where it may reach any memory."""

    def window(self, f: Frame, trips: Any = None) -> Window:
        mask = None if self.mask < 0 else f.v[self.mask]
        return window(f.v[self.pointer], mask, self.dims, self.itemsize, trips)

    def owners(self, f: Frame, w: Window) -> Owners:
        """Whose bytes they are.

        Raises:
            KernelFault: an element is outside every live allocation, reaches over the end of one, or lies in another
                one than the pointer's own.
        """
        try:
            found = owners(f.launch.space, w)
        except LookupError as missed:
            raise self._fault(f, w, int(missed.args[0])) from None
        for members, owner in found:
            if not self.at_home(f, owner):
                first = int(np.flatnonzero(w.active())[0]) if members is None else int(members[0])
                raise self._fault(f, w, first)
        if f.launch.watch is not None:
            f.launch.watch.access(f, self, w, found)
        return found

    def at_home(self, f: Frame, owner: Allocation) -> bool:
        """Whether an allocation is one that the pointer may reach."""
        given = f.launch.arguments
        if not self.homes or not given:
            return True
        own = real(owner)  # another rank's is at the same address
        return any(own.base <= given[home] < own.end for home in self.homes)

    def _fault(self, f: Frame, w: Window, program: int) -> KernelFault:
        one_program = w.select(np.array([program]))
        low, high = one_program.reach()
        address, size = int(low[0]), int(high[0] - low[0])
        space = f.launch.space
        owner = space.find(address)
        own = [space.find(f.launch.arguments[home]) for home in self.homes] if f.launch.arguments else []
        if len(own) == 1:
            owner = own[0] or owner
        described = space.describe(address, size) if owner is None else owner.describe(address, size)
        if owner is not None and not self.at_home(f, owner):
            names = " or ".join(f"'{a.name}'" for a in own if a is not None)
            described = f"bytes {address:#x}..{address + size:#x} start in '{owner.name}', which is not {names}"
            owner = None
        what = {"tt.load": "load from", "tt.store": "store to"}.get(self.op.name, "atomic on")
        target = f"'{self.argument}'" if self.argument else "memory"
        index = ""
        if owner is not None:
            first, last = (address - owner.base) // self.itemsize, (int(high[0]) - owner.base) // self.itemsize - 1
            index = f" (elements {first}..{last} of {owner.nbytes // self.itemsize})"
        return KernelFault(
            f"{where(self.op.loc)}: kernel '{f.launch.name}', program {f.program(program)}: {what} {target} out of "
            f"bounds: {described}{index}{self._first_outside(one_program, owner)}. Check the mask "
            "and the strides passed to the kernel."
        )

    def _first_outside(self, w: Window, owner: Allocation | None) -> str:
        """Which element of the block is the first outside, and what the mask leaves, for a message."""
        address, keep = w.lanes()
        outside = keep & True
        if owner is not None:
            outside &= (address < owner.base) | (address + self.itemsize > owner.end)
        mask = "there is no mask" if self.mask < 0 else f"the mask leaves {int(keep.sum())} of {keep.size} elements"
        if not outside.any() or self.scalar:  # a loop's later iteration
            return f"; {mask}"
        at = np.argwhere(outside)[0][1:]
        at = np.array(np.unravel_index(int(at[0]), w.block)) if w.block is not None else at
        return f"; the first outside is index {tuple(at.tolist())} of the block, {mask}"


_LOCAL = frozenset({"tt.load", "tt.store", "tt.atomic_rmw", "tt.atomic_cas"})
"""Operations that reach the memory their pointer names, and not its like in another rank."""


def access_of(c: Compiler, op: Op, mask_at: int) -> Access:
    kind = op.operands[0].type
    block = isinstance(kind, Tensor)
    pointer = kind.elem if isinstance(kind, Tensor) else kind
    if not isinstance(pointer, Pointer) or isinstance(pointer.pointee, Tensor):
        raise unsupported(op, "block pointers; use tl.load with a block of pointers")
    name = element(pointer.pointee)
    if name not in CARRIER:
        raise unsupported(op, f"elements of type {name}")
    mask = c.slot(op.operands[mask_at]) if len(op.operands) > mask_at else -1
    storage = NARROW[name][1] if name in NARROW else CARRIER[name]
    return Access(
        op,
        shape_of(kind) if block else (1,),
        not block,
        name,
        itemsize(name),
        storage,
        CARRIER[name],
        c.argument(op.operands[0]),
        c.slot(op.operands[0]),
        mask,
        parameters(c.function, op.operands[0]) if op.name in _LOCAL else (),
    )


def known_access(f: Frame, a: Access) -> tuple[Window, Owners]:
    """Where an access is, of a launch that reads a tape."""
    assert f.launch.known is not None
    found: tuple[Window, Owners] = f.launch.known.next()
    if f.launch.watch is not None:
        f.launch.watch.access(f, a, *found)
    return found


def add_rows(f: Frame, kind: RowKind, w: Window, deps: Deps) -> Deps:
    """Write down what a window touches, one row for each shape its programs' accesses have."""
    if f.control:
        deps = tuple(sorted({*deps, *f.control}))
    rows: Deps = ()
    for members, layout, columns in describe(w):
        if members is None or w.programs == 1:
            chosen = f.members
        else:
            chosen = members if f.members is None else f.members[members]
        rows += f.recorder.add(kind, deps, chosen, layout, columns)
    return rows


def alone(f: Frame, a: Access) -> Allocation | None:
    """The allocation of a number that all programs of the frame name alike; None where the general way has to be gone.
    Programs that take turns, for a lock say, do little else."""
    launch, pointer = f.launch, f.v[a.pointer]
    if not a.scalar or type(pointer) is not int or (a.mask >= 0 and f.v[a.mask] is not True):
        return None
    if launch.tape is not None or launch.party is not None or (launch.watch is not None and f.count > 1):
        return None
    found = launch.space.find(pointer)
    if found is None or pointer + a.itemsize > found.end or found.invalid is not None or isinstance(found, Endless):
        return None
    if not a.at_home(f, found):
        return None
    if launch.watch is not None:
        launch.watch.element(f, a, pointer, found)
    return found


def add_row_alone(f: Frame, kind: RowKind, a: Access, deps: Deps) -> Deps:
    """:func:`add_rows` for :func:`alone`."""
    if f.control:
        deps = tuple(sorted({*deps, *f.control}))
    columns = Columns(np.array([f.v[a.pointer]], np.int64))
    return f.recorder.add(kind, deps, f.members, Layout((a.itemsize,), (1,)), columns)


def latest_stores(f: Frame, allocations: Owners, deps: Deps) -> Deps:
    """``deps`` and the latest rows that wrote to what is about to be read."""
    for _, allocation in allocations:
        stored = f.recorder.stored.get(allocation.base)
        if stored:
            deps = tuple(sorted({*deps, *stored}))
    return deps


def read(f: Frame, a: Access, w: Window, allocations: Owners, other: Any) -> Any:
    """The loaded values: [P or 1, *dims] on the carrier, or a scalar."""
    shape = (w.programs, *w.dims)
    if not w.masked():
        lying = at_once(a, w, allocations)
        if lying is not None:
            flat = lying.copy()
            return flat if not a.scalar else one(flat[0, 0]) if len(flat) == 1 else flat[:, 0]
        out = np.empty(shape, a.carrier)
    elif other is None or (uniform(other) and other == 0):
        out = np.zeros(shape, a.carrier)
    else:
        filled = in_full(other, a.carrier)
        rows = filled.shape[0] if isinstance(filled, np.ndarray) and filled.ndim > 1 else 1
        out = np.empty((max(w.programs, rows), *a.dims), a.carrier)
        out[...] = filled.reshape(-1, 1) if isinstance(filled, np.ndarray) and filled.ndim == 1 else filled
        if rows > w.programs:
            w = w.select(np.zeros(rows, np.intp))
        out = out.reshape((out.shape[0], *w.dims))
    for members, allocation in allocations:
        everybody = members is None or len(members) == out.shape[0]
        part = w if everybody and not w.split else w.of(members, allocation)
        if allocation.invalid is not None:
            _check_valid(f, a, part, allocation)
        if isinstance(allocation, Endless):
            some = out if everybody else out[members]
            allocation.read(part, a.itemsize, some)
            out[... if everybody else members] = some
            continue
        tiles = part.tiles(allocation.base)
        if everybody:
            tiles.load(allocation.bytes, a.name, a.storage, out)
        else:
            some = np.ascontiguousarray(out[members])
            tiles.load(allocation.bytes, a.name, a.storage, some)
            out[members] = some
    if a.scalar:
        flat = out.reshape(-1)
        return one(flat[0]) if len(flat) == 1 else flat
    return out if w.dims == a.dims else out.reshape((out.shape[0], *a.dims))


def at_once(a: Access, w: Window, allocations: Owners) -> NDArray[Any] | None:
    """A window's elements as they lie in memory, [P, *dims], where that is an array: evenly spaced in one allocation,
    of a type that is carried as it is stored."""
    if len(allocations) != 1 or a.name in NARROW or w.dims != a.dims:
        return None
    (members, allocation), even = allocations[0], w.strided()
    if even is None or allocation.invalid is not None or (members is not None and len(members) != w.programs):
        return None
    offset = even[0] - allocation.base
    if w.split or offset % a.itemsize or isinstance(allocation, Endless):
        return None
    return np.ndarray((w.programs, *w.dims), a.storage, allocation.bytes, offset, even[1])


def _check_valid(f: Frame, a: Access, w: Window, allocation: Allocation) -> None:
    assert allocation.invalid is not None
    marks = np.zeros((w.programs, *w.dims), f"u{a.itemsize}")
    w.tiles(allocation.base).load(allocation.invalid.view(np.uint8), "", marks.dtype, marks)
    if marks.any():
        raise ValuesNeeded(
            f"{where(a.op.loc)}: kernel '{f.launch.name}' needs values of '{allocation.name}' to know what it does "
            "next (an address, a mask, a branch or a trip count depends on them), but they were not computed in this "
            "timing-only run. Run with enable_data=True."
        )


@emits("tt.load")
def emit_load(c: Compiler, op: Op) -> None:
    a = access_of(c, op, 1)
    other = c.slot(op.operands[2]) if len(op.operands) > 2 else -1
    row = RowKind(OpKind.READ, c.line(op.loc), "load", record_dtype(op.results[0].type))
    sources, target, out = c.deps(op.operands), c.dep(op.results[0]), c.slot(op.results[0])

    number = target
    c.loop_loads.append(number)

    def load(f: Frame, with_values: bool) -> None:
        if f.launch.known is not None:
            if with_values or f.launch.watch is not None:
                w, allocations = known_access(f, a)
            if with_values:
                f.v[out] = read(f, a, w, allocations, None if other < 0 else f.v[other])
            return
        found = alone(f, a)
        if found is not None:
            deps = latest_stores(f, [(None, found)], join(f.d, sources))
            if number in f.slot_free:
                deps = tuple(sorted({*deps, *f.slot_free[number]}))
            rows = add_row_alone(f, row, a, deps)
            f.recorder.watch(rows)
            f.loaded[number] = f.d[target] = rows
            if with_values:
                at = f.v[a.pointer] - found.base
                f.v[out] = one(found.bytes[at : at + a.itemsize].view(a.storage).astype(a.carrier, copy=False)[0])
            return
        w = a.window(f)
        allocations = a.owners(f, w)
        if f.launch.tape is not None and (with_values or f.launch.watch is not None):
            f.launch.tape.keep(w, allocations)
        deps = latest_stores(f, allocations, join(f.d, sources))
        if number in f.slot_free:
            deps = tuple(sorted({*deps, *f.slot_free[number]}))
        rows = add_rows(f, row, w, deps)
        f.recorder.watch(rows)
        f.loaded[number] = f.d[target] = rows
        if with_values:
            f.v[out] = read(f, a, w, allocations, None if other < 0 else f.v[other])

    needed = op.results[0] in c.needed
    c.both(lambda f: load(f, True), lambda f: load(f, needed))
    handover.after(c, op, a)
    count = int(np.prod(a.dims))
    c.largest_tile = max(c.largest_tile, count)
    if needed:
        c.largest_needed = max(c.largest_needed, count)


def expand(w: Window, programs: int) -> Window:
    """A window that all programs share, given to each of them."""
    return w.select(np.zeros(programs, np.intp)) if w.programs == 1 and programs > 1 else w


def note_stores(f: Frame, w: Window, allocations: Owners, rows: Deps) -> None:
    """Write down what changes memory, for loads that follow and for launches that repeat this one."""
    for _, allocation in allocations:
        f.recorder.stores(allocation.base, rows, f.members)
    if f.launch.tape is not None:
        f.launch.tape.keep(w, allocations)


def _column(value: Any, a: Access) -> NDArray[Any]:
    """What is stored, as an array whose axes have the block's length or 1 and the first is programs (or 1)."""
    x = np.asarray(in_full(value, a.carrier))
    if x.dtype != a.carrier:
        x = x.astype(a.carrier)
    if x.ndim == 0:
        return x.reshape((1,) * (len(a.dims) + 1))
    return x.reshape(-1, 1) if a.scalar else x


@emits("tt.store")
def emit_store(c: Compiler, op: Op) -> None:
    a = access_of(c, op, 2)
    row = RowKind(OpKind.WRITE, c.line(op.loc), "store", record_dtype(op.operands[1].type))
    sources, value = c.deps(op.operands), c.slot(op.operands[1])

    def store(f: Frame, with_values: bool) -> None:
        if f.launch.known is not None:
            w, allocations = known_access(f, a)
        else:
            w = a.window(f)
            allocations = a.owners(f, w)
            rows = add_rows(f, row, w, join(f.d, sources))
            note_stores(f, w, allocations, rows)
        if not with_values:
            return invalidate(a, w, allocations)
        x = _column(f.v[value], a)
        write(a, expand(w, x.shape[0]), x, allocations)

    known = op.operands[1] in c.needed or op.operands[1] not in c.data
    handover.before(c, op, a)
    c.both(lambda f: store(f, True), lambda f: store(f, known))
    handover.after(c, op, a)


def write(a: Access, w: Window, x: NDArray[Any], allocations: Owners) -> None:
    """Store ``x`` [P or 1, ...] (axes of the block's length or 1) through a window."""
    lying = at_once(a, w, allocations)
    if lying is not None:
        lying[...] = x
        return allocations[0][1].wrote()
    if w.dims != a.dims:
        x = np.broadcast_to(x, (x.shape[0], *a.dims)).reshape(x.shape[0], *w.dims)
    for members, allocation in allocations:
        whole = members is None or len(members) == w.programs
        part = w.of(members, allocation)
        values = x if whole or x.shape[0] == 1 else x[members]
        tiles = part.tiles(allocation.base)
        tiles.store(allocation.bytes, a.name, a.storage, values)
        allocation.wrote()
        if allocation.invalid is not None:
            _mark(a, part, allocation, 0)


def invalidate(a: Access, w: Window, allocations: Owners) -> None:
    """A timing-only store: the bytes change to something nobody knows."""
    for members, allocation in allocations:
        part = w.of(members, allocation)
        if not allocation.is_all_invalid:
            _mark(a, part, allocation, 1)
        allocation.wrote()


def _mark(a: Access, w: Window, allocation: Allocation, mark: int) -> None:
    marks = allocation.invalidity().view(np.uint8)
    pattern = np.full((1,) * (len(w.dims) + 1), int.from_bytes(bytes([mark]) * a.itemsize, "little"), f"u{a.itemsize}")
    w.tiles(allocation.base).store(marks, "", pattern.dtype, pattern)


def _emit_atomic(
    c: Compiler,
    op: Op,
    mask_at: int,
    apply: Callable[[NDArray[Any], Any, NDArray[Any], list[NDArray[Any]]], NDArray[Any]],
) -> None:
    """``apply(bytes, storage, positions, operands)`` performs the operation lane by lane and returns what was there."""
    a = access_of(c, op, mask_at)
    count = int(np.prod(a.dims))
    row = RowKind(OpKind.ATOMIC, c.line(op.loc), "atomic", record_dtype(op.operands[1].type), atomics=count)
    sources, out = c.deps(op.operands), c.slot(op.results[0])
    target = c.dep(op.results[0])
    slots = [c.slot(v) for v in op.operands[1 : 3 if op.name == "tt.atomic_cas" else 2]]
    used = op.results[0] in c.users
    known = op.results[0] in c.needed or all(v in c.needed or v not in c.data for v in op.operands[1:])

    def alone_at(f: Frame, found: Allocation, at: int) -> None:
        """Perform it on the only element there is."""
        memory = found.bytes[at : at + a.itemsize].view(a.storage)
        one_lane = [np.asarray(in_full(f.v[s], a.carrier), a.carrier).reshape(1) for s in slots]
        before = apply(memory, a, np.zeros(1, np.int64), one_lane)
        found.wrote()
        if used:
            f.v[out] = one(before[0])

    def step(f: Frame, with_values: bool) -> None:
        found = alone(f, a) if with_values and f.count == 1 and f.launch.known is None else None
        if found is not None and (f.v[a.pointer] - found.base) % a.itemsize == 0:
            f.d[target] = add_row_alone(f, row, a, latest_stores(f, [(None, found)], join(f.d, sources)))
            f.recorder.stores(found.base, f.d[target], f.members)
            return alone_at(f, found, f.v[a.pointer] - found.base)
        if f.launch.known is not None:
            w, allocations = known_access(f, a)
        else:
            w = a.window(f)
            allocations = a.owners(f, w)
            rows = add_rows(f, row, w, latest_stores(f, allocations, join(f.d, sources)))
            f.d[target] = rows
            note_stores(f, w, allocations, rows)
        if not with_values:
            return invalidate(a, w, allocations)
        if a.scalar and f.count == w.programs == len(allocations) == 1 and not w.masked():
            found = allocations[0][1]
            at = int(w.base[0]) - found.base
            if found.invalid is None and at % a.itemsize == 0:
                return alone_at(f, found, at)
        w = expand(w, f.count)
        operands = [np.broadcast_to(_column(f.v[s], a), (f.count, *a.dims)).reshape(f.count, -1) for s in slots]
        address, keep = w.lanes()
        flat, lanes = address.reshape(f.count, -1), keep.reshape(f.count, -1)
        old = np.zeros((f.count, count), a.carrier)
        for members, allocation in allocations:
            chosen = lanes
            if members is not None and len(members) != f.count:
                chosen = np.zeros_like(lanes)
                chosen[members] = lanes[members]
            if w.split:
                chosen = chosen & (flat >= allocation.base) & (flat < allocation.end)
            if allocation.invalid is not None:
                _check_valid(f, a, w.of(members, allocation), allocation)
            offset = flat[chosen] - allocation.base
            if (offset % a.itemsize).any():
                raise KernelFault(f"{where(op.loc)}: kernel '{f.launch.name}': atomic on a misaligned address")
            memory = allocation.bytes[: allocation.nbytes // a.itemsize * a.itemsize].view(a.storage)
            before = apply(memory, a, offset // a.itemsize, [x[chosen] for x in operands])
            old[chosen] = before
            allocation.wrote()
        if used:
            if a.scalar:
                f.v[out] = one(old[0, 0]) if f.count == 1 else old[:, 0]
            else:
                f.v[out] = old.reshape(f.count, *a.dims)

    handover.before(c, op, a)
    c.both(lambda f: step(f, True), lambda f: step(f, known))
    handover.after(c, op, a)


@emits("tt.atomic_rmw")
def emit_atomic_rmw(c: Compiler, op: Op) -> None:
    kind = op.attrs["words"][0]
    used = op.results[0] in c.users
    _emit_atomic(c, op, 2, lambda memory, a, at, xs: apply_rmw(kind, memory, at, xs[0], used, a.name))


@emits("tt.atomic_cas")
def emit_atomic_cas(c: Compiler, op: Op) -> None:
    _emit_atomic(c, op, 3, lambda memory, a, at, xs: apply_cas(memory, at, xs[0], xs[1], a.name))
