"""What each rank of a tensor-parallel group holds of a model, and where its serving tensors keep it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from kernbench.weight_sync.layout_table import Experts, View
from kernbench.weight_sync.layouts import Layout
from kernbench.weight_sync.modelconfig import ModelConfig
from kernbench.weight_sync.pieces import Piece, Plan, Shape, of_published
from kernbench.weight_sync.reshard import EMBEDDING, HEAD

Index = tuple[slice, ...]
Box = tuple[tuple[int, int], ...]
"""(start, stop) along every axis."""


def volume(box: Box) -> int:
    """Elements in a box."""
    return prod(stop - start for start, stop in box)


class Sharding:
    """One model divided by ``tp`` ranks.

    Args:
        config: as :meth:`ModelConfig.read` takes it.
        shapes: published name -> shape, of the whole model. A tied output head is left out: it is the embedding.
        experts: how the checkpoint publishes experts; by default as the model's type usually does.

    Attributes:
        names: the published tensors, in the order of ``shapes``.

    Raises:
        ValueError: ``tp`` ranks cannot share the model out.
        NotImplementedError: a layout in which a rank's part of a published tensor is not one range (gated delta net),
            or whose axes serving exchanges (gpt-oss): go through whole tensors and :func:`reshard.shard`.
    """

    def __init__(self, config: Any, shapes: Mapping[str, Shape], tp: int, *, experts: Experts | None = None) -> None:
        self.tp = tp
        layout = Layout(ModelConfig.read(config), experts)
        groups: dict[str, dict[str, Shape]] = {}
        given = {}
        for name, shape in shapes.items():
            given[layout.published_name(name)] = name
            groups.setdefault(layout.serving_name(name), {})[layout.published_name(name)] = tuple(shape)
        if layout.config.tied and any(n.endswith(EMBEDDING.removeprefix("model.")) for n in shapes):
            groups.pop(layout.serving_name(HEAD), None)
        self._where: list[dict[str, tuple[str, Piece]]] = []
        """Of each rank: published tensor -> the serving tensor it lies in, and where."""
        self._params: list[dict[str, Shape]] = []
        for rank in range(tp):
            plans = {name: of_published(layout, name, group, tp, rank) for name, group in groups.items()}
            self._where.append(dict(_where(plans, given)))
            self._params.append({name: _extent(plan) for name, plan in plans.items() if plan.pieces})
        self.shapes = {name: tuple(shapes[name]) for name in shapes if any(name in one for one in self._where)}
        self.names = list(self.shapes)

    def box(self, name: str, rank: int) -> Box:
        """Which range of a published tensor a rank holds; empty where it holds nothing of it."""
        shape = self.shapes[name]
        if name not in self._where[rank]:
            return tuple((0, 0) for _ in shape)
        piece = self._where[rank][name][1]
        whole = tuple((0, n) for n in shape)
        if not shape:
            return whole
        mine = (piece.hf_start, piece.hf_start + piece.length)
        return (*whole[: piece.axis], mine, *whole[piece.axis + 1 :])

    def params(self, rank: int) -> dict[str, Shape]:
        """Shapes of a rank's serving tensors, without rows that only pad them, nor tensors that are all padding."""
        return self._params[rank]

    def place_shard(self, rank: int, name: str, shard: Any) -> Iterator[tuple[str, Index, Any]]:
        """Where a rank's range of a published tensor goes, for :class:`~kernbench.weight_sync.transfer.ServedWeights`:
        (serving tensor, index there, the range)."""
        if name not in self._where[rank]:
            return
        param, piece = self._where[rank][name]
        index = tuple(slice(i, i + 1) if isinstance(i, int) else i for i in piece.index(len(self.shapes[name])))
        yield param, index if self.shapes[name] else (), shard if piece.expert is None else shard[None]

    def place(self, rank: int, name: str, whole: Any) -> Iterator[tuple[str, Index, Any]]:
        """As :meth:`place_shard`, of a whole published tensor."""
        return self.place_shard(rank, name, whole[self.index(name, rank)] if self.shapes[name] else whole)

    def index(self, name: str, rank: int) -> Index:
        """:meth:`box` as an index."""
        return tuple(slice(start, stop) for start, stop in self.box(name, rank))


def _where(plans: Mapping[str, Plan], given: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, Piece]]]:
    for param, plan in plans.items():
        names = [piece.hf for piece in plan.pieces]
        if plan.view is not View.PLAIN or len(set(names)) != len(names):
            raise NotImplementedError(
                f"{param}: a rank's part of a published tensor in it is not one range with the same axes; go through "
                "whole tensors and kernbench.weight_sync.reshard.shard"
            )
        for piece in plan.pieces:
            yield given[piece.hf], (param, piece)


def _extent(plan: Plan) -> Shape:
    """The part of a serving tensor that published ones fill."""
    if not plan.shape:
        return plan.shape
    axis = plan.pieces[0].axis + (plan.pieces[0].expert is not None)
    stop = max(piece.start + piece.length for piece in plan.pieces)
    return (*plan.shape[:axis], stop, *plan.shape[axis + 1 :])
