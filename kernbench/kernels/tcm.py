"""How much scratchpad (TCM) a program needs, from its TTIR.

TTIR says nothing of scratchpads, so this is KernBench's policy:

* every data tile (see :mod:`kernbench.kernels.dataflow`) occupies its bytes from where it is made to its last use;
* an elementwise operation writes over an operand that dies there, and a dot over its accumulator;
* views (broadcast, transpose, reshape) and constants occupy nothing;
* a load in a ``for`` loop occupies ``num_stages`` slots for as long as the loop runs.

The need of a PE is the peak of that sum times the programs that overlap on it, which become fewer, down to one, before
a launch fails with :class:`OutOfResources`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePath

from kernbench.kernels.dataflow import READS, VIEWS, data_values
from kernbench.kernels.ttir import Block, Function, Loc, Op, Pointer, Tensor, Type, Value

_OWN_SPACE = frozenset({"tt.reduce", "tt.scan", "tt.join", "tt.cat", "tt.gather", "tt.histogram", "tt.split"})
"""Operations that read an operand after writing part of their result, so that they cannot write over it."""


@dataclass(frozen=True)
class Tile:
    """Something that occupies scratchpad at the peak."""

    name: str
    kind: str
    """As TTIR writes it: ``128x64xf16``."""
    nbytes: int
    """All slots together."""
    slots: int
    """More than 1 for a pipelined load."""
    loc: Loc

    def __str__(self) -> str:
        times = f"{self.slots} slots of " if self.slots > 1 else ""
        file, line = self.loc
        return f"{self.nbytes:12,d} B  {self.name}: {times}{self.kind}  ({PurePath(file).name or 'unknown'}:{line})"


@dataclass(frozen=True)
class TcmNeed:
    """Scratchpad one program needs at its peak, and what occupies it then."""

    nbytes: int
    tiles: tuple[Tile, ...]

    def memory_map(self) -> str:
        """One tile a line, largest first."""
        return "\n".join(str(tile) for tile in sorted(self.tiles, key=lambda t: (-t.nbytes, t.loc, t.name)))


class OutOfResources(RuntimeError):
    """A program does not fit into the scratchpad. Where Triton is loaded, what is raised is also Triton's own
    ``OutOfResources``, so that its autotuner drops the configuration."""

    def __init__(self, required: int, limit: int, name: str, detail: str = "") -> None:
        self.required, self.limit, self.name, self.detail = required, limit, name, detail
        super().__init__(required, limit, name, detail)

    def __str__(self) -> str:
        head = f"out of resource: {self.name}, Required: {self.required}, Hardware limit: {self.limit}."
        return f"{head} Reducing block sizes or `num_stages` may help.{self.detail}"


@cache
def _raisable(triton_errors: object) -> type[OutOfResources]:
    if triton_errors is None:
        return OutOfResources
    theirs = triton_errors.OutOfResources  # type: ignore[attr-defined]
    return type("OutOfResources", (OutOfResources, theirs), {"__reduce__": OutOfResources.__reduce__})


def programs_in_flight(kernel_name: str, need: TcmNeed, capacity: int, wanted: int) -> int:
    """How many programs may overlap on a PE: ``wanted``, or as many as ``capacity`` bytes hold.

    Raises:
        OutOfResources: not even one program fits; the message is a map of the scratchpad at the peak.
    """
    if need.nbytes > capacity:
        detail = f"\nKernel '{kernel_name}' at its peak holds\n{need.memory_map()}"
        raise _raisable(sys.modules.get("triton.runtime.errors"))(need.nbytes, capacity, "TCM", detail)
    return max(1, min(wanted, capacity // max(need.nbytes, 1)))


def analyse(function: Function, num_stages: int) -> TcmNeed:
    """The scratchpad one program of ``function`` needs; ``num_stages`` is for loops that carry no number themselves."""
    return _Analysis(function, num_stages).need()


_ELEMENT_BYTES = {"i1": 1, "index": 8}


def _element_bytes(kind: Type) -> int:
    if isinstance(kind, Pointer):
        return 8
    name = str(kind)
    if name in _ELEMENT_BYTES:
        return _ELEMENT_BYTES[name]
    bits = re.search(r"\d+", name)
    return max(1, int(bits.group()) // 8) if bits else 4


def tile_bytes(kind: Type) -> int:
    """Bytes of a tile in its own element type; scalars live in registers and take none."""
    if not isinstance(kind, Tensor):
        return 0
    count = 1
    for n in kind.shape:
        count *= n
    return count * _element_bytes(kind.elem)


@dataclass
class _Analysis:
    function: Function
    num_stages: int
    peak: int = 0
    tiles: tuple[Tile, ...] = ()
    slots: list[Tile] = field(default_factory=list)
    """Slots of the loops around the operation looked at."""

    def __post_init__(self) -> None:
        self.data = data_values(self.function)
        self.made_by: dict[Value, Op] = {v: op for op in self.function.walk() for v in op.results}
        self.slotted: set[Value] = set()
        self.free_in: dict[Value, Loc] = {}

    def need(self) -> TcmNeed:
        blocks = self.function.body.blocks
        outside = self._live_across(blocks) if len(blocks) > 1 else set()
        for block in blocks:
            self._block(block, outside)
        return TcmNeed(self.peak, self.tiles)

    def _live_across(self, blocks: list[Block]) -> set[Value]:
        """With early returns there are several blocks: what one makes and another uses is held throughout."""
        home = {v: block for block in blocks for v in (*block.args, *(r for op in block.ops for r in op.results))}
        used = ((v, block) for block in blocks for op in block.ops for v in self._uses(op))
        return {v for v, block in used if home.get(v, block) is not block}

    def _storage(self, value: Value) -> Value | None:
        """The value whose bytes this one is, through views; None where it occupies nothing of its own."""
        while (op := self.made_by.get(value)) is not None and op.name in VIEWS:
            value = op.operands[0]
        constant = op is not None and op.name == "arith.constant"
        held = value in self.data and value not in self.slotted and not constant
        return value if held and isinstance(value.type, Tensor) else None

    def _uses(self, op: Op) -> set[Value]:
        """Storage that an operation and all nested in it read."""
        return {s for inner in op.walk() for v in _operands(inner) if (s := self._storage(v)) is not None}

    def _block(self, block: Block, live_out: set[Value]) -> set[Value]:
        """Walk a block backwards from what is live after it; returns what is live before it."""
        live = set(live_out)
        for op in reversed(block.ops):
            live -= set(op.results)
            if op.name == "scf.for":
                live = self._for(op, live)
            elif op.name in ("scf.while", "scf.if"):
                live = self._branches(op, live)
            else:
                live = self._simple(op, live)
        return live - set(block.args)

    def _simple(self, op: Op, after: set[Value]) -> set[Value]:
        operands = {s for v in _operands(op) if (s := self._storage(v)) is not None}
        made = [v for v in op.results if self._storage(v) is v]
        dying = [v for v in operands if v not in after]
        if op.name not in READS and op.name not in _OWN_SPACE:
            if op.name in ("tt.dot", "tt.dot_scaled"):
                accumulator = self._storage(op.operands[2 if op.name == "tt.dot" else -1])
                dying = [v for v in dying if v is accumulator]
            for value in list(made):
                over = next((v for v in dying if tile_bytes(v.type) >= tile_bytes(value.type)), None)
                if over is not None:
                    dying.remove(over)
                    made.remove(value)
        self._pressure(after | operands | set(made))
        return after | operands

    def _for(self, op: Op, after: set[Value]) -> set[Value]:
        body = op.regions[0].entry
        depth = len(self.slots)
        stages = max(1, int(op.attrs.get("tt.num_stages", self.num_stages)))
        for load in _own_loads(body):
            (value,) = load.results
            if load.name in READS and isinstance(value.type, Tensor):
                self.slotted.add(value)
                self.slots.append(replace(self._tile(value), nbytes=stages * tile_bytes(value.type), slots=stages))
        inside = {v for region_op in body.ops for v in self._uses(region_op)}
        own = set(body.args) | {v for inner in op.walk() if inner is not op for v in inner.results}
        own |= {a for inner in op.walk() for r in inner.regions for b in r.blocks for a in b.args}
        through = after | (inside - own)
        entry = self._block(body, through | self._yields(body))
        carried = {a for a in body.args if self._storage(a) is a}
        self._pressure(entry | carried | through)
        del self.slots[depth:]
        starts = {s for v in op.operands[3:] if (s := self._storage(v)) is not None}
        self._pressure(through | starts)
        return through | starts

    def _branches(self, op: Op, after: set[Value]) -> set[Value]:
        before = set(after)
        again = set()
        if op.name == "scf.while":
            own = {v for inner in op.walk() for v in inner.results}
            own |= {a for inner in op.walk() for r in inner.regions for b in r.blocks for a in b.args}
            again = {s for inner in op.walk() if inner is not op for v in _operands(inner) if (s := self._storage(v))}
            again -= own
        for region in op.regions:
            for block in region.blocks:
                before |= self._block(block, after | again | self._yields(block))
        before |= {s for v in op.operands if (s := self._storage(v)) is not None}
        return before

    def _yields(self, block: Block) -> set[Value]:
        return {s for v in block.ops[-1].operands if (s := self._storage(v)) is not None} if block.ops else set()

    def _pressure(self, live: set[Value]) -> None:
        total = sum(tile_bytes(v.type) for v in live) + sum(slot.nbytes for slot in self.slots)
        if total > self.peak:
            self.peak = total
            self.tiles = (*self.slots, *(self._tile(v) for v in live))

    def _tile(self, value: Value) -> Tile:
        maker = self.made_by.get(value)
        kind = str(value.type).removeprefix("tensor<").removesuffix(">")
        loc = maker.loc if maker is not None else self._loop_of(value)
        name = re.sub(r"(_\d+)?(#\d+)?$", "", value.name.lstrip("%"))
        if name.isdigit() and maker is not None:  # Triton gave it no name
            name = maker.name.partition(".")[2]
        return Tile(name, kind, tile_bytes(value.type), 1, loc)

    def _loop_of(self, value: Value) -> Loc:
        for op in self.function.walk():
            if any(value in block.args for region in op.regions for block in region.blocks):
                return op.loc
        return self.function.loc


def _operands(op: Op) -> tuple[Value, ...]:
    return (*op.operands, *(v for _, handed in op.successors for v in handed))


def _own_loads(block: Block) -> list[Op]:
    """Reads of a loop's body, those under a branch included, those of an inner loop not."""
    found = []
    for op in block.ops:
        if op.name in READS and op.results:
            found.append(op)
        elif op.name == "scf.if":
            for region in op.regions:
                found += _own_loads(region.entry)
    return found
