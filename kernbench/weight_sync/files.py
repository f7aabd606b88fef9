"""Files that are wholly old or wholly new whatever happens: written aside, fsynced, renamed, folder fsynced."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_atomically(path: str | Path, keep: Callable[[], bool] = lambda: True) -> Iterator[BinaryIO]:
    """A new file for ``path``, which appears there when the block ends without an error and is on the disk then.

    Readers that have the old file open or mapped keep the old one. After an error the old file is untouched and the new
    one is gone.

    Args:
        keep: asked at the end; False drops the new file as after an error.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not keep():
            os.unlink(aside)
            return
        os.replace(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    sync_folder(path.parent)


def sync_folder(folder: str | Path) -> None:
    """Put a folder's entries on the disk: a rename or an unlink survives a power failure only after this."""
    number = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def locked(path: str | Path, busy: Exception | None = None) -> Iterator[None]:
    """Be the only process in the block; ``path`` is an empty file made for that, which stays. A crash frees the lock.

    Args:
        busy: what to raise where another process is in; by default a RuntimeError that names ``path``.
    """
    with open(path, "ab") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            else:
                import fcntl

                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise busy or RuntimeError(f"{path}: another process is writing there; wait for it to finish") from None
        yield
