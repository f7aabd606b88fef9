"""``kernbench kernel run`` on kernels that take host tensor descriptors, and what bounds a run's time."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from types import SimpleNamespace

from kernbench.cli import kernel_configs, kernel_progress, kernel_trials
from kernbench.cli.kernel_descriptors import Described
from kernbench.memory import dtype

HEAD = """
import torch, triton, triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor
"""
ADD = """
@triton.jit
def add(x_desc, y_desc, out_desc, M, N, BM: tl.constexpr, BN: tl.constexpr):
    i, j = tl.program_id(0) * BM, tl.program_id(1) * BN
    if (i < M) & (j < N):
        out_desc.store([i, j], x_desc.load([i, j]) + y_desc.load([i, j]))
"""
HOST = """
def wrapper(x: torch.Tensor, y: torch.Tensor):
    M, N = x.shape
    out = torch.empty((M, N), dtype=torch.float16)
    x_d = TensorDescriptor(x, x.shape, x.stride(), [32, 64])
    y_d = TensorDescriptor.from_tensor(y, block_shape=[32, 64])
    o_d = TensorDescriptor.from_tensor(out, [32, 64])
    add[(triton.cdiv(M, 32), triton.cdiv(N, 64))](x_d, y_d, o_d, M, N, BM=32, BN=64)
"""
TUNED = """
def hook(args):
    for name in ("x_desc", "y_desc", "out_desc"):
        args[name].block_shape = [args["BM"], args["BN"]]

add = triton.autotune([triton.Config({"BM": m, "BN": 32}, pre_hook=hook) for m in (16, 64)], key=["M"])(add)
"""


@pytest.fixture
def run(kernel_run):
    return kernel_run


def test_descriptors_are_made_of_what_the_host_code_says(run):
    code, report, err = run(HEAD + ADD + HOST)
    assert code == 0, (report, err)
    (launch,) = report["launches"]
    given = {one["name"]: one["value"] for one in launch["inputs"]}
    m, n = given["M"], given["N"]
    assert given["x_desc"] == f"f32[{m},{n}]"
    assert given["out_desc"].startswith("f16[")
    assert launch["grid"] == [-(-m // 32), -(-n // 64)]
    assert launch["values"]["against"] == "interpreter", launch
    assert launch["values"]["passed"]


@pytest.mark.parametrize("host", ["", TUNED], ids=["the offsets", "a pre_hook"])
def test_blocks_follow_from(run, host):
    code, report, err = run(HEAD + ADD + host, "--no-verify")
    assert code == 0, (report, err)
    assert not report["faults"]


def test_descriptors_of_inputs_are_taken_and_wrong_values_found(run):
    text = HEAD + ADD.replace("y_desc.load([i, j])", "2 * y_desc.load([i, j])")
    text += """
def inputs():
    a, b = torch.arange(40 * 48.0).reshape(40, 48), torch.ones(40, 48)
    described = {n: TensorDescriptor.from_tensor(t, [16, 16]) for n, t in zip(("x_desc", "y_desc"), (a, b))}
    out = TensorDescriptor.from_tensor(torch.zeros(40, 48), [16, 16])
    return described | {"out_desc": out, "M": 40, "N": 48, "BM": 16, "BN": 16}

grid = (3, 3)

def reference(x_desc, y_desc):
    return {"out_desc": x_desc + FACTOR * y_desc}
"""
    assert run(text + "FACTOR = 2\n")[0] == 0
    code, report, _ = run(text + "FACTOR = 1\n")
    assert code == 1
    assert report["launches"][0]["values"]["passed"] is False


def test_where_nothing_says_the_block_the_refusal_tells_how_to_give_it(run):
    code, _, err = run(HEAD + "@triton.jit\ndef k(d, out):\n    tl.store(out, tl.sum(d.load([0])))\n")
    assert code == 1
    assert "'d' is a host tensor descriptor" in err
    assert "from_tensor(tensor, block_shape=[...])" in err


def test_rows_behind_a_descriptor_start_at_multiples_of_16_bytes():
    made = Described.of([3, 5, 7], dtype("f16"), (1, 1, 8))
    assert (made.shape, made.strides, made.allocated) == ((3, 5, 7), (40, 8, 1), (3, 5, 8))


def test_strides_that_are_constexprs_are_told_apart(run):
    code, report, err = run(
        HEAD
        + """
@triton.jit
def k(x, y, m, n, stride_m: tl.constexpr, stride_n: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    i, j = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BN)
    at = (i[:, None] * stride_m + j[None, :] * stride_n)
    inside = (i[:, None] < m) & (j[None, :] < n)
    tl.store(y + at, tl.load(x + at, mask=inside), mask=inside)
""",
        "--no-verify",
        "-a",
        "n=50",
    )
    assert code == 0, (report, err)
    given = {one["name"]: one["value"] for one in report["launches"][0]["inputs"]}
    assert (given["stride_m"], given["stride_n"]) == (50, 1)


def test_heuristics_may_ask_for_the_gpu(run):
    code, report, err = run(
        """
import torch, triton, triton.language as tl

@triton.heuristics({"WIDE": lambda args: torch.cuda.get_device_capability()[0] >= 8})
@triton.jit
def k(x, y, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * (2 if WIDE else 3), mask=i < n)
"""
    )
    assert code == 0, (report, err)
    assert report["launches"][0]["values"]["passed"], report


def test_few_of_many_configurations_are_tried_and_all_are_back_afterwards():
    tuner = SimpleNamespace(configs=list(range(100)), arg_names=[], fn=None)
    with kernel_configs.fewer(tuner) as told:
        assert len(tuner.configs) == kernel_configs.MOST
        assert (tuner.configs[0], tuner.configs[-1]) == (0, 99)
        assert "of 100" in told
    assert tuner.configs == list(range(100))
    pruning = SimpleNamespace(configs=list(range(100)), arg_names=[], fn=None, early_config_prune=list)
    with kernel_configs.fewer(pruning) as told:
        assert len(pruning.configs) == 100
        assert not told


def test_sizes_shrink_until_a_run_is_short_enough():
    tried = []

    def attempt(trial):
        tried.append(trial.small)
        if trial.small < kernel_trials.SMALLEST:
            raise kernel_trials.TooMuch("its run would take too long")
        return SimpleNamespace(faults=[], notes=[]), None

    kernel_trials.run(attempt)
    assert tried == list(range(kernel_trials.SMALLEST + 1))


def test_progress_tells_the_part_of_a_step(monkeypatch):
    told = []
    monkeypatch.setattr(kernel_progress, "_teller", told.append)
    kernel_progress.step("add: running")
    kernel_progress.part("configuration 2 of 3")
    assert told == ["add: running", "add: running: configuration 2 of 3"]


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_a_run_with_one_line(tmp_path):
    (tmp_path / "k.py").write_text(
        "import pathlib, time\nimport triton\n@triton.jit\ndef k():\n    pass\n"
        "def go():\n    k[(1,)]()\n"
        "if __name__ == '__main__':\n    pathlib.Path('began').touch()\n    time.sleep(60)\n    go()\n"
    )
    command = [sys.executable, "-c", "from kernbench.cli import main; main()", "kernel", "run", "k.py"]

    def heed() -> None:  # what runs in the background of a shell ignores it, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as run:
        while not (tmp_path / "began").exists():
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (130, "interrupted\n")
