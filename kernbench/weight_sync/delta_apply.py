"""Deltas between checkpoints on the disk: made from two folders, and applied to one as safely as a sync."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kernbench.weight_sync.arrays import TensorBytes
from kernbench.weight_sync.blockdiff import BLOCK
from kernbench.weight_sync.checkpoint_update import CheckpointUpdate, FileSync
from kernbench.weight_sync.delta import Progress, WrongBaseError, fingerprint
from kernbench.weight_sync.delta_read import DeltaReader
from kernbench.weight_sync.disk import REAL, Disk
from kernbench.weight_sync.safetensors import SINGLE_NAME, SafetensorsError, read_header, read_index
from kernbench.weight_sync.store import Store


@dataclass(frozen=True)
class Applied:
    """What applying a delta did."""

    version: int
    """Of the checkpoint now; of a dry run, that it would have."""
    files: list[FileSync]

    def summary(self) -> dict[str, Any]:
        """Sizes in bytes."""
        return {
            "version": self.version,
            "total_changed": sum(f.changed for f in self.files),
            "files_changed": sum(f.changed > 0 for f in self.files),
            "tensors_changed": sum(len(f.differing) for f in self.files),
        }


def files_of_names(model_dir: str | Path) -> dict[str, str]:
    """Tensor name -> file of a checkpoint; the index first, then what ``model.safetensors`` holds besides.

    Raises:
        FileNotFoundError: there is neither.
    """
    folder = Path(model_dir)
    names = dict(read_index(folder))
    single = folder / SINGLE_NAME
    if single.exists():
        names = dict.fromkeys(read_header(single).tensors, SINGLE_NAME) | names
    if not names:
        raise FileNotFoundError(f"{folder}: no checkpoint: neither an index nor {SINGLE_NAME} is there")
    return names


def checkpoint_tensors(model_dir: str | Path) -> dict[str, TensorBytes]:
    """Every tensor of a checkpoint's files, mapped from its file: nothing is read before it is used.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is gone.
        SafetensorsError: a file is malformed, or lacks a tensor that the index places there.
    """
    folder = Path(model_dir)
    names = files_of_names(folder)
    made = {}
    for file in dict.fromkeys(names.values()):
        header = read_header(folder / file)
        data = np.memmap(folder / file, np.uint8, "r") if header.file_size else np.empty(0, np.uint8)
        for name, where in header.tensors.items():
            if names.get(name, file) == file:
                made[name] = TensorBytes(where.kind, where.shape, np.asarray(data)[where.start : where.stop])
    if lacking := names.keys() - made.keys():
        name = min(lacking)
        raise SafetensorsError(f"{folder / names[name]}: the index places '{name}' there, the file does not have it")
    return made


def version_of(model_dir: str | Path) -> int:
    """Of a checkpoint; 0 if it has never been synchronised."""
    return Store(model_dir).manifest().version


def apply_delta(
    model_dir: str | Path,
    delta: str | Path | BinaryIO,
    *,
    encoding: str = "auto",
    block: int = BLOCK,
    publish: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    disk: Disk = REAL,
) -> Applied:
    """Take a checkpoint to the next version: all of it or nothing, also where the machine stops.

    Everything is checked before the first byte changes: the delta's own checksums, that the checkpoint is of the
    delta's base version, that every changed tensor is the base's, and that all tensors together become the new
    version's. A checkpoint that has never been synchronised has no version, so that hashes alone decide.

    Args:
        delta: a path, or a file or stream that is read once.
        encoding, publish: see :func:`kernbench.weight_sync.blocksync.sync_files`.
        dry_run: check everything, and write nothing at all.
        progress: called with the name and bytes of each changed tensor.

    Raises:
        WrongBaseError: the checkpoint is another version than the delta's base.
        DeltaError: the delta is damaged or cut off.
        FileNotFoundError: there is no checkpoint.
        CheckpointBusyError: another process is changing it.
    """
    if isinstance(delta, str | Path):
        with open(delta, "rb") as file:
            return apply_delta(
                model_dir,
                file,
                encoding=encoding,
                block=block,
                publish=publish,
                dry_run=dry_run,
                progress=progress,
                disk=disk,
            )
    reader = DeltaReader(delta)
    store = Store(model_dir, disk)
    files = files_of_names(model_dir)
    with store.locked(create=not dry_run):
        if dry_run and store.pending:
            raise ValueError(f"{model_dir}: a change is half done: recover first")
        if not dry_run:
            store.recover()
        manifest = store.manifest()
        if manifest.files and manifest.version != reader.base_version:
            raise WrongBaseError(
                f"{reader.place}: it leads from version {reader.base_version} to {reader.new_version}, {model_dir} is "
                f"version {manifest.version}: apply the deltas between first; nothing was changed"
            )
        update = CheckpointUpdate(store, block=block, encoding=encoding, publish=publish, dry_run=dry_run)
        try:
            for file_name in dict.fromkeys(files.values()):
                update.header(file_name)
                update.check(file_name)
            for tensor in reader:
                if tensor.name not in files:
                    raise WrongBaseError(f"{reader.place}: made for another model: {tensor.name} is not in {model_dir}")
                update.patch(files[tensor.name], tensor)
                if progress is not None:
                    progress(tensor.name, tensor.kind.nbytes(tensor.shape))
            if fingerprint(update.learn()) != reader.new_fingerprint:
                raise WrongBaseError(
                    f"{reader.place}: tensors of {model_dir} that the delta does not change are not those of its base, "
                    f"version {reader.base_version}; nothing was changed"
                )
            if not dry_run:
                update.finish(reader.new_version)
        finally:
            update.close()
        return Applied(reader.new_version, update.results)
