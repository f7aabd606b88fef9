"""Triton's launches reach KernBench inside a context, and only there."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kernbench.kernels import LaunchError, NoDeviceError, OutOfResources, Target, launch
from kernbench.kernels.standalone import StandaloneDevice

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
import tutorial_kernels as tutorials  # noqa: E402

from kernbench.kernels import triton_backend as backend  # noqa: E402
from kernbench.kernels.triton_backend.driver import relocated  # noqa: E402

ROOT = Path(__file__).parents[2]


@triton.jit
def scale_kernel(x_ptr, out_ptr, nothing_ptr, affine, one, N: tl.constexpr):
    at = tl.arange(0, N)
    y = tl.load(x_ptr + at) * affine[0] + affine[1] + one
    if nothing_ptr is not None:
        y = tl.load(nothing_ptr + at)
    tl.store(out_ptr + at, y)


@triton.jit
def descriptor_kernel(descriptor, out_ptr):
    at = tl.arange(0, 16)
    tl.store(out_ptr + at[:, None] * 16 + at[None, :], descriptor.load([0, 0]))


def run(code: str, **env: str) -> str:
    """Output of a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_kernbench_does_not_import_triton_or_torch():
    code = """
        import sys, kernbench, kernbench.kernels, kernbench.kernels.builtin
        print([m for m in ("triton", "torch") if m in sys.modules])
    """
    assert run(code) == "[]"


def test_built_in_kernels_run_without_importing_triton():
    code = """
        import sys
        import numpy as np
        from kernbench.kernels import builtin
        from kernbench.kernels.standalone import StandaloneDevice
        with StandaloneDevice() as device:
            x = device.array(np.arange(6, dtype=np.float32))
            builtin.elementwise("mul", x, x, 2)
            print(x.numpy().tolist(), "triton" in sys.modules)
    """
    assert run(code) == "[0.0, 2.0, 4.0, 6.0, 8.0, 10.0] False"


def test_triton_may_be_imported_inside_the_context():
    code = """
        import sys
        import numpy as np
        sys.path.insert(0, "benches")
        from kernbench.kernels.standalone import StandaloneDevice
        with StandaloneDevice() as device:
            import tutorial_kernels
            x, out = device.array(np.ones(5, np.float32)), device.empty((5,), "f32")
            tutorial_kernels.add(x, x, out)
            print(out.numpy().tolist())
        from triton.runtime import driver
        print("KernBench" in repr(driver.__dict__))
    """
    assert run(code).splitlines() == ["[2.0, 2.0, 2.0, 2.0, 2.0]", "False"]


def test_a_second_process_finds_what_the_first_lowered_on_disk(tmp_path):
    """A kernel lowered for a GPU that KernBench stands in for is not taken for one of KernBench's own."""
    code = """
        import os, sys
        from contextlib import nullcontext
        import numpy as np
        sys.path.insert(0, "benches")
        import tutorial_kernels as tutorials
        from triton.compiler import ASTSource
        from kernbench.kernels.standalone import StandaloneDevice
        from kernbench.triton import _triton_believes
        lowered, make_ir = [], ASTSource.make_ir
        ASTSource.make_ir = lambda self, *args: lowered.append(self.name) or make_ir(self, *args)
        for gpu in map(int, os.environ["TARGETS"].split()):
            with StandaloneDevice() as device, _triton_believes("cuda", gpu) if gpu else nullcontext():
                x, out = device.array(np.arange(100, dtype=np.float32)), device.empty((100,), "f32")
                tutorials.add(x, x, out, 32)
                assert (out.numpy() == 2 * np.arange(100)).all()
        print(lowered)
    """
    cache = str(tmp_path)
    assert run(code, TRITON_CACHE_DIR=cache, TARGETS="90 0 80") == "['add_kernel', 'add_kernel', 'add_kernel']"
    assert run(code, TRITON_CACHE_DIR=cache, TARGETS="0 80 90") == "[]"


def test_the_driver_is_ours_inside_and_what_it_was_outside():
    from triton.runtime import driver

    before, do_bench = dict(driver.__dict__), triton.testing.do_bench
    code, defaults = do_bench.__code__, do_bench.__defaults__
    with StandaloneDevice():
        assert type(driver.active).__name__ == "KernBenchDriver"
        assert do_bench.__code__ is not code
        with StandaloneDevice():
            assert type(driver.active).__name__ == "KernBenchDriver"
        assert type(driver.active).__name__ == "KernBenchDriver"
    assert driver.__dict__ == before
    assert triton.testing.do_bench is do_bench
    assert (do_bench.__code__, do_bench.__defaults__) == (code, defaults) and defaults


