"""Live weights of a serving process into the safetensors files of its checkpoint: only blocks that changed are written.

    with export_handles(model.state_dict(), "handles.json", "path/to/checkpoint"):   # in the serving process
        ...
    checkpoint_sync("path/to/checkpoint", "handles.json")                            # in any other

A crash at any moment leaves each file wholly old or wholly new once :func:`recover` or the next sync has run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernbench.weight_sync.blockdiff import BLOCK
from kernbench.weight_sync.blocksync import FileSync, sync_files
from kernbench.weight_sync.delta import Progress
from kernbench.weight_sync.delta_apply import files_of_names
from kernbench.weight_sync.handles import Export, Handles, export_handles, load_handles
from kernbench.weight_sync.layout_table import Experts
from kernbench.weight_sync.modelconfig import ModelConfig
from kernbench.weight_sync.reshard import EMBEDDING, HEAD, Gathered, gather, vllm_to_hf_tensors
from kernbench.weight_sync.safetensors import parse_safetensors_header, read_index
from kernbench.weight_sync.store import Store, Verification

__all__ = [
    "Export",
    "SyncReport",
    "checkpoint_sync",
    "compare_names",
    "diagnose",
    "export_handles",
    "parse_safetensors_header",
    "read_safetensors_index",
    "recover",
    "sync_checkpoint",
    "sync_file",
    "verify",
    "vllm_to_hf_tensors",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, file by file."""

    files: list[FileSync]
    missing: list[str]
    """Live tensors that the checkpoint does not have."""
    version: int
    """Of the checkpoint afterwards: rises by one with every sync that changes something."""

    def summary(self) -> dict[str, int]:
        """The keys that :func:`checkpoint_sync` returns."""
        return {
            "total_compared": sum(f.compared for f in self.files),
            "total_changed": sum(f.changed for f in self.files),
            "files_changed": sum(f.changed > 0 for f in self.files),
            "tensors_synced": sum(len(f.found) for f in self.files),
            "tensors_missing": len(self.missing),
        }


@dataclass(frozen=True)
class _Match:
    """Live tensors beside the checkpoint's."""

    wanted: dict[str, dict[str, Gathered]]
    """File -> published name -> live tensor."""
    missing: list[str]
    only_disk: list[str]


def read_safetensors_index(model_dir: str | Path) -> dict[str, str]:
    """Tensor name -> file name, from the checkpoint's index; ``{}`` if it has none.

    Raises:
        SafetensorsError: the index is malformed, or names a file outside the folder.
    """
    return read_index(model_dir)


def sync_file(
    path: str | Path, tensors: Mapping[str, Any], block_size: int = BLOCK, *, publish: bool = False
) -> tuple[int, int, int, int]:
    """Bring one safetensors file to the values of ``tensors`` (published names).

    Returns:
        Bytes compared, bytes of the blocks that were changed, tensors found in the file, tensors that it lacks.

    Raises:
        As :func:`kernbench.weight_sync.blocksync.sync_files`.
    """
    path = Path(path)
    (done,) = sync_files(path.parent, {path.name: tensors}, block_size, publish=publish)
    return done.compared, done.changed, len(done.found), len(done.missing)


def checkpoint_sync(
    model_dir: str | Path,
    handles_path: str | Path,
    block_size: int = BLOCK,
    *,
    publish: bool = False,
    allow_pickle: bool = False,
) -> dict[str, int]:
    """Bring a checkpoint to the values of the live weights that a handle file names.

    Args:
        block_size: bytes a block, counted from each tensor's first byte.
        publish: patch copies and rename them into place, for readers that have files mapped; else change files in
            place.
        allow_pickle: see :func:`kernbench.weight_sync.handles.load_handles`.

    Returns:
        ``total_compared`` and ``total_changed`` in bytes, ``files_changed``, ``tensors_synced``, ``tensors_missing``
        (live, but not in the checkpoint).

    Raises:
        FileNotFoundError: "Weight handles not found"; or there is no checkpoint.
        TypeError: "Type mismatch for <tensor>"; nothing was written.
        ValueError: "Shape mismatch for <tensor>"; nothing was written.
        WeightsChangedError: the exporter changed the weights meanwhile; nothing was written.
    """
    return sync_checkpoint(model_dir, handles_path, block_size, publish=publish, allow_pickle=allow_pickle).summary()


