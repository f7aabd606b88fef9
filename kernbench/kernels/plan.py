"""Compiles a TTIR function into a plan: lists of steps, each a closure with its slots already resolved.

Every operation gives two lists. ``full`` computes values and writes down rows; ``timing`` writes down the same rows and
computes only what addresses, masks and control flow need. Which values cost time is decided here, once, from the text
alone: that is why both leave the same record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from kernbench.kernels.dataflow import VIEWS, data_values
from kernbench.kernels.errors import KernelError
from kernbench.kernels.provenance import parameters
from kernbench.kernels.recorder import Deps, Index, Recorder, RowKind
from kernbench.kernels.slices import deciding_args, needed_values
from kernbench.kernels.ttir import Block, Function, Loc, Op, Pointer, Scalar, Tensor, Type, Value
from kernbench.memory import AddressSpace
from kernbench.sim_engine.oplog import OpKind

if TYPE_CHECKING:
    from kernbench.kernels.tape import Reader, Tape

CARRIER: dict[str, np.dtype] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float32),
    "bf16": np.dtype(np.float32),
    "f8E4M3FN": np.dtype(np.float32),
    "f8E5M2": np.dtype(np.float32),
    "f8E4M3FNUZ": np.dtype(np.float32),
    "f8E5M2FNUZ": np.dtype(np.float32),
    "i1": np.dtype(np.bool_),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "index": np.dtype(np.int64),
}
"""TTIR's element types -> what carries them in arithmetic."""
_RECORD_NAME = {
    "f8E4M3FN": "f8e4m3",
    "f8E5M2": "f8e5m2",
    "f8E4M3FNUZ": "f8e4m3",
    "f8E5M2FNUZ": "f8e5m2",
    "index": "i64",
}


def record_dtype(kind: Type) -> str:
    """An element type as the record and the topology files spell it."""
    name = element(kind)
    return _RECORD_NAME.get(name, name)


def element(kind: Type) -> str:
    """The name of an element type; pointers are ``i64``."""
    elem = kind.elem if isinstance(kind, Tensor) else kind
    return elem.name if isinstance(elem, Scalar) else "i64"


def shape_of(kind: Type) -> tuple[int, ...]:
    return kind.shape if isinstance(kind, Tensor) else ()


@dataclass(eq=False, slots=True)
class Launch:
    """What all frames of one launch share."""

    name: str
    space: AddressSpace
    recorder: Recorder
    grid: tuple[int, int, int]
    num_stages: int
    written: frozenset[int] = frozenset()
    """Bases of allocations the launch may write: their casts must not be cached."""
    arguments: Sequence[Any] = ()
    """Of the kernel, by parameter: pointers are addresses. Empty: any pointer may reach any memory."""
    watch: Any = None
    """The checks of this launch (:class:`kernbench.kernels.sanitize.watch.Watch`), None for none."""
    tape: Tape | None = None
    """Where accesses are written down for later launches like this one."""
    known: Reader | None = None
    """The tape of an earlier launch like this one: where its accesses are, and that nothing has to be recorded."""
    crew: Any = None
    """Where programs take turns: the :class:`kernbench.kernels.crew.Crew` of them."""
    help: Callable[[Any], None] | None = None
    """Runs a crew that cannot go on alone together with those of other ranks."""
    party: Any = None
    """Of a kernel that communicates: its :class:`kernbench.kernels.team.Party`."""
    handovers: Any = None
    """Where programs that take turns spin: the :class:`kernbench.kernels.handover.Handovers` of the launch."""
    crossings: Any = None
    """What its rows wait for in other programs: by program, its recorder."""
    ticks: int = 0
    """How often clocks have been read."""


