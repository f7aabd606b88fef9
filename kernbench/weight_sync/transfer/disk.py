"""The ``disk`` engine: the trainer publishes a snapshot in a folder, or what has changed since; workers load it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from kernbench.weight_sync.arrays import Framework, describe, to_bytes
from kernbench.weight_sync.delta import write_delta
from kernbench.weight_sync.delta_read import DeltaFile
from kernbench.weight_sync.files import write_atomically
from kernbench.weight_sync.snapshot import load_snapshot, map_snapshot, snapshot_version, write_snapshot
from kernbench.weight_sync.snapshot_files import Names
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    trainer_arguments,
)

PART_BYTES = 1 << 30


@dataclass
class DiskInitInfo(WeightTransferInitInfo):
    """Attributes:
    rank: whose snapshots this worker loads; 0 for whole weights, of which it takes its part.
    framework: of the tensors that are handed over; torch if the process has imported it, else numpy.
    """

    rank: int = 0
    framework: Framework | None = None


@dataclass
class DiskUpdateInfo(WeightTransferUpdateInfo):
    """Attributes:
    path: an absolute path of a folder that trainer and workers share.
    id: names the snapshot in it.
    version: the one it has to have; None takes any.
    base_version: of the snapshot, where a delta leads from it to ``version``; None: there is no delta.

    Raises:
        ValueError: the path is not absolute.
    """

    path: str
    id: str = "weights"
    version: int | None = None
    base_version: int | None = None
    _: KW_ONLY
    prefetch: bool = False
    """Read a part while the one before is handed over: faster, and two parts in memory."""

    def __post_init__(self) -> None:
        if not Path(self.path).is_absolute():
            raise ValueError(f"path is {self.path!r}: give an absolute one, as workers run in other folders")
        if self.base_version is not None and self.version is None:
            raise ValueError("base_version is given and version is not: say which version the delta leads to")


@dataclass
class DiskTrainerArgs:
    """Attributes:
    part_bytes: largest size of a file's tensors, and so of what a worker has in memory.
    delta: write only what has changed since the snapshot that is there; needs versions. The first update is a snapshot,
        and one after a delta that took more than ``delta_limit`` of the snapshot is one again.
    encoding: of deltas, one of :data:`kernbench.weight_sync.encodings.CHOICES`.
    others: as in :class:`DiskUpdateInfo` and :class:`DiskInitInfo`.
    """

    path: str
    id: str = "weights"
    version: int | None = None
    rank: int = 0
    part_bytes: int | None = PART_BYTES
    delta: bool = False
    delta_limit: float = 0.3
    encoding: str = "auto"

    def __post_init__(self) -> None:
        if self.delta and type(self.version) is not int:
            raise ValueError(f"version is {self.version!r}: deltas lead from one integer version to a later one")


class DiskWeightTransferEngine(WeightTransferEngine[DiskInitInfo, DiskUpdateInfo]):
    """Every tensor is compared with its hash in the snapshot's manifest, and one that a delta changes with its own.

    A delta is always one from the snapshot, never from another delta, so that a worker that comes late or has missed
    versions loads the snapshot and one delta.

    A snapshot appears all at once, so a worker finds an old or a new one. To write the next while workers still load
    the last, give each its own ``id``; only the trainer knows when all have loaded it, and removes it.
    """

    init_info_cls = DiskInitInfo
    update_info_cls = DiskUpdateInfo

    def receive_weights(self, update_info: DiskUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over one part a call.

        Raises:
            RuntimeError: "not initialized".
            FileNotFoundError: "No snapshot found"; or, with a version, one that has no manifest.
            ValueError: the snapshot is of another version, or damaged.
        """
        path, rank = Path(update_info.path), self.info.rank
        wanted = update_info.version if update_info.base_version is None else update_info.base_version
        if wanted is not None:
            found = snapshot_version(path, rank, update_info.id)
            if found != wanted:
                raise ValueError(f"{path} holds version {found}, expected {wanted}: has it been written?")
        with ExitStack() as stack:
            delta: DeltaFile | None = None
            if update_info.base_version is not None and update_info.version is not None:
                delta = stack.enter_context(DeltaFile(_delta_path(path, rank, update_info.id, update_info.version)))
                versions = update_info.base_version, update_info.version
                if (delta.base_version, delta.new_version) != versions:
                    raise ValueError(
                        f"{delta.place} leads from version {delta.base_version} to {delta.new_version}, expected "
                        f"{versions[0]} to {versions[1]}"
                    )
            missing = set(delta.names) if delta is not None else set()

            def apply(state: dict[str, Any], label: str) -> None:
                if delta is not None:
                    for name, weight in state.items():
                        delta.apply_to(name, *describe(weight), to_bytes(weight).data)
                        missing.discard(name)
                load_weights(list(state.items()))

            framework, prefetch = self.info.framework, update_info.prefetch
            load_snapshot(path, rank, update_info.id, apply, framework=framework, prefetch=prefetch)
            if missing:
                raise ValueError(f"the snapshot in {path} lacks {min(missing)}, which the delta to it changes")

    @staticmethod
    def trainer_send_weights(
        iterator: Iterator[tuple[str, Any]], trainer_args: dict[str, Any] | DiskTrainerArgs
    ) -> dict[str, Any]:
        """Write the weights, a part in memory at a time, and publish them; gives the workers' update information.

        Raises: as :func:`kernbench.weight_sync.snapshot.write_snapshot`.
        """
        args = trainer_arguments(DiskTrainerArgs, trainer_args)
        path = Path(args.path).absolute()
        path.mkdir(parents=True, exist_ok=True)
        base = _base_of_delta(path, args) if args.delta else None
        if base is not None:
            assert args.version is not None
            with write_atomically(_delta_path(path, args.rank, args.id, args.version)) as file:
                stored = map_snapshot(path, args.rank, args.id)
                write_delta(file, stored, iterator, base, args.version, encoding=args.encoding)
            return {"path": str(path), "id": args.id, "version": args.version, "base_version": base}
        write_snapshot(path, args.rank, args.id, iterator, part_bytes=args.part_bytes, version=args.version)
        for old in _deltas(path, args.rank, args.id).values():
            old.unlink()
        return {"path": str(path), "id": args.id, "version": args.version}


def _base_of_delta(folder: Path, args: DiskTrainerArgs) -> int | None:
    """The snapshot's version if the next update should be a delta from it.

    Raises:
        ValueError: the version does not rise.
    """
    try:
        base = snapshot_version(folder, args.rank, args.id)
    except FileNotFoundError:
        return None
    if type(base) is not int:
        return None
    deltas = _deltas(folder, args.rank, args.id)
    newest = max(deltas, default=base)
    if args.version is None or args.version <= newest:
        raise ValueError(f"version {args.version!r} does not rise above {newest}, which {folder} holds")
    size = sum(tensor.data.size for tensor in map_snapshot(folder, args.rank, args.id).values())
    return base if not deltas or deltas[newest].stat().st_size <= args.delta_limit * size else None


def _delta_path(folder: Path, rank: int, id: str, version: int) -> Path:
    return folder / f"{Names(rank, id).stem}.{version}.kbdelta"


def _deltas(folder: Path, rank: int, id: str) -> dict[int, Path]:
    """Version -> file of the deltas that are there."""
    pattern = re.compile(rf"{re.escape(Names(rank, id).stem)}\.(\d+)\.kbdelta")
    return {int(found[1]): path for path in folder.iterdir() if (found := pattern.fullmatch(path.name))}
