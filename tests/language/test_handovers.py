"""Spinning by hand costs the time waited: what is found in memory is not there before it has been put there."""

import inspect
from functools import cache

import numpy as np
import pytest

pytest.importorskip("triton")
import comm_kernels as kernels
import triton
import triton.language as tl

import kernbench.language as kl
import kernbench.topology
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.runtime_api.context import RuntimeContext
from kernbench.sim_engine import native
from kernbench.sim_engine.oplog import OpKind


@triton.jit
def locked(lock, total, work, n, BLOCK: tl.constexpr):
    """Each program adds to one place under a lock."""
    i = tl.arange(0, BLOCK)
    value = tl.load(work + tl.program_id(0) * BLOCK + i)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(total + i, tl.load(total + i) + value)
    tl.atomic_xchg(lock, 0)


@triton.jit
def fix_up(parts, out, arrived, BLOCK: tl.constexpr):
    """Split-K as in stream-K: the first program of a tile waits until a semaphore has counted all of the others."""
    p, n = tl.program_id(0), tl.num_programs(0)
    i = tl.arange(0, BLOCK)
    value = tl.load(parts + p * BLOCK + i)
    if p > 0:
        tl.store(parts + p * BLOCK + i, value + 1)
        tl.atomic_add(arrived, 1, sem="release")
    else:
        while tl.load(arrived, volatile=True) < n - 1:
            pass
        for other in range(1, n):
            value += tl.load(parts + other * BLOCK + i)
        tl.store(out + i, value)


@triton.jit
def flagged_by_a_store(flag, out):
    p = tl.program_id(0)
    if p > 0:
        while tl.load(flag + p - 1, volatile=True) == 0:
            pass
    tl.store(out + p, p)
    tl.store(flag + p, 1)


@triton.jit
def looked_at_under_a_lock(lock, ready, out):
    """The first program takes the lock again and again to see how many have counted, and gives it back by a store."""
    p, n = tl.program_id(0), tl.num_programs(0)
    if p > 0:
        while tl.atomic_cas(lock, 0, 1) == 1:
            pass
        tl.atomic_add(ready, 1)
        tl.store(lock, 0)
    else:
        done = 0
        while done == 0:
            if tl.atomic_cas(lock, 0, 1) == 0:
                if tl.load(ready, volatile=True) == n - 1:
                    done = 1
                tl.store(lock, 0)
        tl.store(out, 7)


@triton.jit
def sums_beside_flags(x, both, out, BLOCK: tl.constexpr):
    """A chained scan: the sum up to each program is beside its flag."""
    p = tl.program_id(0)
    total = 1 + tl.sum(tl.load(x + p * BLOCK + tl.arange(0, BLOCK)))
    if p > 0:
        while tl.atomic_add(both + 2 * p - 1, 0) == 0:
            pass
        total += tl.load(both + 2 * p - 2)
    tl.store(both + 2 * p, total)
    tl.atomic_xchg(both + 2 * p + 1, 1)
    tl.store(out + p, total)


@triton.jit
def stamped_in_turns(flag, out):
    p = tl.program_id(0)
    if p > 0:
        while tl.atomic_add(flag + p - 1, 0) == 0:
            pass
    tl.store(out + p, tl.extra.cuda.globaltimer())
    tl.atomic_xchg(flag + p, 1)


@triton.jit
def in_step(flag, out):
    """Each program meets its like on the other rank, twice."""
    p = tl.program_id(0)
    for turn in range(1, 3):
        kl.signal(flag + p, 1 - kl.rank(), turn)
        while tl.load(flag + p, volatile=True) < turn:
            pass
        tl.store(out + p, turn)


@triton.jit
def told(flag):
    kl.signal(flag, 1, 7)


@triton.jit
def waits_for_others(flag, out):
    """Nothing in the kernel itself changes what it looks at."""
    while tl.load(flag, volatile=True) != 7:
        pass
    tl.store(out, 1)


@cache
def machine():
    return kernbench.topology.load("tiny", sips=1)


def run(kernel, programs, *shapes, enable_data=True, **constants):
    """(timeline, ops of the launch program by program as (kind, line, start, finish), tensors)"""
    with RuntimeContext.open(machine(), enable_data=enable_data) as ctx:
        tensors = [ctx.zeros(n, dtype=kind) for n, kind in shapes]
        ctx.ahbm.synchronize()
        kernel[(programs,)](*tensors, **constants)
        timeline = ctx.timeline()
        (launch,) = [c for c in timeline.commands if c.bound.name == kernel.fn.__name__]
        found = [t.numpy() for t in tensors] if enable_data else None
    ops = timeline.ops
    rows = [
        (int(ops.kind[i]), launch.bound.lines[ops.line[i]][1] if ops.line[i] >= 0 else -1, ops.start[i], ops.finish[i])
        for i in range(launch.first, launch.first + launch.bound.count)
    ]
    return timeline, rows, found