@dataclass(eq=False, slots=True)
class Frame:
    """The state of some programs: ``v`` has a value and ``d`` the producing rows for each slot."""

    launch: Launch
    recorder: Recorder
    v: list[Any]
    d: list[Deps]
    count: int
    """P, programs in this frame."""
    pids: tuple[Any, Any, Any]
    """Program ids along x, y, z: ints or int32[P]."""
    members: Index | None = None
    """Which programs of the chunk these are; None: all."""
    control: Deps = ()
    """Rows that the latest branch on data waits for; no memory access is issued before."""
    slot_free: dict[int, Deps] = field(default_factory=dict)
    """Load of a pipelined loop -> the rows that must have read the buffer slot it overwrites."""
    loaded: dict[int, Deps] = field(default_factory=dict)
    """Load of a pipelined loop -> its latest rows."""

    def subset(self, index: Index, captured: Sequence[int], deps: Sequence[int]) -> Frame:
        """A frame of some of the programs, with the values a region uses from outside it."""
        from kernbench.kernels.values import take

        v: list[Any] = [None] * len(self.v)
        d: list[Deps] = [()] * len(self.d)
        for slot in captured:
            v[slot] = take(self.v[slot], index)
        for slot in deps:
            d[slot] = self.d[slot]
        members = index if self.members is None else self.members[index]
        pids = tuple(p if isinstance(p, int) else p[index] for p in self.pids)
        return Frame(
            self.launch,
            self.recorder,
            v,
            d,
            len(index),
            pids,  # type: ignore[arg-type]
            members,
            self.control,
            dict(self.slot_free),
            dict(self.loaded),
        )

    def program(self, at: int) -> tuple[int, ...]:
        """The program id (x, y, z) of the frame's program ``at``."""
        return tuple(int(p) if isinstance(p, int) else int(p[at]) for p in self.pids)


Step = Callable[[Frame], None]


@dataclass(slots=True)
class Code:
    """Steps of a block, with values and without."""

    full: list[Step] = field(default_factory=list)
    timing: list[Step] = field(default_factory=list)
    taped: bool = False
    """Whether the block belongs to the launch itself, and so is kept on its tape."""
    deciding: list[int] = field(default_factory=list)
    """Slots that the tape gives: values that decide addresses, masks and control flow."""
    full_again: list[Step] = field(default_factory=list)
    """What is left of ``full`` then."""
    timing_again: list[Step] = field(default_factory=list)

    def run(self, f: Frame, with_values: bool) -> None:
        """Execute the block, writing a tape or reading one where the launch has it."""
        v, tape, known = f.v, f.launch.tape, f.launch.known
        if tape is not None and tape.is_too_large():
            f.launch.tape = tape = None
        if known is not None and self.taped:
            for slot, value in zip(self.deciding, known.values() if self.deciding else (), strict=True):
                v[slot] = value
            return run(self.full_again if with_values else self.timing_again, f)
        place = tape.reserve() if tape is not None and self.taped and self.deciding else -1
        run(self.full if with_values else self.timing, f)
        if place >= 0 and tape is not None:
            tape.fill(place, [v[slot] for slot in self.deciding])


@dataclass(eq=False)
class Plan:
    """A function ready to run."""

    function: Function
    slots: int
    dep_slots: int
    args: tuple[int, ...]
    """Slots of the function's parameters."""
    arg_deps: tuple[int, ...]
    run: Any
    """``run(frame, with_values)`` executes it and returns what each group of programs returned."""
    lines: list[Loc] = field(default_factory=list)
    """Source lines that rows refer to by index."""
    largest_tile: int = 1
    """Elements of the largest block of data."""
    stepped_dots: bool = False
    """Whether a loop with matrix products runs step by step: each step then wants many programs."""
    largest_needed: int = 1
    """The same of what a timing-only run computes."""
    deciding: tuple[int, ...] = ()
    """Slots of values that addresses, masks and control flow depend on."""
    repeats: bool = False
    """Whether launches alike leave the same record: where what is read from memory decides those, it is from
    ``deciding_args``."""
    deciding_args: tuple[int, ...] = ()
    """Pointer parameters whose memory, as a launch finds it, decides those."""


def run(steps: list[Step], frame: Frame) -> None:
    """Execute a block."""
    for step in steps:
        step(frame)


class Probe:
    """While one is ``on``, it may add steps of its own after each operation that is compiled."""

    on: Callable[[Compiler, Op], None] | None = None
    stepwise: Callable[[Compiler, Op], bool] | None = None
    """Says of a loop whether it must run step by step, never as one matrix product."""


Emitter = Callable[["Compiler", Op], None]
EMITTERS: dict[str, Emitter] = {}


def emits(*names: str) -> Callable[[Emitter], Emitter]:
    """Register what compiles operations of these names."""

    def register(emitter: Emitter) -> Emitter:
        for name in names:
            EMITTERS[name] = emitter
        return emitter

    return register


