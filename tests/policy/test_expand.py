"""Expansion of kernels against a plain walk over programs, iterations and rows that writes down every wait."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_records import START, engine, matmul

from kernbench.policy.expand import QUEUE_OF, expand
from kernbench.sim_engine.bound import FIXED
from kernbench.sim_engine.engine import replay
from kernbench.sim_engine.oplog import Access, KernelRecord, Launch, Loop, OpKind, ProgramBlock, Row
from kernbench.sim_engine.queues import Role
from kernbench.sim_engine.state import ResourceState

RUN = engine("tiny")
PES = RUN.graph.pes_per_sip


def random_access(rng, programs):
    counts = (int(rng.integers(1, 5)), int(rng.integers(1, 600)))
    base = START + rng.integers(0, 4000, programs) * 16
    if rng.random() < 0.3:
        sizes = rng.integers(0, 4, programs)
        ptr = np.concatenate([[0], np.cumsum(sizes)])
        runs = START + rng.integers(0, 60000, ptr[-1]), rng.integers(1, 300, ptr[-1])
        return Access(base, (), (), run_ptr=ptr, run_addr=runs[0], run_bytes=runs[1])
    access = Access(base, counts, (int(rng.integers(1, 5)) * 640, 1), base_step=int(rng.integers(0, 3)) * 512)
    if rng.random() < 0.5:
        access.extent = np.stack([rng.integers(-1, c + 3, programs) for c in counts], 1)
        access.extent_step = (0, -int(rng.integers(0, 300)))
    return access


def random_block(rng, programs):
    count = len(programs)
    rows, loops = [], []
    while len(rows) < rng.integers(1, 9):
        loop, body = -1, 1
        if rng.random() < 0.5:
            loops.append(Loop(rng.integers(0, 6, count), int(rng.integers(1, 4))))
            loop, body = len(loops) - 1, int(rng.integers(1, 4))
        for _ in range(body):
            here = len(rows)
            kind = OpKind(int(rng.integers(5)))
            row = Row(kind, 0, loop=loop, op=str(rng.choice(["add", "exp"])), elements=int(rng.integers(1, 500)))
            row.deps = tuple(sorted(set(rng.integers(0, here, rng.integers(0, 3)).tolist()))) if here else ()
            if rng.random() < 0.3:
                row.active = rng.random(count) < 0.7
            if kind in (OpKind.READ, OpKind.WRITE, OpKind.ATOMIC):
                row.access = random_access(rng, count)
                row.atomics = int(rng.integers(1, 5))
            row.shape = tuple(int(d) for d in rng.integers(1, 40, 3))
            row.dtype = str(rng.choice(["f16", "f32"]))
            row.chained, row.fresh = bool(rng.random() < 0.3), bool(rng.random() < 0.3)
            rows.append(row)
    for i, row in enumerate(rows):
        same = [r for r, other in enumerate(rows) if other.loop == row.loop]
        if row.loop >= 0 and rng.random() < 0.4:
            row.carried = (int(rng.choice(same)),)
        if row.access is not None and row.access.run_ptr is not None:
            row.access.base_step = 0
        assert i not in row.deps
    return ProgramBlock(programs, rows, loops)


def random_record(rng):
    total = int(rng.integers(1, 14))
    owner = rng.integers(0, 3, total)  # block 2 holds programs that did nothing at all
    blocks = [random_block(rng, np.flatnonzero(owner == b)) for b in range(2) if (owner == b).any()]
    return KernelRecord("random", (total, 1, 1), blocks, [("k.py", 1)], programs_in_flight=int(rng.integers(1, 4)))


def walk(block, column):
    """(row, iteration) in program order."""
    rows, r = block.rows, 0
    while r < len(rows):
        end = r + 1
        if rows[r].loop >= 0:
            while end < len(rows) and rows[end].loop == rows[r].loop:
                end += 1
        for t in range(int(block.loops[rows[r].loop].trips[column]) if rows[r].loop >= 0 else 1):
            for i in range(r, end):
                if rows[i].active is None or rows[i].active[column]:
                    yield i, t
        r = end


def plain(record, costs):
    """[(queue, duration or None, waits, (row, column, iteration, pe))], in the order of the ops' numbers."""
    ops = [((0, Role.STREAM), 0, [], None)]
    where = sorted((int(p), block, c) for block in record.blocks for c, p in enumerate(block.programs))
    retired = {}
    for program, block, column in where:
        pe = program % PES
        mine = retired.setdefault(pe, [])
        gate = mine[-record.programs_in_flight] if len(mine) >= record.programs_in_flight else 0
        number = {}
        for r, t in walk(block, column):
            row = block.rows[r]
            last = {d: max((u for e, u in number if e == d), default=None) for d in row.deps}
            waits = [gate]
            for d in row.deps:
                same = row.loop >= 0 and block.rows[d].loop == row.loop
                waits.append(number.get((d, t if same else last[d])))
            waits += [number.get((d, t - 1)) for d in row.carried]
            if row.kind == OpKind.READ and row.loop >= 0:
                readers = [e for e, o in enumerate(block.rows) if o.loop == row.loop and r in o.deps]
                waits += [number.get((e, t - block.loops[row.loop].stages)) for e in readers]
            duration = None
            if row.kind == OpKind.VECTOR:
                duration = costs.vector.time(row.elements, row.op)
            elif row.kind == OpKind.GEMM:
                step = costs.gemm.step(*row.shape, row.dtype)
                trips = int(block.loops[row.loop].trips[column]) if row.loop >= 0 else 1
                duration = step.stream_ps
                duration += step.fill_ps * (not row.chained and (row.fresh or t == 0))
                duration += step.drain_ps * (not row.chained and (row.fresh or t == trips - 1))
            number[r, t] = len(ops)
            ops.append(((pe, QUEUE_OF[row.kind]), duration, [w for w in waits if w is not None], (row, column, t, pe)))
        mine.append(len(ops))
        ops.append(((pe, Role.PROGRAM), 0, [gate, *number.values()], None))
    ops.append(((0, Role.STREAM), 0, [mine[-1] for mine in retired.values()], None))
    return ops


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_same_ops_and_same_times_as_a_plain_walk(seed):
    rng = np.random.default_rng(seed)
    record = random_record(rng)
    binder = RUN.binder
    machine, book = binder.machine, binder.book
    expected = plain(record, machine.costs)
    made = expand(record, PES, machine.costs, book, ())
    assert made.count == len(expected)

    for i, (queue, duration, _, origin) in enumerate(expected):
        key = made.queues[made.queue[i]]
        assert (key >> 4, key & 0xF) == queue
        if duration is not None:
            assert (made.duration[i], made.pattern[i]) == (duration, FIXED)
        elif origin is not None:
            row, column, trip, pe = origin
            kind = {OpKind.READ: "read", OpKind.WRITE: "write", OpKind.ATOMIC: "atomic"}[row.kind]
            one = [np.array([v]) for v in (column, trip, pe)]
            pattern, nbytes = book.of_row(row.access, kind, row.atomics, *one, ())
            assert messages(book, pattern[0]) == messages(book, made.pattern[i])
            assert nbytes[0] == made.bytes[i]
            assert made.path[i] == pe + PES * (row.kind == OpKind.WRITE)

    log = engine("tiny").log
    log.add(0, Launch(record))
    bound = binder.bind(log)
    fast = replay(bound, machine, ResourceState.idle(machine))
    waits = [[], [0], *([w + 1 for w in op[2]] for op in expected[1:])]
    bound.dep_ptr = np.concatenate([[0], np.cumsum([len(w) for w in waits])])
    bound.deps = np.array([w for some in waits for w in some], np.int32)
    slow = replay(bound, machine, ResourceState.idle(machine))
    np.testing.assert_array_equal(fast.start, slow.start)
    np.testing.assert_array_equal(fast.finish, slow.finish)


