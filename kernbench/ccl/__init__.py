"""Collective algorithms as data: who sends which chunk to whom, who combines it, and what waits for what."""

from kernbench.ccl.algorithms import get, names
from kernbench.ccl.check import verify
from kernbench.ccl.execute import execute
from kernbench.ccl.schedule import Builder, Schedule, ScheduleError, Slots, chunk_bounds

__all__ = ["Builder", "Schedule", "ScheduleError", "Slots", "chunk_bounds", "execute", "get", "names", "verify"]
