"""Live tensors in shared memory, named in a JSON file, which another process maps without a copy.

The file maps each tensor's name to a list with one entry a rank: ``{"segment", "offset", "dtype", "shape"}``;
``__metadata__`` holds the model's path, the exporter's process and the segment of a counter that tells whether tensors
are being changed. Segments are memory-mapped files: in ``/dev/shm`` where the system has it, else in the folder for
temporary files.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.weight_sync.arrays import (
    TensorBytes,
    copy_into,
    describe,
    framework_of,
    from_bytes,
    is_contiguous_on_host,
)
from kernbench.weight_sync.disk import REAL, write_file
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.processes import is_alive

Bytes = NDArray[np.uint8]
METADATA = "__metadata__"
_FORMAT = "kernbench-shared-memory-1"
_ALIGNMENT = 64
_NAME = re.compile(r"kernbench-(\d+)-[0-9a-f]{16}")


class WeightsChangedError(RuntimeError):
    """The exporter changed the weights while they were read: what was read may be a mixture."""


@dataclass(frozen=True)
class Handles:
    """Another process's live tensors."""

    ranks: list[dict[str, Any]]
    """Name -> numpy array over the shared memory, of each rank; of a pickled file, torch tensors."""
    model_dir: Path | None
    """Folder of the checkpoint they belong to, as the exporter said."""
    version: Callable[[], int]
    """How often the exporter has begun or ended to change them; odd: it is at it."""

    def check_unchanged(self, since: int) -> None:
        """Raises:
        WeightsChangedError: they are being changed or have been since :attr:`version` was ``since``.
        """
        now = self.version()
        if now != since or now % 2:
            raise WeightsChangedError(
                "the exporter changed the weights while they were read: sync again between two updates"
            )


