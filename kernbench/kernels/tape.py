"""Launches that repeat: what one did that depends on its grid and arguments alone, kept for the next.

Most kernels decide what they touch from program ids, sizes and strides; some from tensors that they only read: lengths,
tables of blocks, indices. Two launches of such a kernel with the same grid, the same numbers, the same bytes in those
tensors and pointers into allocations of the same place and size leave the same record, and use the same addresses and
masks. One writes those on a tape; later ones read them back and compute only the values that depend on other memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.values import AxisSum, Mask
from kernbench.kernels.window import Owners, Window
from kernbench.memory import AddressSpace, Allocation
from kernbench.sim_engine.oplog import ProgramBlock

MOST_BYTES = 32 << 20
"""Bytes that the tapes of one kernel may hold together."""
_ITEM = 100
"""Bytes that an item takes besides its arrays, about."""
MOST_KEYS = 256
"""Launches of one kernel that are remembered."""

Item = tuple[Any, list[tuple[Any, int]]]
"""Where a memory access is, and the programs and the number of each allocation it falls in. Or, for a block of the
kernel, the values in it that decide addresses, masks and control flow, and nothing."""


@dataclass(slots=True)
class Chunk:
    """What the programs of one chunk left on the tape."""

    count: int
    pids: tuple[Any, Any, Any]
    items: list[Item] = field(default_factory=list)
    """In the order of execution."""


class Tape:
    """Written by one launch, read by others like it."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.blocks: list[ProgramBlock] = []
        self.chunks: list[Chunk] = []
        self.places: list[tuple[int, int]] = []
        """Base and bytes of each allocation touched."""
        self.nbytes = 0
        """Bytes of the addresses and masks."""
        self.unwritten: dict[int, ref[NDArray[np.bool_]]] = {}
        """Base of an allocation -> the map of unwritten bytes with which a checked launch ended well: of those that it
        reads or writes, none is left."""
        self.fills: set[int] = set()
        """Bases of allocations of which the launch writes every byte and reads none."""
        self._numbers: dict[int, int] = {}

    def begin(self, count: int, pids: tuple[Any, Any, Any]) -> None:
        """Start a chunk of ``count`` programs."""
        self.chunks.append(Chunk(count, pids))

    def of_program(self, pids: tuple[Any, Any, Any]) -> Tape:
        """A chunk for one of several programs that take turns, as a tape of its own that this one shares."""
        self.begin(1, pids)
        part = Tape(self.key)
        part.chunks, part.places, part._numbers = self.chunks[-1:], self.places, self._numbers
        return part

    def is_too_large(self) -> bool:
        """Whether it can be thrown away: nobody will keep it."""
        return self.nbytes > MOST_BYTES

    def keep(self, what: Any, allocations: Owners) -> None:
        """Write down an access."""
        owned = []
        for members, allocation in allocations:
            number = self._numbers.setdefault(allocation.base, len(self._numbers))
            if number == len(self.places):
                self.places.append((allocation.base, allocation.nbytes))
            owned.append((members, number))
        self.chunks[-1].items.append((what, owned))
        self.nbytes += _ITEM + _nbytes(what)

    def reserve(self) -> int:
        """A place for the values of a block that is about to run."""
        items = self.chunks[-1].items
        items.append((None, []))
        return len(items) - 1

    def fill(self, place: int, values: list[Any]) -> None:
        """Write down what the block computed."""
        self.chunks[-1].items[place] = (values, [])
        self.nbytes += _ITEM + _nbytes(values)


class Reader:
    """A tape being read by one launch."""

    def __init__(self, tape: Tape, allocations: list[Allocation]) -> None:
        self.tape, self._allocations = tape, allocations
        self._items: Iterator[Item] = iter(())
        self.latest: Any = None
        """Where the access before was."""

    def chunks(self) -> Iterator[Chunk]:
        """Read chunk by chunk."""
        for chunk in self.tape.chunks:
            self._items = iter(chunk.items)
            yield chunk

    def of_program(self, number: int) -> Reader:
        """For one of several programs that take turns: reads its chunk."""
        part = Reader(self.tape, self._allocations)
        part._items = iter(self.tape.chunks[number].items)
        return part

    def values(self) -> list[Any]:
        """What the next block computed."""
        values: list[Any] = next(self._items)[0]
        return values

    def next(self) -> tuple[Any, Owners]:
        """The next access, with this launch's allocations."""
        self.latest, owned = next(self._items)
        allocations = self._allocations
        return self.latest, [(members, allocations[number]) for members, number in owned]


class Tapes:
    """The tapes of one kernel, those used last."""

    def __init__(self) -> None:
        self._tapes: OrderedDict[Any, Tape | None] = OrderedDict()
        self._nbytes = 0

    def find(self, how: Hashable, args: Sequence[Any], space: AddressSpace) -> Reader | Tape | None:
        """For a launch: the tape to read; where there is none yet, one to write from its second time on.

        Args:
            how: whatever else launches alike share.
            args: the numbers, and the pointers into ``space``, that decide what the kernel does.
        """
        # Floats by their bits: -0.0 is not 0.0, and NaN is itself.
        key = how, *(x if type(x) is int else (type(x), np.float64(x).tobytes()) for x in args)
        if key not in self._tapes:
            self._put(key, None)
            return None
        self._tapes.move_to_end(key)
        tape = self._tapes[key]
        if tape is None:
            return Tape(key)
        allocations = []
        for base, nbytes in tape.places:
            found = space.find(base)
            if found is None or found.base != base or found.nbytes != nbytes:
                return Tape(key)
            allocations.append(found)
        return Reader(tape, allocations)

    def add(self, tape: Tape, blocks: list[ProgramBlock]) -> None:
        """Keep a tape that was written by the launch that left these blocks, unless it is too large."""
        if not tape.is_too_large():
            tape.blocks = blocks
            self._put(tape.key, tape)

    def _put(self, key: Any, tape: Tape | None) -> None:
        self._drop(self._tapes.pop(key, None))
        self._tapes[key] = tape
        self._nbytes += 0 if tape is None else tape.nbytes
        while self._nbytes > MOST_BYTES or len(self._tapes) > MOST_KEYS:
            self._drop(self._tapes.popitem(last=False)[1])

    def _drop(self, tape: Tape | None) -> None:
        self._nbytes -= 0 if tape is None else tape.nbytes


def _nbytes(thing: Any) -> int:
    """Bytes of addresses, masks and lists of them."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes + 100
    if isinstance(thing, list | tuple):
        return sum(map(_nbytes, thing))
    if isinstance(thing, Window):
        return _nbytes((thing.base, thing.terms, thing.lo, thing.hi, thing.rest))
    if isinstance(thing, AxisSum):
        return _nbytes((thing.base, thing.terms))
    if isinstance(thing, Mask):
        return _nbytes((thing.axes, thing.programs, thing.dense))
    return 0
