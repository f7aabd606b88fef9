from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernbench.memory import AccessError, AddressSpace, Axis, OutOfMemoryError, Placement
from kernbench.memory.space import ALIGNMENT

KIB = 1024


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3000), st.integers(0, 1)), max_size=60))
def test_live_ranges_never_meet(steps):
    """Each step frees one live allocation, or makes one of so many bytes on a stream."""
    synchronised = []
    space = AddressSpace(16 * KIB, "memory", synchronize=lambda: synchronised.append(1))
    live = []
    for choice, nbytes, stream in steps:
        if choice == 0 and live:
            space.free(live.pop(nbytes % len(live)))
        else:
            try:
                live.append(space.alloc(nbytes, stream=stream))
            except OutOfMemoryError:
                assert live, "an empty memory of 16 KiB holds 3000 bytes"
        ranges = sorted((a.base, a.base + a.size) for a in live)
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
        assert all(a.base % ALIGNMENT == 0 and a.base > 0 and a.nbytes <= a.size for a in live)
        assert space.allocated == sum(a.size for a in live) <= space.capacity
        assert space.allocations() == sorted(live, key=lambda a: a.base)
        for a in live:
            assert space.find(a.base) is a
            if a.nbytes:
                assert space.locate(a.base, a.nbytes) is a
    for a in live:
        space.free(a)
    assert space.allocated == 0
    space.alloc(space.capacity)  # everything can be had again in one piece


def test_freed_memory_belongs_to_its_stream_until_streams_are_ordered():
    ordered = []
    space = AddressSpace(4 * KIB, "memory", synchronize=lambda: ordered.append(1))
    first = space.alloc(2 * KIB, stream=1)
    space.free(first)
    assert space.alloc(KIB, stream=0).base >= first.base + 2 * KIB
    assert space.alloc(KIB, stream=1).base == first.base
    assert ordered == []
    assert space.alloc(KIB, stream=0) is not None
    assert space.alloc(KIB, stream=0).base == first.base + KIB
    assert ordered == [1]


def test_full_memory_names_the_holders_and_what_to_do():
    space = AddressSpace(8 * KIB, "ahbm:0")
    space.alloc(3 * KIB, "weights")
    space.alloc(4 * KIB, "cache")
    with pytest.raises(OutOfMemoryError) as caught:
        space.alloc(2 * KIB, "activations")
    text = str(caught.value)
    assert text.startswith("ahbm:0 is full: 'activations' needs 0.00 MiB")
    assert text.index("cache") < text.index("weights")
    assert "raise sip.cube.hbm.capacity" in text


def test_copies_count_against_capacity():
    space = AddressSpace(8 * KIB, "memory")
    replicated = Placement(cubes=Axis(2, replicate=True), pes=Axis(2, replicate=True))
    assert replicated.copies == 4
    kept = space.alloc(2 * KIB, placement=replicated)
    assert space.allocated == 8 * KIB
    with pytest.raises(OutOfMemoryError, match=r"\(4 copies\)"):
        space.alloc(1, placement=replicated)
    space.free(kept)
    assert (space.allocated, space.peak) == (0, 8 * KIB)


def test_fragmented_memory_is_full_too():
    space = AddressSpace(4 * KIB, "memory")
    pieces = [space.alloc(KIB) for _ in range(4)]
    space.free(pieces[0])
    space.free(pieces[2])
    with pytest.raises(OutOfMemoryError):
        space.alloc(2 * KIB)
    space.free(pieces[1])
    assert space.alloc(3 * KIB).base == pieces[0].base


def test_addresses_outside_say_by_how_much():
    space = AddressSpace(8 * KIB, "ahbm:0")
    made = space.alloc(100, "x")
    for address, nbytes, words in [
        (made.base + 90, 20, "start in 'x' (100 bytes) and end 10 bytes past it"),
        (made.base + 150, 4, "lie 50 bytes past the end of 'x' (100 bytes)"),
        (8, 4, "lie in no allocation"),
    ]:
        with pytest.raises(AccessError) as caught:
            space.locate(address, nbytes)
        assert str(caught.value).startswith("ahbm:0: bytes 0x")
        assert words in str(caught.value)
    space.free(made)
    assert space.find(made.base) is None


def test_bytes_are_taken_when_touched_and_writes_are_counted():
    made = AddressSpace(1 << 50, "memory").alloc(1 << 45)
    assert made.nbytes == 1 << 45  # more than any host has
    small = AddressSpace(KIB, "memory").alloc(16)
    assert not small.bytes.any()
    small.carriers["f32"] = (small.version, np.zeros(4, np.float32))
    small.wrote()
    assert (small.version, small.carriers) == (1, {})


def test_validity_by_bytes():
    made = AddressSpace(KIB, "memory").alloc(8)
    assert made.invalid is None
    made.invalidate()
    assert made.invalid.all()
    made.mark_valid(2, 4)
    assert made.invalid.tolist() == [True, True, False, False, True, True, True, True]
    made.invalidity()[:2] = False
    assert made.invalid.sum() == 4
    made.mark_valid(0, 8)
    assert made.invalid is None
    made.mark_valid(0, 4)
    assert made.invalid is None
    made.invalidate(4, 4)
    assert made.invalid is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=12))
def test_ranges_of_skipped_bytes_are_a_map_of_them(steps):
    made, want = AddressSpace(4096, "m").alloc(12), np.zeros(12, np.bool_)
    for valid, start, stop, mapped in steps:
        (made.mark_valid if valid else made.invalidate)(start, stop)
        want[start:stop] = not valid
        assert [made.is_valid(a, b) for a in range(12) for b in range(a, 13)] == [
            not want[a:b].any() for a in range(12) for b in range(a, 13)
        ]
        if mapped:
            assert made.invalid is None or made.invalid.tolist() == want.tolist()
            assert made.invalid is not None or not want.any()


def test_memory_that_nobody_has_written_takes_none_to_say_so():
    made = AddressSpace(1 << 20, "memory").alloc(1000)
    assert made.unwritten is None
    made.forget()
    assert made.unwritten.all() and made.unwritten.shape == (1000,) and made.unwritten.strides == (0,)
    made.unwritten_map()[10:20] = False
    assert made.unwritten.sum() == 990 and made.unwritten_map() is made.unwritten
    made.forget()
    assert made.unwritten.all()


def test_a_digest_follows_the_writes():
    made, other = (AddressSpace(4096, "memory").alloc(100) for _ in range(2))
    assert made.digest() == other.digest()
    made.bytes[3] = 1
    made.wrote()
    assert made.digest() != other.digest()
    made.bytes[3] = 0
    made.wrote()
    assert made.digest() == other.digest()
