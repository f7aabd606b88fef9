import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from weights_models import config, published

from kernbench.weight_sync import blocksync, checkpoint_sync, checkpoint_update, sidecar
from kernbench.weight_sync.arrays import to_bytes
from kernbench.weight_sync.checkpoint_sync import (
    diagnose,
    export_handles,
    read_safetensors_index,
    sync_checkpoint,
    sync_file,
    verify,
)
from kernbench.weight_sync.commands import app
from kernbench.weight_sync.commands import main as run_main
from kernbench.weight_sync.handles import WeightsChangedError
from kernbench.weight_sync.reshard import shard
from kernbench.weight_sync.safetensors import index_text, read_tensors, write_safetensors

KEYS = {"total_compared", "total_changed", "files_changed", "tensors_synced", "tensors_missing"}


def write_checkpoint(folder, family, files=2):
    model = published(family)
    (folder / "config.json").write_text(json.dumps(config(family)))
    names = list(model)
    places = {n: f"model-{i * files // len(names) + 1:05}-of-{files:05}.safetensors" for i, n in enumerate(names)}
    for file in set(places.values()):
        write_safetensors(folder / file, {n: model[n] for n in names if places[n] == file})
    (folder / "model.safetensors.index.json").write_bytes(index_text(places, 0))
    return model


def read_checkpoint(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= read_tensors(path, framework="numpy")
    return found


def train(model, seed=7):
    """New bits in every third tensor, in a few places."""
    rng = np.random.default_rng(seed)
    new = {n: t.copy() for n, t in model.items()}
    for name in list(new)[::3]:
        bits = new[name].reshape(-1).view(np.uint8)
        bits[rng.integers(0, bits.size, 5)] ^= 1
    return new


def assert_same(folder, model):
    found = read_checkpoint(folder)
    assert found.keys() == model.keys()
    for name, tensor in model.items():
        assert bytes(to_bytes(found[name]).data) == bytes(to_bytes(tensor).data), name


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "qwen3_5", "deepseek_v3", "gpt_oss", "gpt_oss_mxfp4"])
def test_sync_of_serving_weights(tmp_path, family, tp):
    model = write_checkpoint(tmp_path, family)
    new = train(model)
    with export_handles([shard(new, config(family), tp, r) for r in range(tp)], tmp_path / "handles.json", tmp_path):
        result = checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "handles.json", 256)
        again = checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "handles.json", 256)
    assert_same(tmp_path, new)
    assert result.keys() == KEYS and result["tensors_missing"] == 0 and result["files_changed"] == 2
    assert result["tensors_synced"] == len(model)
    assert result["total_compared"] == sum(t.nbytes for t in model.values()) > result["total_changed"] > 0
    assert again == {**result, "total_changed": 0, "files_changed": 0}
    assert verify(tmp_path).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize("publish", [False, True])
def test_sync_file_counts_blocks_of_each_tensor(tmp_path, dtype, publish):
    """10,000 elements; the first, and the last in a short block, change."""
    path = tmp_path / "model.safetensors"
    old = {"a": torch.zeros(10_000).to(dtype), "b": torch.zeros(3, 5).to(dtype)}
    save_file(old, path)
    new = {"a": old["a"].clone(), "b": old["b"], "absent": old["b"]}
    new["a"].view(torch.uint8)[0] = 1
    new["a"].view(torch.uint8)[-1] = 1
    size = 10_000 * old["a"].element_size()
    counts = sync_file(path, new, publish=publish)
    assert counts == (size + 15 * old["a"].element_size(), 4096 + size % 4096, 2, 1)
    assert sync_file(path, new)[1] == 0
    found = load_file(path)
    assert torch.equal(found["a"].view(torch.uint8), new["a"].view(torch.uint8)) and found.keys() == old.keys()


def test_mismatches_are_errors_and_write_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(8, 16, dtype=torch.float16), "b": torch.zeros(4)}, path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="Type mismatch for a"):
        sync_file(path, {"b": torch.ones(4), "a": torch.zeros(16, 4)})  # as many bytes
    with pytest.raises(TypeError, match="Type mismatch for a: it is bfloat16 live and float16"):
        sync_file(path, {"a": torch.zeros(8, 16, dtype=torch.bfloat16)})
    with pytest.raises(ValueError, match="Shape mismatch for a"):
        sync_file(path, {"b": torch.ones(4), "a": torch.zeros(16, 8, dtype=torch.float16)})
    with pytest.raises(ValueError, match="block size"):
        sync_file(path, {}, 0)
    assert path.read_bytes() == before


