"""A collective as a table of steps over numbered slots.

Every rank has the same *slots*, places that hold one chunk each: its inputs, then its outputs, then scratch. A step
either sends one slot to a slot of a peer, or combines one or two slots of its own rank into a third. A collective that
works in place has no outputs: its inputs are what it changes.

Steps stand in rounds. Within a round every read happens before any write, and that is all an algorithm has to say:
which step waits for which follows from the slots they touch (:func:`dependencies`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int32s = NDArray[np.int32]

STEP = np.dtype(
    [
        ("round", np.int32),
        ("rank", np.int32),  # who does it
        ("peer", np.int32),  # who receives; -1: a combine
        ("a", np.int32),  # slot read
        ("b", np.int32),  # second slot read by a combine; -1: a plain copy
        ("out", np.int32),  # slot written: the peer's for a send, the rank's own for a combine
        ("chunk", np.int32),  # which chunk it carries, and so how long it is
    ]
)


class ScheduleError(ValueError):
    """A schedule does not do what its collective promises."""


@dataclass(frozen=True)
class Slots:
    """How many chunk-sized places every rank has. Their numbers run inputs, outputs, scratch."""

    inputs: int
    outputs: int = 0
    scratch: int = 0

    @property
    def total(self) -> int:
        return self.inputs + self.outputs + self.scratch


@dataclass(frozen=True, eq=False)
class Schedule:
    """One algorithm of one collective for a number of ranks."""

    collective: str
    """``all_reduce``, ``all_gather`` ..."""
    algorithm: str
    ranks: int
    chunks: int
    """How many chunks there are; ``chunk`` of a step counts below it."""
    slots: Slots
    steps: NDArray[np.void]
    """Of dtype :data:`STEP`, in round order."""
    dep_ptr: Int32s
    """int32[S + 1]: step s waits for the steps ``dep_ids[dep_ptr[s]:dep_ptr[s + 1]]``."""
    dep_ids: Int32s
    root: int = 0

    @cached_property
    def rounds(self) -> list[slice]:
        """The steps of each round, in order."""
        starts = np.flatnonzero(np.diff(self.steps["round"], prepend=-1))
        ends = np.append(starts[1:], len(self.steps))[: len(starts)]
        return [slice(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]

    def deps(self, step: int) -> list[int]:
        """The steps that ``step`` waits for, ascending."""
        return self.dep_ids[self.dep_ptr[step] : self.dep_ptr[step + 1]].tolist()

    def __str__(self) -> str:
        size = f"{self.ranks} ranks, {self.chunks} chunks, {len(self.steps)} steps"
        lines = [f"{self.collective} by {self.algorithm}: {size}"]
        for number, step in enumerate(self.steps):
            rank, peer, a, b, out = (int(step[name]) for name in ("rank", "peer", "a", "b", "out"))
            if peer >= 0:
                what = f"rank {rank} sends {self.slot_name(a)} to rank {peer}'s {self.slot_name(out)}"
            elif b >= 0:
                what = f"rank {rank} combines {self.slot_name(a)} and {self.slot_name(b)} into {self.slot_name(out)}"
            else:
                what = f"rank {rank} copies {self.slot_name(a)} to {self.slot_name(out)}"
            after = f" after {', '.join(map(str, self.deps(number)))}" if self.deps(number) else ""
            lines.append(f"{number:4d}. {what}{after}")
        return "\n".join(lines)

    def slot_name(self, slot: int) -> str:
        """``in0``, ``out3``, ``scratch1``."""
        for name, count in (("in", self.slots.inputs), ("out", self.slots.outputs)):
            if slot < count:
                return f"{name}{slot}"
            slot -= count
        return f"scratch{slot}"


class Builder:
    """Collects steps, a round at a time, for all ranks at once."""

    def __init__(self, collective: str, algorithm: str, ranks: int, chunks: int, slots: Slots, root: int = 0) -> None:
        if ranks < 1 or not 0 <= root < ranks:
            raise ScheduleError(f"{collective}: {ranks} ranks with root {root}: expected a root among one rank or more")
        self._made = (collective, algorithm, ranks, chunks, slots)
        self._root = root
        self._rounds: list[NDArray[np.void]] = []

    def send(self, rank: ArrayLike, peer: ArrayLike, src: ArrayLike, dst: ArrayLike, chunk: ArrayLike) -> None:
        """A round of sends from slot ``src`` of each ``rank`` to slot ``dst`` of its ``peer``."""
        self._add(rank, peer, src, -1, dst, chunk)

    def combine(self, rank: ArrayLike, a: ArrayLike, b: ArrayLike, out: ArrayLike, chunk: ArrayLike) -> None:
        """A round of ``out = op(a, b)``."""
        self._add(rank, -1, a, b, out, chunk)

    def copy(self, rank: ArrayLike, src: ArrayLike, dst: ArrayLike, chunk: ArrayLike) -> None:
        """A round of copies within each rank."""
        self._add(rank, -1, src, -1, dst, chunk)

    def _add(self, *columns: ArrayLike) -> None:
        rank, peer, a, b, out, chunk = np.broadcast_arrays(*map(np.atleast_1d, columns))
        steps = np.empty(rank.size, STEP)
        steps["round"] = len(self._rounds)
        for name, column in (("rank", rank), ("peer", peer), ("a", a), ("b", b), ("out", out), ("chunk", chunk)):
            steps[name] = column.ravel()
        if steps.size:
            self._rounds.append(steps)

    def build(self) -> Schedule:
        """The schedule, with its dependencies worked out."""
        collective, algorithm, ranks, chunks, slots = self._made
        steps = np.concatenate([np.empty(0, STEP), *self._rounds])
        ptr, ids = dependencies(steps, slots.total)
        return Schedule(collective, algorithm, ranks, chunks, slots, steps, ptr, ids, self._root)


def dependencies(steps: NDArray[np.void], slots: int) -> tuple[Int32s, Int32s]:
    """What each step waits for, as (pointers, ids): the write that made what it reads, and the reads (or, without any,
    the write) of what it overwrites.

    Every touch of a slot is an event; events are sorted by slot and time, and each is linked to its neighbours there.
    """
    if not len(steps):
        return np.zeros(1, np.int32), np.zeros(0, np.int32)
    number = np.arange(len(steps), dtype=np.int64)
    owner = np.where(steps["peer"] >= 0, steps["peer"], steps["rank"]).astype(np.int64)
    two = steps["b"] >= 0
    place = np.concatenate(
        [
            steps["rank"] * np.int64(slots) + steps["a"],
            (steps["rank"] * np.int64(slots) + steps["b"])[two],
            owner * slots + steps["out"],
        ]
    )
    who = np.concatenate([number, number[two], number])
    writes = np.arange(len(who)) >= len(number) + two.sum()
    when = 2 * steps["round"][who].astype(np.int64) + writes
    order = np.lexsort((who, when, place))
    place, who, writes = place[order], who[order], writes[order]

    segment = np.cumsum(np.diff(place, prepend=place[:1]) != 0)
    at = np.arange(len(who))
    past = np.maximum.accumulate(np.where(writes, at, -1))
    past = np.concatenate([[-1], past[:-1]])  # the last write before this event, of any slot
    coming = np.minimum.accumulate(np.where(writes, at, len(at))[::-1])[::-1]
    coming = np.concatenate([coming[1:], [len(at)]])  # the next write after it
    same_past = (past >= 0) & (segment[past] == segment)
    same_coming = (coming < len(at)) & (segment[np.minimum(coming, len(at) - 1)] == segment)

    made = ~writes & same_past
    guarded = ~writes & same_coming
    overwritten = writes & same_past & (past == at - 1)
    later = np.concatenate([who[made], who[coming[guarded]], who[overwritten]])
    earlier = np.concatenate([who[past[made]], who[guarded], who[past[overwritten]]])
    pairs = np.unique(np.stack([later, earlier], 1)[later != earlier], axis=0)
    ptr = np.searchsorted(pairs[:, 0], np.arange(len(steps) + 1)).astype(np.int32)
    return ptr, pairs[:, 1].astype(np.int32)


def chunk_bounds(count: int, chunks: int) -> NDArray[np.int64]:
    """int64[chunks + 1]: where each chunk of ``count`` elements begins and ends. Sizes differ by one at most, the
    longer ones first; some are empty when there are fewer elements than chunks."""
    size, longer = divmod(count, chunks)
    chunk = np.arange(chunks + 1)
    return chunk * size + np.minimum(chunk, longer)
