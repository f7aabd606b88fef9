import sys

import pytest

from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.errors import ContextError, DeadlockError
from kernbench.runtime_api.multiprocessing import ProcessExitedException, ProcessRaisedException, SpawnException


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_rank_runs_with_its_own_device(run, ranks):
    ctx = run(ranks, lambda rank, ctx: (rank, ctx.distributed.get_rank(), ctx.distributed.get_world_size()))
    assert ctx.results == [(rank, rank, ranks) for rank in range(ranks)]


def test_arguments_follow_the_rank(run):
    with RuntimeContext.open("tiny", sips=2) as ctx:
        seen = []
        assert ctx.multiprocessing.spawn(lambda *args: seen.append(args), args=("a", 2), nprocs=2) is None
        assert ctx.multiprocessing.spawn(print, nprocs=0) is None
    assert seen == [(0, "a", 2), (1, "a", 2)]


def test_only_root_causes_are_reported(run):
    stopped = []

    def worker(rank, ctx):
        if rank == 2:
            raise KeyError("the cause")
        try:
            ctx.distributed.barrier()
        except SystemExit:
            stopped.append(rank)
            raise

    with pytest.raises(SpawnException) as caught:
        run(4, worker)
    assert {rank: type(e) for rank, e in caught.value.errors.items()} == {2: KeyError}
    assert sorted(stopped) == [0, 1, 3]
    assert isinstance(caught.value, ProcessRaisedException)
    assert caught.value.error_index == 2
    assert "-- Process 2 terminated with the following error:" in str(caught.value)
    assert "scheduler.py" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_ranks_that_fail_alike_are_all_reported(run):
    def worker(rank, ctx):
        ctx.distributed.barrier()
        raise ValueError(f"rank {rank}")

    for shuffle in (None, 1, 2):
        with pytest.raises(SpawnException) as caught:
            run(3, worker, shuffle=shuffle)
        assert {rank: str(e) for rank, e in caught.value.errors.items()} == {r: f"rank {r}" for r in range(3)}


@pytest.mark.parametrize(("code", "exit_code"), [(12, 12), ("a message", 1)])
def test_exit_codes(run, code, exit_code):
    def worker(rank, ctx):
        if rank == 1:
            sys.exit(code)

    with pytest.raises(ProcessExitedException, match=f"process 1 terminated with exit code {exit_code}") as caught:
        run(2, worker)
    assert caught.value.exit_code == exit_code


def test_exit_with_zero_is_success(run):
    run(2, lambda rank, ctx: sys.exit(0))


def test_join_later():
    with RuntimeContext.open("tiny", sips=2) as ctx:
        seen = []
        context = ctx.multiprocessing.spawn(seen.append, nprocs=2, join=False)
        assert seen == []
        assert context.join() is False  # one has ended, the other has not
        assert context.join() is True
        assert context.join() is True
        assert seen == [0, 1]
        assert context.pids() == [0, 1]


def test_success_first_then_exception():
    def worker(rank):
        if rank == 1:
            raise ValueError("later")

    with RuntimeContext.open("tiny", sips=2) as ctx:
        context = ctx.multiprocessing.spawn(worker, nprocs=2, join=False)
        with pytest.raises(ProcessRaisedException, match="ValueError: later"):
            while not context.join():
                pass


def test_more_ranks_than_sips_says_what_to_do():
    with (
        RuntimeContext.open("tiny", sips=2) as ctx,
        pytest.raises(ValueError, match=r"spawn\(nprocs=3\): the machine has 2 SIPs .* \(--sips 3"),
    ):
        ctx.multiprocessing.spawn(print, nprocs=3)


def test_state_is_the_ranks_own(run):
    def worker(rank, ctx):
        first = ctx.rand(4).numpy().tolist()
        ctx.manual_seed(5)
        return ctx.ahbm.current_device(), first, ctx.rand(4).numpy().tolist()

    devices, first, seeded = zip(*run(3, worker).results, strict=True)
    assert devices == (0, 1, 2)
    assert first[0] != first[1] != first[2]
    assert seeded[0] == seeded[1] == seeded[2]
    assert run(3, worker, shuffle=1).results == run(3, worker).results


def test_ranks_may_swap_devices_but_not_share_one(run):
    def swap(rank, ctx):
        ctx.ahbm.set_device(1 - rank)
        return str(ctx.zeros(2).device)

    assert run(2, swap, group=False).results == ["ahbm:1", "ahbm:0"]

    def share(rank, ctx):
        ctx.ahbm.set_device(0)
        return ctx.zeros(2)

    with pytest.raises(SpawnException) as caught:
        run(2, share, group=False)
    (error,) = caught.value.errors.values()
    assert isinstance(error, ContextError)
    assert "ahbm:0 belongs to rank 0, so rank 1 cannot use it" in str(error)


