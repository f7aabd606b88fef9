"""How far a record has been bound and replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Progress:
    """How far a log has been bound, and what later commands can wait for. Op numbers count over the whole run."""

    bound: list[int]
    """Commands of each rank that are done with."""
    ops: int = 0
    """Ops bound so far."""
    events: dict[tuple[int, int], int] = field(default_factory=dict)
    """(rank, event) -> op."""
    streams: dict[tuple[int, int], int] = field(default_factory=dict)
    """(rank, stream) -> its newest op."""
    launches: dict[tuple[int, int], tuple[int, Any]] = field(default_factory=dict)
    """(SIP, number) of a launch that communicates -> its first op, and what others can wait for in it: the binder's."""
    finish: list[NDArray[np.int64]] = field(default_factory=list)
    """Finish times of the ops replayed so far, by segment; whoever replays appends them."""
    firsts: list[int] = field(default_factory=list)
    """Number of the first op of each segment."""

    @classmethod
    def begin(cls, ranks: int) -> Progress:
        """Nothing is bound yet."""
        return cls([0] * ranks)

    def replayed(self, finish: NDArray[np.int64]) -> None:
        """Tell the finish times of what was bound last."""
        self.firsts.append(self.ops - len(finish))
        self.finish.append(finish)

    def finished_at(self, op: int) -> int:
        """Finish time of an op of an earlier segment."""
        segment = int(np.searchsorted(self.firsts, op, "right")) - 1
        return int(self.finish[segment][op - self.firsts[segment]])
