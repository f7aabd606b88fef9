"""Syncs on a simulated machine: sizes, bounds, values, and that time is the same without values."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weights_models import config, published

import kernbench.topology
from kernbench.weight_sync.safetensors import write_safetensors
from kernbench.weight_sync.simulate import (
    ENGINES,
    LLAMA_3_1_8B,
    Model,
    Roles,
    Settings,
    device_bound,
    host_bound,
    simulate,
)
from kernbench.weight_sync.simulate.sync import Sync
from kernbench.weight_sync.transfer.plan import Division, in_chunks, in_rounds, reshard_plan, tensor_parallel

SMALL = Model.of_config(config("llama", num_hidden_layers=1))
ROLES = Roles(2, (2, 1))
SETTINGS = Settings(buffer_bytes=20_000, chunk_bytes=3000, ahead=3)


@cache
def machine(preset="tiny", sips=5, *overrides):
    return kernbench.topology.load(preset, list(overrides), sips=sips)


def test_a_models_tensors_follow_from_its_configuration(tmp_path):
    model = Model.of_config(LLAMA_3_1_8B)
    assert (len(model.shapes), model.nbytes) == (291, 2 * 8_030_261_248)  # as published
    for family in ("llama", "qwen2", "qwen3"):
        tensors = published(family)
        write_safetensors(tmp_path / "model.safetensors", tensors)
        (tmp_path / "config.json").write_text(json.dumps(config(family)))
        read = Model.of_checkpoint(tmp_path)
        made = Model.of_config(config(family))
        rest = {name: shape for name, shape in made.shapes.items() if "post_attention" not in name}
        assert rest == read.shapes == {name: tensor.shape for name, tensor in tensors.items()}
        assert made.dtype == read.dtype == "bfloat16"
    with pytest.raises(NotImplementedError, match=r"'gpt_oss' do not follow .* give the folder"):
        Model.of_config(config("gpt_oss"))


def test_a_smaller_model_keeps_the_proportions():
    model = Model.of_config(LLAMA_3_1_8B)
    small = model.within(64 << 20)
    assert small.nbytes <= 64 << 20 and small.config["num_attention_heads"] == 32
    assert small.shapes["model.layers.3.mlp.up_proj.weight"] == (14336 // 8, 4096 // 8)
    assert SMALL.within(1 << 30) is SMALL and SMALL.within(1) is None


@pytest.mark.parametrize("engine", ENGINES)
def test_values_arrive_and_time_is_the_same_without_them(engine):
    with_values = simulate(engine, SMALL, machine(), ROLES, SETTINGS, enable_data=True)
    without = simulate(engine, SMALL, machine(), ROLES, SETTINGS)
    assert with_values.correct is True and without.correct is None
    for name in ("time_ps", "transfer_ps", "commit_ps", "busiest", "worker_peak", "trainer_peak", "worker_bytes"):
        assert getattr(with_values, name) == getattr(without, name), name
    assert without.time_ps * 1e-12 > without.bound.seconds
    assert without.worker_peak > without.worker_held > 0 and without.time_ps >= without.transfer_ps > without.commit_ps
    assert (with_values.host_bytes > 0) == (engine in ("ipc", "http", "disk"))


def test_wrong_values_are_noticed(monkeypatch):
    right = Sync._shard

    def with_one_wrong_byte(self, sharding, name, number):
        made = right(self, sharding, name, number)
        if (name, number) == ("model.layers.0.mlp.down_proj.weight", 1):
            byte = made.view(-1).view("u8")[-1:]
            byte.fill_(byte.item() ^ 1)
        return made

    monkeypatch.setattr(Sync, "_shard", with_one_wrong_byte)
    assert simulate("p2p", SMALL, machine(), ROLES, SETTINGS, enable_data=True).correct is False


def test_bounds_by_hand():
    shape, itemsize = (64, 1000), 2
    whole = 64 * 1000 * itemsize

    def divisions(src, dst):
        return [Division("w", itemsize, tensor_parallel(shape, 0, src), tensor_parallel(shape, 0, dst))]

    switch, ring = machine("ahbm-8sip", 8), machine("ahbm-4sip", 8)
    case = divisions([[0, 1, 2, 3]], [[4, 5], [6, 7]])
    bound = device_bound(case, switch)
    assert bound.seconds == pytest.approx(whole / 2 / 400e9) and "what worker 4 needs" in bound.where
    bound = device_bound(case, ring)  # all of it passes the two links between the halves of the ring
    assert bound.seconds == pytest.approx(whole / 400e9) and "the cut" in bound.where
    bound = device_bound(divisions([[0]], [[4, 5, 6, 7]]), switch)
    assert bound.seconds == pytest.approx(whole / 400e9) and "only trainer 0" in bound.where
    bound = host_bound(case, switch)
    assert bound.seconds == pytest.approx(whole / 2 / 63e9) and "host link" in bound.where


def test_p2p_comes_near_the_bound():
    """Two layers of Llama-3.1-8B and a small vocabulary: so few bytes that latencies still count."""
    model = Model.of_config(LLAMA_3_1_8B | {"num_hidden_layers": 2, "vocab_size": 8064})
    done = simulate("p2p", model, machine("ahbm-8sip", 8), Roles(4, (2, 2)), Settings())
    assert 1 < done.transfer_ps * 1e-12 / done.bound.seconds < 1.2
    assert done.busiest[0].endswith("switch") or done.busiest[0].startswith("switch")


@given(
    st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from([0, 1]), st.integers(1, 500)
)
def test_rounds_keep_ranks_apart_and_chunks_cover_the_moves(trainers, workers, axis, limit):
    shape, roles = (60, 60), Roles(trainers, tuple(workers))
    made = Division("w", 2, tensor_parallel(shape, 0, roles.src_groups), tensor_parallel(shape, axis, roles.dst_groups))
    plan = reshard_plan([made])
    ordered = in_rounds(plan)
    assert sorted(map(str, ordered)) == sorted(map(str, plan))
    first = ordered[: min(trainers, sum(workers))] if axis == 1 else ordered[:1]
    assert len({m.src for m in first}) == len({m.dst for m in first}) == len(first), "everyone has its own partner"
    chunks = in_chunks(ordered, limit)
    assert sum(m.nbytes for m in chunks) == sum(m.nbytes for m in plan)
    cells = Counter()
    for move in chunks:
        assert move.nbytes <= max(limit, 2 * 60) + 2 * 60 or move.dst_slice[0].stop - move.dst_slice[0].start == 1
        rows, columns = (range(s.start, s.stop) for s in move.dst_slice)
        cells.update((move.dst, r, c) for r in rows for c in columns)
        assert move.nbytes == 2 * len(rows) * len(columns)
        assert [s.stop - s.start for s in move.src_slice] == [len(rows), len(columns)]
    assert set(cells.values()) == {1}


def test_mistakes():
    with pytest.raises(ValueError, match="no engine 'nccl': choose among p2p"):
        simulate("nccl", SMALL, machine(), ROLES, SETTINGS)
    with pytest.raises(ValueError, match="tp2 to tp4x1 needs 6 SIPs, the machine has 5"):
        simulate("p2p", SMALL, machine(), Roles(2, (4,)), SETTINGS)
    assert np.array_equal(Roles(1, (2, 2)).dst_groups, [[1, 2], [3, 4]])


def test_the_pages_program_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "weight-simulate.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(program, "weight-simulate.md", "exec"), {})
    assert "what worker 4 needs, over its links" in capsys.readouterr().out
