"""A SIP's flat address space: allocation, bounds, capacity, and the true bytes behind each address."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import xxhash
from numpy.typing import NDArray

from kernbench.memory.placement import INTERLEAVED, Placement

ALIGNMENT = 256
"""Bytes. Every allocation starts on a granule, so that no two share a channel granule; also a cache line's multiple."""


class OutOfMemoryError(RuntimeError):
    """The address space cannot hold a new allocation. The message lists who holds what."""


class AccessError(RuntimeError):
    """An address range is not inside one live allocation."""


@dataclass(eq=False)
class Allocation:
    """A live range ``[base, base + nbytes)`` and its bytes.

    Host memory is taken only when the bytes are first touched: untouched bytes read as zero and cost nothing.
    """

    base: int
    nbytes: int
    name: str
    placement: Placement
    stream: int
    size: int
    """Bytes reserved in the address space: ``nbytes`` rounded up to the alignment."""
    version: int = 0
    """Grows with every write; caches of derived values key on it."""
    _bytes: NDArray[np.uint8] | None = None
    _invalid: NDArray[np.bool_] | None = None
    _skipped: list[tuple[int, int]] = field(default_factory=list)
    """The same as ranges, in order and apart from each other, while there is no map: it would take as much memory as
    the bytes themselves."""
    unwritten: NDArray[np.bool_] | None = None
    """bool[nbytes] marking bytes that nothing ever wrote, read only; None where nobody keeps track, or none is left."""
    carriers: dict[str, tuple[int, NDArray]] = field(default_factory=dict)
    """Values cast to their carrier type: dtype name -> (version, flat array)."""
    _digest: tuple[int, int] | None = None

    @property
    def end(self) -> int:
        return self.base + self.nbytes

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """uint8[nbytes], the true bytes. Whoever writes through it calls :meth:`wrote` afterwards."""
        if self._bytes is None:
            self._bytes = np.zeros(self.nbytes, np.uint8)
        return self._bytes

    def describe(self, address: int, nbytes: int) -> str:
        """A sentence on where a range that does not lie in it lies."""
        where, me = f"bytes {address:#x}..{address + nbytes:#x}", f"'{self.name}' ({self.nbytes} bytes)"
        if address >= self.end:
            return f"{where} lie {address - self.end} bytes past the end of {me}"
        if address + nbytes <= self.base:
            return f"{where} lie {self.base - address} bytes before the start of {me}"
        if address < self.base:
            return f"{where} start {self.base - address} bytes before {me}"
        return f"{where} start in {me} and end {address + nbytes - self.end} bytes past it"

    def digest(self) -> int:
        """A 128-bit digest (XXH3) of the bytes, worked out again after writes only."""
        if self._digest is None or self._digest[0] != self.version:
            self._digest = self.version, xxhash.xxh3_128_intdigest(self.bytes.data)
        return self._digest[1]

    def wrote(self) -> None:
        """Declare that bytes changed, which invalidates cached casts."""
        self.version += 1
        self.carriers.clear()

    def forget(self) -> None:
        """Keep track of who writes, from now on: nobody has written any byte. Takes no memory."""
        self.unwritten = np.broadcast_to(np.True_, (self.nbytes,))

    def unwritten_map(self) -> NDArray[np.bool_]:
        """The writable map behind :attr:`unwritten`, made on first use."""
        assert self.unwritten is not None
        if not self.unwritten.flags.writeable:
            self.unwritten = np.ones(self.nbytes, np.bool_)
        return self.unwritten

    @property
    def invalid(self) -> NDArray[np.bool_] | None:
        """bool[nbytes] marking bytes whose store was skipped in timing-only mode; None while every byte is valid."""
        if self._invalid is None and self._skipped:
            if self.is_all_invalid:
                return np.broadcast_to(np.True_, (self.nbytes,))
            return self.invalidity()
        return self._invalid

    def invalidity(self) -> NDArray[np.bool_]:
        """The writable map behind :attr:`invalid`, made on first use."""
        if self._invalid is None:
            self._invalid = np.zeros(self.nbytes, np.bool_)
            for start, stop in self._skipped:
                self._invalid[start:stop] = True
            self._skipped = []
        return self._invalid

    @property
    def is_all_invalid(self) -> bool:
        """Whether every byte has been declared invalid at once, and none valid since."""
        return self._invalid is None and self._skipped == [(0, self.nbytes)]

    def is_valid(self, start: int, stop: int) -> bool:
        """Whether all bytes ``[start, stop)``, counted from the allocation's base, are valid. Takes no memory."""
        if self._invalid is not None:
            return not self._invalid[start:stop].any()
        return not any(max(a, start) < min(b, stop) for a, b in self._skipped)

    def invalidate(self, start: int = 0, stop: int | None = None) -> None:
        """Declare bytes ``[start, stop)`` invalid, all of them by default. Takes no memory."""
        stop = self.nbytes if stop is None else stop
        if start <= 0 and stop >= self.nbytes:
            self._invalid, self._skipped = None, [(0, self.nbytes)] if self.nbytes else []
        elif self._invalid is not None:
            self._invalid[start:stop] = True
        elif start < stop:
            apart = [(a, b) for a, b in self._skipped if b < start or a > stop]
            joined = [(a, b) for a, b in self._skipped if not (b < start or a > stop)]
            new = (min([start, *(a for a, _ in joined)]), max([stop, *(b for _, b in joined)]))
            self._skipped = sorted([*apart, new])

    def mark_valid(self, start: int, stop: int) -> None:
        """Declare bytes ``[start, stop)``, counted from the allocation's base, valid again."""
        if start <= 0 and stop >= self.nbytes:
            self._invalid, self._skipped = None, []
        elif self._invalid is not None:
            self._invalid[start:stop] = False
        elif start < stop:
            pieces = [piece for a, b in self._skipped for piece in ((a, min(b, start)), (max(a, stop), b))]
            self._skipped = [(a, b) for a, b in pieces if a < b]


