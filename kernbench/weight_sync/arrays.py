"""Torch tensors, Parameters, numpy arrays and KernBench tensors as bytes in C order, and back.

Bytes are shared wherever the weight lies contiguous in host memory. Nothing converts a value, so every bit survives,
NaN payloads included.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.dtypes import WireType, wire_type

Framework = Literal["torch", "numpy", "kernbench"]
Bytes = NDArray[np.uint8]
CHUNK = 4 << 20
"""Bytes that the chunked forms handle at a time, where nothing else is asked for."""


@dataclass(frozen=True)
class TensorBytes:
    """A tensor as its bytes: ``data`` is uint8[n] in C order, little-endian."""

    kind: WireType
    shape: tuple[int, ...]
    data: Bytes

    def to(self, framework: Framework | None = None) -> Any:
        """A tensor of that framework over the same bytes."""
        return from_bytes(self.kind, self.shape, self.data, framework)


def is_torch(value: Any) -> bool:
    """Whether ``value`` is a torch tensor (a Parameter too), without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def framework_of(weight: Any) -> Framework:
    """Which library a weight belongs to.

    Raises:
        TypeError: none that is known here.
    """
    if isinstance(weight, np.ndarray | np.generic):
        return "numpy"
    if isinstance(weight, Tensor):
        return "kernbench"
    if is_torch(weight):
        return "torch"
    raise TypeError(f"a weight is a torch tensor, a numpy array or a KernBench tensor, not {type(weight).__name__}")


def default_framework() -> Framework:
    """``"torch"`` if the process has imported it already, else ``"numpy"``."""
    return "torch" if "torch" in sys.modules else "numpy"


def describe(weight: Any) -> tuple[WireType, tuple[int, ...]]:
    """Element type and shape, without reading a value."""
    framework_of(weight)
    return wire_type(weight.dtype), tuple(int(n) for n in weight.shape)


