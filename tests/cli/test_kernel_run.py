"""``kernbench kernel run`` on files of people who say nothing but what is in the file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernbench.cli import main

pytest.importorskip("triton")

import strangers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(kernel_run):
    """Run the command on a file with some text; gives the exit code and the report, which there has to be."""

    def call(text, *words):
        code, report, err = kernel_run(text, *words)
        assert report is not None, err
        return code, report

    return call


def arguments(report):
    return {given["name"]: given["value"] for given in report["launches"][0]["inputs"]}


WORKING = {
    "vector add": (strangers.ADD, [], {"x_ptr": "f32[8168]", "output_ptr": "f32[8168]", "n_elements": 8168}, [8]),
    "softmax": (
        strangers.SOFTMAX,
        ["-a", "n_rows=20", "-a", "n_cols=100", "-a", "BLOCK=128"],
        {"out": "f32[20,100]", "inp": "f32[20,100]", "inp_row_stride": 100, "out_row_stride": 100},
        [8],
    ),
    "matmul": (
        strangers.MATMUL,
        ["--dtype", "f16", "-a", "M=100", "-a", "N=72", "-a", "K=56"],
        {"a_ptr": "f16[100,56]", "b_ptr": "f16[56,72]", "c_ptr": "f16[100,72]", "stride_ak": 1, "stride_bk": 72},
        [8],
    ),
    "layer norm": (
        strangers.LAYER_NORM,
        ["-a", "N=200"],
        {"X": "f32[64,200]", "W": "f32[200]", "Mean": "f32[64]", "stride_x": 200, "M": 64, "BLOCK": 256},
        [64],
    ),
    "attention": (
        strangers.ATTENTION,
        [],
        {"Q": "f32[4,168,64]", "V": "f32[4,168,64]", "Out": "f32[4,168,64]", "stride_kh": 10752, "sm_scale": 0.5},
        [3, 4],
    ),
    "embedding": (
        strangers.EMBEDDING,
        ["--no-verify", "-a", "dim=300", "-a", "BLOCK=128"],
        {"ids": "i64[64]", "out": "f32[19200]", "n_tokens": 64},
        [64, 3],
    ),
    "histogram": (strangers.SEVERAL, ["-k", "histogram"], {"x_ptr": "i64[8168]", "bins_ptr": "i32[8]"}, [8]),
    "sum": (strangers.SEVERAL, ["--no-verify", "-k", "total"], {"x": "f32[8168]", "out": "f32[1]"}, [8]),
    "descriptors": (strangers.DESCRIPTORS, [], {"src": "f32[168,152]", "dst": "f32[168,152]", "stride_m": 152}, [3, 3]),
}


@pytest.mark.parametrize("name", WORKING)
def test_inputs_are_made_up_from_the_source_and_values_checked(run, name):
    text, words, expected, grid = WORKING[name]
    code, report = run(text, *words)
    assert code == 0, report
    given = arguments(report)
    assert {key: given.get(key) for key in expected} == expected
    (launch,) = report["launches"]
    assert launch["grid"] == grid
    assert launch["outputs"]
    if "--no-verify" not in words:
        values = launch["values"]
        assert (values["against"], values["passed"]) == ("interpreter", True)
        assert {a["name"] for a in values["arrays"]} >= {o["name"] for o in launch["outputs"]}
    assert report["time"]["bound"]
    assert next(iter(report["time"]["kernels"].values()))["time_ps"] > 0
    assert report["lines"][0]["source"] in text
    assert report["tcm"]["bytes"] <= report["tcm"]["capacity"]
    assert report["faults"] == []


def test_autotuning_is_told(run):
    _, report = run(strangers.MATMUL, "--no-verify", "--no-check", "-a", "M=100", "-a", "N=72", "-a", "K=56")
    (tuning,) = report["autotune"]
    assert tuning["kernel"] == "matmul"
    assert [t["ms"] is None for t in tuning["trials"]] == [False, False, True]
    assert tuning["trials"][2]["why"] == "out of TCM"
    fastest = min((t for t in tuning["trials"] if t["ms"] is not None), key=lambda t: t["ms"])
    assert tuning["best"] == fastest["config"]
    assert fastest["tcm_bytes"] == report["tcm"]["bytes"]


FAULTY = {
    "mask too large": (strangers.OFF_BY_ONE, [], ["load from 'x_ptr' out of bounds", "index (1000,)", "k.py:9"]),
    "race": (strangers.RACE, [], ["race on 'x_ptr'", "element 1023", "k.py:9"]),
    "reads its output": (strangers.ACCUMULATE, ["-a", "out_ptr=empty"], ["uninitialised read of 'out_ptr'", "k.py:8"]),
    "misaligned": (
        strangers.DESCRIPTORS,
        ["-a", "N=150"],
        ["misaligned descriptor of 'src'", "150 elements of 4 bytes, 600 bytes", "multiple of 4 elements", "k.py:7"],
    ),
}


def test_a_fault_with_and_without_checks_is_told_once(run):
    text = (
        strangers.HEAD
        + """@triton.jit
