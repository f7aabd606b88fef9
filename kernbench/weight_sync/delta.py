"""The difference between two versions of a checkpoint's weights, as one file or stream.

Layout: 8 bytes of magic, then records as in :mod:`kernbench.weight_sync.records`::

    H  {"format", "base_version", "new_version"}
    T  {"name", "dtype", "shape"}                  of each tensor that has changed, followed by
    P  offset (u64) and encoding (u8) of a piece, and the piece in that encoding
    E  {"before", "after"}                         hashes of the whole tensor, after its last piece
    Z  {"records", "base", "new"}                  the number of records before, and a fingerprint of either version

Pieces are those of 4 MiB from a tensor's first byte on, and come in order, so that a delta is made and applied with
a few pieces in memory, whatever the size of a tensor. A hash is :func:`kernbench.weight_sync.arrays.digest`; a
fingerprint is one over the hashes of all tensors of a version, changed or not. What is applied to another base is
refused, by version and by hash.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import xxhash

from kernbench.weight_sync import encodings
from kernbench.weight_sync.arrays import TensorBytes, start_digest, to_bytes
from kernbench.weight_sync.blockdiff import BLOCK
from kernbench.weight_sync.dtypes import WireType
from kernbench.weight_sync.encodings import PIECE, Change, Encoding, width_of
from kernbench.weight_sync.records import head

MAGIC = b"KBDELTA1"
FORMAT = 1
PLACE = struct.Struct("<QB")
LIMIT = 32 << 20
"""Bytes of the longest record."""
HEADER, TENSOR, PIECE_RECORD, TENSOR_END, END = b"H", b"T", b"P", b"E", b"Z"
Progress = Callable[[str, int], Any]
"""Called with a tensor's name and bytes, once it is done."""


class DeltaError(ValueError):
    """A delta that is damaged, cut off, or made for another base."""


class WrongBaseError(DeltaError):
    """What the delta is applied to is not the version that it was made from."""


def fingerprint(digests: Mapping[str, str]) -> str:
    """One hash over the hashes of all tensors of a version, in the order of their names."""
    state = xxhash.xxh3_128()
    for name, digest in sorted(digests.items()):
        state.update(f"{name}\0{digest}\n".encode())
    return state.hexdigest()


@dataclass
class Costs:
    """What changed between two versions and what it takes in each encoding; sizes in bytes.

    Attributes:
        nbytes: of all tensors that were compared.
        predicted: for each encoding, from the numbers of changed elements and blocks and from samples.
        actual: for each encoding; of ``xor`` only if it was made for every piece.
        written: of the encodings that were chosen.
        chosen: pieces by encoding.
    """

    tensors: int = 0
    changed_tensors: int = 0
    nbytes: int = 0
    elements: int = 0
    changed_elements: int = 0
    blocks: int = 0
    dirty_blocks: int = 0
    predicted: dict[str, int] = field(default_factory=dict)
    actual: dict[str, int] = field(default_factory=dict)
    written: int = 0
    chosen: dict[str, int] = field(default_factory=dict)

    def add(self, change: Change, chosen: Encoding, every: bool) -> None:
        """Count one piece that differs.

        Args:
            every: also make the encodings that were not chosen, for :attr:`actual`.
        """
        self.changed_elements += change.changed
        self.dirty_blocks += change.dirty_blocks
        self.written += change.size(chosen)
        self.chosen[chosen.label] = self.chosen.get(chosen.label, 0) + 1
        for encoding, size in change.predicted.items() if every else ():
            self.predicted[encoding.label] = self.predicted.get(encoding.label, 0) + size
            self.actual[encoding.label] = self.actual.get(encoding.label, 0) + change.size(encoding)

    def whole(self) -> None:
        """Let ``full`` stand for all tensors, not only for pieces that changed."""
        for sizes in (self.predicted, self.actual):
            if sizes:
                sizes["full"] = self.nbytes


