import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench import ccl
from kernbench.ccl import Builder, ScheduleError, Slots, chunk_bounds

ROOTED = ["broadcast", "reduce", "gather", "scatter"]
PIECED = ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce"]


def make(collective, ranks, root=0, pieces=1):
    options = {}
    if collective in ROOTED:
        options["root"] = root % ranks
    if collective in PIECED:
        options["pieces"] = pieces
    return ccl.get(collective)(ranks, **options)


@pytest.mark.parametrize("collective", sorted({*ROOTED, *PIECED, "all_to_all"}))
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 16])
def test_every_input_arrives_exactly_once(collective, ranks):
    for pieces in (1, 3):
        ccl.verify(make(collective, ranks, root=ranks // 2, pieces=pieces))


def step_by_step(schedule, memory, order):
    """The schedule's steps one at a time in ``order``, plainly."""
    for s in order:
        step = schedule.steps[s]
        value = memory[step["rank"]][step["a"]]
        if step["b"] >= 0:
            value = value + memory[step["rank"]][step["b"]]
        memory[step["peer"] if step["peer"] >= 0 else step["rank"]][step["out"]] = value


def any_order(schedule, rng):
    """An order that respects nothing but the dependencies."""
    waiting = {s: set(schedule.deps(s)) for s in range(len(schedule.steps))}
    order = []
    while waiting:
        free = sorted(s for s, deps in waiting.items() if not deps)
        assert free, "the dependencies have a cycle"
        chosen = rng.choice(free)
        del waiting[chosen]
        for deps in waiting.values():
            deps.discard(chosen)
        order.append(chosen)
    return order


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted({*ROOTED, *PIECED, "all_to_all"})),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_dependencies_alone_fix_the_result(collective, ranks, root, pieces, seed):
    schedule = make(collective, ranks, root, pieces)
    start = np.random.default_rng(seed).standard_normal((ranks, schedule.slots.total))
    start[:, schedule.slots.inputs :] = np.nan
    in_rounds = start.copy()
    ccl.execute(schedule, in_rounds, np.add)
    shuffled = [list(row) for row in start]
    step_by_step(schedule, shuffled, any_order(schedule, random.Random(seed)))
    np.testing.assert_array_equal(np.array(shuffled), in_rounds)


def test_a_schedule_that_forgets_a_chunk_is_found_out():
    build = Builder("all_reduce", "broken", 2, 1, Slots(inputs=1, scratch=1))
    build.send(0, 1, 0, 1, 0)
    build.combine(1, 1, 0, 0, 0)
    with pytest.raises(ScheduleError, match=r"ends with rank 0's in0, expected rank 0's in0 \+ rank 1's in0"):
        ccl.verify(build.build())


def test_a_schedule_that_counts_twice_is_found_out():
    build = Builder("all_reduce", "broken", 2, 1, Slots(inputs=1, scratch=1))
    build.send([0, 1], [1, 0], 0, 1, 0)
    build.combine([0, 1], 1, 0, 0, 0)
    build.combine([0, 1], 1, 0, 0, 0)
    with pytest.raises(ScheduleError, match="2 x rank 1's in0"):
        ccl.verify(build.build())


def test_ring_all_reduce_has_the_textbook_count_of_steps():
    schedule = ccl.get("all_reduce", "ring")(5)
    sends = schedule.steps["peer"] >= 0
    assert sends.sum() == 2 * 4 * 5
    assert (~sends).sum() == 4 * 5
    assert "rank 0 sends in0 to rank 1's scratch0" in str(schedule)


def test_a_thousand_ranks_are_built_at_once():
    schedule = ccl.get("all_gather")(256)
    assert len(schedule.steps) == 256 * 256
    assert schedule.dep_ptr[-1] == len(schedule.dep_ids)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_chunks_cover_everything_evenly(count, chunks):
    bounds = chunk_bounds(count, chunks)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == count
    assert len(sizes) == chunks
    assert sizes.max() - sizes.min() <= 1


def test_unknown_algorithms_name_the_known_ones():
    with pytest.raises(ScheduleError, match="no algorithm 'tree' for all_reduce: it has ring"):
        ccl.get("all_reduce", "tree")
    with pytest.raises(ScheduleError, match="collectives are all_gather, all_reduce"):
        ccl.get("all_reduse")
    with pytest.raises(ScheduleError, match="already"):
        ccl.algorithms.register("all_reduce", "ring", ccl.ring.all_reduce)
    with pytest.raises(ScheduleError, match="root 4"):
        ccl.get("broadcast")(4, root=4)
