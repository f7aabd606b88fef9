"""Element types: their names, their bytes in memory, and what carries them through arithmetic.

Memory holds the true bytes of every type. In arithmetic, floats narrower than 32 bits are *carried* in float32 and
rounded back to their own precision after every operation, because numpy's own half-precision arithmetic is two orders
of magnitude slower and has no bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class DType:
    """One element type. ``str()`` gives torch's spelling (``torch.float16``), which Triton reads too."""

    name: str
    """KernBench's and Triton's short name: ``f16``, ``bf16``, ``i32`` ..."""
    long_name: str
    """torch's name without the module: ``float16``."""
    storage: np.dtype
    """numpy dtype of the bytes in memory (ml_dtypes for bf16 and f8)."""

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.storage.itemsize

    @property
    def bits(self) -> int:
        """Bits that carry information: 1 for bool, else eight times the bytes."""
        return 1 if self.name == "i1" else 8 * self.itemsize

    @property
    def is_floating_point(self) -> bool:
        return self.name.startswith(("f", "bf"))

    @cached_property
    def carrier(self) -> np.dtype:
        """numpy dtype that holds a value of this type during arithmetic: float32 for narrow floats."""
        if self.is_floating_point and self.itemsize < 4:
            return np.dtype(np.float32)
        return self.storage

    def __str__(self) -> str:
        return f"torch.{self.long_name}"

    __repr__ = __str__


_ALL = [
    DType("f64", "float64", np.dtype(np.float64)),
    DType("f32", "float32", np.dtype(np.float32)),
    DType("f16", "float16", np.dtype(np.float16)),
    DType("bf16", "bfloat16", np.dtype(ml_dtypes.bfloat16)),
    DType("f8e4m3", "float8_e4m3fn", np.dtype(ml_dtypes.float8_e4m3fn)),
    DType("f8e5m2", "float8_e5m2", np.dtype(ml_dtypes.float8_e5m2)),
    DType("i64", "int64", np.dtype(np.int64)),
    DType("i32", "int32", np.dtype(np.int32)),
    DType("i16", "int16", np.dtype(np.int16)),
    DType("i8", "int8", np.dtype(np.int8)),
    DType("u64", "uint64", np.dtype(np.uint64)),
    DType("u32", "uint32", np.dtype(np.uint32)),
    DType("u16", "uint16", np.dtype(np.uint16)),
    DType("u8", "uint8", np.dtype(np.uint8)),
    DType("i1", "bool", np.dtype(np.bool_)),
]
_BY_NAME: dict[str, DType] = {}
for _d in _ALL:
    for _n in (_d.name, _d.long_name, _d.storage.name):
        _BY_NAME[_n] = _d
_BY_NAME |= {
    "half": _BY_NAME["f16"],
    "float": _BY_NAME["f32"],
    "double": _BY_NAME["f64"],
    "int": _BY_NAME["i32"],
    "long": _BY_NAME["i64"],
}


def dtype(spec: Any) -> DType:
    """The element type that ``spec`` names.

    Accepts a :class:`DType`, a short or long name (``"f16"``, ``"float16"``, ``"torch.float16"``), a numpy dtype or
    scalar type, or a torch dtype.

    Raises:
        TypeError: the name is not known; the message lists the names that are.
    """
    if isinstance(spec, DType):
        return spec
    text = spec if isinstance(spec, str) else str(spec)
    found = _BY_NAME.get(text.removeprefix("torch."))
    if found is None and spec is not None and not isinstance(spec, str):  # numpy takes None for float64
        try:
            found = _BY_NAME.get(np.dtype(spec).name)
        except TypeError:
            found = None
    if found is None:
        names = ", ".join(d.name for d in _ALL)
        raise TypeError(f"unknown dtype {spec!r}: expected one of {names}, a torch or numpy name, or a dtype object")
    return found


def is_dtype(value: Any) -> bool:
    """Whether :func:`dtype` understands ``value``, which may be a size of a shape instead."""
    if value is None or isinstance(value, int | float | np.integer | tuple | list):
        return False
    try:
        dtype(value)
    except TypeError:
        return False
    return True
