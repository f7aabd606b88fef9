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


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"shape \(2,\), its reference \(3,\)"):
        compare("x", np.ones(2), np.ones(3))
