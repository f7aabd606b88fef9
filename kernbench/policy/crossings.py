"""Where kernels that communicate leave their device or their program: paths to other PEs and memories, and what ops
wait for in other programs and launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernbench.policy.mapping import pe_of_programs
from kernbench.policy.patterns import PatternBook
from kernbench.sim_engine.bound import FIXED, Int32s, Int64s
from kernbench.sim_engine.oplog import Access, KernelRecord, OpKind, Placed, Row

_ROW_BITS = 24
SPUN = frozenset({"load", "atomic"})
"""Rows that look at memory in a loop written by hand. Where a PE has several programs, these do not wait for a later
one, of their own launch or of its like on another SIP: it may come after them in the queues of the same PE, or after
one that waits for what does."""


@dataclass(slots=True)
class Published:
    """What others can wait for in one launch.

    Attributes:
        key: int64[M] ascending, program and row.
        op: int32[M], counted from the launch's first.
    """

    key: Int64s
    op: Int32s

    def find(self, program: Int64s, row: Int64s) -> Int64s:
        """int64[N]: the ops that tokens name.

        Raises:
            ValueError: the launch has no such row for others to wait for.
        """
        key = program << _ROW_BITS | row
        at = np.searchsorted(self.key, key)
        known = np.append(self.key, -1)[at] == key
        if not known.all():
            missing = int(np.argmin(known))
            raise ValueError(
                f"a record waits for row {row[missing]} of program {program[missing]} of a launch that has "
                f"{len(self.key)} rows to wait for, and that is none of them: the record has been changed or mixed up "
                "with another"
            )
        return self.op[at].astype(np.int64)


@dataclass(slots=True)
class Crossings:
    """Of one launch.

    Attributes:
        number: the launch's, as tokens have it.
        paths: int32[E], paths that its ops take besides those of its PEs to and from their own HBM.
        op, token: int32[K] and int64[K, 4]: op of this launch, and the token it waits for.
        published: what others can wait for.
    """

    number: int
    paths: Int32s
    op: Int32s
    token: Int64s
    published: Published


def needs(record: KernelRecord) -> set[tuple[int, int]]:
    """(SIP, number) of the launches that a launch waits for."""
    tokens = [row.awaits.tokens[:, :2] for block in record.blocks for row in block.rows if row.awaits is not None]
    if not tokens:
        return set()
    return {(int(sip), int(number)) for sip, number in np.unique(np.concatenate(tokens), axis=0) if number >= 0}


def crosses(record: KernelRecord) -> bool:
    """Whether its programs wait for each other, or for those of other launches."""
    return record.number >= 0 or any(row.awaits is not None for block in record.blocks for row in block.rows)


class Crosser:
    """Collects the crossings of one launch of ``rank`` while its rows are expanded."""

    def __init__(self, record: KernelRecord, book: PatternBook, rank: int) -> None:
        self._record, self._book, self._machine, self._rank = record, book, book.machine, rank
        self._paths: dict[int, int] = {}
        self._ops: list[Int64s] = []
        self._tokens: list[Int64s] = []
        self._keys: list[Int64s] = []
        self._published: list[Int64s] = []

    def paths(self, peer: Int64s, pe: Int64s, writing: bool) -> Int32s:
        """int32[N]: the paths of PEs to or from the HBM of SIPs, numbered after those of the launch's own PEs."""
        machine, own = self._machine, self._machine.pe_paths(self._rank)
        pairs, which = np.unique(np.stack([peer, pe], axis=1), axis=0, return_inverse=True)
        numbers = [
            on + machine.pes * writing
            if sip == self._rank
            else 2 * len(own[0]) + self._local(machine.peer_path(self._rank, on, sip, writing))
            for sip, on in pairs.tolist()
        ]
        return np.array(numbers, np.int32)[np.ravel(which)]

    def copies(self, row: Row, columns: Int64s, placed: Sequence[Placed]) -> tuple[Int32s, Int32s, Int64s]:
        """(patterns, paths, bytes) of copies from this rank's memory to others'. ``columns``: the ops' programs, by
        their places in the block."""
        assert row.source is not None and row.access is not None
        nbytes = int(np.prod(row.access.counts))
        patterns, paths = np.zeros(len(columns), np.int32), np.zeros(len(columns), np.int32)
        for i, column in enumerate(columns.tolist()):
            source = Access.contiguous(int(row.source[column]), nbytes)
            target = Access.contiguous(int(row.access.base[column]), nbytes)
            peer = self._rank if row.peer is None else int(row.peer[column])
            patterns[i] = self._book.exchange(source, placed, target, placed)
            paths[i] = 2 * self._machine.pes + self._local(self._machine.exchange_path(self._rank, peer))
        return patterns, paths, np.full(len(columns), nbytes, np.int64)

    def messages(self, target: Int64s, pe: Int64s) -> tuple[Int32s, Int32s]:
        """(patterns, paths) of messages from PEs to ``target`` (int64[N, 3]: SIP, program, bytes)."""
        machine = self._machine
        patterns, paths = np.full(len(pe), FIXED, np.int32), np.zeros(len(pe), np.int32)
        to = pe_of_programs(target[:, 1], machine.pes)
        for i, (sip, other, nbytes, on) in enumerate(
            zip(target[:, 0].tolist(), to.tolist(), target[:, 2].tolist(), pe.tolist(), strict=True)
        ):
            if (sip, other) != (self._rank, on):  # to itself it takes no time
                patterns[i] = self._book.message(nbytes)
                paths[i] = 2 * machine.pes + self._local(machine.message_path(self._rank, on, sip, other))
        return patterns, paths

    def _local(self, path: int) -> int:
        return self._paths.setdefault(path, len(self._paths))

    def cross(self, row: Row, r: int, ops: Int64s, columns: Int64s, programs: Int64s) -> Int64s:
        """Note what the ops of row ``r`` wait for, and how others know them. Returns int64[N], how long they take on
        that account: those of a barrier, until what they wait for has been heard of.

        Args:
            ops, columns, programs: int64[N]: of each op its number, and its program's place in the block and in the
                grid.
        """
        took = np.zeros(len(ops), np.int64)
        if row.kind in (OpKind.SIGNAL, OpKind.SEND, OpKind.RECEIVE):
            if r >> _ROW_BITS:
                raise ValueError(f"a program of kernel '{self._record.name}' has more than {1 << _ROW_BITS} rows")
            self._keys.append(programs << _ROW_BITS | r)
            self._published.append(ops)
        if row.awaits is None:
            return took
        sizes = np.diff(row.awaits.ptr)[columns]
        pick = np.repeat(row.awaits.ptr[:-1][columns] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        tokens, waiting = row.awaits.tokens[pick], np.repeat(ops, sizes)
        if row.op in SPUN and self._record.programs > self._machine.pes:
            before = np.repeat(programs, sizes) + (tokens[:, 0] >= 0) * (tokens[:, 0] != self._rank)
            earlier = (tokens[:, 1] == self._record.number) & (tokens[:, 2] < before)
            tokens, waiting = tokens[earlier], waiting[earlier]
        self._ops.append(waiting)
        self._tokens.append(tokens)
        if row.op == "barrier":
            listener = pe_of_programs(np.repeat(programs, sizes), self._machine.pes)
            speaker = pe_of_programs(tokens[:, 2], self._machine.pes)
            ways, which = np.unique(np.stack([tokens[:, 0], speaker, listener], 1), axis=0, return_inverse=True)
            far = [self._machine.message_latency(sip, a, self._rank, b) for sip, a, b in ways.tolist()]
            np.maximum.at(took, np.repeat(np.arange(len(ops)), sizes), np.array(far, np.int64)[np.ravel(which)])
        return took

    def crossings(self) -> Crossings:
        """All that was collected."""
        none = np.empty(0, np.int64)
        key, published = np.concatenate([none, *self._keys]), np.concatenate([none, *self._published])
        order = np.argsort(key)
        return Crossings(
            self._record.number,
            np.array(list(self._paths), np.int32),
            np.concatenate([none, *self._ops]).astype(np.int32),
            np.concatenate([np.empty((0, 4), np.int64), *self._tokens]),
            Published(key[order], published[order].astype(np.int32)),
        )
