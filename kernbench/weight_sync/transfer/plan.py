"""Which ranges of which tensors go from which rank to which, when their division among ranks changes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Box = tuple[tuple[int, int], ...]
"""(start, stop) along every axis."""
Holders = Mapping[int, Box]
"""What of a tensor each rank holds; ranks without any are not there."""
Index = tuple[slice, ...]


@dataclass(frozen=True)
class Move:
    """One range of one tensor. Indices are those of the ranks' own shards."""

    src: int
    dst: int
    name: str
    src_slice: Index
    dst_slice: Index
    nbytes: int

    @property
    def key(self) -> str:
        """Names it among all moves of a plan."""
        return f"{self.src}>{self.dst} {self.name}[{', '.join(f'{s.start}:{s.stop}' for s in self.dst_slice)}]"


@dataclass(frozen=True)
class Division:
    """How one tensor lies before and after."""

    name: str
    itemsize: int
    src: Holders
    dst: Holders


def tensor_parallel(shape: Sequence[int], axis: int | None, groups: Sequence[Sequence[int]]) -> dict[int, Box]:
    """Equal parts along ``axis`` over the ranks of each group, which repeat each other; None: all of it on every rank.

    Raises:
        ValueError: the axis is not there, or its size is no multiple of the ranks; or a rank is there twice.
    """
    made: dict[int, Box] = {}
    for group in groups:
        for number, rank in enumerate(group):
            if rank in made:
                raise ValueError(f"rank {rank} is in the groups {list(map(list, groups))} twice")
            made[rank] = _part(shape, axis, number, len(group))
    return made


def reshard_plan(divisions: Sequence[Division]) -> list[Move]:
    """Moves that bring every rank what it holds afterwards, each byte once, and none that it holds before.

    Moves within a rank (``src == dst``) are in it. Where several ranks hold a range, the one that has sent least sends.

    Raises:
        ValueError: a range that no rank holds.
    """
    sent: dict[int, int] = defaultdict(int)
    return [move for division in divisions for move in _moves(division, sent)]


def lower_bound(divisions: Sequence[Division]) -> int:
    """Bytes that have to cross links: what each rank holds afterwards and does not hold before."""
    total = 0
    for one in divisions:
        for rank, box in one.dst.items():
            here = _intersection(box, one.src[rank]) if rank in one.src else None
            total += (_volume(box) - (_volume(here) if here is not None else 0)) * one.itemsize
    return total


def moved_bytes(plan: Sequence[Move]) -> int:
    """Bytes that cross links."""
    return sum(move.nbytes for move in plan if move.src != move.dst)


def _moves(division: Division, sent: dict[int, int]) -> Iterator[Move]:
    for dst, whole in sorted(division.dst.items()):
        left = [whole] if _volume(whole) else []
        while left:
            box = left.pop()
            found = [
                (rank, part) for rank, held in division.src.items() if (part := _intersection(box, held)) is not None
            ]
            if not found:
                raise ValueError(f"no rank holds '{division.name}' {list(box)}, which rank {dst} needs")
            src, part = min(found, key=lambda one: (one[0] != dst, -_volume(one[1]), sent[one[0]], one[0]))
            nbytes = _volume(part) * division.itemsize
            sent[src] += nbytes if src != dst else 0
            yield Move(src, dst, division.name, _within(part, division.src[src]), _within(part, whole), nbytes)
            left += _without(box, part)


def _part(shape: Sequence[int], axis: int | None, number: int, count: int) -> Box:
    box = [(0, n) for n in shape]
    if axis is not None:
        if not 0 <= axis < len(shape) or shape[axis] % count:
            raise ValueError(f"axis {axis} of the shape {list(shape)} cannot be divided among {count} ranks")
        size = shape[axis] // count
        box[axis] = (number * size, (number + 1) * size)
    return tuple(box)


def _volume(box: Box) -> int:
    return math.prod(stop - start for start, stop in box)


def _intersection(one: Box, other: Box) -> Box | None:
    made = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return made if all(start < stop for start, stop in made) else None


def _without(box: Box, part: Box) -> Iterator[Box]:
    """Boxes that together are ``box`` less ``part``, which lies in it."""
    for axis, ((start, stop), (first, last)) in enumerate(zip(box, part, strict=True)):
        for low, high in ((start, first), (last, stop)):
            if low < high:
                yield (*part[:axis], (low, high), *box[axis + 1 :])


def _within(part: Box, whole: Box) -> Index:
    return tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(part, whole, strict=True))
