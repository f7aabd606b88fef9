import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench import _native
from kernbench.weight_sync import blockdiff
from kernbench.weight_sync.blockdiff import differing_runs


def by_hand(old, new, block):
    """Blocks one by one, merged."""
    runs = []
    for start in range(0, len(old), block):
        if bytes(old[start : start + block]) == bytes(new[start : start + block]):
            continue
        length = min(block, len(old) - start)
        if runs and sum(runs[-1]) == start:
            runs[-1][1] += length
        else:
            runs.append([start, length])
    return runs


@pytest.fixture(params=["compiled", "numpy"])
def diff(request, monkeypatch):
    if request.param == "numpy":
        return blockdiff._reference
    library = _native.library()
    if library is None or not hasattr(library, "kb_diff_blocks"):
        pytest.skip("no compiled core")
    return lambda *args: blockdiff._compiled(library, *args)


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(0, 40_000),
    block=st.sampled_from([1, 3, 64, 100, 4096, 70_000]),
    changes=st.lists(st.floats(0, 1, exclude_max=True), max_size=8),
)
def test_runs_are_the_blocks_that_differ(size, block, changes):
    old = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    new = old.copy()
    for place in changes:
        new[int(place * size) : int(place * size) + 1] ^= 0x80
    expected = by_hand(old, new, block)
    assert differing_runs(old, new, block).tolist() == expected
    assert blockdiff._reference(old, new, block).tolist() == expected


def test_more_runs_than_one_call_returns(diff, monkeypatch):
    monkeypatch.setattr(blockdiff, "_CAPACITY", 3)
    old = np.zeros(64 * 40, np.uint8)
    new = old.copy()
    new[:: 64 * 2] = 1
    assert diff(old, new, 64).tolist() == [[128 * i, 64] for i in range(20)]


def test_a_run_goes_on_over_a_stride(diff):
    size = 300_000
    assert diff(np.zeros(size, np.uint8), np.ones(size, np.uint8), 4096).tolist() == [[0, size]]


def test_unaligned_buffers(diff):
    old = np.zeros(10_007, np.uint8)[7:]
    new = old.copy()
    new[-1] = 1
    assert diff(old, new, 4096).tolist() == [[8192, 10_000 - 8192]]


def test_refusals():
    a = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="equally long"):
        differing_runs(a, a[:4])
    with pytest.raises(ValueError, match="block size"):
        differing_runs(a, a, 0)
