"""One weight as an entry of a message: base64 in JSON over HTTP, raw bytes between processes.

The default encoding is the one that workers in the field read: a type travels as its own bytes, bfloat16 as float16.
That rounds what float16 does not have (magnitudes below 2**-17 lose bits, up to 2**-25 become 0; NaNs stay NaN, their
payload does not), and a finite value from 65536 on cannot travel at all. ``encoding="bits"`` sends bfloat16's own
bits and a checksum, which old workers would misread: ask with :func:`choose_encoding` first.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from kernbench.kernels import numerics
from kernbench.weight_sync.arrays import Bytes, Framework, describe, from_bytes, iter_bytes, start_digest
from kernbench.weight_sync.dtypes import WireType, wire_type

Encoding = Literal["compatible", "bits"]
CAPABILITIES: dict[str, list[str]] = {"encodings": ["compatible", "bits"], "checksums": ["xxh3_128"]}
"""What a server announces, for :func:`choose_encoding` of its clients."""
ENCODING_KEY = "encoding"
CHECKSUM_KEY = "xxh3_128"
PIECE = 3 << 20
"""Bytes handled at a time: a multiple of 3, so that base64 of pieces joins to base64 of the whole."""
BATCH = 10 << 20
"""Bytes of payload after which workers in the field expect a new request."""
_F16_LIMIT, _INFINITY = 0x4780, 0x7F80
"""Magnitude bits of bfloat16: 65536, the first that float16 rounds to infinity, and infinity."""


class EncodingRangeError(OverflowError, ValueError):
    """A value that the compatible encoding cannot carry; ``encoding="bits"`` can."""


class ChecksumError(ValueError):
    """Bytes that are not those that were sent."""


def choose_encoding(capabilities: Mapping[str, Any] | None) -> Encoding:
    """The best encoding that a peer with these :data:`CAPABILITIES` reads; None stands for a peer that says nothing."""
    return "bits" if "bits" in ((capabilities or {}).get("encodings") or ()) else "compatible"


def encode_for_http(
    name: str, weight: Any, *, encoding: Encoding = "compatible", checksum: bool | None = None
) -> dict[str, Any]:
    """``{"name", "dtype": "torch.bfloat16", "shape": [..], "data": base64 text}`` for JSON.

    Args:
        weight: torch tensor or Parameter, numpy array (ml_dtypes too) or KernBench tensor, of any shape and strides.
        encoding: ``"bits"`` adds ``"encoding": "bits"``, for receivers that know it.
        checksum: add ``"xxh3_128"``, which old receivers ignore; by default with ``"bits"`` only.

    Raises:
        EncodingRangeError: a finite bfloat16 value that float16 does not have, in the compatible encoding.
        TypeError: not a tensor, or one without plain bytes (sparse, quantised, meta).
    """
    kind, shape = describe(weight)
    sent = _Sent(name, weight, encoding, checksum)
    data = b"".join(_base64(sent.pieces())).decode("ascii")
    return {"name": name, "dtype": kind.torch_name, "shape": list(shape), "data": data, **sent.extra()}


def decode_from_http(entry: Mapping[str, Any], *, framework: Framework | None = None) -> tuple[str, Any]:
    """(name, tensor) of an entry made by :func:`encode_for_http` or by the workers and trainers of the field.

    Without ``"encoding"``, the number of bytes tells the type that travelled: bfloat16 as float16; any float also as
    float16 or float32.

    Args:
        framework: ``"torch"``, ``"numpy"`` or ``"kernbench"``; by default torch if the process has imported it, else
            numpy.

    Raises:
        ValueError: a missing or malformed key, base64 that is none, or a wrong number of bytes.
        TypeError: an element type that is not known, or that the framework does not have.
        ChecksumError: the checksum is there and does not fit.
    """
    name, shape = _name(entry), _shape(entry)
    kind = _kind(entry, "dtype", name)
    text = _key(entry, "data", name)
    if not isinstance(text, str | bytes):
        raise ValueError(f"entry '{name}': 'data' is {type(text).__name__}, expected base64 text")
    if len(text) % 4:
        raise ValueError(
            f"entry '{name}': 'data' is no base64: its length {len(text)} is no multiple of 4; is it cut off?"
        )
    length = len(text) // 4 * 3 - str(text[-2:]).count("=")
    wire = _wire_of_length(kind, shape, length, name) if not _is_bits(entry, name) else kind
    return name, _receive(entry, name, shape, wire, kind, length, _unbase64(text, name), framework)


def encode_for_ipc(
    name: str, weight: Any, *, encoding: Encoding = "compatible", checksum: bool | None = None
) -> dict[str, Any]:
    """``{"name", "data": bytes, "dtype": "float16", "target_dtype": "bfloat16", "shape"}`` for another process.

    ``dtype`` is the type of the bytes, ``target_dtype`` the weight's own. Arguments and errors as in
    :func:`encode_for_http`.
    """
    kind, shape = describe(weight)
    sent = _Sent(name, weight, encoding, checksum)
    data = b"".join(piece.data for piece in sent.pieces())
    entry = {"name": name, "data": data, "dtype": sent.wire.name, "target_dtype": kind.name, "shape": list(shape)}
    return entry | sent.extra()


def decode_from_ipc(entry: Mapping[str, Any], *, framework: Framework | None = None) -> tuple[str, Any]:
    """(name, tensor) of an entry made by :func:`encode_for_ipc`; without ``target_dtype``, of the type of the bytes.

    The tensor has memory of its own, so that the sender may reuse the entry's. Arguments and errors as in
    :func:`decode_from_http`.
    """
    name, shape = _name(entry), _shape(entry)
    wire = _kind(entry, "dtype", name)
    kind = wire if entry.get("target_dtype") is None else _kind(entry, "target_dtype", name)
    if _is_bits(entry, name) and wire != kind:
        raise ValueError(f"entry '{name}': bit-exact, yet its bytes are {wire} and the weight is {kind}")
    data = _key(entry, "data", name)
    try:
        raw: Bytes = np.frombuffer(data, np.uint8)
    except (TypeError, ValueError) as wrong:
        raise ValueError(f"entry '{name}': 'data' is {type(data).__name__}, expected bytes ({wrong})") from None
    step = PIECE // max(wire.itemsize, 1) * wire.itemsize
    pieces = (raw[i : i + step] for i in range(0, raw.size, step))
    return name, _receive(entry, name, shape, wire, kind, raw.size, pieces, framework)


def http_batches(
    weights: Iterable[tuple[str, Any]], limit: int = BATCH, *, encoding: Encoding = "compatible"
) -> Iterator[dict[str, Any]]:
    """Messages ``{"params": [entry, ..]}`` of at most ``limit`` bytes of base64 each; a larger weight goes alone."""
    entries: list[dict[str, Any]] = []
    size = 0
    for name, weight in weights:
        entry = encode_for_http(name, weight, encoding=encoding)
        if entries and size + len(entry["data"]) > limit:
            yield {"params": entries}
            entries, size = [], 0
        entries.append(entry)
        size += len(entry["data"])
    if entries:
        yield {"params": entries}


def stream_http(
    weights: Iterable[tuple[str, Any]], *, encoding: Encoding = "compatible", checksum: bool | None = None
) -> Iterator[bytes]:
    """The JSON text of ``{"params": [entry, ..]}`` in pieces, of which at most one is in memory.

    Raises (while iterating): as :func:`encode_for_http`; the request that is under way has to be given up then.
    """
    before = b'{"params":['
    for name, weight in weights:
        kind, shape = describe(weight)
        sent = _Sent(name, weight, encoding, checksum)
        head = json.dumps({"name": name, "dtype": kind.torch_name, "shape": list(shape)}, separators=(",", ":"))
        yield before + head[:-1].encode() + b',"data":"'
        yield from _base64(sent.pieces())
        tail = json.dumps(sent.extra(), separators=(",", ":"))
        yield b'"' + (b"," + tail[1:].encode() if len(tail) > 2 else b"}")
        before = b","
    yield b"]}" if before == b"," else before + b"]}"


class _Sent:
    """A weight on its way out: the pieces of its bytes on the wire, and the optional keys once they are through."""

    def __init__(self, name: str, weight: Any, encoding: Encoding, checksum: bool | None) -> None:
        if encoding not in ("compatible", "bits"):
            raise ValueError(f"encoding is {encoding!r}: expected 'compatible' or 'bits'")
        self.name, self.weight, self.encoding = name, weight, encoding
        kind, shape = describe(weight)
        self.kind = kind
        self.wire = wire_type("float16") if kind.name == "bfloat16" and encoding == "compatible" else kind
        wanted = encoding == "bits" if checksum is None else checksum
        self.state = start_digest(self.wire, shape) if wanted else None

    def pieces(self) -> Iterator[Bytes]:
        for piece in iter_bytes(self.weight, PIECE):
            wire = piece if self.wire is self.kind else _bf16_to_f16(piece, self.name)
            if self.state is not None:
                self.state.update(wire)
            yield wire

    def extra(self) -> dict[str, str]:
        made = {ENCODING_KEY: "bits"} if self.encoding == "bits" else {}
        return made | ({CHECKSUM_KEY: self.state.hexdigest()} if self.state is not None else {})


def _receive(
    entry: Mapping[str, Any],
    name: str,
    shape: tuple[int, ...],
    wire: WireType,
    kind: WireType,
    length: int,
    pieces: Iterator[Bytes],
    framework: Framework | None,
    out: Bytes | None = None,
) -> Any:
    """Put the pieces of ``wire`` elements together as a tensor of ``kind``, in memory taken once; ``out`` may be the
    pieces' own."""
    if length != wire.nbytes(shape):
        raise ValueError(
            f"entry '{name}': {length} bytes, but {wire} of shape {list(shape)} takes {wire.nbytes(shape)}; "
            "the data is cut off, or dtype or shape is wrong"
        )
    if wire != kind and not (wire.is_floating_point and kind.is_floating_point):
        raise ValueError(f"entry '{name}': bytes of {wire} cannot become {kind}: send its own bits")
    expected = entry.get(CHECKSUM_KEY)
    state = start_digest(wire, shape) if expected is not None else None
    in_place = out is not None
    out = np.empty(kind.nbytes(shape), np.uint8) if out is None else out
    at = 0
    for piece in pieces:
        if state is not None:
            state.update(piece)
        values = piece if wire == kind else _convert(piece, wire, kind)
        if not (in_place and values is piece):
            out[at : at + values.size] = values
        at += values.size
    if state is not None and state.hexdigest() != expected:
        raise ChecksumError(
            f"entry '{name}': its bytes hash to {state.hexdigest()}, the sender's to {expected}; send it again"
        )
    return from_bytes(kind, shape, out, framework, name)


