"""Paddle's pickled state dictionaries, read by an unpickler that can make nothing but containers, numbers and arrays.

``paddle.save`` pickles each tensor as a numpy array, alone or as (name, array); a bfloat16 array as uint16, which
Paddle has no tensors of. Every global that such a file names is answered by a stand-in from this module: no function of
the file's choosing is ever called, and not even numpy interprets the file's state.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.weight_sync.arrays import Framework, from_bytes
from kernbench.weight_sync.dtypes import WireType, wire_type
from kernbench.weight_sync.snapshot_files import SnapshotError

_NAME_TABLE, _SLICES = "StructuredToParameterName@@", "UnpackBigParamInfor@@"


def is_pickle(path: str | Path) -> bool:
    """Whether a file is a pickle of protocol 2 or later, and no safetensors file that begins with the same byte."""
    with open(path, "rb") as file:
        start = file.read(16)
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] not in b"{ \t\r\n"


def refusal(path: str | Path) -> SnapshotError:
    """The error for a pickle that nobody has allowed."""
    return SnapshotError(
        f"{path} is a pickle, a format that can run any code. Write safetensors instead (paddle.save with "
        "safetensors=True), or pass allow_pickle=True: the file is then read by an unpickler that can only make arrays"
    )


def load(path: str | Path, framework: Framework | None = None) -> dict[str, Any]:
    """The tensors of a pickled state dictionary by name. uint16 arrays become bfloat16, as in Paddle.

    Raises:
        SnapshotError: it is damaged, names a global that no state dictionary needs, or is no dictionary of arrays.
        NotImplementedError: a tensor of more than 2**30 bytes that protocol 2 or 3 has cut into slices.
    """
    with open(path, "rb") as file:
        try:
            loaded = _Unpickler(file, encoding="latin1").load()
        except SnapshotError as wrong:
            raise SnapshotError(f"{path}: {wrong}") from None
        except Exception as wrong:
            raise SnapshotError(f"{path}: no readable pickle ({type(wrong).__name__}: {wrong})") from None
    if not isinstance(loaded, dict):
        raise SnapshotError(f"{path}: it holds a {type(loaded).__name__}, expected a state dictionary")
    if _SLICES in loaded:
        raise NotImplementedError(
            f"{path}: tensors cut into slices; save with paddle.save(..., protocol=4) or as safetensors"
        )
    loaded.pop(_NAME_TABLE, None)
    state = {}
    for name, value in loaded.items():
        array = value[1] if isinstance(value, tuple) and len(value) == 2 else value
        if not isinstance(name, str) or not isinstance(array, _Array) or array.data is None:
            raise SnapshotError(f"{path}: entry {name!r} is no array but {type(array).__name__.strip('_')}")
        state[name] = array.tensor(name, framework)
    return state


class _Kind:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: Any, *rest: Any) -> None:
        kind = np.dtype(code) if isinstance(code, str) and len(code) <= 3 else None
        if kind is None or kind.kind not in "biufc":
            raise SnapshotError(f"an array of element type {code!r}; only bools and numbers are read")
        self.wire: WireType = wire_type(kind)
        self.big_endian = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.big_endian = state[1] == ">"


class _Array:
    """Stands in for ``numpy.ndarray``: what a pickled array says of itself."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.kind: _Kind | None = None
        self.fortran = False
        self.data: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, str):
            data = data.encode("latin1")
        self._set(data, kind, shape, bool(fortran))

    def _set(self, data: Any, kind: Any, shape: Any, fortran: bool) -> None:
        if not isinstance(kind, _Kind) or not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple):
            raise SnapshotError("an array that is not described by type, shape and bytes")
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * kind.wire.itemsize != len(data):
            raise SnapshotError(f"an array of {len(data)} bytes that is said to be {kind.wire} of shape {shape}")
        self.data, self.kind, self.shape, self.fortran = data, kind, shape, fortran

    def tensor(self, name: str, framework: Framework | None) -> Any:
        assert self.kind is not None
        raw = np.frombuffer(self.data, np.uint8)
        if self.kind.big_endian or (self.fortran and len(self.shape) > 1):
            values = raw.view(self.kind.wire.storage.newbyteorder(">" if self.kind.big_endian else "<"))
            values = values.astype(self.kind.wire.storage).reshape(self.shape, order="F" if self.fortran else "C")
            raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        kind = wire_type("bfloat16") if self.kind.wire.name == "uint16" else self.kind.wire
        return from_bytes(kind, self.shape, raw, framework, name)


def _reconstruct(*_: Any) -> _Array:
    """Stands in for numpy's, which makes the empty array that ``__setstate__`` then fills."""
    return _Array()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    """Stands in for numpy's, of pickle protocol 5."""
    made = _Array()
    made._set(data, kind, shape, order == "F")
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands in for ``_codecs.encode``, by which protocol 2 carries bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise SnapshotError(f"bytes encoded as {encoding!r}, expected latin1")
    return text.encode("latin1")


def _empty_bytes(*arguments: Any) -> bytes:
    """Stands in for ``bytes``, by which protocol 2 carries empty ones."""
    if arguments:
        raise SnapshotError("it asks for bytes made of something else")
    return b""


def _eval(source: Any = None, names: Any = None, *_: Any) -> Any:
    """Stands in for ``eval``, which Paddle only ever asks for the one name that it passes along."""
    if source != "data" or not isinstance(names, dict) or set(names) != {"data"}:
        raise SnapshotError("it asks to evaluate code")
    return names["data"]


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    return tuple(items)


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _from_buffer for module in _NUMERIC},
    **{(module, "eval"): _eval for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): _empty_bytes for module in ("builtins", "__builtin__")},
    **{(module, "tuple"): _tuple for module in ("builtins", "__builtin__")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise SnapshotError(f"it asks for {module}.{name}, which no state dictionary needs; refused") from None

    def persistent_load(self, pid: Any) -> Any:
        raise SnapshotError("it refers to objects outside of the file; refused")
