"""Which range of a published tensor lies where in a rank's serving tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kernbench.weight_sync.layout_table import Part, Rule, Split, View
from kernbench.weight_sync.layouts import Layout

Shape = tuple[int, ...]
VOCAB_PADDING = 64
"""Serving pads embeddings to a multiple of so many rows."""
_BLOCK_BYTES = 16


@dataclass(frozen=True)
class Piece:
    """A range along ``axis`` that a rank's tensor and a published one share; whole along the other axes."""

    hf: str
    axis: int
    hf_start: int
    start: int
    length: int
    expert: int | None
    """Which entry of the serving tensor's first axis it lies in, where that counts experts."""
    first: bool
    """No rank before this one has the same range."""

    def hf_index(self, ndim: int) -> tuple[slice, ...]:
        """Where it lies in the published tensor of ``ndim`` axes."""
        return _along(self.axis, self.hf_start, self.length, ndim)

    def index(self, ndim: int) -> tuple[slice | int, ...]:
        """Where it lies in the rank's tensor, after the rule's view; ``ndim`` of the published tensor."""
        inner = _along(self.axis, self.start, self.length, ndim)
        return inner if self.expert is None else (self.expert, *inner)


@dataclass(frozen=True)
class Plan:
    """One rank's serving tensor."""

    shape: Shape
    """After the rule's view."""
    view: View
    pieces: tuple[Piece, ...]
    hf_shapes: dict[str, Shape]


@dataclass(frozen=True)
class _Share:
    """``length`` elements of a part from ``start`` on, in a room of ``room`` elements."""

    start: int
    room: int
    length: int
    first: bool


def of_shard(layout: Layout, name: str, shape: Shape, tp: int = 1, rank: int = 0) -> Plan:
    """How a rank's tensor of that shape is made of published ones.

    Raises:
        ValueError: shape, configuration and number of ranks do not fit together.
    """
    rule = layout.rule(name, shape)
    viewed = _viewed(rule.view, shape, name)
    if rule.shared:
        shared = tuple(Piece(part.hf, 0, 0, 0, 1, None, rank == 0) for part in rule.parts)
        return Plan(viewed, rule.view, shared, {part.hf: viewed for part in rule.parts})
    inner = viewed[1:] if rule.per_expert else viewed
    tp, rank, first_expert = _experts_of(layout, rule, viewed[0] if viewed else 0, tp, rank)
    if not inner and rule.parts[0].split is Split.WHOLE:
        piece = Piece(rule.parts[0].hf, 0, 0, 0, 1, None, rank == 0)
        return Plan(viewed, rule.view, (piece,), {piece.hf: ()})
    if rule.axis >= len(inner):
        raise ValueError(f"Shape mismatch for {name}: {list(shape)} has too few axes for its layout")
    room = inner[rule.axis]
    sizes = _sizes(layout, rule, name, room, tp)
    return _plan(layout, rule, name, inner, sizes, tp, rank, viewed[:1] if rule.per_expert else (), first_expert, room)


