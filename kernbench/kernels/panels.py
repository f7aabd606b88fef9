"""The operands of a fused K-loop: all iterations' tiles of a program side by side, as views where strides allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import workers
from kernbench.kernels.numerics import NARROW, rounded, widen
from kernbench.kernels.ops_memory import Access, read
from kernbench.kernels.ops_reduce import product
from kernbench.kernels.plan import CARRIER, Frame
from kernbench.kernels.values import uniform
from kernbench.kernels.window import Owners, Window


@dataclass(frozen=True, eq=False)
class Tile:
    """What a load in a fused loop reads, in all iterations, and what is done to it before the dot."""

    access: Access
    window: Window
    allocations: Owners
    other: Any
    flipped: bool = False
    """The dot sees it transposed."""
    casts: tuple[str, ...] = ()
    """Narrow types it is rounded to."""

    def viewed(self, order: tuple[int, ...] | None, to: str | None) -> Tile:
        """After a transposition, or a cast."""
        if order is not None:
            return replace(self, flipped=self.flipped != (tuple(order) == (1, 0)))
        return replace(self, casts=(*self.casts, to)) if to in NARROW else self

    def rounded(self, x: NDArray[Any]) -> NDArray[Any]:
        for name in self.casts:
            x = rounded(x, name)
        return x

    def at(self, f: Frame, t: int, counts: NDArray[np.int64]) -> NDArray[Any]:
        """The tile of one iteration, [P, rows, columns] as the dot sees it; zero in programs that ended before."""
        now = self.window.iteration(np.full(self.window.programs, t, np.int64))
        if (counts <= t).any():
            now.hi = np.where((counts > t)[:, None], now.hi, 0)
        x = self.rounded(read(f, self.access, now, self.allocations, self.other))
        return x.transpose(0, 2, 1) if self.flipped else x

    def source(self, f: Frame) -> NDArray[Any] | None:
        """All of the allocation on the carrier, if every program reads the same one and it is safe to keep."""
        if len(self.allocations) != 1 or self.allocations[0][0] is not None:
            return None
        allocation = self.allocations[0][1]
        if allocation.invalid is not None or allocation.base % self.access.itemsize:
            return None
        usable = allocation.nbytes // self.access.itemsize * self.access.itemsize
        name = self.access.name
        if name not in NARROW:
            return allocation.bytes[:usable].view(self.access.storage)
        if allocation.base in f.launch.written:
            return None
        kept = allocation.carriers.get(name)
        if kept is None or kept[0] != allocation.version:
            kept = (allocation.version, widen(allocation.bytes[:usable].view(self.access.storage), name))
            allocation.carriers[name] = kept
        return kept[1]


class Panel:
    """One operand of the dot for each program: rows (or columns) by the whole of K."""

    def __init__(self, tile: Tile, source: NDArray[Any], k_axis: int, counts: NDArray[np.int64]) -> None:
        w = tile.window
        size = w.itemsize
        self.tile, self.source, self.counts = tile, source, counts
        self.k_axis, self.other_axis = k_axis, 1 - k_axis
        self.block_k, self.block = w.dims[k_axis], w.dims[1 - k_axis]
        self.k_stride = int(w.terms[k_axis]) // size
        term = w.terms[1 - k_axis]
        self.stride = term // size if isinstance(term, int) else 0
        self.offsets = None if isinstance(term, int) else term // size
        self.step = w.step // size
        self.start = (w.base - tile.allocations[0][1].base) // size
        moves = 0 if w.hi_step is None else w.hi_step[k_axis]
        total = counts * self.block_k
        self.depth = total if moves == 0 else np.clip(w.hi[:, k_axis], 0, total)
        """int64[P], elements of K that the mask leaves."""
        self.length = np.clip(w.hi[:, 1 - k_axis], 0, self.block)
        """int64[P], rows (or columns) that the mask leaves."""
        self.merged = self.step == self.block_k * self.k_stride

    @staticmethod
    def fits(tile: Tile, k_axis: int) -> bool:
        """Whether the tile's mask and strides let a panel stand for all iterations."""
        w = tile.window
        size = w.itemsize
        if w.rest is not None or w.dims == () or (w.lo > 0).any() or w.step % size:
            return False
        zero = tile.other is None or (uniform(tile.other) and tile.other == 0)
        if not zero and (w.hi_step is not None or (w.hi < w.dims).any()):
            return False
        if not isinstance(w.terms[k_axis], int):
            return False
        origin = tile.allocations[0][1].base
        if ((w.base - origin) % size).any() or any(isinstance(t, int) and t % size for t in w.terms):
            return False
        moves = w.hi_step or (0,) * len(w.dims)
        if moves[1 - k_axis] or moves[k_axis] not in (0, -w.dims[k_axis]):
            return False
        term = w.terms[1 - k_axis]
        if not isinstance(term, int) and (w.step != w.dims[k_axis] * w.terms[k_axis] or w.terms[k_axis] < 0):
            return False
        return bool(moves[k_axis] or (w.hi[:, k_axis] >= w.dims[k_axis]).all())

    def of(self, p: int, depth: int) -> NDArray[Any]:
        """[rows, depth] of program ``p``."""
        rows = int(self.length[p])
        source, size = self.source, self.source.itemsize
        start = int(self.start[p])
        if self.offsets is not None:
            chosen = self.offsets[p if len(self.offsets) > 1 else 0][:rows]
            step = chosen[1] - chosen[0] if rows > 1 else 0
            if rows < 2 or (np.diff(chosen) == step).all():
                return self._strided(start + int(chosen[0]) if rows else 0, rows, int(step), depth)
            reach = (depth - 1) * self.k_stride
            lines = np.ndarray((len(source) - reach, depth), source.dtype, source, 0, (size, size * self.k_stride))
            return self.tile.rounded(lines[start + chosen])
        return self._strided(start, rows, self.stride, depth)

    def rows(self, p: int, count: int, depth: int) -> NDArray[Any]:
        """[count, depth], evenly spaced from the first row of program ``p``, also beyond its block."""
        return self._strided(int(self.start[p]), count, self.stride, depth)

    def _strided(self, start: int, rows: int, stride: int, depth: int) -> NDArray[Any]:
        source, size = self.source, self.source.itemsize
        if rows == 0 or depth == 0:
            return np.zeros((rows, depth), source.dtype)
        if self.merged:
            shape, strides = (rows, depth), (stride * size, self.k_stride * size)
            x = np.ndarray(shape, source.dtype, source, start * size, strides)
            return self.tile.rounded(x) if self.tile.casts else x
        trips = -(-depth // self.block_k)
        last = depth - (trips - 1) * self.block_k
        steps = (stride * size, self.step * size, self.k_stride * size)
        whole = np.ndarray((rows, trips - 1, self.block_k), source.dtype, source, start * size, steps)
        tail_at = start + (trips - 1) * self.step
        tail = np.ndarray((rows, last), source.dtype, source, tail_at * size, (steps[0], steps[2]))
        return self.tile.rounded(np.concatenate([whole.reshape(rows, -1), tail], axis=1))


def accumulate(
    f: Frame,
    left: Tile,
    right: Tile,
    counts: NDArray[np.int64],
    total: NDArray[Any] | None,
    shape: tuple[int, ...],
    name: str,
) -> NDArray[Any]:
    """Add to ``total`` [P, m, n] (None: zero) the sum over all iterations of ``left @ right``."""
    k_left, k_right = (0, 1) if left.flipped else (1, 0), (1, 0) if right.flipped else (0, 1)
    axes = k_left[0], k_right[0]
    if not left.allocations or not right.allocations:  # nothing is read: no iteration, or all masked
        return np.zeros((f.count, *shape), CARRIER[name]) if total is None else total
    if Panel.fits(left, axes[0]) and Panel.fits(right, axes[1]):
        a, b = left.source(f), right.source(f)
        if a is not None and b is not None:
            panels = Panel(left, a, axes[0], counts), Panel(right, b, axes[1], counts)
            if (panels[0].depth == panels[1].depth).all():
                return _multiply(panels[0], panels[1], total, shape, name)
    for t in range(int(counts.max())):
        made = product(left.at(f, t, counts), right.at(f, t, counts), name)
        total = np.broadcast_to(made, (f.count, *shape)).copy() if total is None else total + made
    return np.zeros((f.count, *shape), CARRIER[name]) if total is None else total


def _multiply(left: Panel, right: Panel, total: NDArray[Any] | None, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """One product per program, or for several whose operands lie side by side."""
    programs = len(left.depth)
    out = np.empty((programs, *shape), CARRIER[name])
    down, across = _neighbours(left, right), _neighbours(right, left)
    work = int(left.depth.sum()) * shape[0] * shape[1]
    most = -(-programs // workers.useful(work))
    products: list[Callable[[], None]] = []
    p = 0
    while p < programs:
        stop = p + 1
        way = down if stop < programs and down[stop] else across
        while stop < min(programs, p + most) and way[stop]:
            stop += 1
        if stop == p + 1 or not left.depth[p] or name.startswith("i"):
            stop = p + 1
            products.append(partial(_one, left, right, p, out, name))
        elif way is down:
            products.append(partial(_together, left, right, p, out[p:stop]))
        else:
            products.append(partial(_together, right, left, p, out[p:stop].transpose(0, 2, 1)))
        p = stop
    workers.run(products, work)
    return out if total is None else total + out


def _neighbours(wide: Panel, narrow: Panel) -> NDArray[np.bool_]:
    """bool[P]: programs whose rows of ``wide`` follow the ones of the program before, on the same ``narrow``."""
    follows = np.zeros(len(wide.depth), np.bool_)
    if wide.offsets is None and narrow.offsets is None and wide.merged and narrow.merged:
        same = (np.diff(x) == 0 for x in (wide.depth, wide.length, narrow.length, narrow.start))
        follows[1:] = np.logical_and.reduce([*same, np.diff(wide.start) == wide.length[:-1] * wide.stride])
    return follows


def _together(wide: Panel, narrow: Panel, p: int, out: NDArray[Any]) -> None:
    """``out`` [count, rows, columns] of programs ``p`` and those after it, that follow each other along ``wide``."""
    count, depth = len(out), int(wide.depth[p])
    rows, columns = int(wide.length[p]), int(narrow.length[p])
    a, b = wide.rows(p, count * rows, depth), narrow.rows(p, columns, depth)
    if (rows, columns) == out.shape[1:] and out.flags.c_contiguous:
        np.matmul(a, b.T, out=out.reshape(-1, columns))
        return
    if (rows, columns) != out.shape[1:]:
        out[...] = 0
    if out.flags.c_contiguous:
        out[:, :rows, :columns] = np.matmul(a, b.T).reshape(count, rows, columns)
    else:
        out[:, :rows, :columns] = np.matmul(b, a.T).reshape(columns, count, rows).transpose(1, 2, 0)


def _one(left: Panel, right: Panel, p: int, out: NDArray[Any], name: str) -> None:
    depth = int(left.depth[p])
    a, b = left.of(p, depth), right.of(p, depth)
    rows, columns = a.shape[0], b.shape[0]
    whole = (rows, columns) == out.shape[1:] and depth > 0
    if not whole:
        out[p] = 0
    if name.startswith("i"):
        out[p, :rows, :columns] = product(a, b.T, name)
    elif whole:
        np.matmul(a, b.T, out=out[p])
    elif depth:
        out[p, :rows, :columns] = a @ b.T