def test_a_launch_outside_a_context_says_what_to_do_and_the_backend_is_nobody_elses_default():
    code = """
        import triton.backends
        from kernbench.kernels import NoDeviceError
        from kernbench.kernels.triton_backend.driver import KernBenchDriver
        from looked_at_kernels import row_sums
        offered = [KernBenchDriver.is_active()]
        import kernbench.runtime_api.context
        try:
            row_sums[(1,)](1, 2, 3, 4, BLOCK=16)
        except NoDeviceError as error:
            assert "outside a context" in str(error) and "RuntimeContext.open" in str(error)
            offered.append(KernBenchDriver.is_active())
        class Other:
            driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
        triton.backends.backends["other"] = Other
        print([*offered, KernBenchDriver.is_active()])
    """
    assert run(code, PYTHONPATH=str(Path(__file__).parent), TRITON_DEFAULT_BACKEND="") == "[False, True, False]"


def test_a_stored_kernel_outside_a_context_says_what_to_do():
    from kernbench.kernels.builtin import store

    kernel = store.kernel("fill", {"out_ptr": "i8", "value": "i64"}, {"BLOCK_R": 1, "BLOCK_C": 1024})
    with pytest.raises(NoDeviceError, match="outside a context"):
        launch(kernel, (1,), [256, 0, 1, 1, 1])


def test_gpu_options_are_accepted_and_unknown_ones_refused():
    with StandaloneDevice() as device:
        x, out = device.array(np.ones(5, np.float32)), device.empty((5,), "f32")
        tutorials.add_kernel[(1,)](x, x, out, 5, BLOCK_SIZE=8, num_warps=16, num_ctas=2, num_stages=5, maxnreg=64)
        assert out.numpy().tolist() == [2.0] * 5
        with pytest.raises((KeyError, TypeError), match="num_warp"):
            tutorials.add_kernel[(1,)](x, x, out, 5, BLOCK_SIZE=8, num_warp=16)


def test_a_second_launch_parses_and_compiles_nothing(monkeypatch):
    with StandaloneDevice() as device:
        x, out = device.array(np.ones(5, np.float32)), device.empty((5,), "f32")
        tutorials.add(x, x, out, block=32)
        monkeypatch.setattr("kernbench.kernels.ttir.parse", None)
        monkeypatch.setattr("triton.compiler.compile", None)
        tutorials.add(x, x, out, block=32)
        assert len(device.records) == 2


def test_tuples_none_and_ones_are_passed_as_triton_passes_them():
    with StandaloneDevice() as device:
        x, out = device.array(np.arange(4, dtype=np.float32)), device.empty((4,), "f32")
        scale_kernel[(1,)](x, out, None, (2, 0.5), 1, N=4)
        assert out.numpy().tolist() == [1.5, 3.5, 5.5, 7.5]


def test_a_host_descriptor_is_an_argument():
    from triton.tools.tensor_descriptor import TensorDescriptor

    with StandaloneDevice() as device:
        x, out = device.array(np.arange(256, dtype=np.float32).reshape(16, 16)), device.empty((16, 16), "f32")
        descriptor_kernel[(1,)](TensorDescriptor(x, [16, 16], [16, 1], [16, 16]), out)
        np.testing.assert_array_equal(out.numpy(), x.numpy())


def test_the_interpreter_is_warned_about():
    code = """
        import warnings
        import triton
        from kernbench.kernels.standalone import StandaloneDevice
        with warnings.catch_warnings(record=True) as caught, StandaloneDevice():
            pass
        print([str(w.message).split(":")[0] for w in caught])
    """
    assert run(code, TRITON_INTERPRET="1") == "['TRITON_INTERPRET is set']"


def test_num_stages_reaches_the_scratchpad():
    with StandaloneDevice() as device:
        a = device.empty((64, 64), "f16")
        needs = []
        for stages in (1, 4):
            tutorials.matmul(a, a, a, tile=(64, 64, 64), num_stages=stages)
            needs.append(device.records[-1].tcm_bytes)
    assert needs[1] - needs[0] == 3 * 2 * (64 * 64 * 2)


def test_a_tile_larger_than_the_scratchpad_raises_tritons_own_error():
    from triton.runtime.errors import OutOfResources as TritonOutOfResources

    with StandaloneDevice(Target(tcm_capacity=100_000, programs_in_flight=2, pes=4)) as device:
        a = device.empty((128, 128), "f16")
        with pytest.raises(
            TritonOutOfResources, match=r"65,536 B  \w+: 128x128xf32  \(tutorial_kernels\.py:"
        ) as caught:
            tutorials.matmul(a, a, a)
        assert isinstance(caught.value, OutOfResources)
        tutorials.matmul(a, a, a, tile=(64, 64, 64), num_stages=1)
        assert device.records[-1].programs_in_flight == 2
        tutorials.matmul(a, a, a, tile=(64, 64, 64), num_stages=3)
        assert device.records[-1].programs_in_flight == 1


