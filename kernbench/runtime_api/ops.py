"""Arithmetic on tensors: built-in Triton kernels on the device, numpy on the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import DType, dtype
from kernbench.runtime_api import copies, layout
from kernbench.runtime_api.convert import cast, to_numpy

if TYPE_CHECKING:
    from kernbench.runtime_api.tensor import Tensor

Number = int | float | bool

_HOST: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "max": np.maximum,
    "min": np.minimum,
}
_erf: Callable[[NDArray[Any]], NDArray[Any]] = np.vectorize(math.erf, otypes=[np.float32])
_HOST_UNARY: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "exp": np.exp,
    "neg": np.negative,
    "gelu": lambda x: x * (0.5 * (1 + _erf(x / math.sqrt(2)))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def promote(a: DType, b: DType) -> DType:
    """The type of a result of ``a`` and ``b``: floats win over integers, wider over narrower, f16 with bf16 is f32."""
    if a == b:
        return a
    if a.is_floating_point != b.is_floating_point:
        return a if a.is_floating_point else b
    if a.is_floating_point and a.itemsize == b.itemsize:
        return dtype("f32")
    if a.is_floating_point:
        return max(a, b, key=lambda kind: kind.itemsize)
    return dtype(np.promote_types(a.storage, b.storage))


def binary(op: str, a: Any, b: Any, out: Tensor | None = None) -> Tensor:
    """``a op b`` with op one of add sub mul div max min; one of the two may be a number, ``out`` may be ``a``.

    Raises:
        RuntimeError: the tensors are not on one device, or their shapes do not fit.
    """
    from kernbench.runtime_api.tensor import Tensor

    if not isinstance(a, Tensor):
        return _number_first(op, a, b)
    other: Any = _scalar(b)
    if other is None:
        other = copies.as_tensor(b)
        _one_device(op, a, other)
        kind = promote(a.dtype, other.dtype)
        shape = layout.broadcast(a.shape, other.shape)
    else:
        kind = dtype("f32") if isinstance(other, float) and not a.is_floating_point() else a.dtype
        shape = a.shape
    if op == "div" and not kind.is_floating_point:
        kind = dtype("f32")
    if out is not None and (out.shape != shape or out.dtype != kind):
        raise RuntimeError(f"{op}_ in place: the result is {kind} {shape}, the tensor {out.dtype} {out.shape}")
    if a.is_cpu:
        return _on_host(_HOST[op], kind, out, a, other)
    from kernbench.kernels import builtin

    left = _shaped(a, shape, kind)
    right: Any = other
    if isinstance(other, Tensor):
        row = other.ndim == 1 and other.shape == shape[-1:] and other.is_contiguous()
        right = other.to(dtype=kind) if row else _shaped(other, shape, kind)
    made = like(a, shape, kind) if out is None or not out.is_contiguous() else out
    builtin.elementwise(op, made, left, right)
    return made if out is None or out is made else out.copy_(made)


def _number_first(op: str, a: Any, b: Tensor) -> Tensor:
    """``number op tensor``."""
    if op in ("add", "mul", "max", "min"):
        return binary(op, b, a)
    if op == "sub":
        return binary("add", binary("mul", b, -1), a)
    kind = b.dtype if b.is_floating_point() else dtype("f32")
    return binary(op, like(b, b.shape, kind).fill_(a), b)


def unary(op: str, x: Tensor) -> Tensor:
    """An activation: silu gelu gelu_tanh relu sigmoid tanh exp neg."""
    if x.is_cpu:
        return _on_host(_HOST_UNARY[op], x.dtype, None, x)
    from kernbench.kernels import builtin

    if op == "neg" and not x.is_floating_point():
        return binary("mul", x, -1)
    made = like(x, x.shape, x.dtype)
    builtin.activation(op, made, x.contiguous())
    return made


def rowwise(name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """softmax, layer_norm or rms_norm over the last axis."""
    if x.is_cpu:
        raise NotImplementedError(f"{name} of a host tensor: put it on the device first with .to('ahbm')")
    from kernbench.kernels import builtin

    made = like(x, x.shape, x.dtype)
    getattr(builtin, name)(made, x.contiguous(), *args, **kwargs)
    return made


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b (+ bias)``: vectors, matrices, and leading axes as torch has them.

    Raises:
        RuntimeError: the inner sizes differ, or the tensors are not on one device or of one dtype.
    """
    _one_device("matmul", a, b, *([] if bias is None else [bias]))
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError("matmul: both arguments need to be at least 1D")
    if a.dtype != b.dtype:
        raise RuntimeError(f"expected m1 and m2 to have the same dtype, but got: {a.dtype} != {b.dtype}")
    if a.shape[-1] != (b.shape[-2] if b.ndim > 1 else b.shape[0]):
        raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({_x(a.shape)} and {_x(b.shape)})")
    if b.ndim == 1:
        return matmul(a, b.unsqueeze(1), bias).squeeze(-1)
    if a.ndim == 1:
        return matmul(a.unsqueeze(0), b, bias).squeeze(-2)
    if b.ndim > 2:
        return _batched(a, b, bias)
    rows = a if a.ndim == 2 else a.reshape(-1, a.shape[-1])
    if a.is_cpu:
        product = np.matmul(*(t.numpy().astype(t.dtype.carrier, copy=False) for t in (rows, b)))
        if bias is not None:
            product = product + bias.numpy().astype(bias.dtype.carrier)
        made = _of_values(product, a.dtype)
    else:
        from kernbench.kernels import builtin

        made = like(a, (rows.shape[0], b.shape[1]), a.dtype)
        builtin.matmul(made, rows, b, None if bias is None else bias.contiguous())
    return made if a.ndim == 2 else made.view(*a.shape[:-1], b.shape[1])


