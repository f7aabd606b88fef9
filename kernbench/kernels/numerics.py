"""Narrow floats and tiles in bulk: by the compiled core where it is there, by numpy with equal results where not.

A value of a narrow float type (f16, bf16, f8) is *carried* in float32 during arithmetic and rounded to its own
precision after each operation.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kernbench import _native

NARROW: dict[str, tuple[int, np.dtype]] = {
    "f16": (1, np.dtype(np.float16)),
    "bf16": (2, np.dtype(ml_dtypes.bfloat16)),
    "f8E4M3FN": (3, np.dtype(ml_dtypes.float8_e4m3fn)),
    "f8E5M2": (4, np.dtype(ml_dtypes.float8_e5m2)),
    "f8E4M3FNUZ": (0, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "f8E5M2FNUZ": (0, np.dtype(ml_dtypes.float8_e5m2fnuz)),
}
"""TTIR's name of each narrow float -> (its number in the core, 0 for numpy's way, and its storage dtype)."""
_COPY = {1: 8, 2: 16, 4: 32, 8: 64}
_Pointer = ctypes.c_void_p


@cache
def _core() -> Any:
    library = _native.library()
    if library is None or not hasattr(library, "kb_tiles"):
        return None
    i32, i64 = ctypes.c_int32, ctypes.c_int64
    library.kb_convert.argtypes = [i32, i32, _Pointer, _Pointer, i64]
    library.kb_round.argtypes = [i32, _Pointer, _Pointer, i64]
    library.kb_tiles.argtypes = [i32, i32, _Pointer, _Pointer, i64, i64, *([_Pointer] * 10)]
    return library


def widen(x: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Values of a narrow float type, given in its storage dtype (or as raw unsigned integers), as float32."""
    number, storage = NARROW[name]
    core = _core()
    if core is None or not number:
        return x.view(storage).astype(np.float32)
    x = np.ascontiguousarray(x)
    out = np.empty(x.shape, np.float32)
    core.kb_convert(number, 0, x.ctypes.data, out.ctypes.data, x.size)
    return out


def narrow(x: NDArray[np.float32], name: str) -> NDArray[Any]:
    """float32 values rounded to the nearest even of a narrow float type, in its storage dtype. What is too large
    becomes infinity, or NaN where the type has none (f8E4M3FN)."""
    number, storage = NARROW[name]
    core = _core()
    if core is None or not number:
        with np.errstate(over="ignore", invalid="ignore"):
            return x.astype(storage)
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty(x.shape, storage)
    core.kb_convert(0, number, x.ctypes.data, out.ctypes.data, x.size)
    return out


