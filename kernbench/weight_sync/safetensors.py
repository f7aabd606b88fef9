"""The safetensors format: headers checked before memory is taken, ranges of tensors in a file, writing, index files.

A file is an unsigned 64-bit little-endian length N, N bytes of JSON, and the tensors' bytes without gaps. The JSON maps
names to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets counted from the end of the JSON.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kernbench.weight_sync.arrays import CHUNK, Bytes, Framework, describe, from_bytes, iter_bytes
from kernbench.weight_sync.dtypes import WireType, by_code, codes, rank

MAX_HEADER = 100_000_000
"""Bytes of JSON, the limit of the format."""
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_LENGTH = 8
_MAX_BYTES = 2**63
_METADATA = "__metadata__"
_SPACE = b" \t\r\n"


class SafetensorsError(ValueError):
    """A file that is not valid safetensors: what was found, where, and what the format wants."""


@dataclass(frozen=True)
class TensorRange:
    """Where one tensor lies: bytes ``start`` to ``stop`` of its file."""

    name: str
    kind: WireType
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What a file's header says."""

    tensors: dict[str, TensorRange]
    """In the order of their bytes in the file."""
    metadata: dict[str, str]
    data_start: int
    """Offset of the first tensor's first byte."""
    file_size: int


def parse_safetensors_header(buffer: Any, file_size: int | None = None) -> tuple[int, dict[str, Any]]:
    """Check a header; gives (offset of the tensors' bytes, the JSON as a dictionary, ``__metadata__`` included).

    Args:
        buffer: the file's bytes (any buffer, an mmap too), or its beginning up to the end of the header.
        file_size: bytes of the whole file, for a buffer that is only a beginning. Left out, the buffer is taken for the
            whole file if it holds anything after the header, and the tensors have to fill it exactly.

    Raises:
        SafetensorsError: cut off, too long, no valid JSON, a duplicate name, an unknown element type, a size that is
            no number or overflows, offsets that leave a hole, overlap, do not match the shape or do not end with the
            file.
    """
    with memoryview(buffer) as view:
        data = view.cast("B") if view.contiguous else None
        if data is None:
            raise TypeError("a safetensors buffer has to be contiguous")
        with data:
            size = len(data) if file_size is None else file_size
            length = _header_length(bytes(data[:_LENGTH]), size, "buffer")
            if len(data) < _LENGTH + length:
                raise SafetensorsError(
                    f"buffer: it ends after {len(data)} bytes, within the header of {length} bytes; "
                    "give the bytes up to the header's end"
                )
            text = bytes(data[_LENGTH : _LENGTH + length])
    whole = file_size is not None or size > _LENGTH + length
    header, _ = _check(text, size if whole else None, "buffer")
    return _LENGTH + length, header


def read_header(file: str | Path | BinaryIO) -> Header:
    """Read and check a file's header, and nothing else of it.

    Raises:
        SafetensorsError: see :func:`parse_safetensors_header`; the message names the file.
    """
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            return read_header(opened)
    place = str(getattr(file, "name", "file"))
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = _header_length(file.read(_LENGTH), size, place)
    text = file.read(length)
    if len(text) != length:
        raise SafetensorsError(f"{place}: it became shorter while its header was read")
    header, tensors = _check(text, size, place)
    return Header(tensors, header.get(_METADATA) or {}, _LENGTH + length, size)