def test_only_what_changed_is_written_and_nothing_else_is_touched(tmp_path):
    model = write_checkpoint(tmp_path, "llama", files=3)
    blocksync.sync_files(tmp_path, {f: {} for f in set(read_safetensors_index(tmp_path).values())})
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    new = {n: t.copy() for n, t in model.items()}
    new["model.norm.weight"].view(np.uint16)[3] ^= 1
    report = None
    with export_handles(new, tmp_path / "h.json", tmp_path):
        report = sync_checkpoint(tmp_path, tmp_path / "h.json")
        quiet = {p: p.stat().st_mtime_ns for p in (tmp_path / ".kernbench").iterdir() if p.name != "lock"}
        sync_checkpoint(tmp_path, tmp_path / "h.json")
        assert quiet == {p: p.stat().st_mtime_ns for p in quiet}
    changed = [p.name for p in before if p.stat().st_mtime_ns != before[p]]
    assert (
        changed
        == [f.file for f in report.files if f.changed]
        == [read_safetensors_index(tmp_path)["model.norm.weight"]]
    )
    assert [f.differing for f in report.files if f.changed] == [["model.norm.weight"]]


def test_hashes_spare_reading_and_a_foreign_write_undoes_them(tmp_path):
    path = tmp_path / "model.safetensors"
    old = {"a": np.arange(100_000, dtype=np.float32), "b": np.zeros(70_000, np.uint8)}
    write_safetensors(path, old)

    def sync(tensors):
        return blocksync.sync_files(tmp_path, {path.name: tensors})[0]

    assert sync(old).skipped == 0
    assert sync(old).skipped == 470_000
    new = {"a": old["a"].copy(), "b": old["b"]}
    new["a"][50_000] = -1
    done = sync(new)
    assert done.changed == 4096 and done.skipped == 470_000 - sidecar.CHUNK
    with open(path, "r+b") as file:  # somebody else writes, at the same size
        file.seek(-1, 2)
        file.write(b"\x07")
    assert verify(tmp_path).damaged == [f"{path.name}: b"]
    done = sync(new)
    assert done.skipped == 0 and done.differing == ["b"]
    assert verify(tmp_path).ok and sync(new).skipped == 470_000


