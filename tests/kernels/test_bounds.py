"""Accesses that lie in some tensor, but not in the one that the pointer was made of."""

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("triton")

import guilty_kernels as guilty

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.standalone import StandaloneDevice


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


def neighbours(device, *names, n=64):
    """Tensors that lie side by side."""
    made = [device.array(np.arange(n, dtype=np.float32), name=name) for name in names]
    assert all(b.data_ptr() == a.data_ptr() + 4 * n for a, b in pairwise(made))
    return made


@pytest.mark.parametrize(
    ("start", "said"),
    [(64, "0 bytes past the end of 'y-memory' (256 bytes) (elements 64..79 of 64)"), (-16, "before the start of 'y-m")],
)
def test_an_access_that_lands_in_a_neighbour(device, start, said):
    _, y, _ = neighbours(device, "x", "y-memory", "z")
    out = device.empty((16,), "f32")
    with pytest.raises(KernelFault, match="out of bounds") as fault:
        guilty.shifted_copy[(1,)](y, out, start, BLOCK=16)
    assert "load from 'y' out of bounds" in str(fault.value) and said in str(fault.value)
    assert "first outside is index (0,) of the block" in str(fault.value)
    guilty.shifted_copy[(1,)](y, out, 48, BLOCK=16)
    np.testing.assert_array_equal(out.numpy(), np.arange(48, 64))


def test_a_pointer_that_moves_on_belongs_to_its_tensor(device):
    x, _ = neighbours(device, "x", "y")
    out = device.empty((16,), "f32")
    guilty.rows_by_pointer[(1,)](x, out, 4, 16, BLOCK=16)
    np.testing.assert_array_equal(out.numpy(), x.numpy().reshape(4, 16).sum(axis=0))
    with pytest.raises(KernelFault, match="load from 'x' out of bounds"):
        guilty.rows_by_pointer[(1,)](x, out, 5, 16, BLOCK=16)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_pointer_may_be_one_of_two(device, which):
    x, y, z = neighbours(device, "x", "y", "z", n=256)
    guilty.either[(1,)](x, y, z, which, BLOCK=128)
    np.testing.assert_array_equal(z.numpy()[:128], np.arange(128) + (128 if which == 2 else 0))


def test_a_pointer_to_one_of_two_that_lands_in_a_third(device):
    x, y, z = neighbours(device, "x", "y", "z")
    with pytest.raises(KernelFault, match="start in 'z', which is not 'x' or 'y'"):
        guilty.either[(1,)](x, y, z, 2, BLOCK=128)


def test_a_distance_between_addresses_leads_to_another_tensor(device):
    x, out = neighbours(device, "x", "out")
    y = device.array(-np.arange(16, dtype=np.float32), name="y")
    guilty.by_difference[(1,)](x, y, out, BLOCK=16)
    np.testing.assert_array_equal(out.numpy()[:16], -np.arange(16))


def test_addresses_from_a_table_may_lie_anywhere(device):
    tensors = neighbours(device, "x", "y", "z")
    table = device.array(np.array([t.data_ptr() for t in tensors]), "i64")
    out = device.empty((3, 64), "f32")
    guilty.through_a_table[(3,)](table, out, BLOCK=64)
    np.testing.assert_array_equal(out.numpy(), np.tile(np.arange(64), (3, 1)))