def read_tensors(
    file: str | Path | BinaryIO,
    names: Iterable[str] | None = None,
    framework: Framework | None = None,
    header: Header | None = None,
) -> dict[str, Any]:
    """Tensors of a file, by name; all of them if ``names`` is None.

    Reading everything takes one block of memory of exactly the data's size, which the tensors share (each has its own
    where a foreign writer has laid them out unaligned).

    Args:
        framework: see :func:`kernbench.weight_sync.arrays.from_bytes`.
        header: what :func:`read_header` gave for this open file, to save reading it again.

    Raises:
        SafetensorsError: the file is malformed or shorter than its header says.
        KeyError: a name that is not in the file.
    """
    if isinstance(file, str | Path):
        with open(file, "rb", buffering=0) as opened:
            return read_tensors(opened, names, framework, header)
    header = header or read_header(file)
    start = header.data_start
    if names is None and all((t.start - start) % max(t.kind.bits // 8, 1) == 0 for t in header.tensors.values()):
        block = _read_range(file, start, header.file_size)
        return {
            t.name: from_bytes(t.kind, t.shape, block[t.start - start : t.stop - start], framework, t.name)
            for t in header.tensors.values()
        }
    wanted = [header.tensors[name] for name in (header.tensors if names is None else names)]
    return {t.name: from_bytes(t.kind, t.shape, _read_range(file, t.start, t.stop), framework, t.name) for t in wanted}


def lay_out(
    tensors: Mapping[str, tuple[WireType, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[TensorRange]]:
    """The header of a file with these types and shapes, and where each tensor goes, in the order of their bytes.

    The order is that of the safetensors library (widest type first, then by name), and so is every byte of the header,
    which is padded to a multiple of 8.

    Raises:
        SafetensorsError: a name, a type or metadata that the format cannot hold.
    """
    order = sorted(tensors.items(), key=lambda item: (-rank(item[1][0]), item[0]))
    document: dict[str, Any] = {}
    if metadata:
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items()):
            raise SafetensorsError("metadata maps text to text: turn the values into str")
        document[_METADATA] = dict(sorted(metadata.items()))
    offset = 0
    places = []
    for name, (kind, shape) in order:
        if name == _METADATA:
            raise SafetensorsError(f"a tensor cannot be called {_METADATA}, which the format keeps for itself")
        if kind.code is None:
            raise SafetensorsError(f"'{name}': safetensors has no {kind}; its types are {', '.join(codes())}")
        end = offset + kind.nbytes(shape)
        document[name] = {"dtype": kind.code, "shape": list(shape), "data_offsets": [offset, end]}
        places.append((name, kind, tuple(shape), offset, end))
        offset = end
    try:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as wrong:
        raise SafetensorsError(f"a name or metadata is no valid Unicode text: {wrong}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise SafetensorsError(f"the header takes {len(text)} bytes, the format allows {MAX_HEADER}: use several files")
    start = _LENGTH + len(text)
    head = len(text).to_bytes(_LENGTH, "little") + text
    return head, [TensorRange(n, k, s, start + begin, start + end) for n, k, s, begin, end in places]


def serialize(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, chunk: int = CHUNK
) -> Iterator[bytes | Bytes]:
    """A file's bytes in pieces: the header, then slices of the tensors, of which no second copy is made."""
    head, places = lay_out({name: describe(weight) for name, weight in tensors.items()}, metadata)
    yield head
    for place in places:
        yield from iter_bytes(tensors[place.name], chunk)


def write_safetensors(
    file: str | Path | BinaryIO, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> int:
    """Write a file; gives its size in bytes. A path is written atomically (see :mod:`kernbench.weight_sync.files`)."""
    if isinstance(file, str | Path):
        from kernbench.weight_sync.files import write_atomically

        with write_atomically(file) as opened:
            return write_safetensors(opened, tensors, metadata)
    size = 0
    for piece in serialize(tensors, metadata):
        size += len(piece)
        write_all(file, piece)
    return size


def write_all(file: BinaryIO, piece: Any) -> None:
    """Write every byte, also where an unbuffered file takes them in several goes."""
    left = memoryview(piece)
    while left:
        left = left[file.write(left) :]


def read_index(model_dir: str | Path) -> dict[str, str]:
    """``{tensor name: file name}`` of a checkpoint's index; ``{}`` if it has none. ``total_size`` is not looked at.

    Raises:
        SafetensorsError: no valid JSON, no ``weight_map``, a duplicate name, or a file outside the directory.
    """
    path = Path(model_dir) / INDEX_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    document = _json(text, str(path))
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise SafetensorsError(f"{path}: it has no 'weight_map' of tensor names to file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", "..") or "\0" in file:
            raise SafetensorsError(
                f"{path}: '{name}' is in {file!r}: expected the plain name of a file beside the index"
            )
    return weight_map


def index_text(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """The content of an index file; ``total_size`` in bytes of tensors, over all files."""
    document = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def files_of(model_dir: str | Path) -> list[Path]:
    """The files of a checkpoint: those its index names, else ``model.safetensors``, else every ``*.safetensors``."""
    folder = Path(model_dir)
    named = sorted(set(read_index(folder).values()))
    if named:
        return [folder / name for name in named]
    single = folder / SINGLE_NAME
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


def _header_length(prefix: bytes, size: int, place: str) -> int:
    """The header's length, checked against the file's size and the format's limit."""
    if len(prefix) < _LENGTH or size < _LENGTH:
        raise SafetensorsError(f"{place}: {min(len(prefix), size)} bytes are too few, even for the header's length (8)")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise SafetensorsError(
            f"{place}: the header is said to take {length} bytes, the format allows {MAX_HEADER}; not safetensors?"
        )
    if length + _LENGTH > size:
        raise SafetensorsError(f"{place}: the header is said to take {length} bytes, but the file has {size} in all")
    return length


def _check(text: bytes, size: int | None, place: str) -> tuple[dict[str, Any], dict[str, TensorRange]]:
    """The header's JSON and its ranges; ``size`` of the whole file, or None if that is not known."""
    if not text.lstrip(_SPACE).startswith(b"{"):
        raise SafetensorsError(f"{place}: the header does not start with '{{' but with {text[:8]!r}")
    header = _json(text, place)
    metadata = header.get(_METADATA)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise SafetensorsError(f"{place}: {_METADATA} has to map text to text")
    data_start = _LENGTH + len(text)
    room = None if size is None else size - data_start
    found = [_range(name, info, place) for name, info in header.items() if name != _METADATA]
    found.sort(key=lambda t: (t.start, t.stop))
    end, before = 0, "the beginning of the data"
    for t in found:
        if t.start != end:
            what = "overlaps" if t.start < end else f"leaves a hole of {t.start - end} bytes after"
            raise SafetensorsError(
                f"{place}: tensor '{t.name}' starts at offset {t.start}, which {what} {before} ({end})"
            )
        end, before = t.stop, f"the end of '{t.name}'"
    if room is not None and end != room:
        why = "is cut off" if end > room else "has bytes that belong to no tensor"
        raise SafetensorsError(f"{place}: the tensors take {end} bytes, the file has {room} of data: it {why}")
    ranges = {t.name: TensorRange(t.name, t.kind, t.shape, t.start + data_start, t.stop + data_start) for t in found}
    return header, ranges


def _range(name: str, info: Any, place: str) -> TensorRange:
    """One tensor's entry, checked on its own; offsets still counted from the end of the header."""
    where = f"{place}: tensor '{name}'"
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        raise SafetensorsError(f"{where} needs 'dtype', 'shape' and 'data_offsets', it has {_short(info)}")
    kind, shape, offsets = by_code(info["dtype"]), info["shape"], info["data_offsets"]
    if kind is None:
        raise SafetensorsError(f"{where} has dtype {_short(info['dtype'])}: expected one of {', '.join(codes())}")
    if not _naturals(shape):
        raise SafetensorsError(f"{where} has shape {_short(shape)}: expected a list of integers from 0 on")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SafetensorsError(f"{where} has data_offsets {_short(offsets)}: expected [begin, end], begin <= end")
    elements = 1
    for n in shape:
        elements *= n
        if elements * kind.bits >= _MAX_BYTES:
            raise SafetensorsError(f"{where} has shape {_short(shape)}: the number of bytes overflows")
    try:
        expected = kind.nbytes(shape)
    except ValueError as wrong:
        raise SafetensorsError(f"{where}: {wrong}") from None
    if offsets[1] - offsets[0] != expected:
        raise SafetensorsError(
            f"{where}: {kind.code} of shape {_short(shape)} takes {expected} bytes, "
            f"data_offsets {offsets} span {offsets[1] - offsets[0]}"
        )
    return TensorRange(name, kind, tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < _MAX_BYTES for n in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _json(text: bytes, place: str) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, no unpaired surrogates."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise SafetensorsError(f"{place}: the name {_short(twice)} appears twice")
        for name in made:
            name.encode()
        return made

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except SafetensorsError:
        raise
    except RecursionError:
        raise SafetensorsError(f"{place}: the JSON is nested too deeply") from None
    except ValueError as wrong:
        raise SafetensorsError(f"{place}: no valid JSON: {wrong}") from None


def _read_range(file: BinaryIO, start: int, stop: int) -> Bytes:
    """Bytes ``start`` to ``stop`` of a file, in memory of their own."""
    block = np.empty(stop - start, np.uint8)
    file.seek(start)
    left = memoryview(block)  # type: ignore[arg-type]
    while left:
        got = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            place = getattr(file, "name", "file")
            raise SafetensorsError(f"{place}: it ends {len(left)} bytes before byte {stop}; it changed while read")
        left = left[got:]
    return block