def line(kernel, text):
    source, start = inspect.getsourcelines(kernel.fn)
    (at,) = [i for i, row in enumerate(source) if text in row]
    return start + at


def times(rows, kernel, text, kind):
    """[n, 2], start and finish of a line's operations."""
    return np.array([row[2:] for row in rows if row[0] == kind and row[1] == line(kernel, text)])


@pytest.mark.parametrize("programs", [2, 4, 11])  # of four PEs
def test_look_back_goes_from_program_to_program(programs):
    _, rows, (out, _) = run(kernels.look_back, programs, (programs, "i32"), (programs, "i32"))
    assert out.tolist() == np.arange(programs).cumsum().tolist()
    told = times(rows, kernels.look_back, "atomic_xchg", OpKind.ATOMIC)
    read = times(rows, kernels.look_back, "tl.load(out", OpKind.READ)
    wrote = times(rows, kernels.look_back, "tl.store(out", OpKind.WRITE)
    assert (read[:, 0] > told[:-1, 1]).all() and (read[:, 0] > wrote[:-1, 1]).all()


def test_nobody_is_in_a_critical_section_with_another():
    programs, block = 9, 64
    shapes = (1, "i32"), (block, "f32"), (programs * block, "f32")
    _, rows, _ = run(locked, programs, *shapes, n=1, BLOCK=block)
    entered = times(rows, locked, "tl.load(total", OpKind.READ)[:, 0]
    left = times(rows, locked, "tl.store(total", OpKind.WRITE)[:, 1]
    assert (entered[1:] > left[:-1]).all()


def test_a_semaphore_counts_those_that_have_arrived():
    programs, block = 4, 64
    shapes = (programs * block, "f32"), (block, "f32"), (1, "i32")
    _, rows, (_, out, _) = run(fix_up, programs, *shapes, BLOCK=block)
    assert set(out.tolist()) == {3.0}
    wrote = times(rows, fix_up, "tl.store(parts", OpKind.WRITE)
    read = times(rows, fix_up, "tl.load(parts + other", OpKind.READ)
    assert len(read) == len(wrote) == 3 and read[:, 0].min() > wrote[:, 1].max()


@pytest.mark.parametrize("programs", [4, 9])
def test_a_flag_that_a_plain_store_raises(programs):
    _, rows, _ = run(flagged_by_a_store, programs, (programs, "i32"), (programs, "i32"))
    raised = times(rows, flagged_by_a_store, "tl.store(flag", OpKind.WRITE)[:, 1]
    went_on = times(rows, flagged_by_a_store, "tl.store(out", OpKind.WRITE)[:, 0]
    assert (went_on[1:] > raised[:-1]).all()


def test_waiting_for_a_later_program_is_timed_where_all_run_at_once():
    """With more programs than PEs it is not: the later one may stand behind this one in the same PE's queues."""
    for programs in (4, 12):
        _, rows, (out, _) = run(kernels.look_ahead, programs, (programs, "i32"), (programs, "i32"))
        assert out[0] == programs * (programs - 1) // 2
        told = times(rows, kernels.look_ahead, "atomic_xchg", OpKind.ATOMIC)[1:, 1]
        read = times(rows, kernels.look_ahead, "tl.load(out", OpKind.READ)[:, 0]
        assert (read > told).all() == (programs == 4)


def test_a_handshake_takes_its_turns_in_time():
    rounds = 5
    _, rows, _ = run(kernels.ping_pong, 2, (1, "i32"), (1, "i32"), rounds=rounds)
    wrote = times(rows, kernels.ping_pong, "tl.store(out", OpKind.WRITE)
    first, second = wrote[:rounds], wrote[rounds:]
    assert (second[:, 0] > first[:, 1]).all() and (first[1:, 0] > second[:-1, 1]).all()


def test_one_timeline_with_and_without_data_compiled_or_not(monkeypatch):
    shapes = (8, "i32"), (8, "i32")
    first = run(kernels.look_back, 8, *shapes)[0].digest()
    assert run(kernels.look_back, 8, *shapes, enable_data=False)[0].digest() == first
    monkeypatch.setattr(native, "available", lambda: False)
    assert run(kernels.look_back, 8, *shapes)[0].digest() == first


