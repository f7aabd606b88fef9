"""Paddle's pickles at the last priority: refused unless allowed, and then read without running anything."""

import collections
import contextlib
import copyreg
import os
import pickle

import ml_dtypes
import numpy as np
import pytest

from kernbench.weight_sync import paddle_pickle
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.safetensors import SafetensorsError
from kernbench.weight_sync.snapshot import SnapshotError, load_snapshot, verify_snapshot

STATE = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 2), np.float16),
    "flag": np.array([True, False]),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "half": np.array([0x3F80, 0x7FC1], np.uint16),
}
EXPECTED = STATE | {"big": np.arange(3, dtype=np.int32), "half": STATE["half"].view(ml_dtypes.bfloat16)}


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    return folder


def put(folder, state, protocol=4, dump=pickle.dumps):
    path = folder / "model_state.tp0.1.pdparams"
    path.write_bytes(state if isinstance(state, bytes) else dump(state, protocol))
    return path


def load(tmp_path, **options):
    got = {}
    labels = load_snapshot(
        tmp_path, 0, 1, lambda state, _: got.update(state), tmp_path / "shared", framework="numpy", **options
    )
    assert labels == ["snapshot"]
    return got


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", [dict, collections.OrderedDict])
def test_a_state_dictionary_is_read(tmp_path, shared, protocol, container):
    put(shared, container(STATE) | {"StructuredToParameterName@@": {"w": "linear_0.w_0"}}, protocol)
    got = load(tmp_path, allow_pickle=True)
    assert {n: digest(t) for n, t in got.items()} == {
        n: digest(np.ascontiguousarray(t).reshape(t.shape)) for n, t in EXPECTED.items()
    }


class _Tensor:
    def __init__(self, array):
        self.array = array


@pytest.mark.parametrize(
    "reduce", [lambda t: (tuple, (("p0", t.array),)), lambda t: (eval, ("data", {"data": t.array}))]
)
def test_both_ways_in_which_paddle_reduces_a_tensor(tmp_path, shared, reduce, monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, _Tensor, reduce)
    put(shared, {"w": _Tensor(STATE["w"])})
    assert digest(load(tmp_path, allow_pickle=True)["w"]) == digest(STATE["w"])


def test_a_pickle_is_refused_unless_it_is_allowed(tmp_path, shared):
    put(shared, STATE)
    for refused in (lambda: load(tmp_path), lambda: verify_snapshot(tmp_path, 0, 1, shared)):
        with pytest.raises(SnapshotError, match="allow_pickle=True"):
            refused()


def test_a_pickle_has_no_place_at_the_other_priorities(tmp_path, shared):
    os.rename(put(shared, STATE), tmp_path / "model_state.tp0.1.pdparams")
    with pytest.raises(SnapshotError, match="only the file in the shared directory"):
        load(tmp_path, allow_pickle=True)


class _Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _attack(function, *args):
    return {"w": _Runs(function, *args)}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", ["system", "exec", "eval", "nested", "getattr", "class", "import"])
def test_nothing_of_the_files_choosing_runs(tmp_path, shared, function, protocol):
    mark = tmp_path / "ran"
    touch = f"open({str(mark)!r}, 'w')"
    state = {
        "system": _attack(os.system, f"touch {mark}"),
        "exec": _attack(exec, touch),
        "eval": _attack(eval, touch),
        "nested": _attack(eval, "data", {"data": 1, "__builtins__": {}}),
        "getattr": _attack(getattr, "", "format"),
        "class": {"w": collections.deque([1])},
        "import": _attack(__import__, "antigravity"),
    }[function]
    put(shared, state, protocol)
    with pytest.raises(SnapshotError, match="asks "):
        load(tmp_path, allow_pickle=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    "state",
    [
        [1, 2],
        {"w": 3},
        {"w": [np.zeros(2)]},
        {3: np.zeros(2)},
        {"w": np.array([object()])},
        {"w": np.array(["text"])},
        {"w": np.zeros(2, "M8[s]")},
        {"w": np.zeros(2, [("a", "i4")])},
    ],
)
def test_what_is_no_dictionary_of_numbers_is_refused(tmp_path, shared, state):
    put(shared, state)
    with pytest.raises(SnapshotError):
        load(tmp_path, allow_pickle=True)


def test_cut_and_damaged_pickles_are_refused_cleanly(tmp_path, shared):
    whole = pickle.dumps({"w": STATE["w"], "step": STATE["step"]}, 4)
    for at in range(2, len(whole)):
        put(shared, whole[:at])
        with pytest.raises((SnapshotError, SafetensorsError)):
            load(tmp_path, allow_pickle=True)
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        put(shared, bytes(damaged))
        with contextlib.suppress(SnapshotError, SafetensorsError):
            load(tmp_path, allow_pickle=True)


def test_slices_of_old_protocols_say_what_to_do(tmp_path, shared):
    put(shared, {"w@@.0": STATE["w"], "UnpackBigParamInfor@@": {}}, 2)
    with pytest.raises(NotImplementedError, match="protocol=4"):
        load(tmp_path, allow_pickle=True)


def test_safetensors_is_not_taken_for_a_pickle(tmp_path):
    path = tmp_path / "x"
    for start in (b"\x80\x04\0\0\0\0\0\0{", b"\x80\x02\0\0\0\0\0\0  {"):
        path.write_bytes(start)
        assert not paddle_pickle.is_pickle(path)
