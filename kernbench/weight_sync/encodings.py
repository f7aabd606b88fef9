"""Ways to write down what changed in a piece of a tensor, what each takes, and which takes least.

==========  ============================================================================================================
``full``    the new bytes
``block``   runs of blocks that differ, with their new bytes: for changes that lie together
``sparse``  the distances between changed elements, and their new values: for scattered changes
``xor``     the same with the values' XOR to the old ones, sorted into planes of like bytes and compressed with zstd; a
            training step flips few and low bits. Needs the ``weights`` extra
==========  ============================================================================================================

``full``, ``block`` and ``sparse`` hold absolute bytes, so that applying them twice is harmless; ``xor`` does not.

A distance is stored in 1, 2 or 4 bytes, whichever makes the whole smallest; one that does not fit is bridged by
elements between, which are listed with the value that they have anyway. Pieces are short, so that nothing counts beyond
32 bits however long the tensor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.weight_sync.blockdiff import BLOCK, Runs, differing_runs

Bytes = NDArray[np.uint8]
Buffer = bytes | memoryview
PIECE = 4 << 20
"""Bytes of a tensor that are encoded together: it is cut there from its first byte on, the last piece is short."""
_COUNT = struct.Struct("<I")
_ELEMENTS = struct.Struct("<IB")
_SAMPLE = 1 << 15
"""Changed elements that are compressed to foretell what compressing all of them gives."""
_LEVEL = 1


class Encoding(IntEnum):
    """How a piece is written down; the numbers stand in files."""

    FULL = 0
    BLOCK = 1
    SPARSE = 2
    XOR = 3

    @property
    def label(self) -> str:
        return self.name.lower()


ABSOLUTE = (Encoding.BLOCK, Encoding.SPARSE, Encoding.FULL)
"""Those that may be applied twice."""
CHOICES = ("auto", *(e.label for e in Encoding))


class EncodingError(ValueError):
    """Bytes that are no encoded piece, or one for another piece."""


def allowed(choice: str) -> tuple[Encoding, ...]:
    """The encodings that ``choice`` (one of :data:`CHOICES`) allows; ``auto`` leaves out what cannot be made here.

    Raises:
        ValueError: no such choice.
        ModuleNotFoundError: ``xor``, without zstandard.
    """
    if choice == "auto":
        return tuple(Encoding) if has_zstd() else ABSOLUTE
    if choice not in CHOICES:
        raise ValueError(f"the encoding is {choice!r}: expected one of {', '.join(CHOICES)}")
    made = Encoding[choice.upper()]
    if made is Encoding.XOR:
        _zstandard()
    return (made,)


def has_zstd() -> bool:
    """Whether ``xor`` can be made and read here."""
    return find_spec("zstandard") is not None


@dataclass(frozen=True)
class Change:
    """The difference between two versions of a piece.

    Args:
        old, new: uint8[n], contiguous; a whole number of elements.
        width: bytes an element: 1, 2, 4 or 8.
        block: bytes a block.
    """

    old: Bytes
    new: Bytes
    width: int
    block: int = BLOCK

    @cached_property
    def runs(self) -> Runs:
        """int64[n, 2]: first byte and length of runs of blocks that differ."""
        return differing_runs(self.old, self.new, self.block)

    @cached_property
    def dirty_blocks(self) -> int:
        return int((-(-self.runs[:, 1] // self.block)).sum())

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """Numbers of the elements that differ, ascending."""
        found = [
            first // self.width
            + np.flatnonzero(self._elements(self.old, first, n) != self._elements(self.new, first, n))
            for first, n in self._element_runs()
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @property
    def changed(self) -> int:
        """Elements that differ."""
        return len(self.positions)

    @cached_property
    def predicted(self) -> dict[Encoding, int]:
        """Bytes that each encoding should take, from the numbers of changed elements and blocks and from a sample."""
        made = {
            Encoding.FULL: self.new.size,
            Encoding.BLOCK: _COUNT.size + 8 * len(self.runs) + min(self.dirty_blocks * self.block, self.new.size),
            Encoding.SPARSE: _ELEMENTS.size + self._predicted_sparse(),
        }
        return made | ({Encoding.XOR: self._predicted_xor()} if has_zstd() else {})

    def size(self, encoding: Encoding) -> int:
        """Bytes that ``encoding`` takes; ``xor`` is made for that."""
        if encoding is Encoding.FULL:
            return self.new.size
        if encoding is Encoding.BLOCK:
            return _COUNT.size + 8 * len(self.runs) + int(self.runs[:, 1].sum())
        if encoding is Encoding.SPARSE:
            return _ELEMENTS.size + len(self._listed[0]) * (self.width + self._listed[1].itemsize)
        return len(self._xor)

    def cheapest(self, among: Iterable[Encoding], extra: Mapping[Encoding, int] | None = None) -> Encoding:
        """The encoding that takes fewest bytes; ``xor`` is only made where a sample says that it may be that.

        Args:
            extra: bytes that an encoding takes besides.
        """
        among = tuple(among)
        if len(among) == 1:
            return among[0]
        sizes: dict[Encoding, int] = {e: self.size(e) + (extra or {}).get(e, 0) for e in among if e != Encoding.XOR}
        if Encoding.XOR in among and self.predicted[Encoding.XOR] < 1.25 * min(sizes.values()):
            sizes[Encoding.XOR] = self.size(Encoding.XOR)
        return min(sizes, key=lambda e: (sizes[e], e))

    def encode(self, encoding: Encoding) -> bytes:
        """The change in ``encoding``, for :func:`apply`."""
        if encoding is Encoding.FULL:
            return self.new.tobytes()
        if encoding is Encoding.BLOCK:
            data = [self.new[first : first + n].tobytes() for first, n in self.runs.tolist()]
            return b"".join([_COUNT.pack(len(self.runs)), self.runs.astype("<u4").tobytes(), *data])
        if encoding is Encoding.SPARSE:
            at, distances = self._listed
            head = _ELEMENTS.pack(len(at), distances.itemsize)
            return head + distances.tobytes() + self._elements(self.new)[at].tobytes()
        return self._xor

    def _elements(self, data: Bytes, first: int = 0, length: int | None = None) -> NDArray[Any]:
        return data[first : None if length is None else first + length].view(f"<u{self.width}")

    def _element_runs(self) -> list[tuple[int, int]]:
        """Stretches of whole elements that hold every difference: few bytes to compare, or one stretch."""
        if len(self.runs) > 64:
            return [(0, self.old.size)]
        found: list[tuple[int, int]] = []
        for first, n in self.runs.tolist():
            start = first // self.width * self.width
            stop = -(-(first + n) // self.width) * self.width
            start = max(start, found[-1][0] + found[-1][1]) if found else start
            if stop > start:
                found.append((start, stop - start))
        return found

    @cached_property
    def _listed(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """(numbers of the elements that are listed, the distance of each from the one before, in its stored type)."""
        distances = np.diff(self.positions, prepend=-1) - 1
        costs = {n: (len(distances) + int((distances >> (8 * n)).sum())) * (self.width + n) for n in (1, 2, 4)}
        size = min(costs, key=lambda n: costs[n])
        bridges = distances >> (8 * size)
        if not bridges.any():
            return self.positions, distances.astype(f"<u{size}")
        step = 1 << (8 * size)
        of = np.repeat(np.arange(len(distances)), bridges + 1)
        number = np.arange(len(of)) - np.repeat(np.cumsum(bridges + 1) - bridges - 1, bridges + 1)
        before = np.concatenate([[-1], self.positions[:-1]])
        at = np.where(number < bridges[of], before[of] + (number + 1) * step, self.positions[of])
        return at, (np.diff(at, prepend=-1) - 1).astype(f"<u{size}")

    def _predicted_sparse(self) -> int:
        """Bytes of distances and values if the changed elements lie as by chance: a distance then exceeds n elements
        with probability (1 - p)**n, and each time it does, one more element is listed."""
        untouched = 1 - self.changed / max(self.new.size // self.width, 1)
        sizes = (1, 2, 4)
        listed = [self.changed / max(1 - untouched ** (1 << (8 * n)), 1e-9) for n in sizes]
        return round(min(count * (self.width + n) for count, n in zip(listed, sizes, strict=True)))

    def _planes(self, take: slice) -> bytes:
        """Distances and XORed values of some listed elements, as planes of their first, second ... bytes."""
        at, distances = self._listed[0][take], self._listed[1][take]
        values = self._elements(self.new)[at] ^ self._elements(self.old)[at]
        return b"".join(
            np.ascontiguousarray(a.view(np.uint8).reshape(len(a), a.itemsize).T).tobytes() for a in (distances, values)
        )

    @cached_property
    def _xor(self) -> bytes:
        at, distances = self._listed
        packed = _zstandard().ZstdCompressor(level=_LEVEL).compress(self._planes(slice(None)))
        return _ELEMENTS.pack(len(at), distances.itemsize) + packed

    def _predicted_xor(self) -> int:
        count = len(self._listed[0])
        if count <= _SAMPLE:
            return len(self._xor)
        start = (count - _SAMPLE) // 2
        sample = _zstandard().ZstdCompressor(level=_LEVEL).compress(self._planes(slice(start, start + _SAMPLE)))
        return _ELEMENTS.size + len(sample) * count // _SAMPLE


def width_of(bits: int) -> int:
    """Bytes that count as one element, of a type with so many bits."""
    return min(max(bits // 8, 1), 8)


def apply(encoding: int, data: Buffer, piece: Bytes, width: int) -> None:
    """Turn the old bytes of a piece into the new ones, in place.

    Raises:
        EncodingError: ``data`` is malformed, or reaches beyond the piece.
        ModuleNotFoundError: ``xor``, without zstandard.
    """
    if encoding == Encoding.FULL:
        if len(data) != piece.size:
            raise EncodingError(f"{len(data)} new bytes for a piece of {piece.size}")
        piece[:] = np.frombuffer(data, np.uint8)
    elif encoding == Encoding.BLOCK:
        _apply_blocks(data, piece)
    elif encoding in (Encoding.SPARSE, Encoding.XOR):
        if piece.size % width:
            raise EncodingError(f"a piece of {piece.size} bytes holds no whole number of elements of {width}")
        _apply_elements(data, piece, width, encoding == Encoding.XOR)
    else:
        raise EncodingError(f"the encoding is {encoding}: this program knows 0 to {max(Encoding)}")


def _apply_blocks(data: Buffer, piece: Bytes) -> None:
    count = _COUNT.unpack_from(data)[0] if len(data) >= _COUNT.size else -1
    at = _COUNT.size + 8 * count
    if count < 0 or at > len(data):
        raise EncodingError(f"{len(data)} bytes are too few for a list of blocks")
    runs = np.frombuffer(data, "<u4", 2 * count, _COUNT.size).reshape(count, 2).astype(np.int64)
    ends = runs.sum(1)
    if count and (ends.max() > piece.size or (runs[1:, 0] < ends[:-1]).any()):
        raise EncodingError(f"blocks overlap or lie beyond the piece of {piece.size} bytes")
    if at + int(runs[:, 1].sum()) != len(data):
        raise EncodingError(f"{len(data) - at} bytes for blocks of {int(runs[:, 1].sum())}")
    for first, n in runs.tolist():
        piece[first : first + n] = np.frombuffer(data, np.uint8, n, at)
        at += n


def _apply_elements(data: Buffer, piece: Bytes, width: int, xor: bool) -> None:
    count, size = _ELEMENTS.unpack_from(data) if len(data) >= _ELEMENTS.size else (0, 0)
    if size not in (1, 2, 4) or count > piece.size // width:
        raise EncodingError(f"a list of {count} elements with distances of {size} bytes, in {piece.size} bytes")
    body: Buffer = memoryview(data)[_ELEMENTS.size :]
    wanted = count * (size + width)
    if xor:
        body = _decompressed(body, wanted)
    if len(body) != wanted:
        raise EncodingError(f"{len(body)} bytes for {count} elements, which take {wanted}")
    raw = np.frombuffer(body, np.uint8)
    distances, values = raw[: count * size], raw[count * size :]
    if xor:
        distances = np.ascontiguousarray(distances.reshape(size, count).T).reshape(-1)
        values = np.ascontiguousarray(values.reshape(width, count).T).reshape(-1)
    at = np.cumsum(distances.view(f"<u{size}").astype(np.int64) + 1) - 1
    elements = piece.view(f"<u{width}")
    if count and at[-1] >= len(elements):
        raise EncodingError(f"element {at[-1]} of a piece of {len(elements)}")
    if xor:
        elements[at] ^= values.view(f"<u{width}")
    else:
        elements[at] = values.view(f"<u{width}")


def _decompressed(data: Buffer, size: int) -> bytes:
    zstandard = _zstandard()
    try:
        if zstandard.frame_content_size(data) != size:  # read first, as memory is taken for what it says
            raise EncodingError(f"compressed data of {zstandard.frame_content_size(data)} bytes, expected {size}")
        made: bytes = zstandard.ZstdDecompressor().decompress(data)
        return made
    except zstandard.ZstdError as wrong:
        raise EncodingError(f"damaged compressed data: {wrong}") from None


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the encoding 'xor' needs zstandard: pip install 'kernbench[weights]', or use auto, sparse or block",
            name="zstandard",
        ) from None
    return zstandard
