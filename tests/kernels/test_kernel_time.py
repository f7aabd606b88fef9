"""The simulated time of kernels against bytes over bandwidth: the pattern of an access decides how many bytes move."""

import numpy as np
import pytest

pytest.importorskip("triton")

import timed_kernels as kernels
import triton

from kernbench.runtime_api.context import RuntimeContext

N = 1 << 17
BURST = 32


@pytest.fixture(scope="module")
def ctx():
    with RuntimeContext.open("tiny") as ctx:
        yield ctx


def bytes_moved(ctx, launch):
    """Simulated time as bytes at the HBM's bandwidth."""
    cube = ctx.spec.sip.cube
    return triton.testing.do_bench(launch) * 1e-3 * cube.hbm.bandwidth


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("stride", [1, 2, 4, 16, 64])
def test_a_strided_read_moves_every_burst_that_it_touches(ctx, stride, dtype):
    x, out = (np.arange(N * stride) % 2048).astype(dtype), np.zeros(N, dtype)
    moved = bytes_moved(ctx, lambda: kernels.strided[(N // 4096,)](x, out, stride, BLOCK=4096))
    np.testing.assert_array_equal(out, x[::stride])
    width = out.itemsize
    assert moved == pytest.approx(N * min(stride * width, BURST) + N * width, rel=0.08)


@pytest.mark.parametrize("order", ["ascending", "descending", "scattered"])
def test_neighbours_gathered_together_share_a_burst(ctx, order):
    elements = 1 << 22
    index = {
        "ascending": np.arange(N),
        "descending": np.arange(N)[::-1],
        "scattered": np.random.default_rng(0).permutation(elements)[:N],
    }[order].astype(np.int32)
    x, out = np.arange(elements, dtype=np.float32), np.zeros(N, np.float32)
    moved = bytes_moved(ctx, lambda: kernels.gather[(N // 4096,)](x, index, out, BLOCK=4096))
    np.testing.assert_array_equal(out, x[index])
    assert moved == pytest.approx(N * ((BURST if order == "scattered" else 4) + 8), rel=0.1)


@pytest.mark.parametrize(("rows", "cols", "read", "written"), [(64, 64, 4, 4), (1, 512, 4, BURST), (512, 1, BURST, 4)])
def test_a_transpose_is_as_fast_as_its_tiles_are_wide_on_both_sides(ctx, rows, cols, read, written):
    n = 512
    x, out = np.random.default_rng(0).standard_normal((n, n), np.float32), np.zeros((n, n), np.float32)
    moved = bytes_moved(ctx, lambda: kernels.transpose[(n // rows, n // cols)](x, out, n, ROWS=rows, COLS=cols))
    np.testing.assert_array_equal(out, x.T)
    assert moved == pytest.approx(n * n * (read + written), rel=0.08)


def test_more_stages_hide_latency_until_the_queue_is_full(ctx):
    x, out = np.ones(1 << 14, np.float32), np.zeros(256, np.float32)
    times = [
        triton.testing.do_bench(lambda s=s: kernels.stream[(1,)](x, out, x.size, BLOCK=256, STAGES=s))
        for s in (1, 2, 3, 4, 5)
    ]
    assert times[0] > 1.6 * times[1] > 1.6 * times[2] and times == sorted(times, reverse=True)
    assert times[0] * 1e9 > 64 * ctx.spec.sip.cube.hbm.latency  # one load at a time: each pays the whole way


def test_a_launch_costs_its_host_time():
    with RuntimeContext.open("tiny") as ctx:
        x, out = ctx.zeros(4096), ctx.zeros(4096)
        before = ctx.timeline().makespan_ps
        for _ in range(10):
            kernels.strided[(1,)](x, out, 1, BLOCK=64)
        host = ctx.spec.system.host.launch
        alone = triton.testing.do_bench(lambda: kernels.strided[(1,)](x, out, 1, BLOCK=64)) * 1e9
        assert alone < host
        assert ctx.timeline().makespan_ps - before == pytest.approx(10 * host + alone, rel=0.01)