@pytest.mark.parametrize("programs", [2, 4, 9])
def test_a_lock_taken_in_vain_and_given_back_is_waited_for(programs):
    shapes = (1, "i32"), (1, "i32"), (1, "i32")
    _, rows, (lock, ready, out) = run(looked_at_under_a_lock, programs, *shapes)
    assert (lock[0], ready[0], out[0]) == (0, programs - 1, 7)
    counted = times(rows, looked_at_under_a_lock, "atomic_add", OpKind.ATOMIC)[:, 1]
    assert programs > 4 or times(rows, looked_at_under_a_lock, "store(out", OpKind.WRITE)[0, 0] > counted.max()


def test_sums_whose_values_nobody_knows_without_data_leave_the_same_timeline():
    shapes = (4 * 16, "i32"), (8, "i32"), (4, "i32")
    with_data = run(sums_beside_flags, 4, *shapes, BLOCK=16)[0].digest()
    assert run(sums_beside_flags, 4, *shapes, enable_data=False, BLOCK=16)[0].digest() == with_data


def test_launches_that_repeat_wait_for_their_own():
    with StandaloneDevice() as device:
        out, flag = device.empty((8,), "i32"), device.empty((8,), "i32")
        for _ in range(3):
            flag.zero_()
            kernels.look_back[(8,)](out, flag)
        awaited = [
            np.concatenate([row.awaits.tokens for block in r.blocks for row in block.rows if row.awaits is not None])
            for r in device.records
        ]
    assert len(awaited[0]) >= 7 and all(np.array_equal(a, awaited[0]) for a in awaited)


def test_what_a_clock_says_does_not_depend_on_launches_before():
    with StandaloneDevice() as device:
        flag, out = device.empty((5,), "i32"), device.empty((5,), "i64")
        for _ in range(3):
            flag.zero_()
            stamped_in_turns[(5,)](flag, out)
            assert out.numpy().tolist() == [1, 2, 3, 4, 5]


def test_spinning_for_another_ranks_signal():
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=2)) as ctx:

        def worker(rank):
            ctx.distributed.init_process_group()
            flag, out = ctx.distributed.symmetric_memory.zeros(1, dtype="i32"), ctx.zeros(1, dtype="i32")
            ctx.distributed.barrier()
            if rank == 0:
                with ctx.range("late"):
                    ctx.zeros(1 << 22, dtype="f32")
            kernels.one_rank_flag[(1,)](flag, out)

        ctx.multiprocessing.spawn(worker, nprocs=2)
        timeline = ctx.timeline()
    late = max(c.finish_ps for c in timeline.commands if timeline.ranges[c.bound.range_id] == "late")
    assert min(c.finish_ps for c in timeline.commands if c.bound.name == "one_rank_flag") > late


@pytest.mark.parametrize("programs", [4, 9])  # on four PEs
def test_spinning_for_ones_like_on_another_rank(programs):
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=2)) as ctx:

        def worker(rank):
            ctx.distributed.init_process_group()
            flag = ctx.distributed.symmetric_memory.zeros(programs, dtype="i32")
            out = ctx.zeros(programs, dtype="i32")
            ctx.distributed.barrier()
            if rank == 0:
                with ctx.range("late"):
                    ctx.zeros(1 << 22, dtype="f32")
            in_step[(programs,)](flag, out)
            assert out.numpy().tolist() == [2] * programs

        ctx.multiprocessing.spawn(worker, nprocs=2)
        timeline = ctx.timeline()
    late = max(c.finish_ps for c in timeline.commands if timeline.ranges[c.bound.range_id] == "late")
    ops = timeline.ops
    for launch in (c for c in timeline.commands if c.bound.name == "in_step"):
        at = slice(launch.first, launch.first + launch.bound.count)
        stores = [n >= 0 and launch.bound.lines[n][1] == line(in_step, "tl.store") for n in ops.line[at]]
        assert ops.start[at][stores].min() > late


def test_a_volatile_load_gives_way_to_other_launches():
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=2)) as ctx:

        def worker(rank):
            ctx.distributed.init_process_group()
            flag, out = ctx.distributed.symmetric_memory.zeros(1, dtype="i32"), ctx.zeros(1, dtype="i32")
            ctx.distributed.barrier()
            if rank == 0:
                told[(1,)](flag)
            else:
                waits_for_others[(1,)](flag, out)
                assert out.item() == 1

        ctx.multiprocessing.spawn(worker, nprocs=2)
    with StandaloneDevice() as device, pytest.raises(KernelFault, match=r"deadlock: no program can go on.*\n.*'flag'"):
        waits_for_others[(1,)](device.array(np.zeros(1), "i32"), device.empty((1,), "i32"))
