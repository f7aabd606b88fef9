"""Live tensors into safetensors files, by block diff: all files change or none, whenever the machine stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kernbench.weight_sync.arrays import describe, to_bytes
from kernbench.weight_sync.blockdiff import BLOCK
from kernbench.weight_sync.checkpoint_update import CheckpointUpdate, FileSync
from kernbench.weight_sync.delta import DeltaWriter, Progress
from kernbench.weight_sync.disk import REAL, Disk
from kernbench.weight_sync.files import write_atomically
from kernbench.weight_sync.reshard import Gathered
from kernbench.weight_sync.safetensors import Header
from kernbench.weight_sync.store import Store

__all__ = ["FileSync", "sync_files"]
_ONE: set[tuple[int, ...]] = {(), (1,)}
"""Shapes of a single number, which checkpoints write either way."""


def sync_files(
    folder: str | Path,
    wanted: Mapping[str, Mapping[str, Any]],
    block: int = BLOCK,
    *,
    encoding: str = "auto",
    delta: str | Path | None = None,
    publish: bool = False,
    use_hashes: bool = True,
    before_commit: Callable[[], None] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    disk: Disk = REAL,
) -> list[FileSync]:
    """Bring files of ``folder`` to the values of live tensors: ``wanted`` is file name -> tensor name -> tensor.

    Every type and shape is checked before anything is written. An unfinished change is rolled forward first.

    Args:
        block: bytes a block, counted from each tensor's first byte; the last may be short.
        encoding: how the journal and ``delta`` hold what changed, one of
            :data:`kernbench.weight_sync.encodings.CHOICES`; a journal never uses ``xor``, but ``auto`` instead.
        delta: a file that then takes another copy of these files through the same change
            (:mod:`kernbench.weight_sync.delta_apply`). It appears after the change, and only if there was one.
        publish: patch a copy of each changed file and rename it into place, for readers that have a file mapped;
            otherwise changed blocks are written in place, which needs space only for them.
        use_hashes: keep a sidecar of hashes, and where one is valid read only what its hashes do not know as unchanged.
        before_commit: called when everything is compared; raises to stop with nothing changed.
        dry_run: compare only, and write nothing at all.
        progress: called with the name and bytes of each tensor that is to be compared next.

    Raises:
        FileNotFoundError: a file does not exist.
        TypeError: "Type mismatch for <tensor>".
        ValueError: "Shape mismatch for <tensor>"; a malformed file; a link that may not be changed in place.
    """
    if block < 1:
        raise ValueError(f"the block size is {block} bytes: give at least 1")
    store = Store(folder, disk)
    with store.locked(create=not dry_run), ExitStack() as stack:
        if dry_run and store.pending:
            raise ValueError(f"{folder}: a change is half done: recover first")
        if not dry_run:
            store.recover()
        writer = None
        if delta is not None and not dry_run:
            base = store.manifest().version
            file = stack.enter_context(write_atomically(delta, keep=lambda: update.is_changed))
            writer = DeltaWriter(file, base, base + 1, encoding, block)
        update = CheckpointUpdate(
            store,
            block=block,
            encoding=encoding,
            use_hashes=use_hashes,
            publish=publish,
            dry_run=dry_run,
            delta=writer,
        )
        stack.callback(update.close)
        for file_name, tensors in wanted.items():
            _check(update, file_name, tensors)
        for file_name, tensors in wanted.items():
            _put(update, file_name, tensors, progress)
        if before_commit is not None:
            before_commit()
        if not dry_run:
            update.finish()
        return update.results


def _check(update: CheckpointUpdate, file: str, tensors: Mapping[str, Any]) -> None:
    header: Header = update.header(file)
    path = update.store.folder / file
    for name, tensor in tensors.items():
        where = header.tensors.get(name)
        if where is None:
            continue
        kind, shape = (tensor.kind, tensor.shape) if isinstance(tensor, Gathered) else describe(tensor)
        if kind != where.kind:
            raise TypeError(
                f"Type mismatch for {name}: it is {kind} live and {where.kind} in {path}; nothing was written"
            )
        if shape != where.shape and not {shape, where.shape} <= _ONE:
            raise ValueError(
                f"Shape mismatch for {name}: it is {list(shape)} live and {list(where.shape)} in {path}; "
                "nothing was written"
            )
    update.check(file)


def _put(update: CheckpointUpdate, file: str, tensors: Mapping[str, Any], progress: Progress | None) -> None:
    header = update.header(file)
    update.result(file).missing += [name for name in tensors if name not in header.tensors]
    for name, where in header.tensors.items():
        if name in tensors:
            if progress is not None:
                progress(name, where.nbytes)
            tensor = tensors[name]
            update.put(file, name, to_bytes(tensor.tensor() if isinstance(tensor, Gathered) else tensor).data)