class Compiler:
    """Compiles one function. Emitters append steps to ``code``."""

    def __init__(
        self,
        function: Function,
        functions: dict[str, Function],
        num_stages: int,
        lines: list[Loc] | None = None,
        data: frozenset[Value] | None = None,
    ) -> None:
        self.function, self.functions, self.num_stages = function, functions, num_stages
        self.data = data_values(function) if data is None else data
        self.needed = needed_values(function, self.data)
        self.lines: list[Loc] = [] if lines is None else lines
        self._slots: dict[Value, int] = {}
        self._deps: dict[Value, int] = {}
        self._dep_count = 1  # slot 0 is "made from no data"
        self.code = Code()
        self.loop_loads: list[int] = []
        """Loads of the loop being compiled, by the number they are known under at run time."""
        self.largest_tile = self.largest_needed = 1
        self.stepped_dots = False
        self.repeats = True
        self.taped = False
        """Whether what decides addresses and control flow is kept on tapes."""
        self.origin: dict[Value, str] = {}
        """Pointers -> the parameter they are offsets from."""
        self.looks: Any = None
        """What its spinning loops look at: :class:`kernbench.kernels.handover.Looks`."""
        self.users: dict[Value, list[Op]] = {}
        for op in function.walk():
            for v in op.operands:
                self.users.setdefault(v, []).append(op)
        for arg, value in zip(function.args, function.body.entry.args, strict=True):
            if isinstance(arg.type, Pointer):
                self.origin[value] = arg.name

    def slot(self, value: Value) -> int:
        return self._slots.setdefault(value, len(self._slots))

    def dep(self, value: Value) -> int:
        """Where the rows that produce a value are kept; 0 for what is not data."""
        if value not in self._deps:
            if value in self.data:
                self._deps[value] = self._dep_count
                self._dep_count += 1
            else:
                self._deps[value] = 0
        return self._deps[value]

    def deps(self, values: Sequence[Value]) -> tuple[int, ...]:
        return tuple(sorted({self.dep(v) for v in values} - {0}))

    def line(self, loc: Loc) -> int:
        if loc not in self.lines:
            self.lines.append(loc)
        return self.lines.index(loc)

    def compute(self, op: Op, step: Step) -> None:
        """Add a step that sets the results of ``op`` and records nothing."""
        needed = any(r in self.needed for r in op.results)
        self._sets(op, step, timing=needed)
        for r in op.results:
            n = int(np.prod(shape_of(r.type), dtype=np.int64))
            self.largest_tile = max(self.largest_tile, n if r in self.data or not _is_index(r.type) else 1)
            if needed and (r in self.data or not _is_index(r.type)):
                self.largest_needed = max(self.largest_needed, n)

    def immediate(self, op: Op, step: Step) -> None:
        """Add a step that sets the result of ``op`` to what is there already, a constant say."""
        self._sets(op, step, timing=True)

    def _sets(self, op: Op, step: Step, timing: bool) -> None:
        self.code.full.append(step)
        if timing:
            self.code.timing.append(step)
        if self.taped and all(r in self.needed for r in op.results):
            self.code.deciding += [self.slot(r) for r in op.results]
            return
        self.code.full_again.append(step)
        if timing:
            self.code.timing_again.append(step)

    def both(self, full: Step, timing: Step | None = None) -> None:
        """Add a step to both lists."""
        self.recorded(full, timing)
        self.code.full_again.append(full)
        self.code.timing_again.append(timing or full)

    def recorded(self, full: Step, timing: Step | None = None) -> None:
        """Add a step that does nothing but record."""
        self.code.full.append(full)
        self.code.timing.append(timing or full)

    def effect(self, step: Step) -> None:
        """Add a step that needs values and has an effect of its own."""
        self.code.full.append(step)
        self.code.full_again.append(step)

    def check(self, step: Step, decided: Sequence[Value] = ()) -> None:
        """Add a step that needs values and only looks. Where it looks at nothing but ``decided`` and a tape has all of
        that, it saw in the launch that wrote the tape what it would see in one that reads it."""
        self.code.full.append(step)
        if not (decided and self.taped and all(v in self.needed for v in decided)):
            self.code.full_again.append(step)

    def record(self, op: Op, name: str, elements: int, dtype: str, kind: OpKind = OpKind.VECTOR) -> None:
        """Add the row of a vector operation, where its result is data."""
        if not any(r in self.data for r in op.results):
            return
        row = RowKind(kind, self.line(op.loc), name, dtype, elements)
        sources = self.deps(op.operands)
        targets = tuple(self.dep(r) for r in op.results)

        def step(f: Frame) -> None:
            made = f.recorder.add(row, join(f.d, sources), f.members)
            for target in targets:
                f.d[target] = made

        self.recorded(step)

    def alias(self, op: Op) -> None:
        """The result is its operand under another shape: the same rows produce it."""
        for r in op.results:
            if r in self.data:
                sources = self.deps(op.operands)
                if len(sources) == 1:
                    self._deps[r] = sources[0]
                    continue
                self._join(self.dep(r), sources)

    def _join(self, target: int, sources: tuple[int, ...]) -> None:
        def step(f: Frame) -> None:
            f.d[target] = join(f.d, sources)

        self.recorded(step)

    def block(self, block: Block) -> Code:
        """Compile a block into code of its own."""
        outer, self.code = self.code, Code(taped=self.taped)
        for op in block.ops:
            self.op(op)
        made, self.code = self.code, outer
        return made

    def op(self, op: Op) -> None:
        emitter = EMITTERS.get(op.name)
        if emitter is None:
            raise unsupported(op)
        if op.operands and op.operands[0] in self.origin:
            for r in op.results:
                if element(r.type) == "i64" and (op.name in VIEWS or op.name in ("tt.addptr", "tt.advance")):
                    self.origin[r] = self.origin[op.operands[0]]
        emitter(self, op)
        if Probe.on is not None:
            Probe.on(self, op)

    def argument(self, pointer: Value) -> str:
        """The name of the parameter a pointer comes from, or an empty string."""
        known = self.origin.get(pointer, "")
        if not known and len(found := parameters(self.function, pointer)) == 1:
            known = self.function.args[found[0]].name
        return known

    def captured(self, blocks: Sequence[Block]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Slots of values and rows that blocks use but do not define."""
        defined: set[Value] = set()
        used: dict[Value, None] = {}
        for block in blocks:
            _uses(block, defined, used)
        outside = [v for v in used if v not in defined]
        return tuple(self.slot(v) for v in outside), self.deps(outside)

    def finish(self, run_blocks: Any) -> Plan:
        entry = self.function.body.entry.args
        decided_by = deciding_args(self.function, self.needed) if self.taped else None
        return Plan(
            self.function,
            len(self._slots),
            self._dep_count,
            tuple(self.slot(v) for v in entry),
            tuple(self.dep(v) for v in entry),
            run_blocks,
            lines=self.lines,
            largest_tile=self.largest_tile,
            stepped_dots=self.stepped_dots,
            largest_needed=self.largest_needed,
            deciding=tuple(slot for value, slot in self._slots.items() if value in self.needed),
            repeats=self.repeats and decided_by is not None,
            deciding_args=decided_by or (),
        )


def _uses(block: Block, defined: set[Value], used: dict[Value, None]) -> None:
    defined.update(block.args)
    for op in block.ops:
        for v in op.operands:
            used.setdefault(v)
        for _, handed in op.successors:
            for v in handed:
                used.setdefault(v)
        for region in op.regions:
            for inner in region.blocks:
                _uses(inner, defined, used)
        defined.update(op.results)


def _is_index(kind: Type) -> bool:
    return element(kind).startswith("i")


def join(d: list[Deps], slots: tuple[int, ...]) -> Deps:
    """All rows that produce any of the values in ``slots``."""
    if len(slots) == 1:
        return d[slots[0]]
    if not slots:
        return ()
    if len(slots) == 2:
        a, b = d[slots[0]], d[slots[1]]
        if a is b or not b:
            return a
        if not a:
            return b
    return tuple(sorted({row for s in slots for row in d[s]}))


def where(loc: Loc) -> str:
    """``file:line`` for a message."""
    return f"{loc[0]}:{loc[1]}" if loc[1] else "unknown line"


_INSTEAD = {
    "tt.dot_scaled": "scale the operands and use tl.dot",
    "tt.elementwise_inline_asm": "write the operation with tl functions",
}


def unsupported(op: Op, detail: str = "") -> KernelError:
    """The error for an operation that cannot run."""
    instead = _INSTEAD.get(op.name, "rewrite the line with other operations")
    what = f"{op.name}{f' ({detail})' if detail else ''}"
    name = PurePath(op.loc[0]).name
    return KernelError(
        f"{where(op.loc)}: KernBench does not run the operation {what}"
        f"{f' that this line of {name} becomes' if name else ''}. What to do: {instead}."
    )
