"""The body of an HTTP/1.1 request, read from its connection straight into the memory that it is for."""

from __future__ import annotations

import re
from email.message import Message
from typing import BinaryIO

_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\r\n]*)?\r?\n")
_LINE_BYTES = 1 << 10
_TRAILERS = 100
_PIECE = 1 << 20


class BodyError(ValueError):
    """A body whose length cannot be told."""


class BodyTooLargeError(ValueError):
    """More bytes than are allowed here."""


class Body:
    """With a ``Content-Length``, or in chunks; else empty.

    Args:
        file: where it follows; buffered.

    Raises:
        BodyError: its headers contradict each other, or name a coding other than ``chunked``.
    """

    def __init__(self, headers: Message, file: BinaryIO) -> None:
        self._file = file
        self.limit: int | None = None
        self.received = 0
        lengths = set(headers.get_all("content-length", []))
        length, codings = min(lengths, default=None), headers.get_all("transfer-encoding")
        coding = ", ".join(codings) if codings else None
        if len(lengths) > 1:
            raise BodyError(f"content-lengths {sorted(lengths)}: send one")
        if coding is not None and (coding.strip().lower() != "chunked" or length is not None):
            raise BodyError(f"transfer-encoding {coding!r} and content-length {length!r}: send one, and only 'chunked'")
        if length is not None and not (length.isascii() and length.isdecimal()):
            raise BodyError(f"the content-length is {length!r}, no number")
        self.length = None if coding is not None else int(length or 0)
        """In bytes; None where only its end will tell."""
        self._left = self.length or 0
        """Of the body, or of the chunk under way."""
        self.done = self.length == 0

    def allow(self, limit: int) -> None:
        """Refuse more than ``limit`` bytes.

        Raises:
            BodyTooLargeError: the length is known and larger; later from :meth:`readinto`.
        """
        self.limit = limit
        if self.length is not None and self.length > limit:
            raise _too_large(limit)

    def readinto(self, memory: memoryview) -> int:
        """Fill ``memory``; fewer bytes mean that the body is over.

        Raises:
            BodyTooLargeError: see :meth:`allow`.
            BodyError: a malformed chunk.
            ConnectionError: the sender has gone, or says nothing any more.
        """
        at = 0
        while at < len(memory) and not self.done:
            if not self._left:
                self._next_chunk()
                continue
            take = min(self._left, len(memory) - at)
            self._count(take)
            try:
                found = self._file.readinto(memory[at : at + take])  # type: ignore[attr-defined]
            except TimeoutError:
                raise ConnectionError("the sender says nothing any more") from None
            if found < take:
                raise ConnectionError("the sender has gone in the middle of a body")
            at += take
            self._left -= take
            self._after()
        return at

    def read(self, limit: int) -> bytearray:
        """All of it. Raises: as :meth:`readinto`."""
        self.allow(limit)
        data, piece = bytearray(), memoryview(bytearray(min(limit, _PIECE) + 1))
        while found := self.readinto(piece):
            data += piece[:found]
        return data

    def _count(self, size: int) -> None:
        self.received += size
        if self.limit is not None and self.received > self.limit:
            raise _too_large(self.limit)

    def _after(self) -> None:
        if self._left:
            return
        if self.length is not None:
            self.done = True
        elif self._line() not in (b"\r\n", b"\n"):
            raise BodyError("a chunk is longer or shorter than it says")

    def _next_chunk(self) -> None:
        found = _CHUNK_LINE.fullmatch(line := self._line())
        if not found:
            raise BodyError(f"{line[:40]!r} is no length of a chunk")
        self._left = int(found[1], 16)
        if self._left:
            return
        for _ in range(_TRAILERS):
            if self._line() in (b"\r\n", b"\n"):
                self.done = True
                return
        raise BodyError(f"more than {_TRAILERS} lines follow the last chunk")

    def _line(self) -> bytes:
        try:
            line = self._file.readline(_LINE_BYTES)
        except TimeoutError:
            raise ConnectionError("the sender says nothing any more") from None
        if not line:
            raise ConnectionError("the sender has gone in the middle of a body")
        return line


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the request is larger than the {limit} bytes allowed here")
