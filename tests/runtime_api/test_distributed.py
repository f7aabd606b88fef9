"""Collectives against numpy, and their mistakes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernbench.topology
from kernbench.memory import dtype
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.errors import ContextError, InFlightError, MismatchError
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.runtime_api.reductions import ReduceOp

WORLDS = [1, 2, 4, 8]


def data(ranks, shape, kind="f16", seed=0):
    rng = np.random.default_rng(seed)
    if dtype(kind).is_floating_point:
        return rng.standard_normal((ranks, *shape)).astype(dtype(kind).storage)
    return rng.integers(0, 2 if kind == "i1" else 100, (ranks, *shape)).astype(dtype(kind).storage)


def cause(caught):
    return next(iter(caught.value.errors.values()))


@pytest.mark.parametrize("ranks", WORLDS)
def test_all_reduce_sums_and_gives_everyone_the_same_bits(run, ranks):
    values = data(ranks, (5, 7))

    def worker(rank, ctx):
        tensor = ctx.tensor(values[rank])
        assert ctx.distributed.all_reduce(tensor) is None
        return tensor.numpy()

    results = run(ranks, worker).results
    np.testing.assert_allclose(results[0], values.astype(np.float32).sum(0), rtol=1e-2, atol=1e-2)
    assert len({result.tobytes() for result in results}) == 1


def ring_sum(values):
    """What a ring gives, step by step: chunk c starts at rank c and is rounded after every addition."""
    ranks, count = values.shape
    size, longer = divmod(count, ranks)
    bounds = [i * size + min(i, longer) for i in range(ranks + 1)]
    total = np.empty_like(values[0])
    for chunk in range(ranks):
        part = slice(bounds[chunk], bounds[chunk + 1])
        running = values[chunk, part]
        for step in range(1, ranks):
            running = running + values[(chunk + step) % ranks, part]  # numpy rounds f16 after every addition
        total[part] = running
    return total


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(0, 40), st.integers(0, 2**31))
def test_all_reduce_rounds_in_the_rings_order(ranks, count, seed):
    values = data(ranks, (count,), "f16", seed)
    results = []

    def worker(rank):
        ctx.distributed.init_process_group()
        tensor = ctx.tensor(values[rank])
        ctx.distributed.all_reduce(tensor)
        results.append(tensor.numpy())

    with RuntimeContext.open(machine(ranks)) as ctx:
        ctx.multiprocessing.spawn(worker, nprocs=ranks)
    for result in results:
        np.testing.assert_array_equal(result, ring_sum(values))


_machines = {}


def machine(ranks):
    if ranks not in _machines:
        _machines[ranks] = kernbench.topology.load("tiny", sips=ranks)
    return _machines[ranks]


NUMPY = {
    ReduceOp.SUM: np.sum,
    ReduceOp.PRODUCT: np.prod,
    ReduceOp.MIN: np.min,
    ReduceOp.MAX: np.max,
    ReduceOp.BAND: np.bitwise_and.reduce,
    ReduceOp.BOR: np.bitwise_or.reduce,
    ReduceOp.BXOR: np.bitwise_xor.reduce,
}


@pytest.mark.parametrize("op", list(NUMPY))
def test_every_reduction_is_exact_on_integers(run, op):
    values = data(3, (10,), "i32")

    def worker(rank, ctx):
        tensor = ctx.tensor(values[rank])
        ctx.distributed.all_reduce(tensor, op=op)
        return tensor.numpy()

    for result in run(3, worker).results:
        np.testing.assert_array_equal(result, NUMPY[op](values, axis=0))


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 1e-6), ("bf16", 2e-2), ("f8e5m2", 0.5), ("i1", 0), ("i8", 0)])
def test_every_kind_of_element(run, kind, tolerance):
    values = data(4, (9,), kind)

    def worker(rank, ctx):
        tensor = ctx.tensor(values[rank])
        ctx.distributed.all_reduce(tensor)
        return tensor.numpy()

    want = values.any(0) if kind == "i1" else values.astype(np.float64).sum(0)
    if kind == "i8":
        want = values.sum(0, dtype=np.int8)
    for result in run(4, worker).results:
        np.testing.assert_allclose(result.astype(np.float64), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i1"])
def test_what_only_moves_keeps_every_bit(run, kind):
    """Random bits: signalling NaNs and payloads among them, which no conversion would survive."""
    storage = dtype(kind).storage
    top = 2 if kind == "i1" else 256
    bits = np.random.default_rng(1).integers(0, top, (4, 600 * storage.itemsize), np.uint8)
    values = bits.view(storage)

    def worker(rank, ctx):
        d, mine = ctx.distributed, ctx.tensor(values[rank])
        cast, gathered, back = ctx.tensor(values[rank]), ctx.empty(2400, dtype=kind), ctx.empty(600, dtype=kind)
        d.broadcast(cast, src=2)
        d.all_gather_into_tensor(gathered, mine)
        d.all_to_all_single(back, mine)
        works = [d.isend(mine, (rank + 1) % 4), d.irecv(got := ctx.empty(600, dtype=kind), (rank - 1) % 4)]
        ctx.wait(works)
        return [t.numpy().tobytes() for t in (cast, gathered, back, got)]

    for rank, found in enumerate(run(4, worker).results):
        parts = values[:, rank * 150 : rank * 150 + 150]
        assert found == [a.tobytes() for a in (values[2], values, parts, values[(rank - 1) % 4])]


def test_averages(run):
    def worker(rank, ctx):
        halves, whole = ctx.full(3, rank + 0.5), ctx.full(3, -rank, dtype="i32")
        ctx.distributed.all_reduce(halves, ctx.distributed.ReduceOp.AVG)
        ctx.distributed.all_reduce(whole, op=ReduceOp.AVG)
        return halves.tolist(), whole.tolist()

    assert run(4, worker).results == [([2.0] * 3, [-1] * 3)] * 4


@pytest.mark.parametrize("ranks", WORLDS)
def test_gathering_and_scattering(run, ranks):
    values = data(ranks, (ranks, 3))
    root = ranks - 1

    def worker(rank, ctx):
        dist, mine = ctx.distributed, ctx.tensor(values[rank])
        listed = [ctx.empty((ranks, 3)) for _ in range(ranks)]
        dist.all_gather(listed, mine)
        flat = ctx.empty((ranks * ranks, 3))
        dist.all_gather_into_tensor(flat, mine)
        part, from_list = ctx.empty((3,)), ctx.empty((3,))
        dist.reduce_scatter_tensor(part, mine)
        dist.reduce_scatter(from_list, [mine[i] for i in range(ranks)])
        gathered = [ctx.empty((ranks, 3)) for _ in range(ranks)] if rank == root else None
        dist.gather(mine, gathered, dst=root)
        own = ctx.empty((3,))
        dist.scatter(own, [mine[i] for i in range(ranks)] if rank == root else None, src=root)
        swapped = ctx.empty((ranks, 3))
        dist.all_to_all_single(swapped, mine)
        return [x if x is None else np.asarray(x) for x in (
            np.stack([x.numpy() for x in listed]), flat.numpy().reshape(ranks, ranks, 3), part.numpy(),
            from_list.numpy(), gathered and np.stack([x.numpy() for x in gathered]), own.numpy(), swapped.numpy(),
            mine.numpy(),
        )]  # fmt: skip

    wide = values.astype(np.float32)
    for rank, (listed, flat, part, from_list, gathered, own, swapped, mine) in enumerate(run(ranks, worker).results):
        np.testing.assert_array_equal(listed, values)
        np.testing.assert_array_equal(flat, values)
        np.testing.assert_allclose(part, wide.sum(0)[rank], rtol=1e-2, atol=1e-2)
        np.testing.assert_array_equal(part, from_list)
        assert (gathered is None) == (rank != root)
        if gathered is not None:
            np.testing.assert_array_equal(gathered, values)
        np.testing.assert_array_equal(own, values[root, rank])
        np.testing.assert_array_equal(swapped, values[:, rank])
        np.testing.assert_array_equal(mine, values[rank], "inputs stay as they are")


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("count", [1, 5, 40_000])
def test_broadcast_and_reduce(run, ranks, count):
    values, root = data(ranks, (count,), "i32"), ranks // 2

    def worker(rank, ctx):
        sent, summed = ctx.tensor(values[rank]), ctx.tensor(values[rank])
        ctx.distributed.broadcast(sent, src=root)
        ctx.distributed.reduce(summed, dst=root)
        return sent.numpy(), summed.numpy()

    for rank, (sent, summed) in enumerate(run(ranks, worker).results):
        np.testing.assert_array_equal(sent, values[root])
        np.testing.assert_array_equal(summed, values.sum(0) if rank == root else values[rank])


def test_strided_and_tiny_and_empty_tensors(run):
    def worker(rank, ctx):
        whole = ctx.full((3, 4), rank + 1.0)
        ctx.distributed.all_reduce(whole[:, 1:3])
        scalar, empty = ctx.full((), rank + 1.0), ctx.empty((0, 3))
        ctx.distributed.all_reduce(scalar)
        ctx.distributed.all_reduce(empty)
        ctx.distributed.broadcast(whole.T, src=1)
        return whole.tolist(), scalar.item(), empty.shape

    for result in run(2, worker).results:
        assert result == ([[2, 3, 3, 2]] * 3, 3.0, (0, 3))


class TestAsync:
    def test_the_handle(self, run):
        def worker(rank, ctx):
            tensor = ctx.full(4, rank + 1.0)
            work = ctx.distributed.all_reduce(tensor, async_op=True)
            other = ctx.ones(4)  # what is not in flight may be used
            other += 1
            assert work.wait() is True
            assert work.wait() is True
            ctx.wait(work)
            ctx.wait([work, None])
            assert work.is_completed()
            assert work.is_success()
            assert work.exception() is None
            assert work.result() == [tensor] or work.result()[0] is tensor
            assert work.get_future().wait()[0] is tensor
            return tensor.tolist(), other.tolist()

        assert run(4, worker).results == [([10.0] * 4, [2.0] * 4)] * 4

    def test_waits_may_come_in_any_order_and_drain_together(self, run):
        def worker(rank, ctx):
            tensors = [ctx.full(3, rank + i) for i in range(4)]
            works = [ctx.distributed.all_reduce(t, async_op=True) for t in tensors]
            for i in np.random.default_rng(rank).permutation(4):
                ctx.wait(works[i])
            return [t.tolist()[0] for t in tensors]

        assert run(4, worker).results == [[6.0, 10.0, 14.0, 18.0]] * 4

    def test_touching_what_is_in_flight_names_both_lines(self, run):
        def worker(rank, ctx):
            tensor = ctx.full(4, 1.0, name="gradient")
            work = ctx.distributed.all_reduce(tensor, async_op=True)
            errors = []
            for touch in (
                tensor.numpy,
                lambda: tensor + 1,
                lambda: tensor.copy_(np.zeros(4)),
                lambda: ctx.zeros(4).copy_(tensor),
                lambda: tensor[0],
                lambda: repr(tensor),
                lambda: ctx.distributed.all_reduce(tensor, async_op=True),
            ):
                with pytest.raises(InFlightError) as caught:
                    touch()
                errors.append(str(caught.value))
            work.wait()
            return errors, tensor.tolist()

        for errors, values in run(2, worker).results:
            assert values == [2.0] * 4
            for error in errors:
                assert error.startswith("tensor 'gradient' is in flight: all_reduce at ")
                assert error.count(__file__) == 2

    def test_what_is_only_read_may_be_read_and_not_written(self, run):
        def worker(rank, ctx):
            mine, out = ctx.full(4, rank + 1.0), ctx.empty(8)
            work = ctx.distributed.all_gather_into_tensor(out, mine, async_op=True)
            assert (mine + 1).tolist() == [rank + 2.0] * 4
            again = ctx.distributed.all_gather_into_tensor(ctx.empty(8), mine, async_op=True)
            with pytest.raises(InFlightError, match=r"reads it and kernel .* writes it"):
                mine.T.add_(0)
            with pytest.raises(InFlightError, match=r"writes it and .* reads it"):
                out.numpy()
            work.wait()
            with pytest.raises(InFlightError):
                mine.zero_()
            again.wait()
            return out.tolist(), mine.zero_().tolist()

        assert run(2, worker).results == [([1.0] * 4 + [2.0] * 4, [0.0] * 4)] * 2

    def test_only_the_bytes_of_a_view_are_in_flight(self, run):
        def worker(rank, ctx):
            bucket = ctx.ones(1024)
            works = []
            for i in range(4):
                part = bucket[i * 256 : (i + 1) * 256]
                part.add_(1)  # beside the collectives on the parts before
                works.append(ctx.distributed.all_reduce(part, async_op=True))
            with pytest.raises(InFlightError):
                _ = bucket + 1
            ctx.wait(works)
            return set(bucket.tolist())

        assert run(2, worker).results == [{4.0}] * 2

    def test_reading_another_ranks_tensor_drains_nothing(self, run):
        shared, seen = {}, []

        def worker(rank, ctx):
            tensor = shared[rank] = ctx.full(2, 1.0)
            if rank == 0:
                work = ctx.distributed.all_reduce(tensor, async_op=True)
                ctx.distributed.send(ctx.ones(1), dst=1)
                work.wait()
            else:
                ctx.distributed.recv(ctx.empty(1), src=0)
                seen.append(shared[0].tolist())  # rank 0's collective needs this very rank
                ctx.distributed.all_reduce(tensor)
            return tensor.tolist()

        assert run(2, worker).results == [[2.0, 2.0]] * 2
        assert seen == [[1.0, 1.0]]

    def test_polling_ends_when_the_others_have_come(self, run):
        def worker(rank, ctx):
            tensor = ctx.ones(2)
            if rank == 0:
                work = ctx.distributed.all_reduce(tensor, async_op=True)
                polls = 0
                while not work.is_completed():
                    polls += 1
                ctx.distributed.recv(ctx.empty(1), src=1)
                work.wait()
                return polls
            ctx.distributed.all_reduce(tensor)
            ctx.distributed.send(tensor[:1], dst=0)

        counts = {run(2, worker, shuffle=seed).results[0] for seed in range(5)}
        assert counts == {0}

    def test_values_are_there_once_the_host_has_synchronised(self, run):
        def worker(rank, ctx):
            tensor = ctx.ones(2)
            ctx.distributed.all_reduce(tensor, async_op=True)
            ctx.ahbm.synchronize()
            return tensor.tolist()

        assert run(3, worker).results == [[3.0, 3.0]] * 3

    def test_barrier(self, run):
        order = []

        def worker(rank, ctx):
            order.append("before")
            ctx.distributed.barrier()
            order.append("after")

        run(4, worker, shuffle=3)
        assert order == ["before"] * 4 + ["after"] * 4


class TestMistakes:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda d, c, r: d.all_reduce(c.zeros(4 + r)), ["all_reduce((4,) f16, sum)", "all_reduce((5,) f16, sum)"]),
            (lambda d, c, r: d.all_reduce(c.zeros(4, dtype="f32" if r else "f16")), ["(4,) f32", "(4,) f16"]),
            (lambda d, c, r: d.all_reduce(c.zeros(4), ReduceOp.MAX if r else ReduceOp.SUM), ["f16, max", "f16, sum"]),
            (lambda d, c, r: d.broadcast(c.zeros(4), src=r), ["root 0", "root 1"]),
            (lambda d, c, r: d.barrier() if r else d.all_reduce(c.zeros(4)), ["barrier(", "all_reduce("]),
            (lambda d, c, r: d.recv(c.zeros(3), 0) if r else d.send(c.zeros(4), 1), ["send((4,)", "recv((3,)"]),
        ],
    )
    def test_different_calls_are_listed_with_their_lines(self, run, make, words):
        with pytest.raises(SpawnException) as caught:
            run(2, lambda rank, ctx: make(ctx.distributed, ctx, rank))
        assert set(caught.value.errors) == {0, 1}
        text = str(cause(caught))
        assert isinstance(cause(caught), MismatchError)
        assert "  rank 0: " in text
        assert "  rank 1: " in text
        assert text.count(__file__) == 2
        for word in words:
            assert word in text

    def test_a_mismatch_reaches_the_wait_and_nothing_before(self, run):
        def worker(rank, ctx):
            work = ctx.distributed.all_reduce(ctx.zeros(4 + rank), async_op=True)
            with pytest.raises(MismatchError):
                work.wait()
            with pytest.raises(MismatchError):
                ctx.wait(work)
            return isinstance(work.exception(), MismatchError), work.is_success()

        assert run(2, worker).results == [(True, False)] * 2

    def test_after_a_mismatch_time_goes_on(self, run):
        def worker(rank, ctx):
            with pytest.raises(MismatchError):
                ctx.distributed.all_reduce(ctx.zeros(4 + rank))
            ctx.distributed.barrier()

        timeline = run(2, worker).engine.replay()
        assert [c.bound.name for c in timeline.commands if c.bound.kind == "collective"] == [
            "all_reduce",
            "barrier",
        ] * 2

    def test_tensors_and_handles_are_their_ranks_own(self, run):
        shared = {}

        def worker(rank, ctx):
            tensor = shared[rank] = ctx.ones(2)
            if rank == 0:
                shared["work"] = ctx.distributed.all_reduce(tensor, async_op=True)
                ctx.distributed.recv(ctx.empty(1), src=1)
                return
            with pytest.raises(RuntimeError, match=r"is on ahbm:0, but this rank's current device is ahbm:1"):
                ctx.distributed.all_reduce(shared[0])
            with pytest.raises(ContextError, match="is rank 0's: only that rank can wait for it"):
                shared["work"].wait()
            ctx.distributed.send(ctx.ones(1), dst=0)
            ctx.distributed.all_reduce(tensor)
            assert shared["work"].wait()  # complete by now

        run(2, worker)

    def test_a_mismatch_that_nobody_waited_for_fails_the_spawn(self, run):
        with pytest.raises(SpawnException) as caught:
            run(2, lambda rank, ctx: ctx.distributed.all_reduce(ctx.zeros(4 + rank), async_op=True) and None)
        assert [type(e) for e in caught.value.errors.values()] == [MismatchError] * 2

    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda d, c: d.all_reduce([c.zeros(1)]), TypeError, "Invalid function argument. Expected parameter"),
            (lambda d, c: d.all_reduce(c.zeros(1, device="cpu")), RuntimeError, "collectives need device tensors"),
            (lambda d, c: d.all_reduce(c.zeros(1), op="sum"), TypeError, "expected a ReduceOp"),
            (lambda d, c: d.all_reduce(c.zeros(1), op=ReduceOp.BAND), RuntimeError, "non-integral dtype"),
            (lambda d, c: d.all_gather([c.zeros(1)], c.zeros(1)), RuntimeError, r"\(expected length 2, got 1\)"),
            (lambda d, c: d.all_gather([c.zeros(1), c.zeros(2)], c.zeros(1)), RuntimeError, "size at index 1"),
            (lambda d, c: d.all_gather_into_tensor(c.zeros(3), c.zeros(1)), RuntimeError, "expected 2 x 1 elements"),
            (lambda d, c: d.broadcast(c.zeros(1)), ValueError, "Must specify global_rank or group_rank"),
            (lambda d, c: d.broadcast(c.zeros(1), src=7), ValueError, "Global rank 7 is not part of group"),
            (lambda d, c: d.scatter(c.zeros(1), None, src=d.get_rank()), ValueError, "specified on source rank"),
            (lambda d, c: d.gather(c.zeros(1), [c.zeros(1)], dst=1 - d.get_rank()), ValueError, "must NOT be"),
            (lambda d, c: d.send(c.zeros(1), dst=d.get_rank()), ValueError, "and itself"),
            (lambda d, c: d.batch_isend_irecv([]), IndexError, "empty"),
            (lambda d, c: d.batch_isend_irecv([d.P2POp(d.send, c.zeros(1), 0)]), ValueError, "expected isend or irecv"),
            (lambda d, c: d.all_to_all_single(c.zeros(3), c.zeros(3)), RuntimeError, "Split sizes doesn't match"),
            (lambda d, c: d.init_process_group(), ValueError, "initialize the default process group twice!"),
            (lambda d, c: d.new_group([0, 0]), ValueError, "given twice"),
            (lambda d, c: d.new_group([0, 5]), ValueError, "there is no rank 5"),
        ],
    )  # fmt: skip
    def test_wrong_arguments_fail_as_in_torch(self, run, make, error, words):
        def worker(rank, ctx):
            with pytest.raises(error, match=words):
                make(ctx.distributed, ctx)

        run(2, worker)

    def test_before_and_after_the_process_group(self, run):
        def worker(rank, ctx):
            dist = ctx.distributed
            for call in (dist.get_rank, dist.get_world_size, lambda: dist.all_reduce(ctx.zeros(1)), dist.barrier):
                with pytest.raises(ValueError, match="Default process group has not been initialized"):
                    call()
            with pytest.raises(ValueError, match="the backend is 'ahbm'"):
                dist.init_process_group(backend="mpi")
            with pytest.raises(ValueError, match=r"world_size=8\): this spawn has 2 ranks"):
                dist.init_process_group(world_size=8)
            with pytest.raises(ValueError, match=f"this is rank {rank}"):
                dist.init_process_group(rank=1 - rank)
            assert not dist.is_initialized()
            dist.init_process_group("ahbm", rank=rank, world_size=2)
            assert dist.is_initialized()
            assert dist.get_backend() == "ahbm"
            dist.destroy_process_group()
            assert not dist.is_initialized()

        run(2, worker, group=False)

    def test_the_main_program_is_a_world_of_one(self, ctx):
        ctx.distributed.init_process_group(backend="ahbm")
        tensor = ctx.full(3, 2.0)
        ctx.distributed.all_reduce(tensor)
        ctx.distributed.barrier()
        assert (ctx.distributed.get_rank(), ctx.distributed.get_world_size(), tensor.tolist()) == (0, 1, [2, 2, 2])


class TestGroups:
    def test_subgroups_work_side_by_side(self, run):
        def worker(rank, ctx):
            dist = ctx.distributed
            even, odd = dist.new_group([0, 2]), dist.new_group([1, 3])
            mine = odd if rank % 2 else even
            tensor = ctx.full(3, rank + 1.0)
            dist.all_reduce(tensor, group=mine)
            dist.all_reduce(tensor, group=even if rank % 2 else odd)  # no member: nothing happens
            return tensor.tolist()[0], dist.get_rank(even), dist.get_world_size(odd), dist.get_process_group_ranks(mine)

        assert run(4, worker, shuffle=1).results == [
            (4.0, 0, -1, [0, 2]),
            (6.0, -1, 2, [1, 3]),
            (4.0, 1, -1, [0, 2]),
            (6.0, -1, 2, [1, 3]),
        ]

    def test_roots_are_global_ranks(self, run):
        def worker(rank, ctx):
            group = ctx.distributed.new_group([1, 2])
            if rank == 0:
                assert group == ctx.distributed.GroupMember.NON_GROUP_MEMBER
                return None
            first, second = ctx.full(1, rank), ctx.full(1, rank)
            ctx.distributed.broadcast(first, src=2, group=group)
            ctx.distributed.broadcast(second, group_src=0, group=group)
            assert ctx.distributed.get_global_rank(group, 1) == 2
            assert ctx.distributed.get_group_rank(group, 2) == 1
            with pytest.raises(ValueError, match="Global rank 0 is not part of group"):
                ctx.distributed.broadcast(first, src=0, group=group)
            return first.item(), second.item()

        assert run(3, worker).results == [None, (2, 1), (2, 1)]

    def test_different_groups_are_an_error(self, run):
        with pytest.raises(SpawnException) as caught:
            run(2, lambda rank, ctx: ctx.distributed.new_group([rank]))
        assert "asked for ranks [0]" in str(cause(caught))
        assert isinstance(cause(caught), MismatchError)


class TestMessages:
    def test_around_a_ring(self, run):
        def worker(rank, ctx):
            dist, right, left = ctx.distributed, (rank + 1) % 4, (rank - 1) % 4
            got = ctx.empty(2)
            ops = [dist.P2POp(dist.isend, ctx.full(2, rank), right), dist.P2POp(dist.irecv, got, left)]
            for work in dist.batch_isend_irecv(ops):
                work.wait()
            return got.tolist()[0]

        assert run(4, worker).results == [3, 0, 1, 2]

    def test_messages_keep_their_order_and_tags(self, run):
        def worker(rank, ctx):
            dist = ctx.distributed
            if rank == 0:
                works = [dist.isend(ctx.full(1, i), 1, tag=i % 2) for i in range(4)]
                return [work.wait() for work in works]
            out = []
            for tag in (1, 0, 0, 1):
                got = ctx.empty(1)
                assert dist.recv(got, src=0, tag=tag) == 0
                out.append(got.item())
            return out

        assert run(2, worker).results[1] == [1, 0, 2, 3]

    def test_from_anyone_takes_the_lowest_sender_whoever_ran_first(self, run):
        def worker(rank, ctx):
            if rank:
                return ctx.distributed.send(ctx.full(1, rank), dst=0)
            got = ctx.empty(1)
            return [(ctx.distributed.recv(got), got.item()) for _ in range(3)]

        for seed in range(4):
            assert run(4, worker, shuffle=seed).results[0] == [(1, 1), (2, 2), (3, 3)]
