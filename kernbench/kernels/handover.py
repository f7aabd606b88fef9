"""Values that one program leaves in memory for another that looks there again and again: locks, semaphores, look-back.

What :mod:`kernbench.kernels.spin` finds in the end was put there by somebody, and in simulated time it is not there any
earlier: as a wait does for signals, the look that succeeded waits in the record for the writes and atomics that made
what it found, and for all that their programs had read and written before. Locks are so handed on in the order in which
values were computed.

Only scalars of integer type are followed, and only writes through pointers that a spinning loop also looks through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from kernbench.kernels import comm
from kernbench.kernels.plan import Compiler, Frame, record_dtype
from kernbench.kernels.program_recorder import ProgramRecorder
from kernbench.kernels.recorder import RowKind
from kernbench.kernels.signals import Words, Write, satisfied_by, signalled
from kernbench.kernels.slices import ATOMICS, pointer_origins
from kernbench.kernels.team import Party, real
from kernbench.kernels.ttir import Function, Op
from kernbench.memory import Allocation
from kernbench.sim_engine.oplog import OpKind, Token

if TYPE_CHECKING:
    from kernbench.kernels.ops_memory import Access


class Looks:
    """What spinning loops of a function look at."""

    def __init__(self, function: Function) -> None:
        loops = [op for op in function.walk() if op.name == "scf.while"]
        self.ops = frozenset(op for loop in loops for op in comm.polls(loop) if op.name != "tt.call")
        self._origins = pointer_origins(function) if self.ops else {}
        found = [self._origins.get(op.operands[0], set()) for op in self.ops]
        self._arguments = frozenset().union(*found)
        self._anywhere = not all(found)

    def may_meet(self, op: Op) -> bool:
        """Whether a write may be what a loop looks for."""
        if not self.ops:
            return False
        mine = self._origins.get(op.operands[0], set())
        return self._anywhere or not mine or bool(mine & self._arguments)


def looks_of(c: Compiler) -> Looks:
    if c.looks is None:
        c.looks = Looks(c.function)
    found: Looks = c.looks
    return found


def spins(functions: Iterable[Function]) -> bool:
    """Whether programs may find what others left for them."""
    return any(Looks(function).ops for function in functions)


class Handovers:
    """Of one launch whose programs take turns.

    Args:
        party: of a kernel that communicates, whose flags may also be signalled.
    """

    def __init__(self, party: Party | None) -> None:
        self._words: Words | None = WeakKeyDictionary() if party is None else None
        """None for those that all launches of the team share."""
        self._stream = -1 if party is None else party.stream
        self.before: Any = None
        """What was there before the operation that is being carried out."""

    def left(self, f: Frame, a: Access, mark: RowKind, adds: bool, known: bool) -> None:
        """A program may have changed a word. ``known``: its value is, without data too; else that it is written leaves
        a row, whatever is written, so that the record is the same without data."""
        place = _place(f, a)
        if place is None:
            return
        before, after = self.before, _value(a, *place)
        if known and after == before:
            return
        assert isinstance(f.recorder, ProgramRecorder)
        token = f.recorder.signal(mark, f.control)
        if after is not None and after != before:
            signalled(*place, Write(after, adds, token, self._stream), before, self._words)

    def found(self, f: Frame, a: Access, value: Any, rows: tuple[int, ...]) -> None:
        """A program has looked at a word."""
        place, recorder = _place(f, a), f.recorder
        if place is None or not rows:
            return
        assert isinstance(recorder, ProgramRecorder)
        mine = recorder.token(rows)[:3]
        writes = satisfied_by(*place, value, "eq", value, self._words)
        tokens: tuple[Token, ...] = tuple(w.token for w in writes if w.token[:3] != mine)
        if tokens:
            recorder.awaits[rows[0]] = tokens


def _place(f: Frame, a: Access) -> tuple[Allocation, int] | None:
    """The word that a scalar access means; None where it means none."""
    pointer = f.v[a.pointer]
    address = pointer if type(pointer) is int else int(np.asarray(pointer).flat[0])
    owner = f.launch.space.find(address)
    if owner is None or address + a.itemsize > owner.end or (address - owner.base) % a.itemsize:
        return None
    if a.mask >= 0 and f.v[a.mask] is not True and not np.asarray(f.v[a.mask]).all():
        return None
    return real(owner), address - owner.base


def _value(a: Access, allocation: Allocation, offset: int) -> Any:
    end = offset + a.itemsize
    if not allocation.is_valid(offset, end):
        return None
    return allocation.bytes[offset:end].view(a.storage)[0].item()


def _followed(c: Compiler, op: Op, a: Access) -> bool:
    return a.scalar and a.name.startswith("i") and looks_of(c).may_meet(op)


def _known(c: Compiler, op: Op) -> bool:
    """Whether what an operation finds or writes is known without data too."""
    if any(r in c.needed for r in op.results):
        return True
    return op.name != "tt.load" and all(v in c.needed or v not in c.data for v in op.operands[1:])


def before(c: Compiler, op: Op, a: Access) -> None:
    """Add a step before an operation that writes."""
    if not _followed(c, op, a):
        return

    def step(f: Frame) -> None:
        if f.launch.handovers is not None:
            place = _place(f, a)
            f.launch.handovers.before = None if place is None else _value(a, *place)

    c.both(step)


def after(c: Compiler, op: Op, a: Access) -> None:
    """Add a step after an operation that reads or writes."""
    if not _followed(c, op, a):
        return
    known = _known(c, op)
    polls, writes = known and op in looks_of(c).ops, op.name != "tt.load"
    target = c.dep(op.results[0]) if op.results else 0
    mark = RowKind(OpKind.SIGNAL, c.line(op.loc), "release", record_dtype(op.operands[0].type))
    adds = op.name in ATOMICS and op.attrs.get("words", ("",))[0] != "exch"
    out = c.slot(op.results[0]) if op.results else -1

    def step(f: Frame) -> None:
        hand = f.launch.handovers
        if hand is None:
            return
        if polls:
            value = hand.before if writes else f.v[out]
            if value is not None:
                hand.found(f, a, value if writes else np.asarray(value).flat[0].item(), f.d[target])
        if writes:
            hand.left(f, a, mark, adds, known)

    c.both(step)