def stuck(lock_ptr):
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
"""
    )
    code, report = run(text, "--no-verify", "-g", "2", "-a", "lock_ptr=i32[1]:zeros")
    assert code == 1
    assert len(report["faults"]) == 1 and "deadlock" in report["faults"][0]


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_found_named_and_the_exit_code(run, name):
    text, words, said = FAULTY[name]
    code, report = run(text, *words)
    assert code == 1
    (fault,) = report["faults"]
    assert all(part in fault for part in said), fault
    if "out of bounds" not in fault:
        assert report["time"]["makespan_ps"] > 0  # it ran once more, unchecked
        assert run(text, *words, "--no-check", "--no-verify")[0] == 0


def test_a_nan_has_its_origin_and_is_no_failure(run):
    code, report = run(strangers.NAN, "--no-verify")
    assert code == 0
    (note,) = report["notes"]
    assert "math.log makes the first NaN" in note and "k.py:9" in note
    assert report["launches"][0]["outputs"][0]["not_finite"] > 0


def test_a_kernel_for_multiples_of_its_block_runs_on_those(run):
    code, report = run(strangers.NO_MASK, "--no-verify")
    assert code == 0 and report["faults"] == []
    assert arguments(report)["n"] == 8192
    (note,) = report["notes"]
    assert "works only for multiples of the block sizes: with n=8168" in note
    assert "load from 'x_ptr' out of bounds" in note


def test_a_block_that_reaches_over_a_row_is_no_larger_array(run):
    code, report = run(strangers.ONE_MASK_MISSING, "--no-verify")
    assert code == 0 and report["launches"][0]["grid"] == [64]  # which divides the block of 1024
    (note,) = report["notes"]
    assert "load from 'W' out of bounds" in note and "elements 0..1023 of 1000" in note


def test_a_mask_that_leaves_too_much_is_a_fault_though_multiples_work(run):
    code, report = run(strangers.MASK_TOO_WIDE, "--no-verify")
    assert code == 1
    assert "works only for multiples of the block sizes: with stride=1000, n_cols=1000" in report["faults"][0]
    assert "k.py:9" in report["faults"][0] and report["time"]["makespan_ps"] > 0


def test_the_files_own_inputs_grid_and_reference(run):
    code, report = run(strangers.WITH_REFERENCE)
    assert code == 0
    (launch,) = report["launches"]
    assert launch["grid"] == [12]
    assert launch["values"]["against"] == "reference"
    assert {i["origin"] for i in launch["inputs"]} == {"inputs()"}
    code, report = run(strangers.WITH_REFERENCE.replace("return x_ptr + y_ptr", "return x_ptr - y_ptr"))
    assert code == 1
    (wrong,) = report["launches"][0]["values"]["arrays"]
    assert (wrong["name"], wrong["wrong"] > 2900) == ("output_ptr", True)
    assert "instead of" in wrong["first"]


def test_bf16_is_checked_in_f32_and_what_the_interpreter_cannot_do_is_said(run):
    small = ["-a", "n_elements=500", "-a", "BLOCK_SIZE=256"]
    code, report = run(strangers.ADD, "--dtype", "bf16", *small)
    assert code == 0
    assert arguments(report)["x_ptr"] == "bf16[500]"
    assert "in f32" in report["launches"][0]["values"]["reason"]
    named = strangers.ADD.replace("total, mask", "total.to(tl.bfloat16), mask")
    code, report = run(named, "--dtype", "bf16", *small)
    assert code == 0
    assert report["launches"][0]["values"]["passed"] is None
    assert "cannot compute in bf16" in report["launches"][0]["values"]["reason"]


def test_two_runs_say_the_same(run):
    words = ["-k", "total", "--no-verify"]
    assert run(strangers.SEVERAL, *words)[1] == run(strangers.SEVERAL, *words)[1]


def test_a_variable_is_dumped_at_a_line(run, tmp_path):
    words = ["--no-verify", "--no-check", "--dump", "9:mask", "--dump", "10:total", "--program", "7", "--dump-dir", "d"]
    _, report = run(strangers.ADD, *words)
    assert [(d["name"], d["program"], d["shape"], d["dtype"]) for d in report["dumps"]] == [
        ("mask", [7, 0, 0], [1024], "i1"),
        ("total", [7, 0, 0], [1024], "f32"),
    ]
    mask = np.load(tmp_path / "d" / "9-mask-p7-0-0-i0.npy")
    np.testing.assert_array_equal(mask, 7 * 1024 + np.arange(1024) < 8168)


def test_a_dump_of_a_program_that_there_is_not(run):
    _, report = run(strangers.ADD, "--no-verify", "--no-check", "--dump", "9:mask", "--program", "99")
    assert report["dumps"] == []
    assert any(note.startswith("nothing was dumped") for note in report["notes"])


def test_several_kernels_are_listed_where_one_has_to_be_meant(monkeypatch, capsys, tmp_path):
    (tmp_path / "k.py").write_text(strangers.SEVERAL)
    monkeypatch.setattr("sys.argv", ["kernbench", "kernel", "run", str(tmp_path / "k.py"), "--grid", "8"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "histogram, total: say which with --kernel" in " ".join(capsys.readouterr().err.split())


def test_a_script_is_run_as_it_is(run, capsys):
    pytest.importorskip("torch")
    code, report = run(strangers.SCRIPT)
    assert code == 0
    assert report["mode"] == "script"
    (launch,) = report["launches"]
    assert (launch["kernel"], launch["grid"], launch["values"]["passed"]) == ("add_kernel", [4], True)
    assert arguments(report)["x_ptr"] == "f32[1000]"
    code, report = run(strangers.SCRIPT.replace("x + y)\n", "x - y)\n"), "--no-verify")
    assert code == 1
    assert report["error"].startswith("AssertionError")
    code, report = run(strangers.SCRIPT, "--kernel", "add_kernel", "--no-verify")
    assert (code, report["mode"], arguments(report)["n_elements"]) == (0, "inputs", 2024)


def test_what_a_script_tunes_is_shown_as_it_is_launched_in_the_end(run):
    pytest.importorskip("torch")
    configs = "@triton.autotune([triton.Config({'BLOCK_SIZE': n}) for n in (16, 512)], key=[])\n@triton.jit"
    fixed = "[(triton.cdiv(x.numel(), 256),)](x, y, out, x.numel(), BLOCK_SIZE=256)"
    chosen = "[lambda meta: (triton.cdiv(x.numel(), meta['BLOCK_SIZE']),)](x, y, out, x.numel())"
    tuned = strangers.SCRIPT.replace("@triton.jit", configs, 1).replace(fixed, chosen)
    code, report = run(tuned)
    assert code == 0, report
    assert report["autotune"][0]["best"].startswith("BLOCK_SIZE=512")
    (launch,) = report["launches"]
    assert (launch["grid"], arguments(report)["BLOCK_SIZE"], launch["values"]["passed"]) == ([2], 512, True)


def test_the_interpreter_stops_at_a_breakpoint(tmp_path):
    path = tmp_path / "k.py"
    path.write_text(strangers.ADD.replace("    total =", "    breakpoint()\n    total ="))
    start = "from kernbench.cli import main; main()"
    command = [sys.executable, "-c", start, "kernel", "run", str(path), "--interpret"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input="p offsets\nq\n", capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "array([   0,    1,    2, ..., 1021, 1022, 1023]" in done.stdout


def test_a_breakpoint_is_no_hindrance_to_a_compiled_kernel(run):
    code, report = run(strangers.ADD.replace("    total =", "    breakpoint()\n    total ="), "--no-verify")
    assert code == 0 and report["launches"][0]["outputs"]
