"""What a simulated sync came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kernbench.sim_engine.timeline import Timeline
from kernbench.sim_engine.usage import work_between
from kernbench.weight_sync.simulate.bounds import Bound

SYNC = "sync"
"""The phase that counts; those within it stand under it."""


@dataclass(frozen=True)
class Outcome:
    """One engine on one machine. Bytes, and picoseconds of simulated time.

    Attributes:
        engine: its name.
        worker_bytes: what each worker needs, the largest.
        time_ps: from when all are ready to when the last worker serves the new weights.
        transfer_ps: until the last byte is staged; commit_ps: that a worker is paused for to make them visible.
        bound: what no engine can beat on the path that this one takes.
        busiest: the resource that was busiest during the transfer, and which part of it.
        trainer_peak, worker_peak: device memory at most, and trainer_held, worker_held: before the sync.
        correct: whether every parameter of every worker had the trainers' bits; None without values.
        digest: of the timeline.
        seconds: of real time that the simulation took.
        host_bytes, host_seconds: what really went through the host's transport, and how long that took: its share of a
            sync, which the simulated time leaves out. 0 where there is none.
    """

    engine: str
    worker_bytes: int
    time_ps: int
    transfer_ps: int
    commit_ps: int
    bound: Bound
    busiest: tuple[str, float]
    trainer_peak: int
    trainer_held: int
    worker_peak: int
    worker_held: int
    correct: bool | None
    digest: str
    seconds: float
    host_bytes: int = 0
    host_seconds: float = 0.0

    @property
    def ratio(self) -> float:
        """The transfer's time over the bound's."""
        return self.transfer_ps * 1e-12 / self.bound.seconds

    @property
    def rate(self) -> float:
        """Bytes/s at which each worker got what it needs."""
        return self.worker_bytes / (self.time_ps * 1e-12)

    def as_dict(self) -> dict[str, Any]:
        """For JSON. All but ``seconds`` and ``host_seconds`` is the same on every run."""
        return asdict(self) | {"ratio": self.ratio, "rate": self.rate}


def spans(timeline: Timeline) -> dict[str, tuple[int, int]]:
    """(start, finish) of the sync and of each phase below it, without its leading name."""
    found: dict[str, tuple[int, int]] = {}
    for command in timeline.commands:
        first, _, rest = timeline.ranges[command.bound.range_id].partition("/")
        if first != SYNC:
            continue
        for name in dict.fromkeys(("", rest.partition("/")[0])):
            start, finish = found.get(name, (command.ready_ps, command.finish_ps))
            found[name] = (min(start, command.ready_ps), max(finish, command.finish_ps))
    return found


def busiest(timeline: Timeline, start_ps: int, stop_ps: int) -> tuple[str, float]:
    """The link, or SIP's HBM (its mean channel), that worked for the largest part of a time, and that part."""
    work = work_between(timeline, start_ps, stop_ps)
    window = max(stop_ps - start_ps, 1)
    channels = work.channel.mean(axis=1)
    link, sip = int(work.link.argmax()), int(channels.argmax())
    if work.link[link] >= channels[sip]:
        return timeline.machine.graph.links[link].name, float(work.link[link] / window)
    return f"sip{sip} HBM", float(channels[sip] / window)
