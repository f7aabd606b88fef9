"""Weights as one stream of bytes for octet-stream and shared-memory transports: bit exact, checked, in order.

::

    stream   "KBWS" version  frame..  end frame
    frame    "KBWF"  length of text (u32)  xxh3-64 of text (u64)  text  tensor's bytes  xxh3-128 of the tensor
    text     JSON: {"seq", "name", "dtype", "shape"} of a tensor, {"seq", "end": true} of the end frame

Numbers are little-endian. ``seq`` counts from 0. A tensor's hash is :func:`kernbench.weight_sync.arrays.digest`. The
end frame's is that of all frames' hashes before it, so that a stream cut off between frames is found out too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from kernbench.weight_sync.arrays import CHUNK, Bytes, Framework, describe, from_bytes, iter_bytes, start_digest
from kernbench.weight_sync.dtypes import WireType, wire_type

CONTENT_TYPE = "application/octet-stream"
_START = b"KBWS\x01\0\0\0"
_MAGIC = b"KBWF"
_HEAD = struct.Struct("<4sIQ")
_HASH = 16
_MAX_TEXT = 1 << 20
_PIECE = 1 << 20


class FrameError(ValueError):
    """A stream that is cut off, damaged, out of order or not of this format."""


def encode_frames(
    weights: Iterable[tuple[str, Any]],
    chunk: int = CHUNK,
    meta: Mapping[str, Any] | None = None,
    digests: Mapping[str, str] | None = None,
) -> Iterator[bytes | Bytes]:
    """The stream of these weights in pieces. Pieces of contiguous host tensors are their own memory, not copies.

    Args:
        weights: (name, weight) pairs; taken one at a time.
        chunk: largest piece of a tensor, in bytes.
        meta: whatever JSON can hold, for :attr:`FrameDecoder.meta`.
        digests: the hash of every weight, where it is known; else it is computed on the way.
    """
    yield _START
    chain = xxhash.xxh3_128()
    seq = 0
    for name, weight in weights:
        kind, shape = describe(weight)
        text = {"seq": seq, "name": name, "dtype": kind.name, "shape": list(shape)}
        yield _head(text | ({"meta": dict(meta)} if meta and not seq else {}))
        state = start_digest(kind, shape) if digests is None else None
        for piece in iter_bytes(weight, chunk):
            if state is not None:
                state.update(piece)
            yield piece
        made = state.digest() if state is not None else bytes.fromhex((digests or {})[name])
        chain.update(made)
        yield made
        seq += 1
    yield _head({"seq": seq, "end": True} | ({"meta": dict(meta)} if meta and not seq else {}))
    yield chain.digest()


def decode_frames(pieces: Iterable[Any], framework: Framework | None = None) -> Iterator[tuple[str, Any]]:
    """(name, tensor) pairs of a stream that comes in pieces of any size, each as soon as it is complete and checked.

    Raises (while iterating): FrameError, also if the stream ends before its end frame. What was given before that is
    right, but not everything: discard it.
    """
    decoder = FrameDecoder(framework)
    for piece in pieces:
        yield from decoder.feed(piece)
    decoder.finish()


class FrameDecoder:
    """Takes a stream apart as its bytes arrive, pushed with :meth:`feed` or pulled with :meth:`read`.

    Memory: the tensor under way and what is left of a header.

    Args:
        framework: see :func:`kernbench.weight_sync.arrays.from_bytes`.
        max_bytes: refuse a tensor that is larger, before memory is taken.
    """

    def __init__(self, framework: Framework | None = None, max_bytes: int | None = None) -> None:
        self.framework, self.max_bytes = framework, max_bytes
        self.meta: dict[str, Any] = {}
        self.count = 0
        """Tensors that have been given."""
        self.digests: dict[str, str] = {}
        """Their hashes, which have been compared."""
        self.done = False
        """Whether the end frame has come and fits."""
        self._steps = self._run()
        self._wanted: Bytes = next(self._steps)
        self._filled = 0
        self._ready: list[tuple[str, Any]] = []

    def feed(self, data: Any) -> list[tuple[str, Any]]:
        """Take bytes (any buffer, of any length); gives the tensors that they complete.

        Raises:
            FrameError: see there. The decoder is of no use afterwards.
        """
        raw: Bytes = np.frombuffer(data, np.uint8)
        at = 0
        while at < raw.size:
            if self.done:
                raise FrameError(f"{raw.size - at} bytes follow the end of the stream")
            take = min(self._wanted.size - self._filled, raw.size - at)
            self._wanted[self._filled : self._filled + take] = raw[at : at + take]
            self._filled += take
            at += take
            if self._filled == self._wanted.size:
                self._advance()
        ready, self._ready = self._ready, []
        return ready

    def read(self, readinto: Callable[[memoryview], int]) -> Iterator[tuple[str, Any]]:
        """The pairs of a whole stream, whose bytes ``readinto`` puts where they belong, without a copy in between.

        Args:
            readinto: fills the memory it is given, and says how many bytes that were: fewer at the end only.

        Raises (while iterating):
            FrameError: see there.
        """
        while not self.done:
            self._filled += readinto(self._wanted[self._filled :].data)
            if self._filled < self._wanted.size:
                self.finish()
            self._advance()
            ready, self._ready = self._ready, []
            yield from ready
        if readinto(memoryview(bytearray(1))):
            raise FrameError("bytes follow the end of the stream")

    def finish(self) -> None:
        """Say that nothing more comes.

        Raises:
            FrameError: the end frame has not come.
        """
        if not self.done:
            raise FrameError(f"the stream is cut off after {self.count} whole tensors: its end frame has not come")

    def _advance(self) -> None:
        try:
            self._wanted, self._filled = next(self._steps), 0
        except StopIteration:
            self.done = True

    def _run(self) -> Iterator[Bytes]:
        """Yields the memory that the next bytes have to fill, and goes on when they have."""
        start = _take(len(_START))
        yield start
        if start.tobytes() != _START:
            raise FrameError(
                f"the stream starts with {start.tobytes()!r}, expected {_START!r}: other format or version"
            )
        chain = xxhash.xxh3_128()
        while True:
            head = _take(_HEAD.size)
            yield head
            magic, length, expected = _HEAD.unpack(head.tobytes())
            if magic != _MAGIC or not 0 < length <= _MAX_TEXT:
                raise FrameError(f"no frame where frame {self.count} should start: bytes were lost, added or damaged")
            text = _take(length)
            yield text
            if xxhash.xxh3_64_intdigest(text.tobytes()) != expected:
                raise FrameError(f"the text of frame {self.count} is damaged")
            about = self._about(text.tobytes())
            if about is None:
                break
            name, kind, shape = about
            data = self._memory(name, kind, shape)
            state = start_digest(kind, shape)
            for at in range(0, data.size, _PIECE):
                yield data[at : at + _PIECE]
                state.update(data[at : at + _PIECE])  # while they are in the cache
            yield from self._hash(state.digest(), f"'{name}'")
            chain.update(state.digest())
            self.digests[name] = state.hexdigest()
            self._ready.append((name, from_bytes(kind, shape, data, self.framework, name)))
            self.count += 1
        yield from self._hash(chain.digest(), "the whole stream")

    def _about(self, text: bytes) -> tuple[str, WireType, tuple[int, ...]] | None:
        """Name, type and shape of the frame's tensor; None for the end frame."""
        try:
            about = json.loads(text)
            seq, meta = about["seq"], about.get("meta", self.meta)
            tensor = (
                None if about.get("end") else (str(about["name"]), wire_type(about["dtype"]), tuple(about["shape"]))
            )
            if tensor and not all(type(n) is int and n >= 0 for n in tensor[2]):
                raise ValueError(f"the shape is {about['shape']}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as wrong:
            raise FrameError(
                f"the text of frame {self.count} makes no sense: {type(wrong).__name__}: {wrong}"
            ) from None
        if seq != self.count:
            raise FrameError(f"frame {seq} came where frame {self.count} was expected: lost, doubled or reordered")
        self.meta = meta
        return tensor

    def _memory(self, name: str, kind: WireType, shape: tuple[int, ...]) -> Bytes:
        size = kind.nbytes(shape)
        if self.max_bytes is not None and size > self.max_bytes:
            raise FrameError(f"'{name}' takes {size} bytes, more than the {self.max_bytes} allowed here")
        return _take(size)

    def _hash(self, mine: bytes, what: str) -> Iterator[Bytes]:
        sent = _take(_HASH)
        yield sent
        if sent.tobytes() != mine:
            raise FrameError(
                f"{what} came with bytes that hash to {mine.hex()}, the sender's to {sent.tobytes().hex()}"
            )


def _head(about: dict[str, Any]) -> bytes:
    text = json.dumps(about, separators=(",", ":")).encode()
    if len(text) > _MAX_TEXT:
        raise FrameError(f"name, shape and meta take {len(text)} bytes, a frame allows {_MAX_TEXT}")
    return _HEAD.pack(_MAGIC, len(text), xxhash.xxh3_64_intdigest(text)) + text


def _take(size: int) -> Bytes:
    return np.empty(size, np.uint8)
