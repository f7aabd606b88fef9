"""Disks that stop working, and disks that lose what was not synced."""

import os
import random
import signal
from pathlib import Path

from kernbench.weight_sync.disk import Disk

STEPS = ("create", "open", "write", "sync", "rename", "remove", "sync_folder", "copy", "close")
SECTOR = 512


class Stop(BaseException):
    """The machine stops here; no handler may go on."""


class StoppingDisk(Disk):
    """Does ``at`` steps and stops at the next: before it, in the middle of it (a write's first half), or after it.

    Args:
        halt: what stopping is; by default an exception after which every further step fails too.
    """

    def __init__(self, at=None, when="before", halt=None):
        self.at, self.when, self.halt = at, when, halt
        self.done = 0
        self.stopped = False

    def _stop(self):
        self.stopped = True
        if self.halt:
            self.halt()
        raise Stop

    def _step(self, name, *args):
        if self.stopped:
            raise Stop
        mine = self.done == self.at
        self.done += 1
        if mine and self.when == "before":
            self._stop()
        if mine and self.when == "middle" and name == "write":
            number, data, offset = args
            self._do("write", number, memoryview(data)[: len(data) // 2], offset)
            self._stop()
        result = self._do(name, *args)
        if mine:
            self._stop()
        return result

    def _do(self, name, *args):
        return getattr(Disk, name)(self, *args)


def _through(name):
    return lambda self, *args: self._step(name, *args)


for _name in STEPS:
    setattr(StoppingDisk, _name, _through(_name))


def killing_disk(at, when):
    """Stops by ``kill -9`` of this process."""
    return StoppingDisk(at, when, lambda: os.kill(os.getpid(), signal.SIGKILL))


class LosingDisk(StoppingDisk):
    """After a stop, :meth:`power_loss` takes back what had not been synced: any sectors of writes, and the last of the
    changes to folders' entries, whose order is kept."""

    def __init__(self, shadow: Path, at=None, when="before"):
        super().__init__(at, when)
        self.shadow = shadow
        self.shadow.mkdir(parents=True)
        self.writes = []  # (inode, descriptor, offset, old bytes, old size)
        self.entries = []  # (folder, undo)
        self.saved = 0

    def _do(self, name, *args):
        return getattr(self, f"_do_{name}", lambda *a: getattr(Disk, name)(self, *a))(*args)

    def _do_create(self, path):
        number = Disk.create(self, path)
        self.entries.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return number

    def _do_write(self, number, data, offset):
        about = os.fstat(number)
        old = os.pread(number, len(data), offset)
        self.writes.append((about.st_ino, os.dup(number), offset, old, len(data), about.st_size))
        Disk.write(self, number, data, offset)

    def _do_sync(self, number):
        Disk.sync(self, number)
        inode = os.fstat(number).st_ino
        self.writes = [w for w in self.writes if w[0] != inode]

    def _keep(self, path):
        self.saved += 1
        kept = self.shadow / str(self.saved)
        os.link(path, kept)
        return kept

    def _do_rename(self, source, target):
        kept = self._keep(target) if target.exists() else None

        def undo():
            os.replace(target, source)
            if kept:
                os.replace(kept, target)

        Disk.rename(self, source, target)
        self.entries.append((target.parent, undo))

    def _do_remove(self, path):
        kept = self._keep(path)
        Disk.remove(self, path)
        self.entries.append((path.parent, lambda: os.replace(kept, path)))

    def _do_sync_folder(self, folder):
        Disk.sync_folder(self, folder)
        self.entries = [e for e in self.entries if e[0] != folder]

    def _do_copy(self, source, target):
        Disk.copy(self, source, target)
        number = os.open(target, os.O_RDWR)
        size = os.fstat(number).st_size
        self.entries.append((target.parent, lambda: target.unlink(missing_ok=True)))
        self.writes.append((os.fstat(number).st_ino, number, 0, bytes(size), size, size))

    def power_loss(self, seed):
        rng = random.Random(seed)
        for _, number, offset, old, length, size in reversed(self.writes):
            for start in range(0, length, SECTOR):
                if rng.random() < 0.5:
                    os.pwrite(
                        number, old[start : start + SECTOR].ljust(min(SECTOR, length - start), b"\0"), offset + start
                    )
            if rng.random() < 0.3:
                os.ftruncate(number, max(size, 0))
            os.close(number)
        for _, undo in reversed(self.entries[rng.randint(0, len(self.entries)) :]):
            undo()
