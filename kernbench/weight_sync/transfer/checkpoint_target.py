"""A checkpoint's files as the place where an ``http`` server puts weights: updated all at once, crash-safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from kernbench.weight_sync.arrays import describe, digest, to_bytes
from kernbench.weight_sync.checkpoint_sync import resolve_name
from kernbench.weight_sync.checkpoint_update import CheckpointUpdate
from kernbench.weight_sync.delta import check_same
from kernbench.weight_sync.delta_apply import apply_delta, files_of_names, version_of
from kernbench.weight_sync.store import Store
from kernbench.weight_sync.transfer.base import Weights


class CheckpointTarget:
    """Takes the place of :class:`~kernbench.weight_sync.transfer.session.ServedWeights` for a folder.

    What arrives is compared with the files at once, and only what differs is kept, in the journal; :meth:`finish`
    commits it. An update keeps other processes from changing the folder.

    Args:
        publish: see :func:`kernbench.weight_sync.blocksync.sync_files`.
        on_finish: called with the new version.
    """

    def __init__(
        self, model_dir: str | Path, *, publish: bool = False, on_finish: Callable[[int], Any] | None = None
    ) -> None:
        self.folder, self.publish, self.on_finish = Path(model_dir), publish, on_finish
        self._files = files_of_names(self.folder)
        self._loading = threading.Lock()
        self._stack: ExitStack | None = None
        self._update: CheckpointUpdate
        self._base_version: int | None = None
        self._updating: int | None = None
        self._digests: dict[str, str] = {}
        self._came: dict[str, str] = {}
        """Published name -> the name under which the tensor has come."""

    @property
    def version(self) -> int:
        return version_of(self.folder)

    @property
    def updating(self) -> int | None:
        return self._updating

    def start(self, version: int | None = None, base_version: int | None = None) -> int:
        """Begin an update; gives its version.

        Raises:
            RuntimeError: an update is already active, here or by another process.
            ValueError: the version does not rise, or the base is not the checkpoint's.
        """
        with self._loading:
            if self._stack is not None:
                raise RuntimeError(f"a weight update is already active, to version {self._updating}")
            with ExitStack() as stack:
                store = Store(self.folder)
                stack.enter_context(store.locked())
                store.recover()
                now = store.manifest().version
                version = now + 1 if version is None else version
                if type(version) is not int or version <= now:
                    raise ValueError(f"version {version!r} does not rise above {now}, which {self.folder} has")
                if base_version not in (None, now):
                    raise ValueError(f"the update changes version {base_version}, but {self.folder} has {now}")
                self._update = CheckpointUpdate(store, publish=self.publish)
                stack.callback(self._update.close)
                for file in dict.fromkeys(self._files.values()):
                    self._update.header(file)
                    self._update.check(file)
                self._stack = stack.pop_all()
            self._updating, self._base_version, self._digests, self._came = version, base_version, {}, {}
            return version

    def load(
        self,
        weights: Weights,
        *,
        is_checkpoint_format: bool = True,
        version: int | None = None,
        digests: Mapping[str, str] | None = None,
        owned: bool = False,
    ) -> None:
        """Compare tensors with the files and keep what differs. After an error the update is gone.

        Args: as of :class:`~kernbench.weight_sync.transfer.session.ServedWeights`.

        Raises:
            RuntimeError: no update is active, or another.
            KeyError: no such tensor in the checkpoint.
            TypeError, ValueError: "Type mismatch for", "Shape mismatch for"; names that are not published ones.
        """
        with self._loading:
            self._check_active(version)
            try:
                if not is_checkpoint_format:
                    raise ValueError(
                        "a checkpoint takes tensors under their published names: is_checkpoint_format=True"
                    )
                for name, weight in weights:
                    self._put(name, weight, (digests or {}).get(name) or digest(weight))
            except BaseException:
                self._end()
                raise

    def finish(self, digests: Mapping[str, str] | None = None) -> int:
        """Commit the update and carry it out; gives its version.

        Raises:
            RuntimeError: no update is active.
            ValueError: tensors are missing or damaged; nothing has changed then.
        """
        with self._loading:
            self._check_active(None)
            assert self._updating is not None
            try:
                for name, expected in (digests or {}).items():
                    if self._digests.get(name) != expected:
                        what = "has not arrived" if name not in self._digests else "has arrived with other values"
                        raise ValueError(f"'{name}' {what}, though the trainer says that it has sent it")
                missing = sorted(self._files.keys() - self._came.keys())
                if self._base_version is None and missing:
                    raise ValueError(
                        f"the update to version {self._updating} lacks {len(missing)} of {len(self._files)} tensors, "
                        f"the first is '{missing[0]}'; for a part of them, start with base_version"
                    )
                version = self._update.finish(self._updating).version
            finally:
                self._end()
        if self.on_finish is not None:
            self.on_finish(version)
        return version

    def abort(self) -> None:
        """Drop what has been loaded; harmless if no update is active."""
        with self._loading:
            self._end()

    def apply_delta(self, stream: BinaryIO) -> int:
        """Apply a delta that arrives as a stream; gives the new version.

        Raises:
            RuntimeError: an update is active. Others as :func:`kernbench.weight_sync.delta_apply.apply_delta`.
        """
        with self._loading:
            if self._stack is not None:
                raise RuntimeError(f"a weight update is active, to version {self._updating}: finish or abort it first")
            version = apply_delta(self.folder, stream, publish=self.publish).version
        if self.on_finish is not None:
            self.on_finish(version)
        return version

    def _put(self, name: str, weight: Any, found: str) -> None:
        if name in self._digests:
            if found != self._digests[name]:
                raise ValueError(f"'{name}' comes twice in one update, with other values: two trainers send at once?")
            return
        published = self._resolved(name)
        other = self._came.setdefault(published, name)
        if other != name:
            raise ValueError(f"'{published}' is given twice in one update: as '{other}' and as '{name}'")
        file = self._files[published]
        where = self._update.header(file).tensors[published]
        check_same(name, describe(weight), (where.kind, where.shape))
        self._update.put(file, published, to_bytes(weight).data)
        self._digests[name] = found

    def _resolved(self, name: str) -> str:
        published = resolve_name(name, self._files)
        if published is None:
            raise KeyError(f"'{name}' is not in the checkpoint {self.folder}")
        return published

    def _check_active(self, version: int | None) -> None:
        if self._stack is None:
            raise RuntimeError("No weight update is active: start one first; an update that failed is gone")
        if version not in (None, self._updating):
            raise RuntimeError(f"tensors of version {version} came while {self._updating} is being loaded")

    def _end(self) -> None:
        stack, self._stack, self._updating = self._stack, None, None
        if stack is not None:
            stack.close()