def sync_checkpoint(
    model_dir: str | Path,
    handles_path: str | Path,
    block_size: int = BLOCK,
    *,
    publish: bool = False,
    allow_pickle: bool = False,
    expert_parallel: bool = False,
    use_hashes: bool = True,
    encoding: str = "auto",
    delta: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> SyncReport:
    """As :func:`checkpoint_sync`, with all options and a full report.

    Args:
        expert_parallel: the ranks hold whole experts.
        use_hashes, encoding, delta, dry_run, progress: see :func:`kernbench.weight_sync.blocksync.sync_files`.
    """
    handles = load_handles(handles_path, allow_pickle)
    began = handles.version()
    handles.check_unchanged(began)
    match = _match(Path(model_dir), handles, expert_parallel)
    files = sync_files(
        model_dir,
        match.wanted,
        block_size,
        publish=publish,
        use_hashes=use_hashes,
        encoding=encoding,
        delta=delta,
        before_commit=lambda: handles.check_unchanged(began),
        dry_run=dry_run,
        progress=progress,
    )
    missing = match.missing + [name for f in files for name in f.missing]
    if missing:
        log.warning(
            "%d live tensors are not in %s, so they were not synced: %s", len(missing), model_dir, _some(missing)
        )
    return SyncReport(files, missing, Store(model_dir).manifest().version)


def diagnose(model_dir: str | Path, handles_path: str | Path, *, allow_pickle: bool = False) -> dict[str, list[str]]:
    """Print which live tensors the checkpoint has, which only serving has and which only the disk has.

    Returns:
        As :func:`compare_names`.
    """
    found = compare_names(model_dir, handles_path, allow_pickle=allow_pickle)
    titles = {"matched": "matched", "only_hf": "only HF (live, not on disk)", "only_disk": "only disk (not live)"}
    for key, names in found.items():
        print(f"{titles[key]}: {len(names)}")
        for name in names:
            print(f"  {name}")
    return found


def compare_names(
    model_dir: str | Path, handles_path: str | Path, *, allow_pickle: bool = False
) -> dict[str, list[str]]:
    """``{"matched", "only_hf", "only_disk"}`` -> published names."""
    match = _match(Path(model_dir), load_handles(handles_path, allow_pickle), False)
    return {
        "matched": sorted(name for tensors in match.wanted.values() for name in tensors),
        "only_hf": sorted(match.missing),
        "only_disk": sorted(match.only_disk),
    }


def verify(model_dir: str | Path, progress: Progress | None = None) -> Verification:
    """Read every tensor of a checkpoint and compare it with the manifest's hashes. Changes nothing.

    Args:
        progress: called with the name and bytes of each file, once it has been read.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    names = files_of_names(Path(model_dir))
    return Store(model_dir).verify(sorted(set(names.values())), progress)


def recover(model_dir: str | Path) -> str:
    """Finish a change that a crash interrupted after its commit, or drop one from before; says which.

    Raises:
        CorruptJournalError, ValueError: what is on the disk does not allow it; the message says what to do.
        CheckpointBusyError: another process is changing the checkpoint.
    """
    store = Store(model_dir)
    if not store.state.exists():
        return "nothing to recover"
    with store.locked():
        return store.recover()


def _match(model_dir: Path, handles: Handles, expert_parallel: bool) -> _Match:
    on_disk = files_of_names(model_dir)
    config = ModelConfig.of_folder(model_dir)
    live = gather(handles.ranks, config, experts=_experts_on_disk(on_disk, config), expert_parallel=expert_parallel)
    if config.tied and HEAD not in live and EMBEDDING in live and resolve_name(HEAD, on_disk):
        live[HEAD] = live[EMBEDDING]  # some checkpoints hold a tied head a second time
    # Files without a live tensor are there too, so that the manifest knows every file.
    wanted: dict[str, dict[str, Gathered]] = {f: {} for f in sorted(set(on_disk.values())) if (model_dir / f).exists()}
    missing = []
    for name, tensor in live.items():
        published = resolve_name(name, on_disk)
        if published is None:
            missing.append(name)
            continue
        tensors = wanted.setdefault(on_disk[published], {})
        if published in tensors:
            raise ValueError(f"{published} is given twice: by {tensors[published].origin} and by {tensor.origin}")
        tensors[published] = tensor
    matched = {name for tensors in wanted.values() for name in tensors}
    return _Match(wanted, missing, [name for name in on_disk if name not in matched])


def resolve_name(name: str, on_disk: Mapping[str, str]) -> str | None:
    """The checkpoint's spelling of a published name: multimodal models put their parts below other prefixes.

    Raises:
        ValueError: several spellings are there.
    """
    spellings = [name, f"language_model.{name}"]
    if name.startswith("model."):
        spellings.append("model.language_model." + name.removeprefix("model."))
    else:
        spellings.append(f"model.{name}")
    found = [s for s in spellings if s in on_disk]
    if len(found) > 1:
        raise ValueError(f"{name} could be any of {', '.join(found)} in the checkpoint: it has to have one of them")
    return found[0] if found else None


def _experts_on_disk(names: Iterable[str], config: ModelConfig) -> Experts | None:
    """How the checkpoint at hand publishes experts; None if it has none."""
    for name in names:
        if re.search(r"\.experts\.\d+\.", name):
            return Experts.SINGLE
        if re.search(r"\.experts\.gate_up_proj(_blocks)?$", name):
            return Experts.TRANSPOSED if config.model_type == "gpt_oss" else Experts.FUSED
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
