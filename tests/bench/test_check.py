import numpy as np
import pytest

from kernbench.bench import compare


def test_worst_error_is_measured_against_the_reference_rms():
    want = np.array([3.0, -4.0])
    check = compare("x", want + np.array([0.0, 0.05]), want, within=0.02)
    assert check.passed
    assert check.worst == pytest.approx(0.05)
    assert check.rms == pytest.approx(np.sqrt(12.5))
    assert check.worst_relative == pytest.approx(0.05 / np.sqrt(12.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5])
def test_a_wrong_value_fails(bad):
    want = np.ones(8)
    got = want.copy()
    got[3] = bad
    check = compare("x", got, want, within=0.01)
    assert not check.passed
    assert "DO NOT MATCH" in str(check)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reference_that_is_no_number_fails(bad):
    assert not compare("x", np.ones(2), np.array([1.0, bad]), within=0.01).passed


def test_large_ones_are_compared_to_their_last_element():
    want = np.random.default_rng(0).standard_normal((300, 257), np.float32)
    got = want.T.copy().T  # another order in memory
    assert compare("x", got, want).worst == 0
    got[-1, -1] += 1
    check = compare("x", got, want)
    assert check.worst == pytest.approx(1, rel=1e-6) and check.rms == pytest.approx(
        np.sqrt(np.mean(want**2, dtype="f8"))
    )


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"shape \(2,\), its reference \(3,\)"):
        compare("x", np.ones(2), np.ones(3))
