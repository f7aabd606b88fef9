"""The library's disks that stop and disks that lose, under the names that tests use."""

import os
import signal

from kernbench.weight_sync.faults import Killed as Stop
from kernbench.weight_sync.faults import LosingDisk, StoppingDisk

__all__ = ["LosingDisk", "Stop", "StoppingDisk", "killing_disk"]


def killing_disk(at, when):
    """Stops by ``kill -9`` of this process."""
    return StoppingDisk(at, when, lambda: os.kill(os.getpid(), signal.SIGKILL))
