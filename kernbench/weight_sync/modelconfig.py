"""The sizes of a model that its ``config.json`` gives, under the names that Hugging Face's configurations use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"


class ModelConfig:
    """A model's configuration. Of a multimodal model the sizes are those of its language model (``text_config``)."""

    def __init__(self, document: Mapping[str, Any], source: str = "the configuration") -> None:
        self.source = source
        text = document.get("text_config")
        self.is_multimodal = isinstance(text, Mapping)
        self._values: dict[str, Any] = {**document, **(text if isinstance(text, Mapping) else {})}
        quantization = self._values.get("quantization_config") or document.get("quantization_config")
        self._quantization = quantization if isinstance(quantization, Mapping) else {}

    @classmethod
    def read(cls, config: Any) -> ModelConfig:
        """From a dictionary, a path (``config.json`` or its folder) or an object with ``to_dict()``; empty for None.

        Raises:
            ValueError: the file is no JSON object.
            TypeError: anything else was given.
        """
        if isinstance(config, ModelConfig):
            return config
        if config is None:
            return cls({}, "the configuration (none was given)")
        if isinstance(config, str | Path):
            path = Path(config)
            path = path / CONFIG_NAME if path.is_dir() else path
            try:
                config, source = json.loads(path.read_bytes()), str(path)
            except ValueError as wrong:
                raise ValueError(f"{path}: no valid JSON: {wrong}") from None
            if not isinstance(config, dict):
                raise ValueError(f"{path}: expected a JSON object, found {type(config).__name__}")
            return cls(config, source)
        if not isinstance(config, Mapping) and hasattr(config, "to_dict"):
            config = config.to_dict()
        if not isinstance(config, Mapping):
            raise TypeError(
                f"a configuration is a dictionary, a path of config.json or has to_dict(), not {type(config).__name__}"
            )
        return cls(config)

    @classmethod
    def of_folder(cls, model_dir: str | Path) -> ModelConfig:
        """Of a checkpoint's folder; empty where it has no ``config.json``."""
        path = Path(model_dir) / CONFIG_NAME
        return cls.read(path) if path.exists() else cls({}, f"{path} (there is no such file)")

    def get(self, *keys: str) -> Any:
        """The first of these keys that has a value, or None."""
        return next((self._values[k] for k in keys if self._values.get(k) is not None), None)

    def require(self, key: str, *aliases: str) -> int:
        """A size that a layout cannot do without.

        Raises:
            ValueError: it is missing or no positive integer.
        """
        value = self.get(key, *aliases)
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.source}: '{key}' is {value!r}; the model's layout needs it as a positive integer")
        return value

    @property
    def model_type(self) -> str:
        return str(self.get("model_type") or "")

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return bool(self.get("tie_word_embeddings"))

    @property
    def heads(self) -> int:
        return self.require("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return self.heads if self.get("num_key_value_heads") is None else self.require("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        if self.get("head_dim") is not None:
            return self.require("head_dim")
        return self.require("hidden_size") // self.heads

    @property
    def gated_attention(self) -> bool | None:
        """Whether each query head carries an output gate of its own size; None where the configuration does not say."""
        return self.get("attn_output_gate")

    @property
    def linear_key_dim(self) -> int:
        """Key elements over all heads of gated delta net attention."""
        return self.require("linear_num_key_heads") * self.require("linear_key_head_dim")

    @property
    def linear_value_dim(self) -> int:
        return self.linear_value_heads * self.require("linear_value_head_dim")

    @property
    def linear_value_heads(self) -> int:
        return self.require("linear_num_value_heads")

    @property
    def latent_attention(self) -> bool:
        """Whether attention is multi-head latent attention, whose query is not fused with key and value."""
        return self.get("kv_lora_rank") is not None

    @cached_property
    def scale_block(self) -> tuple[int, int]:
        """Rows and columns of a weight that share one FP8 scale.

        Raises:
            ValueError: the configuration gives none.
        """
        block = self._quantization.get("weight_block_size")
        if not (isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
            raise ValueError(
                f"{self.source}: 'quantization_config.weight_block_size' is {block!r}; scales need [rows, columns]"
            )
        return block[0], block[1]

    @property
    def quantization(self) -> str | None:
        """``quant_method``: ``"fp8"``, ``"mxfp4"`` ..."""
        return self._quantization.get("quant_method")