def receive_whole(entry: Mapping[str, Any], data: Bytes | None, framework: Framework | None) -> tuple[str, Any]:
    """(name, tensor) of an HTTP entry whose ``data`` has been decoded to memory of its own, which the tensor keeps
    where types allow it. Errors as in :func:`decode_from_http`."""
    name, shape = _name(entry), _shape(entry)
    kind = _kind(entry, "dtype", name)
    if data is None:
        raise ValueError(f"entry '{name}' has no 'data', or it is no base64 text")
    wire = _wire_of_length(kind, shape, data.size, name) if not _is_bits(entry, name) else kind
    pieces = (data[i : i + PIECE] for i in range(0, data.size, PIECE))
    if wire.itemsize == kind.itemsize and data.size == kind.nbytes(shape):
        return name, _receive(entry, name, shape, wire, kind, data.size, pieces, framework, data)
    return name, _receive(entry, name, shape, wire, kind, data.size, pieces, framework)


def _bf16_to_f16(piece: Bytes, name: str) -> Bytes:
    bits = piece.view(np.uint16)
    magnitude = bits & 0x7FFF
    beyond = (magnitude >= _F16_LIMIT) & (magnitude < _INFINITY)
    if beyond.any():
        value = float(piece.view(wire_type("bfloat16").storage)[int(beyond.argmax())])
        raise EncodingRangeError(
            f"'{name}': the bfloat16 value {value:g} does not fit into float16 (largest: 65504), as which bfloat16 "
            'travels by default: use encoding="bits", which is bit exact, if the receiver knows it'
        )
    return numerics.narrow(numerics.widen(bits, "bf16"), "f16").view(np.uint8)


