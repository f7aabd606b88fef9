"""The tensors of a model: names and shapes from its configuration or its checkpoint, and values to try a sync with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.modelconfig import CONFIG_NAME, ModelConfig
from kernbench.weight_sync.pieces import Shape
from kernbench.weight_sync.reshard import HEAD

LLAMA_3_1_8B: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""What matters here of meta-llama/Llama-3.1-8B's ``config.json``."""
DENSE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose tensors follow from the configuration."""


@dataclass(frozen=True)
class Model:
    """Attributes:
    config: the parsed ``config.json``.
    shapes: published name -> shape, without a tied output head.
    dtype: of every tensor.
    """

    config: dict[str, Any]
    shapes: dict[str, Shape]
    dtype: str

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Model:
        """A dense model of the Llama family.

        Raises:
            NotImplementedError: another ``model_type``; :meth:`of_checkpoint` knows the shapes of every model.
            ValueError: a size is missing.
        """
        read = ModelConfig.read(config)
        if read.model_type not in DENSE:
            raise NotImplementedError(
                f"the tensors of a '{read.model_type}' do not follow from its configuration here, only those of "
                f"{', '.join(DENSE)}: give the folder of a checkpoint, whose headers say them"
            )
        return cls(dict(config), _dense(read), str(read.get("dtype", "torch_dtype") or "bfloat16"))

    @classmethod
    def of_checkpoint(cls, folder: str | Path) -> Model:
        """What the headers of a checkpoint's safetensors files say; no value is read.

        Raises:
            FileNotFoundError: no safetensors file, or no ``config.json``.
            NotImplementedError: tensors of several element types.
        """
        from kernbench.weight_sync.safetensors import read_header

        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder}: no *.safetensors file")
        ranges = {name: where for file in files for name, where in read_header(file).tensors.items()}
        path = Path(folder) / CONFIG_NAME
        config = json.loads(path.read_bytes())
        if ModelConfig.read(config).tied:
            ranges.pop(HEAD, None)
        kinds = sorted({where.kind.name for where in ranges.values()})
        if len(kinds) != 1:
            raise NotImplementedError(f"{folder}: tensors of several element types ({', '.join(kinds)})")
        return cls(config, {name: where.shape for name, where in ranges.items()}, kinds[0])

    @property
    def nbytes(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values()) * wire_type(self.dtype).itemsize

    def scaled(self, by: int, layers: int) -> Model:
        """The same model with hidden, intermediate and vocabulary sizes divided by ``by``, and so many layers. Heads
        stay in number, so that everything is shared out as in the original.

        Raises:
            ValueError: a size is no multiple of ``by``.
        """
        config = dict(self.config)
        read = ModelConfig.read(config)
        sizes = {key: read.require(key) for key in ("hidden_size", "intermediate_size", "vocab_size")}
        for key, size in (sizes | {"head_dim": read.head_dim}).items():
            if size % by:
                raise ValueError(f"'{key}' is {size}, no multiple of {by}")
            config[key] = size // by
        return Model.of_config(config | {"num_hidden_layers": min(layers, read.require("num_hidden_layers"))})

    def within(self, nbytes: int) -> Model | None:
        """Itself if it is no larger, else the least scaled model that is not; None where there is none."""
        if self.nbytes <= nbytes:
            return self
        if ModelConfig.read(self.config).model_type not in DENSE:
            return None
        for by in (1, 2, 4, 8, 16, 32, 64):
            try:
                small = self.scaled(by, 4)
            except ValueError:
                return None
            if small.nbytes <= nbytes:
                return small
        return None

    def values(self, seed: int = 0) -> dict[str, NDArray[Any]]:
        """Random bits for every tensor: NaN payloads among them, so that nothing but an exact copy passes."""
        kind = wire_type(self.dtype)
        rng = np.random.default_rng(seed)
        return {
            name: np.frombuffer(rng.bytes(kind.nbytes(shape)), kind.storage).reshape(shape)
            for name, shape in self.shapes.items()
        }


def _dense(config: ModelConfig) -> dict[str, Shape]:
    hidden, inner = config.require("hidden_size"), config.require("intermediate_size")
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    vocabulary = (config.require("vocab_size"), hidden)
    made: dict[str, Shape] = {"model.embed_tokens.weight": vocabulary}
    for i in range(config.require("num_hidden_layers")):
        layer = f"model.layers.{i}."
        made[f"{layer}input_layernorm.weight"] = (hidden,)
        for name, rows in (("q", query), ("k", key), ("v", key)):
            made[f"{layer}self_attn.{name}_proj.weight"] = (rows, hidden)
            if config.model_type == "qwen2":
                made[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        made[f"{layer}self_attn.o_proj.weight"] = (hidden, query)
        if config.model_type == "qwen3":
            made[f"{layer}self_attn.q_norm.weight"] = made[f"{layer}self_attn.k_norm.weight"] = (config.head_dim,)
        made[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        made[f"{layer}mlp.gate_proj.weight"] = made[f"{layer}mlp.up_proj.weight"] = (inner, hidden)
        made[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
    made["model.norm.weight"] = (hidden,)
    if not config.tied:
        made[HEAD] = vocabulary
    return made
