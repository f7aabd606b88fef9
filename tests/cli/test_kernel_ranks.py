"""``kernbench kernel run`` of kernels whose programs talk to other ranks."""

import json

import pytest

from kernbench.cli import main

pytest.importorskip("triton")

SHIFT = """
import triton
import triton.language as tl
import kernbench.language as kl

@triton.jit
def shift(out, inbox, src, flag, n, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    right = (kl.rank() + 1) % kl.num_ranks()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ready = flag + tl.program_id(0)
    kl.put(inbox + i, tl.load(src + i, mask=i < n), right, mask=i < n)
    kl.signal(ready, right)
    kl.wait(ready, COUNT)
    tl.store(out + i, tl.load(inbox + i, mask=i < n), mask=i < n)
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command on a file with some text; gives the exit code and the report, or the error."""
    monkeypatch.chdir(tmp_path)

    def call(text, *words):
        (tmp_path / "k.py").write_text(text)
        monkeypatch.setattr("sys.argv", ["kernbench", "kernel", "run", "k.py", "-t", "ahbm-4sip", "--json", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, json.loads(out) if out else err

    return call


def test_inputs_are_made_up_and_every_rank_runs(run):
    code, report = run(SHIFT, "-a", "n=1000", "-a", "BLOCK=256", "-a", "COUNT=1")
    (launch,) = report["launches"]
    assert code == 0 and report["passed"] and launch["grid"] == [4]
    inputs = {one["name"]: (one["value"], one["origin"]) for one in launch["inputs"]}
    assert inputs["inbox"] == ("f32[1000]", "symmetric, zeros") and inputs["flag"] == ("i32[4]", "symmetric, zeros")
    assert inputs["src"] == ("f32[1000]", "generated") and inputs["n"] == (1000, "given")
    outputs = {one["name"]: one for one in launch["outputs"]}
    assert outputs["flag"]["mean"] == 1 and outputs["out"]["xxh64"] == outputs["inbox"]["xxh64"]
    assert abs(outputs["out"]["mean"]) < 0.2 and outputs["out"]["max"] > 1.5  # another rank's random numbers
    assert launch["values"]["passed"] is None and "interpreter knows no other ranks" in launch["values"]["reason"]
    assert report["time"]["kernels"]["shift"]["launches"] == 4


def test_what_the_checks_find_is_a_fault_and_the_time_is_told_all_the_same(run):
    code, report = run(SHIFT, "-a", "n=1000", "-a", "BLOCK=256", "-a", "COUNT=0")
    assert code == 1 and "race on 'inbox': rank" in report["faults"][0] and "k.py:" in report["faults"][0]
    assert report["time"]["makespan_ps"] > 0


def test_a_deadlock_is_a_fault(run):
    code, report = run(SHIFT, "-a", "n=1000", "-a", "BLOCK=256", "-a", "COUNT=2")
    assert code == 1 and "waits for 'flag', element 0 of 'flag', to be >= 2: it is 1" in report["faults"][0]


def test_strides_have_to_be_given(run):
    code, error = run(
        SHIFT.replace("src, flag, n,", "src, flag, n, stride_x,").replace("src + i", "src + i * stride_x")
    )
    assert code == 1 and "--arg stride_x=..." in error