def test_a_damaged_sidecar_is_not_believed(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(1000)})
    sync_file(path, {"a": np.zeros(1000)})
    hashes = tmp_path / ".kernbench" / "model.safetensors.hashes"
    whole = hashes.read_bytes()
    hashes.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert blocksync.sync_files(tmp_path, {path.name: {"a": np.ones(1000)}})[0].changed == 8000
    (tmp_path / ".kernbench" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: no valid JSON"):
        sync_file(path, {"a": np.zeros(1000)})


def test_what_is_recorded_is_what_was_written_even_if_weights_move(tmp_path, monkeypatch):
    """A live tensor that changes after its comparison must not leave hashes of bytes that are not there."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(200_000, np.uint8)})
    live = np.zeros(200_000, np.uint8)
    live[5] = 1
    compare = checkpoint_update.differing_runs

    def moving(old, new, block):
        runs = compare(old, new, block)
        live[:] += 1
        return runs

    monkeypatch.setattr(checkpoint_update, "differing_runs", moving)
    sync_file(path, {"a": live})
    assert verify(tmp_path).ok
    monkeypatch.undo()
    sync_file(path, {"a": live})
    assert np.array_equal(read_tensors(path, framework="numpy")["a"], live)


def test_an_update_during_the_sync_is_refused(tmp_path):
    model = write_checkpoint(tmp_path, "llama")
    new = train(model)
    with export_handles(new, tmp_path / "h.json", tmp_path) as export:

        def meddle(name, nbytes):
            with export.updating():
                pass

        with pytest.raises(WeightsChangedError):
            sync_checkpoint(tmp_path, tmp_path / "h.json", progress=meddle)
        assert_same(tmp_path, model)
        sync_checkpoint(tmp_path, tmp_path / "h.json")
    assert_same(tmp_path, new)


def test_links_are_not_written_through(tmp_path):
    (tmp_path / "blobs").mkdir()
    blob, link = tmp_path / "blobs" / "b", tmp_path / "model.safetensors"
    write_safetensors(blob, {"a": np.zeros(4)})
    link.symlink_to(blob)
    with pytest.raises(ValueError, match="symbolic link"):
        sync_file(link, {"a": np.ones(4)})
    sync_file(link, {"a": np.ones(4)}, publish=True)
    assert read_tensors(blob, framework="numpy")["a"].sum() == 0
    assert read_tensors(link, framework="numpy")["a"].sum() == 4 and not link.is_symlink()
    (tmp_path / "other.safetensors").hardlink_to(link)
    with pytest.raises(ValueError, match="hard link"):
        sync_file(link, {"a": np.zeros(4)})


def test_publish_leaves_mapped_readers_the_old_file(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(4096)})
    mapped = np.memmap(path, np.uint8, "r")
    old = bytes(mapped)
    sync_file(path, {"a": np.ones(4096)}, publish=True)
    assert bytes(mapped) == old and read_tensors(path, framework="numpy")["a"].sum() == 4096


def test_without_an_index(tmp_path):
    assert read_safetensors_index(tmp_path) == {}
    with export_handles({"a": np.ones(3), "only_live": np.ones(1)}, tmp_path / "h.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "h.json")
        write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros(3), "only_disk": np.zeros(2)})
        result = checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "h.json")
    assert result == {
        "total_compared": 24,
        "total_changed": 24,
        "files_changed": 1,
        "tensors_synced": 1,
        "tensors_missing": 1,
    }


def test_names_outside_the_index_fall_to_the_single_file(tmp_path):
    write_safetensors(tmp_path / "part.safetensors", {"a": np.zeros(2)})
    write_safetensors(tmp_path / "model.safetensors", {"b": np.zeros(2)})
    (tmp_path / "model.safetensors.index.json").write_bytes(index_text({"a": "part.safetensors"}, 0))
    with export_handles({"a": np.ones(2), "b": np.ones(2)}, tmp_path / "h.json", tmp_path):
        assert checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "h.json")["files_changed"] == 2


def test_a_tied_head_that_is_stored_twice(tmp_path):
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true, "vocab_size": 5}')
    write_safetensors(
        tmp_path / "model.safetensors",
        {"lm_head.weight": np.zeros((5, 2)), "model.embed_tokens.weight": np.zeros((5, 2))},
    )
    with export_handles({"model.embed_tokens.weight": np.ones((64, 2))}, tmp_path / "h.json", tmp_path):
        assert checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "h.json")["tensors_synced"] == 2
    assert read_checkpoint(tmp_path)["lm_head.weight"].sum() == 10


def test_ambiguous_names_are_refused(tmp_path):
    names = ("model.norm.weight", "model.language_model.norm.weight")
    write_safetensors(tmp_path / "model.safetensors", {n: np.zeros(2) for n in names})
    with (
        export_handles({"model.norm.weight": np.ones(2)}, tmp_path / "h.json", tmp_path),
        pytest.raises(ValueError, match="could be any of"),
    ):
        checkpoint_sync.checkpoint_sync(tmp_path, tmp_path / "h.json")


def test_diagnose_and_the_commands(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": np.zeros(3), "only.disk": np.zeros(2)})
    run = CliRunner().invoke
    options = ["--model-dir", str(tmp_path), "--handles", str(tmp_path / "h.json")]
    with export_handles({"a": np.ones(3), "only.live": np.ones(1)}, tmp_path / "h.json", tmp_path) as export:
        found = diagnose(tmp_path, tmp_path / "h.json")
        assert found == {"matched": ["a"], "only_hf": ["only.live"], "only_disk": ["only.disk"]}
        printed = capsys.readouterr().out
        assert all(line in printed for line in ("matched: 1", "  a\n", "  only.live", "  only.disk"))
        assert "only.live" in run(app, ["diagnose", *options]).output

        assert run(app, ["verify", "--model-dir", str(tmp_path)]).exit_code == 1  # no manifest yet
        dry = run(app, ["sync", *options, "--dry-run", "-v"])
        assert dry.exit_code == 0 and "would change 24 B" in dry.output and "    a" in dry.output
        assert read_checkpoint(tmp_path)["a"].sum() == 0
        done = run(app, ["sync", *options, "--json", "--block-size", "8"])
        assert json.loads(done.stdout)["total_changed"] == 24 and done.exit_code == 0
        assert run(app, ["verify", *options]).exit_code == 0
        export.refresh({"a": np.zeros(3)})
        stale = run(app, ["verify", *options])
        assert stale.exit_code == 1 and "stale: model.safetensors: a" in stale.output
        assert run(app, ["recover", "--model-dir", str(tmp_path)]).output.strip() == "nothing to recover"
    with export_handles({"x": np.ones(3)}, tmp_path / "h.json", tmp_path):
        assert run(app, ["sync", *options]).exit_code == 1


def test_the_module_runs(tmp_path, monkeypatch, capsys):
    gone = ["sync", "--model-dir", str(tmp_path), "--handles", str(tmp_path / "none")]
    done = subprocess.run([sys.executable, "-m", "kernbench.weight_sync", *gone], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: Weight handles not found")
    monkeypatch.setattr(sys, "argv", ["kernbench", "recover", "--model-dir", str(tmp_path)])
    assert run_main() == 0 and "nothing to recover" in capsys.readouterr().out
