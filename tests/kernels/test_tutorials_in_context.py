"""The tutorials' kernels on a context's tensors: values, time, and autotuning by simulated time."""

from functools import partial

import numpy as np
import pytest

from kernbench.runtime_api.context import RuntimeContext

triton = pytest.importorskip("triton")

import tutorial_kernels as tutorials  # noqa: E402


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def everything(ctx):
    """Launch tutorials 01, 02, 03 and 05; returns what they compute and what they should."""
    x, y = random((70, 90), 1), random((90, 50), 2)
    dx, dy = (ctx.from_numpy(v).to("ahbm") for v in (x, y))
    added, product = ctx.empty(70, 90, dtype="f16"), ctx.empty(70, 50, dtype="f16")
    tutorials.add(dx, dx, added, 256)
    wide = ctx.from_numpy(x.astype(np.float32)).to("ahbm")
    soft = ctx.empty(70, 90, dtype="f32")
    tutorials.softmax(wide, soft, 16)
    tutorials.matmul(dx, dy, product, tile=(32, 32, 32))
    normed, ones, zeros = ctx.empty(70, 90, dtype="f16"), ctx.ones(90, dtype="f16"), ctx.zeros(90, dtype="f16")
    mean, rstd = ctx.empty(70, dtype="f32"), ctx.empty(70, dtype="f32")
    tutorials.layer_norm_fwd_fused[(70,)](dx, normed, ones, zeros, mean, rstd, 90, 90, 1e-5, BLOCK_SIZE=64)
    x, y = x.astype(np.float64), y.astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    centred = x - x.mean(1, keepdims=True)
    expected = [
        2 * x,
        e / e.sum(1, keepdims=True),
        x @ y,
        centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5),
    ]
    return [added, soft, product, normed], expected


@pytest.mark.topology("tiny", sips=1)
def test_values_are_right_and_timing_only_gives_the_same_timeline(topology):
    digests = []
    for enable_data in (True, False):
        with RuntimeContext.open(topology.topology_obj, enable_data=enable_data) as ctx:
            found, expected = everything(ctx)
            digests.append(ctx.timeline().digest())
            if enable_data:
                for got, want in zip(found, expected, strict=True):
                    np.testing.assert_allclose(got.numpy().astype(np.float64), want, rtol=4e-3, atol=2e-2)
    assert digests[0] == digests[1]


def test_ranks_in_any_order_tune_alike():
    seen = set()
    for shuffle in (None, 0, 1):
        with RuntimeContext.open("tiny", sips=3, shuffle=shuffle) as ctx:

            def worker(rank, ctx=ctx):
                ctx.ahbm.set_device(rank)
                a, c = ctx.ones(64, 64, dtype="f16"), ctx.empty(64, 64, dtype="f16")
                tutorials.matmul(a, a, c, tile=None)
                assert (c.numpy() == 64).all()

            ctx.multiprocessing.spawn(worker, nprocs=3)
            seen.add((str(tutorials.autotuned_matmul_kernel.best_config), ctx.timeline().digest()))
    assert len(seen) == 1


@pytest.mark.parametrize("source", ["tiny", "ahbm-1sip"])
def test_autotune_picks_what_is_fastest_in_simulated_time(source):
    """On every machine, and the same on every run; what it measured costs the run no time."""
    chosen = []
    for _ in range(2):
        with RuntimeContext.open(source, sips=1) as ctx:
            a, b = (ctx.from_numpy(random((256, 256), seed)).to("ahbm") for seed in (1, 2))
            c = ctx.empty(256, 256, dtype="f16")
            tutorials.matmul(a, b, c, tile=None)
            tuner = tutorials.autotuned_matmul_kernel
            times = {str(config): measured[0] for config, measured in tuner.configs_timings.items()}
            best = str(tuner.best_config)
            assert times[best] == min(times.values())
            tile = tuner.best_config.kwargs
            fixed = tuple(tile[f"BLOCK_SIZE_{axis}"] for axis in "MNK")
            again = partial(tutorials.matmul, a, b, c, tile=fixed, num_stages=tuner.best_config.num_stages)
            alone = triton.testing.do_bench(again)
            assert alone == times[best]
            launches = [command for command in ctx.timeline().commands if command.bound.kind == "launch"]
            assert len(launches) == 1
            chosen.append((best, times))
    assert chosen[0] == chosen[1]
