import numpy as np
import pytest

import kernbench.topology
from kernbench import tp
from kernbench.runtime_api.context import RuntimeContext


def run(ranks, fn):
    results = [None] * ranks
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=ranks)) as ctx:

        def worker(rank):
            ctx.distributed.init_process_group()
            results[rank] = fn(rank, ctx)

        ctx.multiprocessing.spawn(worker, nprocs=ranks)
    return results


@pytest.mark.parametrize(("ranks", "size"), [(1, 1), (4, 4), (4, 2), (6, 3), (4, 1)])
def test_groups_are_megatrons(ranks, size):
    def worker(rank, ctx):
        assert not tp.is_initialized()
        tp.initialize_model_parallel(size)
        assert tp.model_parallel_is_initialized()
        tensor, data = tp.get_tensor_model_parallel_group(), tp.get_data_parallel_group()
        assert (tp.get_tensor_model_parallel_world_size(), tp.get_tensor_model_parallel_rank()) == (size, rank % size)
        assert (tp.get_data_parallel_world_size(), tp.get_data_parallel_rank()) == (ranks // size, rank // size)
        assert tp.get_tensor_model_parallel_src_rank() == rank // size * size
        return tensor.ranks, data.ranks

    for rank, (tensor, data) in enumerate(run(ranks, worker)):
        first = rank // size * size
        assert tensor == tuple(range(first, first + size))
        assert data == tuple(range(rank % size, ranks, size))


def test_state_is_each_ranks_own():
    def worker(rank, ctx):
        tp.initialize_model_parallel(2)
        ctx.distributed.barrier()
        if rank == 0:
            tp.destroy_model_parallel()
        ctx.distributed.barrier()
        return tp.is_initialized()

    assert run(2, worker) == [False, True]


def test_mistakes():
    def worker(rank, ctx):
        with pytest.raises(
            RuntimeError, match=r"world_size \(2\) is not divisible by tensor_model_parallel_size \(3\)"
        ):
            tp.initialize_model_parallel(3)
        for name in ("pipeline_model_parallel_size", "context_parallel_size", "expert_model_parallel_size"):
            with pytest.raises(NotImplementedError, match=f"{name}=2: only tensor and data parallelism"):
                tp.initialize_model_parallel(1, **{name: 2})
        with pytest.raises(NotImplementedError, match="use_sharp"):
            tp.initialize_model_parallel(1, use_sharp=True)
        with pytest.raises(AssertionError, match="not initialized"):
            tp.get_tensor_model_parallel_rank()
        tp.initialize_model_parallel(2)
        with pytest.raises(AssertionError, match="already initialized"):
            tp.initialize_model_parallel(2)

    run(2, worker)


def test_needs_a_process_group():
    with RuntimeContext.open("tiny"), pytest.raises(AssertionError, match="init_process_group"):
        tp.initialize_model_parallel(1)


def test_regions():
    values = np.arange(24, dtype=np.float16).reshape(2, 12)

    def worker(rank, ctx):
        tp.initialize_model_parallel(4)
        whole = ctx.tensor(values)
        assert tp.copy_to_tensor_model_parallel_region(whole) is whole
        part = tp.scatter_to_tensor_model_parallel_region(whole)
        np.testing.assert_array_equal(part.numpy(), values[:, 3 * rank : 3 * rank + 3])
        np.testing.assert_array_equal(tp.gather_from_tensor_model_parallel_region(part).numpy(), values)
        assert tp.reduce_from_tensor_model_parallel_region(whole) is whole
        np.testing.assert_array_equal(whole.numpy(), 4 * values)
        strided = tp.reduce_from_tensor_model_parallel_region(whole.T)
        np.testing.assert_array_equal(strided.numpy(), 16 * values.T)
        np.testing.assert_array_equal(whole.numpy(), 4 * values)

    run(4, worker)


def test_regions_do_nothing_alone():
    def worker(rank, ctx):
        tp.initialize_model_parallel(1)
        x = ctx.ones((2, 3))
        for region in (
            tp.scatter_to_tensor_model_parallel_region,
            tp.gather_from_tensor_model_parallel_region,
            tp.reduce_from_tensor_model_parallel_region,
        ):
            assert region(x) is x

    run(2, worker)


def test_dividing():
    assert tp.divide(12, 4) == 3
    with pytest.raises(AssertionError, match="13 is not divisible by 4"):
        tp.divide(13, 4)
    with RuntimeContext.open("tiny") as ctx:
        parts = tp.split_tensor_along_last_dim(ctx.ones((2, 6)), 3)
        assert [p.shape for p in parts] == [(2, 2)] * 3
        assert not parts[1].is_contiguous()
        assert all(p.is_contiguous() for p in tp.split_tensor_along_last_dim(ctx.ones((2, 6)), 3, True))


def test_the_main_program_can_set_it_up_for_its_ranks():
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=4)) as ctx:
        ctx.distributed.init_process_group(backend="ahbm")
        tp.initialize_model_parallel(ctx.distributed.get_world_size())
        totals = {}

        def worker(rank):
            if rank == 1:
                tp.initialize_model_parallel(4)
                with pytest.raises(AssertionError, match="already initialized"):
                    tp.initialize_model_parallel(4)
            assert tp.get_tensor_model_parallel_rank() == rank
            x = ctx.full((2,), float(rank))
            ctx.distributed.all_reduce(x, group=tp.get_tensor_model_parallel_group())
            totals[rank] = x.tolist()

        ctx.multiprocessing.spawn(worker, nprocs=4)
        assert totals == {rank: [6.0, 6.0] for rank in range(4)}
