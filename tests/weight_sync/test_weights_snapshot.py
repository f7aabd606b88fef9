"""Snapshots: the four priorities and their labels, refusals, atomic publishing, and memory of one part."""

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from weights_disks import LosingDisk, Stop, StoppingDisk, killing_disk

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.safetensors import SafetensorsError, write_safetensors
from kernbench.weight_sync.snapshot import (
    SnapshotError,
    apply_to,
    load_snapshot,
    recover_snapshot,
    snapshot_version,
    verify_snapshot,
    write_snapshot,
)


def foreign(path, **tensors):
    """A file as another program writes it."""
    safetensors.numpy.save_file(tensors, path)


def load(folder, rank=1, id=7, **options):
    """([(label, {name: array})], labels) of a load; the tensors are copied."""
    seen = []
    options.setdefault("shared_dir", folder / "shared")
    options.setdefault("framework", "numpy")
    labels = load_snapshot(
        folder,
        rank,
        id,
        lambda state, label: seen.append((label, {n: np.array(t) for n, t in state.items()})),
        **options,
    )
    assert labels == [label for label, _ in seen]
    return seen


def values(folder, **options):
    return {name: array.tolist() for _, state in load(folder, **options) for name, array in state.items()}


def one(value):
    return np.full(1, value, np.int32)


# Which files are read.


def test_parts_come_in_numeric_order_with_the_number_of_their_name(tmp_path):
    for n in range(1, 12):
        foreign(tmp_path / f"model_state.tp1.7.part{n}.pdparams", **{f"w{n}": one(n)})
    seen = load(tmp_path)
    assert [label for label, _ in seen] == [f"snapshot-part{n}" for n in range(1, 12)]
    assert [state[f"w{n}"][0] for n, (_, state) in enumerate(seen, 1)] == list(range(1, 12))


def test_parts_may_count_from_zero(tmp_path):
    for n in range(3):
        foreign(tmp_path / f"model_state.tp1.7.part{n}.pdparams", **{f"w{n}": one(n)})
    assert [label for label, _ in load(tmp_path)] == ["snapshot-part0", "snapshot-part1", "snapshot-part2"]


