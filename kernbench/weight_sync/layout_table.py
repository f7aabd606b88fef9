"""How serving engines lay out a model's weights, beside how Hugging Face publishes them, as data.

A serving tensor is the concatenation of *parts* along one axis, every part a range of a published tensor, and tensor
parallelism gives each rank a share of every part. So one :class:`Rule` a tensor says how to fuse and to split, to shard
and to gather. Serving names and layouts are vLLM's, as its weight loaders write them, before any processing that
repacks weights for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from kernbench.weight_sync.modelconfig import ModelConfig


class Split(Enum):
    """How ranks share a part."""

    EVEN = "equal consecutive shares"
    KV = "equal shares of whole KV heads, repeated where there are more ranks than heads"
    WHOLE = "every rank has all of it"
    FIRST = "rank 0 has all of it, the others zeros"
    VOCAB = "equal shares of a padded size"


class View(Enum):
    """What is done to a serving tensor before its axes are those of the published one."""

    PLAIN = "nothing"
    SWAPPED = "the last two axes change places"
    BLOCKS = "the last axis is cut into blocks of 16 bytes"
    SCALARS = "a last axis of length 1 is added"


class Experts(Enum):
    """How a checkpoint publishes routed experts."""

    SINGLE = "a tensor for every expert and projection"
    FUSED = "one tensor [experts, gate and up, hidden]"
    TRANSPOSED = "one tensor [experts, hidden, gate and up interleaved]"


@dataclass(frozen=True)
class Part:
    """One range of a published tensor; parts of one name follow each other in it."""

    hf: str
    """The published name; ``{}`` stands for an expert's number where the rule counts experts."""
    size: int | None = None
    """Length along the rule's axis over all ranks. None: such parts share equally what the others leave."""
    split: Split = Split.EVEN
    unit: int = 1
    """What a length that is not given must be a multiple of."""


@dataclass(frozen=True)
class Rule:
    """The layout of one serving tensor."""

    axis: int
    """Of the published tensor."""
    parts: tuple[Part, ...]
    view: View = View.PLAIN
    per_expert: bool = False
    """The serving tensor's first axis counts experts, each of which is published by itself."""
    shared: bool = False
    """Every part is all of the serving tensor: one scale for what is fused."""
    block: int = 1
    """Elements of the weight along the axis that one element of this tensor stands for: more than 1 for scales."""


Size = Callable[[ModelConfig], int | None]
Entry = tuple[str, Size, Split]


def unknown(config: ModelConfig) -> None:
    """The size of a part that the configuration need not tell."""


def _queries(config: ModelConfig) -> int | None:
    gated = config.gated_attention
    return None if gated is None else config.heads * config.head_dim * (2 if gated else 1)


def _kv(config: ModelConfig) -> int:
    return config.kv_heads * config.head_dim


def _key(config: ModelConfig) -> int:
    return config.linear_key_dim


def _value(config: ModelConfig) -> int:
    return config.linear_value_dim


def _value_heads(config: ModelConfig) -> int:
    return config.linear_value_heads


def _query_latent(config: ModelConfig) -> int:
    return config.require("q_lora_rank")


def _kv_latent(config: ModelConfig) -> int:
    return config.require("kv_lora_rank") + config.require("qk_rope_head_dim")


_DELTA_NET: tuple[tuple[Size, Split], ...] = ((_key, Split.EVEN), (_key, Split.EVEN), (_value, Split.EVEN))
"""Query, key and value of gated delta net attention."""

COLUMNS: dict[str, tuple[Entry, ...]] = {
    "qkv_proj": (("q_proj", _queries, Split.EVEN), ("k_proj", _kv, Split.KV), ("v_proj", _kv, Split.KV)),
    "gate_up_proj": (("gate_proj", unknown, Split.EVEN), ("up_proj", unknown, Split.EVEN)),
    "in_proj_qkvz": (*(("in_proj_qkv", *e) for e in _DELTA_NET), ("in_proj_z", _value, Split.EVEN)),
    "in_proj_ba": (("in_proj_b", _value_heads, Split.EVEN), ("in_proj_a", _value_heads, Split.EVEN)),
    "fused_qkv_a_proj": (
        ("q_a_proj", _query_latent, Split.WHOLE),
        ("kv_a_proj_with_mqa", _kv_latent, Split.WHOLE),
    ),
    "in_proj_qkv": tuple(("in_proj_qkv", *e) for e in _DELTA_NET),
    "conv1d": tuple(("conv1d", *e) for e in _DELTA_NET),
    "k_proj": (("k_proj", unknown, Split.KV),),
    "v_proj": (("v_proj", unknown, Split.KV),),
    **{
        name: ((name, unknown, Split.EVEN),)
        for name in ("q_proj", "gate_proj", "up_proj", "q_b_proj", "kv_b_proj", "in_proj_z", "in_proj_b", "in_proj_a")
    },
}
"""Serving module -> (published module, its output rows, how ranks share them) of what it stacks, in order."""

STACKED = ("qkv_proj", "gate_up_proj", "in_proj_qkvz", "in_proj_ba", "fused_qkv_a_proj")
"""Those that go by other names when published."""

ROWS = frozenset({"o_proj", "down_proj", "out_proj"})
"""Modules whose input columns are shared out; their bias is whole on every rank."""

VOCAB = frozenset({"embed_tokens", "lm_head"})
HEAD_VECTORS = frozenset({"A_log", "dt_bias", "sinks"})
"""Parameters with one element a head."""

OTHER_TOWERS = frozenset({"visual", "vision_tower", "vision_model", "audio_tower", "multi_modal_projector"})
"""Parts of multimodal models to which the configuration's text sizes do not apply."""

COLUMN_LEAVES = frozenset({"weight", "bias", "weight_scale", "weight_scale_inv"})
"""Parameters with one element, row or block of rows for every output row."""

SCALE = "weight_scale_inv"
"""FP8 scales of blocks of a weight."""

TENSOR_SCALES = frozenset(
    {"weight_scale", "input_scale", "weight_scale_2", "weight_global_scale", "input_global_scale"}
)
"""Parameters that may be one number for a whole weight: published as a scalar or one element, and in a fused serving
tensor one for each part, as loaders put them there, or one for all, as kernels want them."""

FUSED_EXPERTS = frozenset({"qwen3_5_moe", "qwen3_5_moe_text", "qwen3_vl_moe", "qwen3_vl_moe_text"})
"""Model types that publish :attr:`Experts.FUSED`."""

GPT_OSS_EXPERTS: dict[str, tuple[str, int | None, View]] = {
    "w13_weight": ("gate_up_proj", 2, View.SWAPPED),
    "w2_weight": ("down_proj", 1, View.SWAPPED),
    "w13_bias": ("gate_up_proj_bias", 1, View.PLAIN),
    "w2_bias": ("down_proj_bias", None, View.PLAIN),
}
"""gpt-oss in bf16: serving -> (published, the axis that ranks share, view); without an axis rank 0 has it."""

MXFP4_EXPERTS: dict[str, tuple[str, int | None, View]] = {
    **GPT_OSS_EXPERTS,
    "w13_weight": ("gate_up_proj_blocks", 1, View.BLOCKS),
    "w2_weight": ("down_proj_blocks", 2, View.BLOCKS),
    "w13_weight_scale": ("gate_up_proj_scales", 1, View.PLAIN),
    "w2_weight_scale": ("down_proj_scales", 2, View.PLAIN),
}
"""gpt-oss as published, in MXFP4."""
