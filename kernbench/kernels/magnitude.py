"""Floats that are infinite, NaN or too large: is there any, and does an operation make it?

The compiled core looks where it is there, numpy with equal results where not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench import _native

_Pointer = ctypes.c_void_p
_MADE_NAN, _MADE_INF = 1, 2


@cache
def _core() -> Any:
    library = _native.library()
    if library is None or not hasattr(library, "kb_made"):
        return None
    i32, i64 = ctypes.c_int32, ctypes.c_int64
    library.kb_beyond.argtypes = [_Pointer, i64, i32, i64]
    library.kb_made.argtypes = [i64, _Pointer, i64, _Pointer, _Pointer]
    return library


@cache
def _bits(most: float | None, dtype: np.dtype) -> int:
    """The largest magnitude that is allowed, as the bits of a float; None: the largest finite one."""
    exact = np.finfo(dtype).max if most is None else dtype.type(most)
    return int(np.asarray(exact, dtype).view(f"i{dtype.itemsize}"))


def beyond(x: Any, most: float | None = None) -> bool:
    """Whether any of some floats (f32 or f64) is NaN or has a magnitude of more than ``most`` (None: is infinite)."""
    if not isinstance(x, np.ndarray):
        return not abs(x) <= (np.finfo(np.float64).max if most is None else most)
    core = _core()
    if core is None or x.dtype.kind != "f" or x.dtype.itemsize < 4:
        return not bool(np.isfinite(x).all() if most is None else (np.abs(x) <= most).all())
    flat = x if x.flags.c_contiguous else x.ravel("K")
    return bool(core.kb_beyond(flat.ctypes.data, flat.size, x.dtype.itemsize, _bits(most, x.dtype)))


def makes(x: Any, operands: Sequence[Any]) -> tuple[bool, bool]:
    """Whether an elementwise operation makes a NaN of operands that are none, and an infinity of finite operands.

    Args:
        x: its results.
        operands: scalars, or arrays whose axes have the length of the results' or 1.
    """
    core = _core()
    if core is not None and isinstance(x, np.ndarray) and x.dtype == np.float32 and x.ndim <= 8:
        arrays = [x, *(np.asarray(o) for o in operands)]
        if len(arrays) <= 4 and all(a.dtype == np.float32 and a.ndim in (0, x.ndim) for a in arrays):
            found = _makes(core, arrays)
            if found >= 0:
                return bool(found & _MADE_NAN), bool(found & _MADE_INF)
    nan, inf = np.isnan(x), np.isinf(x)
    for o in operands:
        nan = nan & ~np.isnan(o)
        inf = inf & np.isfinite(o)
    return bool(np.any(nan)), bool(np.any(inf))


def _makes(core: Any, arrays: list[NDArray[np.float32]]) -> int:
    """What the core says; -1 where it does not know."""
    shape = arrays[0].shape
    axes: list[list[int]] = []
    """Length of each axis, and every array's stride in elements; neighbours that are one in all arrays are joined."""
    for d, n in enumerate(shape):
        if n == 1:
            continue
        steps = [0 if a.ndim == 0 or a.shape[d] == 1 else a.strides[d] // 4 for a in arrays]
        if axes and all(before == step * n for before, step in zip(axes[-1][1:], steps, strict=True)):
            axes[-1] = [axes[-1][0] * n, *steps]
        else:
            axes.append([n, *steps])
    table = np.array(axes or [[1, *[1] * len(arrays)]], np.int64).T.copy()
    starts = (_Pointer * len(arrays))(*(a.ctypes.data for a in arrays))
    row = table.strides[0]
    return int(core.kb_made(table.shape[1], table.ctypes.data, len(arrays), starts, table.ctypes.data + row))
