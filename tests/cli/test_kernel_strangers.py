"""``kernbench kernel run`` on files in which the host code, names and indices say what the kernel's source does not."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

import strangers

from kernbench.cli import kernel_calls, kernel_repair
from kernbench.cli.kernel_contents import few, lengths, places, rising


@pytest.fixture
def run(kernel_run):
    """Run the command on a file, without comparing values."""
    return lambda text, *words, at="k.py": kernel_run(text, "--no-verify", *words, at=at)


def given(report):
    return {one["name"]: one["value"] for one in report["launches"][0]["inputs"]}


WRAPPER = (
    strangers.HEAD
    + """
import torch

@triton.jit
def scale(x_ptr, y_ptr, s_s_m, s_s_n, m, n, factor, WITH_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * s_s_m + j * s_s_n, mask=j < n).to(tl.float32)
    if WITH_BIAS:
        x += 1
    tl.store(y_ptr + row * n + j, (x * factor).to(tl.float16), mask=j < n)

def wrapper(x: torch.Tensor, factor=0.125, bias=None):
    rows, n_cols = x.shape
    y = torch.empty((rows, n_cols), device=x.device, dtype=torch.float16)
    assert x.dtype == torch.bfloat16
    BLOCK = triton.next_power_of_2(n_cols)
    grid = lambda meta: (rows,)
    scale[grid](x, y, x.stride(0), x.stride(1), rows, n_cols, factor, WITH_BIAS=bias is not None, BLOCK=BLOCK)
    return y
"""
)


def test_the_host_code_tells_types_strides_numbers_and_the_grid(run):
    code, report, _ = run(WRAPPER)
    assert code == 0, report
    found = given(report)
    rows, n = found["m"], found["n"]
    expected = {"factor": 0.125, "WITH_BIAS": False, "s_s_m": n, "s_s_n": 1, "y_ptr": f"f16[{rows * n}]"}
    assert {k: found[k] for k in expected} == expected
    assert found["x_ptr"] == f"bf16[{rows},{n}]"
    assert found["BLOCK"] == 1 << (n - 1).bit_length() != n
    assert report["launches"][0]["grid"] == [rows]
    assert given(run(WRAPPER, "-a", "n=100")[1])["BLOCK"] == 128


def test_what_a_launch_hands_over_is_read_without_running_it():
    tree = ast.parse(
        """
def wrapper(q, k: torch.Tensor, causal=True, scale=None):
    b, h, *_ = q.shape
    BLOCK = 64
    out = torch.empty_like(q, dtype=torch.float16)
    grid = (1,)
    other[grid](q)
    grid = lambda META: (triton.cdiv(q.shape[2], META["BLOCK"]), b * h)
    plain = scale is None
    attend[grid](q, k, out, *q.stride(), *k.stride(), q.shape[2], plain, N=BLOCK * 2, CAUSAL=causal, BLOCK=BLOCK)
"""
    )
    names = ["Q", "K", "O", "qb", "qh", "qm", "qd", "kb", "kh", "kn", "kd", "n", "plain", "N", "CAUSAL", "BLOCK"]
    call = kernel_calls.find(tree, "attend", names, {})
    assert call.stride("qm") == ("q", 2) and call.stride("kd") == ("k", 3)
    assert (call.kind("Q"), call.kind("kb"), call.kind("n")) == ("pointer", "stride", "integer")
    assert [call.value(n) for n in ("N", "CAUSAL", "BLOCK", "plain")] == [128, True, 64, True]
    assert call.dtype("O") == "float16"
    with pytest.raises(kernel_calls.Unknown):
        call.value("n")
    assert call.grid({"BLOCK": 64}) == [None, None]
    call.choose("n", 1000)
    assert call.grid({"BLOCK": 64}) == [16, None]
    assert kernel_calls.find(tree, "nothing", ["Q"], {}) is None


SCATTER = (
    strangers.HEAD
    + """
