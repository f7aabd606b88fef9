"""What no engine can beat: bytes that have to move, over the links they have to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernbench.topology import SystemGraph
from kernbench.weight_sync.sharding import Box, volume
from kernbench.weight_sync.transfer.plan import Division


@dataclass(frozen=True)
class Bound:
    """A time that a sync takes at least."""

    seconds: float
    where: str
    """Which bytes over which links."""


def device_bound(divisions: Sequence[Division], graph: SystemGraph) -> Bound:
    """Over the links between SIPs: the largest of what each worker needs over the links into it, what each trainer
    alone holds over the links out of it, and all that workers need, once, over the narrowest cut between trainers and
    workers (as workers may pass on to each other what crossed it)."""
    import networkx

    fabric: Any = networkx.DiGraph()
    for link in graph.links:
        if link.kind == "sip" and link.bandwidth:
            fabric.add_edge(link.src, link.dst, capacity=link.bandwidth)
    found = []
    for rank, nbytes in _needed(divisions).items():
        into = sum(data["capacity"] for _, _, data in fabric.in_edges(graph.io_node(rank), data=True))
        found.append(Bound(nbytes / into, f"what worker {rank} needs, over its links"))
    for rank, nbytes in _held_alone(divisions).items():
        out = sum(data["capacity"] for _, _, data in fabric.out_edges(graph.io_node(rank), data=True))
        found.append(Bound(nbytes / out, f"what only trainer {rank} holds, over its links"))
    trainers, workers = _ranks(divisions)
    for rank in trainers:
        fabric.add_edge("trainers", graph.io_node(rank))
    for rank in workers:
        fabric.add_edge(graph.io_node(rank), "workers")
    if not trainers & workers:
        cut = networkx.maximum_flow_value(fabric, "trainers", "workers")
        found.append(Bound(_once(divisions) / cut, "one copy of the model, over the cut between trainers and workers"))
    return max(found, key=lambda bound: bound.seconds)


def host_bound(divisions: Sequence[Division], graph: SystemGraph) -> Bound:
    """Over the host's links: what each worker needs down its own, what each trainer alone holds up its own."""
    rate = graph.spec.system.host.link.bandwidth
    found = [Bound(n / rate, f"what worker {r} needs, over its host link") for r, n in _needed(divisions).items()]
    found += [
        Bound(n / rate, f"what only trainer {r} holds, over its host link") for r, n in _held_alone(divisions).items()
    ]
    return max(found, key=lambda bound: bound.seconds)


def _needed(divisions: Sequence[Division]) -> dict[int, int]:
    """Bytes each worker holds afterwards; trainers that are workers too need less, which makes the bound lower."""
    made: dict[int, int] = {}
    for one in divisions:
        for rank, box in one.dst.items():
            keeps = rank in one.src and one.src[rank] == box
            made[rank] = made.get(rank, 0) + (0 if keeps else volume(box) * one.itemsize)
    return made


def _held_alone(divisions: Sequence[Division]) -> dict[int, int]:
    """Bytes of which a trainer has the only copy."""
    made: dict[int, int] = {}
    for one in divisions:
        boxes = list(one.src.values())
        for rank, box in one.src.items():
            if boxes.count(box) == 1:
                made[rank] = made.get(rank, 0) + volume(box) * one.itemsize
    return made


def _once(divisions: Sequence[Division]) -> int:
    """Bytes that workers need, each counted once."""
    return sum(_union(set(one.dst.values())) * one.itemsize for one in divisions)


def _union(boxes: set[Box]) -> int:
    """Elements in at least one of the boxes; a lower bound of that where they differ along several axes."""
    several = list(boxes)
    axes = [axis for axis in range(len(several[0])) if len({box[axis] for box in several}) > 1]
    if len(axes) != 1:
        return max(map(volume, several))
    total, end = 0, 0
    for start, stop in sorted(box[axes[0]] for box in several):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    first = several[0]
    return volume((*first[: axes[0]], (0, total), *first[axes[0] + 1 :]))


def _ranks(divisions: Sequence[Division]) -> tuple[set[int], set[int]]:
    sides: list[set[int]] = [set(), set()]
    for one in divisions:
        holders: tuple[Mapping[int, Box], Mapping[int, Box]] = (one.src, one.dst)
        for side, held in zip(sides, holders, strict=True):
            side.update(held)
    return sides[0], sides[1]
