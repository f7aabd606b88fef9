"""``torch.cuda.FloatTensor`` and its like: the names from before tensors had a ``dtype``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from kernbench.triton.patches import patched

_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _TensorType(type):
    """The class of such a name, which is one for ``isinstance`` too."""

    dtype: torch.dtype

    def __instancecheck__(cls, made: Any) -> bool:
        return isinstance(made, torch.Tensor) and made.dtype == cls.dtype and made.is_cuda

    def __call__(cls, *given: Any, **_: Any) -> torch.Tensor:
        """Of sizes an uninitialised tensor, else one of the values."""
        sizes = all(isinstance(size, int) for size in given) or isinstance(given[0], torch.Size)
        if sizes:
            return torch.empty(*(given or (0,)), dtype=cls.dtype, device="cuda")
        return torch.as_tensor(given[0], dtype=cls.dtype).to("cuda")


def type_of(tensor: torch.Tensor) -> str | None:
    """``tensor.type()`` of a tensor on the GPU."""
    name = _NAMES.get(tensor.dtype)
    return None if name is None else f"torch.cuda.{name}Tensor"


def dtype_of(name: Any) -> torch.dtype | None:
    """The element type that ``torch.cuda.FloatTensor`` or its name stands for; None of anything else."""
    if isinstance(name, _TensorType):
        return name.dtype
    text = name if isinstance(name, str) else ""
    return _DTYPES.get(text[11:-6]) if text.startswith("torch.cuda.") and text.endswith("Tensor") else None


def installed() -> AbstractContextManager[None]:
    """The classes, and ``torch.set_default_tensor_type`` for them: every new tensor is the GPU's anyway."""
    as_default = torch.set_default_tensor_type

    def set_default_tensor_type(t: Any) -> None:
        dtype = dtype_of(t)
        if dtype is None:
            as_default(t)
        else:
            torch.set_default_dtype(dtype)

    made = {name: _TensorType(f"{name}Tensor", (), {"dtype": dtype}) for name, dtype in _DTYPES.items()}
    changes: list[tuple[Any, str, Any]] = [(torch.cuda, f"{name}Tensor", cls) for name, cls in made.items()]
    return patched([*changes, (torch, "set_default_tensor_type", set_default_tensor_type)])
