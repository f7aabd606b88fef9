"""How far a record has been bound and replayed."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
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
    events: MutableMapping[tuple[int, int], int] = field(default_factory=dict)
    """(rank, event) -> op."""
    streams: dict[tuple[int, int], int] = field(default_factory=dict)
    """(rank, stream) -> its newest op."""
    launches: MutableMapping[tuple[int, int], tuple[int, Any]] = field(default_factory=dict)
    """(SIP, number) of a launch that communicates -> its first op, and what others can wait for in it: the binder's."""
    finish: list[NDArray[np.int64]] = field(default_factory=list)
    """Finish times of the ops replayed so far, by segment; whoever replays appends them."""
    firsts: list[int] = field(default_factory=list)
    """Number of the first op of each segment."""

    @classmethod
    def begin(cls, ranks: int) -> Progress:
        """Nothing is bound yet."""
        return cls([0] * ranks)

    def ahead(self) -> Progress:
        """A second one to bind further with, which leaves this one as it is until :meth:`take` is given it."""
        events, launches = ChainMap({}, self.events), ChainMap({}, self.launches)
        return replace(self, bound=list(self.bound), streams=dict(self.streams), events=events, launches=launches)

    def take(self, ahead: Progress, finish: NDArray[np.int64]) -> None:
        """Go on to where ``ahead`` is; ``finish``: when what it bound finished."""
        self.bound, self.ops, self.streams = ahead.bound, ahead.ops, ahead.streams
        for mine, new in ((self.events, ahead.events), (self.launches, ahead.launches)):
            assert isinstance(new, ChainMap)
            mine.update(new.maps[0])
        self.firsts.append(self.ops - len(finish))
        self.finish.append(finish)

    def finished_at(self, op: int) -> int:
        """Finish time of an op of an earlier segment."""
        segment = int(np.searchsorted(self.firsts, op, "right")) - 1
        return int(self.finish[segment][op - self.firsts[segment]])
