"""The command as a user meets it: what it prints, what it leaves behind, and how it answers mistakes."""

import json
from pathlib import Path

import pytest

from kernbench.cli import main

MLP = str(Path(__file__).parents[2] / "benches" / "tp_mlp.py")
SMALL = ["-t", "tiny", "--sips", "2", "-p", "tokens=16", "-p", "hidden=64", "-p", "intermediate=128"]


@pytest.fixture
def kernbench(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words):
        monkeypatch.setattr("sys.argv", ["kernbench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


def record(folder):
    return json.loads((folder / "record.json").read_text())


def test_run_prints_the_verdict_and_leaves_a_complete_folder(kernbench, tmp_path):
    code, out, _ = kernbench("run", MLP, *SMALL)
    assert code == 0
    assert "values match" in out
    for phase in ("upload", "steady", "gate_up", "activation", "down", "all_reduce"):
        assert phase in out
    folder = tmp_path / "runs" / "tp_mlp-001"
    assert {p.name for p in folder.iterdir()} == {"record.json", "host.json", "trace.json", "time.png"}
    made = record(folder)
    assert made["schema"] == "kernbench.run/1"
    assert made["checks"][0]["passed"]
    assert made["params"]["hidden"] == 64
    assert "seconds" not in json.dumps(made)
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert (folder / "time.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "runs").glob(".*"))


def test_two_runs_leave_the_same_bytes_and_no_data_the_same_times(kernbench, tmp_path):
    for extra in ([], [], ["--no-data"]):
        assert kernbench("run", MLP, *SMALL, *extra)[0] == 0
    first, second, timing_only = (tmp_path / "runs" / f"tp_mlp-00{i}" for i in (1, 2, 3))
    assert (first / "record.json").read_bytes() == (second / "record.json").read_bytes()
    assert record(timing_only)["timeline"] == record(first)["timeline"]
    assert record(timing_only)["commands"] == record(first)["commands"]
    assert record(timing_only)["checks"] == []


def test_set_changes_the_machine(kernbench, tmp_path):
    kernbench("run", MLP, *SMALL, "--no-data")
    kernbench("run", MLP, *SMALL, "--no-data", "--set", "sip.cube.hbm.bandwidth=20 GB/s")
    usual, slow = (record(tmp_path / "runs" / f"tp_mlp-00{i}") for i in (1, 2))
    assert slow["machine"]["spec"]["sip"]["cube"]["hbm"]["bandwidth"] == 20e9
    assert slow["timeline"]["makespan_ps"] > usual["timeline"]["makespan_ps"]


def test_a_wrong_value_is_exit_code_1(kernbench, tmp_path):
    bench = tmp_path / "wrong.py"
    bench.write_text(
        "from kernbench.bench import compare\n\ndef bench(ctx):\n    return [compare('sum', [1.0], [2.0])]\n"
    )
    code, out, _ = kernbench("run", str(bench), "-t", "tiny")
    assert code == 1
    assert "DO NOT MATCH" in out


DEADLOCK = """
def bench(ctx):
    def worker(rank):
        ctx.distributed.init_process_group(backend="ahbm")
        x = ctx.zeros((4,))
        ctx.distributed.recv(x, src=1 - rank)
    ctx.multiprocessing.spawn(worker, nprocs=2)
"""
SHAPES = """
def bench(ctx):
    def worker(rank):
        ctx.distributed.init_process_group(backend="ahbm")
        ctx.distributed.all_reduce(ctx.zeros((4 + rank,)))
    ctx.multiprocessing.spawn(worker, nprocs=2)
"""
MISTAKES = {
    "misspelt key": ([MLP, "--set", "sip.cube.hbm.bandwith=1 TB/s"], "did you mean `bandwidth`?"),
    "missing unit": ([MLP, "--set", "sip.cube.hbm.bandwidth=819"], "without a unit, expected a bandwidth such as"),
    "unknown machine": ([MLP, "-t", "ahbm-4spi"], "ahbm-4sip"),
    "unknown bench": (["nowhere.py"], "no such bench file"),
    "unknown parameter": ([MLP, "-p", "token=3"], "unknown parameter 'token': this bench has tokens"),
    "too large for HBM": ([MLP, *SMALL, "--set", "sip.cube.hbm.capacity=4 KiB"], "is full"),
    "too large for TCM": ([MLP, *SMALL, "--set", "sip.cube.pe.tcm.capacity=256 B"], "out of resource: TCM"),
    "deadlock": ([DEADLOCK, "-t", "tiny", "--sips", "2"], "rank 0 waits in recv"),
    "shapes": ([SHAPES, "-t", "tiny", "--sips", "2"], "rank 1: all_reduce((5,)"),
    "world size": (["def bench(ctx):\n    ctx.multiprocessing.spawn(print, nprocs=3)\n", "-t", "tiny"], "--sips 3"),
    "exception of the bench": (["def bench(ctx):\n    {}['key']\n", "-t", "tiny"], "KeyError: 'key'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_clear_error(kernbench, tmp_path, name):
    (source, *words), message = MISTAKES[name]
    if "\n" in source:
        (tmp_path / "bench.py").write_text(source)
        source = "bench.py"
    code, out, err = kernbench("run", source, *words)
    assert code == 1
    assert message in err
    assert "Traceback" not in out + err
    assert "kernbench/" not in err.replace(MLP, "")  # no internals
    assert not (tmp_path / "runs").exists()


def test_the_users_own_line_is_named(kernbench, tmp_path):
    (tmp_path / "bench.py").write_text(DEADLOCK)
    _, _, err = kernbench("run", "bench.py", "-t", "tiny", "--sips", "2")
    assert "bench.py:6" in err


def test_topology_show_and_check(kernbench, tmp_path):
    code, out, _ = kernbench("topology", "show", "ahbm-4sip")
    assert code == 0
    assert "819 GB/s" in out and "JESD238" in out
    assert kernbench("topology", "check", "ahbm-4sip")[0] == 0
    (tmp_path / "m.yaml").write_text("extends: ahbm-4sip\nsip:\n  cube:\n    hbm: {bandwith: 1 TB/s}\n")
    code, out, _ = kernbench("topology", "check", "m.yaml")
    assert code == 1
    assert "m.yaml:4: sip.cube.hbm.bandwith" in out


def test_weights_simulate(kernbench, tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 256, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ["--config", "config.json", "--workers", "tp2+tp1", "--trainers", "tp2", "-t", "tiny"]
    code, out, err = kernbench("weights", "simulate", *options, "--sips", "5", "-e", "p2p", "--json", "out")
    assert (code, err) == (0, "") and "every bit right" in out and "tp2 to tp2+1" in out
    engine = json.loads((tmp_path / "out").read_text())["engines"][0]
    assert engine["time"]["time_ps"] == engine["values"]["time_ps"] > 0
    code, _, err = kernbench("weights", "simulate", *options, "-e", "p2p")
    assert code == 1 and "needs 5 SIPs, the machine has 1" in err
    assert kernbench("weights", "simulate", "--trainers", "4")[0] != 0
    code, _, err = kernbench("weights", "simulate", "-e", "p2p", "-e", "nccl")
    assert code == 2 and "nccl" in err