def messages(book, pattern):
    p = book.patterns
    found = []
    for m in range(*p.message_ptr.view[pattern : pattern + 2]):
        sets = []
        for s in (p.source.view[m], p.destination.view[m]):
            span = slice(*p.set_ptr.view[s : s + 2]) if s >= 0 else slice(0)
            sets.append((p.set_channel.view[span].tolist(), p.set_ps.view[span].tolist()))
        found.append((int(p.slot.view[m]), int(p.bytes.view[m]), sets))
    return found


def test_a_gemm_chain_fills_and_drains_once():
    made = expand(matmul(64, 64, 256, (32, 32, 32)), PES, RUN.binder.machine.costs, RUN.binder.book, ())
    step = RUN.binder.machine.costs.gemm.step(32, 32, 32, "f16")
    gemms = made.duration[made.kind == OpKind.GEMM].reshape(4, 8) - step.stream_ps
    assert gemms.tolist() == [[step.fill_ps, 0, 0, 0, 0, 0, 0, step.drain_ps]] * 4


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_reads_run_ahead_by_the_number_of_stages(stages):
    run = engine("tiny", "sip.cube.pe.dma.depth=64")
    run.log.add(0, Launch(matmul(32, 32, 1024, (32, 32, 32), stages)))
    ops = run.replay().ops
    reads, gemms = ops.start[ops.kind == OpKind.READ].reshape(-1, 2), ops.finish[ops.kind == OpKind.GEMM]
    # the read of iteration t starts when the GEMM of iteration t - stages has ended, at the earliest
    assert (reads[stages:] >= gemms[:-stages, None]).all()
    ahead = (reads[stages:, 0] < gemms[stages - 1 : -1]).any()  # of the GEMM just before it
    assert ahead == (stages > 1)


def test_programs_in_flight_overlap():
    times = []
    for flight in (1, 2, 3):
        run = engine("tiny")
        record = matmul(256, 256, 32, (32, 32, 32))
        record.programs_in_flight = flight
        times.append(run.time_alone([Launch(record)]))
    assert times[0] > times[1] >= times[2]


def test_a_kernel_without_programs_takes_no_time():
    assert RUN.time_alone([Launch(KernelRecord("none", (0, 1, 1), [], []))]) == 0
