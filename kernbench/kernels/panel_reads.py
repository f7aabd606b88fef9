"""A fused K-loop of one program that takes turns with others.

Memory that the launch may write is not kept on its carrier, since every write would ask for that anew. But the program
runs its loop alone: all that it reads can be read at once, and the chain of dots is one product after all.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import workers
from kernbench.kernels.numerics import NARROW, rounded, widen
from kernbench.kernels.panels import Panel, Tile, multiplied
from kernbench.kernels.plan import CARRIER, Frame

MOST_ELEMENTS = 1 << 24
"""Of an operand that is read at once."""
ROWS, MOST_PARTS = 64, 8
"""A program that runs alone leaves cores idle: its product is cut into so many parts of at least so many rows, whatever
number of cores there are."""


def product_of_one(
    f: Frame, left: Tile, right: Tile, counts: NDArray[np.int64], shape: tuple[int, ...], name: str
) -> NDArray[Any] | None:
    """The sum [1, m, n] over all iterations of the frame's only program; None where tiles have to be multiplied one
    by one."""
    x, y = _read(f, left, 1 - left.flipped, counts), _read(f, right, int(right.flipped), counts)
    if x is None or y is None or x.shape[1] != y.shape[1]:
        return None
    out = np.empty((1, *shape), CARRIER[name])
    work = len(x) * len(y) * x.shape[1]
    step = max(ROWS, -(-len(x) // MOST_PARTS)) if work >= 2 * workers.SMALL else len(x)
    if name.startswith("i") or step >= len(x):
        multiplied(x, y, out[0], name)
        return out
    ends = [*range(step, len(x) - step + 1, step), shape[0]]
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    workers.run([partial(multiplied, x[part], y, out[0, part], name) for part in parts], work)
    return out


def _read(f: Frame, tile: Tile, k_axis: int, counts: NDArray[np.int64]) -> NDArray[Any] | None:
    """[rows, depth] on the carrier."""
    if len(tile.allocations) != 1 or tile.allocations[0][0] is not None or not Panel.fits(tile, k_axis):
        return None
    allocation, a, panel = tile.allocations[0][1], tile.access, Panel(tile, k_axis, counts)
    depth = int(panel.depth[0])
    source = tile.source(f)
    if source is not None:
        return panel.of(source, 0, depth)
    if allocation.invalid is not None or allocation.base % a.itemsize or depth * panel.block > MOST_ELEMENTS:
        return None
    panel.casts = ()
    memory = allocation.bytes[: allocation.nbytes // a.itemsize * a.itemsize]
    values = panel.of(memory.view(a.storage), 0, depth)
    if a.name in NARROW:
        down = values.strides[0] < values.strides[1]
        values = widen(values.T, a.name).T if down else widen(values, a.name)
    for cast in tile.casts:
        values = rounded(values, cast)
    return values
