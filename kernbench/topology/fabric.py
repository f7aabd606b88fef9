"""The network between SIPs: which SIPs are joined, and the way from one to another."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kernbench.topology import schema
from kernbench.topology.grid import Grid, squarest
from kernbench.topology.problem import Problem, TopologyError


class SipFabric:
    """Links between SIPs 0..n-1. Node n is the switch, where there is one.

    Attributes:
        kind: ``ring``, ``fully_connected``, ``mesh``, ``torus`` or ``switch``.
        shape: (rows, cols) of the SIP grid; (1, n) where it is no grid.
        nodes: number of nodes, the switch included.
    """

    def __init__(self, fabric: schema.Fabric, sips: int) -> None:
        self.kind = fabric.kind
        self.n = sips
        self.shape = grid_shape(fabric, sips)
        self.nodes = sips + (fabric.kind == "switch")
        self._grid = Grid(*self.shape, wrap=fabric.kind != "mesh") if fabric.kind in ("ring", "mesh", "torus") else None

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """int64[E, 2], directed links (from, to), ascending: link i of the fabric is row i. None for a single SIP."""
        if self._grid is not None:
            return self._grid.edges
        sips = np.arange(self.n)
        if self.kind == "switch":
            if self.n == 1:
                return np.empty((0, 2), np.int64)
            hub = np.full(self.n, self.n)
            return np.concatenate([np.stack([sips, hub], 1), np.stack([hub, sips], 1)])
        pairs = np.stack(np.meshgrid(sips, sips, indexing="ij"), -1).reshape(-1, 2)
        return pairs[pairs[:, 0] != pairs[:, 1]]

    @cached_property
    def _keys(self) -> NDArray[np.int64]:
        return self.edges[:, 0] * self.nodes + self.edges[:, 1]

    def link(self, start: int, end: int) -> int | None:
        """The row of ``edges`` that joins two nodes, or None where they are not neighbours."""
        key = start * self.nodes + end
        at = int(np.searchsorted(self._keys, key))
        return at if at < len(self._keys) and self._keys[at] == key else None

    def path(self, start: int, end: int) -> list[int]:
        """Nodes from one SIP to another, both included: the shorter way round a ring (ascending at equal length), X
        then Y on grids, straight where fully connected, through the switch."""
        if start == end:
            return [start]
        if self._grid is not None:
            return self._grid.path(start, end)
        return [start, self.n, end] if self.kind == "switch" else [start, end]

    def halves(self) -> NDArray[np.bool_]:
        """bool[n], True for the SIPs on one side of the cut that bisects the fabric: across its longer dimension."""
        rows, cols = self.shape
        row, col = np.divmod(np.arange(self.n), cols)
        return col < cols // 2 if cols >= rows else row < rows // 2


def grid_shape(fabric: schema.Fabric, sips: int) -> tuple[int, int]:
    """(rows, cols) of the SIP grid of a mesh or torus; (1, sips) for other kinds.

    Raises:
        TopologyError: rows and cols in the description do not multiply to the number of SIPs.
    """
    if fabric.kind not in ("mesh", "torus"):
        return 1, sips
    rows, cols = fabric.rows, fabric.cols
    if rows is None and cols is None:
        return squarest(sips)
    rows = rows or max(1, sips // (cols or 1))
    cols = cols or max(1, sips // rows)
    if rows * cols != sips:
        given = [f"{n}: {v}" for n, v in (("rows", fabric.rows), ("cols", fabric.cols)) if v is not None]
        best = "rows: {}, cols: {}".format(*squarest(sips))
        message = f"found {', '.join(given)}, which is no grid of {sips} SIPs: change them (`{best}`) or leave both out"
        raise TopologyError([Problem(message, "system.fabric")])
    return rows, cols
