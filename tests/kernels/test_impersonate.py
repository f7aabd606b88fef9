"""Programs written for a GPU run through KernBench, and nothing of it stays behind."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import tutorial_kernels as tutorials  # noqa: E402

from kernbench.kernels.standalone import StandaloneDevice  # noqa: E402
from kernbench.runtime_api.context import RuntimeContext  # noqa: E402
from kernbench.triton import impersonate  # noqa: E402

ROOT = Path(__file__).parents[2]


def state():
    """All that impersonation changes, as it is now."""
    from triton.runtime import JITFunction, driver

    x = torch.ones(1)
    return (
        dict(vars(torch.cuda)),
        dict(vars(torch.cuda.nvtx)),
        torch.version.cuda,
        torch.autograd._engine_run_backward,
        torch.autograd.graph._engine_run_backward,
        list(triton.backends.backends.items()),
        dict(vars(driver)),
        JITFunction.run,
        triton.testing.do_bench,
        (x.device, x.is_cuda, torch.cuda.is_available()),
    )


def test_a_gpu_program_runs_unchanged():
    with impersonate("cuda:90"):
        x = torch.randn(5000, device="cuda")
        y = torch.randn(5000).to("cuda:0")
        out = torch.empty_like(x)
        assert out.is_cuda
        assert out.device == torch.device("cuda", 0)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        tutorials.add(x, y, out)
        end.record()
        torch.cuda.synchronize()
        assert 0 < start.elapsed_time(end) < 1
        assert torch.equal(out.cpu(), x.cpu() + y.cpu())
        drivers = [backend.driver for backend in triton.backends.backends.values()]
        assert [driver.is_active() for driver in drivers] == [True]  # libraries count them before they use Triton


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    with impersonate():  # what is imported on first use stays imported
        torch.cuda.Event()
    before = state()
    try:
        with impersonate("cuda:80"), impersonate("cuda:90") as ctx:
            assert torch.cuda.get_device_capability() == (9, 0)
            torch.ones(3, device="cuda").cpu()
            torch.set_default_device("cuda:0")
            assert isinstance(ctx, RuntimeContext)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state() == before
    assert torch.zeros(2).device.type == "cpu"


def test_nesting_goes_back_to_the_outer_one():
    with impersonate("cuda:80") as outer:
        with impersonate("cuda:90") as inner:
            assert inner is outer
            assert triton.runtime.driver.active.get_current_target().arch == 90
        assert triton.runtime.driver.active.get_current_target().arch == 80
        assert torch.cuda.get_device_capability() == (8, 0)
        assert torch.ones(1).is_cuda


def test_an_open_context_is_used_and_a_second_machine_refused():
    with RuntimeContext.open("tiny") as ctx:
        with impersonate() as found:
            assert found is ctx
            properties = torch.cuda.get_device_properties(0)
            assert properties.multi_processor_count == ctx.target.pes
            assert properties.total_memory == ctx.ahbm.mem_get_info()[1]
        with pytest.raises(ValueError, match="open already"), impersonate(topology="tiny"):
            pass
    with impersonate(topology="tiny") as ctx:
        assert ctx.spec.name == "tiny"


def test_a_standalone_device_will_do_but_has_no_streams():
    with StandaloneDevice() as device, impersonate() as found:
        assert found is device
        torch.cuda.synchronize()
        with pytest.raises(NotImplementedError, match="RuntimeContext"):
            torch.cuda.Event()


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("cuda", ValueError, "such as 'cuda:90'"),
        ("cuda:x", ValueError, "compute capability"),
        ("hip:gfx942", NotImplementedError, "only CUDA"),
    ],
)
def test_targets_that_cannot_be(target, error, text):
    before = state()
    with pytest.raises(error, match=text), impersonate(target):
        pass
    assert state() == before


class TestTensors:
    @pytest.fixture(autouse=True)
    def gpu(self, impersonate):
        pass

    def test_moving_copies_as_between_two_memories(self):
        x = torch.zeros(4)
        y = x.cuda()
        y += 1
        assert x.tolist() == [0.0] * 4
        z = y.cpu()
        z += 1
        assert y.tolist() == [1.0] * 4
        assert y.cuda() is y
        assert y.to("cuda") is y
        assert z.cpu() is z

    def test_what_was_brought_to_the_host_says_so(self):
        x = torch.ones(4, device="cuda")
        assert (x.device.type, x.is_cpu, x.get_device()) == ("cuda", False, 0)
        y = x.to("cpu")
        assert (y.device.type, y.is_cuda, y.get_device()) == ("cpu", False, -1)
        assert y[1:].is_cpu
        assert torch.ones(2, device="cpu").is_cpu
        assert torch.ones(2).to(y).is_cpu
        assert y.to(x).is_cuda

    def test_what_is_computed_on_the_device_stays_there(self):
        x = torch.ones(4, device="cuda")
        for y in (x * 2, x.half(), x.to(torch.float64), torch.stack([x, x])[0], torch.zeros_like(x), x.new_empty(3)):
            assert y.to("cuda") is y and y.is_cuda
        leaf = x.clone().requires_grad_()
        leaf.to("cuda").sum().backward()
        assert leaf.grad.tolist() == [1.0] * 4
        assert torch.func.vmap(lambda row: (row * 2).sum())(torch.stack([x, x])).tolist() == [8.0, 8.0]
        # One that may be the host's, and what comes of it, is copied.
        unknown = torch.ones(4)
        for y in (unknown, unknown * 2, unknown * x, x.cpu() + 1):
            assert y.to("cuda") is not y

    def test_dtypes_move_along(self):
        x = torch.ones(4).to("cuda", torch.float16)
        assert (x.dtype, x.is_cuda) == (torch.float16, True)
        assert x.to(device="cpu", dtype=torch.int32).tolist() == [1] * 4
        assert x.to(torch.float32).dtype == torch.float32
        assert x.to(torch.float16) is x
        assert torch.tensor([1, 2], device=torch.device("cuda", 0)).tolist() == [1, 2]
        assert torch.ones(2, device=0).is_cuda

    def test_modules_move(self):
        layer = torch.nn.Linear(3, 2).to("cuda")
        assert layer.weight.is_cuda
        assert layer(torch.ones(3, device="cuda")).shape == (2,)

    def test_backward_functions_see_the_gpu_too(self):
        seen = []

        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, gradient):
                seen.append((gradient.is_cuda, torch.ones(1, device="cuda").device.type))
                return gradient * 2

        x = torch.ones(2, device="cuda", requires_grad=True)
        Double.apply(x).sum().backward()
        torch.autograd.grad(Double.apply(x).sum(), x)
        assert seen == [(True, "cuda")] * 2
        assert x.grad.tolist() == [2.0, 2.0]

    def test_a_product_with_an_output_type_accumulates_in_it(self):
        a = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
        assert torch.mm(a, a.t(), out_dtype=torch.float32).item() == 4096
        assert torch.mm(a, a.t()).dtype == torch.bfloat16
        total = torch.ones(1, 1)
        torch.addmm(total, a, a.t(), out_dtype=torch.float32, out=total)
        assert total.item() == 4097


def test_host_code_chooses_a_grid_by_occupancy(impersonate):
    """As tutorial 02 does: registers and scratchpad of the compiled kernel against what the device has."""
    x, y = torch.randn(300, 90, device="cuda"), torch.empty(300, 90, device="cuda")
    args = (y, x, x.stride(0), y.stride(0), 300, 90)
    kernel = tutorials.softmax_kernel.warmup(*args, BLOCK_SIZE=128, num_stages=2, num_warps=8, grid=(1,))
    kernel._init_handles()
    has = triton.runtime.driver.active.utils.get_device_properties(x.device.index)
    resident = has["max_num_regs"] // (kernel.n_regs * has["warpSize"] * 8)
    assert resident == 8
    assert kernel.metadata.shared >= 2 * 128 * 4  # the row, twice for its two stages
    resident = min(resident, has["max_shared_mem"] // kernel.metadata.shared)
    kernel[(min(has["multiprocessor_count"] * resident, 300), 1, 1)](*args, 128, 2)
    torch.testing.assert_close(y, x.softmax(1))


def test_a_norm_in_half_precision_sums_as_a_gpu_does(impersonate):
    torch.manual_seed(0)
    x, dy = torch.randn(2000, 64, device="cuda").half(), torch.randn(2000, 64, device="cuda").half()
    weights = torch.ones(64, device="cuda", dtype=torch.float16, requires_grad=True)
    torch.nn.functional.layer_norm(x, (64,), weights, torch.zeros_like(weights)).backward(dy)
    exact = torch.nn.functional.layer_norm(x.double(), (64,)).mul(dy.double()).sum(0)
    assert weights.grad.dtype == torch.float16
    assert (weights.grad.double() - exact).abs().max() < exact.abs().max() * 2.0**-10


def test_cublas_of_triton_multiplies(impersonate):
    from triton._C.libtriton import nvidia

    blas = nvidia.cublas.CublasLt(torch.empty(16, device="cuda", dtype=torch.uint8))
    a, b, c = (torch.randn(shape, device="cuda") for shape in ((16, 32), (8, 32), (16, 8)))
    out = torch.empty(16, 8, device="cuda")
    blas.matmul(a, b, out)
    torch.testing.assert_close(out, a @ b.T)
    blas.gemm(a, b, c, out, 2.0, 0.5)
    torch.testing.assert_close(out, 2 * a @ b.T + c / 2)


@pytest.mark.parametrize("each", [16, 32])
def test_cublas_of_triton_multiplies_scaled_blocks(impersonate, each):
    """Scales lie in blocks of 128 rows by 4, in which row 32 i + j is at j, i."""
    from triton._C.libtriton import nvidia

    blas, rng = nvidia.cublas.CublasLt(None), torch.Generator().manual_seed(0)
    stored, meant = [], []
    for rows in (256, 128):
        if each == 16:
            bits = torch.randint(0, 16, (rows, 128), generator=rng, dtype=torch.uint8)
            table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            values = torch.cat((table, -table))[bits.int()]
            stored.append(bits[:, ::2] | bits[:, 1::2] << 4)
            scale = torch.rand(rows, 8, generator=rng).to(torch.float8_e4m3fn)
            factor = scale.float()
        else:
            stored.append(torch.randn(rows, 128, generator=rng).to(torch.float8_e4m3fn))
            values = stored[-1].float()
            scale = torch.randint(120, 134, (rows, 4), generator=rng, dtype=torch.uint8)
            factor = 2.0 ** (scale.float() - 127)
        flat = torch.empty(rows // 128, 128 // each // 4, 32, 4, 4, dtype=torch.float32)
        for row in range(rows):
            for at in range(128 // each):
                flat[row // 128, at // 4, row % 32, row % 128 // 32, at % 4] = scale[row, at].float()
        stored.append(flat.to(scale.dtype).flatten())
        meant.append(values * factor.repeat_interleave(each, 1))
    out = torch.empty(256, 128)
    multiply = blas.block_scaled_matmul_nvfp4 if each == 16 else blas.block_scaled_matmul_mxfp8
    multiply(stored[0], stored[2], out, stored[1], stored[3])
    torch.testing.assert_close(out, meant[0] @ meant[1].T)


def test_streams_order_and_events_measure(impersonate):
    x, out = torch.ones(4096, device="cuda"), torch.empty(4096, device="cuda")
    side = torch.cuda.Stream()
    assert torch.cuda.current_stream() == torch.cuda.default_stream() != side
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    with torch.cuda.stream(side), torch.cuda.device(0):
        assert torch.cuda.current_stream() == side
        for mark in marks:
            mark.record()
            tutorials.add(x, x, out)
    torch.cuda.current_stream().wait_stream(side)
    once, twice = (marks[0].elapsed_time(marks[i]) for i in (1, 2))
    assert 0 < once < twice


def test_seeds_reach_torchs_generator(impersonate):
    torch.cuda.manual_seed(3)
    first = torch.randn(4, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(first, torch.randn(4, device="cuda"))


@pytest.mark.parametrize("impersonate", ["cuda:75"], indirect=True)
def test_the_fixture_takes_a_target(impersonate):
    assert torch.cuda.get_device_properties("cuda").major == 7
    assert not torch.cuda.is_bf16_supported()
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.cuda.set_device(1)


def test_autotune_and_do_bench_use_simulated_time(impersonate):
    a = torch.randn(64, 64, device="cuda")
    out = torch.empty_like(a)
    once = triton.testing.do_bench(lambda: tutorials.add(a, a, out))
    assert once == triton.testing.do_bench(lambda: tutorials.add(a, a, out)) > 0
    assert triton.runtime.driver.active.get_device_interface() is torch.cuda


SCRIPT = """
    import torch, triton, triton.language as tl
    assert torch.cuda.is_available()

    @triton.jit
    def double(x_ptr, N: tl.constexpr):
        at = tl.arange(0, N)
        tl.store(x_ptr + at, 2 * tl.load(x_ptr + at))

    def test_double():
        x = torch.ones(8, device="cuda")
        double[(1,)](x, N=8)
        assert x.tolist() == [2.0] * 8
        print("capability", torch.cuda.get_device_capability())

    if __name__ == "__main__":
        test_double()
"""


@pytest.mark.parametrize("module", [["kernbench.triton"], ["pytest", "-s"]])
def test_the_environment_variable(tmp_path, module):
    path = tmp_path / "test_script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "conftest.py").write_text("import torch\nassert torch.cuda.is_available()\n")  # as libraries ask
    env = os.environ | {"KERNBENCH_IMPERSONATE": "cuda:80", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *module, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "capability (8, 0)" in done.stdout
