"""Deltas between checkpoints: made, applied, refused; wholly old or wholly new whenever the machine stops."""

import io
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from test_weights_checkpoint import assert_same, read_checkpoint, write_checkpoint
from weights_cases import NAMES, weight
from weights_disks import LosingDisk, Stop, StoppingDisk

from kernbench.weight_sync import blocksync, delta, records, sidecar
from kernbench.weight_sync.arrays import TensorBytes, digest, to_bytes
from kernbench.weight_sync.checkpoint_sync import read_safetensors_index, recover, verify
from kernbench.weight_sync.delta import DeltaError, WrongBaseError, write_delta
from kernbench.weight_sync.delta_apply import apply_delta, checkpoint_tensors, version_of
from kernbench.weight_sync.delta_read import DeltaFile, DeltaReader
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.encodings import CHOICES, PIECE
from kernbench.weight_sync.safetensors import write_safetensors


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(sidecar, "_TICK_NS", 0)
    monkeypatch.setattr(os, "fsync", lambda number: None)


def made(old, new, *versions, **options):
    file = io.BytesIO()
    costs = write_delta(file, old, new, *versions, **options)
    return file.getvalue(), costs


def scattered(model, seed=0):
    """Every tenth element of every second tensor changes."""
    rng = np.random.default_rng(seed)
    new = {n: t.copy() for n, t in model.items()}
    for name in list(new)[::2]:
        bits = new[name].reshape(-1).view(np.uint8)
        bits[rng.choice(bits.size, bits.size // 10 + 1, replace=False)] ^= 1
    return new


@pytest.fixture
def two(tmp_path):
    """(old model, new model, folder of the old, delta)."""
    (tmp_path / "old").mkdir()
    model = write_checkpoint(tmp_path / "old", "deepseek_v3")
    new = scattered(model)
    return model, new, tmp_path / "old", made(model, new)[0]


@pytest.mark.parametrize("encoding", CHOICES)
def test_any_type_in_any_encoding(tmp_path, encoding):
    old = {f"{n}{len(shape)}": weight(n, shape) for n in NAMES if n != "bool" for shape in [(), (0, 3), (7, 33)]}
    new = {n: weight(t.dtype.name, t.shape, seed=1) if i % 3 else t for i, (n, t) in enumerate(old.items())}
    new["big"] = torch.arange(3 * PIECE // 4, dtype=torch.int16)
    old["big"] = new["big"].clone()
    old["big"][[0, PIECE // 2, -1]] += 1  # in the first, the second and the last piece
    data, costs = made(old, new, 3, 5, encoding=encoding)
    assert costs.changed_tensors == sum(digest(old[n]) != digest(new[n]) for n in old) and costs.tensors == len(old)
    (tmp_path / "d").write_bytes(data)
    with DeltaFile(tmp_path / "d") as file:
        assert (file.base_version, file.new_version) == (3, 5)
        assert file.names == {n for n in old if digest(old[n]) != digest(new[n])}
        for name, tensor in old.items():
            raw = to_bytes(tensor)
            data = raw.data.copy()
            file.apply_to(name, raw.kind, raw.shape, data)
            assert digest(TensorBytes(raw.kind, raw.shape, data).to("numpy")) == digest(new[name]), name


@pytest.mark.parametrize("publish", [False, True])
def test_a_checkpoint_goes_from_version_to_version(tmp_path, publish):
    folder, copy = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    models = [write_checkpoint(folder, "qwen3_moe")]
    files = read_safetensors_index(folder)
    shutil.copytree(folder, copy)
    for version in (1, 2, 3):
        models.append(scattered(models[-1], version))
        wanted = {f: {n: models[-1][n] for n in files if files[n] == f} for f in set(files.values())}
        done = blocksync.sync_files(folder, wanted, delta=tmp_path / f"{version}.kbdelta")
        assert 0 < sum(f.journaled for f in done) < 0.4 * sum(f.changed for f in done)
        again = blocksync.sync_files(folder, wanted, delta=tmp_path / "nothing")
        assert not any(f.changed for f in again) and not (tmp_path / "nothing").exists()
    with pytest.raises(WrongBaseError, match=r"tensors of .* are not those of its base|made for another base"):
        apply_delta(copy, tmp_path / "2.kbdelta")
    assert_same(copy, models[0])
    for version in (1, 2, 3):
        checked = apply_delta(copy, tmp_path / f"{version}.kbdelta", publish=publish, dry_run=True)
        assert version_of(copy) == version - 1 and checked.version == version
        done = apply_delta(copy, tmp_path / f"{version}.kbdelta", publish=publish)
        assert done.summary() == checked.summary()
        assert_same(copy, models[version])
        assert verify(copy).ok and verify(copy).version == version
    with pytest.raises(WrongBaseError, match=r"it leads from version 2 to 3, .* is version 3"):
        apply_delta(copy, tmp_path / "3.kbdelta")


def test_sync_and_diff_write_the_same_delta(two, tmp_path):
    _, new, folder, data = two
    files = read_safetensors_index(folder)
    wanted = {f: {n: new[n] for n in files if files[n] == f} for f in set(files.values())}
    shutil.copytree(folder, tmp_path / "new")
    blocksync.sync_files(tmp_path / "new", wanted, delta=tmp_path / "d")
    ends = [list(_records(d))[-1][1] for d in ((tmp_path / "d").read_bytes(), data)]
    assert ends[0] == ends[1]  # the fingerprints
    both = checkpoint_tensors(folder), checkpoint_tensors(tmp_path / "new")
    assert _records(made(*both)[0])[-1] == _records(data)[-1]


def test_another_base_is_refused_and_nothing_is_touched(two):
    model, new, folder, data = two
    names = [n for n in model if digest(model[n]) != digest(new[n])]
    other = next(n for n in model if n not in names)
    for changed, match in ((names[0], f"made for another base: {names[0]}"), (other, "that the delta does not change")):
        wrong = {n: t.copy() for n, t in model.items()}
        wrong[changed].reshape(-1).view(np.uint8)[-1] ^= 1
        files = read_safetensors_index(folder)
        for file in set(files.values()):
            write_safetensors(folder / file, {n: wrong[n] for n in files if files[n] == file})
        with pytest.raises(WrongBaseError, match=match):
            apply_delta(folder, io.BytesIO(data))
        assert_same(folder, wrong)


def _records(data):
    return list(records.read_records(io.BytesIO(data[8:]), "", 1 << 30, ValueError))


def _join(found):
    return delta.MAGIC + b"".join(records.head(kind, body) + bytes(body) for kind, body in found)


def test_damage_is_found_and_changes_nothing(two):
    _, new, folder, data = two
    found = _records(data)
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in (0, 7, 8, 20, len(data) // 2, len(data) - 1)] + [data + b"x", data + data]
    damaged += [data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] for at in rng.integers(0, len(data), 60)]
    tensor = next(i for i, (kind, _) in enumerate(found) if kind == b"T")
    damaged += [
        _join(found[:tensor] + found[tensor + 3 :]),  # a whole tensor lost
        _join(found[:-1]),
        _join(found[:1] + found[-1:]),
        _join([*found[:tensor], found[tensor + 1], found[tensor], *found[tensor + 2 :]]),
        _join([*found[: tensor + 2], found[tensor + 1], *found[tensor + 2 :]]),  # a piece twice
        _join([(b"H", b'{"format": 2, "base_version": 0, "new_version": 1}'), *found[1:]]),
        _join([*found[:tensor], (b"T", b'{"name": "x", "dtype": "F32", "shape": [-1]}'), *found[tensor + 1 :]]),
        _join([*found[:tensor], (b"T", b"[1]"), *found[tensor + 1 :]]),
    ]
    before = {p: p.read_bytes() for p in folder.glob("*.safetensors")}
    for wrong in damaged:
        with pytest.raises(DeltaError):
            apply_delta(folder, io.BytesIO(wrong))
    assert before == {p: p.read_bytes() for p in before} and not list((folder / ".kernbench").glob("*.tmp"))
    huge = delta.MAGIC + records.HEAD.pack(1 << 60, ord("H"), bytes(16))
    with pytest.raises(DeltaError, match="are allowed"):
        DeltaReader(io.BytesIO(huge))
    apply_delta(folder, io.BytesIO(data))
    assert_same(folder, new)


@pytest.mark.parametrize("publish", [False, True], ids=["in place", "publish"])
def test_power_loss_at_every_step_of_applying(two, tmp_path, publish):
    model, new, folder, data = two
    outcomes = []
    for step in range(publish, 999, 2):
        copy = tmp_path / str(step)
        shutil.copytree(folder, copy)
        disk = LosingDisk(tmp_path / f"shadow-{step}", step, ("before", "middle")[step // 2 % 2])
        try:
            apply_delta(copy, io.BytesIO(data), publish=publish, disk=disk)
            break
        except Stop:
            disk.power_loss(step)
        recover(copy)
        is_new = digest(read_checkpoint(copy)["lm_head.weight"]) == digest(new["lm_head.weight"])
        assert_same(copy, new if is_new else model)
        assert version_of(copy) == is_new and (not is_new or verify(copy).ok)
        outcomes.append(is_new)
        shutil.rmtree(copy)
    assert True in outcomes and False in outcomes


def test_a_crash_between_commit_and_end_rolls_forward_twice(two):
    """The journal lists elements: doing them again, or over half written ones, is harmless."""
    model, new, folder, data = two
    for at in range(100):
        try:
            apply_delta(folder, io.BytesIO(data), disk=StoppingDisk(at, "middle"))
            break
        except Stop:
            if not (folder / ".kernbench" / "journal").exists():
                continue
            kept = (folder / ".kernbench" / "journal").read_bytes()
            assert len(kept) < 0.5 * sum(t.nbytes for t in model.values())
            for _ in range(2):
                (folder / ".kernbench" / "journal").write_bytes(kept)
                recover(folder)
                assert_same(folder, new)
            break
    assert verify(folder).version == 1


def test_memory_is_a_few_pieces_whatever_the_tensor(tmp_path):
    size = 24 * PIECE
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", {"w": np.zeros(size // 2, np.uint16)})
    live = np.memmap(tmp_path / "a" / "model.safetensors", np.uint16, "r+")[-(size // 2) :]
    live[::37] += 1
    live.flush()
    tracemalloc.start()
    with open(tmp_path / "d", "wb") as file:
        costs = write_delta(file, checkpoint_tensors(tmp_path / "b"), checkpoint_tensors(tmp_path / "a"))
    apply_delta(tmp_path / "b", tmp_path / "d")
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 10 * PIECE < size / 2 and costs.written < 0.05 * size
    assert verify(tmp_path / "b").version == 1


def test_positions_beyond_four_gibibytes():
    """Offsets are 64 bits wide; the positions in a piece need not be."""
    size = (4 << 30) + 3 * PIECE
    file = io.BytesIO()
    writer = delta.DeltaWriter(file, 0, 1)
    kind = wire_type("uint8")
    writer.begin("w", kind, (size,))
    old = np.zeros(PIECE, np.uint8)
    new = old.copy()
    new[[5, -1]] = 9
    writer.piece((4 << 30) + PIECE, delta.Change(old, new, 1))
    writer.end("x", "y")
    writer.finish({"w": "x"}, {"w": "y"})
    (tensor,) = [[(p.offset, p) for p in t.patches()] for t in DeltaReader(io.BytesIO(file.getvalue()))]
    ((offset, patch),) = tensor
    patch.apply_to(old, kind, "w")
    assert offset == (4 << 30) + PIECE and np.array_equal(old, new) and len(file.getvalue()) < 500


def test_what_no_writer_writes_is_refused(tmp_path):
    old = {"a": np.zeros(4, np.float32)}
    write_safetensors(tmp_path / "model.safetensors", old)
    before = (tmp_path / "model.safetensors").read_bytes()
    data = made(old, {"a": np.ones(4, np.float32)})[0]
    start = len(delta.MAGIC)
    parts = list(records.read_records(io.BytesIO(data[start:]), "delta", delta.LIMIT, DeltaError))

    def written(parts):
        return io.BytesIO(delta.MAGIC + b"".join(records.head(kind, body) + body for kind, body in parts))

    assert written(parts).getvalue() == data
    header, tensor, (end, body) = parts[0], parts[1:-1], parts[-1]
    twice = [header, *tensor, *tensor, (end, body.replace(b'"records":4', b'"records":7'))]
    with pytest.raises(DeltaError, match="a is there twice"):
        apply_delta(tmp_path, written(twice))
    back = (header[0], header[1].replace(b'"new_version":1', b'"new_version":0'))
    with pytest.raises(DeltaError, match="from version 0 to 0"):
        apply_delta(tmp_path, written([back, *parts[1:]]))
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_refusals(tmp_path):
    old = {"a": np.zeros(4, np.float32), "b": np.zeros(2)}
    with pytest.raises(ValueError, match="b is not once in either version"):
        made(old, {"a": old["a"]})
    with pytest.raises(ValueError, match="a is not once in either version"):
        made(old, iter([("a", old["a"]), ("a", old["a"])]))
    with pytest.raises(TypeError, match="Type mismatch for a"):
        made(old, old | {"a": np.zeros(4, np.int32)})
    with pytest.raises(ValueError, match="Shape mismatch for a"):
        made(old, old | {"a": np.zeros((2, 2), np.float32)})
    with pytest.raises(ValueError, match="leads to a later version"):
        made(old, old, 2, 2)
    write_safetensors(tmp_path / "model.safetensors", {"b": old["b"]})
    with pytest.raises(WrongBaseError, match="made for another model: a is not in"):
        apply_delta(tmp_path, io.BytesIO(made(old, old | {"a": np.ones(4, np.float32)})[0]))
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        apply_delta(tmp_path / "none", io.BytesIO(made(old, old)[0]))


def test_costs_are_counted(two):
    model, new, _, _ = two
    _, costs = made(model, new, every=True)
    assert costs.nbytes == sum(t.nbytes for t in model.values()) == costs.actual["full"]
    assert costs.changed_elements == sum(
        int((model[n].reshape(-1).view(np.uint8) != new[n].reshape(-1).view(np.uint8)).sum())
        for n in model
        if model[n].itemsize == 1
    ) + sum(
        int((model[n].reshape(-1).view(f"u{s}") != new[n].reshape(-1).view(f"u{s}")).sum())
        for n in model
        if (s := model[n].itemsize) > 1
    )
    assert costs.written <= min(costs.actual.values()) and set(costs.predicted) == {"full", "block", "sparse", "xor"}
