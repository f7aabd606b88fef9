"""Faults to test weight transfers with: messages that are lost, doubled, exchanged, damaged or late, ends that die.

A :class:`Fault` says what strikes at which step; it is seeded, so that a run can be repeated. It reaches

- what a trainer gives or an engine hands over, with :func:`faulty_weights` and :func:`faulty_load`: any engine;
- the bytes of a TCP connection, with :class:`FaultyProxy`: the ``http`` engine, or any other client and server;
- messages and shared memory of the ``ipc`` engine, with :class:`FaultyConnection`;
- what a rank of the simulator sends, with :func:`faulty_rank`: the ``broadcast`` and ``p2p`` engines;
- files, with :func:`damage_file` and :func:`damage_files`; disks that stop or lose what was not synced, with
  :class:`StoppingDisk` and :class:`LosingDisk`: snapshots and checkpoint syncs.
"""

from kernbench.weight_sync.faults.disks import LosingDisk, StoppingDisk, damage_file, damage_files
from kernbench.weight_sync.faults.ends import FaultyConnection, faulty_rank
from kernbench.weight_sync.faults.injector import (
    BYTES,
    KINDS,
    TENSORS,
    Damage,
    Fault,
    Injector,
    Killed,
    Kind,
    faulty_load,
    faulty_weights,
)
from kernbench.weight_sync.faults.proxy import FaultyProxy

__all__ = [
    "BYTES",
    "KINDS",
    "TENSORS",
    "Damage",
    "Fault",
    "FaultyConnection",
    "FaultyProxy",
    "Injector",
    "Killed",
    "Kind",
    "LosingDisk",
    "StoppingDisk",
    "damage_file",
    "damage_files",
    "faulty_load",
    "faulty_rank",
    "faulty_weights",
]
