"""Communication between programs: who one is, remote pointers, signals and waits, messages, barriers.

Every program is a coroutine here (:mod:`kernbench.kernels.crew`), so a frame has one program. What leaves one program
for another is known by its row's token; what waits for it names the token, which is all that timing needs.

A *signal* is a small write behind all that its program read and wrote before: it counts as arrived when they have. A
*wait* polls a word of its own memory, and ends with the read that finds the condition true, which is issued once the
signals that made it true have arrived; the program's later reads and writes are issued after it. A *message* goes from
scratchpad to scratchpad and orders nothing else. A *barrier* gathers at the first program of a device, among devices
between those, and is released from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kernbench.kernels.comm import COMPARE, SIGN
from kernbench.kernels.errors import KernelError, KernelFault
from kernbench.kernels.numerics import NARROW
from kernbench.kernels.ops_int import itemsize
from kernbench.kernels.ops_memory import Access, _check_valid, access_of, add_rows, latest_stores
from kernbench.kernels.plan import (
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
from kernbench.kernels.program_recorder import ProgramRecorder
from kernbench.kernels.recorder import Deps, RowKind
from kernbench.kernels.sanitize.clocks import joined
from kernbench.kernels.team import MESSAGE_SLOTS, SHIFT, Gathering, Message, Party, symmetric
from kernbench.kernels.ttir import Op, Pointer, Tensor, Value
from kernbench.kernels.values import AxisSum, add
from kernbench.kernels.window import window
from kernbench.sim_engine.oplog import OpKind, Token


def party_of(f: Frame) -> Party:
    """The launch's place among others.

    Raises:
        KernelError: the kernel runs where there is none.
    """
    if f.launch.party is None:
        raise KernelError(
            f"kernel '{f.launch.name}' uses kernbench.language: launch it inside a RuntimeContext or on a "
            "StandaloneDevice"
        )
    found: Party = f.launch.party
    return found


def number_of(f: Frame) -> int:
    """The linear id of a frame's only program."""
    x, y, z = f.program(0)
    return x + f.launch.grid[0] * (y + f.launch.grid[1] * z)


def _who(f: Frame) -> str:
    party = party_of(f)
    rank = f"rank {party.member}, " if party.team.size > 1 else ""
    return f"{rank}program {f.program(0)} of kernel '{f.launch.name}'"


def _fault(f: Frame, op: Op, text: str) -> KernelFault:
    return KernelFault(f"{where(op.loc)}: {_who(f)}: {text}")


def _after(f: Frame, deps: Deps) -> Deps:
    """What an operation waits for that must not overtake a wait."""
    return tuple(sorted({*deps, *f.control})) if f.control else deps


def _scalar(op: Op, at: int, what: str) -> None:
    """Refuse a block where one number or pointer is meant."""
    if isinstance(op.operands[at].type, Tensor):
        raise unsupported(op, f"{what} given as a block; give one, as a scalar")


def _rank(f: Frame, op: Op, slot: int) -> int:
    """A rank that an operation names; -1 is one's own.

    Raises:
        KernelFault: there is no such rank.
    """
    party, rank = party_of(f), int(f.v[slot])
    if rank == -1:
        return party.member
    if not 0 <= rank < party.team.size:
        raise _fault(f, op, f"there is no rank {rank}: ranks are 0 to {party.team.size - 1}")
    return rank


@emits("kb.rank", "kb.num_ranks", "kb.pe", "kb.num_pes", "kb.program")
def emit_identity(c: Compiler, op: Op) -> None:
    out = c.slot(op.results[0])
    answer: Callable[[Frame], int] = {
        "kb.rank": lambda f: party_of(f).member,
        "kb.num_ranks": lambda f: party_of(f).team.size,
        "kb.pe": lambda f: party_of(f).pe(number_of(f)),
        "kb.num_pes": lambda f: party_of(f).pes,
        "kb.program": number_of,
    }[op.name]

    def step(f: Frame) -> None:
        f.v[out] = answer(f)

    c.both(step)


@emits("kb.remote")
def emit_remote(c: Compiler, op: Op) -> None:
    _scalar(op, 1, "a rank")
    pointer, rank, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])
    argument = c.argument(op.operands[0])
    if argument:
        c.origin[op.results[0]] = argument

    def step(f: Frame) -> None:
        f.v[out] = _reach(f, op, f.v[pointer], _rank(f, op, rank), argument)

    c.both(step)


