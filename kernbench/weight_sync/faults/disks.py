"""Files that are damaged, disks that stop working, and disks that lose what was not synced."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from kernbench.weight_sync.disk import Disk
from kernbench.weight_sync.faults.injector import Fault, Injector, Killed, cut_end

STEPS = ("create", "open", "write", "sync", "rename", "remove", "sync_folder", "copy", "close")
"""What a disk does; each call is a step."""
SECTOR = 512
_DAMAGES = ("drop", "duplicate", "reorder", "corrupt", "truncate")


def damage_file(path: Path, fault: Fault, block: int = SECTOR) -> None:
    """A file as a faulty disk gives it back: a step is a block of its bytes; a truncated file ends in that block.

    Raises:
        ValueError: a fault that files do not meet by themselves: a delay or a kill.
    """
    _check(fault)
    data = path.read_bytes()
    blocks = [data[i : i + block] for i in range(0, len(data), block)]
    if fault.kind == "truncate":
        ending = blocks[fault.step : fault.step + 1]
        del blocks[fault.step :]
        blocks += [cut_end(one, np.random.default_rng(fault.seed)) for one in ending]
        path.write_bytes(b"".join(blocks))
    else:
        path.write_bytes(b"".join(Injector[bytes](fault).through(blocks)))


def damage_files(paths: Sequence[Path], fault: Fault) -> None:
    """Files of one folder after something went wrong with one of them: a step is a file.

    A dropped one is gone, a duplicate has taken the place of the next, two that were reordered have each other's names.

    Raises:
        ValueError: as :func:`damage_file`.
    """
    _check(fault)
    path = paths[fault.step % len(paths)]
    other = paths[(fault.step + 1) % len(paths)]
    data = path.read_bytes()
    if fault.kind == "drop":
        path.unlink()
    elif fault.kind == "duplicate":
        other.write_bytes(data)
    elif fault.kind == "reorder":
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    else:
        rng = np.random.default_rng(fault.seed)
        block = int(rng.integers(max(len(data) // SECTOR, 1)))
        damage_file(path, Fault(fault.kind, block, fault.seed))


def _check(fault: Fault) -> None:
    if fault.kind not in _DAMAGES:
        raise ValueError(f"a file meets no {fault.kind!r} by itself: use a StoppingDisk, or one of {_DAMAGES}")


class StoppingDisk(Disk):
    """Does ``at`` steps and stops at the next: before it, in the middle of it (a write's first half), or after it.

    Args:
        halt: what stopping is; by default :class:`~kernbench.weight_sync.faults.injector.Killed`, after which every
            further step raises it too.
    """

    def __init__(
        self,
        at: int | None = None,
        when: Literal["before", "middle", "after"] = "before",
        halt: Callable[[], Any] | None = None,
    ) -> None:
        self.at, self.when, self.halt = at, when, halt
        self.done = 0
        """Steps so far."""
        self.stopped = False

    def _stop(self) -> NoReturn:
        self.stopped = True
        if self.halt:
            self.halt()
        raise Killed("the machine has stopped")

    def _step(self, name: str, *args: Any) -> Any:
        if self.stopped:
            if name == "close":  # this process goes on, and needs its descriptors
                Disk.close(self, *args)
            raise Killed("the machine has stopped")
        mine = self.done == self.at
        self.done += 1
        if mine and self.when == "before":
            if name == "close":
                Disk.close(self, *args)
            self._stop()
        if mine and self.when == "middle" and name == "write":
            number, data, offset = args
            self._do("write", number, memoryview(data)[: len(data) // 2], offset)
            self._stop()
        result = None
        try:
            result = self._do(name, *args)
            return result
        finally:
            if mine:
                if name in ("create", "open") and result is not None:
                    Disk.close(self, result)  # which nobody hears of any more
                self._stop()

    def _do(self, name: str, *args: Any) -> Any:
        return getattr(Disk, name)(self, *args)


def _through(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._step(name, *args)


for _name in STEPS:
    setattr(StoppingDisk, _name, _through(_name))


class LosingDisk(StoppingDisk):
    """After a stop, :meth:`power_loss` takes back what had not been synced: any sectors of writes, and the last of the
    changes to folders' entries, whose order is kept.

    Args:
        shadow: a new folder on the same file system, for what may have to come back.
        lying: says that it syncs and does not: nothing outlives a power loss for certain.
    """

    def __init__(
        self,
        shadow: Path,
        at: int | None = None,
        when: Literal["before", "middle", "after"] = "before",
        *,
        lying: bool = False,
    ) -> None:
        super().__init__(at, when)
        self.shadow, self.lying = shadow, lying
        self.shadow.mkdir(parents=True)
        self.writes: list[tuple[int, int, int, bytes, int, int]] = []
        """(inode, descriptor, offset, old bytes, length, old size) of each that is not synced."""
        self.entries: list[tuple[Path, Callable[[], Any]]] = []
        """(folder, what undoes the change) of each that is not synced."""
        self.saved = 0

    def _do(self, name: str, *args: Any) -> Any:
        return getattr(self, f"_do_{name}", lambda *a: getattr(Disk, name)(self, *a))(*args)

    def _do_create(self, path: Path) -> int:
        number = Disk.create(self, path)
        self.entries.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return number

    def _do_write(self, number: int, data: Any, offset: int) -> None:
        about = os.fstat(number)
        old = os.pread(number, len(data), offset)
        self.writes.append((about.st_ino, os.dup(number), offset, old, len(data), about.st_size))
        Disk.write(self, number, data, offset)

    def _do_sync(self, number: int) -> None:
        if self.lying:
            return
        Disk.sync(self, number)
        inode = os.fstat(number).st_ino
        for one in self.writes:
            if one[0] == inode:
                os.close(one[1])
        self.writes = [one for one in self.writes if one[0] != inode]

    def _keep(self, path: Path) -> Path:
        self.saved += 1
        kept = self.shadow / str(self.saved)
        os.link(path, kept)
        return kept

    def _do_rename(self, source: Path, target: Path) -> None:
        kept = self._keep(target) if target.exists() else None

        def undo() -> None:
            os.replace(target, source)
            if kept:
                os.replace(kept, target)

        Disk.rename(self, source, target)
        self.entries.append((target.parent, undo))

    def _do_remove(self, path: Path) -> None:
        kept = self._keep(path)
        Disk.remove(self, path)
        self.entries.append((path.parent, lambda: os.replace(kept, path)))

    def _do_sync_folder(self, folder: Path) -> None:
        if self.lying:
            return
        Disk.sync_folder(self, folder)
        self.entries = [one for one in self.entries if one[0] != folder]

    def _do_copy(self, source: Path, target: Path) -> None:
        Disk.copy(self, source, target)
        number = os.open(target, os.O_RDWR)
        size = os.fstat(number).st_size
        self.entries.append((target.parent, lambda: target.unlink(missing_ok=True)))
        self.writes.append((os.fstat(number).st_ino, number, 0, bytes(size), size, size))

    def power_loss(self, seed: int) -> None:
        """Lose some of what was not synced, other things for every seed."""
        rng = random.Random(seed)
        for _, number, offset, old, length, size in reversed(self.writes):
            for start in range(0, length, SECTOR):
                if rng.random() < 0.5:
                    before = old[start : start + SECTOR].ljust(min(SECTOR, length - start), b"\0")
                    os.pwrite(number, before, offset + start)
            if rng.random() < 0.3:
                os.ftruncate(number, size)
            os.close(number)
        for _, undo in reversed(self.entries[rng.randint(0, len(self.entries)) :]):
            undo()
        self.writes, self.entries = [], []
