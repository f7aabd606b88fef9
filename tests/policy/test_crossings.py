"""What launches can wait for in each other."""

import numpy as np
import pytest

from kernbench.policy.crossings import Published


def test_rows_are_found_and_those_that_are_not_there_are_refused():
    rows = [(0, 3), (0, 9), (7, 0)]
    published = Published(np.array([p << 24 | r for p, r in rows], np.int64), np.array([5, 2, 8], np.int32))
    program, row = np.array(rows[::-1], np.int64).T
    assert published.find(program, row).tolist() == [8, 2, 5]
    for wrong in [(0, 4), (7, 1), (9, 9), (0, 0)]:
        with pytest.raises(ValueError, match=f"row {wrong[1]} of program {wrong[0]} of a launch that has 3 rows"):
            published.find(*np.array([wrong], np.int64).T)
    nobody = Published(np.empty(0, np.int64), np.empty(0, np.int32))
    with pytest.raises(ValueError, match="has 0 rows"):
        nobody.find(program, row)
