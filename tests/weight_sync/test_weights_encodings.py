"""Every encoding gives the new bytes back; auto takes the shortest; damage is an error, never other bytes."""

import builtins
import contextlib
import sys

import ml_dtypes
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.weight_sync import encodings
from kernbench.weight_sync.encodings import ABSOLUTE, Change, Encoding, EncodingError, allowed, apply, width_of


def flipped(elements, width, fraction, seed=0):
    """(random bytes, the same with a bit flipped in that fraction of the elements)."""
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 256, elements * width, np.uint8)
    new = old.copy()
    new.view(f"u{width}")[rng.random(elements) < fraction] ^= 1
    return old, new


def applied(change, encoding):
    piece = change.old.copy()
    apply(encoding, change.encode(encoding), piece, change.width)
    return piece


@settings(max_examples=80, deadline=None)
@given(
    elements=st.integers(0, 3000),
    width=st.sampled_from([1, 2, 4, 8]),
    fraction=st.sampled_from([0, 0.0005, 0.01, 0.3, 1]),
    block=st.sampled_from([1, 7, 512, 4096]),
    seed=st.integers(0, 2**32),
)
def test_every_encoding_gives_the_new_bytes_back(elements, width, fraction, block, seed):
    change = Change(*flipped(elements, width, fraction, seed), width, block)
    differs = change.old.view(f"u{width}") != change.new.view(f"u{width}")
    assert np.array_equal(change.positions, np.flatnonzero(differs))
    for encoding in Encoding:
        assert np.array_equal(applied(change, encoding), change.new)
        assert len(change.encode(encoding)) == change.size(encoding)
    for encoding in ABSOLUTE:  # twice is harmless, and so is a piece that was half written
        half = np.concatenate([change.new[: change.new.size // 2], change.old[change.new.size // 2 :]])
        apply(encoding, change.encode(encoding), half, width)
        assert np.array_equal(half, change.new)


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("distance", [1, 255, 256, 257, 65535, 65536, 65537, 200_000])
def test_distances_of_any_length(width, distance):
    """The lengths at which a stored distance takes another byte, or needs an element between."""
    old = np.zeros(distance * 3 * width, np.uint8)
    new = old.copy()
    new.view(f"u{width}")[distance - 1 :: distance] = 7
    change = Change(old, new, width)
    assert np.array_equal(applied(change, Encoding.SPARSE), new) and np.array_equal(applied(change, Encoding.XOR), new)


def test_auto_takes_the_shortest_of_all():
    for fraction in (0.0001, 0.01, 0.2, 1):
        change = Change(*flipped(200_000, 2, fraction), 2)
        assert change.size(change.cheapest(Encoding)) == min(change.size(e) for e in Encoding)
        assert change.size(change.cheapest(ABSOLUTE)) == min(change.size(e) for e in ABSOLUTE)
        for encoding, foretold in change.predicted.items():
            if fraction < 1:  # all elements with one flipped bit compress better than any sample of them
                assert 0.8 < foretold / change.size(encoding) < 1.25
    random = Change(np.zeros(1 << 16, np.uint8), np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8), 2)
    assert random.cheapest(Encoding) is Encoding.FULL
    together = np.zeros(1 << 20, np.uint8)
    together[8192:16384] = np.random.default_rng(0).integers(1, 256, 8192, np.uint8)
    assert Change(np.zeros_like(together), together, 2).cheapest(ABSOLUTE) is Encoding.BLOCK


def test_a_training_step_of_bfloat16_takes_less_than_xor_and_zstd_of_all_bytes():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal(1 << 20).astype(np.float32) * 0.02
    old, new = (
        w.astype(ml_dtypes.bfloat16).view(np.uint8)
        for w in (exact, exact + 1e-6 * rng.uniform(-1, 1, exact.size).astype(np.float32))
    )
    change = Change(old, new, 2)
    plain = len(zstandard.ZstdCompressor(level=1).compress((old ^ new).tobytes()))
    assert 0.01 < change.changed / exact.size < 0.03 and change.dirty_blocks == old.size // 4096
    assert change.size(Encoding.XOR) < 0.65 * plain < 0.02 * old.size
    assert change.size(Encoding.SPARSE) < 0.04 * old.size < change.size(Encoding.BLOCK)


@pytest.mark.parametrize("encoding", list(Encoding), ids=lambda e: e.label)
def test_damage_is_an_error_or_stays_in_the_piece(encoding):
    """What the checksum around it would have found: still no crash, no huge memory, nothing out of bounds."""
    change = Change(*flipped(2000, 2, 0.05), 2)
    whole = change.encode(encoding)
    rng = np.random.default_rng(1)
    for size in [0, 1, 4, len(whole) // 2, len(whole) - 1]:
        with pytest.raises(EncodingError):
            apply(encoding, whole[:size], change.old.copy(), 2)
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(min(len(data), 40))] ^= 1 << rng.integers(8)
        piece = change.old.copy()
        with contextlib.suppress(EncodingError):
            apply(encoding, bytes(data), piece, 2)
        assert piece.size == change.old.size


def test_sizes_are_checked_before_memory_is_taken():
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(EncodingError, match="expected 6"):
        apply(Encoding.XOR, b"\x02\0\0\0\x01" + bomb, np.zeros(64, np.uint8), 2)
    with pytest.raises(EncodingError, match="4294967295 elements"):
        apply(Encoding.SPARSE, b"\xff\xff\xff\xff\x01", np.zeros(64, np.uint8), 2)
    with pytest.raises(EncodingError, match="too few"):
        apply(Encoding.BLOCK, b"\xff\xff\xff\xff\x01", np.zeros(64, np.uint8), 2)
    with pytest.raises(EncodingError, match="overlap or lie beyond"):
        apply(Encoding.BLOCK, np.array([1, 60, 8], "<u4").tobytes() + bytes(8), np.zeros(64, np.uint8), 2)
    with pytest.raises(EncodingError, match="element 70 of a piece of 32"):
        apply(Encoding.SPARSE, b"\x01\0\0\0\x01" + bytes([70, 0, 0]), np.zeros(64, np.uint8), 2)
    with pytest.raises(EncodingError, match="the encoding is 9"):
        apply(9, b"", np.zeros(64, np.uint8), 2)


def test_without_zstandard(monkeypatch):
    real = builtins.__import__

    def none(name, *args, **kwargs):
        if name == "zstandard":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "zstandard")
    monkeypatch.setattr(builtins, "__import__", none)
    monkeypatch.setattr(encodings, "find_spec", lambda name: None)
    assert Encoding.XOR not in allowed("auto") and allowed("sparse") == (Encoding.SPARSE,)
    assert Encoding.XOR not in Change(*flipped(100, 2, 0.5), 2).predicted
    with pytest.raises(ModuleNotFoundError, match=r"kernbench\[weights\]"):
        allowed("xor")


def test_choices_and_widths():
    with pytest.raises(ValueError, match="expected one of auto, full, block, sparse, xor"):
        allowed("zip")
    assert [width_of(bits) for bits in (4, 6, 8, 16, 32, 64, 128)] == [1, 1, 1, 2, 4, 8, 8]