def _convert(piece: Bytes, wire: WireType, kind: WireType) -> Bytes:
    """Floats of another float type, rounded to nearest even."""
    if (wire.name, kind.name) == ("float16", "bfloat16"):
        return numerics.narrow(numerics.widen(piece.view(np.uint16), "f16"), "bf16").view(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        return piece.view(wire.storage).astype(kind.storage).view(np.uint8)


def _base64(pieces: Iterator[Bytes]) -> Iterator[bytes]:
    """Base64 of the pieces joined; what is left of a piece after the last whole three bytes goes with the next."""
    rest = b""
    for piece in pieces:
        if rest or piece.size % 3:
            whole = rest + piece.tobytes()
            end = len(whole) // 3 * 3
            rest = whole[end:]
            yield base64.b64encode(whole[:end])
        else:
            yield base64.b64encode(piece.data)
    if rest:
        yield base64.b64encode(rest)


def _unbase64(text: str | bytes, name: str) -> Iterator[Bytes]:
    step = PIECE // 3 * 4
    for start in range(0, len(text), step):
        try:
            piece = binascii.a2b_base64(text[start : start + step], strict_mode=True)
        except ValueError as wrong:
            raise ValueError(f"entry '{name}': 'data' is no base64: {wrong}") from None
        if len(piece) < PIECE and start + step < len(text):
            raise ValueError(f"entry '{name}': 'data' is no base64: padding before its end")
        yield np.frombuffer(piece, np.uint8)


def _wire_of_length(kind: WireType, shape: tuple[int, ...], length: int, name: str) -> WireType:
    """The type that travelled, told by the bytes of one element."""
    elements = kind.nbytes(shape) // kind.itemsize
    if kind.name == "bfloat16" and length == 2 * elements:
        return wire_type("float16")
    if kind.is_floating_point and length != kind.itemsize * elements:
        for other in ("float16", "float32"):
            if length == wire_type(other).itemsize * elements:
                return wire_type(other)
    return kind


def _key(entry: Mapping[str, Any], key: str, name: str) -> Any:
    try:
        return entry[key]
    except (KeyError, TypeError):
        raise ValueError(f"entry '{name}' has no '{key}'") from None


def _name(entry: Mapping[str, Any]) -> str:
    name = _key(entry, "name", "?")
    if not isinstance(name, str):
        raise ValueError(f"the entry's name is {name!r}, expected text")
    return name


def _shape(entry: Mapping[str, Any]) -> tuple[int, ...]:
    shape = _key(entry, "shape", _name(entry))
    if not isinstance(shape, list | tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"entry '{entry['name']}': the shape is {shape!r}, expected a list of integers from 0 on")
    return tuple(shape)


def _kind(entry: Mapping[str, Any], key: str, name: str) -> WireType:
    spec = _key(entry, key, name)
    try:
        return wire_type(str(spec).rpartition(".")[2])
    except TypeError as wrong:
        raise TypeError(f"entry '{name}', '{key}': {wrong}") from None


def _is_bits(entry: Mapping[str, Any], name: str) -> bool:
    encoding = entry.get(ENCODING_KEY, "compatible")
    if encoding not in ("compatible", "bits"):
        raise ValueError(f"entry '{name}': the encoding {encoding!r} is not known; expected 'bits', or none")
    return encoding == "bits"