def of_published(layout: Layout, name: str, hf_shapes: Mapping[str, Shape], tp: int = 1, rank: int = 0) -> Plan:
    """How a rank's tensor ``name`` is made of published ones of these shapes.

    Raises:
        ValueError: one that the layout needs is missing, or shapes, configuration and number of ranks do not fit.
    """
    rule = layout.rule(name, scalars=all(shape in ((), (1,)) for shape in hf_shapes.values()))
    experts = _count_experts(rule, name, hf_shapes) if rule.per_expert else 0
    first_expert, ranks = 0, tp
    if rule.per_expert and layout.expert_parallel:
        if experts % tp:
            raise ValueError(f"{name}: {experts} experts cannot be shared out equally over {tp} ranks")
        first_expert, experts = rank * (experts // tp), experts // tp
        ranks, rank = 1, 0
    known = {p.hf: _shape_of(p.hf.format(first_expert), hf_shapes, name) for p in rule.parts}
    inner = known[rule.parts[0].hf]
    for hf, shape in known.items():
        if shape[: rule.axis] + shape[rule.axis + 1 :] != inner[: rule.axis] + inner[rule.axis + 1 :]:
            raise ValueError(f"Shape mismatch for {hf}: {list(shape)} cannot be stacked with {list(inner)} in {name}")
    if not inner:
        return Plan((), rule.view, (Piece(rule.parts[0].hf, 0, 0, 0, 1, None, rank == 0),), known)
    sizes = [_size_in(p, rule, known[p.hf], name) for p in rule.parts]
    lead = (experts,) if rule.per_expert else ()
    plan = _plan(layout, rule, name, inner, sizes, ranks, rank, lead, first_expert, None)
    for hf, shape in plan.hf_shapes.items():
        if _shape_of(hf, hf_shapes, name) != shape:
            raise ValueError(f"Shape mismatch for {hf}: {list(hf_shapes[hf])}, but {name} needs {list(shape)}")
    return plan


def check_blocks(layout: Layout, name: str, plan: Plan, tp: int) -> None:
    """Refuse shards of a weight ``name`` that cut through blocks that share a scale.

    Raises:
        ValueError: they do.
    """
    if tp == 1:
        return
    rule = layout.rule(name)
    if (rule.per_expert and layout.expert_parallel) or rule.parts[0].split is Split.WHOLE:
        return
    block = layout.config.scale_block[rule.axis]
    cut = next((p for p in plan.pieces if p.length % block), None)
    if cut is not None:
        raise ValueError(
            f"{name}: {cut.length} elements of {cut.hf} a rank cut through a block of {block} that shares one scale; "
            f"use fewer than {tp} ranks"
        )


def padded_rows(rows: int, tp: int) -> int:
    """Rows of an embedding in serving, over all ranks."""
    step = math.lcm(VOCAB_PADDING, tp)
    return -(-rows // step) * step


def serving_shape(plan: Plan) -> Shape:
    """The shape of the tensor itself, without the rule's view."""
    if plan.view is View.SWAPPED:
        return (*plan.shape[:-2], plan.shape[-1], plan.shape[-2])
    if plan.view is View.SCALARS:
        return plan.shape[:-1]
    return (*plan.shape[:-2], plan.shape[-2] * plan.shape[-1]) if plan.view is View.BLOCKS else plan.shape


def _plan(
    layout: Layout,
    rule: Rule,
    name: str,
    inner: Shape,
    sizes: list[int],
    tp: int,
    rank: int,
    lead: Shape,
    first_expert: int,
    room: int | None,
) -> Plan:
    """``inner`` gives the lengths along the other axes; ``lead`` is the axis that counts experts, if any."""
    ranges, at = [], 0
    totals: dict[str, int] = {}
    for part, size in zip(rule.parts, sizes, strict=True):
        share = _share(layout, part, size, tp, rank, name, room)
        ranges.append((part.hf, totals.get(part.hf, 0) + share.start, at, share.length, share.first))
        totals[part.hf] = totals.get(part.hf, 0) + size
        at += share.room
    if room is not None and at != room:
        raise ValueError(
            f"Shape mismatch for {name}: {room} along axis {rule.axis} on rank {rank} of {tp}, but its parts take "
            + " + ".join(f"{size} ({part.hf})" for part, size in zip(rule.parts, sizes, strict=True))
            + (f" over {tp} ranks" if tp > 1 else "")
        )
    merged = list(_merge(ranges))
    pieces = tuple(
        Piece(hf.format(first_expert + e), rule.axis, hf_start, start, length, e if lead else None, first)
        for e in range(lead[0] if lead else 1)
        for hf, hf_start, start, length, first in merged
        if length or not totals[hf]
    )
    shapes = {
        hf.format(first_expert + e): (*inner[: rule.axis], total, *inner[rule.axis + 1 :])
        for e in range(lead[0] if lead else 1)
        for hf, total in totals.items()
    }
    return Plan((*lead, *inner[: rule.axis], at, *inner[rule.axis + 1 :]), rule.view, pieces, shapes)


def _merge(ranges: list[tuple[str, int, int, int, bool]]) -> Iterator[tuple[str, int, int, int, bool]]:
    """Join ranges that follow each other on both sides, so that what can be one view is one."""
    last: tuple[str, int, int, int, bool] | None = None
    for one in ranges:
        if last and (last[0], last[1] + last[3], last[2] + last[3], last[4]) == (one[0], one[1], one[2], one[4]):
            last = (*last[:3], last[3] + one[3], last[4])
            continue
        if last:
            yield last
        last = one
    if last:
        yield last


def _share(layout: Layout, part: Part, size: int, tp: int, rank: int, name: str, room: int | None) -> _Share:
    if part.split is Split.VOCAB:
        room = padded_rows(size, tp) // tp if room is None else room
        if room * tp < size:
            raise ValueError(
                f"Shape mismatch for {name}: {room} rows on each of {tp} ranks, for a vocabulary of {size}"
            )
        return _Share(min(rank * room, size), room, max(min(size - rank * room, room), 0), True)
    if part.split is Split.WHOLE or tp == 1:
        return _Share(0, size, size, rank == 0)
    if part.split is Split.FIRST:
        return _Share(0, size, size if rank == 0 else 0, True)
    ways = _ways(layout, part, tp, name)
    if size % ways:
        raise ValueError(f"{name}: {size} elements of {part.hf} cannot be shared out equally over {ways} ranks")
    same = tp // ways
    return _Share(rank // same * (size // ways), size // ways, size // ways, rank % same == 0)


def _ways(layout: Layout, part: Part, tp: int, name: str) -> int:
    """Into how many different shares ranks cut a part."""
    if part.split in (Split.WHOLE, Split.FIRST):
        return 1
    if part.split is not Split.KV or tp == 1:
        return tp
    heads = layout.config.kv_heads
    if max(heads, tp) % min(heads, tp):
        raise ValueError(f"{name}: {heads} KV heads and {tp} ranks: one number has to divide the other")
    return min(heads, tp)


def _sizes(layout: Layout, rule: Rule, name: str, room: int, tp: int) -> list[int]:
    """The parts' lengths over all ranks, from a shard's length."""
    left = room
    for part in rule.parts:
        if part.size is not None:
            left -= _share(layout, part, part.size, tp, 0, name, room).room
    open_parts = [p for p in rule.parts if p.size is None]
    if not open_parts:
        return [p.size or 0 for p in rule.parts]
    each, rest = divmod(left, len(open_parts))
    sizes = [each * _ways(layout, p, tp, name) if p.size is None else p.size for p in rule.parts]
    wrong = next((p for p, size in zip(rule.parts, sizes, strict=True) if p.size is None and size % p.unit), None)
    if rest or each < 0 or wrong:
        raise ValueError(
            f"Shape mismatch for {name}: {room} along axis {rule.axis} on one of {tp} ranks cannot be shared out over "
            + ", ".join(p.hf if p.size is None else f"{p.hf} ({p.size})" for p in rule.parts)
        )
    return sizes


def _size_in(part: Part, rule: Rule, shape: Shape, name: str) -> int:
    """A part's length over all ranks, from the published tensor it lies in."""
    total, parts = shape[rule.axis], [p for p in rule.parts if p.hf == part.hf]
    if len(parts) == 1 or part.size is None:
        if total % len(parts):
            raise ValueError(
                f"Shape mismatch for {part.hf}: {total} does not fall into {len(parts)} equal parts in {name}"
            )
        size = total // len(parts)
    else:
        size = part.size
    wanted = [p.size for p in parts]
    if None not in wanted and sum(w for w in wanted if w) != total:
        raise ValueError(
            f"Shape mismatch for {part.hf}: {total} along axis {rule.axis}, but the configuration makes it {wanted}"
        )
    return size


def _experts_of(layout: Layout, rule: Rule, here: int, tp: int, rank: int) -> tuple[int, int, int]:
    """(ranks that share an expert, which of them, number of the first expert here)."""
    if rule.per_expert and layout.expert_parallel:
        return 1, 0, rank * here
    return tp, rank, 0


def _count_experts(rule: Rule, name: str, hf_shapes: Mapping[str, Shape]) -> int:
    count = 0
    while rule.parts[0].hf.format(count) in hf_shapes:
        count += 1
    extra = len(hf_shapes) - count * len(rule.parts)
    if extra or not count:
        raise ValueError(
            f"{name}: its experts are not published from 0 to {count - 1} without gaps, all projections each"
        )
    return count


def _shape_of(hf: str, hf_shapes: Mapping[str, Shape], name: str) -> Shape:
    if hf not in hf_shapes:
        raise ValueError(f"{hf} is missing, which serving stacks into {name} with {', '.join(sorted(hf_shapes)[:4])}")
    return hf_shapes[hf]


def _viewed(view: View, shape: Shape, name: str) -> Shape:
    if view is View.PLAIN:
        return shape
    if view is View.SCALARS:
        return (*shape, 1)
    if len(shape) < 2 or (view is View.BLOCKS and shape[-1] % _BLOCK_BYTES):
        raise ValueError(f"Shape mismatch for {name}: {list(shape)}, where {view.value}")
    if view is View.SWAPPED:
        return (*shape[:-2], shape[-1], shape[-2])
    return (*shape[:-1], shape[-1] // _BLOCK_BYTES, _BLOCK_BYTES)


def _along(axis: int, start: int, length: int, ndim: int) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) if i == axis else slice(None) for i in range(ndim))
