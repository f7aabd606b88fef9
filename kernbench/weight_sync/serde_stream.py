"""Messages ``{"params": [entry, ..]}`` taken apart while they arrive: neither body nor text is ever in memory whole."""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from kernbench.weight_sync.arrays import Bytes, Framework
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.serde import receive_whole

_READ = 1 << 20
_STEP = 256 << 10
_MAX_VALUE = 1 << 20
_MAX_KEYS = 64
_SPACE = b" \t\r\n"
_QUOTE, _BACKSLASH = b'"\\'
_WIDEST = 4
"""Bytes an element that a float may have travelled as (float32)."""
Wait = Generator[None, None, Any]


class EntryDecoder:
    """Takes the JSON text in pieces. Memory: the tensor under way, as bytes of its own, and a piece of text.

    Keys may come in any order, though it is ``"dtype"`` and ``"shape"`` before ``"data"`` that lets the tensor's memory
    be taken once. What each entry may hold is what :func:`kernbench.weight_sync.serde.decode_from_http` takes.

    Args:
        framework: see :func:`kernbench.weight_sync.arrays.from_bytes`.
        max_bytes: refuse a tensor that is larger, before memory is taken.
    """

    def __init__(self, framework: Framework | None = None, max_bytes: int | None = None) -> None:
        self.framework, self.max_bytes = framework, max_bytes
        self.count = 0
        """Tensors that have been given."""
        self._text = bytearray()
        self._at = 0
        self._ready: list[tuple[str, Any]] = []
        self._steps = self._message()
        self._done = False
        self._advance()

    def feed(self, data: Any) -> list[tuple[str, Any]]:
        """Take text (any buffer, of any length); gives the tensors that it completes.

        Raises:
            ValueError: no JSON, or not of this form; otherwise as ``decode_from_http``. The decoder is of no use then.
        """
        with memoryview(data) as text:
            for start in range(0, len(text), _STEP):
                del self._text[: self._at]
                self._at = 0
                self._text += text[start : start + _STEP]
                self._advance()
        ready, self._ready = self._ready, []
        self.count += len(ready)
        return ready

    def finish(self) -> None:
        """Say that nothing more comes.

        Raises:
            ValueError: the message is cut off.
        """
        if not self._done:
            raise ValueError(f"the message is cut off after {self.count} whole entries")

    def read(self, readinto: Callable[[memoryview], int]) -> Iterator[tuple[str, Any]]:
        """All tensors of a message that ``readinto`` gives; 0 bytes are its end. Raises: as the others."""
        piece = memoryview(bytearray(_READ))
        while found := readinto(piece):
            yield from self.feed(piece[:found])
        self.finish()

    def _advance(self) -> None:
        if self._done:
            if self._text[self._at :].strip(_SPACE):
                raise ValueError("more follows the end of the message")
            return
        try:
            next(self._steps)
        except StopIteration:
            self._done = True
            self._advance()

    # What follows runs until it needs more text, and yields then.

    def _message(self) -> Wait:
        yield from self._expect(b"{")
        seen = False
        for_more = yield from self._opens(b"}")
        while for_more:
            key = yield from self._value()
            yield from self._expect(b":")
            if key == "params":
                if seen:
                    raise ValueError("the message has 'params' twice")
                seen = True
                yield from self._expect(b"[")
                more = yield from self._opens(b"]")
                while more:
                    yield from self._entry()
                    more = yield from self._goes_on(b"]")
            else:
                yield from self._value()
            for_more = yield from self._goes_on(b"}")
        if not seen:
            raise ValueError('expected {"params": [entry, ..]}')

    def _entry(self) -> Wait:
        yield from self._expect(b"{")
        entry: dict[str, Any] = {}
        data: Bytes | None = None
        more = yield from self._opens(b"}")
        while more:
            key = yield from self._value()
            yield from self._expect(b":")
            if key in entry or (key == "data" and data is not None):
                raise ValueError(f"an entry has {key!r} twice")
            if len(entry) == _MAX_KEYS:
                raise ValueError(f"an entry has more than {_MAX_KEYS} keys")
            if key == "data" and (yield from self._peek()) == b'"':
                data = yield from self._base64(entry)
            else:
                entry[key] = yield from self._value()
            more = yield from self._goes_on(b"}")
        self._ready.append(receive_whole(entry, data, self.framework))

    def _base64(self, entry: dict[str, Any]) -> Wait:
        """The bytes of a string of base64, in memory that is taken once where the entry has said how much it is."""
        self._at += 1
        where = f"entry '{entry.get('name', '?')}'"
        room, most = self._room(entry, where)
        out: Bytes = np.empty(room, np.uint8)
        filled, rest, padded = 0, b"", False
        while True:
            end = self._text.find(b'"', self._at)
            stop = len(self._text) if end < 0 else end
            text = rest + bytes(self._text[self._at : stop])
            self._at = stop
            held = len(text) - 1 if end < 0 and text.endswith(b"\\") else len(text)
            text, rest = text[:held].replace(b"\\/", b"/"), text[held:]
            if end >= 0 and len(text) % 4:
                raise ValueError(f"{where}: 'data' is no base64: its length is no multiple of 4")
            whole = len(text) // 4 * 4
            text, rest = text[:whole], text[whole:] + rest
            if text:
                if padded:
                    raise ValueError(f"{where}: 'data' is no base64: padding before its end")
                padded = text.endswith(b"=")
                try:
                    piece = np.frombuffer(binascii.a2b_base64(text, strict_mode=True), np.uint8)
                except ValueError as wrong:
                    raise ValueError(f"{where}: 'data' is no base64: {wrong}") from None
                if filled + piece.size > out.size:
                    if most is not None and filled + piece.size > most:
                        raise ValueError(f"{where}: more than the {most} bytes that it may have")
                    grown = np.empty(max(filled + piece.size, 2 * out.size), np.uint8)
                    grown[:filled] = out[:filled]
                    out = grown
                out[filled : filled + piece.size] = piece
                filled += piece.size
            if end >= 0:
                self._at += 1
                return out[:filled]
            yield

    def _room(self, entry: dict[str, Any], where: str) -> tuple[int, int | None]:
        """(bytes that an entry's data should have, the most that it may have)."""
        shape = entry.get("shape")
        if "dtype" not in entry or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            return 0, self.max_bytes
        kind = wire_type(str(entry["dtype"]).rpartition(".")[2])
        nbytes = kind.nbytes(shape)
        if self.max_bytes is not None and nbytes > self.max_bytes:
            raise ValueError(f"{where} takes {nbytes} bytes, more than the {self.max_bytes} allowed here")
        return nbytes, max(nbytes, nbytes // kind.itemsize * _WIDEST)

    def _value(self) -> Wait:
        """Any value but a large one, as Python's."""
        yield from self._peek()
        length, depth, quoted = 0, 0, False  # counted from where the value starts, as text before that may go
        while True:
            while self._at + length >= len(self._text):
                if length > _MAX_VALUE:
                    raise ValueError(f"a value is longer than {_MAX_VALUE} bytes")
                yield
            byte = self._text[self._at + length]
            if quoted:
                quoted = byte != _QUOTE
                length += byte == _BACKSLASH
            elif byte == _QUOTE:
                quoted = True
            elif byte in b"[{":
                depth += 1
            elif byte in b"]}" and depth:
                depth -= 1
            elif not depth and byte in b",:]} \t\r\n":
                break
            length += 1
            if not (quoted or depth) and byte in b']}"':
                break
        value = json.loads(self._text[self._at : self._at + length])
        self._at += length
        return value

    def _peek(self) -> Wait:
        """The next byte that is no space."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at : self._at + 1]
                self._at += 1
            yield

    def _expect(self, wanted: bytes) -> Wait:
        found = yield from self._peek()
        if found != wanted:
            raise ValueError(f"no message of weights: {bytes(found)!r} where {wanted!r} was expected")
        self._at += 1

    def _opens(self, end: bytes) -> Wait:
        """Whether anything comes before the ``end`` of a list or object that has just begun."""
        if (yield from self._peek()) != end:
            return True
        self._at += 1
        return False

    def _goes_on(self, end: bytes) -> Wait:
        """Whether a comma comes, or the ``end``."""
        found = yield from self._peek()
        if found not in (b",", end):
            raise ValueError(f"no message of weights: {bytes(found)!r} where ',' or {end!r} was expected")
        self._at += 1
        return found != end
