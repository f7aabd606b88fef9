"""Who happens to run first changes neither values nor time."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import kernbench.topology
from kernbench.policy.bind import Binder
from kernbench.runtime_api.context import RuntimeContext
from kernbench.sim_engine.engine import GraphEngine

RANKS = 3
MACHINE = kernbench.topology.load("tiny", sips=RANKS)
BINDER = Binder(MACHINE)  # shared, so that thousands of runs on one machine cost little
KINDS = ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "ring", "compute", "sync", "elapsed", "poll"]


def program(ctx, actions, values):
    """A worker that performs ``actions`` with asynchronous collectives, and leaves what it saw in ``values``."""

    def worker(rank):
        dist = ctx.distributed
        ctx.ahbm.set_device(rank)
        dist.init_process_group("ahbm")
        mine, seen, pending = ctx.randn(12 * RANKS), [], []
        begin = ctx.ahbm.Event(enable_timing=True)
        begin.record()
        for number, kind in enumerate(actions):
            with ctx.range(f"{kind} {rank if kind == 'compute' else ''}"):
                if kind == "all_reduce":
                    tensor = mine.clone()
                    pending.append((tensor, dist.all_reduce(tensor, async_op=True)))
                elif kind == "all_gather":
                    out = ctx.empty(12 * RANKS * RANKS)
                    pending.append((out, dist.all_gather_into_tensor(out, mine.clone(), async_op=True)))
                elif kind == "reduce_scatter":
                    out = ctx.empty(12)
                    pending.append((out, dist.reduce_scatter_tensor(out, mine.clone(), async_op=True)))
                elif kind == "broadcast":
                    tensor = mine.clone()
                    pending.append((tensor, dist.broadcast(tensor, src=number % RANKS, async_op=True)))
                elif kind == "ring":
                    got = ctx.empty(12 * RANKS)
                    dist.isend(mine.clone(), (rank + 1) % RANKS)
                    pending.append((got, dist.irecv(got, (rank - 1) % RANKS)))
                elif kind == "compute":
                    for _ in range(rank):
                        mine.fill_(number)
                elif kind == "sync":
                    for tensor, work in reversed(pending):
                        work.wait()
                        seen.append(tensor.numpy().tobytes())
                    pending.clear()
                elif kind == "elapsed" and rank == 1:
                    end = ctx.ahbm.Event(enable_timing=True)
                    ctx.ahbm.synchronize()
                    end.record()
                    seen.append(repr(begin.elapsed_time(end)).encode())  # while others are anywhere
                elif kind == "poll" and pending:
                    seen.append(bytes([pending[-1][1].is_completed()]))
        for tensor, work in pending:
            work.wait()
            seen.append(tensor.numpy().tobytes())
        values[rank] = hashlib.sha256(b"".join(seen)).hexdigest()

    return worker


def outcome(actions, shuffle):
    values = {}
    engine = GraphEngine(MACHINE)
    engine.binder = BINDER
    with RuntimeContext(engine, shuffle=shuffle) as ctx:
        ctx.multiprocessing.spawn(program(ctx, actions, values), nprocs=RANKS)
        timeline = ctx.timeline()
        return sorted(values.items()), timeline.digest(), list(ctx.engine.log.ranges), timeline.clamped


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=7), st.lists(st.integers(0, 2**32), min_size=3, max_size=3)
)
def test_any_program_gives_one_outcome(actions, seeds):
    in_turn = outcome(actions, None)
    for seed in seeds:
        assert outcome(actions, seed) == in_turn


def test_a_thousand_orders():
    """Asynchronous collectives of every kind, shuffled 1,000 times."""
    actions = ["all_reduce", "compute", "ring"]
    in_turn = outcome(actions, None)
    assert in_turn[-1] == 0, "nothing is moved behind what was replayed before"
    for seed in range(1000):
        assert outcome(actions, seed) == in_turn


def test_shuffles_do_change_the_order():
    """Else the tests above would prove nothing."""

    def order(seed):
        seen = []
        with RuntimeContext.open(MACHINE, shuffle=seed) as ctx:

            def worker(rank):
                for _ in range(3):
                    ctx.empty(1)
                    seen.append(rank)

            ctx.multiprocessing.spawn(worker, nprocs=RANKS)
        return tuple(seen)

    assert len({order(seed) for seed in range(20)}) > 10


def test_without_values_the_timeline_is_the_same():
    def digest(enable_data):
        with RuntimeContext.open(MACHINE, enable_data=enable_data) as ctx:

            def worker(rank):
                ctx.distributed.init_process_group()
                tensor, other = ctx.randn((64, 64)), ctx.zeros((64, 64))
                other.copy_(np.ones((64, 64)) if enable_data else ctx.host_empty((64, 64)))
                ctx.distributed.all_reduce(tensor)
                product = ctx.silu(tensor @ other + tensor * 2)
                ctx.distributed.broadcast(product, src=1)
                product.T.contiguous().cpu()

            ctx.multiprocessing.spawn(worker, nprocs=RANKS)
            return ctx.timeline().digest()

    assert digest(True) == digest(False)