def test_ranks_that_wait_for_each_other_are_named_with_their_lines(run):
    def worker(rank, ctx):
        tensor = ctx.zeros(4)
        if rank == 0:
            ctx.distributed.recv(tensor, src=1)
        elif rank == 1:
            ctx.distributed.recv(tensor, src=0)
        else:
            ctx.distributed.all_reduce(tensor)

    with pytest.raises(SpawnException) as caught:
        run(4, worker)
    assert set(caught.value.errors) == {0, 1, 2, 3}
    report = str(caught.value.errors[0])
    here = __file__
    assert isinstance(caught.value.errors[0], DeadlockError)
    assert f"rank 0 waits in recv #0 1->0 at {here}:" in report
    assert report.index("for rank 1") < report.index("rank 1 waits in recv #0 0->1")
    assert f"rank 3 waits in all_reduce #0 of group 'default' at {here}:" in report
    assert report.count("for ranks 0, 1") == 2


def test_a_rank_that_ended_is_not_waited_for(run):
    with pytest.raises(SpawnException, match="rank 1 has already ended"):
        run(2, lambda rank, ctx: rank == 0 and ctx.distributed.barrier())


def test_an_asynchronous_collective_that_nobody_joined_is_an_error(run):
    def worker(rank, ctx):
        if rank == 0:
            ctx.distributed.all_reduce(ctx.zeros(4), async_op=True)

    with pytest.raises(SpawnException) as caught:
        run(2, worker)
    assert set(caught.value.errors) == {0}
    assert "by rank 0 was never joined by ranks 1" in str(caught.value.errors[0])


def test_spawns_follow_each_other_in_time():
    with RuntimeContext.open("tiny", sips=3) as ctx:

        def only(which):
            def worker(rank):
                if rank == which:
                    ctx.zeros((256, 256))

            return worker

        ctx.multiprocessing.spawn(only(0), nprocs=3)
        first = ctx.timeline().makespan_ps
        ctx.multiprocessing.spawn(only(2), nprocs=3)
        timeline = ctx.timeline()
        launches = [c for c in timeline.commands if c.bound.kind == "launch"]
        assert [c.bound.rank for c in launches] == [0, 2]
        assert launches[1].issued_ps >= first
        assert timeline.clamped == 0


def test_contexts_nest():
    with RuntimeContext.open("tiny") as outer:
        mine = outer.ones(2)
        with RuntimeContext.open("tiny", sips=2) as inner:
            inner.multiprocessing.spawn(lambda rank: inner.zeros(2), nprocs=2)
            assert inner.ones(3).numpy().tolist() == [1, 1, 1]
            assert mine.numpy().tolist() == [1, 1]
        assert (mine.device, outer.ones(1).device) == ("ahbm:0", "ahbm:0")


def test_a_rank_can_open_a_context_of_its_own(run):
    def worker(rank, ctx):
        with RuntimeContext.open("tiny") as mine:
            inner = mine.full(2, rank).numpy().tolist()
        return inner, ctx.full(2, rank + 10).numpy().tolist()

    assert run(2, worker).results == [([0, 0], [10, 10]), ([1, 1], [11, 11])]


def test_a_rank_can_spawn(run):
    def worker(rank, ctx):
        with RuntimeContext.open("tiny", sips=2) as mine:
            sums = []

            def inner(child):
                mine.distributed.init_process_group()
                tensor = mine.full(1, child + 1.0)
                mine.distributed.all_reduce(tensor)
                sums.append(tensor.item())

            mine.multiprocessing.spawn(inner, nprocs=2)
        ctx.distributed.barrier()
        return sums

    assert run(2, worker).results == [[3.0, 3.0], [3.0, 3.0]]


def test_outside_a_context_there_is_nothing():
    context = RuntimeContext.open("tiny")
    with pytest.raises(ContextError, match="not open here"):
        context.zeros(3)
    with context, pytest.raises(ContextError, match="open already"):
        context.__enter__()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_main_program_can_set_up_the_process_group_for_its_ranks(ranks):
    with RuntimeContext.open("tiny", sips=ranks) as ctx:
        ctx.distributed.init_process_group(backend="ahbm")
        world_size = ctx.distributed.get_world_size()
        assert world_size == ranks
        sums = {}

        def worker(rank):
            if rank % 2:  # joining again is allowed once, and is no other group
                ctx.distributed.init_process_group(backend="ahbm")
                with pytest.raises(ValueError, match="default process group twice"):
                    ctx.distributed.init_process_group(backend="ahbm")
            x = ctx.full((3,), float(rank + 1))
            ctx.distributed.all_reduce(x)
            sums[ctx.distributed.get_rank()] = x.tolist()

        ctx.multiprocessing.spawn(worker, nprocs=world_size)
        assert sums == {rank: [ranks * (ranks + 1) / 2] * 3 for rank in range(ranks)}


def test_ranks_spawned_by_a_rank_start_without_its_process_group():
    with RuntimeContext.open("tiny", sips=2) as ctx:

        def inner(rank):
            assert not ctx.distributed.is_initialized()

        def outer(rank):
            ctx.distributed.init_process_group()
            if rank == 0:
                with RuntimeContext.open("tiny", sips=1) as own:
                    own.multiprocessing.spawn(lambda r: not own.distributed.is_initialized() or 1 / 0, nprocs=1)

        ctx.multiprocessing.spawn(outer, nprocs=2)
        ctx.multiprocessing.spawn(inner, nprocs=2)
