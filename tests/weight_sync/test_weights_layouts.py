import numpy as np
import pytest
import torch
import weights_models
from weights_models import BF16, config, published

from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.arrays import to_bytes
from kernbench.weight_sync.checkpoint_sync import vllm_to_hf_tensors
from kernbench.weight_sync.layout_table import Experts
from kernbench.weight_sync.modelconfig import ModelConfig
from kernbench.weight_sync.reshard import gather, shard

FAMILIES = [
    "llama", "qwen2", "qwen3", "qwen3_fp8", "qwen3_moe", "qwen3_5", "qwen3_5_moe", "deepseek_v3", "gpt_oss",
    "gpt_oss_mxfp4",
]  # fmt: skip
LAYER = "model.layers.0."
QWEN35_27B = {
    "model_type": "qwen3_5",
    "text_config": {
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
}


def same_bits(a, b):
    return a.shape == b.shape and bytes(to_bytes(a).data) == bytes(to_bytes(b).data)


def text_names(tensors):
    """Published names as the layouts give them: without a multimodal model's prefixes."""
    return {
        n.replace("model.language_model.", "model.").replace("model.visual.", "visual."): t for n, t in tensors.items()
    }


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_shards_gather_to_the_published_model(family, tp):
    model, sizes = published(family), config(family)
    ranks = [shard(model, sizes, tp, r) for r in range(tp)]
    back = gather(ranks, sizes)
    expected = text_names(model)
    assert back.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same_bits(back[name].tensor(), tensor), name


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe", "deepseek_v3", "gpt_oss", "gpt_oss_mxfp4"])
def test_expert_parallel_ranks_hold_whole_experts(family):
    changes = {"n_routed_experts": 4} if family == "deepseek_v3" else {}
    model, sizes = published(family, **changes), config(family, **changes)
    ranks = [shard(model, sizes, 2, r, expert_parallel=True) for r in range(2)]
    w13 = next(t for n, t in ranks[0].items() if n.endswith("w13_weight"))
    assert w13.shape[0] == 2
    back = gather(ranks, sizes, expert_parallel=True)
    for name, tensor in text_names(model).items():
        assert same_bits(back[name].tensor(), tensor), name


def test_serving_shards_of_attention_written_out():
    """8 query and 2 KV heads of 16 over 4 ranks: each has 2 query heads, ranks 0 and 1 have KV head 0."""
    model, sizes = published("llama"), config("llama")
    q, k, v = (model[f"{LAYER}self_attn.{n}_proj.weight"] for n in "qkv")
    for rank in range(4):
        head = slice(16 * (rank // 2), 16 * (rank // 2) + 16)
        expected = np.concatenate([q[32 * rank : 32 * rank + 32], k[head], v[head]])
        assert same_bits(shard(model, sizes, 4, rank)[f"{LAYER}self_attn.qkv_proj.weight"], expected)


def test_serving_shards_of_gated_delta_net_written_out():
    """A rank's rows are its share of query, of key, of value and of z, in that order."""
    model, sizes = published("qwen3_5"), config("qwen3_5")
    net = "model.language_model.layers.0.linear_attn."
    qkv, z, conv = (model[net + n] for n in ("in_proj_qkv.weight", "in_proj_z.weight", "conv1d.weight"))
    mine = shard(model, sizes, 2, 1)
    serving = "language_model." + LAYER + "linear_attn."
    rows = np.r_[16:32, 48:64, 88:112]
    assert same_bits(mine[serving + "in_proj_qkvz.weight"], np.concatenate([qkv[rows], z[24:48]]))
    assert same_bits(mine[serving + "conv1d.weight"], conv[rows])


def test_serving_shards_of_gpt_oss_experts_written_out():
    model, sizes = published("gpt_oss"), config("gpt_oss")
    experts = f"{LAYER}mlp.experts."
    mine = shard(model, sizes, 2, 1)
    assert same_bits(mine[experts + "w13_weight"], model[experts + "gate_up_proj"][:, :, 64:].swapaxes(1, 2))
    assert same_bits(mine[experts + "w2_weight"], model[experts + "down_proj"][:, 32:].swapaxes(1, 2))
    assert not to_bytes(mine[experts + "w2_bias"]).data.any()  # added once, on rank 0
    assert f"{LAYER}attn.qkv_proj.bias" in mine and "model.embedding.weight" in mine


def test_embeddings_are_padded_in_serving():
    model, sizes = published("llama"), config("llama")
    mine = [shard(model, sizes, 4, r)["model.embed_tokens.weight"] for r in range(4)]
    assert [m.shape[0] for m in mine] == [48] * 4  # 130 rows padded to 192
    assert not to_bytes(mine[3]).data.any()
    one = shard(model, sizes, 1, 0)["model.embed_tokens.weight"]
    assert one.shape[0] == 192 and same_bits(one[:130], model["model.embed_tokens.weight"])


def test_qwen35_27b_sizes_and_views():
    prefix = "language_model.model.layers.0."
    wide = {
        "linear_attn.in_proj_qkvz.weight": 16384,
        "linear_attn.in_proj_ba.weight": 96,
        "self_attn.qkv_proj.weight": 14336,
        "mlp.gate_up_proj.weight": 34816,
    }
    params = {prefix + n: torch.zeros(rows, 2, dtype=torch.bfloat16) for n, rows in wide.items()}
    params[prefix + "self_attn.qkv_proj.bias"] = torch.arange(14336.0)
    params["language_model.lm_head.weight"] = torch.zeros(3, 2)
    found = vllm_to_hf_tensors(params, QWEN35_27B)
    rows = {name.removeprefix(LAYER): t.shape[0] for name, t in found.items()}
    assert rows == {
        "linear_attn.in_proj_qkv.weight": 10240,
        "linear_attn.in_proj_z.weight": 6144,
        "linear_attn.in_proj_b.weight": 48,
        "linear_attn.in_proj_a.weight": 48,
        "self_attn.q_proj.weight": 12288,
        "self_attn.k_proj.weight": 1024,
        "self_attn.v_proj.weight": 1024,
        "mlp.gate_proj.weight": 17408,
        "mlp.up_proj.weight": 17408,
        "self_attn.q_proj.bias": 12288,
        "self_attn.k_proj.bias": 1024,
        "self_attn.v_proj.bias": 1024,
        "lm_head.weight": 3,
    }
    assert found[LAYER + "self_attn.k_proj.bias"][0] == 12288
    found[LAYER + "mlp.up_proj.weight"][:] = 1
    assert params[prefix + "mlp.gate_up_proj.weight"][17408:].min() == 1
    assert all(
        any(t.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for p in params.values())
        for t in found.values()
    )


@pytest.mark.parametrize("shape, axis", [((4, 64, 48), 1), ((4, 48, 64), 2)])
def test_fused_experts_split_on_the_axis_of_their_width(shape, axis):
    fused = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = vllm_to_hf_tensors({f"{LAYER}mlp.experts.gate_up_proj": fused}, config("qwen3_moe"))
    gate, up = np.split(fused, 2, axis)
    assert np.array_equal(found[f"{LAYER}mlp.experts.gate_proj"], gate)
    assert np.array_equal(found[f"{LAYER}mlp.experts.up_proj"], up)
    assert np.shares_memory(found[f"{LAYER}mlp.experts.up_proj"], fused)


def test_experts_take_the_form_of_the_checkpoint():
    params = {f"{LAYER}mlp.experts.w13_weight": np.zeros((4, 64, 48), BF16)}
    single = gather([params], config("qwen3_moe"), experts=Experts.SINGLE)
    assert sorted(single)[0] == f"{LAYER}mlp.experts.0.gate_proj.weight" and len(single) == 8
    fused = gather([params], config("qwen3_moe"), experts=Experts.FUSED)
    assert [t.shape for t in fused.values()] == [(4, 64, 48)]
    same = {f"{LAYER}mlp.experts.gate_up_proj": np.zeros((4, 64, 48), BF16)}
    assert gather([same], config("qwen3_moe"), experts=Experts.SINGLE).keys() == single.keys()


def test_libraries_keep_their_own():
    weights = {
        "model.layers.0.mlp.gate_up_proj.weight": torch.nn.Parameter(torch.randn(8, 3)),
        "a": Tensor((2, 2), "bf16"),
        "scalar": torch.tensor(2.0),
        "empty": np.zeros((0, 4), np.float32),
    }
    found = vllm_to_hf_tensors(weights)
    assert isinstance(found[f"{LAYER}mlp.up_proj.weight"], torch.Tensor)
    assert found["a"].dtype == BF16 and found["scalar"] == 2 and found["empty"].shape == (0, 4)
    mine = shard({n: torch.from_numpy(t.view(np.int16)) for n, t in published("llama").items()}, config("llama"), 2, 1)
    assert all(isinstance(t, torch.Tensor) for t in mine.values())


def test_tied_heads():
    embedding = torch.randn(192, 4)
    params = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    tied = {"tie_word_embeddings": True, "vocab_size": 130}
    assert vllm_to_hf_tensors(params, tied).keys() == {"model.embed_tokens.weight"}
    assert len(vllm_to_hf_tensors(params, tied | {"tie_word_embeddings": False})) == 2
    with pytest.raises(ValueError, match="ties them"):
        vllm_to_hf_tensors(params | {"lm_head.weight": embedding + 1}, tied)


def test_a_stale_rank_is_named():
    model, sizes = published("llama"), config("llama")
    ranks = [shard(model, sizes, 4, r) for r in range(4)]
    name = f"{LAYER}self_attn.qkv_proj.weight"
    ranks[1][name] = ranks[1][name].copy()
    ranks[1][name].view(np.uint16)[-1, 0] ^= 1
    with pytest.raises(ValueError, match=r"v_proj.weight: rank 1 holds other values"):
        gather(ranks, sizes)[f"{LAYER}self_attn.v_proj.weight"].tensor()


def _qkv(rows, **sizes):
    return vllm_to_hf_tensors({f"{LAYER}self_attn.qkv_proj.weight": np.zeros((rows, 4), BF16)}, config("llama") | sizes)


def test_refusals():
    with pytest.raises(ValueError, match=r"Shape mismatch for model.layers.0.self_attn.qkv_proj.weight"):
        _qkv(193)
    with pytest.raises(ValueError, match="Shape mismatch"):
        _qkv(192, attn_output_gate=True)
    with pytest.raises(ValueError, match="'num_attention_heads' is None"):
        vllm_to_hf_tensors({"a.qkv_proj.weight": np.zeros((6, 1), BF16)})
    with pytest.raises(ValueError, match="no layout is known for 'input_scale'"):
        vllm_to_hf_tensors({"a.qkv_proj.input_scale": np.zeros(5, np.float32)}, config("llama"))
    with pytest.raises(ValueError, match="given twice"):
        vllm_to_hf_tensors(
            {"mlp.gate_up_proj.weight": np.zeros((4, 1), BF16), "mlp.up_proj.weight": np.zeros((2, 1), BF16)}
        )
    with pytest.raises(ValueError, match="has to divide"):
        shard(published("llama", num_key_value_heads=3), config("llama", num_key_value_heads=3), 2, 0)
    with pytest.raises(ValueError, match="cannot be shared out equally"):
        shard(published("llama"), config("llama"), 3, 0)
    model = published("llama")
    del model[f"{LAYER}self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"k_proj.weight is missing"):
        shard(model, config("llama"), 2, 0)
    ranks = [shard(published("llama"), config("llama"), 2, r) for r in range(2)]
    del ranks[1]["model.norm.weight"]
    with pytest.raises(ValueError, match=r"different parameters: model\.norm\.weight"):
        gather(ranks, config("llama"))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("tp", [1, 2])
def test_scales_of_whole_tensors_one_a_part_or_one_for_all(shape, tp):
    """Three projections, and two, each with one scale; those of single projections and of experts too."""
    attention, mlp, experts = (f"{LAYER}{n}." for n in ("self_attn", "mlp", "mlp.experts"))
    names = [f"{attention}{n}_proj.{s}" for n in "qkvo" for s in ("weight_scale", "input_scale")]
    names += [f"{mlp}{n}_proj.weight_scale" for n in ("gate", "up", "down")]
    names += [f"{experts}{e}.{n}_proj.weight_scale" for e in range(3) for n in ("gate", "up", "down")]
    model = {n: np.full(shape, i + 0.5, np.float32) for i, n in enumerate(names)}
    ranks = [shard(model, config("qwen3_moe"), tp, r) for r in range(tp)]
    for mine in ranks:
        assert mine[f"{attention}qkv_proj.weight_scale"].tolist() == [0.5, 2.5, 4.5]
        assert mine[f"{attention}qkv_proj.input_scale"].tolist() == [1.5, 3.5, 5.5]
        assert mine[f"{mlp}gate_up_proj.weight_scale"].tolist() == [8.5, 9.5]
        assert mine[f"{experts}w13_weight_scale"].tolist() == [[11.5, 12.5], [14.5, 15.5], [17.5, 18.5]]
        assert mine[f"{experts}w2_weight_scale"].tolist() == [13.5, 16.5, 19.5]
        assert mine[f"{attention}o_proj.weight_scale"].item() == 6.5
    back = gather(ranks, config("qwen3_moe"))
    assert {n: one.tensor().item() for n, one in back.items()} == {n: t.item() for n, t in model.items()}

    fused = {n: t for n, t in ranks[0].items() if "experts" not in n} | {
        f"{attention}qkv_proj.weight_scale": np.full(shape, 7, np.float32)
    }
    one = gather([fused] * tp, config("qwen3_moe"))
    assert [one[f"{attention}{n}_proj.weight_scale"].tensor().item() for n in "qkv"] == [7, 7, 7]
    same = {n: np.full(shape, 3, np.float32) for n in names}
    assert shard(same, config("qwen3_moe"), tp, 0, one_scale=True)[f"{attention}qkv_proj.weight_scale"].size == 1
    with pytest.raises(ValueError, match="quantise the weights anew"):
        shard(model, config("qwen3_moe"), tp, 0, one_scale=True)
    if tp == 2:
        ranks[1][f"{attention}qkv_proj.weight_scale"] = np.zeros(3, np.float32)
        with pytest.raises(ValueError, match="rank 1 holds other values"):
            gather(ranks, config("qwen3_moe"))[f"{attention}k_proj.weight_scale"].tensor()


def test_block_scales_where_a_part_is_no_multiple_of_the_block():
    """Every part keeps its own blocks: 24 rows have 2, of 16 and of 8, and 36 rows have 3."""
    sizes = config("deepseek_v3", moe_intermediate_size=24)
    model = published("deepseek_v3", moe_intermediate_size=24)
    mine = shard(model, sizes)
    a = f"{LAYER}self_attn."
    q, kv = (model[f"{a}{n}.weight_scale_inv"] for n in ("q_a_proj", "kv_a_proj_with_mqa"))
    assert (len(q), len(kv)) == (2, 3)
    assert same_bits(mine[f"{a}fused_qkv_a_proj.weight_scale_inv"], np.concatenate([q, kv]))
    experts = "model.layers.1.mlp.experts."
    gate, up = (model[f"{experts}2.{n}_proj.weight_scale_inv"] for n in ("gate", "up"))
    assert same_bits(mine[f"{experts}w13_weight_scale_inv"][2], np.concatenate([gate, up])) and len(gate) == 2
    back = gather([mine], sizes)
    assert all(same_bits(back[n].tensor(), t) for n, t in model.items()) and back.keys() == model.keys()


def test_ranks_must_not_cut_through_scale_blocks():
    """24 rows of an expert have 2 scales, for 16 and for 8 of them; halves of 12 would cut through the first."""
    sizes = config("deepseek_v3", moe_intermediate_size=24)
    model = published("deepseek_v3", moe_intermediate_size=24)
    only = {n: t for n, t in model.items() if ".experts." in n}
    with pytest.raises(ValueError, match="cut through a block of 16"):
        shard(only, sizes, 2, 0)


def test_configurations(tmp_path):
    class FromHub:
        def to_dict(self):
            return config("qwen3")

    (tmp_path / "config.json").write_text('{"num_attention_heads": 4, "hidden_size": 32}')
    assert ModelConfig.read(tmp_path).head_dim == ModelConfig.read(tmp_path / "config.json").head_dim == 8
    assert ModelConfig.read(FromHub()).kv_heads == 2
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        ModelConfig.read(tmp_path)
    with pytest.raises(TypeError, match="dictionary"):
        ModelConfig.read(3)
    assert weights_models.config("qwen3_5")["text_config"]["model_type"] == "qwen3_5_text"
