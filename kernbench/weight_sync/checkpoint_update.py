"""One change to a checkpoint's files, tensor by tensor, from the comparison to the manifest: all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kernbench.weight_sync import encodings, journal
from kernbench.weight_sync.arrays import start_digest
from kernbench.weight_sync.blockdiff import BLOCK, Runs, differing_runs
from kernbench.weight_sync.delta import DeltaWriter, check_same
from kernbench.weight_sync.delta_read import DeltaTensor
from kernbench.weight_sync.encodings import ABSOLUTE, PIECE, Change, Encoding, width_of
from kernbench.weight_sync.journal import JournalWriter
from kernbench.weight_sync.safetensors import Header, TensorRange, read_header
from kernbench.weight_sync.sidecar import CHUNK, HASH, Hashes, Identity, chunk_hash, chunks_of
from kernbench.weight_sync.store import FOLDER, FileRecord, Manifest, Store

Bytes = NDArray[np.uint8]
_NO_RUNS: Runs = np.empty((0, 2), np.int64)
_RECORD = 40
"""About what a record of the journal takes besides its bytes."""


@dataclass
class FileSync:
    """What became of one file; sizes in bytes."""

    file: str
    compared: int = 0
    changed: int = 0
    """Bytes of the blocks that differed."""
    skipped: int = 0
    """Of the compared bytes, those whose hash told that they had not changed, so that the file was not read."""
    journaled: int = 0
    """Bytes that the change took in the journal."""
    found: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """Of the found tensors, those that had other bytes on the disk."""
    missing: list[str] = field(default_factory=list)
    """Live tensors that the file does not have."""


@dataclass
class _File:
    """A file of the checkpoint that takes part."""

    header: Header
    data: Bytes
    result: FileSync
    known: dict[str, str]
    """Hash of each tensor as it will be; before it is looked at, as the manifest says."""
    stored: dict[str, Hashes]
    """The sidecar's hashes of the file as it is."""
    new_hashes: dict[str, Hashes] = field(default_factory=dict)
    learned: bool = False
    """Something is known that the manifest and the sidecar do not say."""

    def bytes_of(self, where: TensorRange) -> Bytes:
        return self.data[where.start : where.stop]


