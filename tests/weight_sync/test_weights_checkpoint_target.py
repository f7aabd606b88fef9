"""A checkpoint's files as what a server updates, without the server: what arrives is all there, or nothing changes."""

import numpy as np
import pytest

from kernbench.weight_sync import sidecar
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.checkpoint_sync import verify
from kernbench.weight_sync.delta_apply import checkpoint_tensors
from kernbench.weight_sync.safetensors import write_safetensors
from kernbench.weight_sync.transfer.checkpoint_target import CheckpointTarget

OLD = {"model.a": np.zeros(4096, np.float32), "model.b": np.zeros(3, np.float32)}
NEW = {"model.a": np.ones(4096, np.float32), "model.b": np.full(3, 2, np.float32)}


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecar, "_TICK_NS", 0)
    write_safetensors(tmp_path / "model.safetensors", OLD)
    return CheckpointTarget(tmp_path)


def held(target):
    return {name: tensor.to("numpy") for name, tensor in checkpoint_tensors(target.folder).items()}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_an_update_is_there_after_its_finish_and_not_before(target):
    assert target.start() == 1
    target.load([("a", NEW["model.a"])])  # as it is called below another prefix
    target.load([("model.b", NEW["model.b"])])
    assert same(held(target), OLD)
    assert target.finish({"a": digest(NEW["model.a"])}) == 1 == target.version
    assert same(held(target), NEW) and verify(target.folder).ok


@pytest.mark.parametrize("second", [OLD, NEW], ids=["old", "other"])
def test_one_tensor_under_two_names_is_refused(target, second):
    target.start()
    target.load([("model.a", np.full(4096, 7, np.float32))])
    with pytest.raises(ValueError, match=r"'model\.a' is given twice in one update: as 'model\.a' and as 'a'"):
        target.load([("a", second["model.a"])])
    assert target.updating is None and target.version == 0 and same(held(target), OLD)


def test_what_is_not_whole_changes_nothing(target):
    target.start()
    target.load([("model.a", NEW["model.a"])])
    with pytest.raises(ValueError, match=r"lacks 1 of 2 tensors, the first is 'model\.b'"):
        target.finish()
    target.start(base_version=0)
    target.load([("model.a", NEW["model.a"])])
    with pytest.raises(ValueError, match=r"'model\.b' has not arrived"):
        target.finish({name: digest(weight) for name, weight in NEW.items()})
    target.start()
    target.load(NEW.items())
    target.abort()
    assert target.version == 0 and same(held(target), OLD)
    with pytest.raises(RuntimeError, match="No weight update is active"):
        target.load(NEW.items())
