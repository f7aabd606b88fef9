"""Triton's interpreter on simulated memory, switched on by Triton's own variable."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def run(code, **env):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "TRITON_INTERPRET": "1"} | env
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_kernels_run_interpreted_on_tensors_of_a_context_and_on_arrays():
    code = """
        import numpy as np
        import looked_at_kernels as kernels
        import triton
        from kernbench.runtime_api.context import RuntimeContext
        from kernbench.runtime_api.tensor import Tensor

        x = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)
        with RuntimeContext.open("tiny", check=True) as ctx:
            host = Tensor(shape=(4, 40), dtype="f32", name="x")
            host._host_buffer[...] = x
            given, out = ctx.zeros((4, 40), dtype="f32"), ctx.empty((4,), dtype="f32")
            given.copy_(host)
            kernels.row_sums[(4,)](given, out, 40, 2.0, BLOCK=16)
            print(np.abs(out.numpy() - 2 * x.sum(1)).max() < 1e-4)
            array = np.zeros(4, np.float32)
            kernels.row_sums[(4,)](x, array, 40, 0.5, BLOCK=16)
            print(np.abs(array - 0.5 * x.sum(1)).max() < 1e-4)
            copied = np.zeros(40, np.float32)
            kernels.tuned_copy[lambda meta: (triton.cdiv(40, meta["BLOCK"]),)](x[1], copied, 40)
            print((copied == x[1]).all(), sum(c.bound.kind == "launch" for c in ctx.timeline().commands) < 3)
        print(type(triton.runtime.interpreter.GridExecutor.__call__).__name__)
    """
    assert run(code) == ["True", "True", "True", "True", "function"]


def test_a_breakpoint_stops_and_sees_values(tmp_path):
    (tmp_path / "stopped.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            import triton
            import triton.language as tl
            from kernbench.kernels.standalone import StandaloneDevice

            @triton.jit
            def double(x, out, N: tl.constexpr):
                at = tl.arange(0, N)
                v = tl.load(x + at)
                breakpoint()
                tl.store(out + at, v * 2)

            with StandaloneDevice() as device:
                x, out = device.array(np.arange(4), "f32"), device.empty((4,), "f32")
                double[(1,)](x, out, N=4)
                print("out", out.numpy().tolist())
            """
        )
    )
    command = [sys.executable, "-W", "ignore", str(tmp_path / "stopped.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for interpreted, seen in (("1", True), ("0", False)):
        done = subprocess.run(
            command, input="p v\nc\n", env=env | {"TRITON_INTERPRET": interpreted}, capture_output=True, text=True
        )
        assert ("array([0., 1., 2., 3.]" in done.stdout) is seen, done.stderr
        assert "out [0.0, 2.0, 4.0, 6.0]" in done.stdout