class CheckpointUpdate:
    """Gather changes with :meth:`put` and :meth:`patch`, then :meth:`finish`; :meth:`close` in any case.

    It has to be made, used and closed while the store is locked.

    Args:
        block: bytes a block, counted from each tensor's first byte.
        encoding: how the journal holds what changed: ``auto`` takes the shortest of ``block``, ``sparse`` and ``full``
            for each piece; ``xor`` cannot be applied twice, as a journal has to be, and means ``auto``.
        use_hashes: keep sidecars, and read only what their hashes do not know as unchanged.
        publish: see :func:`kernbench.weight_sync.blocksync.sync_files`.
        dry_run: compare only; nothing is written, and :meth:`finish` must not be called.
        delta: gets what changed.
    """

    def __init__(
        self,
        store: Store,
        *,
        block: int = BLOCK,
        encoding: str = "auto",
        use_hashes: bool = True,
        publish: bool = False,
        dry_run: bool = False,
        delta: DeltaWriter | None = None,
    ) -> None:
        self.store, self.block, self.publish, self.dry_run, self.delta = store, block, publish, dry_run, delta
        self.use_hashes = use_hashes and CHUNK % block == 0
        self.manifest = store.manifest()
        self._among = ABSOLUTE if encoding in ("auto", "xor") else encodings.allowed(encoding)
        self._writer = None if dry_run else JournalWriter(store.disk, store.state / "journal.tmp")
        self._files: dict[str, _File] = {}
        self._before: dict[str, str] = {}
        """Hash of each tensor that changes, as it was."""

    def header(self, file: str) -> Header:
        """Of a file, which takes part in the change from now on."""
        return self._open(file).header

    @property
    def results(self) -> list[FileSync]:
        """Of each file that takes part, in the order in which they joined."""
        return [file.result for file in self._files.values()]

    def result(self, file: str) -> FileSync:
        """Of one file."""
        return self._open(file).result

    @property
    def is_changed(self) -> bool:
        """Whether anything differs so far."""
        return any(one.result.changed for one in self._files.values())

    def check(self, file: str) -> None:
        """Whether a file may be changed.

        Raises:
            ValueError: a link that may not be changed in place.
        """
        path = self.store.folder / file
        linked = "a symbolic link" if path.is_symlink() else "a hard link" if os.stat(path).st_nlink > 1 else ""
        if linked and not self.publish:
            raise ValueError(
                f"{path} is {linked}: changing it in place would change the other name's file too; use publish mode, "
                "which puts a file of its own there"
            )

    def put(self, file: str, name: str, live: Bytes) -> None:
        """Give a tensor of ``file`` these bytes; once a tensor."""
        one = self._open(file)
        where = one.header.tensors[name]
        old, stored = one.bytes_of(where), one.stored.get(name)
        runs = self._runs(old, live, stored, one.result)
        self._note(one, where, runs)
        if self.dry_run:
            return
        if len(runs) or self._is_unknown(one, name):
            self._absorb(one, where, _with_runs(old, live, runs))
        else:
            self._keep(one, name)

    def patch(self, file: str, tensor: DeltaTensor) -> None:
        """Change a tensor of ``file`` as a delta says.

        Raises:
            DeltaError: it is damaged, or made for another base.
            TypeError, ValueError: type or shape differ.
        """
        one = self._open(file)
        where = one.header.tensors[tensor.name]
        check_same(tensor.name, (tensor.kind, tensor.shape), (where.kind, where.shape))
        old, before = one.bytes_of(where), start_digest(where.kind, where.shape)
        runs: list[Runs] = []

        def pieces() -> Iterator[tuple[int, Bytes | None]]:
            patches = tensor.patches()
            coming = next(patches, None)
            for start in range(0, old.size, PIECE):
                piece = old[start : start + PIECE]
                before.update(piece)
                if coming is None or coming.offset != start:
                    yield start, None
                    continue
                new = piece.copy()
                coming.apply_to(new, where.kind, where.name)
                coming = next(patches, None)
                runs.append(differing_runs(piece, new, self.block))
                yield start, new

        self._absorb(one, where, pieces())
        tensor.check(before.hexdigest(), one.known[tensor.name])
        self._note(one, where, np.concatenate(runs) if runs else _NO_RUNS)

    def learn(self) -> dict[str, str]:
        """Hash what is not known yet; gives the hash of every tensor of the files that take part, as it will be."""
        for one in self._files.values():
            for name, where in one.header.tensors.items():
                if name in one.new_hashes or (name in one.known and not self.use_hashes):
                    continue
                if self._is_unknown(one, name):
                    self._absorb(one, where, ((start, None) for start in range(0, where.nbytes, PIECE)))
                else:
                    self._keep(one, name)
        return {name: digest for one in self._files.values() for name, digest in one.known.items()}

    def finish(self, version: int | None = None) -> Manifest:
        """Commit and carry out the change, and write down hashes and version.

        Args:
            version: of the checkpoint from now on; by default the next if something changed.
        """
        assert self._writer is not None
        digests = self.learn()
        changed = [name for name, one in self._files.items() if one.result.changed]
        records = {
            name: FileRecord(None, {tensor: one.known[tensor] for tensor in one.header.tensors})
            for name, one in self._files.items()
            if one.learned
        }
        manifest = Manifest(self.manifest.version, {**self.manifest.files, **records})
        hashes = {name: self._files[name].new_hashes for name in records} if self.use_hashes else {}
        if self.delta is not None:
            self.delta.finish(digests | self._before, digests)
        if changed:
            manifest.version = manifest.version + 1 if version is None else version
            if self.publish:
                self._stage(changed)
            self.store.commit(self._writer, manifest, changed)
            manifest = self.store.roll_forward({name: h for name, h in hashes.items() if name in changed})
        quiet = [name for name in records if name not in changed]
        for name in quiet:
            identity = Identity.settled(self.store.folder / name)
            manifest.files[name].identity = identity
            if name in hashes:
                self.store.write_hashes(name, identity, hashes[name])
        if quiet or version not in (None, manifest.version):
            manifest.version = manifest.version if version is None else version
            self.store.write_manifest(manifest)
        return manifest

    def close(self) -> None:
        """Let go of everything; what has not been committed is gone."""
        if self._writer is not None:
            self._writer.close()
            if not self.store.pending:
                self.store.discard()

    def _open(self, name: str) -> _File:
        one = self._files.get(name)
        if one is not None:
            return one
        path = self.store.folder / name
        header = read_header(path)
        record = self.manifest.files.get(name)
        trusted = record is not None and record.identity == Identity.of(path)
        known = dict(record.digests) if record is not None and trusted else {}
        stored = self.store.hashes(name) if self.use_hashes and trusted else {}
        data: Bytes = np.memmap(path, np.uint8, "r") if header.file_size else np.empty(0, np.uint8)
        self._files[name] = one = _File(header, data, FileSync(name), known, stored)
        return one

    def _note(self, one: _File, where: TensorRange, runs: Runs) -> None:
        one.result.found.append(where.name)
        one.result.compared += where.nbytes
        if len(runs):
            one.result.differing.append(where.name)
            one.result.changed += int(runs[:, 1].sum())

    def _is_unknown(self, one: _File, name: str) -> bool:
        return name not in one.known or (self.use_hashes and name not in one.stored)

    def _keep(self, one: _File, name: str) -> None:
        if name in one.stored:
            one.new_hashes[name] = one.stored[name]

    def _runs(self, old: Bytes, live: Bytes, stored: Hashes | None, result: FileSync) -> Runs:
        """Differing runs of blocks; ``stored`` hashes spare reading what they say is the same."""
        if stored is None:
            return differing_runs(old, live, self.block)
        found = []
        for first, last in _unequal(live, stored):
            runs = differing_runs(old[first:last], live[first:last], self.block)
            runs[:, 0] += first
            found.append(runs)
            result.skipped -= last - first
        result.skipped += live.size
        return np.concatenate(found) if found else _NO_RUNS

    def _absorb(self, one: _File, where: TensorRange, pieces: Iterator[tuple[int, Bytes | None]]) -> None:
        """Journal a tensor's changed pieces, and hash the tensor as it will be on the disk.

        Args:
            pieces: every piece: its offset, and its new bytes, or None where it stays. The bytes must not change any
                more, as those of a live tensor may.
        """
        name, old, stored = where.name, one.bytes_of(where), one.stored.get(where.name)
        width = width_of(where.kind.bits)
        after = start_digest(where.kind, where.shape)
        before = start_digest(where.kind, where.shape) if self.delta is not None else None
        chunks = np.empty(chunks_of(old.size) if self.use_hashes else 0, HASH)
        if self.delta is not None:
            self.delta.begin(name, where.kind, where.shape)
        for start, new in pieces:
            piece = old[start : start + PIECE]
            if before is not None:
                before.update(piece)
            if new is not None:
                change = Change(piece, new, width, self.block)
                self._journal(one.result, where.start + start, change)
                if self.delta is not None:
                    self.delta.piece(start, change)
                piece = new
            after.update(piece)
            if self.use_hashes:
                here = slice(start // CHUNK, chunks_of(start + piece.size))
                if stored is not None and new is None:
                    chunks[here] = stored[here]
                else:
                    hashes = b"".join(chunk_hash(piece[i : i + CHUNK]) for i in range(0, piece.size, CHUNK))
                    chunks[here] = np.frombuffer(hashes, HASH)
        one.known[name], one.new_hashes[name], one.learned = after.hexdigest(), chunks, True
        if self.delta is not None and before is not None:
            self._before[name] = before.hexdigest()
            self.delta.end(before.hexdigest(), after.hexdigest())

    def _journal(self, result: FileSync, offset: int, change: Change) -> None:
        if self._writer is None or not len(change.runs):
            return
        encoding = change.cheapest(self._among, {Encoding.BLOCK: _RECORD * len(change.runs)})
        if encoding is Encoding.SPARSE:
            data = change.encode(encoding)
            self._writer.write_elements(result.file, offset, change.new.size, change.width, data)
            result.journaled += len(data)
            return
        runs = change.runs.tolist() if encoding is Encoding.BLOCK else [[0, change.new.size]]
        for first, length in runs:
            self._writer.write_bytes(result.file, offset + first, change.new[first : first + length].tobytes())
            result.journaled += length

    def _stage(self, changed: list[str]) -> None:
        """Patch copies of the changed files, and journal that they take the files' places."""
        assert self._writer is not None
        self._writer.flush()
        self._writer.close()
        patches = journal.read(self.store.state / "journal.tmp", complete=False).changes
        disk, staging = self.store.disk, self.store.staging
        staging.mkdir()
        self._writer = JournalWriter(disk, self.store.state / "publish.tmp")
        for file in changed:
            disk.copy(self.store.folder / file, staging / file)
            journal.write_changes(disk, staging / file, [p for p in patches if p.file == file])
            self._writer.replace(file, f"{FOLDER}/{staging.name}/{file}")
        disk.sync_folder(staging)


def _with_runs(old: Bytes, live: Bytes, runs: Runs) -> Iterator[tuple[int, Bytes | None]]:
    """The pieces of a tensor with the live bytes of ``runs`` in them, copied once, so that they stay what they are."""
    for start in range(0, old.size, PIECE):
        stop = min(start + PIECE, old.size)
        inside = runs[(runs[:, 0] < stop) & (runs[:, 0] + runs[:, 1] > start)]
        if not len(inside):
            yield start, None
            continue
        piece = old[start:stop].copy()
        for first, length in inside.tolist():
            low, high = max(first, start), min(first + length, stop)
            piece[low - start : high - start] = live[low:high]
        yield start, piece


def _unequal(live: Bytes, stored: Hashes) -> list[tuple[int, int]]:
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
