"""Element types as wires and files name them: ``torch.bfloat16``, ``bfloat16``, ``BF16`` are one type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, repr=False)
class WireType:
    """One element type."""

    name: str
    """torch's name without the module: ``bfloat16``."""
    code: str | None
    """safetensors' name: ``BF16``. None: safetensors has no such type."""
    bits: int
    """Bits of one element in memory and in files."""
    _storage: Any
    """numpy dtype or scalar type (ml_dtypes for what numpy itself does not have), or None."""
    aliases: tuple[str, ...] = ()

    @property
    def torch_name(self) -> str:
        """``torch.bfloat16``."""
        return f"torch.{self.name}"

    @cached_property
    def storage(self) -> np.dtype:
        """The little-endian numpy dtype with the same bytes.

        Raises:
            NotImplementedError: elements of 4 or 6 bits, which numpy arrays cannot hold packed.
        """
        if self._storage is None:
            raise NotImplementedError(
                f"{self.code} packs elements of {self.bits} bits, which no array type here holds: "
                "work on the bytes of its range in the file instead"
            )
        kind = np.dtype(self._storage)
        return kind.newbyteorder("<") if kind.kind in "iufc" else kind

    @property
    def itemsize(self) -> int:
        """Bytes of one element.

        Raises:
            NotImplementedError: elements of 4 or 6 bits.
        """
        return self.storage.itemsize

    @property
    def is_floating_point(self) -> bool:
        return self.name.startswith(("float", "bfloat"))

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of that shape.

        Raises:
            ValueError: elements of 4 or 6 bits that do not end on a whole byte.
        """
        bits = math.prod(shape) * self.bits
        if bits % 8:
            raise ValueError(f"{self.code} of shape {list(shape)} takes {bits} bits, which is no whole number of bytes")
        return bits // 8

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


_ALL = (
    WireType("bool", "BOOL", 8, np.bool_, ("i1",)),
    WireType("float4_e2m1fn", "F4", 4, None),
    WireType("float6_e2m3fn", "F6_E2M3", 6, None),
    WireType("float6_e3m2fn", "F6_E3M2", 6, None),
    WireType("uint8", "U8", 8, np.uint8),
    WireType("int8", "I8", 8, np.int8),
    WireType("float8_e5m2", "F8_E5M2", 8, ml_dtypes.float8_e5m2, ("f8e5m2",)),
    WireType("float8_e4m3fn", "F8_E4M3", 8, ml_dtypes.float8_e4m3fn, ("f8e4m3",)),
    WireType("float8_e8m0fnu", "F8_E8M0", 8, ml_dtypes.float8_e8m0fnu),
    WireType("float8_e4m3fnuz", "F8_E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz),
    WireType("float8_e5m2fnuz", "F8_E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz),
    WireType("int16", "I16", 16, np.int16, ("short",)),
    WireType("uint16", "U16", 16, np.uint16),
    WireType("float16", "F16", 16, np.float16, ("half",)),
    WireType("bfloat16", "BF16", 16, ml_dtypes.bfloat16),
    WireType("int32", "I32", 32, np.int32, ("int",)),
    WireType("uint32", "U32", 32, np.uint32),
    WireType("float32", "F32", 32, np.float32, ("float",)),
    WireType("complex64", "C64", 64, np.complex64, ("cfloat",)),
    WireType("float64", "F64", 64, np.float64, ("double",)),
    WireType("int64", "I64", 64, np.int64, ("long",)),
    WireType("uint64", "U64", 64, np.uint64),
    WireType("complex128", None, 128, np.complex128, ("cdouble",)),
)
"""Ascending in the order in which safetensors' own writer sorts types."""

_BY_NAME = {name: t for t in _ALL for name in (t.name, *t.aliases, *([t.code.lower()] if t.code else []))}
_BY_CODE = {t.code: t for t in _ALL if t.code}
_RANK = {t.name: i for i, t in enumerate(_ALL)}


def wire_type(spec: Any) -> WireType:
    """The element type that ``spec`` names.

    Accepts a :class:`WireType`, torch's, numpy's, safetensors' or KernBench's name (``"torch.float16"``, ``"float16"``,
    ``"F16"``, ``"f16"``), or a dtype object of any of them.

    Raises:
        TypeError: the name is not known; the message lists the names that are.
    """
    if isinstance(spec, WireType):
        return spec
    text = spec if isinstance(spec, str) else str(spec)
    found = _BY_NAME.get(text.removeprefix("torch.").lower())
    if found is None and spec is not None and not isinstance(spec, str):
        try:
            found = _BY_NAME.get(np.dtype(spec).name)
        except TypeError:
            found = None
    if found is None:
        known = ", ".join(t.name for t in _ALL)
        raise TypeError(f"unknown element type {spec!r}: expected one of {known}, or a name for one in safetensors")
    return found


def by_code(code: Any) -> WireType | None:
    """The type of a safetensors header's exact name (``"BF16"``), or None if the format has no such name."""
    return _BY_CODE.get(code) if isinstance(code, str) else None


def codes() -> list[str]:
    """Every type name that a safetensors header may contain."""
    return list(_BY_CODE)


def rank(kind: WireType) -> int:
    """Position in the order of safetensors' writer, which puts the highest first."""
    return _RANK[kind.name]