@triton.jit
def copy_to_cache(x, slot_loc, cache, stride_x, stride_c, D: tl.constexpr):
    t, d = tl.program_id(0), tl.arange(0, D)
    slot = tl.load(slot_loc + t)
    tl.store(cache + slot * stride_c + d, tl.load(x + t * stride_x + d))
"""
)
PAGED = (
    strangers.HEAD
    + """
@triton.jit
def gather(cache, block_tables, seq_lens, out, stride_b, stride_s, stride_c, N: tl.constexpr, D: tl.constexpr):
    b, i, d = tl.program_id(0), tl.arange(0, N), tl.arange(0, D)
    n = tl.load(seq_lens + b)
    page = tl.load(block_tables + b * stride_b + i * stride_s, mask=i < n, other=0)
    rows = tl.load(cache + page[:, None] * stride_c + d, mask=(i < n)[:, None], other=0.0)
    tl.store(out + b * D + d, tl.sum(rows, 0))
"""
)
RAGGED = (
    strangers.HEAD
    + """
@triton.jit
def total(x, cu_seqlens, out, BLOCK: tl.constexpr):
    b = tl.program_id(0)
    start, end = tl.load(cu_seqlens + b), tl.load(cu_seqlens + b + 1)
    acc = tl.zeros([BLOCK], tl.float32)
    for at in range(start, end, BLOCK):
        i = at + tl.arange(0, BLOCK)
        acc += tl.load(x + i, mask=i < end, other=0.0)
    tl.store(out + b, tl.sum(acc))
"""
)


@pytest.mark.parametrize(
    ("text", "array", "least"),
    [(SCATTER, "cache", 64), (PAGED, "cache", 50), (RAGGED, "x", 40 * 64)],
    ids=["scattered", "paged", "ragged"],
)
def test_indices_make_sense_and_arrays_are_as_large_as_they_lead(run, text, array, least):
    code, report, _ = run(text, "--dtype", "f32")
    assert code == 0 and report["faults"] == [] and report["notes"] == [], report
    rows = int(given(report)[array].partition("[")[2].rstrip("]").split(",")[0])
    assert rows >= least
    assert report["launches"][0]["outputs"]


def test_lengths_fit_between_offsets():
    i = np.arange(1000)
    assert (np.diff(rising(i)) >= lengths(i)[:-1]).all() and (lengths(i) > 0).all()
    assert len(np.unique(places(i[:64]))) == 64 and few(i).max() == 7


def test_another_element_type_or_constant_is_tried_where_it_does_not_compile(run):
    text = (
        strangers.HEAD
        + """
@triton.jit
def product(a, b, c, K: tl.constexpr, BLOCK: tl.constexpr):
    i, k = tl.arange(0, 32), tl.arange(0, K)
    p = tl.load(a + i[:, None] * K + k[None, :]).to(tl.float16)
    tl.static_assert(BLOCK == 128)
    tl.store(c + i[:, None] * 32 + i[None, :], tl.dot(p, tl.load(b + k[:, None] * 32 + i[None, :])))
"""
    )
    code, report, _ = run(text)
    assert code == 0, report
    assert given(report)["b"].startswith("f16[") and given(report)["BLOCK"] == 128


def test_what_was_changed_in_vain_is_as_before():
    values = {"a": 1, "b": 2}

    def attempt():
        raise ValueError("whatever")

    assert not kernel_repair.repair(attempt, lambda: iter([[(values, "a", 5), (values, "b", 6)], [(values, "b", 7)]]))
    assert values == {"a": 1, "b": 2}


def test_every_kernel_of_a_file_is_run(run):
    broken = (
        "\n\n@triton.jit\ndef broken(x):\n    tl.store(x, nothing)\n\n\n@triton.jit\ndef helper(x):\n    return x + 1\n"
    )
    code, report, _ = run(strangers.SEVERAL + broken)
    assert code == 1 and report["schema"] == "kernbench.kernels/1" and not report["passed"]
    ran = {one.get("kernel") or one["launches"][0]["kernel"]: one for one in report["kernels"]}
    assert list(ran) == ["histogram", "total", "broken"]
    assert ran["histogram"]["passed"] and ran["total"]["time"]["makespan_ps"] > 0
    assert "nothing is not defined" in ran["broken"]["refused"]


def test_a_file_of_a_package_finds_its_neighbours(run, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("import no_such_module_here\n")
    (tmp_path / "pack" / "sizes.py").write_text("import triton.language as tl\nWIDTH = tl.constexpr(128)\n")
    text = strangers.ADD.replace("\n\n", "\nfrom .sizes import WIDTH\n\n", 1).replace(
        "tl.arange(0, BLOCK_SIZE)", "tl.arange(0, WIDTH)"
    )
    code, report, err = run(text, "-a", "BLOCK_SIZE=128", at="pack/k.py")
    assert code == 0, err
    assert report["launches"][0]["grid"] == [8]


MISSING = """