def test_an_address_in_no_tensor_is_refused_with_its_argument_name():
    class Elsewhere:
        dtype = "float32"

        def data_ptr(self):
            return 1 << 40

        def numel(self):
            return 4

    with (
        StandaloneDevice() as device,
        pytest.raises(LaunchError, match=r"argument 'x_ptr'.*is in no tensor of device memory"),
    ):
        tutorials.add(Elsewhere(), Elsewhere(), device.empty((4,), "f32"))


def test_an_empty_grid_runs_nothing():
    with StandaloneDevice() as device:
        x = device.empty((0,), "f32")
        tutorials.add(x, x, x)
        assert device.records == []


@pytest.mark.parametrize(
    ("grid", "said"),
    [((-1,), "1 to 3 sizes of at least 0"), ((2.0,), "1 to 3 sizes"), ((2**20, 2**12), "is 4294967296 programs")],
)
def test_a_grid_that_cannot_be(grid, said):
    with StandaloneDevice() as device, pytest.raises(LaunchError, match=said):
        x = device.empty((4,), "f32")
        tutorials.add_kernel[grid](x, x, x, 4, BLOCK_SIZE=4)


def fake_clock(records):
    """Milliseconds that favour 64-row tiles: reads the tile out of the scratchpad need."""
    (record,) = records
    return 1.0 + abs(record.tcm_bytes - 36_000) / 1e6


def test_autotune_measures_alone_prunes_what_does_not_fit_and_is_deterministic():
    target = Target(tcm_capacity=150_000, programs_in_flight=1, pes=16)
    rng = np.random.default_rng(0)
    chosen = []
    for _ in range(2):
        with StandaloneDevice(target, clock=fake_clock) as device:
            a = device.array(rng.standard_normal((100, 80)), "f16")
            b = device.array(rng.standard_normal((80, 60)), "f16")
            c = device.empty((100, 60), "f16")
            tutorials.matmul(a, b, c, tile=None)
            tuner = tutorials.autotuned_matmul_kernel
            timings = {str(config): times[0] for config, times in tuner.configs_timings.items()}
            assert len(device.records) == 1, "what was measured must not be in the record"
            assert len(timings) == 16
            assert any(ms == float("inf") for ms in timings.values())
            assert device.records[0].tcm_bytes <= target.tcm_capacity
            assert timings[str(tuner.best_config)] == min(timings.values())
            expected = a.numpy().astype(np.float32) @ b.numpy().astype(np.float32)
            np.testing.assert_allclose(c.numpy().astype(np.float32), expected, rtol=2e-3, atol=2e-3)
            chosen.append((str(tuner.best_config), timings))
    assert chosen[0] == chosen[1]


def test_another_machine_is_tuned_anew():
    def prefer(nbytes):
        return lambda records: abs(records[0].tcm_bytes - nbytes)

    sizes = []
    for wanted in (20_000, 130_000):
        with StandaloneDevice(clock=prefer(wanted)) as device:
            a = device.empty((64, 64), "f16")
            tutorials.matmul(a, a, a, tile=None)
            sizes.append(device.records[-1].tcm_bytes)
    assert sizes[0] < 40_000 < 100_000 < sizes[1]


def test_do_bench_is_simulated_time():
    with StandaloneDevice(clock=lambda records: 0.25 * len(records)) as device:
        x = device.empty((8,), "f32")
        assert triton.testing.do_bench(lambda: tutorials.add(x, x, x)) == 0.25
        assert triton.testing.do_bench(lambda: tutorials.add(x, x, x), quantiles=[0.5, 0.2]) == [0.25, 0.25]
        assert device.records == []


def test_the_entry_point_package_is_importable_without_triton():
    code = "import sys; sys.modules['triton'] = None; import kernbench.kernels.triton_backend as b; print(b.NAME)"
    assert run(code) == backend.NAME == "kernbench"


def test_a_copied_kernel_is_reported_where_it_lies():
    text = '#loc = loc("/old/a.py":5:0)\n#loc1 = loc("/old/a.py":7:4)\n#loc2 = loc("/lib/helper.py":3:1)\n'
    assert relocated(text, "/new/b.py") == text.replace("/old/a.py", "/new/b.py")
    assert relocated(text, "") == text
