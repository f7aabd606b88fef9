"""Hosts, streams, events, copies and collectives of a bound record, by their times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_records import START, engine, matmul, ring_all_reduce, span

from kernbench.memory import Axis, Placement
from kernbench.policy.bind import Binder, fingerprint
from kernbench.sim_engine import native, reference
from kernbench.sim_engine.oplog import (
    Access,
    Collective,
    Copy,
    EventRecord,
    EventWait,
    HostSync,
    HostWork,
    KernelRecord,
    Launch,
    OpKind,
    OpLog,
    Placed,
    ProgramBlock,
    Row,
    Transfer,
)
from kernbench.sim_engine.state import CyclicWaitError, ResourceState

US = 10**6
SMALL = matmul(64, 64, 64, (32, 32, 32))


def run_of(*commands, topology="tiny", overrides=()):
    run = engine(topology, *overrides)
    for command in commands:
        run.log.add(0, command)
    return run, run.replay()


def busy(elements):
    """A kernel of one program that does nothing but vector work."""
    row = Row(OpKind.VECTOR, 0, elements=elements, op="add")
    return KernelRecord("busy", (1, 1, 1), [ProgramBlock(np.zeros(1, np.int64), [row])], [("busy.py", 3)])


def test_the_host_runs_ahead_of_its_stream():
    alone = engine("tiny").time_alone([Launch(SMALL)])
    _, timeline = run_of(*[Launch(SMALL)] * 3, overrides=["system.host.launch=100 ns"])
    times = [(c.issued_ps, c.reached_ps, c.finish_ps) for c in timeline.commands]
    assert times == [(k * 100_000, 100_000 + k * alone, 100_000 + (k + 1) * alone) for k in range(3)]


def test_a_slow_host_shows_between_kernels():
    alone = engine("tiny").time_alone([Launch(SMALL)])
    _, timeline = run_of(*[Launch(SMALL)] * 3, overrides=["system.host.launch=100 us"])
    assert [c.reached_ps for c in timeline.commands] == [100 * US, 200 * US, 300 * US]
    assert timeline.makespan_ps == 300 * US + alone
    assert timeline.commands[1].ready_ps == 100 * US + alone  # it holds the stream from when the one before has ended


def test_streams_overlap_and_share_engines():
    alone = engine("tiny").time_alone([Launch(busy(64_000))])
    _, timeline = run_of(
        Launch(busy(64_000), stream=0), Launch(busy(64_000), stream=1), overrides=["system.host.launch=0 ns"]
    )
    assert timeline.makespan_ps == 2 * alone  # both use the vector engine of PE 0
    _, timeline = run_of(Launch(busy(64_000), stream=0), Launch(SMALL, stream=1), overrides=["system.host.launch=0 ns"])
    assert timeline.makespan_ps < alone + engine("tiny").time_alone([Launch(SMALL)])


def test_events_order_streams_and_measure():
    run, timeline = run_of(
        Launch(busy(32_000), stream=0),
        EventRecord(7, stream=0),
        EventWait(7, stream=1),
        Launch(SMALL, stream=1),
        EventRecord(8, 1),
    )
    launch = run.spec.system.host.launch
    assert timeline.event_ps(0, 7) == launch + 1000 * 1000
    assert (
        timeline.event_ps(0, 8)
        == timeline.makespan_ps
        == max(2 * launch, launch + 10**6) + run.time_alone([Launch(SMALL)])
    )
    with pytest.raises(KeyError, match="event 9 of rank 0"):
        timeline.event_ps(0, 9)


def test_an_event_recorded_on_an_idle_stream_has_the_hosts_time():
    _, timeline = run_of(HostWork("think", 5 * US), EventRecord(1))
    assert timeline.event_ps(0, 1) == 5 * US


@pytest.mark.parametrize(
    ("sync", "waits"),
    [(HostSync(event=1), 1000), (HostSync(stream=0), 1000), (HostSync(stream=5), 0), (HostSync(), 2000)],
    ids=["event", "stream", "unused stream", "everything"],
)
def test_the_host_waits_for_what_it_synchronises_with(sync, waits):
    commands = [
        Launch(busy(32_000), stream=0),
        EventRecord(1),
        Launch(busy(64_000), stream=1),
        sync,
        HostWork("after", 1),
    ]
    run, timeline = run_of(*commands, overrides=["system.host.launch=1 ps", "sip.cube.pe.programs_in_flight=1"])
    after = timeline.commands[-1].issued_ps
    busy_until = {0: 2, 1000: 1 + 1000 * 1000, 2000: 1 + 3000 * 1000}[waits]  # both kernels run on PE 0
    assert after == pytest.approx(busy_until + run.spec.system.host.sync, abs=2)


def test_waiting_for_an_event_nobody_recorded_is_an_error():
    with pytest.raises(ValueError, match="rank 0 waits for event 3, which it has not recorded"):
        run_of(EventWait(3))


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_a_copy_takes_the_host_link(direction):
    nbytes = 2**22
    run, timeline = run_of(Copy(direction, span(START, nbytes), nbytes), HostWork("after", 1))
    link = run.spec.system.host.link
    time = timeline.commands[0].finish_ps - timeline.commands[0].reached_ps
    assert time == pytest.approx(nbytes / link.bandwidth * 1e12 + link.latency, rel=0.01)
    assert timeline.commands[1].issued_ps == timeline.commands[0].finish_ps


def test_a_copy_that_does_not_block_leaves_the_host_free():
    run, timeline = run_of(Copy("h2d", span(START, 2**22), 2**22, blocking=False), HostWork("after", 1))
    assert timeline.commands[1].issued_ps == run.spec.system.host.copy


def test_a_copy_inside_the_device_reads_and_writes_its_memory():
    nbytes = 2**22
    run, timeline = run_of(
        Copy("d2d", span(START + nbytes, nbytes), nbytes, source=span(START, nbytes)), topology="ahbm-1sip"
    )
    hbm = run.graph.cubes_per_sip * run.spec.sip.cube.hbm.bandwidth
    time = timeline.commands[0].finish_ps - timeline.commands[0].reached_ps
    assert 2 * nbytes / hbm * 1e12 <= time <= 2.2 * nbytes / hbm * 1e12 + 2 * run.spec.sip.cube.hbm.latency
    with pytest.raises(ValueError, match="expected h2d, d2h, or d2d with a source"):
        run_of(Copy("sideways", span(START, 8), 8))


def pair(nbytes):
    """Rank 0 sends to rank 1."""
    key = ("p2p", 0)
    send = Collective("send", key, [Transfer(1, span(START, nbytes), span(START, nbytes), nbytes)], ())
    return send, Collective("recv", key, [], ((0, 0),))


def test_a_transfer_waits_for_its_peer():
    send, receive = pair(2**16)
    run = engine("tiny", sips=2)
    run.log.add(0, send)
    run.log.add(1, HostWork("late", 50 * US))
    run.log.add(1, receive)
    timeline = run.replay()
    ends = [c.finish_ps for c in timeline.commands if c.bound.kind == "collective"]
    assert ends[0] == ends[1] > 50 * US + 2**16 / run.spec.system.fabric.bandwidth * 1e12


def test_half_a_collective_is_held_back_until_the_rest_is_recorded():
    send, receive = pair(2**16)
    run = engine("tiny", sips=2)
    for command in (HostWork("before", 7), send, HostWork("after", 9)):
        run.log.add(0, command)
    timeline = run.replay()
    assert (timeline.makespan_ps, timeline.held_back, timeline.clamped) == (7, 2, 0)
    run.log.add(1, receive)
    timeline = run.replay()
    assert timeline.held_back == 0
    whole = engine("tiny", sips=2)
    whole.log = run.log
    assert whole.replay().digest() == timeline.digest()


def test_ranks_that_enter_collectives_in_different_order_are_told_who_waits_for_whom():
    run = engine("tiny", sips=2)
    first, second = pair(256)
    other = [Collective(c.name, ("other", 0), c.steps, c.done) for c in (first, second)]
    for rank, commands in enumerate(([first, other[0]], [other[1], second])):
        for command in commands:
            run.log.add(rank, command)
    with pytest.raises(
        CyclicWaitError, match=r"send of rank 0's collective 'send'\) waits for .* of rank 1's collective 'recv'"
    ):
        run.replay()


def test_too_many_ranks_say_so():
    run = engine("tiny")
    with pytest.raises(ValueError, match="3 ranks, the machine 1 SIPs"):
        run.binder.bind(OpLog.empty(3))


def random_log(rng, ranks):
    """Kernels, copies, events and syncs of every rank with some collectives in between."""
    log = OpLog.empty(ranks)
    for step in range(int(rng.integers(1, 5))):
        for rank in range(ranks):
            for _ in range(int(rng.integers(0, 4))):
                stream = int(rng.integers(0, 2))
                tile = int(rng.choice([16, 32]))
                log.add(
                    rank,
                    [
                        Launch(matmul(64, 64, 64, (tile, tile, tile)), stream),
                        Copy(str(rng.choice(["h2d", "d2h"])), span(START, 5000), 5000, stream, bool(rng.integers(2))),
                        HostWork("work", int(rng.integers(0, 10 * US))),
                        EventRecord(step, stream),
                        HostSync(stream=stream),
                        HostSync(),
                    ][int(rng.integers(6))],
                )
        if ranks > 1 and rng.random() < 0.7:
            for rank, part in enumerate(ring_all_reduce(ranks, ranks * 2560)):
                part.key, part.stream = ("world", step), int(rng.integers(0, 2))
                log.add(rank, part)
    return log


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@pytest.mark.skipif(not native.available(), reason="no compiled core here")
def test_reference_and_core_agree_on_random_records(seed, ranks):
    rng = np.random.default_rng(seed)
    binder = Binder(engine("tiny", sips=ranks).graph)
    bound = binder.bind(random_log(rng, ranks))
    if bound.count:
        ours, theirs = (
            r.replay(bound, binder.machine, ResourceState.idle(binder.machine)) for r in (reference, native)
        )
        np.testing.assert_array_equal(ours.start, theirs.start)
        np.testing.assert_array_equal(ours.finish, theirs.finish)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_asking_for_times_at_barriers_changes_nothing(seed, ranks):
    rng = np.random.default_rng(seed)
    log = random_log(rng, ranks)
    whole, pieces = engine("tiny", sips=ranks), engine("tiny", sips=ranks)
    whole.log = log
    for rank, commands in enumerate(log.commands):
        for command in commands:
            pieces.log.add(rank, command)
            if ranks == 1 and command == HostSync():
                pieces.replay()
    pieced, once = pieces.replay(), whole.replay()
    assert pieced.digest() == once.digest()
    assert pieced.clamped == 0


def placed_read(placement, pe, nbytes=8192):
    """Time in which PE ``pe`` alone reads a placed allocation, and the bytes on each cube."""
    run = engine("ahbm-1sip")
    access = Access(np.full(1, START, np.int64), (nbytes,), (1,))
    block = ProgramBlock(np.array([pe]), [Row(OpKind.READ, 0, access=access)])
    record = KernelRecord("read", (64, 1, 1), [block], [("read.py", 1)])
    run.log.add(0, Launch(record, placements=(Placed(START, START + nbytes, placement),)))
    time = run.replay().makespan_ps - run.spec.system.host.launch
    patterns = run.binder.book.patterns
    per_cube = np.bincount(patterns.slot.view, patterns.bytes.view, 4).astype(int).tolist()
    return time, per_cube


def test_reads_take_the_nearest_copy():
    everywhere = Placement(Axis(4, replicate=True))
    local = [placed_read(everywhere, pe) for pe in (0, 16, 32, 48)]
    assert [cubes.index(8192) for _, cubes in local] == [0, 1, 2, 3]
    assert len({time for time, _ in local}) == 1
    one_cube = Placement(Axis(1, period=8192, segment=8192))
    far = placed_read(one_cube, 48)
    assert far[1] == [8192, 0, 0, 0] and far[0] > local[3][0]


def test_writes_pay_every_copy():
    run = engine("ahbm-1sip")
    access = Access(np.full(1, START, np.int64), (8192,), (1,))
    block = ProgramBlock(np.array([0]), [Row(OpKind.WRITE, 0, access=access)])
    record = KernelRecord("write", (1, 1, 1), [block], [("write.py", 1)])
    placement = Placement(Axis(4, replicate=True), Axis(2, replicate=True))
    run.log.add(0, Launch(record, placements=(Placed(START, START + 8192, placement),)))
    ops = run.replay().ops
    assert ops.bytes.sum() == 8 * 8192


def test_memory_that_is_reused_keeps_the_placement_of_its_time():
    run = engine("ahbm-1sip")
    for placement in (Placement(Axis(4, period=8192, segment=2048)), None, Placement(Axis(4, replicate=True))):
        placements = () if placement is None else (Placed(START, START + 8192, placement),)
        run.log.add(0, Copy("h2d", span(START, 8192), 8192, placements=placements))
    times = [c.finish_ps - c.reached_ps for c in run.replay().commands]
    assert times[2] > max(times[:2])  # four copies; shards and interleaving spread the bytes once over all cubes


def test_atomics_at_one_channel_follow_each_other():
    access = Access(np.full(4, START, np.int64), (4,), (1,))
    block = ProgramBlock(np.arange(4), [Row(OpKind.ATOMIC, 0, access=access, atomics=1)])
    run = engine("tiny")
    one = ProgramBlock(np.arange(1), [Row(OpKind.ATOMIC, 0, access=Access(access.base[:1], (4,), (1,)), atomics=1)])
    times = [
        run.time_alone([Launch(KernelRecord("atomic", (len(b.programs), 1, 1), [b], [("a.py", 1)]))])
        for b in (one, block)
    ]
    assert times[1] == pytest.approx(times[0] + 3 * run.spec.sip.cube.hbm.latency, rel=0.05)


def test_fingerprints_tell_records_apart():
    a, b = matmul(64, 64, 64, (32, 32, 32)), matmul(64, 64, 64, (32, 32, 32))
    assert fingerprint(a) == fingerprint(b)
    b.blocks[0].rows[0].access.base[1] += 256
    assert fingerprint(a) != fingerprint(b)
