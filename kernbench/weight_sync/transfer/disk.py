"""The ``disk`` engine: the trainer publishes a snapshot in a folder, workers load it part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from kernbench.weight_sync.arrays import Framework
from kernbench.weight_sync.snapshot import load_snapshot, snapshot_version, write_snapshot
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    not_initialized,
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

    Raises:
        ValueError: the path is not absolute.
    """

    path: str
    id: str = "weights"
    version: int | None = None
    _: KW_ONLY
    prefetch: bool = False
    """Read a part while the one before is handed over: faster, and two parts in memory."""

    def __post_init__(self) -> None:
        if not Path(self.path).is_absolute():
            raise ValueError(f"path is {self.path!r}: give an absolute one, as workers run in other folders")


@dataclass
class DiskTrainerArgs:
    """Attributes:
    part_bytes: largest size of a file's tensors, and so of what a worker has in memory.
    others: as in :class:`DiskUpdateInfo` and :class:`DiskInitInfo`.
    """

    path: str
    id: str = "weights"
    version: int | None = None
    rank: int = 0
    part_bytes: int | None = PART_BYTES


class DiskWeightTransferEngine(WeightTransferEngine[DiskInitInfo, DiskUpdateInfo]):
    """Every tensor is compared with its hash in the snapshot's manifest.

    A snapshot appears all at once, so a worker finds an old or a new one. To write the next while workers still load
    the last, give each its own ``id``; only the trainer knows when all have loaded it, and removes it.
    """

    init_info_cls = DiskInitInfo
    update_info_cls = DiskUpdateInfo
    _info: DiskInitInfo | None = None

    def init_transfer_engine(self, init_info: DiskInitInfo) -> None:
        self._info = init_info

    def receive_weights(self, update_info: DiskUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over one part a call.

        Raises:
            RuntimeError: "not initialized".
            FileNotFoundError: "No snapshot found"; or, with a version, one that has no manifest.
            ValueError: the snapshot is of another version, or damaged.
        """
        if self._info is None:
            raise not_initialized(self)
        path, rank = Path(update_info.path), self._info.rank
        if update_info.version is not None:
            found = snapshot_version(path, rank, update_info.id)
            if found != update_info.version:
                raise ValueError(f"{path} holds version {found}, expected {update_info.version}: has it been written?")
        load_snapshot(
            path,
            rank,
            update_info.id,
            lambda state, label: load_weights(list(state.items())),
            framework=self._info.framework,
            prefetch=update_info.prefetch,
        )

    def shutdown(self) -> None:
        self._info = None

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
        write_snapshot(path, args.rank, args.id, iterator, part_bytes=args.part_bytes, version=args.version)
        return {"path": str(path), "id": args.id, "version": args.version}