def to_bytes(weight: Any) -> TensorBytes:
    """The bytes of a weight: shared with it where it lies contiguous in host memory, else a copy.

    Reading a device tensor of a context is a host read, with its barrier and its simulated time.

    Raises:
        TypeError: not a tensor, or one that has no plain bytes (sparse, quantised, meta, a distributed tensor).
    """
    kind, shape = describe(weight)
    array = _array(weight)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(kind.storage)
    return TensorBytes(kind, shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def iter_bytes(weight: Any, chunk: int = CHUNK) -> Iterator[Bytes]:
    """The bytes of a weight in C order, in pieces of at most ``chunk`` bytes (one element at least).

    Slices of the weight's own memory where that is contiguous on the host; else a fresh copy of one piece at a time,
    so that no second copy of the tensor ever exists.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk} bytes: give at least 1")
    kind, shape = describe(weight)
    if 0 in shape:
        return
    if is_contiguous_on_host(weight):
        data = to_bytes(weight).data
        step = max(chunk // kind.itemsize, 1) * kind.itemsize
        for start in range(0, data.size, step):
            yield data[start : start + step]
        return
    yield from _pieces(weight, kind.itemsize, shape, chunk)


def _pieces(weight: Any, itemsize: int, shape: tuple[int, ...], chunk: int) -> Iterator[Bytes]:
    row = math.prod(shape[1:]) * itemsize
    if not shape or row * shape[0] <= chunk:
        yield to_bytes(weight).data
    elif row <= chunk or len(shape) == 1:
        rows = max(chunk // row, 1)
        for start in range(0, shape[0], rows):
            yield to_bytes(weight[start : start + rows]).data
    else:
        for i in range(shape[0]):
            yield from _pieces(weight[i], itemsize, shape[1:], chunk)


def is_contiguous_on_host(weight: Any) -> bool:
    """Whether :func:`to_bytes` shares the weight's memory."""
    framework = framework_of(weight)
    if framework == "numpy":
        return bool(weight.flags.c_contiguous) and weight.dtype.byteorder != ">"
    if framework == "torch":
        return weight.device.type == "cpu" and weight.is_contiguous() and not (weight.is_conj() or weight.is_neg())
    return bool(weight.is_cpu and weight.is_contiguous())


def from_bytes(
    kind: WireType | str, shape: Sequence[int], data: Any, framework: Framework | None = None, name: str = "tensor"
) -> Any:
    """A tensor over ``data`` (any buffer of exactly the right number of bytes), shared where that is possible.

    torch gets a copy of bytes that are read-only or do not lie on an element's alignment.

    Args:
        framework: what to make; by default :func:`default_framework`.
        name: for errors, and of a KernBench tensor.

    Raises:
        ValueError: the number of bytes is not that of ``kind`` and ``shape``, or a bool is neither 0 nor 1.
        TypeError: the framework has no such element type.
    """
    kind = wire_type(kind)
    shape = tuple(int(n) for n in shape)
    raw: Bytes = np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data.reshape(-1).view(np.uint8)
    if any(n < 0 for n in shape):
        raise ValueError(f"'{name}': the shape {list(shape)} has a negative size")
    if raw.size != kind.nbytes(shape):
        raise ValueError(
            f"'{name}': {raw.size} bytes, but {kind} of shape {list(shape)} takes {kind.nbytes(shape)}; "
            "the data is cut off, or type or shape is wrong"
        )
    if kind.name == "bool" and raw.size and raw.max() > 1:
        raise ValueError(f"'{name}': a bool is {int(raw.max())}, neither 0 nor 1")
    framework = framework or default_framework()
    if framework == "torch":
        return _to_torch(kind, shape, raw)
    array = raw.view(kind.storage).reshape(shape)
    if framework == "numpy":
        return array
    if framework == "kernbench":
        made = Tensor(shape, kind.name, name)
        made._host_buffer = array
        return made
    raise ValueError(f"framework is {framework!r}: expected 'torch', 'numpy' or 'kernbench'")


def copy_into(target: Any, source: Any) -> None:
    """Write the bits of ``source`` into an existing tensor of the same type and shape, of any framework.

    Raises:
        TypeError, ValueError: type or shape differ.
    """
    kind, shape = describe(target)
    if describe(source) != (kind, shape):
        other = describe(source)
        raise (TypeError if other[0] != kind else ValueError)(
            f"cannot copy {other[0]} {list(other[1])} into {kind} {list(shape)}"
        )
    framework = framework_of(target)
    if framework == "torch":
        import torch

        with torch.no_grad():
            target.copy_(source if is_torch(source) else _to_torch(kind, shape, to_bytes(source).data))
    elif framework == "numpy":
        if not isinstance(target, np.ndarray):
            raise TypeError("cannot copy into a numpy scalar: give an array")
        values = to_bytes(source).data.view(kind.storage).reshape(shape)
        _bits(target)[...] = _bits(values) if target.dtype == kind.storage else values
    elif framework_of(source) == "kernbench":
        target.copy_(source)
    else:
        target.copy_(to_bytes(source).data.view(kind.storage).reshape(shape))


def digest(weight: Any, chunk: int = CHUNK) -> str:
    """Hexadecimal xxh3-128 of type, shape and bytes in C order: the same for any layout, library or device.

    Not against forgery: it tells bytes apart that went wrong by accident.
    """
    kind, shape = describe(weight)
    state = start_digest(kind, shape)
    for piece in iter_bytes(weight, chunk):
        state.update(piece)
    return state.hexdigest()


def start_digest(kind: WireType, shape: Sequence[int]) -> Any:
    """The hash of :func:`digest` before the bytes: ``update`` it with them in C order, then ``hexdigest()``."""
    return xxhash.xxh3_128(f"{kind.name}{list(shape)}".encode())


def _array(weight: Any) -> NDArray[Any]:
    framework = framework_of(weight)
    if framework == "torch":
        return _from_torch(weight)
    return weight.numpy() if framework == "kernbench" else np.asarray(weight)


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The same elements as unsigned integers, which copy without a conversion; complex128 as it is."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize <= 8 else array


def _from_torch(weight: Any) -> NDArray[Any]:
    import torch

    if hasattr(weight, "full_tensor"):
        raise TypeError("a distributed tensor: call full_tensor() on every rank first, or give its to_local()")
    if weight.layout is not torch.strided or weight.is_quantized:
        raise TypeError(f"a {weight.layout} or quantised tensor: call to_dense() or dequantize() first")
    if weight.is_meta:
        raise TypeError("a tensor on the meta device has no values: materialise it first")
    kind = wire_type(weight.dtype)
    plain = weight.detach().resolve_conj().resolve_neg().cpu()
    if kind.itemsize > 8:
        return plain.numpy()
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.itemsize]
    return plain.view(bits).numpy().view(kind.storage)


def _to_torch(kind: WireType, shape: tuple[int, ...], raw: Bytes) -> Any:
    import torch

    kind_torch = getattr(torch, kind.name, None)
    if kind_torch is None:
        raise TypeError(f"this torch ({torch.__version__}) has no {kind}: decode with framework='numpy'")
    if not raw.flags.writeable or raw.ctypes.data % min(kind.itemsize, 16):
        raw = raw.copy()
    return torch.from_numpy(raw).view(kind_torch).reshape(shape)