class AddressSpace:
    """The memory of one SIP.

    Freed ranges return to the stream that used them and are reused in that stream's order. A range moves to another
    stream only when nothing else fits, after ``synchronize`` (given by the runtime) has ordered the streams.

    Args:
        capacity: bytes.
        name: what errors call this memory, e.g. ``"sip0 HBM"``.
    """

    def __init__(self, capacity: int, name: str, synchronize: Callable[[], None] | None = None) -> None:
        self.capacity = capacity
        self.name = name
        self._synchronize = synchronize or (lambda: None)
        self._bases: list[int] = []
        self._live: dict[int, Allocation] = {}
        self._free: list[tuple[int, int, int]] = [(ALIGNMENT, capacity, -1)]
        """(base, bytes, stream) of free ranges by address; stream -1 was never used. Address 0 stays unmapped."""
        self.allocated = 0
        """Bytes held now, copies of replicated tensors included."""
        self.peak = 0
        self.alias: Callable[[int], int | None] = lambda address: None
        """From an address that lies in no allocation to the one it stands for here, if there is one."""

    def alloc(
        self, nbytes: int, name: str = "tensor", placement: Placement = INTERLEAVED, stream: int = 0
    ) -> Allocation:
        """Reserve ``nbytes`` bytes (zero is allowed), aligned to 256.

        Raises:
            OutOfMemoryError: more than what is free, or no free range is long enough.
        """
        size = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        if self.allocated + size * placement.copies > self.capacity:
            raise self._full(nbytes, name, placement)
        base = self._take(size, stream)
        if base is None:
            self.reclaim()
            base = self._take(size, stream)
        if base is None:
            raise self._full(nbytes, name, placement)
        return self._made(base, size, nbytes, name, placement, stream)

    def alloc_at(self, base: int, nbytes: int, name: str, stream: int = 0) -> Allocation:
        """Reserve ``nbytes`` bytes at ``base``, which lies in one of :meth:`holes`, with room for all of them."""
        size = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        at = bisect_right(self._free, (base, self.capacity + 1, stream)) - 1
        start, length, owner = self._free.pop(at)
        rest = [(start, base - start, owner), (base + size, start + length - base - size, owner)]
        self._free[at:at] = [(s, n, o) for s, n, o in rest if n]
        return self._made(base, size, nbytes, name, INTERLEAVED, stream)

    def holes(self, stream: int = 0) -> list[tuple[int, int]]:
        """(base, bytes) of the ranges that a stream can have, by address."""
        return [(base, length) for base, length, owner in self._free if owner in (-1, stream)]

    def reclaim(self) -> None:
        """Order all streams, so that any of them can have what another has freed."""
        self._synchronize()
        self._free = [(at, length, -1) for at, length, _ in self._free]
        self._coalesce()

    def _made(self, base: int, size: int, nbytes: int, name: str, placement: Placement, stream: int) -> Allocation:
        made = Allocation(base, nbytes, name, placement, stream, size)
        self._live[base] = made
        insort(self._bases, base)
        self.allocated += size * placement.copies
        self.peak = max(self.peak, self.allocated)
        return made

    def free(self, allocation: Allocation) -> None:
        """Return a range. Freeing twice is an error of the caller and raises KeyError."""
        del self._live[allocation.base]
        self._bases.remove(allocation.base)
        self.allocated -= allocation.size * allocation.placement.copies
        insort(self._free, (allocation.base, allocation.size, allocation.stream))
        self._coalesce()

    def find(self, address: int) -> Allocation | None:
        """The live allocation that contains ``address``, or None."""
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        found = self._live[self._bases[at]]
        return found if address < found.base + max(found.nbytes, 1) else None

    def locate(self, address: int, nbytes: int) -> Allocation:
        """The allocation that holds all of ``[address, address + nbytes)``.

        Raises:
            AccessError: naming the nearest allocation and by how far the range misses it.
        """
        found = self.find(address)
        if found is not None and address + nbytes <= found.end:
            return found
        raise AccessError(f"{self.name}: {self.describe(address, nbytes)}")

    def describe(self, address: int, nbytes: int) -> str:
        """A sentence on where a range lies relative to what is allocated."""
        where = f"bytes {address:#x}..{address + nbytes:#x}"
        found = self.find(address)
        if found is not None:
            return found.describe(address, nbytes)
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return f"{where} lie in no allocation"
        return self._live[self._bases[at]].describe(address, nbytes)

    def allocations(self) -> list[Allocation]:
        """Live allocations by address."""
        return [self._live[base] for base in self._bases]

    def summary(self, most: int = 8) -> str:
        """Who holds what: the largest allocations, one a line."""
        live = sorted(self._live.values(), key=lambda a: (-a.size * a.placement.copies, a.base))
        lines = [f"  {a.size * a.placement.copies / 2**20:10.2f} MiB  {a.name}" for a in live[:most]]
        if len(live) > most:
            rest = sum(a.size * a.placement.copies for a in live[most:])
            lines.append(f"  {rest / 2**20:10.2f} MiB  in {len(live) - most} more")
        return "\n".join(lines) or "  nothing is allocated"

    def _take(self, size: int, stream: int) -> int | None:
        for i, (base, length, owner) in enumerate(self._free):
            if length >= size and owner in (-1, stream):
                if length == size:
                    del self._free[i]
                else:
                    self._free[i] = (base + size, length - size, owner)
                return base
        return None

    def _coalesce(self) -> None:
        merged: list[tuple[int, int, int]] = []
        for base, length, owner in self._free:
            if merged and merged[-1][0] + merged[-1][1] == base and merged[-1][2] == owner:
                merged[-1] = (merged[-1][0], merged[-1][1] + length, owner)
            else:
                merged.append((base, length, owner))
        self._free = merged

    def _full(self, nbytes: int, name: str, placement: Placement) -> OutOfMemoryError:
        need = nbytes * placement.copies
        copies = f" ({placement.copies} copies)" if placement.copies > 1 else ""
        return OutOfMemoryError(
            f"{self.name} is full: '{name}' needs {need / 2**20:.2f} MiB{copies}, "
            f"{(self.capacity - self.allocated) / 2**20:.2f} of {self.capacity / 2**20:.2f} MiB are free.\n"
            f"Held by:\n{self.summary()}\n"
            "Use a smaller tensor, free one (del), fewer replicas, or raise sip.cube.hbm.capacity."
        )