def _reach(f: Frame, op: Op, pointer: Any, rank: int, argument: str) -> Any:
    """A pointer, or a block of them, into one's own memory as one into a rank's.

    Raises:
        KernelFault: it is remote already, or what it points into is not symmetric memory.
    """
    party = party_of(f)
    first = int(np.min(pointer.base if isinstance(pointer, AxisSum) else pointer))
    name = f"'{argument}'" if argument else "the pointer"
    if first >> SHIFT:
        raise _fault(f, op, f"{name} is remote already: use remote() on a pointer into this rank's own memory")
    if rank == party.member:
        return pointer
    owner = party.find(first)
    if owner is None or owner not in symmetric:
        held = f"'{owner.name}'" if owner is not None else "no tensor at all"
        raise _fault(
            f,
            op,
            f"{name} points into {held}, which is not symmetric memory, so rank {rank} need not have it at the same "
            "address. Make it with ctx.distributed.symmetric_memory.zeros(...) on every rank",
        )
    above = rank + 1 << SHIFT
    return add(pointer, above) if isinstance(pointer, AxisSum) else pointer + above


@emits("kb.copy")
def emit_copy(c: Compiler, op: Op) -> None:
    for at, what in enumerate(("a pointer", "a pointer", "a count", "a rank")):
        _scalar(op, at, what)
    to = access_of(c, replace(op, name="tt.store"), 4)
    source = access_of(c, replace(op, name="tt.load", operands=op.operands[1:]), 4)
    count, rank, out = c.slot(op.operands[2]), c.slot(op.operands[3]), c.slot(op.results[0])
    sources = c.deps(op.operands)
    row = RowKind(OpKind.WRITE, c.line(op.loc), "copy", record_dtype(op.operands[0].type))

    def step(f: Frame) -> None:
        _, recorder, elements = party_of(f), _recorder(f), int(f.v[count])
        f.v[out] = 0
        if elements <= 0:
            return
        into = int(_reach(f, op, f.v[to.pointer], _rank(f, op, rank), to.argument))
        origin = int(f.v[source.pointer])
        if origin >> SHIFT:
            raise _fault(f, op, f"'{source.argument}' is remote: copy from this rank's own memory")
        run = AxisSum((elements,), 0, (to.itemsize,), 0, to.itemsize * (elements - 1))
        w, v = (window(add(run, address), None, (elements,), to.itemsize) for address in (into, origin))
        ((_, target),) = replace(to, dims=(elements,), scalar=False).owners(f, w)
        ((_, held),) = replace(source, dims=(elements,), scalar=False).owners(f, v)
        nbytes, start, at = elements * to.itemsize, origin - held.base, into - target.base
        target.bytes[at : at + nbytes] = held.bytes[start : start + nbytes]
        target.wrote()
        unknown = None if held.is_valid(start, start + nbytes) else held.invalid
        if unknown is None:
            target.mark_valid(at, at + nbytes)
        elif unknown[start : start + nbytes].all():
            target.invalidate(at, at + nbytes)
        else:
            target.invalidity()[at : at + nbytes] = unknown[start : start + nbytes]
        deps = latest_stores(f, [(None, held)], join(f.d, sources))
        rows = add_rows(f, row, w, deps)
        recorder.sources[rows[0]] = origin
        recorder.stores(target.base, rows, None)

    c.both(step)


class _Word:
    """A word of memory that an operation signals or waits on."""

    def __init__(self, f: Frame, a: Access, address: int) -> None:
        self.w = window(address, None, (1,), a.itemsize)
        ((_, self.allocation),) = a.owners(f, self.w)
        self.offset = address - self.allocation.base
        if self.offset % a.itemsize:
            raise _fault(f, a.op, f"'{self.allocation.name}': a flag at a misaligned address")
        self._bytes = self.allocation.bytes[self.offset : self.offset + a.itemsize].view(a.storage)

    def get(self) -> Any:
        return self._bytes[0].item()

    def set(self, value: Any) -> None:
        self._bytes[0] = value
        self.allocation.wrote()
        if self.allocation.invalid is not None:
            self.allocation.mark_valid(self.offset, self.offset + self._bytes.itemsize)

    def describe(self, a: Access) -> str:
        argument = f"'{a.argument}'" if a.argument else "memory"
        return f"{argument}, element {self.offset // a.itemsize} of '{self.allocation.name}'"


def _flag(c: Compiler, op: Op) -> Access:
    _scalar(op, 0, "a flag")
    a = access_of(c, op, 3)
    if a.name in NARROW or a.name[0] != "i":
        raise unsupported(op, f"flags of type {a.name}; use int32 or int64")
    return a


