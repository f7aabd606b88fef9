"""The disk engine: snapshots of a folder, their versions, and updates that hold only what has changed."""

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
