"""Addresses to channels: the hash, shards and copies, and bytes counted granule by granule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench import _native
from kernbench.memory import Axis, Placement
from kernbench.memory.channels import ChannelMap, Runs

COUNTS = [1, 2, 6, 8, 12, 32]


@pytest.mark.parametrize("hash_", ["xor", "modulo"])
@pytest.mark.parametrize("count", COUNTS)
def test_an_aligned_run_touches_every_channel_once(count, hash_):
    channels = ChannelMap(1, count, 256, hash_)
    for block in (0, 1, 5, 123456):
        places = channels.locate((block * count + np.arange(count)) * 256)
        assert sorted(places.tolist()) == list(range(count))


@pytest.mark.parametrize("pitch", [2**k for k in range(12, 20)])
def test_rows_at_a_power_of_two_pitch_spread_where_a_modulo_would_not(pitch):
    rows = np.arange(128) * pitch
    spread = np.bincount(ChannelMap(4, 32, 256).locate(rows), minlength=128)
    assert spread.max() <= 4
    assert len(np.unique(ChannelMap(4, 32, 256, "modulo").locate(rows))) <= 128 * 256 // pitch + 1


def test_the_fold_is_the_xor_of_the_digits():
    assert ChannelMap(1, 8, 256).fold(np.array([0o1234567]), 8).tolist() == [1 ^ 2 ^ 3 ^ 4 ^ 5 ^ 6 ^ 7]
    assert ChannelMap(1, 10, 256).fold(np.array([987654]), 10).tolist() == [(9 + 8 + 7 + 6 + 5 + 4) % 10]


def axes(parts):
    shards = st.builds(
        lambda p, segment, rows: Axis(p, period=segment * p * rows, segment=segment * rows),
        st.integers(2, parts), st.sampled_from([256, 512, 1024]), st.integers(1, 3),
    )  # fmt: skip
    return st.none() | shards | st.builds(lambda p: Axis(p, replicate=True), st.integers(2, parts))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(1, 8), (4, 32), (3, 5), (2, 12)]),
    st.sampled_from([128, 256, 1000]),
    st.sampled_from(["xor", "modulo"]),
    st.builds(Placement, axes(3), axes(8)),
    st.lists(st.lists(st.tuples(st.integers(0, 2**17), st.integers(0, 9000)), max_size=4), min_size=1, max_size=4),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_bytes_on_channels(shape, granule, hash_, placement, accesses, copy):
    if placement.cubes is not None and placement.cubes.parts > shape[0]:
        placement = Placement(None, placement.pes)
    channels = ChannelMap(*shape, granule, hash_)
    base = 2560
    ptr = np.concatenate([[0], np.cumsum([len(a) for a in accesses])])
    flat = [run for access in accesses for run in access]
    runs = Runs(ptr, base + np.array([a for a, _ in flat], np.int64), np.array([n for _, n in flat], np.int64))
    reference = channels.reference_bytes_on_channels(runs, base, placement, copy)
    for access, found in zip(accesses, reference, strict=True):
        assert found.sum() == sum(n for _, n in access)
    if _native.library() is not None:
        np.testing.assert_array_equal(channels.bytes_on_channels(runs, base, placement, copy), reference)
    step = np.concatenate([np.arange(a, a + n) for a, n in accesses[0]] or [np.empty(0, np.int64)])
    by_byte = np.bincount(channels.locate(base + step, base, placement, copy), minlength=channels.total)
    np.testing.assert_array_equal(reference[0], by_byte)


def test_strided_runs():
    runs = Runs.strided(np.array([100, 7]), np.array([[2, 3, 16], [1, 0, 16]]), (1000, 50, 1))
    assert runs.ptr.tolist() == [0, 6, 6]
    assert runs.address.tolist() == [100, 150, 200, 1100, 1150, 1200]
    assert set(runs.nbytes.tolist()) == {16}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), max_size=6), min_size=1, max_size=4),
    st.sampled_from([1, 32, 48]),
)
def test_each_burst_that_an_access_touches_moves_once(accesses, burst):
    ptr = np.concatenate([[0], np.cumsum([len(a) for a in accesses])])
    flat = np.array([run for access in accesses for run in access], np.int64).reshape(-1, 2)
    moved = Runs(ptr, flat[:, 0], flat[:, 1]).in_bursts(burst)
    np.testing.assert_array_equal(moved.ptr, ptr)
    for k, access in enumerate(accesses):
        mine = slice(*ptr[k : k + 2])
        runs = zip(moved.address[mine].tolist(), moved.nbytes[mine].tolist(), strict=True)
        bursts = [byte // burst for start, size in runs for byte in range(start, start + size, burst)]
        assert bursts == sorted({byte // burst for start, size in access for byte in range(start, start + size)})


def test_more_pe_shares_than_channels_share_channels():
    channels = ChannelMap(1, 4, 256)
    placement = Placement(pes=Axis(8, period=8 * 256, segment=256))
    assert channels.locate(np.arange(8) * 256, 0, placement).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