class DeltaWriter:
    """Writes a delta to a file or stream as changes come, tensor by tensor, pieces in order.

    Args:
        file: takes bytes with ``write``.
        encoding: one of :data:`kernbench.weight_sync.encodings.CHOICES`.
        block: bytes a block.
        every: make every encoding of every piece, for :attr:`Costs.actual`.
    """

    def __init__(
        self,
        file: BinaryIO | None,
        base_version: int,
        new_version: int,
        encoding: str = "auto",
        block: int = BLOCK,
        every: bool = False,
    ) -> None:
        if new_version <= base_version:
            raise ValueError(f"a delta leads to a later version, not from {base_version} to {new_version}")
        self.block = block
        self.costs = Costs()
        self.size = 0
        """Bytes written."""
        self._file, self._every = file, every
        self._among = encodings.allowed(encoding)
        self._records = 0
        self._name: str | None = None
        self._written = False
        self._write(MAGIC)
        self._json(HEADER, {"format": FORMAT, "base_version": base_version, "new_version": new_version})

    def begin(self, name: str, kind: WireType, shape: tuple[int, ...]) -> None:
        """Start a tensor. Nothing of it is written before a piece differs."""
        assert self._name is None
        self._name, self._kind, self._shape, self._written = name, kind, shape, False
        nbytes = kind.nbytes(shape)
        self.costs.tensors += 1
        self.costs.nbytes += nbytes
        self.costs.elements += nbytes // width_of(kind.bits)
        self.costs.blocks += -(-nbytes // self.block)

    def piece(self, offset: int, change: Change) -> None:
        """Add the piece from ``offset`` on, if it differs."""
        if not len(change.runs):
            return
        if not self._written:
            self._written = True
            self.costs.changed_tensors += 1
            about = {"name": self._name, "dtype": self._kind.code or self._kind.name, "shape": list(self._shape)}
            self._json(TENSOR, about)
        encoding = change.cheapest(self._among)
        self.costs.add(change, encoding, self._every)
        if self._file is not None:
            self._record(PIECE_RECORD, PLACE.pack(offset, encoding), change.encode(encoding))

    def end(self, before: str, after: str) -> None:
        """End a tensor: its hash before and after."""
        if self._written:
            self._json(TENSOR_END, {"before": before, "after": after})
        self._name = None

    def finish(self, base: Mapping[str, str], new: Mapping[str, str]) -> Costs:
        """End the delta.

        Args:
            base, new: the hash of every tensor of either version.
        """
        assert self._name is None
        self._json(END, {"records": self._records, "base": fingerprint(base), "new": fingerprint(new)})
        if self._every:
            self.costs.whole()
        return self.costs

    def _json(self, kind: bytes, document: Mapping[str, Any]) -> None:
        self._record(kind, json.dumps(document, separators=(",", ":")).encode())

    def _record(self, kind: bytes, *body: bytes) -> None:
        self._records += 1
        self._write(head(kind, *body))
        for part in body:
            self._write(part)

    def _write(self, data: bytes) -> None:
        self.size += len(data)
        if self._file is not None:
            self._file.write(data)


def write_delta(
    file: BinaryIO | None,
    base: Mapping[str, Any],
    new: Mapping[str, Any] | Iterable[tuple[str, Any]],
    base_version: int = 0,
    new_version: int = 1,
    *,
    encoding: str = "auto",
    block: int = BLOCK,
    every: bool = False,
    progress: Progress | None = None,
    per_tensor: Callable[[str, Costs], Any] | None = None,
) -> Costs:
    """Write the difference between two versions of the same tensors, a few pieces in memory at a time.

    Args:
        file: where to; None only counts.
        base, new: name -> tensor (of any library), or :class:`~kernbench.weight_sync.arrays.TensorBytes`. The new ones
            may come as pairs, which are taken one at a time.
        encoding: one of :data:`kernbench.weight_sync.encodings.CHOICES`.
        every: as of :class:`DeltaWriter`.
        per_tensor: called with the costs of every tensor.

    Raises:
        ValueError: the names differ or one comes twice, or "Shape mismatch for <tensor>".
        TypeError: "Type mismatch for <tensor>".
    """
    if isinstance(new, Mapping):
        _check_names(base.keys(), new.keys())
    writer = DeltaWriter(file, base_version, new_version, encoding, block, every)
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    total = writer.costs
    for name, weight in new.items() if isinstance(new, Mapping) else new:
        _check_names({name} if name not in after else set(), base.keys() & {name})
        old, now = _raw(base[name]), _raw(weight)
        check_same(name, (now.kind, now.shape), (old.kind, old.shape))
        writer.costs = Costs()
        writer.begin(name, old.kind, old.shape)
        states = start_digest(old.kind, old.shape), start_digest(old.kind, old.shape)
        for start in range(0, old.data.size, PIECE):
            pieces = old.data[start : start + PIECE], now.data[start : start + PIECE]
            writer.piece(start, Change(*pieces, width_of(old.kind.bits), block))
            for state, piece in zip(states, pieces, strict=True):
                state.update(piece)
        before[name], after[name] = (state.hexdigest() for state in states)
        writer.end(before[name], after[name])
        if per_tensor is not None:
            per_tensor(name, writer.costs)
        if progress is not None:
            progress(name, old.data.size)
        _sum(total, writer.costs)
    _check_names(base.keys(), after.keys())
    writer.costs = total
    return writer.finish(before, after)


def _check_names(one: Set[str], other: Set[str]) -> None:
    if one != other:
        raise ValueError(
            f"{min(one ^ other)} is not once in either version: a delta is between versions with the same tensors; "
            "send all of the new one"
        )


def check_same(name: str, new: tuple[WireType, tuple[int, ...]], old: tuple[WireType, tuple[int, ...]]) -> None:
    """Refuse a tensor of another type or shape.

    Raises:
        TypeError: "Type mismatch for".
        ValueError: "Shape mismatch for".
    """
    if new[0] != old[0]:
        raise TypeError(f"Type mismatch for {name}: {new[0]}, but {old[0]} in the base")
    if new[1] != old[1]:
        raise ValueError(f"Shape mismatch for {name}: {list(new[1])}, but {list(old[1])} in the base")


def _raw(weight: Any) -> TensorBytes:
    return weight if isinstance(weight, TensorBytes) else to_bytes(weight)


def _sum(total: Costs, one: Costs) -> None:
    for key, value in vars(one).items():
        if isinstance(value, int):
            setattr(total, key, getattr(total, key) + value)
        else:
            mine = getattr(total, key)
            for name, n in value.items():
                mine[name] = mine.get(name, 0) + n
