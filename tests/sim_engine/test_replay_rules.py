"""Golden timelines: tiny schedules whose every time can be worked out by hand. Both replays must give them."""

import numpy as np
import pytest
from engine_schedules import BareMachine, Draft

from kernbench.sim_engine import native, reference
from kernbench.sim_engine.state import CyclicWaitError, ResourceState

LINKS = BareMachine(np.array([1.0, 2.0, 0.5, 1.0]))
REPLAYS = [
    pytest.param(reference.replay, id="reference"),
    pytest.param(
        native.replay, id="core", marks=pytest.mark.skipif(not native.available(), reason="no compiled core here")
    ),
]


@pytest.fixture(params=REPLAYS)
def times(request):
    """Replays a draft on idle bare machine; returns its list of (start, finish)."""

    def run(draft, machine=LINKS):
        done = request.param(draft.build(), machine, ResourceState.idle(machine))
        return list(zip(done.start.tolist(), done.finish.tolist(), strict=True))

    return run


def test_a_queue_of_depth_one_runs_one_after_another(times):
    draft = Draft()
    queue = draft.queue()
    for duration in (5, 7, 0, 2):
        draft.fixed(queue, duration)
    assert times(draft) == [(0, 5), (5, 12), (12, 12), (12, 14)]


def test_depth_bounds_how_many_are_under_way_and_issues_keep_their_distance(times):
    draft = Draft()
    queue = draft.queue(depth=2, issue=3)
    for _ in range(4):
        draft.fixed(queue, 10)
    assert times(draft) == [(0, 10), (3, 13), (10, 20), (13, 23)]


def test_depth_zero_has_no_bound_but_still_issues_in_order(times):
    draft = Draft()
    slow, free = draft.queue(), draft.queue(depth=0)
    late = draft.fixed(slow, 50)
    draft.fixed(free, 10)
    draft.fixed(free, 10, late)
    draft.fixed(free, 10)
    assert times(draft) == [(0, 50), (0, 10), (50, 60), (50, 60)]


def test_an_op_waits_for_its_dependencies_and_its_release(times):
    draft = Draft()
    a, b, c = draft.queue(), draft.queue(), draft.queue()
    first, second = draft.fixed(a, 4), draft.fixed(b, 9)
    draft.fixed(c, 1, first, second)
    draft.fixed(c, 1, release=30)
    assert times(draft) == [(0, 4), (0, 9), (9, 10), (30, 31)]


def test_a_shared_engine_serves_in_order_of_arrival_then_of_queue(times):
    draft = Draft()
    a, b, c = draft.queue(engine=0), draft.queue(engine=0), draft.queue(engine=0)
    draft.fixed(b, 10)
    draft.fixed(a, 10, release=5)
    draft.fixed(c, 10, release=5)
    draft.fixed(b, 10)
    # b runs first; a and c came at 5, a's queue has the lower number; b's second came at 10
    assert times(draft) == [(0, 10), (10, 20), (20, 30), (30, 40)]


def test_a_message_cuts_through_and_its_narrowest_link_decides(times):
    draft = Draft()
    queue = draft.queue()
    path = draft.path(draft.route((0, 10), (1, 20), (2, 30)))
    draft.transfer(queue, draft.pattern((0, 100, -1, -1)), path)
    # head at the second link at 10, at the third at 30; 100 bytes take 100, 200 and 50 on them:
    # tails: 0+100 -> 110, then max(110, 10+200)+20 = 230, then max(230, 30+50)+30
    assert times(draft) == [(0, 260)]


def test_store_and_forward_would_be_later(times):
    draft = Draft()
    queue = draft.queue()
    five = BareMachine(np.ones(5))
    path = draft.path(draft.route(*((link, 7) for link in range(5))))
    draft.transfer(queue, draft.pattern((0, 1000, -1, -1)), path)
    assert times(draft, five) == [(0, 1000 + 5 * 7)]


def test_messages_on_one_link_follow_each_other(times):
    draft = Draft()
    path = draft.path(draft.route((0, 10)))
    for _ in range(3):
        draft.transfer(draft.queue(), draft.pattern((0, 40, -1, -1)), path)
    assert times(draft) == [(0, 50), (0, 90), (0, 130)]


def test_incast_the_last_one_leaves_after_all_bytes(times):
    draft = Draft()
    machine = BareMachine(np.ones(9))
    for source in range(8):
        path = draft.path(draft.route((source, 3), (8, 5)))
        draft.transfer(draft.queue(), draft.pattern((0, 100, -1, -1)), path)
    finish = [f for _, f in times(draft, machine)]
    assert finish == [3 + 100 * (k + 1) + 5 for k in range(8)]


