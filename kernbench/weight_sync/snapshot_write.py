"""Writing a snapshot: every file aside, one fsynced manifest as the commit, then renames that can be finished later.

Readers follow the manifest, so they see the old snapshot until it is replaced and the new one from then on, also where
the writer died in between; :func:`recover_snapshot` or the next write finishes its renames.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernbench.weight_sync.arrays import describe, iter_bytes, start_digest
from kernbench.weight_sync.disk import REAL, Disk, opened, write_file
from kernbench.weight_sync.files import locked
from kernbench.weight_sync.safetensors import lay_out
from kernbench.weight_sync.snapshot_files import (
    LAST_KEY,
    SINGLE_LABEL,
    TOKEN_KEY,
    Names,
    SnapshotError,
    load_manifest,
    manifest_text,
)

Weights = list[tuple[str, Any]]
log = logging.getLogger(__name__)


def write_snapshot(
    dir: str | Path,
    rank: int,
    id: Any,
    tensors: Mapping[str, Any] | Iterable[tuple[str, Any]],
    *,
    part_bytes: int | None = None,
    version: Any = None,
    disk: Disk = REAL,
) -> list[Path]:
    """Publish a snapshot of ``rank``'s weights under ``id``, in place of one that is there, all at once.

    Args:
        tensors: names and weights, in the order of the parts. An iterator is taken a part at a time, so that weights
            can be gathered as they are written.
        part_bytes: largest size of a part's tensors; a larger tensor has a part alone. None writes one file.
        version: any JSON value, for :func:`kernbench.weight_sync.snapshot.snapshot_version`.

    Returns:
        The files, which load in this order.

    Raises:
        ValueError: no tensors, a name twice, or ``part_bytes`` below 1.
        RuntimeError: another process is writing this snapshot.
        SafetensorsError: a type or name that safetensors does not have.
    """
    folder, names = Path(dir), Names(rank, str(id))
    if part_bytes is not None and part_bytes < 1:
        raise ValueError(f"part_bytes is {part_bytes}: give at least 1, or None for one file")
    token = secrets.token_hex(16)
    items = iter(tensors.items() if isinstance(tensors, Mapping) else tensors)
    with locked(folder / names.lock):
        try:
            _finish(disk, folder, names)
        except SnapshotError as damaged:  # which this snapshot puts right
            log.warning("%s; it is being replaced", damaged)
        staged: dict[str, str] = {}
        try:
            files = _stage_all(disk, folder, names, token, _parts(items, part_bytes), part_bytes is None, staged)
            disk.sync_folder(folder)
            older = {path.name for _, path in names.parts_in(folder)} | {names.single}
            text = manifest_text(token, version, files, staged, older - staged.keys())
        except BaseException:
            for name in staged.values():
                with suppress(FileNotFoundError):
                    disk.remove(folder / name)
            raise
        write_file(disk, folder / names.manifest, text)
        _finish(disk, folder, names)
    return [folder / file["file"] for file in files]


@dataclass
class PlannedPart:
    """A file that :func:`write_snapshot` would write."""

    file: str
    tensors: int = 0
    nbytes: int = 0
    """Of its tensors."""


def plan_snapshot(rank: int, id: Any, sizes: Iterable[int], part_bytes: int | None) -> list[PlannedPart]:
    """The files that tensors of these sizes in bytes would go to."""
    names = Names(rank, str(id))
    parts: list[PlannedPart] = []
    for nbytes in sizes:
        if not parts or (part_bytes is not None and parts[-1].nbytes + nbytes > part_bytes):
            parts.append(PlannedPart(names.single if part_bytes is None else names.part(len(parts) + 1)))
        parts[-1].tensors += 1
        parts[-1].nbytes += nbytes
    return parts


def recover_snapshot(dir: str | Path, rank: int, id: Any, *, disk: Disk = REAL) -> int:
    """Finish what a writer that died has left: rename what it had committed, remove what it had not.

    Returns:
        How many files were renamed or removed.

    Raises:
        RuntimeError: a writer is at work.
    """
    folder, names = Path(dir), Names(rank, str(id))
    with locked(folder / names.lock):
        return _finish(disk, folder, names)


def _stage_all(
    disk: Disk,
    folder: Path,
    names: Names,
    token: str,
    parts: Iterator[tuple[Weights, bool]],
    single: bool,
    staged: dict[str, str],
) -> list[dict[str, Any]]:
    """Write every part aside, fsynced; gives the manifest's entries and notes in ``staged`` where each file is."""
    files = []
    for number, (part, is_last) in enumerate(parts, 1):
        name = names.single if single else names.part(number)
        staged[name] = names.staged(token, name)
        metadata = {TOKEN_KEY: token} | ({LAST_KEY: str(number)} if is_last else {})
        with opened(disk, disk.create(folder / staged[name])) as number_of_file:
            digests, size = _write_part(disk, number_of_file, part, metadata)
            disk.sync(number_of_file)
        label = SINGLE_LABEL if single else f"{SINGLE_LABEL}-part{number}"
        files.append({"file": name, "label": label, "nbytes": size, "tensors": digests})
        part.clear()
    return files


def _write_part(disk: Disk, number: int, part: Weights, metadata: dict[str, str]) -> tuple[dict[str, str], int]:
    """Write one file; gives the hash of each tensor, and the file's size."""
    weights = dict(part)
    head, places = lay_out({name: describe(weight) for name, weight in part}, metadata)
    disk.write(number, head, 0)
    digests, at = {}, len(head)
    for place in places:
        state = start_digest(place.kind, place.shape)
        for piece in iter_bytes(weights[place.name]):
            state.update(piece)
            disk.write(number, piece.data, at)
            at += piece.size
        digests[place.name] = state.hexdigest()
    return digests, at


def _parts(items: Iterator[tuple[str, Any]], limit: int | None) -> Iterator[tuple[Weights, bool]]:
    """Cut into parts of at most ``limit`` bytes; (part, whether it is the last)."""
    part: Weights = []
    seen: set[str] = set()
    size = 0
    for name, weight in items:
        if name in seen:
            raise ValueError(f"the tensor name '{name}' appears twice")
        seen.add(name)
        kind, shape = describe(weight)
        nbytes = kind.nbytes(shape)
        if part and limit is not None and size + nbytes > limit:
            yield part, False
            part, size = [], 0
        part.append((name, weight))
        size += nbytes
    if not part:
        raise ValueError("No parameter found: a snapshot needs at least one tensor")
    yield part, True


def _finish(disk: Disk, folder: Path, names: Names) -> int:
    """Carry out what is left of the manifest's renames and removals; drop files that were staged for nothing."""
    committed = load_manifest(folder, names)
    done = 0
    if committed is not None:
        for file in committed.files:
            with suppress(FileNotFoundError):
                disk.rename(file.staged or file.path, file.path)
                done += file.staged is not None
        for name in committed.replaces:
            with suppress(FileNotFoundError):
                disk.remove(folder / name)
                done += 1
    for entry in list(folder.iterdir()):
        if names.is_staged(entry.name) or entry.name == f"{names.manifest}.tmp":
            disk.remove(entry)
            done += 1
    if done:
        disk.sync_folder(folder)
    return done
