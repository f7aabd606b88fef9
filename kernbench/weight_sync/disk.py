"""Every change that a checkpoint sync makes to a disk, one method each, so that tests can stop or lose any of them."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kernbench.weight_sync.files import sync_folder

_FICLONE = 0x40049409
_BINARY = getattr(os, "O_BINARY", 0)


class Disk:
    """The real one."""

    def create(self, path: Path) -> int:
        """A file descriptor of a new, empty file."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)

    def open(self, path: Path) -> int:
        """A file descriptor of an existing file, to change its bytes."""
        return os.open(path, os.O_RDWR | _BINARY)

    def write(self, number: int, data: Any, offset: int) -> None:
        """Put all of ``data`` (contiguous bytes) at ``offset``."""
        left = memoryview(data)
        os.lseek(number, offset, os.SEEK_SET)
        while left:
            left = left[os.write(number, left) :]

    def sync(self, number: int) -> None:
        """Wait until a file's bytes are on the disk."""
        os.fsync(number)

    def close(self, number: int) -> None:
        os.close(number)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces ``target``, at once or not at all."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        """Wait until a folder's entries are on the disk."""
        if os.name != "nt":  # Windows cannot open folders and orders its own metadata
            sync_folder(folder)

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file's bytes and mode; without taking space where the file system shares blocks."""
        if not _reflink(source, target):
            shutil.copyfile(source, target)
        shutil.copymode(source, target)


REAL = Disk()


@contextmanager
def opened(disk: Disk, number: int) -> Iterator[int]:
    """Closes a file descriptor at the end."""
    try:
        yield number
    finally:
        with suppress(OSError):
            disk.close(number)


def read_range(number: int, offset: int, size: int) -> bytearray:
    """Bytes of an open file.

    Raises:
        ValueError: it ends before.
    """
    data = bytearray(size)
    left = memoryview(data)
    os.lseek(number, offset, os.SEEK_SET)
    while left:
        got = os.read(number, len(left))
        if not got:
            raise ValueError(f"the file ends {len(left)} bytes before byte {offset + size}")
        left[: len(got)] = got
        left = left[len(got) :]
    return data


def write_file(disk: Disk, path: Path, data: bytes) -> None:
    """Give ``path`` this content, wholly or not at all, and put it on the disk."""
    aside = path.with_name(path.name + ".tmp")
    with opened(disk, disk.create(aside)) as number:
        disk.write(number, data, 0)
        disk.sync(number)
    disk.rename(aside, path)
    disk.sync_folder(path.parent)


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with open(source, "rb") as old, open(target, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as refused:
            if refused.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS):
                raise
            return False
    return True