def test_a_later_link_is_not_reserved_before_the_message_gets_there(times):
    draft = Draft()
    machine = BareMachine(np.array([10.0, 1.0, 1.0]))
    slow = draft.path(draft.route((0, 500), (2, 0)))
    quick = draft.path(draft.route((1, 0), (2, 0)))
    draft.transfer(draft.queue(), draft.pattern((0, 10, -1, -1)), slow)
    draft.transfer(draft.queue(), draft.pattern((0, 100, -1, -1)), quick)
    assert times(draft, machine) == [(0, 600), (0, 100)]


def test_a_read_asks_waits_for_its_channels_and_comes_back(times):
    draft = Draft()
    queue = draft.queue()
    read = draft.pattern((0, 30, draft.channel_set({0: 10, 1: 20}), -1))
    path = draft.path(draft.route((0, 4), request=6), access=50)
    draft.transfer(queue, read, path)
    # arrives at 6; head leaves at 6+50, tail at 6+20+50; the link takes 30 from 56 on, then 4
    assert times(draft) == [(0, 90)]


def test_channels_are_busy_each_for_its_own_bytes(times):
    draft = Draft()
    path = draft.path(draft.route(), access=5)
    both = draft.pattern((0, 40, draft.channel_set({0: 10, 1: 30}), -1))
    first = draft.pattern((0, 10, draft.channel_set({0: 10}), -1))
    second = draft.pattern((0, 10, draft.channel_set({1: 10}), -1))
    for pattern in (both, first, second):
        draft.transfer(draft.queue(), pattern, path)
    assert times(draft) == [(0, 35), (0, 25), (0, 45)]


def test_a_write_passes_its_route_first(times):
    draft = Draft()
    write = draft.pattern((0, 20, -1, draft.channel_set({2: 100})))
    draft.transfer(draft.queue(), write, draft.path(draft.route((0, 8)), access=5))
    # the head is there at 8, the channel is busy until 108
    assert times(draft) == [(0, 113)]


def test_an_exchange_takes_channels_at_both_ends(times):
    draft = Draft()
    there = draft.pattern((0, 10, draft.channel_set({0: 10}), draft.channel_set({0: 10})))
    path = draft.path(draft.route((0, 7)), source=0, destination=4, access=2)
    draft.transfer(draft.queue(), there, path)
    # head: 0+2, link until 12, head at 9; tail: max(10+2, 12)+7 = 19; channel 4 from 9 to 19; + 2
    assert times(draft) == [(0, 21)]


def test_an_op_ends_with_its_last_message_and_not_before_its_duration(times):
    draft = Draft()
    two = draft.pattern((0, 10, -1, -1), (1, 50, -1, -1))
    path = draft.path(draft.route((0, 1)), draft.route((3, 1)))
    draft.transfer(draft.queue(), two, path)
    draft.transfer(draft.queue(), draft.pattern((0, 1, -1, -1)), path, least=500)
    draft.transfer(draft.queue(), draft.pattern(), path, least=7)
    assert times(draft) == [(0, 51), (0, 500), (0, 7)]


@pytest.mark.parametrize("replay", REPLAYS)
def test_a_cyclic_wait_is_an_error_that_names_its_ops(replay):
    draft = Draft()
    a, b = draft.queue(), draft.queue()
    draft.fixed(a, 1, 3)
    draft.fixed(a, 1)
    draft.fixed(b, 1, 1)
    draft.fixed(b, 1)
    with pytest.raises(CyclicWaitError, match="4 of 4 ops") as caught:
        replay(draft.build(), LINKS, ResourceState.idle(LINKS))
    text = str(caught.value)
    assert "op 0" in text and "waits for op 3" in text and "op 2" in text and "waits for op 1" in text


@pytest.mark.parametrize("replay", REPLAYS)
def test_a_later_replay_continues_and_counts_what_comes_too_late(replay):
    draft = Draft()
    path = draft.path(draft.route((0, 10)))
    pattern = draft.pattern((0, 40, -1, -1))
    a, b = draft.queue(depth=2), draft.queue()
    draft.transfer(a, pattern, path, release=100)
    draft.transfer(a, pattern, path)
    draft.transfer(b, pattern, path, release=60)
    state = ResourceState.idle(LINKS)
    first = replay(draft.build(0, 1), LINKS, state)
    assert (first.start.tolist(), first.finish.tolist(), first.moved.tolist()) == ([100], [150], [False])
    second = replay(draft.build(1, 3), LINKS, state)
    # the op of queue a follows in order; the one of queue b came at 60, before what the link has served at 100
    assert second.start.tolist() == [100, 60]
    assert second.finish.tolist() == [230, 190]
    assert second.moved.tolist() == [False, True]
