"""What goes wrong between programs and ranks is said in a way that one can act on."""

import inspect

import numpy as np
import pytest

pytest.importorskip("triton")
import comm_kernels as kernels

import kernbench.topology
from kernbench.kernels import sanitize
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.launch import LaunchError
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.memory.space import OutOfMemoryError
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.errors import DeadlockError, MismatchError
from kernbench.runtime_api.multiprocessing import SpawnException

MACHINE = kernbench.topology.load("tiny", sips=2)


@pytest.fixture
def device():
    with StandaloneDevice() as opened:
        yield opened


def line(kernel, text):
    source, start = inspect.getsourcelines(kernel.fn)
    (at,) = [i for i, row in enumerate(source) if text in row]
    return f"comm_kernels.py:{start + at}"


def errors_of(worker, ranks=2):
    """rank -> what it failed with."""
    with RuntimeContext.open(MACHINE) as ctx, pytest.raises(SpawnException) as raised:
        ctx.multiprocessing.spawn(lambda rank: worker(ctx, rank), nprocs=ranks)
    return raised.value.errors


def test_a_deadlock_names_programs_flags_and_values(device):
    flag = device.array(np.arange(12), "i32", "gates")
    with pytest.raises(KernelFault) as raised:
        kernels.wait_for_ever[(10,)](flag)
    message = str(raised.value)
    assert "kernel 'wait_for_ever': deadlock: no program can go on" in message
    at = line(kernels.wait_for_ever, "kl.wait")
    waits = (
        f"{at}: program (3, 0, 0) of kernel 'wait_for_ever' waits for 'flag', element 3 of 'gates', to be >= 7: it is 3"
    )
    assert waits in message and message.count("waits for") == 7  # 7, 8 and 9 are there already


def test_a_deadlock_between_ranks_names_the_ranks_too():
    def worker(ctx, rank):
        ctx.distributed.init_process_group()
        flag = ctx.distributed.symmetric_memory.zeros(1, dtype="i32", name="gate")
        if rank == 0:
            kernels.wait_for_ever[(1,)](flag)
        else:
            ctx.distributed.barrier()

    errors = errors_of(worker)
    assert {type(e) for e in errors.values()} == {DeadlockError}
    message = str(errors[0])
    source, start = inspect.getsourcelines(worker)
    launch, barrier = (start + i for i, row in enumerate(source) if "[(1,)]" in row or "barrier()" in row)
    assert f"rank 0 waits in kernel 'wait_for_ever' at {__file__}:{launch}" in message
    assert "rank 1 waits in barrier" in message and f"{__file__}:{barrier}" in message
    at = line(kernels.wait_for_ever, "kl.wait")
    assert (
        f"{at}: rank 0, program (0, 0, 0) of kernel 'wait_for_ever' waits for 'flag', element 0 of 'gate', to be >= 7: "
        "it is 0"
    ) in message


def test_a_fault_in_one_rank_is_raised_there_and_ends_the_others():
    def worker(ctx, rank):
        flag = ctx.distributed.symmetric_memory.zeros(1, dtype="i32")
        if rank == 1:
            kernels.send_to[(1,)](flag, 9)
        kernels.wait_for_ever[(1,)](flag)

    errors = errors_of(worker)
    assert list(errors) == [1]
    assert "rank 1, program (0, 0, 0) of kernel 'send_to': there is no rank 9: ranks are 0 to 1" in str(errors[1])


def test_memory_that_is_not_symmetric():
    def worker(ctx, rank):
        kernels.send_to[(1,)](ctx.zeros(4, dtype="i32", name="mine"), 1 - rank)

    message = str(errors_of(worker)[0])
    assert f"{line(kernels.send_to, 'kl.put')}: rank 0" in message
    assert "'x' points into 'mine', which is not symmetric memory" in message and "symmetric_memory.zeros" in message


def test_waiting_for_another_ranks_flag():
    def worker(ctx, rank):
        kernels.wait_elsewhere[(1,)](ctx.distributed.symmetric_memory.zeros(1, dtype="i32"))

    assert "wait for a flag in this rank's own memory" in str(errors_of(worker)[0])


def test_more_programs_than_pes(device):
    flag, out = device.empty((1,), "i32"), device.empty((65,), "i32")
    kernels.counter[(64,)](flag, out, 1)
    with pytest.raises(LaunchError, match="the grid has 65 programs and the device 64 PEs"):
        kernels.counter[(65,)](flag, out, 1)


def test_messages_of_another_type(device):
    with pytest.raises(KernelFault, match=r"sent tensor<16xf32>, and tensor<8xf32> is expected"):
        kernels.wrong_message[(2,)](device.empty((16,), "f32"))


def test_a_message_that_nobody_receives(device):
    with pytest.raises(KernelFault, match="program 0 sent program 1 a message that it never received"):
        kernels.never_received[(2,)](device.empty((1,), "f32"))


@pytest.mark.parametrize("receiver", ["is over first", "is over last", "has no programs", "never launches"])
def test_a_message_that_nobody_of_another_rank_receives(receiver):
    def worker(ctx, rank):
        ctx.distributed.init_process_group()
        x = ctx.zeros(1, dtype="f32")
        if (rank == 0) == (receiver == "is over last"):
            ctx.distributed.barrier()
        if rank == 0 or receiver != "never launches":
            kernels.message_to_rank[(0 if rank and "no" in receiver else 1,)](x, 1)
        if (rank == 1) == (receiver == "is over last"):
            ctx.distributed.barrier()

    errors = errors_of(worker)
    said = "kernel 'message_to_rank': program 0 of rank 0 sent program 0 of rank 1 a message that it never received"
    assert any(said in str(error) for error in errors.values()) and len(errors) == 1