def test_each_priority_hides_those_below_it(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    files = [
        tmp_path / "model_state.tp1.7.part1.pdparams",
        tmp_path / "model_state.tp1.7.pdparams",
        tmp_path / "model_state.tp07.pdparams",
        shared / "model_state.tp1.7.pdparams",
    ]
    for n, path in enumerate(files):
        foreign(path, w=one(n))
    for n, path in enumerate(files):
        [(label, state)] = load(tmp_path)
        assert (label, state["w"].tolist()) == ("snapshot-part1" if n == 0 else "snapshot", [n])
        path.unlink()
    with pytest.raises(FileNotFoundError, match="No snapshot found"):
        load(tmp_path)


def test_rank_and_id_are_told_apart_by_the_dot(tmp_path):
    foreign(tmp_path / "model_state.tp1.234.pdparams", w=one(1))
    foreign(tmp_path / "model_state.tp12.34.pdparams", w=one(2))
    assert values(tmp_path, rank=1, id=234) == {"w": [1]}
    assert values(tmp_path, rank=12, id="34") == {"w": [2]}
    with pytest.raises(FileNotFoundError, match="No snapshot found"):
        load(tmp_path, rank=1, id=23)


def test_names_with_special_characters_are_taken_literally(tmp_path):
    folder = tmp_path / "a[0-9]*"
    folder.mkdir()
    foreign(folder / "model_state.tp0.x[1].part1.pdparams", w=one(3))
    assert values(folder, rank=0, id="x[1]") == {"w": [3]}


def test_a_missing_directory_is_no_snapshot(tmp_path):
    with pytest.raises(FileNotFoundError, match="No snapshot found"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("id", ["", "a/b", "7.part2", "7.manifest"])
def test_ids_that_cannot_name_files_are_refused(tmp_path, id):
    with pytest.raises(ValueError, match="snapshot id"):
        load(tmp_path, id=id)


# What is refused.


@pytest.mark.parametrize("numbers", [(1, 3), (2, 3), (0, 2), (1, 2, 10), (5,)])
def test_a_missing_part_is_an_error_before_anything_is_applied(tmp_path, numbers):
    for n in numbers:
        foreign(tmp_path / f"model_state.tp1.7.part{n}.pdparams", **{f"w{n}": one(n)})
    missing = next(n for n in range(0 if 0 in numbers else 1, 99) if n not in numbers)
    applied = []
    with pytest.raises(SnapshotError, match=f"part{missing}.pdparams is missing"):
        load_snapshot(tmp_path, 1, 7, lambda state, label: applied.append(label))
    assert not applied


def test_a_part_spelled_twice_is_an_error(tmp_path):
    for n in ("1", "2", "02"):
        foreign(tmp_path / f"model_state.tp1.7.part{n}.pdparams", **{f"w{n}": one(0)})
    with pytest.raises(SnapshotError, match=r"part 2 .* twice"):
        load(tmp_path)


def test_a_tensor_in_two_parts_means_mixed_snapshots(tmp_path):
    foreign(tmp_path / "model_state.tp1.7.part1.pdparams", a=one(1), b=one(1))
    foreign(tmp_path / "model_state.tp1.7.part2.pdparams", b=one(2))
    with pytest.raises(SnapshotError, match=r"tensor 'b' is in .*part1.* and in .*part2"):
        load(tmp_path)


def test_parts_of_two_written_snapshots_do_not_mix(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        write_snapshot(folder, 1, 7, {"a": one(1), "b": one(2)}, part_bytes=4)
        (folder / "model_state.tp1.7.manifest.json").unlink()
    os.replace(old / "model_state.tp1.7.part2.pdparams", new / "model_state.tp1.7.part2.pdparams")
    with pytest.raises(SnapshotError, match="two different snapshots"):
        load(new)


def test_a_foreign_part_does_not_mix_with_a_written_one(tmp_path):
    write_snapshot(tmp_path, 1, 7, {"a": one(1), "b": one(2)}, part_bytes=4)
    foreign(tmp_path / "model_state.tp1.7.part2.pdparams", b=one(9))
    with pytest.raises(SnapshotError):
        load(tmp_path)
    foreign(tmp_path / "model_state.tp1.7.part3.pdparams", c=one(9))
    with pytest.raises(SnapshotError, match=r"does not know .*part3"):
        load(tmp_path)


def test_the_last_part_is_missed_even_without_a_manifest(tmp_path):
    paths = write_snapshot(tmp_path, 1, 7, {name: one(1) for name in "abc"}, part_bytes=4)
    (tmp_path / "model_state.tp1.7.manifest.json").unlink()
    assert len(values(tmp_path)) == 3
    paths[-1].unlink()
    with pytest.raises(SnapshotError, match="last part is missing"):
        load(tmp_path)


def test_a_part_missed_by_the_manifest_names_it(tmp_path):
    paths = write_snapshot(tmp_path, 1, 7, {name: one(1) for name in "abc"}, part_bytes=4)
    paths[1].unlink()
    with pytest.raises(SnapshotError, match=r"part2.pdparams is missing"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x10", b"PK\x03\x04" + b"x" * 60, b"\x08" + b"\0" * 7 + b"not json"])
def test_files_of_another_kind_are_refused(tmp_path, content):
    (tmp_path / "model_state.tp1.7.pdparams").write_bytes(content)
    with pytest.raises(ValueError, match=r"model_state.tp1.7.pdparams"):
        load(tmp_path)


def test_a_flipped_bit_is_found_and_named(tmp_path):
    rng = np.random.default_rng(0)
    [path] = write_snapshot(tmp_path, 1, 7, {"a": rng.random(1000), "b": rng.random(1000)})
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match="'b' is damaged"):
        load(tmp_path)
    with pytest.raises(SnapshotError, match="'b' is damaged"):
        verify_snapshot(tmp_path, 1, 7)
    assert len(values(tmp_path, verify=False)) == 2


@pytest.mark.parametrize("cut", [1, 8, 500])
def test_a_truncated_file_is_refused(tmp_path, cut):
    foreign(tmp_path / "model_state.tp1.7.pdparams", w=np.zeros(1000, np.float32))
    path = tmp_path / "model_state.tp1.7.pdparams"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SafetensorsError, match="cut off"):
        load(tmp_path)


def test_a_file_replaced_while_loading_is_noticed(tmp_path):
    for n in (1, 2):
        foreign(tmp_path / f"model_state.tp1.7.part{n}.pdparams", **{f"w{n}": one(n)})

    def replace(state, label):
        foreign(tmp_path / "model_state.tp1.7.part2.pdparams", w2=one(2), w3=one(3))

    with pytest.raises(SnapshotError, match="replaced while"):
        load_snapshot(tmp_path, 1, 7, replace, framework="numpy")


# Applying.


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_apply_to_copies_bits_into_existing_parameters(tmp_path, framework, caplog):
    torch = pytest.importorskip("torch")
    bits = np.array([0x7FC1, 0xFF81, 0x3F80, 0x8001], np.uint16)
    weights = {
        "bf16": bits.view(ml_dtypes.bfloat16),
        "f8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).reshape(16, 16),
        "flag": np.array([True, False]),
        "step": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "unknown": one(5),
    }
    write_snapshot(tmp_path, 0, "a", weights, part_bytes=100)
    params = {
        "bf16": torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)),
        "f8": torch.zeros(16, 16, dtype=torch.float8_e4m3fn).t(),
        "flag": np.zeros(2, bool),
        "step": torch.zeros((), dtype=torch.int64),
        "empty": np.zeros((0, 4), np.float16),
    }
    where = params["bf16"].data_ptr()
    with caplog.at_level(logging.DEBUG, logger="kernbench"):
        load_snapshot(tmp_path, 0, "a", apply_to(params), framework=framework)
    assert "no parameter 'unknown'" in caplog.text
    assert params["bf16"].data_ptr() == where
    assert {name: digest(p) for name, p in params.items()} == {name: digest(weights[name]) for name in params}


