"""Windows: where the elements of a memory operation are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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
