"""Tensor-parallel layers: the contract, and Megatron's options."""

import numpy as np
import pytest

import kernbench.topology
from kernbench import tp
from kernbench.policy.placement.dp import DPPolicy
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.runtime_api.tensor import Tensor
from kernbench.runtime_api.types import DeviceSelector
from kernbench.sim_engine.engine import GraphEngine

WORLDS = [1, 2, 4, 8]
TOKENS, IN, OUT = 6, 64, 48


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def run(ranks, fn):
    """What each rank's ``fn(rank, ctx)`` returns, under tensor parallelism over all of them."""
    results = [None] * ranks
    topology = kernbench.topology.load("tiny", sips=ranks)
    engine = GraphEngine(topology, enable_data=True)
    with RuntimeContext(
        engine=engine, target_device=DeviceSelector("all"), correlation_id="tp", spec=topology.spec
    ) as ctx:

        def worker(rank, world):
            ctx.ahbm.set_device(rank)
            ctx.distributed.init_process_group(backend="ahbm")
            tp.initialize_model_parallel(world)
            assert ctx.distributed.get_world_size() == world
            results[rank] = fn(rank, ctx)

        ctx.multiprocessing.spawn(worker, args=(ranks,), nprocs=ranks)
    return results


def host(values, name="values"):
    tensor = Tensor(shape=values.shape, dtype="f16", name=name)
    tensor._host_buffer[...] = values
    return tensor


def columns(weight, rank, ranks):
    return np.array_split(weight, ranks, axis=1)[rank]


