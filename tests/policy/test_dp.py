"""DPPolicy: which element lies in which part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernbench.memory import INTERLEAVED
from kernbench.memory.channels import ChannelMap
from kernbench.policy.placement.dp import DPPolicy

MAP = ChannelMap(cubes=4, channels=8, granule=256)
SIZE = {"cubes": 4, "pes_per_cube": 8}


def parts_of(policy, shape, itemsize):
    """(cube, PE share) of every element of a 2-D tensor at address 0, from the channel it lands on."""
    placement = policy.placement(shape, itemsize, **SIZE)
    rows, columns = shape
    address = (np.arange(rows)[:, None] * columns + np.arange(columns)) * itemsize
    channel = MAP.locate(address.ravel(), 0, placement).reshape(shape)
    shares = placement.pes.parts if placement.pes else 1
    return channel // 8, channel % 8 * shares // 8


def test_one_part_of_each_is_plain_interleaving():
    assert DPPolicy().placement((64, 64), 2, **SIZE) is INTERLEAVED
    assert DPPolicy("row_wise", "column_wise").placement((64, 64), 2, **SIZE) is INTERLEAVED


def test_rows_over_cubes_and_columns_over_pes():
    cube, pe = parts_of(DPPolicy("row_wise", "column_wise", num_cubes=4, num_pes=2), (16, 512), 2)
    assert (cube == np.arange(16)[:, None] // 4).all()
    assert (pe == np.arange(512) // 256).all()


def test_columns_over_cubes_and_rows_over_pes():
    cube, pe = parts_of(DPPolicy("column_wise", "row_wise", num_cubes=4, num_pes=4), (16, 1024), 2)
    assert (cube == np.arange(1024) // 256).all()
    assert (pe == np.arange(16)[:, None] // 4).all()


def test_both_levels_by_rows_and_both_by_columns():
    cube, pe = parts_of(DPPolicy("row_wise", "row_wise", num_cubes=2, num_pes=4), (16, 512), 2)
    assert (cube == np.arange(16)[:, None] // 8).all() and (pe == np.arange(16)[:, None] % 8 // 2).all()
    cube, pe = parts_of(DPPolicy("column_wise", "column_wise", num_cubes=2, num_pes=4), (4, 1024), 2)
    assert (cube == np.arange(1024) // 512).all() and (pe == np.arange(1024) % 512 // 128).all()


def test_leading_dimensions_count_as_rows_and_the_last_part_may_be_shorter():
    placement = DPPolicy("row_wise", num_cubes=4).placement((2, 5, 256), 2, **SIZE)
    address = np.arange(10) * 512
    assert (MAP.locate(address, 0, placement) // 8).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_replicas_count_in_capacity():
    placement = DPPolicy("replicate", "replicate", num_cubes=2, num_pes=3).placement((8, 8), 4, **SIZE)
    assert placement.copies == 6


@pytest.mark.parametrize(
    ("policy", "shape", "message"),
    [
        (DPPolicy("row_wise", num_cubes=5), (64, 64), "the SIP has 4 cubes"),
        (DPPolicy(pe="row_wise", num_pes=9), (64, 64), "a cube has 8 PEs"),
    ],
)
def test_what_cannot_be_placed_says_why(policy, shape, message):
    with pytest.raises(ValueError, match=message):
        policy.placement(shape, 2, **SIZE)


SPREADS = st.sampled_from(["replicate", "row_wise", "column_wise"])


@given(SPREADS, SPREADS, st.integers(1, 4), st.integers(1, 8), st.integers(1, 70), st.integers(1, 300))
def test_any_tensor_has_a_place_and_no_granule_is_cut(cube, pe, num_cubes, num_pes, rows, columns):
    policy = DPPolicy(cube, pe, num_cubes, num_pes)
    cubes, shares = parts_of(policy, (rows, columns), 2)
    assert cubes.max() < 4 and shares.max() < num_pes
    place = (cubes * 8 + shares).ravel()
    granule = np.arange(place.size) * 2 // 256
    if policy.placement((rows, columns), 2, **SIZE) != INTERLEAVED:
        assert all(len(set(place[granule == g])) == 1 for g in range(granule.max() + 1))


@pytest.mark.parametrize("spread", ["row_wise", "column_wise"])
def test_parts_smaller_than_a_granule_still_spread(spread):
    cubes, _ = parts_of(DPPolicy(spread, num_cubes=4), (64, 32), 2)  # 4,096 bytes in rows of 64
    assert np.bincount(cubes.ravel()).tolist() == [512] * 4


@pytest.mark.parametrize("wrong", [{"cube": "rows"}, {"pe": "diagonal"}, {"num_cubes": 0}, {"num_pes": 1.5}])
def test_wrong_arguments_name_what_is_allowed(wrong):
    with pytest.raises(ValueError, match="expected"):
        DPPolicy(**wrong)
