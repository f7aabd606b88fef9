"""Cutting a list of tensors into chunks that fit a buffer: from their sizes alone, so that both sides cut alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BUFFER_BYTES = 1 << 30
"""Of each buffer, where nothing else is asked for."""
BUFFERS = 2


@dataclass(frozen=True)
class Segment:
    """Bytes of one tensor in one chunk."""

    tensor: int
    """Its number in the list."""
    start: int
    """First byte of the tensor."""
    offset: int
    """First byte of the chunk."""
    nbytes: int
    last: bool
    """Whether the tensor ends here."""


Chunk = list[Segment]


def cut(sizes: Iterable[int], limit: int) -> Iterator[Chunk]:
    """Chunks of at most ``limit`` bytes. They are filled to the last byte, so a tensor may lie in several.

    Sizes are taken as they are needed: when a chunk is given, no size after its last tensor has been asked for.
    A tensor without bytes is a segment too, so that it arrives.

    Raises:
        ValueError: ``limit`` below 1.
    """
    if limit < 1:
        raise ValueError(f"buffer_size_bytes is {limit}: give at least 1")
    chunk: Chunk = []
    used = 0
    for number, size in enumerate(sizes):
        start = 0
        while True:
            take = min(size - start, limit - used)
            chunk.append(Segment(number, start, used, take, start + take == size))
            start += take
            used += take
            if used == limit:
                yield chunk
                chunk, used = [], 0
            if start == size:
                break
    if chunk:
        yield chunk


def length(chunk: Chunk) -> int:
    """Bytes of a chunk."""
    return chunk[-1].offset + chunk[-1].nbytes


def check_buffers(buffer_size_bytes: int, num_buffers: int) -> None:
    """Raises:
    ValueError: no size, or fewer than two buffers.
    """
    if buffer_size_bytes < 1:
        raise ValueError(f"buffer_size_bytes is {buffer_size_bytes}: give at least 1")
    if num_buffers < 2:
        raise ValueError(f"num_buffers is {num_buffers}: one is filled while another is under way, so give at least 2")
