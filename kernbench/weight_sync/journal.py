"""The redo journal: the new bytes of a change to several files, written down before any of them is touched.

A journal is written aside and fsynced; renaming it is the commit. From then on the change is rolled forward, by the
sync itself or by whoever next opens the checkpoint: records are absolute bytes at absolute offsets, or files to put in
another's place, so doing them twice is harmless. Before the commit nothing has been touched.

Layout: 8 bytes of magic, then records as in :mod:`kernbench.weight_sync.records`. The last one is the end, whose body
is the number of records before it.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.weight_sync import encodings, records
from kernbench.weight_sync.disk import Disk, opened, read_range
from kernbench.weight_sync.encodings import Encoding

MAGIC = b"KBREDO01"
_PLACE = struct.Struct("<IQ")
_LIST = struct.Struct("<IB")
_ABOUT, _BYTES, _ELEMENTS, _REPLACE, _END = b"A", b"B", b"L", b"R", b"E"
_BATCH = 8 << 20
"""Bytes that are collected before they are written to the journal."""


class CorruptJournalError(ValueError):
    """A committed journal does not hold what was written to it; nothing was changed on its account."""


@dataclass(frozen=True)
class Change:
    """New bytes for one file, new values for scattered elements of it, or a file to put in its place."""

    file: str
    """Name within the folder."""
    offset: int = 0
    data: memoryview | bytes = b""
    elements: tuple[int, int] | None = None
    """(bytes, bytes an element) of the range from ``offset`` on in which ``data`` lists elements, in the encoding
    ``sparse``; None: ``data`` are the new bytes."""
    replacement: str | None = None


class JournalWriter:
    """Writes a journal aside; the file appears with the first change."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk, self._path = disk, path
        self._number: int | None = None
        self._size = self._records = 0
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._files: list[str] = []

    def write_bytes(self, file: str, offset: int, data: bytes) -> None:
        """Record that ``data`` goes to ``offset`` of ``file``."""
        self._record(_BYTES, self._place(file, offset), data)

    def write_elements(self, file: str, offset: int, length: int, width: int, data: bytes) -> None:
        """Record new values for elements of ``width`` bytes among the ``length`` bytes from ``offset`` of ``file`` on;
        ``data`` lists them in the encoding ``sparse``."""
        self._record(_ELEMENTS, self._place(file, offset), _LIST.pack(length, width), data)

    def replace(self, file: str, replacement: str) -> None:
        """Record that the file ``replacement`` goes in the place of ``file``."""
        self._record(_REPLACE, json.dumps([file, replacement]).encode())

    def commit(self, target: Path, about: dict[str, Any]) -> None:
        """End the journal, put it on the disk and rename it to ``target``; ``about`` comes back from :func:`read`."""
        self._record(_ABOUT, json.dumps({"about": about}).encode())
        self._record(_END, self._records.to_bytes(8, "little"))
        self.flush()
        assert self._number is not None
        self._disk.sync(self._number)
        self.close()
        self._disk.rename(self._path, target)
        self._disk.sync_folder(target.parent)

    def flush(self) -> None:
        """Hand everything recorded so far to the operating system."""
        if self._pending:
            assert self._number is not None
            data = b"".join(self._pending)
            self._pending, self._pending_size = [], 0
            self._disk.write(self._number, data, self._size)
            self._size += len(data)

    def close(self) -> None:
        number, self._number = self._number, None
        if number is not None:
            self._disk.close(number)

    def _place(self, file: str, offset: int) -> bytes:
        if file not in self._files:
            self._files.append(file)
            self._record(_ABOUT, json.dumps({"file": file}).encode())
        return _PLACE.pack(self._files.index(file), offset)

    def _record(self, kind: bytes, *body: bytes) -> None:
        if self._records == 0:
            self._number = self._disk.create(self._path)
            self._pending.append(MAGIC)
        self._pending += [records.head(kind, *body), *body]
        self._pending_size += sum(len(part) for part in body)
        self._records += 1
        if self._pending_size >= _BATCH:
            self.flush()


@dataclass(frozen=True)
class Journal:
    """A journal that has been read and checked."""

    about: dict[str, Any]
    changes: list[Change]

    def apply(self, disk: Disk, folder: Path) -> None:
        """Do every change again and put it on the disk."""
        by_file: dict[str, list[Change]] = {}
        replaced = False
        for change in self.changes:
            if change.replacement is None:
                by_file.setdefault(change.file, []).append(change)
            elif (folder / change.replacement).exists():
                disk.rename(folder / change.replacement, folder / change.file)
                replaced = True
        for file, changes in by_file.items():
            write_changes(disk, folder / file, changes)
        if replaced:
            disk.sync_folder(folder)


def write_changes(disk: Disk, path: Path, changes: list[Change]) -> None:
    """Write new bytes into a file in place and put them on the disk."""
    with opened(disk, disk.open(path)) as number:
        for change in changes:
            if change.elements is None:
                disk.write(number, change.data, change.offset)
            else:
                length, width = change.elements
                piece = np.frombuffer(read_range(number, change.offset, length), np.uint8)
                encodings.apply(Encoding.SPARSE, change.data, piece, width)
                disk.write(number, piece.data, change.offset)
        disk.sync(number)


def read(path: Path, complete: bool = True) -> Journal:
    """Read a journal and check all of it.

    Args:
        complete: it has been committed; False: its end may be missing.

    Raises:
        CorruptJournalError: a record is damaged or the end is missing.
    """
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            raise CorruptJournalError(f"{path}: the journal is empty")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if view[:8] != MAGIC:
        raise CorruptJournalError(f"{path}: no journal of a checkpoint sync: it starts with {bytes(view[:8])!r}")
    about: dict[str, Any] = {}
    changes: list[Change] = []
    files: list[str] = []
    count, ended = 0, False
    for kind, body in _records(view, path):
        if kind == _ABOUT:
            entry = json.loads(bytes(body))
            about = entry.get("about", about)
            files += [entry["file"]] if "file" in entry else []
        elif kind == _BYTES:
            index, offset = _PLACE.unpack_from(body)
            changes.append(Change(files[index], offset, body[_PLACE.size :]))
        elif kind == _ELEMENTS:
            index, offset = _PLACE.unpack_from(body)
            elements = _LIST.unpack_from(body, _PLACE.size)
            changes.append(Change(files[index], offset, body[_PLACE.size + _LIST.size :], elements))
        elif kind == _REPLACE:
            target, replacement = json.loads(bytes(body))
            changes.append(Change(target, replacement=replacement))
        else:
            ended = kind == _END and int.from_bytes(body, "little") == count
        count += 1
    if complete and not ended:
        raise CorruptJournalError(f"{path}: the journal's end is missing after {count} records")
    return Journal(about, changes)


def _records(view: memoryview, path: Path) -> Iterator[tuple[bytes, memoryview]]:
    at = len(MAGIC)
    while at < len(view):
        if at + records.HEAD.size > len(view):
            raise CorruptJournalError(f"{path}: cut off in the record at byte {at}")
        length, kind, digest = records.HEAD.unpack_from(view, at)
        start, at = at + records.HEAD.size, at + records.HEAD.size + length
        if at > len(view):
            raise CorruptJournalError(f"{path}: cut off in the record at byte {start}")
        body = view[start:at]
        if not records.matches(kind, body, digest):
            raise CorruptJournalError(f"{path}: the record at byte {start} does not match its checksum")
        yield bytes([kind]), body