def test_an_empty_grid_takes_its_turn():
    """The launches of each round belong together, and a barrier waits for the programs that there are."""
    met = {}

    def worker(ctx, rank):
        x, got, out = ctx.full((4, 16), rank, dtype="f32"), ctx.zeros(4, 16, dtype="f32"), ctx.zeros(4, dtype="i32")
        kernels.only_meet[(4 * rank,)](out)
        kernels.message_to_next_rank[(4,)](got, x, 16)
        met[rank] = out.numpy().tolist(), set(got.numpy().ravel().tolist())

    for seed in (None, 1, 2, 3):
        with RuntimeContext.open(MACHINE, shuffle=seed) as ctx:
            ctx.multiprocessing.spawn(lambda rank: worker(ctx, rank), nprocs=2)
            ctx.timeline()
        assert met == {0: ([0] * 4, {1.0}), 1: ([1] * 4, {0.0})}


def test_a_flag_that_is_no_signal(device):
    with pytest.raises(KernelFault, match=r"became 1 by a plain store or atomic.*change flags with signal"):
        kernels.plain_flag[(2,)](device.empty((1,), "i32"))


def test_ranks_that_ask_for_different_symmetric_memory():
    errors = errors_of(lambda ctx, rank: ctx.distributed.symmetric_memory.empty(4 + rank, dtype="i32"))
    assert {type(e) for e in errors.values()} == {MismatchError}
    assert "rank 0 asks for [4] of " in str(errors[0]) and "rank 1 for [5]" in str(errors[0])


def test_copies_look_at_what_is_in_flight_too():
    def worker(ctx, rank):
        ctx.distributed.init_process_group()
        x, y = ctx.zeros(4096, dtype="f32"), ctx.zeros(4096, dtype="f32")
        work = ctx.distributed.all_reduce(x, async_op=True)
        kernels.copied[(1,)](y, x, 4096)
        work.wait()

    assert "kernel 'copied'" in str(errors_of(worker))


def test_a_call_that_is_refused_does_not_count():
    found = {}

    def worker(ctx, rank):
        memory = ctx.distributed.symmetric_memory
        if rank == 0:
            with pytest.raises(TypeError, match="unknown dtype"):
                memory.empty(4, dtype="nothing")
            with pytest.raises(ValueError, match="a size is negative"):
                memory.empty(-4)
        memory.empty(4)
        found[rank] = memory.empty(8).data_ptr()

    with RuntimeContext.open(MACHINE) as ctx:
        ctx.multiprocessing.spawn(lambda rank: worker(ctx, rank), nprocs=2)
    assert found[0] == found[1]


def test_symmetric_memory_is_at_one_address_and_comes_back():
    addresses = {}

    def worker(ctx, rank):
        held = [ctx.empty(1000 * (rank + 1)) for _ in range(3)]
        first = ctx.distributed.symmetric_memory.empty(100, dtype="f32")
        second = ctx.distributed.symmetric_memory.zeros(2, 50, dtype="f32")
        addresses[rank] = (first.data_ptr(), second.data_ptr())
        before = ctx.ahbm.memory_allocated()
        del first, held
        assert ctx.ahbm.memory_allocated() < before
        third = ctx.distributed.symmetric_memory.empty(100, dtype="f32")
        assert third.data_ptr() == addresses[rank][0] and not second.numpy().any()
        with pytest.raises(OutOfMemoryError, match="free at the same address on all 2 ranks"):
            ctx.distributed.symmetric_memory.empty(1 << 40, dtype="f32")

    with RuntimeContext.open(MACHINE) as ctx:
        ctx.multiprocessing.spawn(lambda rank: worker(ctx, rank), nprocs=2)
    assert addresses[0] == addresses[1] and addresses[0][0] % 256 == 0


def test_checks_find_nothing_in_kernels_of_ranks_that_are_right():
    out = {}

    def worker(ctx, rank):
        x, got = ctx.full((4, 16), rank, dtype="f32"), ctx.empty(4, 16, dtype="f32")
        memory = ctx.distributed.symmetric_memory
        scratch, back = memory.empty(4, dtype="i32"), ctx.empty(4, dtype="i32")
        ctx.distributed.barrier()
        kernels.message_to_next_rank[(4,)](got, x, 16)
        kernels.reverse_by_barrier[(4,)](back, scratch, SCOPE="world")
        out[rank] = got.numpy().max(), back.numpy().tolist()

    with RuntimeContext.open(MACHINE, check=True) as ctx:
        ctx.distributed.init_process_group()
        ctx.multiprocessing.spawn(lambda rank: worker(ctx, rank), nprocs=2)
    assert out == {rank: (1 - rank, [100 * (1 - rank) + p for p in (3, 2, 1, 0)]) for rank in (0, 1)}


@pytest.mark.parametrize("order", ["signal", "barrier", ""])
def test_signals_and_barriers_order_programs(device, order):
    x, out, flag = device.empty((16,), "i32"), device.empty((64,), "i32"), device.empty((1,), "i32")
    with sanitize.enabled(("race",)):
        if order:
            kernels.hand_over[(4,)](x, out, flag, ORDER=order)
            assert out.numpy()[16:].tolist() == list(range(16)) * 3
        else:
            with pytest.raises(KernelFault, match=r"race on 'x': program \(1, 0, 0\) reads element 0"):
                kernels.hand_over[(4,)](x, out, flag, ORDER=order)
