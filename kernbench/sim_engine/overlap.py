"""How much communication a fused kernel hides behind its computation."""

from __future__ import annotations

from dataclasses import dataclass

from kernbench.sim_engine.timeline import Timeline


@dataclass(frozen=True)
class Overlap:
    """Three ways to run the same work, in picoseconds: communication and computation one after the other, both in one
    kernel, and the computation alone."""

    unfused_ps: int
    fused_ps: int
    compute_ps: int

    @property
    def communication_ps(self) -> int:
        """What communication adds when nothing hides it."""
        return self.unfused_ps - self.compute_ps

    @property
    def exposed_ps(self) -> int:
        """What it adds to the fused kernel. Below 0 where that computes faster than the unfused one."""
        return self.fused_ps - self.compute_ps

    @property
    def hidden(self) -> float:
        """The part of the communication that does not show: 0 none, 1 all of it."""
        return 1 - self.exposed_ps / self.communication_ps if self.communication_ps else 0.0

    def __str__(self) -> str:
        us = 1e-6
        return (
            f"one after the other {self.unfused_ps * us:.2f} us, in one kernel {self.fused_ps * us:.2f} us "
            f"({self.unfused_ps / self.fused_ps:.2f}x faster)\n"
            f"computation alone {self.compute_ps * us:.2f} us, communication {self.communication_ps * us:.2f} us, of "
            f"which {self.exposed_ps * us:.2f} us exposed: {self.hidden:.1%} hidden"
        )


def span_ps(timeline: Timeline, name: str) -> int:
    """From when the first stream was ready for a phase to the end of the last command in it, phases inside it included.

    Raises:
        KeyError: nothing ran in it.
    """
    found = [
        command
        for command in timeline.commands
        if command.bound.stream >= 0 and f"{timeline.ranges[command.bound.range_id]}/".startswith(f"{name}/")
    ]
    if not found:
        raise KeyError(f"nothing ran in a phase '{name}': there are {', '.join(filter(None, timeline.ranges))}")
    return max(c.finish_ps for c in found) - min(c.ready_ps for c in found)


def overlap(timeline: Timeline, unfused: str, fused: str, compute: str) -> Overlap:
    """Compare three phases of a run, by their names."""
    return Overlap(*(span_ps(timeline, name) for name in (unfused, fused, compute)))
