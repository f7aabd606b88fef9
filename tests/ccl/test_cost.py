import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernbench import ccl
from kernbench.ccl import cost


def makespan(schedule, send, combine):
    """When a schedule ends if sends take (link, latency), combines ``combine``, and a link carries one at a time."""
    ends, link = [], {}
    for number, step in enumerate(schedule.steps):
        start = max((ends[d] for d in schedule.deps(number)), default=0)
        if step["peer"] >= 0:
            pair = (int(step["rank"]), int(step["peer"]))
            start = max(start, link.get(pair, 0))
            link[pair] = start + send[0]
            ends.append(start + sum(send))
        else:
            ends.append(start + (combine if step["b"] >= 0 else 0))
    return max(ends, default=0)


@given(
    st.integers(1, 8), st.sampled_from([8.0, 840.0, 84000.0]), st.sampled_from([0.0, 3.0]), st.sampled_from([0.0, 2.0])
)
def test_ring_formulas_match_the_schedules(ranks, nbytes, latency, reduce):
    bandwidth = 4.0
    send = (nbytes / ranks / bandwidth, latency)

    def of(collective, combine):
        return makespan(ccl.get(collective, "ring")(ranks), send, combine)

    assert of("all_reduce", reduce) == pytest.approx(cost.ring_all_reduce(ranks, nbytes, bandwidth, latency, reduce))
    assert of("reduce_scatter", reduce) == pytest.approx(
        cost.ring_reduce_scatter(ranks, nbytes, bandwidth, latency, reduce)
    )
    assert of("all_gather", 0.0) == pytest.approx(cost.ring_all_gather(ranks, nbytes, bandwidth, latency))


@given(st.integers(2, 8), st.integers(1, 6))
def test_the_chain_is_pipelined(ranks, pieces):
    nbytes, bandwidth, latency = 600.0, 4.0, 3.0
    send = (nbytes / pieces / bandwidth, latency)
    found = makespan(ccl.get("broadcast", "ring")(ranks, pieces=pieces), send, 0.0)
    assert found == pytest.approx(cost.chain(ranks, nbytes, bandwidth, latency, pieces))


@given(st.integers(2, 16), st.floats(1e2, 1e9), st.floats(1e-7, 1e-4))
def test_enough_pieces_are_enough_and_no_more(ranks, nbytes, latency):
    args = (ranks, nbytes, 100e9, latency)
    enough = cost.enough_pieces(*args)
    limit = nbytes / 100e9 + (ranks - 1) * latency
    assert cost.chain(*args, pieces=enough) <= 1.1 * limit * (1 + 1e-9)
    if enough > 1:
        assert cost.chain(*args, pieces=enough - 1) > 1.1 * limit * (1 - 1e-9)


def test_reduce_time_is_bound_by_memory_or_vectors():
    assert cost.reduce_time(1000, 500, hbm=30, vector=1e9) == 100
    assert cost.reduce_time(1000, 500, hbm=1e9, vector=5) == 100
