"""Small models with true published names and the configurations that go with them."""

import itertools

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_VOCAB, _HIDDEN = 130, 48


def config(family, **changes):
    common = {
        "hidden_size": _HIDDEN,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "vocab_size": _VOCAB,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    }
    special = {
        "llama": {},
        "qwen2": {"tie_word_embeddings": True},
        "qwen3": {},
        "qwen3_fp8": {
            "intermediate_size": 128,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},
        },
        "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32},
        "qwen3_5": {
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 6,
            "attn_output_gate": True,
        },
        "qwen3_5_moe": {"num_experts": 4, "moe_intermediate_size": 32},
        "deepseek_v3": {
            "hidden_size": 256,
            "q_lora_rank": 24,
            "kv_lora_rank": 20,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 64,
            "v_head_dim": 32,
            "n_routed_experts": 3,
            "intermediate_size": 256,
            "moe_intermediate_size": 128,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},
        },
        "gpt_oss": {"num_local_experts": 4, "intermediate_size": 64},
        "gpt_oss_mxfp4": {
            "num_local_experts": 4,
            "intermediate_size": 256,
            "hidden_size": 64,
            "quantization_config": {"quant_method": "mxfp4"},
        },
    }[family]
    model_type = family.removesuffix("_mxfp4").removesuffix("_fp8")
    sizes = {**common, **special, **changes, "model_type": model_type}
    if family in ("qwen3_5", "qwen3_5_moe"):
        text = {**sizes, "model_type": f"{family}_text"}
        return {"model_type": family, "text_config": text, "tie_word_embeddings": sizes["tie_word_embeddings"]}
    return sizes


def published(family, seed=0, **changes):
    """Published tensors of two layers, of random bits."""
    document = config(family, **changes)
    c = document.get("text_config", document)
    rng = np.random.default_rng(seed)
    tensors = {}

    def add(name, *shape, dtype=BF16):
        bits = rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
        tensors[name] = bits.view(dtype).reshape(shape)

    def linear(name, rows, columns, bias=False):
        quantised = family in ("deepseek_v3", "qwen3_fp8")
        add(f"{name}.weight", rows, columns, dtype=FP8 if quantised else BF16)
        if quantised:
            add(f"{name}.weight_scale_inv", -(-rows // 16), -(-columns // 16), dtype=np.dtype(np.float32))
        if bias:
            add(f"{name}.bias", rows)

    multimodal = "text_config" in document
    root = "model.language_model." if multimodal else "model."
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    add(f"{root}embed_tokens.weight", _VOCAB, hidden)
    add(f"{root}norm.weight", hidden)
    if not c["tie_word_embeddings"]:
        add("lm_head.weight", _VOCAB, hidden)
    if multimodal:
        add("model.visual.blocks.0.attn.qkv.weight", 12, 4)
        add("model.visual.blocks.0.mlp.gate_proj.weight", 6, 4)
    for i in range(2):
        layer = f"{root}layers.{i}."
        add(f"{layer}input_layernorm.weight", hidden)
        _attention(family, c, i, layer, add, linear)
        if family == "qwen3_moe" or (family == "deepseek_v3" and i):
            width = c["moe_intermediate_size"]
            linear_experts = c.get("num_experts") or c["n_routed_experts"]
            add(f"{layer}mlp.gate.weight", linear_experts, hidden)
            for e, (name, shape) in itertools.product(range(linear_experts), _mlp(hidden, width)):
                linear(f"{layer}mlp.experts.{e}.{name}", *shape)
            if family == "deepseek_v3":
                add(f"{layer}mlp.gate.e_score_correction_bias", linear_experts, dtype=np.dtype(np.float32))
                for name, shape in _mlp(hidden, width):
                    linear(f"{layer}mlp.shared_experts.{name}", *shape)
        elif family == "qwen3_5_moe":
            add(f"{layer}mlp.experts.gate_up_proj", 4, 2 * c["moe_intermediate_size"], hidden)
            add(f"{layer}mlp.experts.down_proj", 4, hidden, c["moe_intermediate_size"])
        elif family.startswith("gpt_oss"):
            _gpt_oss_experts(family, layer, hidden, inner, add, linear)
        else:
            for name, shape in _mlp(hidden, inner):
                linear(f"{layer}mlp.{name}", *shape)
    return tensors


def _mlp(hidden, inner):
    return [("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))]


def _attention(family, c, i, layer, add, linear):
    hidden, heads, kv, dim = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    attention = f"{layer}self_attn."
    if family == "deepseek_v3":
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        linear(f"{attention}q_a_proj", c["q_lora_rank"], hidden)
        add(f"{attention}q_a_layernorm.weight", c["q_lora_rank"])
        linear(f"{attention}q_b_proj", heads * (nope + rope), c["q_lora_rank"])
        linear(f"{attention}kv_a_proj_with_mqa", c["kv_lora_rank"] + rope, hidden)
        linear(f"{attention}kv_b_proj", heads * (nope + value), c["kv_lora_rank"])
        linear(f"{attention}o_proj", hidden, heads * value)
        return
    if family == "qwen3_5" and i == 0:
        key = c["linear_num_key_heads"] * c["linear_key_head_dim"]
        value_heads = c["linear_num_value_heads"]
        value = value_heads * c["linear_value_head_dim"]
        net = f"{layer}linear_attn."
        linear(f"{net}in_proj_qkv", 2 * key + value, hidden)
        linear(f"{net}in_proj_z", value, hidden)
        linear(f"{net}in_proj_b", value_heads, hidden)
        linear(f"{net}in_proj_a", value_heads, hidden)
        add(f"{net}conv1d.weight", 2 * key + value, 1, 4)
        add(f"{net}A_log", value_heads, dtype=np.dtype(np.float32))
        add(f"{net}dt_bias", value_heads)
        add(f"{net}norm.weight", c["linear_value_head_dim"], dtype=np.dtype(np.float32))
        linear(f"{net}out_proj", hidden, value)
        return
    bias = family == "qwen2" or family.startswith("gpt_oss")
    linear(f"{attention}q_proj", heads * dim * (2 if c.get("attn_output_gate") else 1), hidden, bias)
    linear(f"{attention}k_proj", kv * dim, hidden, bias)
    linear(f"{attention}v_proj", kv * dim, hidden, bias)
    linear(f"{attention}o_proj", hidden, heads * dim, family.startswith("gpt_oss"))
    if family.startswith("qwen3"):
        add(f"{attention}q_norm.weight", dim)
        add(f"{attention}k_norm.weight", dim)
    if family.startswith("gpt_oss"):
        add(f"{attention}sinks", heads)


def _gpt_oss_experts(family, layer, hidden, inner, add, linear):
    linear(f"{layer}mlp.router", 4, hidden, True)
    experts = f"{layer}mlp.experts."
    if family == "gpt_oss":
        add(f"{experts}gate_up_proj", 4, hidden, 2 * inner)
        add(f"{experts}down_proj", 4, inner, hidden)
    else:
        byte = np.dtype(np.uint8)
        add(f"{experts}gate_up_proj_blocks", 4, 2 * inner, hidden // 32, 16, dtype=byte)
        add(f"{experts}gate_up_proj_scales", 4, 2 * inner, hidden // 32, dtype=byte)
        add(f"{experts}down_proj_blocks", 4, hidden, inner // 32, 16, dtype=byte)
        add(f"{experts}down_proj_scales", 4, hidden, inner // 32, dtype=byte)
    add(f"{experts}gate_up_proj_bias", 4, 2 * inner)
    add(f"{experts}down_proj_bias", 4, hidden)
