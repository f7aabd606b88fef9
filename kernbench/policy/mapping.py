"""Which PE runs a program."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pe_of_programs(programs: NDArray[np.int64], pes: int) -> NDArray[np.int64]:
    """int64[P]: linear program id modulo the number of PEs. A PE runs its programs in ascending order."""
    return programs % pes