@emits("kb.signal")
def emit_signal(c: Compiler, op: Op) -> None:
    a, how = _flag(c, op), op.attrs["how"]
    _scalar(op, 1, "a rank")
    rank, operand, out = c.slot(op.operands[1]), c.slot(op.operands[2]), c.slot(op.results[0])
    sources = c.deps(op.operands)
    row = RowKind(OpKind.WRITE, c.line(op.loc), "signal", record_dtype(op.operands[2].type))
    mark = RowKind(OpKind.SIGNAL, c.line(op.loc), "signal", row.dtype)

    def step(f: Frame) -> None:
        party, recorder = party_of(f), _recorder(f)
        word = _Word(f, a, int(_reach(f, op, f.v[a.pointer], _rank(f, op, rank), a.argument)))
        if how == "add" and word.allocation.invalid is not None:
            _check_valid(f, a, word.w, word.allocation)
        before = word.get()
        bits = 8 * a.itemsize
        value = int(f.v[operand]) + (before if how == "add" else 0)
        word.set((value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1))
        rows = add_rows(f, row, word.w, join(f.d, sources))
        token = recorder.signal(mark, rows)
        known = None if f.launch.watch is None else f.launch.watch.signalled(f, word.w, word.allocation)
        party.signal(word.allocation, word.offset, word.get(), before, how == "add", token, known)
        f.v[out] = 0

    c.both(step)


@emits("kb.wait")
def emit_wait(c: Compiler, op: Op) -> None:
    a, compare = _flag(c, op), op.attrs["compare"]
    operand, out = c.slot(op.operands[1]), c.slot(op.results[0])
    sources, target = c.deps(op.operands), c.dep(op.results[0])
    row = RowKind(OpKind.READ, c.line(op.loc), "wait", record_dtype(op.operands[1].type))
    test, used = COMPARE[compare], op.results[0] in c.users

    def step(f: Frame) -> None:
        party, recorder, wanted = party_of(f), _recorder(f), int(f.v[operand])
        address = int(f.v[a.pointer])
        if address >> SHIFT:
            raise _fault(f, op, f"'{a.argument}' is remote: wait for a flag in this rank's own memory")
        word = _Word(f, a, address)
        if word.allocation.invalid is not None:
            _check_valid(f, a, word.w, word.allocation)

        def what() -> str:
            return (
                f"{where(op.loc)}: {_who(f)} waits for {word.describe(a)}, to be {SIGN[compare]} {wanted}: it is "
                f"{word.get()}"
            )

        had_to = not test(word.get(), wanted)
        f.launch.crew.wait(lambda: test(word.get(), wanted), what)
        found = word.get()
        # Who looks at what was found wants that value, and so all that made it.
        condition = ("eq", found) if used else (compare, wanted)
        awaited = party.awaited(word.allocation, word.offset, found, *condition)
        if had_to and not awaited:
            raise _fault(
                f,
                op,
                f"{word.describe(a)} became {found} by a plain store or atomic, which says nothing of when it arrived: "
                "change flags with signal()",
            )
        if f.launch.watch is not None and awaited:
            f.launch.watch.learned(f, [write.known for write in awaited])
        elif f.launch.watch is not None:
            f.launch.watch.found(f, word.w, word.allocation)
        rows = add_rows(f, row, word.w, join(f.d, sources))
        recorder.awaits[rows[0]] = tuple(write.token for write in awaited)
        f.control = f.d[target] = rows
        f.v[out] = found

    c.both(step)


def _recorder(f: Frame) -> ProgramRecorder:
    assert isinstance(f.recorder, ProgramRecorder) and f.count == 1
    return f.recorder


def _nbytes(value: Value) -> int:
    count = int(np.prod(shape_of(value.type), dtype=np.int64))
    pointer = value.type.elem if isinstance(value.type, Tensor) else value.type
    return count * (8 if isinstance(pointer, Pointer) else itemsize(element(value.type)))


@emits("kb.send")
def emit_send(c: Compiler, op: Op) -> None:
    for at, what in ((1, "a program"), (2, "a rank")):
        _scalar(op, at, what)
    value, program, rank = (c.slot(v) for v in op.operands)
    out, sources = c.slot(op.results[0]), c.deps(op.operands)
    kind, nbytes = str(op.operands[0].type), _nbytes(op.operands[0])
    row = RowKind(OpKind.SEND, c.line(op.loc), "send", record_dtype(op.operands[0].type))

    def step(f: Frame, with_values: bool) -> None:
        party, recorder = party_of(f), _recorder(f)
        peer, to = _rank(f, op, rank), int(f.v[program])
        if to < 0 or (peer == party.member and to >= party.programs):
            raise _fault(f, op, f"there is no program {to}: the grid has {party.programs}")
        box = party.box((party.member, number_of(f)), (peer, to))

        def what() -> str:
            return (
                f"{where(op.loc)}: {_who(f)} sends to program {to} of rank {peer}, which has yet to receive "
                f"{MESSAGE_SLOTS} earlier messages"
            )

        f.launch.crew.wait(lambda: len(box.messages) < MESSAGE_SLOTS, what)
        freed = (box.freed.popleft(),) if box.sent >= MESSAGE_SLOTS else ()
        box.sent, box.kernel = box.sent + 1, f.launch.name
        deps = _after(f, join(f.d, sources))
        token = recorder.send(row, deps, (party.team.sip(peer), to, nbytes), freed)
        held = f.v[value] if with_values else None
        known = None if f.launch.watch is None else f.launch.watch.told(f)
        box.messages.append(Message(held.copy() if isinstance(held, np.ndarray) else held, kind, token, known))
        f.v[out] = 0

    known = op.operands[0] in c.needed or op.operands[0] not in c.data
    c.both(lambda f: step(f, True), lambda f: step(f, known))


