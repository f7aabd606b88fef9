import pytest

from kernbench.runtime_api.errors import DeadlockError
from kernbench.runtime_api.scheduler import Hub, Wait
from kernbench.runtime_api.strand import Strand
from kernbench.runtime_api.where import Where

NEVER = lambda: False  # noqa: E731


def wait_for(*ranks):
    return Wait("a test", Where("file.py", 7), lambda: ranks)


def test_ranks_run_in_turn_and_give_way():
    hub, order = Hub(), []

    def body(rank):
        order.append(rank)
        if rank == 0:
            hub.park(tasks[0], wait_for(2))
        if rank == 2:
            hub.wake(tasks[0])
        order.append(rank)

    tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in range(3)]
    hub.run(NEVER)
    assert order == [0, 1, 1, 2, 2, 0]
    assert Strand.current() is None


def test_shuffling_changes_the_order_and_can_be_repeated():
    def order(seed):
        hub, seen = Hub(seed), []

        def body(rank):
            for _ in range(3):
                seen.append(rank)
                hub.breathe(tasks[rank])

        tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in range(4)]
        hub.run(NEVER)
        return seen

    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(20)}) > 10
    assert order(None) == sorted(order(None))


def test_nobody_left_to_wake_is_a_deadlock_for_all():
    hub = Hub()

    def body(rank):
        if rank < 2:
            hub.park(tasks[rank], wait_for(1 - rank, 2))

    tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in range(3)]
    hub.run(NEVER)
    assert [type(task.strand.error) for task in tasks] == [DeadlockError, DeadlockError, type(None)]
    report = str(tasks[0].strand.error)
    assert "rank 0 waits in a test at file.py:7 for ranks 1, 2" in report
    assert "rank 1 waits in a test at file.py:7 for ranks 0, 2" in report
    assert "rank 2 has already ended" in report


def test_a_failure_stops_the_others_after_they_went_as_far_as_they_could():
    hub, seen = Hub(), []

    def body(rank):
        if rank == 0:
            raise KeyError("root cause")
        if rank == 1:
            hub.wake(tasks[2])
        try:
            hub.park(tasks[rank], wait_for(0))
            seen.append(rank)
            hub.park(tasks[rank], wait_for(0))
        except SystemExit:
            seen.append("stopped")
            raise

    tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in (0, 1, 2)]
    tasks[2].waiting = wait_for(0)  # rank 1 wakes it before it has begun to wait, which must not wake it twice
    hub.run(NEVER)
    assert seen.count("stopped") == 2
    assert [task.failed for task in tasks] == [True, False, False]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_questions_are_answered_together_once_nobody_can_move(seed):
    hub, seen = Hub(seed), []

    def body(rank):
        if rank < 2:
            answer = hub.ask(tasks[rank], lambda: len(seen))
            seen.append(f"rank {rank}: {answer}")
            hub.wake(tasks[2])
        else:
            seen.append("before")
            hub.park(tasks[2], wait_for(0, 1))
            seen.append("after")

    tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in range(3)]
    hub.run(NEVER)
    assert sorted(seen) == ["after", "before", "rank 0: 1", "rank 1: 1"]


def test_an_asking_rank_can_be_woken():
    hub, seen = Hub(), []

    def body(rank):
        if rank == 0:
            seen.append(hub.ask(tasks[0], lambda: "answer"))
        else:
            hub.wake(tasks[0])

    tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in range(2)]
    hub.run(NEVER)
    assert seen == [None]


def test_a_question_that_raises_raises_in_its_rank():
    hub = Hub()

    def body():
        with pytest.raises(ZeroDivisionError):
            hub.ask(task, lambda: 1 / 0)

    task = hub.add(0, body)
    hub.run(NEVER)
    assert task.strand.error is None


def test_polling_for_ever_is_a_deadlock():
    hub = Hub()

    def body():
        while True:
            hub.ask(task, lambda: False)

    task = hub.add(0, body)
    hub.run(NEVER)
    assert isinstance(task.strand.error, DeadlockError)
    assert "again and again" in str(task.strand.error)


def test_an_interrupt_reaches_the_caller_and_stops_everyone():
    hub, seen = Hub(), []

    def body(rank):
        try:
            if rank == 1:
                raise KeyboardInterrupt
            hub.park(tasks[rank], wait_for(1))
        finally:
            seen.append(rank)

    tasks = [hub.add(rank, lambda rank=rank: body(rank)) for rank in range(3)]
    with pytest.raises(KeyboardInterrupt):
        hub.run(NEVER)
    assert seen == [1, 0]  # rank 2 had not begun
    assert all(task.strand.ended for task in tasks)


def test_hubs_nest():
    outer, seen = Hub(), []

    def body():
        inner = Hub()
        tasks = [inner.add(rank, lambda rank=rank: inside(inner, tasks, rank)) for rank in range(2)]
        inner.run(NEVER)
        seen.append("outer")

    def inside(inner, tasks, rank):
        if rank == 0:
            inner.park(tasks[0], wait_for(1))
        else:
            inner.wake(tasks[0])
        seen.append(rank)

    outer.add(0, body)
    outer.run(NEVER)
    assert seen == [1, 0, "outer"]
