"""Live tensors into safetensors files, by block diff: all files change or none, whenever the machine stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.weight_sync import journal
from kernbench.weight_sync.arrays import describe, start_digest, to_bytes
from kernbench.weight_sync.blockdiff import BLOCK, Runs, differing_runs
from kernbench.weight_sync.disk import REAL, Disk
from kernbench.weight_sync.journal import JournalWriter
from kernbench.weight_sync.reshard import Gathered
from kernbench.weight_sync.safetensors import Header, TensorRange, read_header
from kernbench.weight_sync.sidecar import CHUNK, HASH, Hashes, Identity, chunk_hash, chunks_of
from kernbench.weight_sync.store import FOLDER, FileRecord, Manifest, Store

Bytes = NDArray[np.uint8]
_PIECE = 4 << 20
"""Bytes of a tensor that are worked on at once; whole chunks of a sidecar."""
_NO_RUNS: Runs = np.empty((0, 2), np.int64)


@dataclass
class FileSync:
    """What became of one file; sizes in bytes."""

    file: str
    compared: int = 0
    changed: int = 0
    """Bytes of the blocks that differed."""
    skipped: int = 0
    """Of the compared bytes, those whose hash told that they had not changed, so that the file was not read."""
    found: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """Of the found tensors, those that had other bytes on the disk."""
    missing: list[str] = field(default_factory=list)
    """Live tensors that the file does not have."""


def sync_files(
    folder: str | Path,
    wanted: Mapping[str, Mapping[str, Any]],
    block: int = BLOCK,
    *,
    publish: bool = False,
    use_hashes: bool = True,
    before_commit: Callable[[], None] | None = None,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
    disk: Disk = REAL,
) -> list[FileSync]:
    """Bring files of ``folder`` to the values of live tensors: ``wanted`` is file name -> tensor name -> tensor.

    Every type and shape is checked before anything is written. An unfinished change is rolled forward first.

    Args:
        block: bytes a block, counted from each tensor's first byte; the last may be short.
        publish: patch a copy of each changed file and rename it into place, for readers that have a file mapped;
            otherwise changed blocks are written in place, which needs space only for them.
        use_hashes: keep a sidecar of hashes, and where one is valid read only what its hashes do not know as unchanged.
        before_commit: called when everything is compared; raises to stop with nothing changed.
        dry_run: compare only.
        progress: called with the name of each tensor.

    Raises:
        FileNotFoundError: a file does not exist.
        TypeError: "Type mismatch for <tensor>".
        ValueError: "Shape mismatch for <tensor>"; a malformed file; a link that may not be changed in place.
    """
    if block < 1:
        raise ValueError(f"the block size is {block} bytes: give at least 1")
    store = Store(folder, disk)
    with store.locked():
        if dry_run and store.pending:
            raise ValueError(f"{folder}: a change is half done: recover first")
        if not dry_run:
            store.recover()
        sync = _Sync(store, block, use_hashes and CHUNK % block == 0, progress)
        headers = {file: _checked(store.folder / file, tensors, publish) for file, tensors in wanted.items()}
        try:
            results = [sync.compare(file, header, wanted[file]) for file, header in headers.items()]
            if before_commit is not None:
                before_commit()
            if not dry_run:
                sync.finish(publish)
        finally:
            sync.writer.close()
            if not store.pending:
                store.discard()
        return results


def _checked(path: Path, tensors: Mapping[str, Any], publish: bool) -> Header:
    header = read_header(path)
    for name, tensor in tensors.items():
        where = header.tensors.get(name)
        if where is None:
            continue
        kind, shape = (tensor.kind, tensor.shape) if isinstance(tensor, Gathered) else describe(tensor)
        if kind != where.kind:
            raise TypeError(
                f"Type mismatch for {name}: it is {kind} live and {where.kind} in {path}; nothing was written"
            )
        if shape != where.shape:
            raise ValueError(
                f"Shape mismatch for {name}: it is {list(shape)} live and {list(where.shape)} in {path}; "
                "nothing was written"
            )
    linked = "a symbolic link" if path.is_symlink() else "a hard link" if os.stat(path).st_nlink > 1 else ""
    if linked and not publish:
        raise ValueError(
            f"{path} is {linked}: changing it in place would change the other name's file too; use publish mode, "
            "which puts a file of its own there"
        )
    return header


class _Sync:
    """One change to the files of a store, from the comparison to the manifest."""

    def __init__(self, store: Store, block: int, use_hashes: bool, progress: Callable[[str], None] | None) -> None:
        self.store, self.block, self.use_hashes = store, block, use_hashes
        self.progress = progress or (lambda name: None)
        self.writer = JournalWriter(store.disk, store.state / "journal.tmp")
        self.manifest = store.manifest()
        self.new_hashes: dict[str, dict[str, Hashes]] = {}
        self.records: dict[str, FileRecord] = {}
        self.changed: list[str] = []

    def compare(self, file: str, header: Header, tensors: Mapping[str, Any]) -> FileSync:
        """Find what differs, write it to the journal, and work out the hashes of what will be there."""
        path = self.store.folder / file
        result = FileSync(file, missing=[name for name in tensors if name not in header.tensors])
        record = self.manifest.files.get(file)
        trusted = record is not None and record.identity == Identity.of(path)
        known = dict(record.digests) if record is not None and trusted else {}
        hashes = self.store.hashes(file) if self.use_hashes and trusted else {}
        data: Bytes = np.memmap(path, np.uint8, "r") if header.file_size else np.empty(0, np.uint8)
        new_hashes: dict[str, Hashes] = {}
        learned = False
        for name, where in header.tensors.items():
            old, stored = data[where.start : where.stop], hashes.get(name)
            live, runs = old, _NO_RUNS
            if name in tensors:
                self.progress(name)
                live = _live_bytes(tensors[name])
                runs = self._runs(old, live, stored, result)
                result.found.append(name)
                result.compared += where.nbytes
                if len(runs):
                    result.differing.append(name)
                    result.changed += int(runs[:, 1].sum())
            if len(runs) or name not in known or (self.use_hashes and stored is None):
                known[name], new_hashes[name] = self._absorb(file, where, old, live, runs, stored)
                learned = True
            elif stored is not None:
                new_hashes[name] = stored
        if result.changed:
            self.changed.append(file)
        if learned:
            self.records[file] = FileRecord(None, {name: known[name] for name in header.tensors})
            if self.use_hashes:
                self.new_hashes[file] = new_hashes
        return result

    def finish(self, publish: bool) -> None:
        """Commit and carry out the change, and write down the new hashes."""
        manifest = Manifest(self.manifest.version, {**self.manifest.files, **self.records})
        if self.changed:
            manifest.version += 1
            if publish:
                self._stage()
            self.store.commit(self.writer, manifest, self.changed)
            manifest = self.store.roll_forward({f: h for f, h in self.new_hashes.items() if f in self.changed})
        quiet = [file for file in self.records if file not in self.changed]
        for file in quiet:
            identity = Identity.settled(self.store.folder / file)
            manifest.files[file].identity = identity
            if file in self.new_hashes:
                self.store.write_hashes(file, identity, self.new_hashes[file])
        if quiet:
            self.store.write_manifest(manifest)

    def _stage(self) -> None:
        """Patch copies of the changed files, and journal that they take the files' places."""
        self.writer.flush()
        self.writer.close()
        patches = journal.read(self.store.state / "journal.tmp", complete=False).changes
        disk, staging = self.store.disk, self.store.staging
        staging.mkdir()
        self.writer = JournalWriter(disk, self.store.state / "publish.tmp")
        for file in self.changed:
            disk.copy(self.store.folder / file, staging / file)
            journal.write_changes(disk, staging / file, [p for p in patches if p.file == file])
            self.writer.replace(file, f"{FOLDER}/{staging.name}/{file}")
        disk.sync_folder(staging)

    def _runs(self, old: Bytes, live: Bytes, stored: Hashes | None, result: FileSync) -> Runs:
        """Differing runs of blocks; ``stored`` hashes spare reading what they say is the same."""
        if stored is None:
            return differing_runs(old, live, self.block)
        found = []
        for first, last in self._unequal(live, stored):
            runs = differing_runs(old[first:last], live[first:last], self.block)
            runs[:, 0] += first
            found.append(runs)
            result.skipped -= last - first
        result.skipped += live.size
        return np.concatenate(found) if found else _NO_RUNS

    def _unequal(self, live: Bytes, stored: Hashes) -> list[tuple[int, int]]:
        """Stretches of whole chunks whose hash is another than the stored one."""
        known = stored.tobytes()
        stretches: list[tuple[int, int]] = []
        for i in range(len(stored)):
            start = i * CHUNK
            stop = min(start + CHUNK, live.size)
            if chunk_hash(live[start:stop]) == known[16 * i : 16 * i + 16]:
                continue
            if stretches and stretches[-1][1] == start:
                stretches[-1] = (stretches[-1][0], stop)
            else:
                stretches.append((start, stop))
        return stretches

    def _absorb(
        self, file: str, where: TensorRange, old: Bytes, live: Bytes, runs: Runs, stored: Hashes | None
    ) -> tuple[str, Hashes]:
        """Journal the live bytes of ``runs``; gives digest and chunk hashes of the tensor as it will be on the disk.

        They are of the old bytes with the journaled ones in them, never of the live tensor, which may change meanwhile.
        """
        digest = start_digest(where.kind, where.shape)
        chunks = np.empty(chunks_of(old.size) if self.use_hashes else 0, HASH)
        for start in range(0, old.size, _PIECE):
            stop = min(start + _PIECE, old.size)
            piece = old[start:stop]
            inside = runs[(runs[:, 0] < stop) & (runs[:, 0] + runs[:, 1] > start)]
            if len(inside):
                piece = piece.copy()
            for first, length in inside.tolist():
                low, high = max(first, start), min(first + length, stop)
                data = live[low:high].tobytes()
                self.writer.write_bytes(file, where.start + low, data)
                piece[low - start : high - start] = np.frombuffer(data, np.uint8)
            digest.update(piece)
            if self.use_hashes:
                here = slice(start // CHUNK, chunks_of(stop))
                if stored is not None and not len(inside):
                    chunks[here] = stored[here]
                else:
                    hashes = b"".join(chunk_hash(piece[i : i + CHUNK]) for i in range(0, piece.size, CHUNK))
                    chunks[here] = np.frombuffer(hashes, HASH)
        return digest.hexdigest(), chunks


def _live_bytes(tensor: Any) -> Bytes:
    return to_bytes(tensor.tensor() if isinstance(tensor, Gathered) else tensor).data