class Export:
    """Published tensors of this process. The segments go when it is closed, and at the latest when the process ends."""

    def __init__(
        self, path: Path, ranks: list[dict[str, Any]], segments: list[Path], counter: NDArray[np.uint64]
    ) -> None:
        self.path = path
        self.ranks = ranks
        """Tensors over the shared memory: what is written into them is what readers see."""
        self._segments, self._counter = segments, counter
        self._process = os.getpid()
        atexit.register(self.close)

    @property
    def tensors(self) -> dict[str, Any]:
        """Those of rank 0."""
        return self.ranks[0]

    @contextmanager
    def updating(self) -> Iterator[dict[str, Any]]:
        """Within this block tensors may be changed; a reader that overlaps with it raises WeightsChangedError."""
        self._counter[0] += 1
        try:
            yield self.tensors
        finally:
            self._counter[0] += 1

    def refresh(self, tensors: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Copy new values into the shared memory.

        Raises:
            KeyError: a name that was not exported.
            TypeError, ValueError: element type or shape changed.
        """
        with self.updating():
            for mine, theirs in zip(self.ranks, _ranks(tensors), strict=True):
                for name, value in theirs.items():
                    copy_into(mine[name], value)

    def close(self) -> None:
        """Remove the handle file and the segments; tensors already mapped stay readable."""
        if os.getpid() != self._process:  # a forked child does not own them
            return
        atexit.unregister(self.close)
        _remove([*self._segments, self.path])
        self._segments = []

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def export_handles(
    tensors: Mapping[str, Any] | Sequence[Mapping[str, Any]], handles_path: str | Path, model_dir: str | Path
) -> Export:
    """Publish tensors in shared memory, for :func:`load_handles` of another process.

    They are copied once; go on with :attr:`Export.tensors`, or copy new values with :meth:`Export.refresh`. Tensors
    that share their memory (tied embeddings) share it again.

    Args:
        tensors: name -> tensor; of a tensor-parallel group, one such mapping a rank.
        model_dir: the checkpoint that they belong to.
    """
    path = Path(handles_path)
    _remove_abandoned(path)
    segments: list[Path] = []
    try:
        ranks = _ranks(tensors)
        _check_names(ranks)
        document: dict[str, Any] = {name: [] for name in ranks[0]}
        exported = []
        for params in ranks:
            views, entries = _export_rank(params, segments)
            exported.append(views)
            for name, entry in entries.items():
                document[name].append(entry)
        counter_path, counter = _create_segment(8, segments)
        document[METADATA] = {
            "format": _FORMAT,
            "model_path": str(Path(model_dir).absolute()),
            "pid": os.getpid(),
            "counter": counter_path.name,
            "tp": len(exported),
        }
        write_file(REAL, path, json.dumps(document).encode())
    except BaseException:
        _remove(segments)
        raise
    return Export(path, exported, segments, counter.view(np.uint64))


def load_handles(handles_path: str | Path, allow_pickle: bool = False) -> Handles:
    """Map the tensors that a handle file names, without a copy.

    Args:
        allow_pickle: also take a pickled file of CUDA IPC handles. Reading a pickle can run code that is in it: only
            for files of a process you trust.

    Raises:
        FileNotFoundError: "Weight handles not found"; or the exporter's segments are gone.
        PermissionError: a pickled file, without ``allow_pickle``.
        ValueError: a damaged file, or an entry that lies outside its segment.
    """
    path = Path(handles_path)
    if not path.exists():
        raise FileNotFoundError(f"Weight handles not found: {path}. Is the serving process running and exporting them?")
    text = path.read_bytes()
    if not text.lstrip().startswith(b"{"):
        from kernbench.weight_sync.pickled_handles import load_pickled

        if not allow_pickle:
            raise PermissionError(
                f"{path} is no JSON file of shared-memory handles; if it is a pickled file of CUDA IPC handles, "
                "reading it can run code that is in it: allow it (--allow-pickle) only if you trust who wrote it"
            )
        return load_pickled(path, text)
    try:
        document = json.loads(text)
        about = document.pop(METADATA)
        if about["format"] != _FORMAT:
            raise ValueError(f"{path}: format {about['format']!r}, this program knows {_FORMAT!r}")
        memory: dict[str, Bytes] = {}
        ranks = [
            {name: _mapped(memory, name, entries[rank], path) for name, entries in document.items()}
            for rank in range(about["tp"])
        ]
        counter = _segment(memory, about["counter"], path)[:8].view(np.uint64)
        return Handles(ranks, Path(about["model_path"]), lambda: int(counter[0]))
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as wrong:
        raise ValueError(f"{path}: no file of weight handles: {wrong!r}") from None


def _check_names(ranks: Sequence[Mapping[str, Any]]) -> None:
    if not ranks:
        raise ValueError("no ranks: give the tensors of at least one")
    for rank, params in enumerate(ranks):
        if METADATA in params:
            raise ValueError(f"a tensor cannot be called {METADATA}, which the file keeps for itself")
        if params.keys() != ranks[0].keys():
            name = min(params.keys() ^ ranks[0].keys())
            raise ValueError(f"{name} is on rank {rank} or on rank 0 but not on both: ranks have the same tensors")


def _export_rank(params: Mapping[str, Any], segments: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copy one rank's tensors into a segment of its own: (tensors over it, entries of the handle file)."""
    places: dict[str, int] = {}
    seen: dict[tuple[int, int] | None, int] = {}
    size = 0
    for name, weight in params.items():
        kind, shape = describe(weight)
        key = _memory(weight, kind.nbytes(shape))
        if key is None or key not in seen:
            seen[key] = -(-size // _ALIGNMENT) * _ALIGNMENT
            size = seen[key] + kind.nbytes(shape)
        places[name] = seen[key]
    segment, memory = _create_segment(size, segments)
    views, entries = {}, {}
    for name, weight in params.items():
        kind, shape = describe(weight)
        start = places[name]
        data = memory[start : start + kind.nbytes(shape)]
        views[name] = from_bytes(kind, shape, data, framework_of(weight), name)
        copy_into(views[name], weight)
        entries[name] = {"segment": segment.name, "offset": start, "dtype": kind.torch_name, "shape": list(shape)}
    return views, entries


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def _ranks(tensors: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return [tensors] if isinstance(tensors, Mapping) else tensors


def _folder() -> Path:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def _create_segment(size: int, segments: list[Path]) -> tuple[Path, Bytes]:
    """A new segment and its memory, zeros; its path is added to ``segments`` as soon as it exists."""
    path = _folder() / f"kernbench-{os.getpid()}-{secrets.token_hex(8)}"
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    segments.append(path)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(
                number, 0, max(size, 1)
            )  # where memory is short that is an error here, not a SIGBUS later
        else:
            os.ftruncate(number, max(size, 1))
        return path, np.frombuffer(mmap.mmap(number, max(size, 1)), np.uint8)
    finally:
        os.close(number)


def _segment(memory: dict[str, Bytes], name: Any, path: Path) -> Bytes:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{path}: {name!r} is no name of a shared-memory segment of an export")
    if name not in memory:
        try:
            with open(_folder() / name, "rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"Weight handles not found: {path} names the segment {name}, which is gone. Has the exporter ended?"
            ) from None
        memory[name] = np.frombuffer(mapping, np.uint8)
    return memory[name]


def _mapped(memory: dict[str, Bytes], name: str, entry: Mapping[str, Any], path: Path) -> NDArray[Any]:
    kind, shape, start = wire_type(entry["dtype"]), tuple(entry["shape"]), entry["offset"]
    segment = _segment(memory, entry["segment"], path)
    if any(type(n) is not int or n < 0 for n in (*shape, start)) or start + kind.nbytes(shape) > segment.size:
        raise ValueError(
            f"{path}: '{name}' ({kind} {list(shape)} at {start}) lies outside its segment of {segment.size}"
        )
    array: NDArray[Any] = TensorBytes(kind, shape, segment[start : start + kind.nbytes(shape)]).to("numpy")
    return array


def _memory(weight: Any, nbytes: int) -> tuple[int, int] | None:
    """What two tensors over the same memory have in common."""
    if not nbytes or not is_contiguous_on_host(weight):
        return None
    if isinstance(weight, np.ndarray):
        return weight.ctypes.data, nbytes
    return (weight.data_ptr(), nbytes) if framework_of(weight) == "torch" else None


def _remove_abandoned(path: Path) -> None:
    """Segments of an earlier export to the same file whose process has died without removing them."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        document = json.loads(path.read_bytes())
        about = document.pop(METADATA)
        if is_alive(about["pid"]):
            return
        names = {about["counter"], *(e["segment"] for entries in document.values() for e in entries)}
        for name in names:
            if _NAME.fullmatch(name):
                (_folder() / name).unlink(missing_ok=True)