def test_apply_to_reaches_tensors_of_a_context(tmp_path):
    import kernbench.topology
    from kernbench.runtime_api.context import RuntimeContext

    weight = np.random.default_rng(1).standard_normal((4, 6)).astype(ml_dtypes.bfloat16)
    write_snapshot(tmp_path, 0, 0, {"w": weight})
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=1)) as ctx:
        w = ctx.zeros(4, 6, dtype="bf16", name="w")
        load_snapshot(tmp_path, 0, 0, apply_to({"w": w}), framework="numpy")
        assert digest(w) == digest(weight)


def test_a_wrong_type_or_shape_changes_nothing():
    params = {"a": np.zeros(2, np.float32), "b": np.zeros((2, 3), np.float16)}
    apply = apply_to(params)
    good = np.ones(2, np.float32)
    with pytest.raises(TypeError, match="Type mismatch for b"):
        apply({"a": good, "b": np.ones((2, 3), np.float32)}, "snapshot")
    with pytest.raises(ValueError, match="Shape mismatch for b"):
        apply({"a": good, "b": np.ones((3, 2), np.float16)}, "snapshot")
    with pytest.raises(ValueError, match="No parameter found"):
        apply({}, "snapshot")
    assert not params["a"].any()


def test_a_file_without_tensors_has_no_parameter(tmp_path):
    foreign(tmp_path / "model_state.tp1.7.pdparams")
    with pytest.raises(ValueError, match="No parameter found"):
        load_snapshot(tmp_path, 1, 7, apply_to({}))


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_error_while_applying_says_which_file_it_was(tmp_path, prefetch):
    write_snapshot(tmp_path, 1, 7, {"a": one(1), "b": one(2), "c": one(3)}, part_bytes=4)

    def apply(state, label):
        if label == "snapshot-part2":
            raise KeyError("nope")

    with pytest.raises(KeyError) as caught:
        load_snapshot(tmp_path, 1, 7, apply, prefetch=prefetch)
    assert "snapshot-part2" in caught.value.__notes__[0]


# Writing.


def test_parts_are_cut_by_size_and_load_back(tmp_path):
    weights = {f"layer.{i}": np.full(n, i, np.float32) for i, n in enumerate([10, 10, 10, 100, 1, 1])}
    paths = write_snapshot(tmp_path, 2, 5, iter(weights.items()), part_bytes=80, version={"step": 12})
    seen = load(tmp_path, rank=2, id=5)
    assert [sorted(state) for _, state in seen] == [
        ["layer.0", "layer.1"],
        ["layer.2"],
        ["layer.3"],
        ["layer.4", "layer.5"],
    ]
    assert [p.name for p in paths] == [f"model_state.tp2.5.part{n}.pdparams" for n in (1, 2, 3, 4)]
    assert {name: digest(a) for _, s in seen for name, a in s.items()} == {n: digest(w) for n, w in weights.items()}
    assert snapshot_version(tmp_path, 2, 5) == {"step": 12}
    assert values(tmp_path, rank=2, id=5, prefetch=True) == values(tmp_path, rank=2, id=5)


