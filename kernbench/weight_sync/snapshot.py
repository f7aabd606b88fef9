"""Snapshots of one rank's weights for elastic recovery: written in parts, published at once, loaded part by part."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.weight_sync import paddle_pickle
from kernbench.weight_sync.arrays import Framework, TensorBytes, copy_into, describe, digest
from kernbench.weight_sync.safetensors import Header, SafetensorsError, read_header, read_tensors
from kernbench.weight_sync.snapshot_files import (
    LAST_KEY,
    TOKEN_KEY,
    Names,
    Snapshot,
    SnapshotError,
    SnapshotFile,
    locate,
    read_manifest,
)
from kernbench.weight_sync.snapshot_write import recover_snapshot, write_snapshot

__all__ = [
    "Snapshot",
    "SnapshotError",
    "apply_to",
    "load_snapshot",
    "map_snapshot",
    "open_snapshot",
    "recover_snapshot",
    "snapshot_version",
    "verify_snapshot",
    "write_snapshot",
]

StateDict = dict[str, Any]
Apply = Callable[[StateDict, str], Any]
log = logging.getLogger(__name__)


def load_snapshot(
    dir: str | Path,
    rank: int,
    id: Any,
    apply: Apply,
    shared_dir: str | Path = "/shared_ipc_meta",
    *,
    framework: Framework | None = None,
    allow_pickle: bool = False,
    prefetch: bool = False,
    verify: bool = True,
) -> list[str]:
    """Load the snapshot of ``rank`` with ``id``, calling ``apply(state_dict, label)`` once per file.

    The first of these that exists is loaded, and nothing else is looked at:

    1. ``dir/model_state.tp{rank}.{id}.part{N}.pdparams`` by ascending number N, labels ``snapshot-part{N}``;
    2. ``dir/model_state.tp{rank}.{id}.pdparams``, label ``snapshot``, as the next two;
    3. ``dir/model_state.tp0{id}.pdparams``, of old writers;
    4. ``shared_dir/model_state.tp{rank}.{id}.pdparams``.

    Where :func:`write_snapshot` left a manifest in ``dir``, that says which files belong together. All headers are
    checked before the first file is applied. In memory there is one file at a time; a tensor that ``apply`` keeps holds
    its whole file.

    Args:
        apply: see :func:`apply_to` for the usual one.
        framework: what the tensors are; torch if the process has imported it, else numpy.
        allow_pickle: read a Paddle pickle at priority 4, with an unpickler that can make nothing but arrays.
        prefetch: read the next file while ``apply`` runs: faster, and up to two files in memory.
        verify: compare every tensor with its hash in the manifest, if there is one.

    Returns:
        The labels, in order.

    Raises:
        FileNotFoundError: "No snapshot found".
        SnapshotError: a part is missing, damaged, or of another snapshot; or a pickle that is not allowed.
        SafetensorsError: a malformed file.
    """
    snapshot, headers = open_snapshot(dir, rank, id, shared_dir)
    if headers is None:
        return _load_pickle(snapshot.files[0], apply, framework, allow_pickle)
    jobs = list(zip(snapshot.files, headers, strict=True))
    ahead: Future[StateDict] | None = None
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1)) if prefetch and len(jobs) > 1 else None
        for i, (file, header) in enumerate(jobs):
            state = ahead.result() if ahead is not None else _read(file, header, framework, verify)
            ahead = pool.submit(_read, *jobs[i + 1], framework, verify) if pool and i + 1 < len(jobs) else None
            tensors = [weakref.ref(tensor) for tensor in state.values()]
            _apply(apply, state, file)
            del state
            if any(tensor() is not None for tensor in tensors):
                gc.collect()  # a cycle of the caller's may hold them; a collection is too slow to do it for nothing
    return [file.label for file in snapshot.files]


def apply_to(params: Mapping[str, Any]) -> Apply:
    """An ``apply`` that copies into existing parameters, of torch, numpy or a context, bit for bit.

    All of a state dictionary is checked before anything of it is copied. Names that ``params`` does not have are
    ignored, with a debug message.

    Raises (when called):
        ValueError: "No parameter found" in an empty state dictionary, or "Shape mismatch for {name}".
        TypeError: "Type mismatch for {name}".
    """

    def apply(state: StateDict, label: str) -> None:
        if not state:
            raise ValueError(f"No parameter found in {label}")
        known = {}
        for name, weight in state.items():
            if name not in params:
                log.debug("%s: the model has no parameter '%s'; ignored", label, name)
                continue
            (kind, shape), (mine, size) = describe(weight), describe(params[name])
            if kind != mine:
                raise TypeError(f"Type mismatch for {name}: {label} has {kind}, the parameter is {mine}")
            if shape != size:
                raise ValueError(f"Shape mismatch for {name}: {label} has {list(shape)}, the parameter is {list(size)}")
            known[name] = weight
        for name, weight in known.items():
            copy_into(params[name], weight)

    return apply


def snapshot_version(dir: str | Path, rank: int, id: Any) -> Any:
    """The version that :func:`write_snapshot` was given.

    Raises:
        FileNotFoundError: there is no manifest.
    """
    names = Names(rank, str(id))
    snapshot = read_manifest(Path(dir), names)
    if snapshot is None:
        raise FileNotFoundError(f"{Path(dir) / names.manifest}: no manifest, so no version is known")
    return snapshot.version


def verify_snapshot(dir: str | Path, rank: int, id: Any, shared_dir: str | Path = "/shared_ipc_meta") -> Snapshot:
    """Read a whole snapshot and compare it with its manifest, applying nothing; without a manifest, check its headers.

    Raises: as :func:`load_snapshot`.
    """
    snapshot, headers = open_snapshot(dir, rank, id, shared_dir)
    if headers is None:
        raise paddle_pickle.refusal(snapshot.files[0].path)
    for file, header in zip(snapshot.files, headers, strict=True):
        if file.digests is not None:
            _read(file, header, "numpy", verify=True)
    return snapshot


def open_snapshot(
    dir: str | Path, rank: int, id: Any, shared_dir: str | Path = "/shared_ipc_meta"
) -> tuple[Snapshot, list[Header] | None]:
    """The snapshot that :func:`load_snapshot` would load and its checked headers, which are None for a pickle.

    Raises: as :func:`load_snapshot`.
    """
    folder, id, shared = Path(dir), str(id), Path(shared_dir)
    snapshot = locate(folder, rank, id, shared)
    if snapshot.may_be_pickle and paddle_pickle.is_pickle(snapshot.files[0].path):
        return snapshot, None
    try:
        return snapshot, check_headers(snapshot)
    except SnapshotError:
        if locate(folder, rank, id, shared).token == snapshot.token:
            raise
    return open_snapshot(folder, rank, id, shared)  # a writer has published another meanwhile


def map_snapshot(dir: str | Path, rank: int, id: Any) -> dict[str, TensorBytes]:
    """Every tensor of a snapshot, mapped from its file: nothing is read before it is used, nor compared with hashes.

    Raises: as :func:`load_snapshot`.
    """
    snapshot, headers = open_snapshot(dir, rank, id)
    if headers is None:
        raise paddle_pickle.refusal(snapshot.files[0].path)
    made = {}
    for file, header in zip(snapshot.files, headers, strict=True):
        with file.open() as opened:
            data = np.asarray(np.memmap(opened, np.uint8, "r"))
        for name, where in header.tensors.items():
            made[name] = TensorBytes(where.kind, where.shape, data[where.start : where.stop])
    return made


def check_headers(snapshot: Snapshot) -> list[Header]:
    """The header of every file, once they are known to belong together.

    Raises:
        SnapshotError: they do not, or the last part is missing.
        SafetensorsError: a malformed file.
    """
    headers = [_header(file) for file in snapshot.files]
    owner: dict[str, Path] = {}
    for file, header in zip(snapshot.files, headers, strict=True):
        token, expected = header.metadata.get(TOKEN_KEY), headers[0].metadata.get(TOKEN_KEY)
        if token != (expected if snapshot.token is None else snapshot.token):
            other = snapshot.files[0].path if snapshot.token is None else "its manifest"
            raise SnapshotError(
                f"{file.path} and {other} belong to two different snapshots: publish the snapshot again"
            )
        for name in header.tensors:
            if name in owner:
                raise SnapshotError(f"tensor '{name}' is in {owner[name]} and in {file.path}: two snapshots are mixed")
            owner[name] = file.path
    last = [header.metadata.get(LAST_KEY) for header in headers]
    if headers[0].metadata.get(TOKEN_KEY) and last[-1] != str(len(last)):
        said = f"its last part is number {len(last)} of {last[-1]}" if last[-1] else "its last part is missing"
        raise SnapshotError(f"the snapshot of {snapshot.files[0].path} is incomplete: {said}")
    return headers


def _header(file: SnapshotFile) -> Header:
    try:
        with file.open() as opened:
            header = read_header(opened)
    except FileNotFoundError:
        raise SnapshotError(f"{file.path} is missing; the snapshot it belongs to is not whole") from None
    except SafetensorsError as wrong:
        if file.path.exists() and not file.path.stat().st_size:
            raise SnapshotError(f"No parameter found in {file.path}: the file is empty") from None
        if file.path.exists() and paddle_pickle.is_pickle(file.path):
            raise SnapshotError(f"{file.path} is a pickle; only the file in the shared directory may be one") from None
        raise wrong
    if file.nbytes is not None and header.file_size != file.nbytes:
        raise SnapshotError(f"{file.path} has {header.file_size} bytes, its manifest says {file.nbytes}")
    if file.digests is not None and file.digests.keys() != header.tensors.keys():
        raise SnapshotError(f"{file.path} holds other tensors than its manifest says")
    return header


def _read(file: SnapshotFile, header: Header, framework: Framework | None, verify: bool) -> StateDict:
    with file.open() as opened:
        if read_header(opened) != header:
            raise SnapshotError(f"{file.path} was replaced while the snapshot was being loaded: load it again")
        state = read_tensors(opened, None, framework, header)
    for name, expected in (file.digests or {}).items() if verify else ():
        found = digest(state[name])
        if found != expected:
            raise SnapshotError(f"{file.path}: '{name}' is damaged: it hashes to {found}, the manifest says {expected}")
    return state


def _load_pickle(file: SnapshotFile, apply: Apply, framework: Framework | None, allowed: bool) -> list[str]:
    if not allowed:
        raise paddle_pickle.refusal(file.path)
    _apply(apply, paddle_pickle.load(file.path, framework), file)
    return [file.label]


def _apply(apply: Apply, state: StateDict, file: SnapshotFile) -> None:
    try:
        apply(state, file.label)
    except Exception as error:
        error.add_note(f"while applying {file.path} ({file.label}); the files before it have been applied")
        raise
