"""The disk engine: snapshots of a folder, their versions, and updates that hold only what has changed."""

import ml_dtypes
import numpy as np
import pytest
from weights_cases import NAMES, SHAPES, weight

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory, WeightUpdater, changed_weights

Engine = WeightTransferEngineFactory.engine_class("disk")


def weights(seed):
    kinds = [n for n in NAMES if n != "complex128"]  # which safetensors does not have
    return {f"{n}.{i}": weight(n, s, seed=seed) for n in kinds for i, s in enumerate(SHAPES)}


def digests(tensors):
    return {name: digest(tensor) for name, tensor in tensors.items()}


def updater(params):
    made = WeightUpdater(WeightTransferEngineFactory.create_engine("disk", None, None), ServedWeights(params))
    made.init_weight_transfer_engine({"framework": "numpy"})
    return made


@pytest.mark.parametrize("part_bytes, prefetch", [(None, False), (700, False), (700, True)])
def test_a_session_over_a_folder(tmp_path, part_bytes, prefetch):
    new = weights(1)
    sent = Engine.trainer_send_weights(
        iter(new.items()), {"path": str(tmp_path / "sync"), "version": 4, "part_bytes": part_bytes}
    )
    one = updater({name: np.array(t) for name, t in weights(0).items()})
    one.start_weight_update(4)
    one.update_weights(sent | {"prefetch": prefetch})
    assert one.served.digests() == digests(weights(0))
    one.finish_weight_update(digests(new))
    assert one.served.digests() == digests(new) and one.served.version == 4


def test_an_update_of_what_has_changed(tmp_path):
    old = {name: weight("bfloat16", (64,), seed=i) for i, name in enumerate("abcdef")}
    new = old | {"c": weight("bfloat16", (64,), seed=99)}
    one = updater({name: np.array(t) for name, t in old.items()})
    sent = Engine.trainer_send_weights(
        changed_weights(new.items(), one.served.digests()), {"path": str(tmp_path), "version": 1}
    )
    one.start_weight_update(1, base_version=0)
    one.update_weights(sent)
    one.finish_weight_update()
    assert one.served.digests() == digests(new)


def test_what_is_wrong_leaves_the_old_version(tmp_path):
    one = updater({"a": np.zeros(100, np.float32)})
    sent = Engine.trainer_send_weights(iter([("a", np.ones(100, np.float32))]), {"path": str(tmp_path), "version": 2})
    file = next(tmp_path.glob("*.pdparams"))
    for info, error, says in (
        (sent | {"path": str(tmp_path / "none")}, FileNotFoundError, "no manifest"),
        (sent | {"path": str(tmp_path / "none"), "version": None}, FileNotFoundError, "No snapshot found"),
        (sent | {"version": 3}, ValueError, "holds version 2, expected 3"),
        (sent | {"path": "relative"}, ValueError, "Invalid update_info for Disk.*absolute"),
        (sent, ValueError, "damaged"),
    ):
        if says == "damaged":
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        one.start_weight_update()
        with pytest.raises(error, match=says):
            one.update_weights(info)
        assert one.served.updating is None and not one.served.params["a"].any()


def test_receiving_before_init_is_refused(tmp_path):
    one = Engine(None, None)
    one.shutdown()
    with pytest.raises(RuntimeError, match="not initialized"):
        one.receive_weights(one.parse_update_info({"path": str(tmp_path)}), print)


def trained(seed, before):
    """A step of bfloat16 weights."""
    rng = np.random.default_rng(seed)
    return {n: w + 1e-5 * rng.standard_normal(w.shape).astype(np.float32) for n, w in before.items()}


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_deltas_from_one_snapshot(tmp_path, framework):
    exact = {f"w{i}": np.random.default_rng(i).standard_normal((64, 512)).astype(np.float32) for i in range(4)}
    nbytes = sum(w.nbytes // 2 for w in exact.values())
    one = WeightUpdater(
        WeightTransferEngineFactory.create_engine("disk", None, None),
        ServedWeights({n: np.zeros(w.shape, ml_dtypes.bfloat16) for n, w in exact.items()}),
    )
    one.init_weight_transfer_engine({"framework": framework})
    sizes = {}
    for version in (1, 2, 3, 5):
        new = {n: w.astype(ml_dtypes.bfloat16) for n, w in exact.items()}
        args = {"path": str(tmp_path), "version": version, "delta": True, "part_bytes": nbytes // 3}
        sent = Engine.trainer_send_weights(iter(new.items()), args)
        assert sent.get("base_version") == (None if version == 1 else 1)
        sizes = {p.name: p.stat().st_size for p in tmp_path.glob("*.kbdelta")}
        one.start_weight_update(version)
        one.update_weights(sent | {"prefetch": version == 3})
        one.finish_weight_update(digests(new))
        assert one.served.digests() == digests(new) and one.served.version == version
        exact = trained(version, exact)
    assert len(sizes) == 3 and 0 < max(sizes.values()) < 0.05 * nbytes
    with pytest.raises(ValueError, match="version 5 does not rise above 5"):
        Engine.trainer_send_weights(iter(new.items()), args)
    other = {n: np.random.default_rng(9).standard_normal(w.shape).astype(ml_dtypes.bfloat16) for n, w in exact.items()}
    sent = [
        Engine.trainer_send_weights(iter(w.items()), args | {"version": 6 + i}) for i, w in enumerate((other, other))
    ]
    assert [s.get("base_version") for s in sent] == [1, None]  # a delta so long that the next is a snapshot
    assert not list(tmp_path.glob("*.kbdelta"))
    one.start_weight_update(7)
    one.update_weights(sent[1])
    one.finish_weight_update(digests(other))


def test_a_delta_that_does_not_fit_leaves_the_old_version(tmp_path):
    old = {"a": np.zeros(1000, np.float32), "b": np.ones(1000, np.float32)}
    new = old | {"a": np.ones(1000, np.float32)}
    args = {"path": str(tmp_path), "delta": True, "version": 1}
    Engine.trainer_send_weights(iter(old.items()), args)
    sent = Engine.trainer_send_weights(iter(new.items()), args | {"version": 2})
    (file,) = tmp_path.glob("*.kbdelta")
    whole = file.read_bytes()
    one = updater({n: np.array(t) for n, t in old.items()})

    def fails(info, error, says):
        one.start_weight_update(9)
        with pytest.raises(error, match=says):
            one.update_weights(info)
        assert one.served.digests() == digests(old) and one.served.version == 0

    file.write_bytes(whole[: len(whole) // 2])
    fails(sent, ValueError, "cut off")
    file.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    fails(sent, ValueError, "checksum")
    file.write_bytes(whole)
    fails(sent | {"version": 3}, FileNotFoundError, "kbdelta")
    fails(sent | {"base_version": 4}, ValueError, "holds version 1, expected 4")
    fails(sent | {"version": None}, ValueError, "base_version is given and version is not")
    with pytest.raises(ValueError, match="deltas lead from one integer version"):
        Engine.trainer_send_weights(iter(new.items()), {"path": str(tmp_path), "delta": True})
    one.start_weight_update(2)
    one.update_weights(sent)
    assert one.finish_weight_update(digests(new)) == 2
