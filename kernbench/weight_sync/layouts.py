"""From a tensor's name to its layout: the table of :mod:`kernbench.weight_sync.layout_table` applied to one model."""

from __future__ import annotations

import re

from kernbench.weight_sync import layout_table as table
from kernbench.weight_sync.layout_table import Experts, Part, Rule, Split, View
from kernbench.weight_sync.modelconfig import ModelConfig

_ONE_EXPERT = re.compile(
    rf"(.*\.experts)\.\d+\.(gate_proj|up_proj|down_proj)\.(weight|weight_scale_inv|{'|'.join(sorted(table.TENSOR_SCALES))})"
)
_ONE = ((), (1,))
"""Shapes of a single number."""
_ALL_EXPERTS = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_blocks|_scales|_bias)?")
_TEXT = re.compile(r"model\.(language_model\.)?(?=layers\.|embed_tokens\.|norm\.)")


class Layout:
    """The layout of one model.

    Args:
        experts: how the checkpoint at hand publishes experts; by default as the model's type usually does.
        expert_parallel: each rank holds whole experts, an equal number, instead of a share of every expert.
    """

    def __init__(self, config: ModelConfig, experts: Experts | None = None, expert_parallel: bool = False) -> None:
        self.config = config
        self.expert_parallel = expert_parallel
        self.is_gpt_oss = config.model_type == "gpt_oss"
        usual = Experts.FUSED if config.model_type in table.FUSED_EXPERTS else Experts.SINGLE
        self.experts = experts or (Experts.TRANSPOSED if self.is_gpt_oss else usual)
        self._published_singly = experts is Experts.SINGLE
        stacked = [m for m in table.STACKED if not (m == "qkv_proj" and config.latent_attention)]
        self._stack_of = {hf: module for module in stacked for hf, _, _ in table.COLUMNS[module]}

    def published_name(self, name: str) -> str:
        """A name without the prefix of a multimodal model's language part, in published spelling."""
        name = name.removeprefix("language_model.")
        if name.startswith("model.language_model."):
            name = "model." + name.removeprefix("model.language_model.")
        if self.is_gpt_oss:
            name = name.replace(".attn.", ".self_attn.").replace("model.embedding.", "model.embed_tokens.")
        return name

    def serving_name(self, hf: str) -> str:
        """Name of the serving tensor that holds the published tensor ``hf``."""
        if not table.OTHER_TOWERS.isdisjoint(hf.split(".")):
            return hf.removeprefix("model.") if self.config.is_multimodal else hf
        one, every = _ONE_EXPERT.fullmatch(hf), _ALL_EXPERTS.fullmatch(hf)
        path, _, leaf = hf.rpartition(".")
        parent, _, module = path.rpartition(".")
        if one:
            hf = f"{one[1]}.{'w2' if one[2] == 'down_proj' else 'w13'}_{one[3]}"
        elif every:
            suffix = {"_scales": "weight_scale", "_bias": "bias"}.get(every[3], "weight")
            hf = f"{every[1]}.{'w2' if every[2] == 'down_proj' else 'w13'}_{suffix}"
        elif module in self._stack_of and leaf in table.COLUMN_LEAVES | table.TENSOR_SCALES:
            hf = f"{parent}.{self._stack_of[module]}.{leaf}"
        if self.is_gpt_oss:
            hf = hf.replace(".self_attn.", ".attn.").replace("model.embed_tokens.", "model.embedding.")
        if self.config.is_multimodal and (_TEXT.match(hf) or hf.startswith("lm_head.")):
            hf = "language_model." + _TEXT.sub("model.", hf, count=1)
        return hf

    def rule(self, name: str, shape: tuple[int, ...] | None = None, scalars: bool = False) -> Rule:
        """The layout of serving tensor ``name``. A name that is not in the table is whole on every rank.

        Args:
            shape: of the tensor; tells which axis of an unusual 3-D tensor of experts is which, and what is a scale of
                a whole tensor.
            scalars: the published tensors are single numbers.

        Raises:
            ValueError: the table knows the module but not this parameter of it, or the configuration lacks a size.
        """
        name = self.published_name(name)
        path, _, leaf = name.rpartition(".")
        parent, _, module = path.rpartition(".")
        whole = Rule(0, (Part(name, None, Split.WHOLE),))
        if not table.OTHER_TOWERS.isdisjoint(name.split(".")):
            return whole
        if leaf in table.HEAD_VECTORS:
            return Rule(0, (Part(name),))
        if module in table.VOCAB and leaf == "weight":
            rows = self.config.get("vocab_size")
            return Rule(0, (Part(name, rows, Split.VOCAB if rows else Split.EVEN),))
        if module == "experts":
            return self._expert_scales(path, leaf, shape, scalars) or self._experts(name, path, leaf, shape) or whole
        if parent.endswith(".experts") and (module, leaf) == ("gate_up_proj", "weight"):
            return self._projections(parent, ".weight", shape)
        if module == "conv1d" and not parent.endswith("linear_attn"):
            return whole
        if module in table.COLUMNS and leaf in table.TENSOR_SCALES:
            hfs = list(dict.fromkeys(hf for hf, _, _ in table.COLUMNS[module]))
            parts = tuple(Part(f"{parent}.{hf}.{leaf}", 1, Split.WHOLE) for hf in hfs)
            each = len(hfs) == len(table.COLUMNS[module]) and (scalars or shape == (len(hfs),))
            if len(hfs) == 1 and (scalars or shape in _ONE):
                return whole
            if shape in _ONE or each:
                return Rule(0, parts, shared=shape in _ONE)
        if module in table.COLUMNS:
            return self._columns(name, parent, module, leaf) or whole
        if module in table.ROWS and leaf in ("weight", table.SCALE):
            return Rule(1, (Part(name),), block=self.config.scale_block[1] if leaf == table.SCALE else 1)
        return whole

    def _columns(self, name: str, parent: str, module: str, leaf: str) -> Rule | None:
        if leaf not in table.COLUMN_LEAVES:
            if module not in table.STACKED:
                return None
            raise ValueError(
                f"{name}: no layout is known for '{leaf}' of the fused '{module}', only for "
                f"{', '.join(sorted(table.COLUMN_LEAVES))}; leave it out, or give it under its published names"
            )
        block = self.config.scale_block[0] if leaf == table.SCALE else 1
        parts = []
        for hf, size, split in table.COLUMNS[module]:
            rows = size(self.config)
            unit = 1
            if rows is None and module == "qkv_proj":  # an output gate of the query's size may lie beside it
                unit = -(-self.config.heads * self.config.head_dim // block)
            parts.append(Part(f"{parent}.{hf}.{leaf}", rows and -(-rows // block), split, unit))
        return Rule(0, tuple(parts), block=block)

    def _expert_scales(self, path: str, leaf: str, shape: tuple[int, ...] | None, scalars: bool) -> Rule | None:
        """One number for each expert and projection; None if it is something else."""
        which, _, what = leaf.partition("_")
        if what not in table.TENSOR_SCALES or self.experts is not Experts.SINGLE:
            return None
        if which == "w13" and (scalars or (shape is not None and shape[1:] == (2,))):
            parts = tuple(Part(f"{path}.{{}}.{m}.{what}", 1, Split.WHOLE) for m in ("gate_proj", "up_proj"))
            return Rule(0, parts, per_expert=True)
        if which == "w2" and (scalars or (shape is not None and len(shape) == 1)):
            parts = (Part(f"{path}.{{}}.down_proj.{what}", 1, Split.WHOLE),)
            return Rule(0, parts, View.SCALARS, per_expert=True)
        return None

    def _experts(self, name: str, path: str, leaf: str, shape: tuple[int, ...] | None) -> Rule | None:
        if leaf == "gate_up_proj":
            return self._projections(path, "", shape)
        if leaf == "down_proj" and self._published_singly:
            return Rule(0, (Part(f"{path}.{{}}.down_proj.weight", None, Split.WHOLE),), per_expert=True)
        if not leaf.startswith(("w13_", "w2_")):
            return None
        if self.experts is Experts.TRANSPOSED:
            mxfp4 = self.config.quantization == "mxfp4"
            entry = (table.MXFP4_EXPERTS if mxfp4 else table.GPT_OSS_EXPERTS).get(leaf)
            if entry is not None:
                hf, axis, view = entry
                split = Split.FIRST if axis is None else Split.EVEN
                return self._every_expert(Rule(axis or 0, (Part(f"{path}.{hf}", None, split),), view))
        which, _, what = leaf.partition("_")
        if what == "weight" and self.experts is Experts.FUSED:
            fused = (Part(f"{path}.gate_up_proj"),) * 2 if which == "w13" else (Part(f"{path}.down_proj"),)
            return self._every_expert(Rule(1 if which == "w13" else 2, fused))
        if what in ("weight", table.SCALE) and self.experts is Experts.SINGLE:
            modules = ("gate_proj", "up_proj") if which == "w13" else ("down_proj",)
            axis = 0 if which == "w13" else 1
            block = self.config.scale_block[axis] if what == table.SCALE else 1
            parts = tuple(Part(f"{path}.{{}}.{m}.{what}") for m in modules)
            return Rule(axis, parts, per_expert=True, block=block)
        raise ValueError(
            f"{name}: no layout is known for '{leaf}' where experts are published as "
            f"{self.experts.value}; leave it out, or give it under its published names"
        )

    def _every_expert(self, rule: Rule) -> Rule:
        """With expert parallelism, ranks share the axis that counts experts instead."""
        if not self.expert_parallel:
            return rule
        return Rule(0, (Part(rule.parts[0].hf),), rule.view)

    def _projections(self, path: str, suffix: str, shape: tuple[int, ...] | None) -> Rule:
        """A 3-D tensor of all experts that goes by the name ``gate_up_proj`` in serving."""
        if self.experts is not Experts.SINGLE:
            return Rule(0, (Part(f"{path}.gate_up_proj{suffix}", None, Split.WHOLE),))
        if self._published_singly:
            names = (f"{path}.{{}}.gate_proj.weight", f"{path}.{{}}.up_proj.weight")
            return Rule(0, tuple(Part(n) for n in names), per_expert=True)
        axis = 1
        width = self.config.get("moe_intermediate_size", "intermediate_size")
        if shape and len(shape) == 3 and width and shape[2] == 2 * width != shape[1]:
            axis = 2
        return Rule(axis, (Part(f"{path}.gate_proj{suffix}"), Part(f"{path}.up_proj{suffix}")), View.PLAIN)