from no_such_module_here import deco

@deco
@triton.jit
def k(x):
    pass
"""
BLOCKS = """
@triton.jit
def k(x, n):
    p = tl.make_block_ptr(x, (n,), (1,), (0,), (16,), (0,))
    tl.store(p, tl.load(p))
"""
HELPER = """
@triton.jit
def f(x):
    return x + 1
"""
REFUSED = {
    "missing": (
        strangers.ADD + MISSING,
        ["-k", "k"],
        ["'k' needs 'deco', which cannot be defined", "No module named 'no_such_module_here'", "PYTHONPATH"],
    ),
    "block pointers": (strangers.HEAD + BLOCKS, [], ["no block pointers", "install triton 3.8 or older"]),
    "no memory": (strangers.ADD, ["-a", "x_ptr=f32[100000000000]"], ["would take 745.1 GiB", "at most 8 GiB"]),
    "helpers": (strangers.HEAD + HELPER, [], ["only functions that kernels call (f)"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_said_in_one_sentence(run, name):
    import triton

    if name == "block pointers" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
        pytest.skip("this Triton has them")
    text, words, said = REFUSED[name]
    code, report, err = run(text, *words)
    assert (code, report) == (1, None)
    assert all(part in err for part in said), err


MODEL = (
    strangers.ADD
    + """

import torch

class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
    def forward(self, x):
        return self.linear(x) + x

class ModelNew(Model):
    def forward(self, x):
        y, out = self.linear(x), torch.empty_like(x)
        KERNEL[(triton.cdiv(x.numel(), 256),)](y, x, out, x.numel(), BLOCK_SIZE=256)
        return out

def get_init_inputs():
    return [32]

def get_inputs():
    return [torch.randn(20, 32)]
"""
)


def test_a_model_is_called_and_compared_with_its_plain_version(run):
    pytest.importorskip("torch")
    (name,) = [n.name for n in ast.parse(strangers.ADD).body if isinstance(n, ast.FunctionDef)]
    text = MODEL.replace("KERNEL", name)
    code, report, err = run(text)
    assert code == 0, err
    assert (report["mode"], report["launches"][0]["grid"]) == ("script", [3])
    assert (report["model"][0]["elements"], report["model"][0]["wrong"]) == (640, 0)
    code, report, _ = run(text.replace("+ x\n\nclass", "- x\n\nclass"))
    assert code == 1 and report["model"][0]["wrong"] > 600


def test_the_oldest_triton_compares_and_dumps_too(tmp_path):
    other = Path(sys.prefix) / "triton-versions" / "3.4.0"
    if not other.is_dir():
        pytest.skip(f"Triton 3.4.0 is not in {other}: `make versions` installs it")
    (tmp_path / "k.py").write_text(strangers.ADD)
    words = ["kernel", "run", "k.py", "--json", "--no-check", "--dump", "11:total", "-a", "n_elements=500"]
    command = [sys.executable, "-c", "from kernbench.cli import main; main()", *words]
    path = os.pathsep.join([str(other), str(Path(__file__).parents[2])])
    env = os.environ | {"PYTHONPATH": path, "TRITON_CACHE_DIR": f"{other}-cache"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["launches"][0]["values"]["against"], report["passed"]) == ("interpreter", True)
    assert [d["name"] for d in report["dumps"]] == ["total"]