def _batched(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    lead = layout.broadcast(a.shape[:-2], b.shape[:-2])
    left, right = a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:])
    made = like(a, (*lead, a.shape[-2], b.shape[-1]), a.dtype)
    for index in np.ndindex(*lead):
        made[index].copy_(matmul(left[index], right[index], bias))
    return made


def compare(op: Callable[[Any, Any], Any], a: Tensor, b: Any) -> Tensor:
    """A comparison; on device tensors of one element only, which are read for it."""
    if not a.is_cpu and a.numel() != 1:
        raise NotImplementedError("comparing device tensors: compare .cpu() of them")
    from kernbench.runtime_api.tensor import Tensor

    other = b.numpy() if isinstance(b, Tensor) else b if _scalar(b) is not None else to_numpy(b)
    return Tensor._of_array(np.asarray(op(_wide(a), other)))


def reduce(name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A numpy reduction of a host tensor, in f32 or wider."""
    from kernbench.runtime_api.tensor import Tensor

    if not x.is_cpu:
        raise NotImplementedError(
            f"{name}() of a device tensor has no built-in kernel: use .cpu().{name}(), or a Triton kernel"
        )
    values = np.asarray(getattr(np, name)(_wide(x), *args, **kwargs))
    keeps = values.dtype.kind == "f" and x.is_floating_point()
    return Tensor._of_array(cast(values, x.dtype) if keeps else values)


def _wide(x: Tensor) -> NDArray[Any]:
    return x.numpy().astype(x.dtype.carrier, copy=False)


def _on_host(fn: Callable[..., Any], kind: DType, out: Tensor | None, *args: Any) -> Tensor:
    wide = [x if _scalar(x) is not None else x.numpy().astype(kind.carrier, copy=False) for x in args]
    with np.errstate(all="ignore"):
        made = _of_values(fn(*wide), kind)
    return made if out is None else out.copy_(made)


def _of_values(values: NDArray[Any], kind: DType) -> Tensor:
    from kernbench.runtime_api.tensor import Tensor

    return Tensor._of_array(cast(np.asarray(values), kind))


def like(x: Tensor, shape: layout.Shape, kind: DType) -> Tensor:
    """A new tensor on ``x``'s device."""
    from kernbench.runtime_api.tensor import Tensor

    if x.is_cpu:
        return Tensor(shape, kind)
    return copies.driver(x).ctx.empty(shape, dtype=kind)


def _shaped(x: Tensor, shape: layout.Shape, kind: DType) -> Tensor:
    """``x`` cast and stretched to ``shape``, contiguous."""
    x = x.to(dtype=kind)
    return (x if x.shape == shape else x.expand(shape)).contiguous()


def _scalar(value: Any) -> Number | None:
    """``value`` as a Python number where it is one."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float) else None


def _one_device(what: str, *tensors: Tensor) -> None:
    places = {str(t.device) for t in tensors}
    if len(places) > 1:
        raise RuntimeError(
            f"{what}: expected all tensors to be on the same device, found {', '.join(sorted(places))}. "
            "Move host tensors with .to('ahbm')"
        )


def _x(shape: layout.Shape) -> str:
    return "x".join(map(str, shape))
