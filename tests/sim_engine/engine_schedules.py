"""Bound logs made by hand or at random, and a machine that is nothing but its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kernbench.sim_engine.bound import FIXED, BoundLog, Paths, Patterns
from kernbench.sim_engine.queues import QueueName, Role


@dataclass
class BareMachine:
    """Links by ps per byte; channels of one ps per byte in stacks of four; engines."""

    link_ps_per_byte: np.ndarray
    stacks: int = 2
    channels_per_cube: int = 4
    engines: int = 4

    @property
    def channels(self) -> int:
        return self.stacks * self.channels_per_cube


@dataclass
class Draft:
    """Collects queues, patterns, paths and ops one by one."""

    patterns: Patterns = field(default_factory=Patterns)
    paths: Paths = field(default_factory=Paths)
    queues: list[tuple[int, int, int]] = field(default_factory=list)
    ops: list[tuple[int, int, int, int, int, list[int]]] = field(default_factory=list)

    def queue(self, depth: int = 1, issue: int = 0, engine: int = -1) -> int:
        self.queues.append((depth, issue, engine))
        return len(self.queues) - 1

    def channel_set(self, busy: dict[int, int], stack: int = 0) -> int:
        channels, times = np.array(list(busy), np.int32), np.array(list(busy.values()), np.int64)
        return int(self.patterns.add_sets(np.array([stack], np.int32), np.array([len(busy)]), channels, times)[0])

    def pattern(self, *messages: tuple[int, int, int, int]) -> int:
        """Of (slot, bytes, source set, destination set)."""
        slot, nbytes, source, destination = np.array(messages, np.int64).reshape(-1, 4).T
        made = self.patterns.add(
            np.array([len(messages)]),
            slot.astype(np.int32),
            nbytes,
            source.astype(np.int32),
            destination.astype(np.int32),
        )
        return int(made[0])

    def route(self, *hops: tuple[int, int], request: int = 0) -> int:
        """Of (link, latency)."""
        links = [link for link, _ in hops]
        return self.paths.add_route(links, [latency for _, latency in hops], links, request)

    def path(self, *routes: int, source: int = 0, destination: int = 0, access: int = 0) -> int:
        return self.paths.add(routes, source, destination, access)

    def fixed(self, queue: int, duration: int, *deps: int, release: int = 0) -> int:
        self.ops.append((queue, FIXED, 0, duration, release, list(deps)))
        return len(self.ops) - 1

    def transfer(self, queue: int, pattern: int, path: int, *deps: int, least: int = 0, release: int = 0) -> int:
        self.ops.append((queue, pattern, path, least, release, list(deps)))
        return len(self.ops) - 1

    def build(self, first: int = 0, last: int | None = None) -> BoundLog:
        """The ops ``first`` to ``last``; what they wait for outside must have been made a release time."""
        ops = self.ops[first:last]
        count = len(ops)
        column = [np.array([op[i] for op in ops], np.int64).reshape(count) for i in range(5)]
        deps = [[d - first for d in op[5] if d >= first] for op in ops]
        depth, issue, engine = np.array(self.queues, np.int64).reshape(-1, 3).T
        return BoundLog(
            queue=column[0].astype(np.int32),
            pattern=column[1].astype(np.int32),
            path=column[2].astype(np.int32),
            duration=column[3],
            release=column[4],
            dep_ptr=np.concatenate([[0], np.cumsum([len(d) for d in deps])]).astype(np.int64),
            deps=np.array([d for some in deps for d in some], np.int32),
            queue_key=np.array([QueueName(0, 0, Role.SEND, q).key for q in range(len(self.queues))], np.int64),
            queue_depth=depth.astype(np.int32),
            queue_issue=issue,
            queue_engine=engine.astype(np.int32),
            kind=np.zeros(count, np.uint8),
            line=np.full(count, -1, np.int32),
            bytes=np.zeros(count, np.int64),
            flops=np.zeros(count, np.int64),
            commands=[],
            patterns=self.patterns,
            paths=self.paths,
        )


def random_draft(rng: np.random.Generator, links: int = 6, acyclic: bool = True) -> Draft:
    """Queues of every kind, messages over shared links and channels, dependencies that make no cycle (or may)."""

    def amount(low: int, high: int) -> int:
        return int(rng.integers(low, high))

    draft = Draft()
    for _ in range(int(rng.integers(1, 7))):
        engine = int(rng.integers(-1, 4))
        depth = 1 if engine >= 0 else int(rng.integers(0, 4))
        draft.queue(depth, 0 if engine >= 0 else amount(0, 5), engine)
    sets = [-1, -1]
    for _ in range(int(rng.integers(1, 6))):
        chosen = rng.permutation(4)[: rng.integers(1, 5)]
        stack = int(rng.integers(0, 2))
        sets.append(draft.channel_set({int(stack * 4 + c): amount(1, 60) for c in chosen}, stack))
    routes = []
    for _ in range(int(rng.integers(2, 8))):
        some = rng.permutation(links)[: rng.integers(0, links)]
        routes.append(draft.route(*((int(link), amount(0, 9)) for link in some), request=amount(0, 12)))
    slots = 3
    paths = [
        draft.path(*(int(r) for r in rng.choice(routes, slots)), access=amount(0, 20))
        for _ in range(int(rng.integers(1, 5)))
    ]
    patterns = []
    for _ in range(int(rng.integers(1, 6))):
        some = range(int(rng.integers(0, 4)))
        ends = [(int(rng.choice(sets)), int(rng.choice(sets))) for _ in some]
        patterns.append(draft.pattern(*((int(rng.integers(slots)), amount(1, 200), *ends[i]) for i in some)))
    count = int(rng.integers(1, 60))
    for op in range(count):
        queue = int(rng.integers(len(draft.queues)))
        below = op if acyclic else count
        deps = [int(d) for d in rng.integers(0, below, int(rng.integers(0, 3)))] if below else []
        release = amount(0, 300) if rng.random() < 0.2 else 0
        if draft.queues[queue][2] >= 0 or rng.random() < 0.2:
            draft.fixed(queue, amount(0, 50), *deps, release=release)
        else:
            pattern, path = int(rng.choice(patterns)), int(rng.choice(paths))
            draft.transfer(queue, pattern, path, *deps, least=amount(0, 40), release=release)
    return draft
