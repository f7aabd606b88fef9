"""Serving tensors to published ones and back, for any number of ranks: views where one tensor holds another whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernbench.weight_sync.arrays import copy_into, describe, framework_of, from_bytes, to_bytes
from kernbench.weight_sync.dtypes import WireType
from kernbench.weight_sync.layout_table import SCALE, TENSOR_SCALES, Experts, View
from kernbench.weight_sync.layouts import Layout
from kernbench.weight_sync.modelconfig import ModelConfig
from kernbench.weight_sync.pieces import Piece, Shape, check_blocks, of_published, of_shard, serving_shape

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass
class Gathered:
    """A published tensor that lies in pieces on ranks; no byte of it is copied before :meth:`tensor`."""

    name: str
    kind: WireType
    shape: Shape
    origin: str
    """The serving tensor it comes from."""
    pieces: list[tuple[int, Piece, Any]] = field(default_factory=list)
    """(rank, where, the piece as a view of that rank's tensor)."""

    @property
    def view(self) -> Any | None:
        """The tensor as a view of the one serving tensor that holds it; None if it lies in several pieces."""
        whole = [part for _, piece, part in self.pieces if piece.first and tuple(part.shape) == self.shape]
        return whole[0] if whole else None

    def tensor(self) -> Any:
        """The view, or a numpy array put together from the pieces.

        Raises:
            ValueError: ranks that should hold the same values do not, or a range is on no rank.
        """
        made = self.view
        if made is None:
            made = np.empty(self.shape, self.kind.storage)
            filled = 0
            for _, piece, part in self.pieces:
                if piece.first:
                    target = made[piece.hf_index(made.ndim)]
                    copy_into(target, part)
                    filled += target.size
            if filled != made.size:
                raise ValueError(f"{self.name}: {made.size - filled} of {made.size} elements are on no rank")
        self._check_replicas(made)
        return made

    def _check_replicas(self, made: Any) -> None:
        for rank, piece, part in self.pieces:
            if not piece.first:
                same = made[piece.hf_index(len(self.shape))] if self.shape else made
                if not np.array_equal(to_bytes(same).data, to_bytes(part).data):
                    raise ValueError(
                        f"{self.name}: rank {rank} holds other values of {self.origin} than an earlier rank, "
                        "where all should be the same: a stale rank, or ranks share a tensor whose layout is not known"
                    )


def vllm_to_hf_tensors(params: Mapping[str, Any], config: Any = None) -> dict[str, Any]:
    """Published names and tensors of a serving engine's parameters (one rank), as views of them.

    ``language_model.`` is stripped, fused tensors are split; what the layouts do not know passes as it is. An output
    head that is tied to the embedding is left out.

    Args:
        params: name -> torch tensor, numpy array or KernBench tensor (this one is read to the host).
        config: the model's configuration: a dictionary, an object with ``to_dict()``, or a path of ``config.json`` or
            its folder. Names of tensors that need no size from it work without.

    Raises:
        ValueError: a shape does not fit the configuration, which lacks a size, or two parameters give one name.
        TypeError: a parameter is no tensor.
    """
    return {name: one.tensor() for name, one in gather([params], config).items()}


def gather(
    ranks: Sequence[Mapping[str, Any]],
    config: Any = None,
    *,
    experts: Experts | None = None,
    expert_parallel: bool = False,
) -> dict[str, Gathered]:
    """Published tensors of the ranks of a tensor-parallel group, in the order of their serving tensors.

    Args:
        ranks: the parameters of each rank; more ranks than KV heads are fine.
        experts: how the checkpoint publishes experts, where that is not as its model's type usually does.
        expert_parallel: ranks hold whole experts instead of shares of all.

    Raises:
        ValueError: as :func:`vllm_to_hf_tensors`; or ranks differ in names or shapes.
        TypeError: ranks differ in an element type.
    """
    layout = Layout(ModelConfig.read(config), experts, expert_parallel)
    tp = len(ranks)
    _check_names(ranks)
    found: dict[str, Gathered] = {}
    for name in ranks[0]:
        for rank, params in enumerate(ranks):
            weight = _on_host(params[name])
            kind, shape = describe(weight)
            plan = of_shard(layout, name, shape, tp, rank)
            if name.endswith(SCALE) and tp > 1:
                sibling = name.removesuffix("_scale_inv")
                if sibling not in params:
                    raise ValueError(f"{name}: its weight {sibling} is missing on rank {rank}")
                check_blocks(layout, sibling, of_shard(layout, sibling, describe(params[sibling])[1], tp, rank), tp)
            viewed = _apply(plan.view, weight)
            for hf, hf_shape in plan.hf_shapes.items():
                one = found.setdefault(hf, Gathered(hf, kind, hf_shape, name))
                if one.origin != name:
                    raise ValueError(f"{hf} is given twice: by {one.origin} and by {name}")
                if one.kind != kind:
                    raise TypeError(f"Type mismatch for {name}: {kind} on rank {rank}, {one.kind} on an earlier rank")
                if one.shape != hf_shape:
                    raise ValueError(
                        f"Shape mismatch for {name}: rank {rank} makes {hf} {list(hf_shape)}, an earlier rank "
                        f"{list(one.shape)}"
                    )
            for piece in plan.pieces:
                ndim = len(plan.hf_shapes[piece.hf])
                found[piece.hf].pieces.append((rank, piece, viewed[piece.index(ndim)] if ndim else viewed))
    if layout.config.tied:
        _drop_tied_head(found)
    return found


def shard(
    published: Mapping[str, Any],
    config: Any = None,
    tp: int = 1,
    rank: int = 0,
    *,
    experts: Experts | None = None,
    expert_parallel: bool = False,
    one_scale: bool = False,
) -> dict[str, Any]:
    """A rank's serving tensors of a published model: views where possible, else new tensors of the same library.

    Padding rows of embeddings are zeros. A tied output head is left out, as serving shares the embedding.

    Args:
        published: name -> tensor, with or without a multimodal model's ``model.language_model.`` prefix.
        one_scale: scales of whole tensors that are fused become one for all, instead of one for each part.

    Raises:
        ValueError: a tensor that has to be fused with others is alone, shapes do not fit, or sizes cannot be shared
            out over ``tp`` ranks.
        TypeError: tensors that have to be fused differ in their element type.
        ValueError (``one_scale``): scales differ, so that the weights would have to be quantised anew.
    """
    if not 0 <= rank < tp:
        raise ValueError(f"rank {rank} of {tp}: expected 0 to {tp - 1}")
    layout = Layout(ModelConfig.read(config), experts, expert_parallel)
    groups: dict[str, dict[str, Any]] = {}
    for name, weight in published.items():
        serving = layout.serving_name(name)
        if name.rpartition(".")[2] in TENSOR_SCALES and serving != name and not describe(weight)[1]:
            weight = _on_host(weight).reshape(1)
        groups.setdefault(serving, {})[layout.published_name(name)] = weight
    if layout.config.tied and any(n.endswith(EMBEDDING.removeprefix("model.")) for n in published):
        groups.pop(layout.serving_name(HEAD), None)
    return {
        name: _same(name, group)
        if one_scale and ".experts." not in name and name.rpartition(".")[2] in TENSOR_SCALES
        else _fuse(layout, name, group, groups, tp, rank)
        for name, group in groups.items()
    }


def _same(name: str, group: Mapping[str, Any]) -> Any:
    """The one value of scales that are all the same."""
    first, *others = group.items()
    for hf, scale in others:
        if not np.array_equal(to_bytes(scale).data, to_bytes(first[1]).data):
            raise ValueError(
                f"{hf} and {first[0]} differ, so that {name} cannot be one scale for both: quantise the weights anew "
                "with the larger one, or keep a scale for each part"
            )
    return first[1]


def _fuse(
    layout: Layout, name: str, group: dict[str, Any], groups: Mapping[str, dict[str, Any]], tp: int, rank: int
) -> Any:
    """One serving tensor of a rank, from the published tensors it holds."""
    first = next(iter(group.values()))
    if len(group) == 1 and next(iter(group)) not in {p.hf for p in layout.rule(name).parts}:
        return first  # another tower of a multimodal model: it goes by a name of its own
    kind = describe(first)[0]
    for hf, weight in group.items():
        if describe(weight)[0] != kind:
            raise TypeError(f"Type mismatch for {hf}: {describe(weight)[0]}, but {kind} in the rest of {name}")
    plan = of_published(layout, name, {hf: describe(w)[1] for hf, w in group.items()}, tp, rank)
    if name.endswith(SCALE) and tp > 1:
        sibling = name.removesuffix("_scale_inv")
        if sibling not in groups:
            raise ValueError(f"{name}: its weight {sibling} is missing")
        shapes = {hf: describe(w)[1] for hf, w in groups[sibling].items()}
        check_blocks(layout, sibling, of_published(layout, sibling, shapes, tp, rank), tp)
    if len(plan.pieces) == 1 and plan.pieces[0].expert is None:
        piece = plan.pieces[0]
        part = _on_host(group[piece.hf])
        part = part[piece.hf_index(len(describe(part)[1]))] if describe(part)[1] else part
        if tuple(part.shape) == plan.shape:
            return _undo(plan.view, part)
    made = np.zeros(plan.shape, kind.storage)
    for piece in plan.pieces:
        source = group[piece.hf]
        ndim = len(describe(source)[1])
        copy_into(made[piece.index(ndim)], _on_host(source)[piece.hf_index(ndim)])
    serving = np.ascontiguousarray(_undo(plan.view, made))
    assert serving.shape == serving_shape(plan)
    return from_bytes(kind, serving.shape, to_bytes(serving).data, framework_of(first), name)


def _apply(view: View, weight: Any) -> Any:
    if view is View.SWAPPED:
        return weight.swapaxes(-1, -2)
    if view is View.SCALARS:
        return weight[..., None]
    return weight.reshape((*weight.shape[:-1], -1, 16)) if view is View.BLOCKS else weight


def _undo(view: View, weight: Any) -> Any:
    if view is View.SCALARS:
        return weight[..., 0]
    return weight.reshape((*weight.shape[:-2], -1)) if view is View.BLOCKS else _apply(view, weight)


def _on_host(weight: Any) -> Any:
    """A KernBench tensor as an array, which can be sliced without further host reads; others as they are."""
    return to_bytes(weight).to("numpy") if framework_of(weight) == "kernbench" else weight


def _check_names(ranks: Sequence[Mapping[str, Any]]) -> None:
    if not ranks:
        raise ValueError("no ranks: give the parameters of at least one")
    for rank, params in enumerate(ranks[1:], 1):
        if params.keys() != ranks[0].keys():
            lacking = sorted(ranks[0].keys() ^ params.keys())
            raise ValueError(
                f"ranks 0 and {rank} hold different parameters: {', '.join(lacking[:5])}"
                + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            )


def _drop_tied_head(found: dict[str, Gathered]) -> None:
    """Leave out an output head that is the embedding.

    Raises:
        ValueError: it is not, though the configuration says so.
    """
    head, embedding = found.get(HEAD), found.get(EMBEDDING)
    if head is None or embedding is None:
        return
    same = head.shape == embedding.shape and head.kind == embedding.kind
    for (_, _, one), (_, _, other) in zip(head.pieces, embedding.pieces, strict=False):
        if not same:
            break
        a, b = to_bytes(one).data, to_bytes(other).data
        same = a.size == b.size and (a.ctypes.data == b.ctypes.data or np.array_equal(a, b))
    if not same:
        raise ValueError(
            f"{head.origin} and {embedding.origin} differ, though the configuration ties them (tie_word_embeddings): "
            "one of them was not updated"
        )
    del found[HEAD]
