"""Hashes of a file's tensors, kept beside it, which tell unchanged data from changed without reading the file.

Each tensor is cut into chunks of 64 KiB from its first byte; a sidecar holds the xxh3-128 of each. It counts only while
the file is the very one it was made of: same size, inode and times.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.void]
CHUNK = 64 << 10
HASH = np.dtype("V16")
_MAGIC = b"KBHASH01"
_TICK_NS = 20_000_000
"""Longest time between two ticks of a file system's clock."""


@dataclass(frozen=True)
class Identity:
    """What tells a file from the same file after a change."""

    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        found = os.stat(path)
        return cls(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)

    @classmethod
    def settled(cls, path: Path) -> Identity:
        """As :meth:`of`, once a later change is certain to get later times: waits 20 ms at most."""
        found = cls.of(path)
        young = time.time_ns() - max(found.mtime_ns, found.ctime_ns)
        if 0 <= young < _TICK_NS:
            time.sleep((_TICK_NS - young) / 1e9)
            return cls.of(path)
        return found


def chunk_hash(data: NDArray[np.uint8]) -> bytes:
    """xxh3-128 of one chunk."""
    return xxhash.xxh3_128_digest(data.data)


def chunks_of(nbytes: int) -> int:
    return -(-nbytes // CHUNK)


def encode(identity: Identity, hashes: Mapping[str, Hashes]) -> bytes:
    """A sidecar: of each tensor, one hash a chunk."""
    about = {"identity": vars(identity), "tensors": {name: len(h) for name, h in hashes.items()}}
    head = json.dumps(about).encode()
    body = b"".join(h.tobytes() for h in hashes.values())
    payload = len(head).to_bytes(8, "little") + head + body
    return _MAGIC + xxhash.xxh3_128_digest(payload) + payload


def read(path: Path, identity: Identity) -> dict[str, Hashes]:
    """A sidecar's hashes; empty if there is none, it is damaged, or it is not of the file with that identity."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    payload = data[24:]
    if data[:8] != _MAGIC or xxhash.xxh3_128_digest(payload) != data[8:24]:
        return {}
    length = int.from_bytes(payload[:8], "little")
    about = json.loads(payload[8 : 8 + length])
    if about["identity"] != vars(identity):
        return {}
    body = np.frombuffer(payload, HASH, offset=8 + length)
    ends = np.cumsum(list(about["tensors"].values()))
    return dict(zip(about["tensors"], np.split(body, ends[:-1]), strict=True)) if len(ends) else {}
