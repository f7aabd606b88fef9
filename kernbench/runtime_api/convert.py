"""Values from outside: Python numbers and lists, numpy arrays, torch tensors, anything with DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import DType, dtype


def is_torch(value: Any) -> bool:
    """Whether ``value`` is a torch tensor, without importing torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def to_numpy(value: Any) -> NDArray[Any]:
    """An array with the values and the element type of ``value``, sharing its memory where that is possible.

    Lists and numbers become int64, float32 or bool, as in torch.

    Raises:
        TypeError: no array can be made of it, or its element type is not known.
    """
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
    elif is_torch(value):
        array = _from_torch(value)
    elif hasattr(value, "__dlpack__"):
        array = np.from_dlpack(value)
    else:
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
    dtype(array.dtype)
    return array


def _from_torch(value: Any) -> NDArray[Any]:
    value = value.detach().cpu()
    kind = dtype(value.dtype)
    try:
        return value.numpy()
    except TypeError:  # bfloat16 and the 8-bit floats, which numpy itself does not have
        import torch

        bits = {1: torch.uint8, 2: torch.int16}[kind.itemsize]
        return value.contiguous().view(bits).numpy().view(kind.storage)


def cast(values: NDArray[Any], kind: DType) -> NDArray[Any]:
    """``values`` in the storage type of ``kind``, rounded to nearest even; the same array where nothing changes."""
    if values.dtype == kind.storage:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(kind.storage)
