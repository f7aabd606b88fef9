"""What is kept beside a checkpoint's files: the manifest, the lock, the journal of an unfinished change, hashes.

It all lies in the folder ``.kernbench`` within the checkpoint's. Deleting that folder loses hashes and the version;
while it holds a ``journal``, a change is half done and the folder must stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from kernbench.weight_sync import journal, sidecar
from kernbench.weight_sync.arrays import start_digest
from kernbench.weight_sync.disk import REAL, Disk, write_file
from kernbench.weight_sync.files import locked
from kernbench.weight_sync.safetensors import Header, read_header
from kernbench.weight_sync.sidecar import Hashes, Identity

FOLDER = ".kernbench"
_FORMAT = 1
_PIECE = 4 << 20


class CheckpointBusyError(RuntimeError):
    """Another process is changing the checkpoint."""


@dataclass
class FileRecord:
    """What the manifest says of one file."""

    identity: Identity | None
    """None: of no file in particular; hashes hold, but whether the file still has these bytes has to be read."""
    digests: dict[str, str]
    """Of every tensor: :func:`kernbench.weight_sync.arrays.digest`."""


@dataclass
class Manifest:
    """The version of a checkpoint and the hash of each of its tensors."""

    version: int = 0
    files: dict[str, FileRecord] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        files = {
            name: {"identity": vars(r.identity) if r.identity else None, "xxh3_128": r.digests}
            for name, r in sorted(self.files.items())
        }
        return {"format": _FORMAT, "version": self.version, "files": files}

    @classmethod
    def from_json(cls, document: Any, source: str) -> Manifest:
        try:
            if document["format"] != _FORMAT:
                raise ValueError(f"{source}: format {document['format']}, this program knows {_FORMAT}")
            files = {
                name: FileRecord(Identity(**r["identity"]) if r["identity"] else None, dict(r["xxh3_128"]))
                for name, r in document["files"].items()
            }
            return cls(int(document["version"]), files)
        except (KeyError, TypeError) as wrong:
            raise ValueError(f"{source}: no manifest of a checkpoint: {wrong!r}; delete it to start anew") from None


@dataclass(frozen=True)
class Verification:
    """What :func:`Store.verify` found."""

    version: int
    tensors: int
    """Tensors whose bytes match the manifest."""
    damaged: list[str]
    """``file: tensor`` of those that do not, or files that cannot be read."""
    unknown: list[str]
    """Files and tensors that the manifest does not know."""
    pending: bool
    """A change is half done: recover first."""

    @property
    def ok(self) -> bool:
        return not (self.damaged or self.unknown or self.pending)


class Store:
    """The state beside the files of ``folder``."""

    def __init__(self, folder: str | Path, disk: Disk = REAL) -> None:
        self.folder = Path(folder)
        self.disk = disk
        self.state = self.folder / FOLDER
        self.journal_path = self.state / "journal"
        self.staging = self.state / "new"
        self._manifest_path = self.state / "manifest.json"

    @contextmanager
    def locked(self, create: bool = True) -> Iterator[None]:
        """Keep other processes from changing the checkpoint.

        Args:
            create: make the folder for that where it is missing; else nobody can be changing the checkpoint.

        Raises:
            CheckpointBusyError: one is at it.
        """
        if not self.state.exists():
            if not create:
                yield
                return
            self.state.mkdir(exist_ok=True)
            self.disk.sync_folder(self.folder)
        busy = f"{self.folder}: another process is changing this checkpoint; wait until it is done"
        with locked(self.state / "lock", CheckpointBusyError(busy)):
            yield

    @property
    def pending(self) -> bool:
        """Whether a committed change is half done."""
        return self.journal_path.exists()

    def manifest(self) -> Manifest:
        """The manifest; an empty one of version 0 if there is none.

        Raises:
            ValueError: it is damaged.
        """
        try:
            text = self._manifest_path.read_bytes()
        except FileNotFoundError:
            return Manifest()
        try:
            return Manifest.from_json(json.loads(text), str(self._manifest_path))
        except json.JSONDecodeError as wrong:
            raise ValueError(f"{self._manifest_path}: no valid JSON: {wrong}; delete it to start anew") from None

    def write_manifest(self, manifest: Manifest) -> None:
        write_file(self.disk, self._manifest_path, json.dumps(manifest.to_json(), indent=1).encode())

    def hashes(self, file: str) -> dict[str, Hashes]:
        """The sidecar of a file, where it belongs to the file as it is now."""
        return sidecar.read(self._sidecar_path(file), Identity.of(self.folder / file))

    def write_hashes(self, file: str, identity: Identity, hashes: Mapping[str, Hashes]) -> None:
        write_file(self.disk, self._sidecar_path(file), sidecar.encode(identity, hashes))

    def commit(self, writer: journal.JournalWriter, manifest: Manifest, files: list[str]) -> None:
        """Make a change certain to happen: from here on it is rolled forward."""
        guards = {file: _guard(self.folder / file) for file in files}
        writer.commit(self.journal_path, {"manifest": manifest.to_json(), "guards": guards})

    def roll_forward(self, hashes: Mapping[str, Mapping[str, Hashes]] | None = None, check: bool = False) -> Manifest:
        """Do what the committed journal says, then record the new version and drop the journal.

        Args:
            hashes: new sidecars, by file.
            check: read the changed files again and compare every tensor with its hash.

        Raises:
            CorruptJournalError: the journal is damaged; nothing was changed.
            ValueError: a file is not the one the journal was made for, or has other bytes than it should afterwards.
        """
        change = journal.read(self.journal_path)
        manifest = Manifest.from_json(change.about["manifest"], str(self.journal_path))
        guards: dict[str, list[Any]] = change.about["guards"]
        for file, guard in guards.items():
            if _guard(self.folder / file) != guard:
                raise ValueError(
                    f"{self.folder / file}: not the file that the journal was written for: its size or header differ; "
                    f"put that file back, or delete {self.journal_path} to give the change up"
                )
        change.apply(self.disk, self.folder)
        for file in guards:
            path = self.folder / file
            record = manifest.files[file]
            if check and (wrong := _damaged(path, record)):
                raise ValueError(
                    f"{path}: after recovery {', '.join(wrong[:3])} still do not match their hashes: the file was "
                    f"changed meanwhile; restore it, or delete {self.journal_path} to accept it as it is"
                )
            record.identity = Identity.settled(path)
            if hashes and file in hashes:
                self.write_hashes(file, record.identity, hashes[file])
        self.write_manifest(manifest)
        self.disk.remove(self.journal_path)
        self.disk.sync_folder(self.state)
        self.discard()
        return manifest

    def recover(self) -> str:
        """Finish or forget what a crash left; says in a few words what was done.

        Raises:
            CorruptJournalError, ValueError: see :meth:`roll_forward`.
        """
        if self.pending:
            return f"rolled forward to version {self.roll_forward(check=True).version}"
        return "dropped a change that had not been committed" if self.discard() else "nothing to recover"

    def what_to_recover(self) -> str:
        """What :meth:`recover` would do, in a few words; changes nothing."""
        if self.pending:
            change = journal.read(self.journal_path)
            return f"would roll forward to version {change.about['manifest']['version']}"
        if self.staging.exists() or any(self.state.glob("*.tmp")):
            return "would drop a change that had not been committed"
        return "nothing to recover"

    def discard(self) -> bool:
        """Delete what an uncommitted change has prepared; whether there was anything."""
        found = False
        for path in self.state.glob("*.tmp") if self.state.exists() else ():
            self.disk.remove(path)
            found = True
        if self.staging.exists():
            shutil.rmtree(self.staging)
            found = True
        return found

    def verify(self, files: list[str], progress: Callable[[str, int], Any] | None = None) -> Verification:
        """Read every tensor of these files and compare it with the manifest. Changes nothing."""
        manifest = self.manifest()
        good, damaged, unknown = 0, [], []
        for file in files:
            record = manifest.files.get(file)
            if record is None:
                unknown.append(file)
                continue
            try:
                header = read_header(self.folder / file)
            except (OSError, ValueError) as wrong:
                damaged.append(str(wrong))
                continue
            bad = _damaged(self.folder / file, record)
            damaged += [f"{file}: {name}" for name in bad]
            unknown += [f"{file}: {name}" for name in header.tensors if name not in record.digests]
            good += len(record.digests) - len(bad)
            if progress is not None:
                progress(file, header.file_size)
        damaged += [f"{file}: gone" for file in manifest.files if file not in files]
        return Verification(manifest.version, good, damaged, unknown, self.pending)

    def _sidecar_path(self, file: str) -> Path:
        return self.state / f"{file}.hashes"


def digests(path: Path, header: Header, names: list[str] | None = None) -> dict[str, str]:
    """The hash of each tensor in a file."""
    data = np.memmap(path, np.uint8, "r") if header.file_size else np.empty(0, np.uint8)
    found = {}
    for name in header.tensors if names is None else names:
        where = header.tensors[name]
        state = start_digest(where.kind, where.shape)
        for start in range(where.start, where.stop, _PIECE):
            state.update(data[start : min(start + _PIECE, where.stop)])
        found[name] = state.hexdigest()
    return found


def _damaged(path: Path, record: FileRecord) -> list[str]:
    """Tensors of a file whose bytes are not the recorded ones, or that are gone."""
    header = read_header(path)
    found = digests(path, header, [name for name in record.digests if name in header.tensors])
    return [name for name, digest in record.digests.items() if found.get(name) != digest]


def _guard(path: Path) -> list[Any]:
    """What a change leaves as it is: size and header."""
    with open(path, "rb") as file:
        head = file.read(read_header(path).data_start)
    return [os.stat(path).st_size, xxhash.xxh3_128_hexdigest(head)]
