"""From byte addresses to HBM channels: the hash, and how many bytes a DMA puts on each channel.

Consecutive *granules* of the address space go to different channels by a fold of the granule's number: for a power of
two of channels the XOR of its digits in that base, for another count the sum of its digits modulo the count. Either way
every aligned run of as many granules as there are channels touches each channel once, and so do rows at a power-of-two
pitch, which a plain modulo would put on few channels.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from kernbench import _native
from kernbench.memory.placement import INTERLEAVED, Axis, Placement

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Contiguous pieces of memory that K accesses touch: access k touches ``ptr[k]:ptr[k+1]`` of the other two."""

    ptr: Int64s
    address: Int64s
    nbytes: Int64s

    @classmethod
    def strided(cls, base: Int64s, counts: NDArray[np.int64], strides: tuple[int, ...]) -> Runs:
        """Of nested strided loops: ``base`` int64[K], ``counts`` int64[K, D], the last dimension contiguous bytes."""
        address, owner = base.astype(np.int64), np.arange(len(base))
        for d in range(counts.shape[1] - 1):
            times = counts[owner, d]
            step = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
            address, owner = np.repeat(address, times) + step * strides[d], np.repeat(owner, times)
        ptr = np.zeros(len(base) + 1, np.int64)
        np.cumsum(np.bincount(owner, minlength=len(base)), out=ptr[1:])
        return cls(ptr, address, np.ascontiguousarray(counts[owner, -1]))

    def in_bursts(self, burst: int) -> Runs:
        """What memory that moves aligned ``burst`` bytes at a time moves for these: each access every burst that it
        touches, whole and once, by ascending address."""
        first, end = self.address // burst, -(-(self.address + self.nbytes) // burst)
        end = np.where(self.nbytes > 0, end, first)
        owner = np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))
        low = int(first.min(initial=0))
        space = owner * (int(end.max(initial=0)) - low + 1) - low  # accesses one after the other
        first, end = first + space, end + space
        if (np.diff(first) < 0).any():
            order = np.argsort(first, kind="stable")
            first, end, space = first[order], end[order], space[order]
        first[1:] = np.maximum(first[1:], np.maximum.accumulate(end)[:-1])
        return Runs(self.ptr, (first - space) * burst, np.maximum(end - first, 0) * burst)


@dataclass(frozen=True)
class ChannelMap:
    """The channels of one SIP: ``cubes`` x ``channels``, numbered cube by cube.

    Attributes:
        granule: bytes that stay together.
        hash: ``xor`` (the fold above) or ``modulo`` (granule number modulo the count).
    """

    cubes: int
    channels: int
    granule: int
    hash: str = "xor"

    @property
    def total(self) -> int:
        return self.cubes * self.channels

    def fold(self, granules: Int64s, count: int) -> Int64s:
        """Which of ``count`` places each granule goes to."""
        if self.hash == "modulo" or count == 1:
            return granules % count
        rest, place = granules.copy(), np.zeros_like(granules)
        power = count & (count - 1) == 0
        while rest.any():
            rest, digit = np.divmod(rest, count)
            place = place ^ digit if power else (place + digit) % count
        return place

    def locate(
        self, address: Int64s, base: int = 0, placement: Placement = INTERLEAVED, copy: tuple[int, int] = (0, 0)
    ) -> Int64s:
        """The channel of each address, in an allocation that begins at ``base``.

        Args:
            copy: which (cube, PE share) to look in where the placement replicates.
        """
        granules = address // self.granule
        cubes, pes = placement.cubes, placement.pes
        if cubes is None and pes is None:
            return self.fold(granules, self.total)
        offset = address - base
        if cubes is None:
            cube, granules = self.fold(granules, self.cubes), granules // self.cubes
        else:
            cube = _part(cubes, offset, copy[0])
        first: Int64s | int = 0
        count = np.full(len(address), self.channels)
        if pes is not None:
            share = _part(pes, offset, copy[1])
            first, count = self.share(pes, share)
        place = np.zeros_like(address)
        for size in np.unique(count):
            here = count == size
            place[here] = self.fold(granules[here], int(size))
        return cube * self.channels + first + place

    def share(self, pes: Axis, part: Int64s) -> tuple[Int64s, Int64s]:
        """(first, count): the channels of a cube that PE share ``part`` of ``pes.parts`` owns; at least one."""
        first = part * self.channels // pes.parts
        return first, np.maximum((part + 1) * self.channels // pes.parts - first, 1)

    def bytes_on_channels(
        self, runs: Runs, base: int = 0, placement: Placement = INTERLEAVED, copy: tuple[int, int] = (0, 0)
    ) -> Int64s:
        """int64[K, total]: bytes that each of K accesses puts on each channel; one copy where the placement
        replicates."""
        library = _native.library()
        if library is None:
            return self.reference_bytes_on_channels(runs, base, placement, copy)
        out = np.zeros((len(runs.ptr) - 1, self.total), np.int64)
        axes = []
        for axis, chosen in ((placement.cubes, copy[0]), (placement.pes, copy[1])):
            if axis is None:
                axes += [0, -1, 1, 1]
            else:
                axes += [axis.parts, chosen if axis.replicate else -1, axis.period, axis.segment]
        shape = np.array([self.cubes, self.channels, self.granule, self.hash == "modulo", base, *axes], np.int64)
        arrays = [np.ascontiguousarray(a, np.int64) for a in (runs.ptr, runs.address, runs.nbytes)]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, shape, out)]
        library.kb_bytes_on_channels(ctypes.c_int64(len(out)), *pointers)
        return out

    def reference_bytes_on_channels(
        self, runs: Runs, base: int = 0, placement: Placement = INTERLEAVED, copy: tuple[int, int] = (0, 0)
    ) -> Int64s:
        """The same in numpy, by cutting every run into pieces that cannot cross a boundary of any kind."""
        axes = [axis for axis in (placement.cubes, placement.pes) if axis is not None and not axis.replicate]
        unit = gcd(self.granule, *(gcd(axis.segment, axis.period) for axis in axes), base if axes else 0)
        first = runs.address // unit
        pieces = np.where(runs.nbytes > 0, (runs.address + runs.nbytes - 1) // unit - first + 1, 0)
        run = np.repeat(np.arange(len(runs.address)), pieces)
        start = (first[run] + np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * unit
        end = np.minimum(start + unit, (runs.address + runs.nbytes)[run])
        start = np.maximum(start, runs.address[run])
        accesses = len(runs.ptr) - 1
        owner = np.repeat(np.arange(accesses), np.diff(runs.ptr))[run]
        place = owner * self.total + self.locate(start, base, placement, copy)
        flat = np.bincount(place, weights=(end - start).astype(np.float64), minlength=accesses * self.total)
        return flat.astype(np.int64).reshape(accesses, self.total)


def _part(axis: Axis, offset: Int64s, copy: int) -> Int64s:
    if axis.replicate:
        return np.full(len(offset), copy)
    return np.minimum(offset % axis.period // axis.segment, axis.parts - 1)
