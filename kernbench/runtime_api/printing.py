"""Tensors as text, in torch's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

EDGE = 3
THRESHOLD = 1000


def text(values: NDArray[Any], suffix: str) -> str:
    """``tensor([[1., 2.]], device='ahbm:0', dtype=torch.float16)``, where ``suffix`` is what follows the values."""
    formatter = _formatter(_shown(values))
    body = np.array2string(
        values.astype(np.float64) if _is_float(values) else values,
        separator=", ",
        threshold=THRESHOLD,
        edgeitems=EDGE,
        max_line_width=80,
        prefix="tensor(",
        formatter={"all": formatter},
    )
    return f"tensor({body}{suffix})"


def _is_float(values: NDArray[Any]) -> bool:
    return values.dtype.kind not in "biu"


def _shown(values: NDArray[Any]) -> NDArray[Any]:
    """The elements that will be printed, which decide on the format."""
    if values.size <= THRESHOLD:
        return values.ravel()
    for axis, n in enumerate(values.shape):
        if n > 2 * EDGE:
            values = np.take(values, [*range(EDGE), *range(n - EDGE, n)], axis)
    return values.ravel()


def _formatter(shown: NDArray[Any]) -> Callable[[Any], str]:
    if shown.dtype.kind == "b":
        return _aligned(shown, str)
    if not _is_float(shown):
        return _aligned(shown, lambda x: str(int(x)))
    shown = shown.astype(np.float64)
    sizes = np.abs(shown[np.isfinite(shown) & (shown != 0)])
    if sizes.size == 0:
        return _aligned(shown, _whole)
    largest, smallest = sizes.max(), sizes.min()
    if np.array_equal(sizes, np.ceil(sizes)):
        scientific = largest / smallest > 1000 or largest > 1e8
        return _aligned(shown, _scientific if scientific else _whole)
    scientific = largest / smallest > 1000 or largest > 1e8 or smallest < 1e-4
    return _aligned(shown, _scientific if scientific else lambda x: f"{x:.4f}")


def _aligned(shown: NDArray[Any], one: Callable[[Any], str]) -> Callable[[Any], str]:
    width = max((len(one(x)) for x in shown), default=0)
    return lambda x: one(x).rjust(width)


def _whole(x: float) -> str:
    return f"{x:.0f}." if np.isfinite(x) else f"{x:.4f}"


def _scientific(x: float) -> str:
    return f"{x:.4e}"
