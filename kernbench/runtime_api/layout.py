"""Shapes and strides: which bytes a strided view covers, and which views an index or a reshape makes.

Strides and offsets count elements unless a name says bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import DType
from kernbench.sim_engine.oplog import Access

Shape = tuple[int, ...]


def sizes(*shape: Any) -> Shape:
    """A shape from ``(2, 3)``, ``2, 3`` or one number."""
    given = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    try:
        made = tuple(int(n) if isinstance(n, int | np.integer) else _refuse(n) for n in given)
    except TypeError:
        raise TypeError(f"a shape is made of integers, got {given!r}") from None
    return made


def elements(shape: Shape) -> int:
    """How many elements a new tensor has.

    Raises:
        ValueError: a size is negative.
    """
    if min(shape, default=0) < 0:
        raise ValueError(f"cannot make a tensor of shape {list(shape)}: a size is negative")
    return math.prod(shape)


def _refuse(n: Any) -> int:
    raise TypeError(n)


def row_major(shape: Shape) -> Shape:
    """Strides of a contiguous tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


def is_contiguous(shape: Shape, strides: Shape) -> bool:
    """Row-major without gaps; strides of axes of length 1 do not matter."""
    if 0 in shape:
        return True
    expected = row_major(shape)
    return all(n == 1 or have == want for n, have, want in zip(shape, strides, expected, strict=True))


def index(shape: Shape, strides: Shape, key: Any) -> tuple[Shape, Shape, int]:
    """The view ``[key]`` by integers, slices, None and Ellipsis: its shape, strides and offset from the old one.

    Raises:
        IndexError: out of range, or too many indices.
        ValueError: a negative step.
    """
    probe = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), shape, strides, writeable=False)
    keys = key if isinstance(key, tuple) else (key,)
    view = probe[keys if any(k is Ellipsis for k in keys) else (*keys, Ellipsis)]
    if any(step < 0 for step in view.strides):
        raise ValueError("a slice's step must be positive; torch has no negative steps either")
    skipped = view.__array_interface__["data"][0] - probe.__array_interface__["data"][0]
    return view.shape, view.strides, skipped if view.size else 0


def reshape(shape: Shape, strides: Shape, new: Shape) -> tuple[Shape, Shape | None]:
    """``new`` with its -1 filled in, and the strides of a view of that shape; None where only a copy can have it.

    Raises:
        RuntimeError: the number of elements differs.
    """
    count = math.prod(shape)
    if new.count(-1) > 1:
        raise RuntimeError("only one dimension can be inferred")
    if -1 in new:
        rest = -math.prod(new)
        if rest == 0 or count % rest:
            raise RuntimeError(f"shape '{list(new)}' is invalid for input of size {count}")
        new = tuple(count // rest if n == -1 else n for n in new)
    if math.prod(new) != count or any(n < 0 for n in new):
        raise RuntimeError(f"shape '{list(new)}' is invalid for input of size {count}")
    if is_contiguous(shape, strides):
        return new, row_major(new)
    probe = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), shape, strides, writeable=False)
    try:
        view = probe.reshape(new, copy=False)
    except ValueError:
        return new, None
    return new, view.strides


def reinterpret(shape: Shape, strides: Shape, offset: int, old: DType, new: DType) -> tuple[Shape, Shape, int]:
    """Shape, strides and offset in elements of ``new`` of a view whose elements were of ``old``; torch's rules.

    Raises:
        RuntimeError: the bytes do not fall into elements of the new size.
    """
    if old.itemsize == new.itemsize:
        return shape, strides, offset
    how = f"to view {old} as {new} (different element sizes)"
    if not shape:
        raise RuntimeError(f"self.dim() cannot be 0 {how}: .reshape(1) it first")
    times = max(new.itemsize // old.itemsize, 1)
    for what, value in (("size(-1)", shape[-1]), ("storage_offset()", offset)):
        if value % times:
            raise RuntimeError(f"self.{what} must be divisible by {times} {how}, but got {value}")
    if strides[-1] != 1:
        raise RuntimeError(f"self.stride(-1) must be 1 {how}, but got {strides[-1]}: use .contiguous()")
    for axis, stride in enumerate(strides[:-1]):
        if stride % times:
            raise RuntimeError(f"self.stride({axis}) must be divisible by {times} {how}, but got {stride}")

    def scaled(elements: int) -> int:
        return elements * old.itemsize // new.itemsize

    return (*shape[:-1], scaled(shape[-1])), (*map(scaled, strides[:-1]), 1), scaled(offset)


def broadcast(*shapes: Shape) -> Shape:
    """The shape they all stretch to.

    Raises:
        RuntimeError: they do not fit.
    """
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        shown = " and ".join(map(str, shapes))
        raise RuntimeError(
            f"shapes {shown} do not fit together: sizes have to be equal, or 1, from the last one"
        ) from None


def stretches(shape: Shape, new: Shape) -> bool:
    """Whether a tensor of ``shape`` can be expanded to ``new``."""
    lead = len(new) - len(shape)
    return lead >= 0 and all(have in (1, want) for have, want in zip(shape, new[lead:], strict=True))


def expand(shape: Shape, strides: Shape, new: Shape) -> Shape:
    """Strides of the view stretched to ``new``: 0 where an axis repeats."""
    lead = len(new) - len(shape)
    if not stretches(shape, new):
        raise RuntimeError(f"a tensor of shape {shape} cannot be expanded to {new}")
    kept = (0 if have == 1 and want != 1 else s for have, want, s in zip(shape, new[lead:], strides, strict=True))
    return (0,) * lead + tuple(kept)


def strided(values: NDArray[Any], shape: Shape, strides: Shape) -> NDArray[Any]:
    """A view of an array's memory from its first element on; strides count elements."""
    kind = values.dtype
    bits = values.view(f"u{kind.itemsize}")  # as_strided does not know ml_dtypes' types
    steps = [s * kind.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(bits, shape, steps).view(kind)


def access(address: int, shape: Shape, strides: Shape, itemsize: int) -> Access:
    """The bytes a view touches, each once, as nested runs with as few levels as possible."""
    if 0 in shape:
        return Access.contiguous(address, 0)
    dims: list[list[int]] = []
    for n, stride in zip((*shape, itemsize), (*(s * itemsize for s in strides), 1), strict=True):
        if n == 1 or stride == 0:
            continue
        dims.append([n, stride])
    dims.sort(key=lambda dim: -dim[1])
    merged: list[list[int]] = []
    for n, stride in dims:
        if merged and merged[-1][1] == n * stride:
            merged[-1] = [merged[-1][0] * n, stride]
        else:
            merged.append([n, stride])
    if not merged or merged[-1][1] != 1:
        merged.append([1, 1])
    return Access(np.array([address], np.int64), tuple(n for n, _ in merged), tuple(s for _, s in merged))
