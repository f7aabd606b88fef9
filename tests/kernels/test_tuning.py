"""Autotuning and benchmarking by simulated time."""

import math

import numpy as np
import pytest

pytest.importorskip("triton")

import looked_at_kernels as kernels
import triton
from triton.testing import do_bench

from kernbench.kernels.kernel import Kernel
from kernbench.kernels.triton_backend import tuning
from kernbench.runtime_api.context import RuntimeContext


def tune(ctx, n=5000):
    x, out = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    kernels.tuned_copy[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, out, n)
    np.testing.assert_array_equal(out, x)
    return tuning.tunings[-1]


def test_the_fastest_wins_by_simulated_time_and_every_trial_is_told():
    with RuntimeContext.open("tiny") as ctx:
        told = tune(ctx)
        assert (told.kernel, told.key[0]) == ("tuned_copy", 5000)
        assert [t.config.split()[0] for t in told.trials] == ["BLOCK=16", "BLOCK=1024", "BLOCK=1048576", "BLOCK=32"]
        times = [t.milliseconds for t in told.trials]
        assert told.best == times.index(min(times)) == 1
        assert math.isinf(times[2]) and told.trials[2].why == "out of TCM"
        assert told.trials[2].tcm_bytes == (1 << 20) * 4 > ctx.target.tcm_capacity
        assert told.trials[0].tcm_bytes < told.trials[1].tcm_bytes
        known = len(tuning.tunings)
        tune(ctx)
        assert len(tuning.tunings) == known  # the key is known
    with RuntimeContext.open("tiny") as ctx:
        assert tune(ctx) == told  # another context tunes anew, to the same numbers


@pytest.mark.parametrize("wanted", [True, False])
def test_the_table_is_printed_as_triton_prints(monkeypatch, capsys, wanted):
    monkeypatch.setattr(triton.knobs.autotuning, "print", wanted)
    monkeypatch.setenv("COLUMNS", "110")
    with RuntimeContext.open("tiny") as ctx:
        tune(ctx, 3000)
    out = capsys.readouterr().out
    assert ("TCM a program" in out) is wanted
    if wanted:
        rows = [row for row in out.splitlines() if "num_stages=" in row and " us" in row]
        assert len(rows) == 3 and rows[0].rstrip().endswith("chosen") and "BLOCK=1024" in rows[0]
        assert any("out of TCM" in row for row in out.splitlines())


def test_numpy_arrays_are_put_back_between_configurations():
    with RuntimeContext.open("tiny"):
        x, count = np.arange(100, dtype=np.float32), np.zeros(1, np.int32)
        kernels.increment[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, count, 100)
        np.testing.assert_array_equal(x, np.arange(100) + 1)
        assert count[0] == -(-100 // int(tuning.tunings[-1].trials[tuning.tunings[-1].best].config.split()[0][6:]))


def test_do_bench_gives_simulated_milliseconds_in_every_mode():
    with RuntimeContext.open("tiny") as ctx:
        x, out = ctx.zeros((4096,), dtype="f32"), ctx.zeros((4096,), dtype="f32")

        def launch():
            kernels.tuned_copy.fn[(4,)](x, out, 4096, BLOCK=1024)

        time = triton.testing.do_bench(launch)
        assert time > 0
        assert do_bench(launch) == time  # imported before the context was opened
        assert triton.testing.do_bench(launch, 5, 10) == time  # warm-up and repetitions mean nothing
        assert triton.testing.do_bench(launch, quantiles=[0.5, 0.2, 0.8]) == [time] * 3
        assert triton.testing.do_bench(launch, quantiles=[0.5]) == time
        for mode in ("min", "max", "mean", "median"):
            assert triton.testing.do_bench(launch, return_mode=mode) == time
        assert triton.testing.do_bench(launch, return_mode="all") == [time]
        assert triton.testing.do_bench_cudagraph(launch, rep=3) == time
        with pytest.raises(ValueError, match="return_mode='best'"):
            triton.testing.do_bench(launch, return_mode="best")
        launch()
        (timed,) = [c for c in ctx.timeline().commands if c.bound.name == "tuned_copy"]
        assert time == pytest.approx((timed.finish_ps - timed.reached_ps) * 1e-9, rel=0.5)


def test_configurations_of_the_same_text_share_what_is_worked_out_of_it():
    """Those that differ in the number of warps or of stages do. Other names of the arguments are another kernel."""
    text = (
        "module {\n  tt.func public @copy(%x: !tt.ptr<f32>, %out: !tt.ptr<f32>) {\n"
        "    %0 = tt.load %x : !tt.ptr<f32>\n    tt.store %out, %0 : !tt.ptr<f32>\n    tt.return\n  }\n}\n"
    )
    compiled = Kernel("copy", text, shares=True)
    one, two = (Kernel("copy", text, stages, names=("x", "out"), shares=True) for stages in (2, 3))
    assert compiled.module is one.module is two.module
    assert Kernel("copy", text).module is not one.module
    other = Kernel("copy", text, names=("source", "target"), shares=True)
    assert other.module is not one.module
    assert [arg.name for arg in other.function.args] == ["source", "target"]
    assert [arg.name for arg in one.function.args] == ["x", "out"]
