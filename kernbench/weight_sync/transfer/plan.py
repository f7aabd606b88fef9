"""Which ranges of which tensors go from which rank to which, when their division among ranks changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kernbench.weight_sync.sharding import Box, Index, Sharding, volume

Holders = Mapping[int, Box]
"""What of a tensor each rank holds; ranks without any are not there."""


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

    def nbytes_of(self, rank: int) -> int:
        """What a rank holds of it afterwards."""
        return volume(self.dst[rank]) * self.itemsize if rank in self.dst else 0


def tensor_parallel(
    shape: Sequence[int], axis: int | None, groups: Sequence[Sequence[int]], units: int | None = None
) -> dict[int, Box]:
    """Equal parts along ``axis`` over the ranks of each group, which repeat each other; None: all of it on every rank.

    Args:
        units: how many things lie along the axis that no rank may cut, such as KV heads. Where a group has more ranks
            than that, as many neighbours hold the same one.

    Raises:
        ValueError: the axis is not there, or its size is no multiple of the parts; units and ranks do not divide each
            other; or a rank is there twice.
    """
    made: dict[int, Box] = {}
    for group in groups:
        parts = len(group) if units is None else min(len(group), units)
        if len(group) % max(parts, 1) or (units or 0) % max(parts, 1):
            raise ValueError(
                f"{units} units over the {len(group)} ranks of a group: one number has to divide the other"
            )
        for number, rank in enumerate(group):
            if rank in made:
                raise ValueError(f"rank {rank} is in the groups {list(map(list, groups))} twice")
            made[rank] = _part(shape, axis, number * parts // len(group), parts)
    return made


def sharded(
    config: Any, shapes: Mapping[str, tuple[int, ...]], groups: Sequence[Sequence[int]]
) -> dict[str, dict[int, Box]]:
    """What each rank of tensor-parallel groups, which repeat each other, holds of a model's published tensors.

    Raises: as :class:`~kernbench.weight_sync.sharding.Sharding`; ValueError: a rank is there twice, or a tied output
        head is among the tensors.
    """
    made: dict[str, dict[int, Box]] = {name: {} for name in shapes}
    known: dict[int, Sharding] = {}
    for group in groups:
        one = known.setdefault(len(group), Sharding(config, shapes, len(group)))
        if one.names != list(shapes):
            extra = next(name for name in shapes if name not in one.shapes)
            raise ValueError(f"'{extra}' is the embedding, to which the configuration ties it: leave it out")
        for number, rank in enumerate(group):
            if any(rank in boxes for boxes in made.values()):
                raise ValueError(f"rank {rank} is in the groups {list(map(list, groups))} twice")
            for name in shapes:
                made[name][rank] = one.box(name, number)
    return made


def reshard_plan(divisions: Sequence[Division]) -> list[Move]:
    """Moves that bring every rank what it holds afterwards, each byte once, and none that it holds before.

    Moves within a rank (``src == dst``) are in it. Where several ranks hold a range, the one that has sent least sends.

    Raises:
        ValueError: a range that no rank holds.
    """
    sent: dict[int, int] = defaultdict(int)
    return [move for division in divisions for move in _moves(division, sent)]


def in_rounds(moves: Iterable[Move]) -> list[Move]:
    """Moves of one tensor in an order in which whoever goes along it sends one and receives one at a time: round by
    round, no rank twice as sender and no rank twice as receiver in any. Without it, all senders begin with the same
    receiver, and their links stand still while they queue there.

    Rounds are a greedy edge colouring: at most ``senders + receivers - 1`` of the busiest ranks.
    """
    sending: dict[int, set[int]] = defaultdict(set)
    receiving: dict[int, set[int]] = defaultdict(set)
    numbered = []
    for move in moves:
        taken = sending[move.src] | receiving[move.dst] if move.src != move.dst else set()
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        if move.src != move.dst:
            sending[move.src].add(number)
            receiving[move.dst].add(number)
        numbered.append((number, move))
    return [move for _, move in sorted(numbered, key=lambda one: one[0])]


def in_chunks(moves: Iterable[Move], limit: int) -> list[Move]:
    """Moves cut along their first axis into chunks of about ``limit`` bytes: all first chunks, all second ones, and so
    on. Links serve messages whole and in the order they come, so that a long one keeps all others waiting."""
    cut = [list(_chunks(move, limit)) for move in moves]
    return [chunks[i] for i in range(max(map(len, cut), default=0)) for chunks in cut if i < len(chunks)]


def _chunks(move: Move, limit: int) -> Iterator[Move]:
    rows = move.dst_slice[0].stop - move.dst_slice[0].start if move.dst_slice else 1
    count = min(rows, -(-move.nbytes // limit))
    if count < 2 or move.src == move.dst:
        yield move
        return
    bounds = [i * rows // count for i in range(count + 1)]
    for start, stop in pairwise(bounds):
        src, dst = (
            (slice(index[0].start + start, index[0].start + stop), *index[1:])
            for index in (move.src_slice, move.dst_slice)
        )
        yield Move(move.src, move.dst, move.name, src, dst, move.nbytes // rows * (stop - start))


def lower_bound(divisions: Sequence[Division]) -> int:
    """Bytes that have to cross links: what each rank holds afterwards and does not hold before."""
    total = 0
    for one in divisions:
        for rank, box in one.dst.items():
            here = _intersection(box, one.src[rank]) if rank in one.src else None
            total += (volume(box) - (volume(here) if here is not None else 0)) * one.itemsize
    return total


def moved_bytes(plan: Sequence[Move]) -> int:
    """Bytes that cross links."""
    return sum(move.nbytes for move in plan if move.src != move.dst)


def _moves(division: Division, sent: dict[int, int]) -> Iterator[Move]:
    for dst, whole in sorted(division.dst.items()):
        left = [whole] if volume(whole) else []
        while left:
            box = left.pop()
            found = [
                (rank, part) for rank, held in division.src.items() if (part := _intersection(box, held)) is not None
            ]
            if not found:
                raise ValueError(f"no rank holds '{division.name}' {list(box)}, which rank {dst} needs")
            src, part = min(found, key=lambda one: (one[0] != dst, -volume(one[1]), sent[one[0]], one[0]))
            nbytes = volume(part) * division.itemsize
            sent[src] += nbytes if src != dst else 0
            yield Move(src, dst, division.name, _within(part, division.src[src]), _within(part, whole), nbytes)
            left += _without(box, part)


def _part(shape: Sequence[int], axis: int | None, number: int, count: int) -> Box:
    box = [(0, n) for n in shape]
    if axis is not None:
        if not 0 <= axis < len(shape) or shape[axis] % count:
            raise ValueError(f"axis {axis} of the shape {list(shape)} cannot be divided into {count} parts")
        size = shape[axis] // count
        box[axis] = (number * size, (number + 1) * size)
    return tuple(box)


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
