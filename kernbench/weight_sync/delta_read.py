"""Deltas read: one after another from a stream, or single tensors from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from kernbench.weight_sync import encodings
from kernbench.weight_sync.arrays import Bytes, start_digest
from kernbench.weight_sync.delta import (
    END,
    FORMAT,
    HEADER,
    LIMIT,
    MAGIC,
    PIECE_RECORD,
    PLACE,
    TENSOR,
    TENSOR_END,
    DeltaError,
    WrongBaseError,
    check_same,
)
from kernbench.weight_sync.dtypes import WireType, wire_type
from kernbench.weight_sync.encodings import PIECE, width_of
from kernbench.weight_sync.records import read_exactly, read_records


@dataclass(frozen=True)
class Patch:
    """One encoded piece of a tensor."""

    offset: int
    encoding: int
    data: memoryview

    def apply_to(self, piece: Bytes, kind: WireType, place: str) -> None:
        """Turn the old bytes of this piece into the new ones, in place.

        Raises:
            DeltaError: it is malformed.
        """
        try:
            encodings.apply(self.encoding, self.data, piece, width_of(kind.bits))
        except encodings.EncodingError as wrong:
            raise DeltaError(f"{place}, the piece at byte {self.offset}: {wrong}") from None


class DeltaTensor:
    """One changed tensor of a delta that is being read; its pieces have to be taken before the next tensor."""

    def __init__(self, name: str, kind: WireType, shape: tuple[int, ...], records: Iterator[Any], place: str) -> None:
        self.name, self.kind, self.shape = name, kind, shape
        self._records, self._place = records, place
        self._hashes: dict[str, str] | None = None

    def patches(self) -> Iterator[Patch]:
        """Its pieces, in order; those that have not changed are not there.

        Raises (while iterating):
            DeltaError: a piece lies outside the tensor, or out of order.
        """
        size, at = self.kind.nbytes(self.shape), 0
        for kind, body in self._records:
            if kind == TENSOR_END:
                self._hashes = _document(body, self._place, {"before": str, "after": str})
                return
            if kind != PIECE_RECORD or len(body) < PLACE.size:
                break
            offset, encoding = PLACE.unpack_from(body)
            if offset < at or offset % PIECE or offset >= size:
                raise DeltaError(f"{self._place}: a piece of {self.name} at {offset} lies outside it or out of order")
            at = offset + PIECE
            yield Patch(offset, encoding, memoryview(body)[PLACE.size :])
        raise DeltaError(f"{self._place}: {self.name} has no end")

    def check(self, before: str | None, after: str | None) -> None:
        """Compare hashes of the whole tensor with the delta's, once all pieces have been taken; None is not compared.

        Raises:
            WrongBaseError: it was not what the delta starts from.
            DeltaError: it is not what the delta leads to.
        """
        assert self._hashes is not None
        if before not in (None, self._hashes["before"]):
            raise WrongBaseError(
                f"{self._place}: made for another base: {self.name} hashes to {before} here, "
                f"{self._hashes['before']} there; nothing was changed"
            )
        if after not in (None, self._hashes["after"]):
            raise DeltaError(
                f"{self._place}: {self.name} hashes to {after} with it, {self._hashes['after']} was expected"
            )


class DeltaReader:
    """Reads a delta from a file or stream, in order, a piece in memory at a time.

    Raises:
        DeltaError: it is no delta, or of another format.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.place = str(getattr(file, "name", "delta"))
        found = read_exactly(file, len(MAGIC))
        if found != MAGIC:
            raise DeltaError(f"{self.place}: no delta of weights: it starts with {found!r}, expected {MAGIC!r}")
        self._count = 0
        self._records = self._counted(read_records(file, self.place, LIMIT, DeltaError))
        kind, body = next(self._records, (b"", b""))
        if kind != HEADER:
            raise DeltaError(f"{self.place}: cut off before its header")
        about = _document(body, self.place, {"format": int, "base_version": int, "new_version": int})
        if about["format"] != FORMAT:
            raise DeltaError(f"{self.place}: format {about['format']}, this program knows {FORMAT}")
        self.base_version: int = about["base_version"]
        self.new_version: int = about["new_version"]
        if self.new_version <= self.base_version:
            raise DeltaError(f"{self.place}: it leads from version {self.base_version} to {self.new_version}")
        self.base_fingerprint = self.new_fingerprint = ""
        """Of the two versions; known once all tensors have been read."""

    def __iter__(self) -> Iterator[DeltaTensor]:
        """The changed tensors. Raises (while iterating): DeltaError; what came before it is not the whole change."""
        seen: set[str] = set()
        for kind, body in self._records:
            if kind == END:
                end = _document(body, self.place, {"records": int, "base": str, "new": str})
                if end["records"] != self._count - 1:
                    raise DeltaError(f"{self.place}: {self._count - 1} records, written were {end['records']}")
                if next(self._records, None) is not None:
                    raise DeltaError(f"{self.place}: more follows its end")
                self.base_fingerprint, self.new_fingerprint = end["base"], end["new"]
                return
            if kind != TENSOR:
                raise DeltaError(f"{self.place}: a record of kind {kind!r} where a tensor should start")
            about = _document(body, self.place, {"name": str, "dtype": str, "shape": list})
            if about["name"] in seen:
                raise DeltaError(f"{self.place}: {about['name']} is there twice")
            seen.add(about["name"])
            yield self._tensor(about)
        raise DeltaError(f"{self.place}: it is cut off: its end is missing")

    def _tensor(self, about: dict[str, Any]) -> DeltaTensor:
        try:
            kind, shape = wire_type(about["dtype"]), tuple(about["shape"])
            if not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"the shape is {about['shape']}")
            kind.nbytes(shape)
        except (TypeError, ValueError) as wrong:
            raise DeltaError(f"{self.place}: {about['name']}: {wrong}") from None
        return DeltaTensor(about["name"], kind, shape, self._records, self.place)

    def _counted(self, records: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for record in records:
            self._count += 1
            yield record


class DeltaFile:
    """A delta on the disk, of which single tensors can be taken in any order. All of it is checked first.

    Raises:
        DeltaError: see :class:`DeltaReader`.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        try:
            reader = DeltaReader(self._file)
            self.place = reader.place
            self.base_version, self.new_version = reader.base_version, reader.new_version
            self._places: dict[str, tuple[DeltaTensor, int]] = {}
            for tensor in reader:
                self._places[tensor.name] = tensor, self._file.tell()
                for _ in tensor.patches():
                    pass
            self.base_fingerprint, self.new_fingerprint = reader.base_fingerprint, reader.new_fingerprint
        except BaseException:
            self._file.close()
            raise

    @property
    def names(self) -> set[str]:
        """Of the tensors that change."""
        return set(self._places)

    def apply_to(self, name: str, kind: WireType, shape: tuple[int, ...], data: Bytes) -> None:
        """Turn the old bytes of a tensor into the new ones, in place; those of one that does not change stay.

        Raises:
            WrongBaseError: they are not those that the delta starts from; they are as they were.
            DeltaError: the delta is damaged; they are a mixture.
            TypeError, ValueError: type or shape differ.
        """
        if name not in self._places:
            return
        known, at = self._places[name]
        check_same(name, (known.kind, known.shape), (kind, shape))
        known.check(_digest(kind, shape, data), None)
        self._file.seek(at)
        tensor = DeltaTensor(name, kind, shape, read_records(self._file, self.place, LIMIT, DeltaError), self.place)
        for patch in tensor.patches():
            patch.apply_to(data[patch.offset : patch.offset + PIECE], kind, f"{self.place}: {name}")
        tensor.check(None, _digest(kind, shape, data))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> DeltaFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _digest(kind: WireType, shape: tuple[int, ...], data: Bytes) -> str:
    state = start_digest(kind, shape)
    state.update(data)
    return str(state.hexdigest())


def _document(body: bytes, place: str, keys: Mapping[str, type]) -> dict[str, Any]:
    try:
        document = json.loads(body)
        for key, kind in keys.items():
            if type(document[key]) is not kind:
                raise ValueError(f"{key} is {document[key]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise DeltaError(f"{place}: a record makes no sense: {type(wrong).__name__}: {wrong}") from None
    made: dict[str, Any] = document
    return made
