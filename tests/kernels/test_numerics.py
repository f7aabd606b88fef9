"""Casts bit for bit against numpy and ml_dtypes; tile moves of the compiled core against numpy's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels import numerics, special
from kernbench.kernels.numerics import NARROW, Tiles


@pytest.fixture(params=["core", "numpy"])
def implementation(request, monkeypatch):
    """Both implementations of everything; the core only where it was built."""
    if request.param == "numpy":
        monkeypatch.setattr(numerics, "_core", lambda: None)
    elif numerics._core() is None:
        pytest.skip("the compiled core is not built")
    return request.param


def patterns(name):
    """Every value a narrow type has, as its bits."""
    storage = NARROW[name][1]
    return np.arange(2 ** (8 * storage.itemsize), dtype=f"u{storage.itemsize}")


def same_floats(a, b):
    """Equal bit for bit, except that any NaN equals any other."""
    bits = f"u{a.dtype.itemsize}"
    return (a.view(bits) == b.view(bits)) | (np.isnan(a.astype(np.float32)) & np.isnan(b.astype(np.float32)))


@pytest.mark.parametrize("name", NARROW)
def test_widening_every_pattern(implementation, name):
    values = patterns(name).view(NARROW[name][1])
    assert same_floats(numerics.widen(values, name), values.astype(np.float32)).all()


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.filterwarnings("ignore:.*encountered in")
def test_narrowing(implementation, name):
    """Every value of the type, the midpoints between neighbours and what lies just beside them, and random bits."""
    storage = NARROW[name][1]
    exact = patterns(name).view(storage).astype(np.float32)
    ordered = np.unique(exact[np.isfinite(exact)])
    middles = ((ordered[1:].astype(np.float64) + ordered[:-1]) / 2).astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 2**32, 300_000, np.uint64).astype(np.uint32).view(np.float32)
    top = ordered[-1] * np.array([1, 1.01, 1.03, 1.05, 1.07, 1.1, 2], np.float32)
    beside = [np.nextafter(middles, np.float32(way)) for way in (np.inf, -np.inf)]
    x = np.concatenate([exact, middles, *beside, noise, top, -top])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(storage)
    assert same_floats(numerics.narrow(x, name), expected).all()
    assert same_floats(numerics.rounded(x, name), expected.astype(np.float32)).all()


def test_rounding_in_place_and_of_a_number(implementation):
    x = np.array([1.0, 65519.0, 65520.0, 1e-8], np.float32)
    kept = numerics.rounded(x, "f16", fresh=True)
    np.testing.assert_array_equal(kept, [1.0, 65504.0, np.inf, 0.0])
    assert numerics.rounded(np.float32(1.00390625), "bf16") == 1.0


def test_an_overflow_of_f8e4m3_is_nan_because_it_has_no_infinity(implementation):
    np.testing.assert_array_equal(numerics.rounded(np.array([448.0, 465.0], np.float32), "f8E4M3FN"), [448.0, np.nan])


KINDS = {"f32": np.float32, "f16": np.float32, "bf16": np.float32, "f8E5M2": np.float32, "i8": np.int8, "i64": np.int64}


@st.composite
def tiles(draw):
    """A window of one to four programs into 600 elements, with strides, clips and sometimes a mask."""
    name = draw(st.sampled_from(sorted(KINDS)))
    storage = NARROW[name][1] if name in NARROW else np.dtype(KINDS[name])
    size = storage.itemsize
    rank = draw(st.integers(1, 3))
    dims = tuple(draw(st.lists(st.integers(1, 5), min_size=rank, max_size=rank)))
    programs = draw(st.integers(1, 4))
    offsets, contiguous = [], []
    for n in dims:
        if draw(st.booleans()):
            stride = draw(st.sampled_from([1, 1, 2, 7, 0]))
            offsets.append(np.arange(n, dtype=np.int64)[None] * stride * size)
            contiguous.append(stride == 1)
        else:
            rows = draw(st.sampled_from([1, programs]))
            numbers = draw(st.lists(st.integers(0, 40), min_size=rows * n, max_size=rows * n))
            offsets.append(np.array(numbers, np.int64).reshape(rows, n) * size)
            contiguous.append(False)
    base = np.array(draw(st.lists(st.integers(0, 200), min_size=programs, max_size=programs)), np.int64) * size
    lo = np.array([[draw(st.integers(0, n)) for n in dims] for _ in range(programs)], np.int64)
    hi = np.array([[draw(st.integers(0, n)) for n in dims] for _ in range(programs)], np.int64)
    mask = None
    if draw(st.booleans()):
        shape = (draw(st.sampled_from([1, programs])), *(draw(st.sampled_from([1, n])) for n in dims))
        bits = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        mask = np.array(bits).reshape(shape)
    seed = draw(st.integers(0, 2**16))
    return name, storage, Tiles(dims, base, offsets, contiguous, lo, hi, mask), seed


@settings(max_examples=150, deadline=None)
@given(tiles())
def test_core_and_numpy_move_the_same_bytes(case):
    if numerics._core() is None:
        pytest.skip("the compiled core is not built")
    name, storage, tile, seed = case
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, 600 * storage.itemsize).astype(np.uint8)
    shape = (len(tile.base), *tile.dims)
    loaded, stored = [], []
    values = rng.integers(-100, 100, shape).astype(KINDS[name])
    for core in (numerics._core, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numerics, "_core", core)
            out = np.full(shape, 7, KINDS[name])
            tile.load(memory, name, storage, out)
            loaded.append(out)
            written = memory.copy()
            tile.store(written, name, storage, values)
            stored.append(written)
    assert same_floats(*loaded).all() if name in NARROW else loaded[0].tobytes() == loaded[1].tobytes()
    np.testing.assert_array_equal(*stored)


def test_a_value_shared_by_all_programs_is_stored_in_each(implementation):
    memory = np.zeros(64, np.uint8)
    index = np.arange(4, dtype=np.int64)[None] * 4
    none, all_ = np.zeros((2, 1), np.int64), np.full((2, 1), 4, np.int64)
    tile = Tiles((4,), np.array([0, 32], np.int64), [index], [True], none, all_)
    tile.store(memory, "f32", np.dtype(np.float32), np.full((1, 1), 2.5, np.float32))
    np.testing.assert_array_equal(memory.view(np.float32), [2.5] * 4 + [0] * 4 + [2.5] * 4 + [0] * 4)


def test_erf_against_the_c_library():
    x = np.concatenate([np.linspace(-6, 6, 2001), [0.0, -0.0, 1e-30, np.inf, -np.inf]])
    expected = [math.erf(v) for v in x]
    np.testing.assert_allclose(special.erf(x), expected, rtol=1e-14, atol=0)
    np.testing.assert_allclose(special.erfc(x[:2001]), [math.erfc(v) for v in x[:2001]], rtol=1e-12, atol=1e-300)
    assert np.isnan(special.erf(np.array([np.nan])))[0]


def test_halves_round_away_from_zero():
    x = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 2.0], np.float32)
    np.testing.assert_array_equal(special.round_half_away(x), [1, -1, 2, 3, -3, 0, 2])
