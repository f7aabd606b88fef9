"""The checks, switched on from each place that offers it, find the race that goes unnoticed without."""

import pytest

from kernbench.cli import main

pytest.importorskip("triton")
pytest_plugins = ["pytester"]

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def shift(x, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at + 1)
    tl.store(x + at, v)
"""
BENCH = (
    KERNEL
    + """

def bench(ctx):
    shift[(4,)](ctx.zeros((65,), dtype="f32"), BLOCK=16)
    return []
"""
)
TEST = (
    KERNEL
    + """

from kernbench.kernels.standalone import StandaloneDevice
import numpy as np


def test_shift():
    with StandaloneDevice() as device:
        shift[(4,)](device.array(np.zeros(65, np.float32)), BLOCK=16)


def test_one_program_cannot_race():
    with StandaloneDevice() as device:
        shift[(1,)](device.array(np.zeros(65, np.float32)), BLOCK=16)
"""
)


@pytest.fixture
def kernbench(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(text, *words):
        (tmp_path / "k.py").write_text(text)
        monkeypatch.setattr("sys.argv", ["kernbench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, " ".join((out + err).split())

    return call


def test_run_check(kernbench):
    assert kernbench(BENCH, "run", "k.py", "-t", "tiny")[0] == 0
    code, said = kernbench(BENCH, "run", "k.py", "-t", "tiny", "--check")
    assert code == 1
    assert "race on 'x'" in said and "k.py:10" in said


def test_kernel_run_checks_unless_told_not_to(kernbench):
    code, said = kernbench(
        KERNEL, "kernel", "run", "k.py", "-t", "tiny", "--no-verify", "-a", "x=f32[65]", "-a", "BLOCK=16", "-g", "4"
    )
    assert code == 1
    assert "race on 'x'" in said and "k.py:10" in said
    words = ["-t", "tiny", "--no-verify", "--no-check", "-a", "x=f32[65]", "-a", "BLOCK=16", "-g", "4"]
    assert kernbench(KERNEL, "kernel", "run", "k.py", *words)[0] == 0


def test_pytest_kb_check(pytester, monkeypatch):
    monkeypatch.delenv("KERNBENCH_CHECK", raising=False)
    pytester.makepyfile(test_k=TEST)
    checked = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--kb-check")
    checked.assert_outcomes(failed=1, passed=1)
    checked.stdout.fnmatch_lines(["*race on 'x': program*"])
