"""A record bound to a machine: the flat arrays that both replays consume, and nothing else.

*Ops* stand in in-order *queues*. An op either occupies its queue's engine for a fixed time, or it is a transfer that
follows a *pattern* (which messages, with which bytes on which channels) along a *path* (whose channels, which routes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

FIXED = -1
"""``BoundLog.pattern`` of an op that is no transfer."""


class Activity(IntEnum):
    """What an op is, for reports. Ops of kernels have the number of their ``oplog.OpKind``."""

    READ = 0
    WRITE = 1
    GEMM = 2
    VECTOR = 3
    ATOMIC = 4
    MARK = 5
    """Takes no time: the begin or end of a kernel, a program or a collective, an event."""
    HOST = 6
    COPY = 7
    SEND = 8
    REDUCE = 9
    RECEIVE = 10
    """A program waits for others."""


class Column:
    """An array that grows at its end."""

    def __init__(self, dtype: Any, first: Sequence[int] = ()) -> None:
        self._data = np.array(first, dtype)
        self._size = len(first)

    def __len__(self) -> int:
        return self._size

    @property
    def view(self) -> NDArray[Any]:
        """What has been appended so far; a later append never changes it."""
        return self._data[: self._size]

    def extend(self, values: NDArray[Any], at: int | None = None) -> None:
        """Append. ``at`` is where: what stands from there on, a half-written entry, is overwritten."""
        size = self._size if at is None else at
        need = size + len(values)
        if need > len(self._data):
            grown = np.empty(max(need, 2 * len(self._data), 64), self._data.dtype)
            grown[:size] = self._data[:size]
            self._data = grown
        self._data[size:need] = values
        self._size = need


class Patterns:
    """Channel sets, and the patterns of messages that use them. Channels are numbered within a SIP, cube by cube.

    A message first occupies its source set (where it has one), then the links of its route, then its destination set.
    The route is chosen by ``slot`` from the path of the op. An entry counts once its last column is written, so that an
    interrupted one does no harm.
    """

    def __init__(self) -> None:
        self.set_ptr = Column(np.int64, [0])
        """int64[S+1]: the channels of set s are ``set_ptr[s]:set_ptr[s+1]`` of the next two."""
        self.set_channel = Column(np.int32)
        self.set_ps = Column(np.int64)
        """How long the channel is busy."""
        self.set_stack = Column(np.int32)
        """int32[S]: the cube whose channels these are."""
        self.message_ptr = Column(np.int64, [0])
        """int64[P+1]: the messages of pattern p."""
        self.slot = Column(np.int32)
        self.bytes = Column(np.int64)
        self.source = Column(np.int32)
        """A set, or -1."""
        self.destination = Column(np.int32)

    @property
    def count(self) -> int:
        return len(self.message_ptr) - 1

    def add_sets(self, stack: Int32s, sizes: Int64s, channel: Int32s, ps: Int64s) -> Int32s:
        """Append channel sets, given their sizes and their entries one after another; returns their numbers."""
        first = len(self.set_stack)
        entry = int(self.set_ptr.view[first])
        self.set_channel.extend(channel, entry)
        self.set_ps.extend(ps, entry)
        self.set_ptr.extend(entry + np.cumsum(sizes), first + 1)
        self.set_stack.extend(stack)
        return np.arange(first, first + len(stack), dtype=np.int32)

    def add(self, sizes: Int64s, slot: Int32s, nbytes: Int64s, source: Int32s, destination: Int32s) -> Int32s:
        """Append patterns, given how many messages each has and the messages; returns their numbers."""
        first = self.count
        message = int(self.message_ptr.view[first])
        self.slot.extend(slot, message)
        self.bytes.extend(nbytes, message)
        self.source.extend(source, message)
        self.destination.extend(destination, message)
        self.message_ptr.extend(message + np.cumsum(sizes))
        return np.arange(first, first + len(sizes), dtype=np.int32)


class Paths:
    """Routes, and the paths of ops: for each slot a route, and where the channels of either end begin. As in
    :class:`Patterns`, the last column that is written makes an entry count."""

    def __init__(self) -> None:
        self.hop_ptr = Column(np.int64, [0, 0])
        """int64[R+1]: the contended hops of route r. Route 0 is the empty one."""
        self.hop_link = Column(np.int32)
        self.hop_latency = Column(np.int64)
        """From the start on this link to the arrival at the next, links collapsed into this one included."""
        self.link_ptr = Column(np.int64, [0, 0])
        """int64[R+1]: all links of route r, the collapsed ones too, which only reports ask for."""
        self.link = Column(np.int32)
        self.request = Column(np.int64, [0])
        """int64[R]: from the issue of the op to the arrival at the source channels (or at the first link)."""
        self.slot_route = Column(np.int32)
        self.first_slot = Column(np.int32)
        """int32[P]: slot s of path p takes route ``slot_route[first_slot[p] + s]``."""
        self.source_channel = Column(np.int32)
        """int32[P]: number of the first channel of the SIP where messages come from; likewise where they go."""
        self.destination_channel = Column(np.int32)
        self.access = Column(np.int64)
        """int64[P]: latency of the memory, paid at each channel set."""

    @property
    def count(self) -> int:
        return len(self.access)

    def add_route(self, contended: Sequence[int], latencies: Sequence[int], links: Sequence[int], request: int) -> int:
        """Append one route of ``links``; ``latencies[i]`` follows ``contended[i]``."""
        number = len(self.request)
        hop, link = int(self.hop_ptr.view[number]), int(self.link_ptr.view[number])
        self.hop_link.extend(np.array(contended, np.int32), hop)
        self.hop_latency.extend(np.array(latencies, np.int64), hop)
        self.hop_ptr.extend(np.array([hop + len(contended)], np.int64), number + 1)
        self.link.extend(np.array(links, np.int32), link)
        self.link_ptr.extend(np.array([link + len(links)], np.int64), number + 1)
        self.request.extend(np.array([request], np.int64))
        return number

    def add(self, routes: Sequence[int], source_channel: int, destination_channel: int, access_ps: int) -> int:
        """Append one path with a route for each slot; returns its number."""
        number = self.count
        self.slot_route.extend(np.array(routes, np.int32))
        self.first_slot.extend(np.array([len(self.slot_route) - len(routes)], np.int32), number)
        self.source_channel.extend(np.array([source_channel], np.int32), number)
        self.destination_channel.extend(np.array([destination_channel], np.int32), number)
        self.access.extend(np.array([access_ps], np.int64))
        return number


@dataclass(slots=True)
class BoundCommand:
    """One command of a rank: its ops stand together, ``first`` up to ``first + count``."""

    rank: int
    index: int
    """Position in the rank's list of commands."""
    kind: str
    """``launch``, ``copy``, ``collective``, ``host``, ``event``, ``wait``, ``sync``."""
    name: str
    stream: int
    """-1 for what only the host does."""
    range_id: int
    first: int
    count: int
    lines: Sequence[tuple[str, int]] = ()
    """(file, line) that ``BoundLog.line`` counts into."""
    event: int = -1
    programs: int = 0
    ops: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(into ``lines``, Activity) -> what is done there, for people."""


@dataclass(slots=True)
class BoundLog:
    """N ops in Q queues. Times are integer picoseconds."""

    queue: Int32s
    """int32[N]. Ops of a queue run in the order of their numbers."""
    pattern: Int32s
    """int32[N], or FIXED."""
    path: Int32s
    """int32[N]; 0 where there is no pattern."""
    duration: Int64s
    """int64[N]: of a fixed op; of a transfer, the least it takes."""
    release: Int64s
    """int64[N]: not before this time."""
    dep_ptr: Int64s
    """int64[N+1]: op i waits for the ops ``deps[dep_ptr[i]:dep_ptr[i+1]]``."""
    deps: Int32s

    queue_key: Int64s
    """int64[Q], ascending: what a queue is called from one bound log to the next."""
    queue_depth: Int32s
    """int32[Q]: op n issues after op n - depth has finished; 0 for no limit."""
    queue_issue: Int64s
    """int64[Q]: least time between two issues; 0 for queues with an engine."""
    queue_engine: Int32s
    """int32[Q]: the engine that fixed ops occupy, or -1."""

    kind: NDArray[np.uint8]
    """uint8[N], an Activity."""
    line: Int32s
    """int32[N], into the command's ``lines``; -1 for none."""
    bytes: Int64s
    """int64[N]: bytes of memory or link that the op asks for."""
    flops: Int64s
    commands: list[BoundCommand]

    patterns: Patterns
    paths: Paths

    @property
    def count(self) -> int:
        return len(self.queue)
