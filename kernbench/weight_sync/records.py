"""Records of a file or stream, each with its length and checksum: what journals and deltas are made of.

A record is an unsigned 64-bit length n, a kind byte, 16 bytes of xxh3-128 over kind and body, and a body of n bytes.
Numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import xxhash

HEAD = struct.Struct("<QB16s")


def head(kind: bytes, *body: bytes) -> bytes:
    """What goes before a body, which may be given in parts."""
    state = xxhash.xxh3_128(kind)
    for part in body:
        state.update(part)
    return HEAD.pack(sum(len(part) for part in body), kind[0], state.digest())


def matches(kind: int, body: Any, digest: bytes) -> bool:
    """Whether a body is the one that the checksum was made of."""
    state = xxhash.xxh3_128(bytes([kind]))
    state.update(body)
    return bool(state.digest() == digest)


def read_records(file: BinaryIO, place: str, limit: int, error: type[Exception]) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of the records that follow in a file or stream, one in memory at a time, until it ends.

    Args:
        place: for errors.
        limit: bytes of the longest body; a longer one is refused before memory is taken.
        error: raised where a record is cut off, damaged or too long.
    """
    count = 0
    while prefix := read_exactly(file, HEAD.size):
        if len(prefix) < HEAD.size:
            raise error(f"{place}: cut off in the head of record {count}")
        length, kind, digest = HEAD.unpack(prefix)
        if length > limit:
            raise error(f"{place}: record {count} is said to take {length} bytes, {limit} are allowed; damaged?")
        body = read_exactly(file, length)
        if len(body) < length:
            raise error(f"{place}: cut off in record {count}, after {len(body)} of {length} bytes")
        if not matches(kind, body, digest):
            raise error(f"{place}: record {count} does not match its checksum")
        yield bytes([kind]), body
        count += 1


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """``size`` bytes of a stream that may give fewer at a time; fewer only at its end."""
    data = file.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    left = size - len(data)
    while left and (data := file.read(left)):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)
