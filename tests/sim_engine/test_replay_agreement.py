"""The compiled core and the reference give the same times, whatever the schedule and however it is cut into replays."""

from itertools import pairwise

import numpy as np
import pytest
from engine_schedules import BareMachine, random_draft
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.sim_engine import native, reference
from kernbench.sim_engine.state import CyclicWaitError, ResourceState

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiled core here")


def machine_of(rng):
    return BareMachine(rng.choice([0.001, 0.3, 1.0, 2.7, 11.0], 6))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_same_times_on_random_schedules(seed):
    rng = np.random.default_rng(seed)
    machine = machine_of(rng)
    bound = random_draft(rng).build()
    states = ResourceState.idle(machine), ResourceState.idle(machine)
    ours, theirs = reference.replay(bound, machine, states[0]), native.replay(bound, machine, states[1])
    for name in ("start", "finish", "moved"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    assert ours.events == theirs.events
    for name in ResourceState.__slots__:
        np.testing.assert_array_equal(getattr(states[0], name), getattr(states[1], name), name)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_same_times_in_pieces(seed):
    rng = np.random.default_rng(seed)
    machine = machine_of(rng)
    draft = random_draft(rng)
    cut = int(rng.integers(0, len(draft.ops) + 1))
    results = []
    for replay in (reference.replay, native.replay):
        state = ResourceState.idle(machine)
        first = replay(draft.build(0, cut), machine, state)
        second = replay(draft.build(cut), machine, state)
        results.append(np.concatenate([first.finish, second.finish, first.moved, second.moved]))
    np.testing.assert_array_equal(*results)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_same_verdict_on_schedules_that_may_be_stuck(seed):
    rng = np.random.default_rng(seed)
    machine = machine_of(rng)
    bound = random_draft(rng, acyclic=False).build()
    verdicts = []
    for replay in (reference.replay, native.replay):
        try:
            verdicts.append(replay(bound, machine, ResourceState.idle(machine)).finish.tolist())
        except CyclicWaitError as error:
            verdicts.append(str(error).split(" ops")[0])
    assert verdicts[0] == verdicts[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_independent_simulation_gives_the_same_times(seed):
    simpy_replay = pytest.importorskip("peers.simpy_replay")
    rng = np.random.default_rng(seed)
    machine = machine_of(rng)
    bound = random_draft(rng).build()
    ours = native.replay(bound, machine, ResourceState.idle(machine))
    start, finish = simpy_replay.replay(bound, machine)
    np.testing.assert_array_equal(ours.start, start)
    np.testing.assert_array_equal(ours.finish, finish)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_op_respects_what_it_waits_for(seed):
    rng = np.random.default_rng(seed)
    machine = machine_of(rng)
    draft = random_draft(rng)
    done = reference.replay(draft.build(), machine, ResourceState.idle(machine))
    by_queue = {}
    for op, (queue, _, _, duration, release, deps) in enumerate(draft.ops):
        depth, issue, engine = draft.queues[queue]
        before = by_queue.setdefault(queue, [])
        assert done.start[op] >= max([release, *(done.finish[d] for d in deps)])
        if before:
            assert done.start[op] >= done.start[before[-1]] + issue
        if depth and len(before) >= depth:
            assert done.start[op] >= done.finish[before[-depth]]
        assert done.finish[op] >= done.start[op] + duration
        before.append(op)
    for engine in range(machine.engines):
        spans = sorted(
            (done.start[op], done.finish[op]) for op, (q, *_) in enumerate(draft.ops) if draft.queues[q][2] == engine
        )
        assert all(a[1] <= b[0] for a, b in pairwise(spans))