@pytest.mark.parametrize("first,second", [(4, None), (None, 4), (4, 8)])
def test_a_new_snapshot_replaces_every_file_of_the_old(tmp_path, first, second):
    foreign(tmp_path / "model_state.tp1.71.pdparams", other=one(1))
    write_snapshot(tmp_path, 1, 7, {name: one(1) for name in "abcd"}, part_bytes=first)
    write_snapshot(tmp_path, 1, 7, {name: one(2) for name in "abcd"}, part_bytes=second)
    assert values(tmp_path) == {name: [2] for name in "abcd"}
    left = sorted(p.name for p in tmp_path.glob("model_state.tp1.7.*pdparams"))
    assert len(left) == (1 if second is None else 16 // second)
    assert (tmp_path / "model_state.tp1.71.pdparams").exists()
    assert not list(tmp_path.glob(".*.staged"))


def test_what_cannot_be_written_leaves_the_old_snapshot(tmp_path):
    write_snapshot(tmp_path, 1, 7, {"a": one(1)})

    def failing():
        yield "a", one(2)
        yield "b", one(2)
        raise RuntimeError("the gather failed")

    with pytest.raises(RuntimeError, match="gather failed"):
        write_snapshot(tmp_path, 1, 7, failing(), part_bytes=4)
    with pytest.raises(ValueError, match="appears twice"):
        write_snapshot(tmp_path, 1, 7, [("a", one(2)), ("a", one(3))])
    with pytest.raises(ValueError, match="No parameter found"):
        write_snapshot(tmp_path, 1, 7, {})
    with pytest.raises(ValueError, match="part_bytes"):
        write_snapshot(tmp_path, 1, 7, {"a": one(2)}, part_bytes=0)
    assert values(tmp_path) == {"a": [1]}
    assert not list(tmp_path.glob(".*.staged"))


def test_two_writers_do_not_meet(tmp_path):
    def second():
        with pytest.raises(RuntimeError, match="another process is writing"):
            write_snapshot(tmp_path, 1, 7, {"a": one(2)})
        yield "a", one(1)

    write_snapshot(tmp_path, 1, 7, second())
    assert values(tmp_path) == {"a": [1]}


def test_a_snapshot_in_the_shared_directory_is_found_with_its_manifest(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    write_snapshot(shared, 1, 7, {"a": one(4)})
    assert values(tmp_path) == {"a": [4]}


OLD, NEW = {name: [1] for name in "abcde"}, {name: [2] for name in "abc"}


def replacing(folder, first, disk):
    """Publish the new snapshot in place of the old one."""
    write_snapshot(folder, 1, 7, {name: one(1) for name in OLD}, part_bytes=first)
    write_snapshot(folder, 1, 7, {name: one(2) for name in NEW}, part_bytes=4, disk=disk)


def check_after_a_stop(folder, first):
    """One whole snapshot is there, before recovery and after; whether it is the new one."""
    found = values(folder)
    assert found in (OLD, NEW)
    recover_snapshot(folder, 1, 7)
    assert values(folder) == found
    assert not list(folder.glob(".*.staged")) and not list(folder.glob("*.tmp"))
    assert len(list(folder.glob("*.pdparams"))) == (3 if found == NEW else 1 if first is None else 5)
    return found == NEW


@pytest.mark.parametrize("first", [4, None])
def test_a_writer_killed_at_any_step_leaves_one_whole_snapshot(tmp_path, first, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)  # a killed process loses no writes, so spare the disk
    counting = StoppingDisk()
    (tmp_path / "count").mkdir()
    replacing(tmp_path / "count", first, counting)
    outcomes = []
    for step in range(counting.done):
        folder = tmp_path / str(step)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            try:
                replacing(folder, first, killing_disk(step, "middle"))
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        outcomes.append(check_after_a_stop(folder, first))
    assert outcomes == sorted(outcomes) and 5 < outcomes.index(True) < len(outcomes) - 4


@pytest.mark.parametrize("first", [4, None])
def test_power_loss_at_any_step_leaves_one_whole_snapshot(tmp_path, first, monkeypatch):
    """Any sectors and any of the last renames that were not synced are lost."""
    monkeypatch.setattr(os, "fsync", lambda number: None)  # the loss is simulated
    outcomes = []
    for step in range(999):
        folder = tmp_path / str(step)
        folder.mkdir()
        disk = LosingDisk(tmp_path / f"shadow-{step}", step, ("before", "middle")[step % 2])
        try:
            replacing(folder, first, disk)
            break
        except Stop:
            disk.power_loss(step)
        outcomes.append(check_after_a_stop(folder, first))
    assert True in outcomes and False in outcomes and len(outcomes) > 20


def test_a_disk_that_never_syncs_loses_snapshots(tmp_path):
    """What the test above finds harmless would not be without fsync."""
    wrong = 0
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk = LosingDisk(tmp_path / f"shadow-{seed}", 10**9)
        disk._do_sync = disk._do_sync_folder = lambda what: None
        replacing(folder, 4, disk)
        disk.power_loss(seed)
        try:
            wrong += values(folder) not in (OLD, NEW)
        except ValueError:
            wrong += 1
    assert wrong


# Memory.


def test_memory_while_loading_is_one_part(tmp_path):
    part = 8 << 20
    write_snapshot(tmp_path, 0, 0, ((f"w{i}", np.full(part // 4, i, np.uint8)) for i in range(24)), part_bytes=part)
    tops = {}
    for prefetch in (False, True):
        gc.collect()
        tracemalloc.start()
        seen = []

        def last_bytes(state, label, seen=seen):
            seen.extend(int(tensor[-1]) for tensor in state.values())

        labels = load_snapshot(tmp_path, 0, 0, last_bytes, framework="numpy", prefetch=prefetch)
        tops[prefetch] = tracemalloc.get_traced_memory()[1] / part
        tracemalloc.stop()
        assert (len(labels), sorted(seen)) == (6, list(range(24)))
    assert 1 <= tops[False] < 1.1
    assert tops[True] < 2.2


def test_a_cycle_of_the_callers_does_not_hold_a_part(tmp_path):
    part = 8 << 20
    write_snapshot(tmp_path, 0, 0, ((f"w{i}", np.full(part, i, np.uint8)) for i in range(4)), part_bytes=part)

    def circular(state, label):
        holder = [state]
        holder.append(holder)

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        load_snapshot(tmp_path, 0, 0, circular, framework="numpy")
        assert tracemalloc.get_traced_memory()[1] < 1.1 * part
    finally:
        tracemalloc.stop()
        gc.enable()


def test_resident_memory_while_loading_is_one_part(tmp_path):
    part = 48 << 20
    write_snapshot(tmp_path, 0, 0, ((f"w{i}", np.full(part // 2, i, np.uint8)) for i in range(12)), part_bytes=part)
    code = """
        import resource, sys
        import numpy as np
        from kernbench.weight_sync.snapshot import apply_to, load_snapshot
        params = {f"w{i}": np.ones(int(sys.argv[2]) // 2, np.uint8) for i in range(12)}
        for p in params.values():
            p.fill(9)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        before = peak()
        load_snapshot(sys.argv[1], 0, 0, apply_to(params), framework="numpy")
        assert [int(p[-1]) for p in params.values()] == list(range(12))
        print((peak() - before) / int(sys.argv[2]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(part)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.3


def test_writing_an_iterator_takes_a_part_at_a_time(tmp_path):
    part = 4 << 20
    gc.collect()
    tracemalloc.start()
    write_snapshot(tmp_path, 0, 0, ((f"w{i}", np.full(part // 4, i, np.uint8)) for i in range(24)), part_bytes=part)
    top = tracemalloc.get_traced_memory()[1] / part
    tracemalloc.stop()
    assert top < 1.6


def test_unaligned_tensors_of_foreign_writers_take_no_second_copy(tmp_path):
    torch = pytest.importorskip("torch")
    header = (
        b'{"flag":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},'
        b'"w":{"dtype":"F32","shape":[1048576],"data_offsets":[1,4194305]}}'
    )
    body = b"\x01" + np.arange(1 << 20, dtype=np.float32).tobytes()
    (tmp_path / "model_state.tp0.0.pdparams").write_bytes(len(header).to_bytes(8, "little") + header + body)
    kept = {}
    tracemalloc.start()
    load_snapshot(tmp_path, 0, 0, lambda state, _: kept.update(state), framework="torch")
    assert tracemalloc.get_traced_memory()[1] < 1.1 * len(body)
    tracemalloc.stop()
    assert torch.equal(kept["w"], torch.arange(1 << 20, dtype=torch.float32))


def test_written_files_are_read_by_the_safetensors_library(tmp_path):
    weights = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(5, np.int8)}
    write_safetensors(tmp_path / "x.safetensors", weights, {"k": "v"})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert {n: digest(w) for n, w in read.items()} == {n: digest(w) for n, w in weights.items()}
