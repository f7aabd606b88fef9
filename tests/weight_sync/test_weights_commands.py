"""The commands: what they do, their JSON, their exit codes, and that a dry run writes nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from test_weights_checkpoint import assert_same, read_checkpoint, write_checkpoint
from test_weights_delta import scattered
from typer.testing import CliRunner
from weights_models import config

from kernbench.weight_sync import console
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.checkpoint_sync import export_handles, verify
from kernbench.weight_sync.commands import app
from kernbench.weight_sync.commands_http import TOKEN_VARIABLE
from kernbench.weight_sync.delta_apply import version_of
from kernbench.weight_sync.reshard import shard
from kernbench.weight_sync.safetensors import read_index, write_safetensors

HELP = ("diff", "apply", "sync", "diagnose", "verify", "recover", "snapshot", "load", "serve", "push")


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


def as_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


def state(folder):
    """Every file's name, bytes and time."""
    return {
        p.relative_to(folder): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")
    } | {".": folder.stat().st_mtime_ns}


@pytest.fixture
def folders(tmp_path):
    """(folder of an old model, folder of a new one, the new model)."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    model = scattered(write_checkpoint(old, "qwen3"))
    shutil.copytree(old, new)
    for file in set(read_index(new).values()):
        write_safetensors(new / file, {n: model[n] for n, f in read_index(new).items() if f == file})
    return old, new, model


def test_every_command_has_help():
    listed = run("--help").output
    for name in HELP:
        assert name in listed and "--help" in run(name, "--help").output


def test_diff_and_apply(folders, tmp_path):
    old, new, model = folders
    output = tmp_path / "d.kbdelta"
    before = state(tmp_path)
    found = as_json("diff", old, new, "-o", output, "--dry-run")
    assert state(tmp_path) == before and found["delta_bytes"] is None
    found = as_json("diff", old, new, "-o", output)
    assert found.keys() >= {
        "tensors", "changed_tensors", "nbytes", "elements", "changed_elements", "blocks", "dirty_blocks", "predicted",
        "actual", "written", "chosen", "changed_fraction", "base_version", "new_version", "delta_bytes", "tensor_costs",
        "has_zstd",
    }  # fmt: skip
    assert (found["tensors"], found["changed_tensors"], len(found["tensor_costs"])) == (23, 12, 12)
    assert found["delta_bytes"] == output.stat().st_size and found["written"] <= min(found["actual"].values())
    assert set(found["actual"]) == {"full", "block", "sparse", "xor"} and found["new_version"] == 1
    assert len(as_json("diff", old, new, "--all")["tensor_costs"]) == 23
    shown = run("diff", old, new).output
    assert "12 of 23 tensors" in shown and "foretold" in shown and "model.embed_tokens.weight" in shown

    before = state(tmp_path)
    dry = as_json("apply", output, "--model-dir", old, "--dry-run")
    assert state(tmp_path) == before and dry["dry_run"] and dry["tensors_changed"] == 12
    assert "would change 12 tensors" in run("apply", output, "--model-dir", old, "--dry-run").output
    assert as_json("apply", output, "--model-dir", old) == dry | {"dry_run": False}
    assert_same(old, model)
    with pytest.raises(ValueError, match="is version 1"):
        run("apply", output, "--model-dir", old)
    again = as_json("diff", old, new)
    assert again["changed_tensors"] == 0 and (again["base_version"], again["new_version"]) == (1, 2)


def test_a_delta_through_a_pipe(folders, tmp_path):
    old, new, model = folders
    run("diff", old, new, "-o", tmp_path / "d", "--encoding", "sparse")
    command = [sys.executable, "-m", "kernbench.weight_sync", "apply", "-", "--model-dir", str(old)]
    with open(tmp_path / "d", "rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=True)
    assert "changed 12 tensors" in done.stdout and version_of(old) == 1
    assert_same(old, model)


def test_sync_with_a_delta_and_dry_runs(folders, tmp_path):
    old, _new, model = folders
    copy = tmp_path / "copy"
    shutil.copytree(old, copy)
    handles = tmp_path / "h.json"
    with export_handles([shard(model, config("qwen3"), 2, r) for r in range(2)], handles, old):
        where = ["--model-dir", old, "--handles", handles]
        before = state(tmp_path)
        dry = as_json("sync", *where, "--dry-run", "--delta", tmp_path / "d")
        assert state(tmp_path) == before and dry["dry_run"] and dry["journaled"] == 0
        done = as_json("sync", *where, "--delta", tmp_path / "d", "--encoding", "xor")
        assert done["total_changed"] == dry["total_changed"] > 3 * done["journaled"] > 0 and done["version"] == 1
        assert "qwen3" not in run("sync", *where).output and as_json("diagnose", *where)["only_disk"] == []
        with pytest.raises(ValueError, match="expected one of auto"):
            run("sync", *where, "--encoding", "zip")
    run("apply", tmp_path / "d", "--model-dir", copy)
    assert_same(copy, model)
    before = state(tmp_path)
    assert as_json("recover", "--model-dir", old, "--dry-run") == {
        "did": "nothing to recover", "version": 1, "dry_run": True
    }  # fmt: skip
    assert state(tmp_path) == before and as_json("verify", "--model-dir", old)["damaged"] == []


def test_snapshot_and_load(folders, tmp_path):
    _old, new, model = folders
    out = tmp_path / "out"
    before = state(tmp_path)
    dry = as_json("snapshot", out, "--model-dir", new, "--part-size", "20KB", "--version", 4, "--dry-run")
    assert state(tmp_path) == before and len(dry["parts"]) > 3
    assert as_json("snapshot", out, "--model-dir", new, "--part-size", "20KB", "--version", 4) == dry | {
        "dry_run": False
    }
    assert {p.name for p in out.glob("*.pdparams")} == {part["file"] for part in dry["parts"]}
    found = as_json("load", out)
    assert found["version"] == 4 and found["verified"] and found["bytes"] == sum(t.nbytes for t in model.values())
    assert [p["bytes"] for p in found["parts"]] == [p["bytes"] for p in dry["parts"]]
    assert found["largest_part"] == max(p["bytes"] for p in dry["parts"]) and found["peak_memory"] >= 0
    headers = as_json("load", out, "--dry-run")
    assert headers["parts"] == found["parts"] and not headers["verified"]
    assert "every hash as it should be; version 4" in run("load", out, "--prefetch").output
    part = max(out.glob("*.pdparams"), key=lambda p: p.stat().st_size)
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="is damaged"):
        run("load", out)
    with pytest.raises(FileNotFoundError, match="No snapshot found"):
        run("load", tmp_path / "none", "--shared-dir", tmp_path / "none")


def test_snapshots_of_live_weights(folders, tmp_path):
    old, _new, model = folders
    ranks = [shard(model, config("qwen3"), 2, r) for r in range(2)]
    handles = tmp_path / "h.json"
    with export_handles(ranks, handles, old) as export:
        run("snapshot", tmp_path / "s", "--handles", handles, "--rank", 1)
        run("snapshot", tmp_path / "p", "--handles", handles, "--model-dir", old)
        with pytest.raises(ValueError, match="ranks 0 to 1, not of 2"):
            run("snapshot", tmp_path / "s", "--handles", handles, "--rank", 2)
        with export.updating(), pytest.raises(RuntimeError, match="changed the weights"):
            run("snapshot", tmp_path / "u", "--handles", handles)
    from kernbench.weight_sync.snapshot import load_snapshot

    for folder, rank, wanted in (("s", 1, ranks[1]), ("p", 0, model)):
        found = {}
        load_snapshot(
            tmp_path / folder, rank, "weights", lambda s, label, f=found: f.update({n: digest(t) for n, t in s.items()})
        )
        assert found == {n: digest(t) for n, t in wanted.items()}


@pytest.fixture
def serving(folders, tmp_path, monkeypatch):
    """Serves the old folder from a process of its own; gives its URL and the process."""
    monkeypatch.setenv(TOKEN_VARIABLE, "a secret")
    command = [sys.executable, "-m", "kernbench.weight_sync", "serve", str(folders[0]), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    about = json.loads(process.stdout.readline())
    assert about["event"] == "serving" and about["version"] == 0
    yield about["url"], process
    process.terminate()
    assert process.wait(20) == 0


def test_push_a_checkpoint_and_a_delta(folders, serving, tmp_path):
    old, new, model = folders
    url, process = serving
    run("diff", old, new, "-o", tmp_path / "d")
    before = state(old)
    dry = as_json("push", new, "--url", url, "--dry-run")
    assert state(old) == before and dry["tensors"] == 23 and dry["versions"] == {url: 0} and not dry["delta"]
    dry = as_json("push", tmp_path / "d", "--url", url, "--dry-run")
    assert state(old) == before and dry["delta"] and dry["bytes"] == (tmp_path / "d").stat().st_size
    assert as_json("push", tmp_path / "d", "--url", url)["versions"] == {url: 1}
    assert json.loads(process.stdout.readline()) == {"event": "updated", "version": 1}
    assert_same(old, model)
    with pytest.raises(RuntimeError, match=r"400, WrongBaseError: .*is version 1"):
        run("push", tmp_path / "d", "--url", url)
    newer = scattered(model, 5)
    for file in set(read_index(new).values()):
        write_safetensors(new / file, {n: newer[n] for n, f in read_index(new).items() if f == file})
    assert "sent 23 tensors" in run("push", new, "--url", url, "--version", 7).output
    assert_same(old, newer)
    assert verify(old).ok and version_of(old) == 7
    with pytest.raises(RuntimeError, match="401"):
        (tmp_path / "token").write_text("another\n")
        run("push", new, "--url", url, "--token-file", tmp_path / "token")
    with pytest.raises(RuntimeError, match="does not rise above 7"):
        run("push", new, "--url", url, "--version", 7)
    shutil.copytree(new, tmp_path / "part")
    (tmp_path / "part" / "model.safetensors.index.json").unlink()
    write_safetensors(tmp_path / "part" / "model.safetensors", {"model.norm.weight": newer["model.norm.weight"]})
    with pytest.raises(RuntimeError, match="lacks 22 of 23 tensors"):
        run("push", tmp_path / "part", "--url", url)
    assert_same(old, newer)


def test_a_server_killed_in_an_update_leaves_the_old_version(folders, serving, tmp_path):
    from kernbench.weight_sync.transfer.http_client import HttpTrainerArgs, HttpTransferError, send_weights

    old, new, _ = folders
    url, process = serving
    before = {n: digest(t) for n, t in read_checkpoint(old).items()}

    def weights():
        for i, (name, tensor) in enumerate(read_checkpoint(new).items()):
            if i == 15:
                process.kill()
            yield name, tensor

    with pytest.raises(HttpTransferError):
        send_weights(weights(), HttpTrainerArgs([url], token="a secret", batch_bytes=1, retries=1, timeout=5))
    process.returncode = None
    assert process.wait(20) == -9
    process.terminate = lambda: None
    process.wait = lambda timeout: 0
    assert run("recover", "--model-dir", old).output.strip() == "dropped a change that had not been committed"
    assert {n: digest(t) for n, t in read_checkpoint(old).items()} == before and version_of(old) == 0


def test_serve_needs_a_token_and_ends_after_one_update(folders, tmp_path, monkeypatch):
    old, new, model = folders
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="no token: neither --token-file nor"):
        run("serve", old)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        run("push", new, "--url", "http://127.0.0.1:1", "--token-file", tmp_path / "empty")
    (tmp_path / "token").write_text("x\n")
    lines = []
    monkeypatch.setattr("kernbench.weight_sync.commands_http.emit", lines.append)
    thread = threading.Thread(
        target=run, args=("serve", old, "--once", "--json", "--publish", "--token-file", tmp_path / "token")
    )
    thread.start()
    while not lines:
        time.sleep(0.01)
    run("push", new, "--url", lines[0]["url"], "--token-file", tmp_path / "token", "--form", "json")
    thread.join(20)
    assert not thread.is_alive()
    assert_same(old, model)


@pytest.mark.parametrize(
    "arguments, code, says",
    [
        (["sync"], 2, "Missing option"),
        (["nonsense"], 2, "No such command"),
        (["sync", "--model-dir", "x", "--handles", "y", "--block-size", "0"], 2, "block-size"),
        (["snapshot", "out", "--model-dir", "x", "--part-size", "two"], 2, "is no size"),
        (["snapshot", "out"], 2, "--model-dir, --handles or both"),
        (["diff", "x", "y"], 1, "error: x: no checkpoint"),
        (["apply", "x", "--model-dir", "y"], 1, "error: "),
        (["load", "x", "--shared-dir", "y"], 1, "error: No snapshot found"),
    ],
)
def test_exit_codes(tmp_path, monkeypatch, capsys, arguments, code, says):
    from kernbench.weight_sync.commands import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kernbench", *arguments])
    assert main() == code
    assert says in capsys.readouterr().err and not os.listdir(tmp_path)


def test_progress_at_a_terminal_and_silence_elsewhere(monkeypatch, capsys):
    with console.meter("reading", 10) as step:
        step("a", 5)
    with console.meter("reading", 10, quiet=True) as step:
        step("a", 5)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.meter("reading", 4_000_000) as step:
        step("model.[x]", 2_000_000)
        time.sleep(0.15)
    shown = capsys.readouterr().err
    assert "model.[x]" in shown and "2.0/4.0 MB" in shown


def test_sizes():
    assert [console.parse_size(t) for t in ("4096", "1KB", "1 KiB", "1.5GB", "2mib")] == [
        4096, 1000, 1024, 1_500_000_000, 2 << 20
    ]  # fmt: skip
    assert [console.size(n) for n in (12, 1500, 2.5e6, 3e9)] == ["12 B", "1.5 KB", "2.5 MB", "3.0 GB"]
    assert np.isfinite(console.peak_memory())
