"""Does a result match its reference, and by how much: the verdict part of a bench."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_TOGETHER = 1 << 14
"""Elements that are compared at once."""


@dataclass(frozen=True)
class Check:
    """One comparison against a reference."""

    name: str
    passed: bool
    worst: float
    """Largest absolute difference."""
    rms: float
    """Root mean square of the reference."""
    bound: float
    """Largest absolute difference that still passes."""
    elements: int

    @property
    def worst_relative(self) -> float:
        """The worst difference as a fraction of the reference's root mean square."""
        return self.worst / self.rms if self.rms else float(self.worst > 0)

    def __str__(self) -> str:
        verdict = "match" if self.passed else "DO NOT MATCH"
        return (
            f"{self.name}: values {verdict}: worst error {self.worst_relative:.5f} x RMS "
            f"(bound {self.bound / self.rms if self.rms else 0.0:.5f}) over {self.elements:,} elements"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(name: str, got: ArrayLike, want: ArrayLike, within: float = 0.01) -> Check:
    """Compare ``got`` with ``want`` elementwise.

    Args:
        within: largest allowed difference, as a fraction of the reference's root mean square.

    Raises:
        ValueError: the shapes differ.

    A NaN or an infinity on either side alone never passes.
    """
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise ValueError(f"check '{name}': the result has shape {got.shape}, its reference {want.shape}")
    if got.size == 0:
        return Check(name, True, 0.0, 0.0, 0.0, 0)
    squares, differences, flat = [], [], (got.reshape(-1), want.reshape(-1))
    for at in range(0, got.size, _TOGETHER):  # what fits a cache, instead of several arrays of twice the size
        x, y = (a[at : at + _TOGETHER].astype(np.float64) for a in flat)
        with np.errstate(invalid="ignore"):
            differences.append(np.abs(np.subtract(x, y, out=x), out=x).max())
        squares.append(np.square(y, out=y).sum())
    rms, worst = float(np.sqrt(np.sum(squares) / got.size)), float(np.max(differences))
    return Check(name, bool(worst <= within * rms and np.isfinite(worst)), worst, rms, within * rms, got.size)
