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
from kernbench.kernels.ops_reduce import product as multiply
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

    def at(self, f: Frame, t: int, counts: NDArray[np.int64]) -> NDArray[Any]:
        """The tile of one iteration, [P, rows, columns] as the dot sees it; zero in programs that ended before."""
        now = self.window.iteration(np.full(self.window.programs, t, np.int64))
        if (counts <= t).any():
            now.hi = np.where((counts > t)[:, None], now.hi, 0)
        x = _cast(read(f, self.access, now, self.allocations, self.other), self.casts)
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


def _cast(x: NDArray[Any], casts: tuple[str, ...]) -> NDArray[Any]:
    for name in casts:
        x = rounded(x, name)
    return x


class Panel:
    """One operand of the dot for each program: rows (or columns) by the whole of K. It says where they are in the
    memory that its methods are given, :meth:`Tile.source`."""

    def __init__(self, tile: Tile, k_axis: int, counts: NDArray[np.int64]) -> None:
        w = tile.window
        size = w.itemsize
        self.casts = tile.casts
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

    def of(self, source: NDArray[Any], p: int, depth: int) -> NDArray[Any]:
        """[rows, depth] of program ``p``."""
        rows = int(self.length[p])
        size = source.itemsize
        start = int(self.start[p])
        if self.offsets is not None:
            chosen = self.offsets[p if len(self.offsets) > 1 else 0][:rows]
            step = chosen[1] - chosen[0] if rows > 1 else 0
            if rows < 2 or (np.diff(chosen) == step).all():
                return self._strided(source, start + int(chosen[0]) if rows else 0, rows, int(step), depth)
            reach = (depth - 1) * self.k_stride
            lines = np.ndarray((len(source) - reach, depth), source.dtype, source, 0, (size, size * self.k_stride))
            return _cast(lines[start + chosen], self.casts)
        return self._strided(source, start, rows, self.stride, depth)

    def rows(self, source: NDArray[Any], p: int, count: int, depth: int) -> NDArray[Any]:
        """[count, depth], evenly spaced from the first row of program ``p``, also beyond its block."""
        return self._strided(source, int(self.start[p]), count, self.stride, depth)

    def _strided(self, source: NDArray[Any], start: int, rows: int, stride: int, depth: int) -> NDArray[Any]:
        size = source.itemsize
        if rows == 0 or depth == 0:
            return np.zeros((rows, depth), source.dtype)
        if self.merged:
            shape, strides = (rows, depth), (stride * size, self.k_stride * size)
            return _cast(np.ndarray(shape, source.dtype, source, start * size, strides), self.casts)
        trips = -(-depth // self.block_k)
        last = depth - (trips - 1) * self.block_k
        steps = (stride * size, self.step * size, self.k_stride * size)
        whole = np.ndarray((rows, trips - 1, self.block_k), source.dtype, source, start * size, steps)
        tail_at = start + (trips - 1) * self.step
        tail = np.ndarray((rows, last), source.dtype, source, tail_at * size, (steps[0], steps[2]))
        return _cast(np.concatenate([whole.reshape(rows, -1), tail], axis=1), self.casts)


class Product:
    """All that a chain of dots multiplies. It follows from where the operands are, so launches alike share it."""

    def __init__(self, left: Panel, right: Panel, shape: tuple[int, ...], name: str) -> None:
        self.left, self.right, self.shape, self.name = left, right, shape, name
        self.programs = programs = len(left.depth)
        self.work = int(left.depth.sum()) * shape[0] * shape[1]
        self.groups: list[tuple[int, int, bool]] = []
        """Programs from, up to, and whether they follow each other along the rows; along the columns else."""
        down, across = _neighbours(left, right), _neighbours(right, left)
        most = -(-programs // workers.useful(self.work))
        p = 0
        while p < programs:
            stop = p + 1
            way = down if stop < programs and down[stop] else across
            while stop < min(programs, p + most) and way[stop]:
                stop += 1
            if not left.depth[p] or name.startswith("i"):
                stop = p + 1
            self.groups.append((p, stop, way is down))
            p = stop

    @classmethod
    def of(
        cls, left: Tile, right: Tile, counts: NDArray[np.int64], shape: tuple[int, ...], name: str
    ) -> Product | None:
        """None where tiles have to be multiplied iteration by iteration."""
        axes = 0 if left.flipped else 1, 1 if right.flipped else 0
        if not Panel.fits(left, axes[0]) or not Panel.fits(right, axes[1]):
            return None
        panels = Panel(left, axes[0], counts), Panel(right, axes[1], counts)
        return cls(*panels, shape, name) if (panels[0].depth == panels[1].depth).all() else None

    def run(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        """The sums [P, m, n], of operands that lie in ``a`` and ``b``."""
        out = np.empty((self.programs, *self.shape), CARRIER[self.name])
        left, right = (self.left, a), (self.right, b)
        products: list[Callable[[], None]] = []
        for p, stop, down in self.groups:
            if stop == p + 1:
                products.append(partial(_one, *left, *right, p, out, self.name))
            elif down:
                products.append(partial(_together, *left, *right, p, out[p:stop]))
            else:
                products.append(partial(_together, *right, *left, p, out[p:stop].transpose(0, 2, 1)))
        workers.run(products, self.work)
        return out


def accumulate(
    f: Frame,
    left: Tile,
    right: Tile,
    counts: NDArray[np.int64],
    total: NDArray[Any] | None,
    shape: tuple[int, ...],
    name: str,
    known: dict[Any, Product | None],
    dot: Any,
) -> NDArray[Any]:
    """Add to ``total`` [P, m, n] (None: zero) the sum over all iterations of ``left @ right``.

    ``known`` has the products of launches like this one, by ``dot``, and is given this one's.
    """
    if not left.allocations or not right.allocations:  # nothing is read: no iteration, or all masked
        return np.zeros((f.count, *shape), CARRIER[name]) if total is None else total
    if f.count == 1 and f.launch.crew is not None:
        from kernbench.kernels.panel_reads import product_of_one

        alone = product_of_one(f, left, right, counts, shape, name)
        if alone is not None:
            return alone if total is None else total + alone
    a, b = left.source(f), right.source(f)
    if a is not None and b is not None:
        if dot not in known:
            known[dot] = Product.of(left, right, counts, shape, name)
        product = known[dot]
        if product is not None:
            made = product.run(a, b)
            return made if total is None else total + made
    for t in range(int(counts.max())):
        step = multiply(left.at(f, t, counts), right.at(f, t, counts), name)
        total = np.broadcast_to(step, (f.count, *shape)).copy() if total is None else total + step
    return np.zeros((f.count, *shape), CARRIER[name]) if total is None else total


def _neighbours(wide: Panel, narrow: Panel) -> NDArray[np.bool_]:
    """bool[P]: programs whose rows of ``wide`` follow the ones of the program before, on the same ``narrow``."""
    follows = np.zeros(len(wide.depth), np.bool_)
    if wide.offsets is None and narrow.offsets is None and wide.merged and narrow.merged:
        same = (np.diff(x) == 0 for x in (wide.depth, wide.length, narrow.length, narrow.start))
        follows[1:] = np.logical_and.reduce([*same, np.diff(wide.start) == wide.length[:-1] * wide.stride])
    return follows


def _together(wide: Panel, a: NDArray[Any], narrow: Panel, b: NDArray[Any], p: int, out: NDArray[Any]) -> None:
    """``out`` [count, rows, columns] of programs ``p`` and those after it, that follow each other along ``wide``."""
    count, depth = len(out), int(wide.depth[p])
    rows, columns = int(wide.length[p]), int(narrow.length[p])
    x, y = wide.rows(a, p, count * rows, depth), narrow.rows(b, p, columns, depth)
    if (rows, columns) == out.shape[1:] and out.flags.c_contiguous:
        np.matmul(x, y.T, out=out.reshape(-1, columns))
        return
    if (rows, columns) != out.shape[1:]:
        out[...] = 0
    if out.flags.c_contiguous:
        out[:, :rows, :columns] = np.matmul(x, y.T).reshape(count, rows, columns)
    else:
        out[:, :rows, :columns] = np.matmul(y, x.T).reshape(columns, count, rows).transpose(1, 2, 0)


def _one(left: Panel, a: NDArray[Any], right: Panel, b: NDArray[Any], p: int, out: NDArray[Any], name: str) -> None:
    depth = int(left.depth[p])
    multiplied(left.of(a, p, depth), right.of(b, p, depth), out[p], name)


def multiplied(x: NDArray[Any], y: NDArray[Any], out: NDArray[Any], name: str) -> None:
    """``out`` [m, n] becomes ``x @ y.T``, and zero where these have fewer rows."""
    rows, columns = x.shape[0], y.shape[0]
    whole = (rows, columns) == out.shape and x.shape[1] > 0
    if not whole:
        out[...] = 0
    if name.startswith("i"):
        out[:rows, :columns] = multiply(x, y.T, name)
    elif whole:
        np.matmul(x, y.T, out=out)
    elif x.shape[1]:
        out[:rows, :columns] = x @ y.T
