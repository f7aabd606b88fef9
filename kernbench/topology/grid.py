"""Rows by columns of things joined to their neighbours, and the dimension-ordered way between two of them.

The same class serves routers on a mesh, cubes in a SIP, and SIPs in a mesh, torus or ring (one row that wraps).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """``rows * cols`` cells, numbered row by row. ``wrap`` joins the ends of each row and column."""

    rows: int
    cols: int
    wrap: bool = False

    @property
    def count(self) -> int:
        return self.rows * self.cols

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """int64[E, 2], the directed joins between neighbours, ascending. Two cells are joined at most once each way, so
        a wrapped line of two cells has one pair, and one of a single cell has none."""
        cells = np.arange(self.count).reshape(self.rows, self.cols)
        pairs = []
        for axis in (0, 1):
            ahead = np.roll(cells, -1, axis)
            if not self.wrap:
                keep = [slice(None), slice(None)]
                keep[axis] = slice(0, cells.shape[axis] - 1)
                pairs.append(np.stack([cells[tuple(keep)].ravel(), ahead[tuple(keep)].ravel()], 1))
            elif cells.shape[axis] > 1:
                pairs.append(np.stack([cells.ravel(), ahead.ravel()], 1))
        forward = np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)
        return np.unique(np.concatenate([forward, forward[:, ::-1]]), axis=0).astype(np.int64)

    def path(self, start: int, end: int) -> list[int]:
        """The cells from ``start`` to ``end``, both included: along the row first (X), then along the column (Y).

        On a wrapped line the shorter way is taken, and at equal length the ascending one.
        """
        row, col = divmod(start, self.cols)
        end_row, end_col = divmod(end, self.cols)
        cells = [row * self.cols + c for c in _line(col, end_col, self.cols, self.wrap)]
        return cells + [r * self.cols + end_col for r in _line(row, end_row, self.rows, self.wrap)[1:]]


def _line(start: int, end: int, length: int, wrap: bool) -> list[int]:
    """Positions from ``start`` to ``end`` on a line of ``length``."""
    if not wrap:
        step = 1 if end >= start else -1
        return list(range(start, end + step, step))
    ahead = (end - start) % length
    behind = length - ahead
    step, hops = (1, ahead) if ahead <= behind else (-1, behind)
    return [(start + step * i) % length for i in range(hops + 1)]


def squarest(count: int) -> tuple[int, int]:
    """(rows, cols) of the squarest grid with ``count`` cells; rows <= cols."""
    rows = int(count**0.5)
    while count % rows:
        rows -= 1
    return rows, count // rows
