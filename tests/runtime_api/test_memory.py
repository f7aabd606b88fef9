"""Who holds which memory, and for how long."""

import numpy as np
import pytest

from kernbench.kernels import builtin
from kernbench.kernels.errors import ValuesNeeded
from kernbench.memory import OutOfMemoryError
from kernbench.runtime_api.context import RuntimeContext


def test_memory_returns_when_a_tensor_dies(ctx):
    assert ctx.ahbm.memory_allocated() == 0
    first = ctx.ones(1000)
    held = ctx.ahbm.memory_allocated()
    assert held == 2048
    address = first.data_ptr()
    del first
    assert ctx.ahbm.memory_allocated() == 0
    assert ctx.ahbm.max_memory_allocated() == held
    assert ctx.ones(1000).data_ptr() == address
    ctx.ahbm.reset_peak_memory_stats()
    assert ctx.ahbm.max_memory_allocated() == 0
    free, total = ctx.ahbm.mem_get_info()
    assert free == total


def test_another_stream_does_not_get_the_memory_until_it_must(ctx):
    tensor = ctx.ones(1000)
    address = tensor.data_ptr()
    del tensor
    with ctx.ahbm.stream(ctx.ahbm.Stream()):
        assert ctx.ones(1000).data_ptr() != address
    assert ctx.ones(1000).data_ptr() == address


def test_reused_memory_never_shows_older_values(ctx):
    garbage = ctx.full(1000, 7.0)
    address = garbage.data_ptr()
    del garbage
    clean, out = ctx.zeros(1000), ctx.empty(1000)
    assert clean.data_ptr() == address
    builtin.elementwise("add", out, clean, 0)  # a kernel sees it before anything was copied there
    assert not out.numpy().any()
    del clean
    assert not ctx.empty(1000).numpy().any()


def test_scratch_of_collectives_comes_back(run):
    def worker(rank, ctx):
        tensor = ctx.full(1000, 1.0)
        seen = set()
        for _ in range(5):
            ctx.distributed.all_reduce(tensor)
            ctx.ahbm.synchronize()
            seen.add(ctx.ahbm.memory_allocated())
        return seen

    assert run(4, worker).results == [{2048}] * 4


def test_a_tensor_in_flight_outlives_its_name(run):
    def worker(rank, ctx):
        work = ctx.distributed.all_reduce(ctx.full(1000, 1.0), async_op=True)
        other = ctx.full(1000, 5.0)
        work.wait()
        return work.result()[0].tolist()[0], other.tolist()[0]

    assert run(2, worker).results == [(2.0, 5.0)] * 2


def test_shapes_that_no_memory_can_have():
    with RuntimeContext.open("tiny") as ctx:
        with pytest.raises(OutOfMemoryError):
            ctx.empty(1 << 40, 1 << 40)  # 0 elements modulo 2**64
        with pytest.raises(ValueError, match=r"shape \[2, -4\]: a size is negative"):
            ctx.empty(2, -4)
        assert ctx.ahbm.memory_allocated() == 0


def test_out_of_memory_says_who_holds_what():
    with RuntimeContext.open("tiny", overrides=["sip.cube.hbm.capacity=1 MiB"]) as ctx:
        total = ctx.ahbm.mem_get_info()[1]
        keep = ctx.empty(total // 4, dtype="i8", name="weights of layer 3")
        with pytest.raises(OutOfMemoryError) as caught:
            ctx.empty(total, dtype="i8", name="activations")
        text = str(caught.value)
        assert "ahbm:0 is full: 'activations' needs" in text
        assert "weights of layer 3" in text
        assert "weights of layer 3" in ctx.ahbm.memory_summary()
        unnamed = ctx.empty(64)
        assert "made at test_memory.py:" in ctx.ahbm.memory_summary()
        del keep, unnamed
        assert "nothing is allocated" in ctx.ahbm.memory_summary()
        ctx.empty(total // 2, dtype="i8")


def test_a_tensor_larger_than_memory_moves_streams_only_when_it_must():
    with RuntimeContext.open("tiny", overrides=["sip.cube.hbm.capacity=1 MiB"]) as ctx:
        total = ctx.ahbm.mem_get_info()[1]
        half = total // 2 - 256
        tensor = ctx.empty(half, dtype="i8")
        del tensor
        with ctx.ahbm.stream(ctx.ahbm.Stream()):
            first = ctx.empty(half, dtype="i8")
            second = ctx.empty(half, dtype="i8")
        assert first.data_ptr() != second.data_ptr()


class TestTimingOnly:
    @pytest.fixture
    def ctx(self):
        with RuntimeContext.open("tiny", enable_data=False) as opened:
            yield opened

    def test_what_was_skipped_cannot_be_read(self, ctx):
        tensor = ctx.zeros((2, 3), name="x")
        out = ctx.ones((2, 3), name="out")
        tensor.copy_(ctx.host_empty((2, 3)))
        for read in (tensor.numpy, tensor.tolist, lambda: tensor.cpu().numpy()):
            with pytest.raises(ValuesNeeded, match=f"{__file__}:.*values of tensor 'x'"):
                read()
        assert "values not computed" in repr(tensor)
        builtin.elementwise("add", out, tensor, 1)
        with pytest.raises(ValuesNeeded, match="tensor 'out'"):
            out.tolist()

    def test_what_is_known_can_be_read(self, ctx):
        tensor = ctx.zeros((2, 3))
        assert tensor.tolist() == [[0] * 3] * 2
        tensor.copy_(ctx.host_empty((2, 3)))
        tensor[0].copy_(np.array([1, 2, 3]))
        assert tensor[0].tolist() == [1, 2, 3]
        with pytest.raises(ValuesNeeded):
            tensor[1].numpy()
        tensor.fill_(4)
        assert tensor.tolist() == [[4] * 3] * 2
        assert ctx.arange(3).tolist() == [0, 1, 2]
        assert ctx.randint(0, 5, (3,)).numel() == 3
        with pytest.raises(ValuesNeeded):
            ctx.randn(3).numpy()

    def test_collectives_pass_on_what_is_not_known(self, run):
        def worker(rank, ctx):
            known, unknown = ctx.ones(4), ctx.randn(4)
            ctx.distributed.all_reduce(known)
            ctx.distributed.all_reduce(unknown)
            with pytest.raises(ValuesNeeded):
                unknown.numpy()
            return known.tolist()

        assert run(2, worker, enable_data=False).results == [[2.0] * 4] * 2

    def test_host_tensors_without_values_take_no_memory(self, ctx):
        huge = ctx.host_empty((1 << 20, 1 << 20))
        assert huge.shape == (1 << 20, 1 << 20)
        with pytest.raises(ValuesNeeded):
            _ = huge._host_buffer