@emits("kb.recv")
def emit_recv(c: Compiler, op: Op) -> None:
    for at, what in ((1, "a program"), (2, "a rank")):
        _scalar(op, at, what)
    program, rank = (c.slot(v) for v in op.operands[1:])
    out, sources, target = c.slot(op.results[0]), c.deps(op.operands[1:]), c.dep(op.results[0])
    kind, needed = str(op.results[0].type), op.results[0] in c.needed
    row = RowKind(OpKind.RECEIVE, c.line(op.loc), "recv", record_dtype(op.results[0].type))

    def step(f: Frame, must: bool) -> None:
        party, recorder = party_of(f), _recorder(f)
        peer, sender = _rank(f, op, rank), int(f.v[program])
        box = party.box((peer, sender), (party.member, number_of(f)))

        def what() -> str:
            return f"{where(op.loc)}: {_who(f)} waits for a message from program {sender} of rank {peer}"

        f.launch.crew.wait(lambda: len(box.messages) > 0, what)
        message = box.messages.popleft()
        if message.kind != kind:
            sent = f"program {sender} of rank {peer} sent {message.kind}, and {kind} is expected"
            raise _fault(f, op, f"{sent}: give recv the shape and dtype of what is sent")
        if must and message.value is None:
            raise _fault(f, op, "the message carries no values in this timing-only run: run with enable_data=True")
        if f.launch.watch is not None:
            f.launch.watch.learned(f, [message.known])
        rows = recorder.receive(row, _after(f, join(f.d, sources)), (message.token,))
        box.freed.append(recorder.token(rows))
        f.d[target] = rows
        f.v[out] = message.value

    c.both(lambda f: step(f, True), lambda f: step(f, needed))
    c.largest_tile = max(c.largest_tile, int(np.prod(shape_of(op.results[0].type), dtype=np.int64)))


@emits("kb.barrier")
def emit_barrier(c: Compiler, op: Op) -> None:
    out, scope = c.slot(op.results[0]), op.attrs["scope"]
    mark = RowKind(OpKind.SIGNAL, c.line(op.loc), "barrier", "i32")
    row = RowKind(OpKind.RECEIVE, c.line(op.loc), "barrier", "i32")

    def step(f: Frame) -> None:
        party, recorder, program = party_of(f), _recorder(f), number_of(f)
        g = party.gathering(program, scope)
        token = recorder.signal(mark, f.control)
        g.needed[party.member] = party.programs
        g.arrived.setdefault(party.member, []).append(token)
        if f.launch.watch is not None:
            g.known.append(f.launch.watch.told(f))
        if program == 0:
            g.leaders[party.member] = (recorder, row, (token[3],))

        def over() -> bool:
            if not g.release and all_have_come(g, party, scope):
                release(g)
            return bool(g.release)

        def what() -> str:
            there = sum(map(len, g.arrived.values()))
            return f"{where(op.loc)}: {_who(f)} waits in a barrier to which {there} programs have come"

        f.launch.crew.wait(over, what)
        leader = g.release[party.member]
        f.control = (leader[3],) if program == 0 else recorder.receive(row, f.control, (leader,))
        if f.launch.watch is not None:
            f.launch.watch.learned(f, g.known)
        f.v[out] = 0

    c.both(step)


def all_have_come(g: Gathering, party: Party, scope: str) -> bool:
    """Whether every program has come to a barrier."""
    if scope == "world" and len(g.needed) + party.team.absent(party.turn) < party.team.size:
        return False
    return all(len(g.arrived[member]) == needed for member, needed in g.needed.items())


def release(g: Gathering) -> None:
    """Record how a barrier ends: each device's first program has heard of its others, then of other devices' first
    programs."""
    heard: dict[int, Token] = {}
    for member, (recorder, row, deps) in sorted(g.leaders.items()):
        heard[member] = recorder.token(recorder.receive(row, deps, tuple(sorted(g.arrived[member]))))
    if len(heard) > 1:
        for member, (recorder, row, _) in sorted(g.leaders.items()):
            others = tuple(token for other, token in sorted(heard.items()) if other != member)
            rows = recorder.receive(row, (heard[member][3],), others)
            g.release[member] = recorder.token(rows)
    else:
        g.release.update(heard)
    g.leaders.clear()
    g.known = [joined(g.known)]