def rounded(x: Any, name: str, fresh: bool = False) -> Any:
    """float32 values rounded to a narrow float's precision and range, still float32. x is overwritten if ``fresh``."""
    number, storage = NARROW[name]
    core = _core()
    if core is None or not number or not isinstance(x, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(x).astype(storage).astype(np.float32)[()]
    x = np.ascontiguousarray(x, np.float32)
    out = x if fresh else np.empty(x.shape, np.float32)
    core.kb_round(number, x.ctypes.data, out.ctypes.data, x.size)
    return out


def saturated(x: Any, name: str) -> Any:
    """Values clipped to the finite range of a narrow float type; NaN stays NaN. So GPUs convert to 8-bit floats."""
    largest = float(ml_dtypes.finfo(NARROW[name][1]).max)
    return np.clip(x, x.dtype.type(-largest), x.dtype.type(largest))


def toward_zero(x: Any, name: str) -> Any:
    """Values rounded to a narrow float's precision towards zero, as float32."""
    storage = NARROW[name][1]
    with np.errstate(over="ignore", invalid="ignore"):
        raw = np.asarray(x).astype(storage)
    bits = raw.view(f"u{storage.itemsize}")
    too_large = np.abs(raw.astype(np.float64)) > np.abs(x)  # the next smaller magnitude is the bits less one
    return (bits - too_large).astype(bits.dtype).view(storage).astype(np.float32)[()]


def _address(x: NDArray[Any]) -> int:
    """Where an array's first element is."""
    try:  # in a third of the time that x.ctypes takes
        return ctypes.addressof(ctypes.c_char.from_buffer(x.data))
    except (BufferError, TypeError, ValueError):
        return x.ctypes.data


class Tiles:
    """Where the elements of P programs' tiles are in one allocation's bytes.

    Element ``i`` of program ``p`` is at byte ``base[p] + sum(offsets[d][p or 0][i[d]])``, for ``lo[p, d] <= i[d] <
    hi[p, d]`` where ``mask`` holds.

    Args:
        dims: the block's shape, rank 1 to 8.
        base: int64[P], bytes from the start of the allocation.
        offsets: per axis int64[P or 1, n], in bytes.
        contiguous: per axis, whether its offsets grow by exactly one element.
        lo, hi: int64[P, rank].
        mask: bool[P or 1, ...] with axes of n or 1, or None.
    """

    __slots__ = ("_layout", "_where", "base", "contiguous", "dims", "hi", "lo", "mask", "offsets")

    def __init__(
        self,
        dims: tuple[int, ...],
        base: NDArray[np.int64],
        offsets: list[NDArray[np.int64]],
        contiguous: list[bool],
        lo: NDArray[np.int64],
        hi: NDArray[np.int64],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        self.dims, self.base, self.offsets, self.contiguous = dims, base, offsets, contiguous
        self.lo, self.hi, self.mask = lo, hi, mask
        self._where: tuple[tuple[Any, ...], list[Any]] | None = None
        self._layout: tuple[Any, Any] | None = None
        """Shape and strides of the values that were moved last, and what the core is told of them."""

    def load(self, memory: NDArray[np.uint8], name: str, storage: np.dtype, out: NDArray[Any]) -> None:
        """Fill ``out`` [P, *dims] (contiguous, in the carrier of ``name``) where the tiles have elements."""
        if not self._move(0, memory, name, storage, out):
            address, where = self.addresses()
            lanes = memory[address[where][:, None] + np.arange(storage.itemsize)].view(storage)[:, 0]
            out[where] = lanes.astype(out.dtype)

    def store(self, memory: NDArray[np.uint8], name: str, storage: np.dtype, values: NDArray[Any]) -> None:
        """Write ``values`` [P or 1, ...], broadcast over the tiles, in the order of programs and then of elements."""
        tiles = (len(self.base), *self.dims)
        if values.shape != tiles and any(have not in (1, want) for have, want in zip(values.shape, tiles, strict=True)):
            raise ValueError(f"values {values.shape} do not fit {len(self.base)} tiles of {self.dims}")
        if not self._move(1, memory, name, storage, values):
            address, where = self.addresses()
            values = np.broadcast_to(values, where.shape)
            with np.errstate(over="ignore", invalid="ignore"):
                lanes = np.ascontiguousarray(values[where].astype(storage))
            memory[address[where][:, None] + np.arange(storage.itemsize)] = lanes.view(np.uint8).reshape(
                -1, storage.itemsize
            )

    def _move(self, store: int, memory: NDArray[np.uint8], name: str, storage: np.dtype, values: NDArray[Any]) -> bool:
        """``values`` has the axes of the tiles, of their length or 1."""
        core = _core()
        if core is None or (name in NARROW and not NARROW[name][0]):
            return False
        kind = NARROW[name][0] if name in NARROW else _COPY[storage.itemsize]
        if self._where is None:
            self._where = self._arguments()
        itemsize, layout = values.dtype.itemsize, (values.shape, values.strides)
        if self._layout is None or self._layout[0] != layout:
            strides = [0 if n == 1 else s // itemsize for n, s in zip(*layout, strict=True)]
            self._layout = layout, (ctypes.c_int64 * len(strides))(*strides)
        at = self._layout[1]
        return core.kb_tiles(store, kind, _address(memory), _address(values), *self._where[0], at) == 0

    def _arguments(self) -> tuple[tuple[Any, ...], list[Any]]:
        """What the core is told of the tiles, and the arrays that this points into."""
        programs, rank = len(self.base), len(self.dims)
        offsets = [np.ascontiguousarray(o) for o in self.offsets]
        pointers = (_Pointer * rank)(*(o.ctypes.data for o in offsets))
        meta = np.array([self.dims, [o.shape[0] > 1 for o in offsets], self.contiguous], np.int64)
        base, lo, hi = (np.ascontiguousarray(a, np.int64) for a in (self.base, self.lo, self.hi))
        kept = [offsets, meta, base, lo, hi]
        mask_at = strides_at = None
        if self.mask is not None:
            mask = np.broadcast_to(self.mask, (programs, *self.dims))
            strides = np.array(mask.strides, np.int64)
            kept += [mask, strides]
            mask_at, strides_at = mask.ctypes.data, strides.ctypes.data
        at, row = meta.ctypes.data, meta.strides[0]
        bounds = lo.ctypes.data, hi.ctypes.data
        return (
            programs, rank, at, base.ctypes.data, pointers, at + row, at + 2 * row, *bounds, mask_at, strides_at
        ), kept  # fmt: skip

    def addresses(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Every element's byte, and which elements there are, both [P, *dims]: the tiles in full."""
        programs, rank = len(self.base), len(self.dims)
        address = self.base.reshape((-1,) + (1,) * rank)
        where = np.ones((programs, *self.dims), np.bool_)
        for d, n in enumerate(self.dims):
            column = [1] * rank
            column[d] = n
            address = address + self.offsets[d].reshape((-1, *column))
            index = np.arange(n)
            inside = (index >= self.lo[:, d, None]) & (index < self.hi[:, d, None])
            where &= inside.reshape((programs, *column))
        if self.mask is not None:
            where &= self.mask
        return np.broadcast_to(address, where.shape), where
