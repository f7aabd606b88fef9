"""From the bytes a DMA touches to the messages it sends. Each distinct descriptor is worked out once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import INTERLEAVED, Placement
from kernbench.memory.channels import ChannelMap, Runs
from kernbench.sim_engine.bound import Int32s, Int64s, Patterns
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.oplog import Access, Placed

Copy = tuple[int, int]
_CHUNK = 1 << 23
"""Elements of the bytes-on-channels matrix that are worked on at a time."""


def counts_of(access: Access, programs: Int64s, trips: Int64s) -> Int64s:
    """int64[K, D]: clipped extents of a strided access for (program, iteration) pairs."""
    full = np.array(access.counts, np.int64)
    if access.extent is None:
        return np.broadcast_to(full, (len(programs), len(full)))
    extent = access.extent[programs]
    if access.extent_step is not None:
        extent = extent + trips[:, None] * np.array(access.extent_step, np.int64)
    return np.clip(extent, 0, full)


class PatternBook:
    """Patterns of one machine, and how each descriptor's was called."""

    def __init__(self, machine: Machine) -> None:
        hbm = machine.graph.spec.sip.cube.hbm
        self.machine = machine
        self.channels = ChannelMap(
            machine.cubes, machine.channels_per_cube, int(hbm.interleave.granule), hbm.interleave.hash
        )
        self.burst = int(hbm.burst)
        self.patterns = Patterns()
        self._known: dict[tuple, dict[tuple[int, int, int, int], int]] = {}
        self._steps: dict[tuple, int] = {}

    def of_row(
        self,
        access: Access,
        kind: str,
        atomics: int,
        programs: Int64s,
        trips: Int64s,
        pes: Int64s,
        placed: Sequence[Placed],
    ) -> tuple[Int32s, Int64s]:
        """Patterns and bytes of one row's ops.

        Args:
            kind: ``read``, ``write`` or ``atomic``.
            atomics: how many atomic operations one op performs.
            programs, trips, pes: int64[K]: program (column of the block), iteration and PE of each op.
        Returns:
            (int32[K] pattern numbers, int64[K] bytes moved, copies included).
        """
        if access.run_ptr is not None:
            return self._irregular(access, kind, atomics, programs, pes, placed)
        address = access.base[programs] + trips * access.base_step
        counts = counts_of(access, programs, trips)
        code = np.zeros(len(address), np.int64)  # the extents in mixed radix; 0 for the full ones
        for n, full in zip(counts.T, access.counts, strict=True) if access.extent is not None else ():
            code = code * (full + 1) + (full - n)
        where = self._placed_index(address, placed)
        nearest = self._nearest(where, pes, placed) if kind == "read" else np.zeros(len(address), np.int64)
        parts = [code, where, nearest]
        rank = np.zeros(len(address), np.int64)
        for part in parts:
            if part.any():
                part = np.unique(part, return_inverse=True)[1]
                rank = rank * (int(part.max()) + 1) + part
        if rank.any():
            rank = np.unique(rank, return_inverse=True)[1].astype(np.int64)
        key = address * (int(rank.max(initial=0)) + 1) + rank
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)

        family = (kind, access.counts, access.strides, atomics, tuple(placed))
        known = self._known.setdefault(family, {})
        names = list(
            zip(
                address[first].tolist(),
                code[first].tolist(),
                where[first].tolist(),
                nearest[first].tolist(),
                strict=True,
            )
        )
        new = [i for i, name in enumerate(names) if name not in known]
        if new:
            chosen = first[new]
            runs = Runs.strided(address[chosen], counts[chosen], access.strides)
            ids = self._make(runs, kind, atomics, where[chosen], nearest[chosen], placed)
            known.update(zip((names[i] for i in new), ids.tolist(), strict=True))
        numbers = np.array([known[name] for name in names], np.int32)[inverse]
        return numbers, self._bytes(numbers)

    def _irregular(
        self, access: Access, kind: str, atomics: int, programs: Int64s, pes: Int64s, placed: Sequence[Placed]
    ) -> tuple[Int32s, Int64s]:
        assert access.run_ptr is not None and access.run_addr is not None and access.run_bytes is not None
        if access.base_step:
            raise ValueError(
                "an access given as explicit runs cannot move from iteration to iteration: give it base_step 0"
            )
        distinct, inverse = np.unique(programs, return_inverse=True)
        start, size = access.run_ptr[:-1][distinct], np.diff(access.run_ptr)[distinct]
        ptr = np.concatenate([[0], np.cumsum(size)])
        pick = np.repeat(start - ptr[:-1], size) + np.arange(ptr[-1])
        runs = Runs(ptr, access.run_addr[pick], access.run_bytes[pick])
        head = np.zeros(len(distinct), np.int64)
        some = size > 0
        head[some] = runs.address[ptr[:-1][some]]
        where = self._placed_index(head, placed)
        pe_of = np.zeros(len(distinct), np.int64)
        pe_of[inverse] = pes
        nearest = self._nearest(where, pe_of, placed) if kind == "read" else np.zeros(len(head), np.int64)
        numbers = self._make(runs, kind, atomics, where, nearest, placed)[inverse]
        return numbers, self._bytes(numbers)

    def of_command(self, kind: str, access: Access, placed: Sequence[Placed]) -> int:
        """The pattern of one access: ``read`` (channels, then a route), ``write`` (the other way round)."""
        key = (kind, _key(access), tuple(placed))
        if key not in self._steps:
            one = np.zeros(1, np.int64)
            self._steps[key] = int(self.of_row(access, kind, 0, one, one, one, placed)[0][0])
        return self._steps[key]

    def exchange(
        self, source: Access, source_placed: Sequence[Placed], destination: Access, destination_placed: Sequence[Placed]
    ) -> int:
        """From one rank's memory into another's (or its own): one message for each source cube, or more where source
        and destination lie unevenly over the cubes. Slots are ``source cube * cubes + destination cube``."""
        key = ("exchange", _key(source), _key(destination), tuple(source_placed), tuple(destination_placed))
        if key not in self._steps:
            out = self._bytes_of(source, source_placed, "read")
            into = self._bytes_of(destination, destination_placed, "write")
            leaving, arriving = self._sets(out[None]), self._sets(into[None])
            cubes = self.machine.cubes
            slot, nbytes, most_out, most_in = _match(out.reshape(cubes, -1).sum(1), into.reshape(cubes, -1).sum(1))
            source_set = np.where(most_out, leaving[0][slot // cubes], -1).astype(np.int32)
            destination_set = np.where(most_in, arriving[0][slot % cubes], -1).astype(np.int32)
            made = self.patterns.add(np.array([len(slot)]), slot.astype(np.int32), nbytes, source_set, destination_set)
            self._steps[key] = int(made[0])
        return self._steps[key]

    def local_pass(self, reads: Sequence[Access], writes: Sequence[Access], placed: Sequence[Placed]) -> int:
        """Reads and writes of a rank's own memory by all its PEs together: channels only."""
        key = ("local", tuple(map(_key, reads)), tuple(map(_key, writes)), tuple(placed))
        if key not in self._steps:
            total = sum(
                (self._bytes_of(a, placed, kind) for kind, some in (("read", reads), ("write", writes)) for a in some),
                np.zeros(self.channels.total, np.int64),
            )
            self._steps[key] = int(self._messages(total[None], "read", 0)[0])
        return self._steps[key]

    def message(self, nbytes: int) -> int:
        """Bytes from one scratchpad to another: the route in slot 0, and no memory."""
        key = ("message", nbytes)
        if key not in self._steps:
            none = np.full(1, -1, np.int32)
            one = np.ones(1, np.int64)
            made = self.patterns.add(one, np.zeros(1, np.int32), np.array([nbytes], np.int64), none, none)
            self._steps[key] = int(made[0])
        return self._steps[key]

    def _bytes(self, numbers: Int32s) -> Int64s:
        patterns = self.patterns
        total = np.concatenate([[0], np.cumsum(patterns.bytes.view)])
        ptr = patterns.message_ptr.view
        return total[ptr[numbers + 1]] - total[ptr[numbers]]

    def _placed_index(self, address: Int64s, placed: Sequence[Placed]) -> Int64s:
        """Which entry of ``placed`` each address falls into, plus one; 0 for none."""
        where = np.zeros(len(address), np.int64)
        for i, one in enumerate(placed):
            where[(address >= one.base) & (address < one.end)] = i + 1
        return where

    def _nearest(self, where: Int64s, pes: Int64s, placed: Sequence[Placed]) -> Int64s:
        """The copy that each reader takes, as ``cube * PE shares + PE share``; 0 where there is one."""
        nearest = np.zeros(len(where), np.int64)
        per_cube = self.machine.graph.pes_per_cube
        for i, one in enumerate(placed):
            mine = where == i + 1
            if not mine.any() or one.placement.copies == 1:
                continue
            cubes, shares = one.placement.cubes, one.placement.pes
            cube = self._nearest_cubes(cubes.parts)[pes[mine] // per_cube] if cubes and cubes.replicate else 0
            share = pes[mine] % per_cube % shares.parts if shares and shares.replicate else 0
            nearest[mine] = cube * (shares.parts if shares else 1) + share
        return nearest

    def _nearest_cubes(self, copies: int) -> Int64s:
        """int64[cubes]: for each cube the one of the first ``copies`` that is nearest, by latency, then by number."""
        graph = self.machine.graph
        hbm = [graph.hbm_node(0, c) for c in range(self.machine.cubes)]
        far = [
            [graph.latency_ps(graph.route(hbm[c], reader)) if hbm[c] != reader else -1 for c in range(copies)]
            for reader in hbm
        ]
        return np.argmin(np.array(far), axis=1)

    def _bytes_of(self, access: Access, placed: Sequence[Placed], kind: str) -> Int64s:
        """int64[channels] of one access of a whole rank."""
        one = np.zeros(1, np.int64)
        if access.run_ptr is not None:
            assert access.run_addr is not None and access.run_bytes is not None
            runs = Runs(access.run_ptr, access.run_addr, access.run_bytes)
        else:
            runs = Runs.strided(access.base[:1], counts_of(access, one, one), access.strides)
        where = self._placed_index(runs.address[:1], placed)
        return self._histogram(runs, kind, int(where[0]) if len(where) else 0, 0, placed)[0]

    def _histogram(self, runs: Runs, kind: str, where: int, nearest: int, placed: Sequence[Placed]) -> Int64s:
        base, placement = (placed[where - 1].base, placed[where - 1].placement) if where else (0, INTERLEAVED)
        shares = placement.pes.parts if placement.pes else 1
        runs = runs.in_bursts(self.burst)
        if kind == "read" or placement.copies == 1:
            return self.channels.bytes_on_channels(runs, base, placement, divmod(nearest, shares))
        return sum(
            (self.channels.bytes_on_channels(runs, base, placement, copy) for copy in _copies(placement)),
            np.zeros((len(runs.ptr) - 1, self.channels.total), np.int64),
        )

    def _make(
        self, runs: Runs, kind: str, atomics: int, where: Int64s, nearest: Int64s, placed: Sequence[Placed]
    ) -> Int32s:
        """New patterns for K accesses."""
        made = np.zeros(len(where), np.int32)
        rows = max(1, _CHUNK // self.channels.total)
        group = where * (int(nearest.max(initial=0)) + 1) + nearest
        for g in np.unique(group):
            mine = np.flatnonzero(group == g)
            for i in range(0, len(mine), rows):
                some = mine[i : i + rows]
                part = _select(runs, some) if len(some) < len(where) else runs
                found = self._histogram(part, kind, int(where[some[0]]), int(nearest[some[0]]), placed)
                made[some] = self._messages(found, kind, atomics)
        return made

    def _messages(self, found: Int64s, kind: str, atomics: int) -> Int32s:
        """Patterns for int64[K, channels] bytes: one message for each cube touched."""
        per_cube = found.reshape(len(found), self.machine.cubes, -1).sum(2)
        sets = self._sets(found, atomics if kind == "atomic" else 0)
        at, cube = np.nonzero(per_cube)
        chosen, none = sets[at, cube], np.full(len(at), -1, np.int32)
        source, destination = (none, chosen) if kind == "write" else (chosen, none)
        sizes = np.bincount(at, minlength=len(found))
        return self.patterns.add(sizes, cube.astype(np.int32), per_cube[at, cube], source, destination)

    def _sets(self, found: Int64s, atomics: int = 0) -> Int32s:
        """int32[K, cubes]: the channel set in each cube, -1 where it is empty.

        A channel is busy for its bytes at its bandwidth. An atomic operation holds its home channel for a whole access,
        and those of one channel follow each other.
        """
        machine = self.machine
        at, channel = np.nonzero(found)
        amount = found[at, channel]
        busy = np.maximum(1, np.floor(amount * machine.channel_ps_per_byte + 0.5)).astype(np.int64)
        if atomics:
            operations = np.maximum(1, -(-amount * atomics // found.sum(1)[at]))
            busy = np.maximum(busy, operations * machine.access_ps)
        group = at * machine.cubes + channel // machine.channels_per_cube
        used, sizes = np.unique(group, return_counts=True)
        sets = np.full(len(found) * machine.cubes, -1, np.int32)
        stack = (used % machine.cubes).astype(np.int32)
        sets[used] = self.patterns.add_sets(stack, sizes, channel.astype(np.int32), busy)
        return sets.reshape(len(found), machine.cubes)


def _match(out: Int64s, into: Int64s) -> tuple[Int64s, Int64s, NDArray[np.bool_], NDArray[np.bool_]]:
    """Pair what leaves each cube with what each cube takes: equal cubes first, then what is left over in order.

    Returns (slot, bytes, most_out, most_in): messages, whether each is the largest from its source cube (and so is the
    one to occupy its channels), the largest into its destination cube.
    """
    cubes = len(out)
    out, into = out.copy(), into.copy()
    moved = np.zeros((cubes, cubes), np.int64)
    for s, d in [(c, c) for c in range(cubes)] + [(s, d) for s in range(cubes) for d in range(cubes) if s != d]:
        amount = min(out[s], into[d])
        moved[s, d] += amount
        out[s] -= amount
        into[d] -= amount
    source, destination = np.nonzero(moved)
    most_out = moved.argmax(1)[source] == destination
    most_in = moved.argmax(0)[destination] == source
    return source * cubes + destination, moved[source, destination], most_out, most_in


def _copies(placement: Placement) -> list[Copy]:
    cubes, shares = placement.cubes, placement.pes
    return [
        (c, s)
        for c in range(cubes.parts if cubes and cubes.replicate else 1)
        for s in range(shares.parts if shares and shares.replicate else 1)
    ]


def _select(runs: Runs, accesses: Int64s) -> Runs:
    size = np.diff(runs.ptr)[accesses]
    ptr = np.concatenate([[0], np.cumsum(size)])
    pick = np.repeat(runs.ptr[:-1][accesses] - ptr[:-1], size) + np.arange(ptr[-1])
    return Runs(ptr, runs.address[pick], runs.nbytes[pick])


def _key(access: Access) -> tuple:
    extent = () if access.extent is None else tuple(access.extent[0].tolist())
    runs = (
        ()
        if access.run_addr is None or access.run_bytes is None
        else (access.run_addr.tobytes(), access.run_bytes.tobytes())
    )
    return int(access.base[0]) if len(access.base) else 0, access.counts, access.strides, extent, runs
