"""``kernbench kernel``: run, export, show."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kernbench.cli import kernel_files, main

ROOT = Path(__file__).parents[2]
KERNELS = """
    import triton
    import triton.language as tl

    @triton.jit
    def axpy(x_ptr, y_ptr, n, a, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        y = tl.load(y_ptr + at, inside)
        tl.store(y_ptr + at, a * tl.load(x_ptr + at, inside) + y, inside)
"""
ARRAYS = ["-a", "x_ptr=f32[100]:ones", "-a", "y_ptr=f32[100]:range", "-a", "n=100", "-a", "a=2.0"]
GRID = ["--grid", "cdiv(n, BLOCK)"]
TTIR = """module {
  tt.func public @fill(%out_ptr: !tt.ptr<i32>, %value: i32) {
    tt.store %out_ptr, %value : !tt.ptr<i32>
    tt.return
  }
}
"""


@pytest.fixture
def kernbench(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words):
        monkeypatch.setattr("sys.argv", ["kernbench", "kernel", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture
def source(tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "axpy.py"
    path.write_text(textwrap.dedent(KERNELS))
    return path


def test_run_shows_values_time_and_the_slowest_lines(kernbench, source):
    code, out, err = kernbench("run", str(source), *ARRAYS, "-a", "BLOCK=64", *GRID)
    assert code == 0, err
    written = next(line for line in out.splitlines() if line.startswith("y_ptr"))
    assert "written" in written
    assert [float(word) for word in written.split()[-3:]] == [2, 51.5, 101]
    assert "values match Triton's interpreter" in out
    assert "bound by" in out and "TCM" in out
    assert "written" not in next(line for line in out.splitlines() if line.startswith("x_ptr"))
    assert "ns simulated" in out
    assert "axpy.py:10" in out
    assert "tl.store(y_ptr + at" in out


def test_a_fault_is_one_clear_message(kernbench, source):
    code, out, err = kernbench(
        "run", f"{source}:axpy", *ARRAYS[:4], "-a", "n=101", "-a", "a=2.0", "-a", "BLOCK=64", *GRID
    )
    assert code == 1
    assert "fault:" in out and "axpy.py:9" in out
    assert "out of bounds" in out
    assert "y = tl.load(y_ptr + at, inside)" in out
    assert "Traceback" not in out + err


def without_triton(where, *words):
    """Output of ``kernbench kernel`` in a Python that can import neither Triton nor torch."""
    code = """
        import sys
        sys.modules["triton"] = sys.modules["torch"] = None
        from kernbench.cli import main
        sys.argv = ["kernbench", "kernel", *sys.argv[1:]]
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), *words]
    env = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_exported_kernel_runs_the_same(kernbench, source, tmp_path):
    ran = kernbench("run", str(source), *ARRAYS, "-a", "BLOCK=64", *GRID)[1]
    code, _, err = kernbench("export", f"{source}:axpy", "--signature", "*fp32:16, *fp32, i32, fp32, 64")
    assert code == 0, err
    first = (tmp_path / "axpy.ttir").read_bytes()
    kernbench("export", f"{source}:axpy", "--signature", "*fp32:16, *fp32, i32, fp32, 64")
    assert (tmp_path / "axpy.ttir").read_bytes() == first
    code, out, err = kernbench("run", "axpy.ttir", *ARRAYS, *GRID)
    assert code == 0, err
    checksums = [line.split() for line in ran.splitlines() if "written" in line]
    assert [line.split() for line in out.splitlines() if "written" in line] == checksums
    out = without_triton(tmp_path, "run", "axpy.ttir", *ARRAYS, *GRID)
    assert [line.split() for line in out.splitlines() if "written" in line] == checksums
    code, out, _ = kernbench("show", "axpy.ttir")
    assert code == 0
    assert "BLOCK=64" in out
    assert "!tt.ptr<f32>" in out
    assert "tt.store 1" in out


def test_stored_ttir_from_elsewhere_runs_without_triton_and_torch(kernbench, tmp_path):
    (tmp_path / "k.ttir").write_text(TTIR)
    out = without_triton(tmp_path, "run", "k.ttir", "-a", "out_ptr=i32[4]:zeros", "-a", "value=7")
    assert next(line for line in out.splitlines() if line.startswith("out_ptr")).split()[-1] == "7"
    assert "@fill" in without_triton(tmp_path, "show", "k.ttir", "--text")
    code, _, err = kernbench("run", "k.ttir")
    assert code == 1 and "--arg out_ptr=i32[1024] --arg value=1024" in err


def test_what_cannot_run_is_shown_with_its_reason(kernbench, tmp_path):
    (tmp_path / "k.ttir").write_text(TTIR.replace("tt.store", "tt.frobnicate"))
    code, out, _ = kernbench("show", "k.ttir")
    assert code == 1
    assert "tt.frobnicate" in " ".join(out.partition("does not run")[2].split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "axpy.py", "--kernel", "nothing"], ["no kernel 'nothing'", "axpy"]),
        (["run", "axpy.py:nothing"], ["no kernel 'nothing'", "axpy"]),
        (["run", "axpy.py", "-a", "z=1"], ["no argument 'z'", "x_ptr, y_ptr"]),
        (["run", "axpy.py", "-a", "z"], ["expected NAME=VALUE"]),
        (["run", "other.py"], ["no such file"]),
        (["run", "other.ttir"], ["no such file"]),
        (["run", "axpy.py", *ARRAYS, "-a", "BLOCK=64", "-g", "m"], ["--grid m", "cdiv"]),
        (["export", "axpy.py", "-s", "*fp32"], ["1 entries", "takes 5"]),
        (["export", "axpy.py", "-s", "*fp32, *fp99, i32, fp32, 64"], ["type '*fp99'", "expected one such as *fp32"]),
    ],
)
def test_mistakes_say_what_to_do(kernbench, source, words, said):
    code, _, err = kernbench(*words)
    assert code == 1
    assert all(text in " ".join(err.split()) for text in said), err


def test_generated_inputs():
    rng = np.random.default_rng(0)
    assert kernel_files.value("7", rng) == 7
    assert kernel_files.value("-0.5", rng) == -0.5
    assert kernel_files.value("True", rng) is True
    made = kernel_files.value("bf16[3, 2]", rng)
    assert (made.dtype.name, made.shape) == ("bfloat16", (3, 2))
    assert kernel_files.value("i32[50]", rng).max() <= 9
    assert kernel_files.value("i64[2,2]:range", rng).tolist() == [[0, 1], [2, 3]]
    assert kernel_files.value("f8e4m3[2]:2.5", rng).astype(float).tolist() == [2.5, 2.5]
    for bad in ("f32[2]:odd", "[1,", "f33[2]", "x"):
        with pytest.raises((kernel_files.KernelFileError, TypeError)):
            kernel_files.value(bad, rng)
