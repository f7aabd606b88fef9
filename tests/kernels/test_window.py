"""Windows: where the elements of a memory operation are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernbench.kernels.describe import describe
from kernbench.kernels.values import AxisSum, Mask
from kernbench.kernels.window import window


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(-8, 24)), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_evenly_spaced_elements(bases, axes, evenly, masked):
    """What lies as an array lies where the window says, in its order, and no element of it lies twice."""
    if evenly:
        bases = [bases[0] + i * 32 for i in range(len(bases))]
    dims = tuple(n for n, _ in axes)
    base = np.array(bases, np.int64) * 4
    pointer = AxisSum(dims, base, tuple(4 * step if n > 1 else 0 for n, step in axes), 0, 4096)
    mask = Mask(dims, ((0, np.full(len(base), dims[0] - 1), 0, 0), *[None] * (len(dims) - 1))) if masked else None
    found = window(pointer, mask, dims, 4)
    address, inside = found.lanes()
    even = found.strided()
    rising = bool((np.diff(address.reshape(-1)) >= 4).all())
    if even is None:
        spacing = np.diff(base)
        assert masked or not rising or (spacing != spacing[:1]).any()
        return
    first, strides = even
    assert inside.all() and rising
    steps = (np.arange(n) * step for n, step in zip((len(base), *dims), strides, strict=True))
    assert (first + sum(np.meshgrid(*steps, indexing="ij")) == address).all()


@given(st.data())
def test_bits_of_an_axis_say_what_bits_of_the_block_say(data):
    """A mask of axes in bits leaves the elements, and the record, that it leaves when it is given in full."""
    programs = data.draw(st.integers(1, 3))
    dims = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=2)))

    holes = data.draw(st.booleans())

    def per_program(strategy):
        return np.array(data.draw(st.lists(strategy, min_size=programs, max_size=programs)))

    def bits(n):
        low, high = per_program(st.integers(0, n)), per_program(st.integers(0, n))
        side_by_side = (np.arange(n) >= low[:, None]) & (np.arange(n) < high[:, None])
        return side_by_side ^ (holes & (np.arange(n) == n // 2))

    axes = tuple(bits(n) if data.draw(st.booleans()) else None for n in dims)
    some = per_program(st.booleans())
    by_axes = Mask(dims, axes, programs=some)
    in_full = Mask(dims, (None,) * len(dims), dense=np.broadcast_to(by_axes.full(), (programs, *dims)))
    wrapped = (np.arange(dims[-1]) + data.draw(st.integers(0, 3))) % data.draw(st.integers(2, 6)) * 4
    last = data.draw(st.sampled_from([4, np.tile(wrapped, (programs, 1))]))
    terms = (*(data.draw(st.sampled_from([4, 32, -8])) for _ in dims[1:]), last)
    pointer = AxisSum(dims, 4096 + 64 * per_program(st.integers(0, 99)), terms, 0, 1 << 20)
    found, meant = (window(pointer, mask, dims, 4) for mask in (by_axes, in_full))
    if not holes:
        assert found.rest is None
    for got, want in zip((*found.lanes(), found.active()), (*meant.lanes(), meant.active()), strict=True):
        np.testing.assert_array_equal(got, want)
    active = meant.active()
    for got, want in zip(found.reach(), meant.reach(), strict=True):
        np.testing.assert_array_equal(got[active], want[active])
    assert written(found) == written(meant)


def written(w):
    """A window's record, for comparison."""
    return [
        [plain(part) for part in (members, layout, c.base, c.extent, c.run_ptr, c.run_addr, c.run_bytes)]
        for members, layout, c in describe(w)
    ]


def plain(thing):
    return thing.tolist() if isinstance(thing, np.ndarray) else thing