@pytest.mark.parametrize("ranks", WORLDS)
def test_column_forward_is_x_times_the_ranks_columns(ranks):
    x, weight = normal(TOKENS, IN), normal(IN, OUT, seed=1)

    def worker(rank, ctx):
        layer = tp.ColumnParallelLinear(in_features=IN, out_features=OUT, torch=ctx)
        assert layer.weight.shape == (IN, OUT // ranks)
        assert not layer.weight.numpy().any()
        layer.weight.copy_(host(columns(weight, rank, ranks)))
        there = ctx.zeros((TOKENS, IN), dtype="f16", dp=DPPolicy(cube="replicate", pe="replicate"), name="x")
        there.copy_(host(x))
        return layer.forward(there).numpy()

    for rank, got in enumerate(run(ranks, worker)):
        want = x.astype(np.float32) @ columns(weight, rank, ranks).astype(np.float32)
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("ranks", WORLDS)
def test_row_forward_is_the_sum_and_the_same_bits_everywhere(ranks):
    x, weight = normal(TOKENS, IN), normal(IN, OUT, seed=1) / np.float16(8)

    def worker(rank, ctx):
        layer = tp.RowParallelLinear(in_features=IN, out_features=OUT, torch=ctx)
        assert layer.weight.shape == (IN // ranks, OUT)
        layer.weight.copy_(host(np.array_split(weight, ranks)[rank]))
        mine = ctx.zeros((TOKENS, IN // ranks)).copy_(host(columns(x, rank, ranks)))
        return layer(mine).numpy()

    results = run(ranks, worker)
    np.testing.assert_allclose(results[0], x.astype(np.float32) @ weight.astype(np.float32), rtol=1e-2, atol=1e-2)
    assert len({result.tobytes() for result in results}) == 1


@pytest.mark.parametrize("ranks", [1, 4])
def test_column_into_row_with_bias(ranks):
    x, first, second = (
        normal(2, 3, IN),
        normal(IN, OUT, seed=1) / np.float16(8),
        normal(OUT, IN, seed=2) / np.float16(8),
    )
    one, two = normal(OUT, seed=3), normal(IN, seed=4)

    def worker(rank, ctx):
        up = tp.ColumnParallelLinear(IN, OUT, torch=ctx, bias=True, init_method=lambda w: w.copy_(first))
        down = tp.RowParallelLinear(OUT, IN, torch=ctx, bias=True, init_method=lambda w: w.copy_(second))
        up.bias.copy_(np.array_split(one, ranks)[rank])
        down.bias.copy_(two)
        assert [p.shape for p in up.parameters()] == [(IN, OUT // ranks), (OUT // ranks,)]
        return down(up(ctx.tensor(x))).numpy()

    want = (x.astype(np.float32) @ first.astype(np.float32) + one) @ second.astype(np.float32) + two
    for got in run(ranks, worker):
        assert got.shape == x.shape
        np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-2)


def test_whole_tensors_on_both_sides():
    x, weight = normal(TOKENS, IN), normal(IN, OUT, seed=1) / np.float16(8)

    def worker(rank, ctx):
        gathered = tp.ColumnParallelLinear(
            IN, OUT, torch=ctx, gather_output=True, init_method=lambda w: w.copy_(weight)
        )
        divided = tp.RowParallelLinear(
            IN, OUT, torch=ctx, input_is_parallel=False, init_method=lambda w: w.copy_(weight)
        )
        return gathered(ctx.tensor(x)).numpy(), divided(ctx.tensor(x)).numpy()

    want = x.astype(np.float32) @ weight.astype(np.float32)
    for pair in run(4, worker):
        for got in pair:
            np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)


def test_a_skipped_bias_is_handed_over():
    def worker(rank, ctx):
        row = tp.RowParallelLinear(IN, OUT, torch=ctx, bias=True, skip_bias_add=True)
        column = tp.ColumnParallelLinear(IN, OUT, torch=ctx, bias=True, skip_bias_add=True)
        row.bias.fill_(1)
        column.bias.fill_(1)
        (y, b), (z, c) = row(ctx.ones((2, IN // 2))), column(ctx.ones((2, IN)))
        return y.numpy().any(), b is row.bias, z.numpy().any(), c is column.bias

    assert run(2, worker) == [(False, True, False, True)] * 2


def test_weights_do_not_depend_on_the_number_of_ranks():
    def master(weight):
        weight.copy_(np.random.default_rng(7).standard_normal(weight.shape))

    def worker(rank, ctx):
        column = tp.ColumnParallelLinear(IN, OUT, torch=ctx, init_method=master)
        row = tp.RowParallelLinear(IN, OUT, torch=ctx, init_method=master)
        return column.weight.numpy(), row.weight.numpy()

    (whole, _), *_ = run(1, worker)
    column, row = zip(*run(4, worker), strict=True)
    np.testing.assert_array_equal(np.concatenate(column, axis=1), whole)
    np.testing.assert_array_equal(np.concatenate(row, axis=0), whole)


def test_phases_are_named():
    def worker(rank, ctx):
        with ctx.range("down"):
            tp.RowParallelLinear(IN, OUT, torch=ctx)(ctx.ones((2, IN // 2)))
        return [
            ctx.engine.log.ranges[c.range_id] for c in ctx.engine.log.commands[rank] if type(c).__name__ == "Collective"
        ]

    assert run(2, worker) == [["down/all_reduce"]] * 2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda c: tp.ColumnParallelLinear(IN, 50, torch=c), AssertionError, "50 is not divisible by 4"),
        (lambda c: tp.RowParallelLinear(50, OUT, torch=c), AssertionError, "50 is not divisible by 4"),
        (
            lambda c: tp.ColumnParallelLinear(IN, OUT, torch=c, sequence_parallel=True),
            NotImplementedError,
            "reduce_scatter_tensor",
        ),
        (
            lambda c: tp.RowParallelLinear(IN, OUT, torch=c)(c.ones((2, IN))),
            RuntimeError,
            r"cannot be multiplied \(2x64 and 16x48\)",
        ),
    ],
)
def test_mistakes(make, error, words):
    def worker(rank, ctx):
        with pytest.raises(error, match=words):
            make(ctx)

    run(4, worker)


def test_without_parallel_state():
    def worker(rank, ctx):
        tp.destroy_model_parallel()
        tp.ColumnParallelLinear(IN, OUT, torch=ctx)

    with pytest.raises(SpawnException, match="parallel group is not initialized: call"):
        run(2, worker)
