"""The functions that run built-in kernels on tensors: checks, strides, and a launch."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernbench.kernels import device as devices
from kernbench.kernels.builtin import choice as picking
from kernbench.kernels.builtin import menu
from kernbench.kernels.launch import launch
from kernbench.memory import dtype


class ShapeError(ValueError):
    """Shapes that do not go together."""


class DTypeError(TypeError):
    """An element type for which no kernel is stored."""


def matmul(out: Any, a: Any, b: Any, bias: Any = None) -> None:
    """``out[M,N] = a[M,K] @ b[K,N] (+ bias[N])``, accumulated in f32. Any strides.

    Small outputs split K over PEs and add the f32 pieces up in a second launch; the pieces live in scratch memory.
    """
    m, k, n = _matmul_shape(out, a, b, bias)
    kind = _same("matmul", a=a, b=b, **({} if bias is None else {"bias": bias}))
    to = dtype(out.dtype).name
    if (kind, to) not in menu.MATMUL_TYPES:
        allowed = ", ".join(f"{i} -> {o}" for i, o in menu.MATMUL_TYPES)
        raise DTypeError(f"matmul: no kernel takes {kind} and gives {to}; there are {allowed}")
    if m == 0 or n == 0:
        return
    device = devices.current()
    choice = picking.matmul(m, n, k, kind, to, bias is not None, device.target)
    pieces = choice.grid[1]
    strides = (*a.stride(), *b.stride())
    given = [] if bias is None else [bias]
    if pieces == 1:
        launch(
            choice.kernel,
            choice.grid,
            [out, a, b, *given, m, n, k, *out.stride(), *strides, choice.width, choice.k_split],
        )
        return
    scratch = device.space.alloc(4 * pieces * m * n, "pieces of a split matmul", stream=device.stream)
    try:
        launch(choice.kernel, choice.grid, [scratch.base, a, b, m, n, k, n, 1, *strides, choice.width, choice.k_split])
        types = {"out_ptr": to, "pieces_ptr": "f32", "bias_ptr": kind if given else None}
        total = picking.tiled("sum_pieces", m, n, types, {}, menu.SUM_TILES, device.target)
        launch(total.kernel, total.grid, [out, scratch.base, *given, m, n, pieces, *out.stride()])
    finally:
        device.space.free(scratch)


def _matmul_shape(out: Any, a: Any, b: Any, bias: Any) -> tuple[int, int, int]:
    """(M, K, N)."""
    shapes = [tuple(t.shape) for t in (out, a, b)]
    ok = all(len(s) == 2 for s in shapes)
    ok = ok and shapes[1][1] == shapes[2][0] and shapes[0] == (shapes[1][0], shapes[2][1])
    ok = ok and (bias is None or (tuple(bias.shape) == shapes[0][1:] and _unit(bias)))
    if not ok:
        last = "" if bias is None else f", bias {tuple(bias.shape)}"
        raise ShapeError(
            f"matmul: expected out [M,N], a [M,K], b [K,N] and a contiguous bias [N] or none, "
            f"got out {shapes[0]}, a {shapes[1]}, b {shapes[2]}{last}"
        )
    return shapes[1][0], shapes[1][1], shapes[2][1]


def silu_mul(out: Any, gate: Any, up: Any = None) -> None:
    """``out = silu(gate) * up``. Without ``up``, the last axis of ``gate`` holds [gate | up], each as wide as out."""
    if up is None:
        width = out.shape[-1]
        if tuple(gate.shape) != (*out.shape[:-1], 2 * width):
            raise ShapeError(
                f"silu_mul: without up, gate must be {(*out.shape[:-1], 2 * width)}, [gate | up] for an out of "
                f"{tuple(out.shape)}; got {tuple(gate.shape)}"
            )
        gate, up = _Half(gate, 0), _Half(gate, width)
    kind = _same("silu_mul", out=out, gate=gate, up=up)
    r, c, strides = _rows("silu_mul", out=out, gate=gate, up=up)
    types = {"out_ptr": kind, "gate_ptr": kind, "up_ptr": kind}
    _tiled("silu_mul", "silu_mul", r, c, types, {}, [out, gate, up], strides)


class _Half:
    """One half of a fused [gate | up] tensor."""

    def __init__(self, whole: Any, start: int) -> None:
        self.dtype = whole.dtype
        self.shape = (*whole.shape[:-1], whole.shape[-1] // 2)
        self._strides = tuple(whole.stride())
        self._address = int(whole.data_ptr()) + start * self._strides[-1] * dtype(whole.dtype).itemsize

    def data_ptr(self) -> int:
        return self._address

    def stride(self) -> tuple[int, ...]:
        return self._strides


def elementwise(op: str, out: Any, a: Any, b: Any) -> None:
    """``out = op(a, b)``, op one of add sub mul div max min. ``b`` is a tensor of out's shape, a vector along its last
    axis, or a number. max and min propagate NaN."""
    name = f"elementwise '{op}'"
    if op not in menu.OPS:
        raise ValueError(f"elementwise: there is no operation '{op}'; there are {', '.join(menu.OPS)}")
    if not hasattr(b, "data_ptr"):
        kind = _same(name, out=out, a=a)
        r, c, strides = _rows(name, out=out, a=a)
        number: int | float = float(b) if dtype(kind).is_floating_point else int(b)
        types = {"out_ptr": kind, "a_ptr": kind, "b": menu.number_type(kind)}
        _tiled(name, "binary_number", r, c, types, {"OP": op}, [out, a, number], strides)
        return
    kind = _same(name, out=out, a=a, b=b)
    if tuple(b.shape) != tuple(out.shape) and tuple(b.shape) == tuple(out.shape)[-1:]:
        b = _Repeated(b, out.shape)
    r, c, strides = _rows(name, out=out, a=a, b=b)
    types = {"out_ptr": kind, "a_ptr": kind, "b_ptr": kind}
    _tiled(name, "binary", r, c, types, {"OP": op}, [out, a, b], strides)


class _Repeated:
    """A vector seen as every row of a larger tensor."""

    def __init__(self, vector: Any, shape: Sequence[int]) -> None:
        self.dtype, self.shape, self._vector = vector.dtype, tuple(shape), vector

    def data_ptr(self) -> int:
        return int(self._vector.data_ptr())

    def stride(self) -> tuple[int, ...]:
        return (*(0 for _ in self.shape[:-1]), *self._vector.stride())


def combine(op: str, dst: Any, src: Any) -> None:
    """``dst = op(dst, src)``, op one of sum prod max min."""
    names = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}
    if op not in names:
        raise ValueError(f"combine: there is no operation '{op}'; there are {', '.join(names)}")
    elementwise(names[op], dst, dst, src)


def activation(op: str, out: Any, x: Any) -> None:
    """``out = op(x)``, op one of silu gelu gelu_tanh relu sigmoid tanh exp neg."""
    if op not in menu.ACTIVATIONS:
        raise ValueError(f"activation: there is no operation '{op}'; there are {', '.join(menu.ACTIVATIONS)}")
    kind = _same(op, out=out, x=x)
    r, c, strides = _rows(op, out=out, x=x)
    _tiled(op, "unary", r, c, {"out_ptr": kind, "x_ptr": kind}, {"OP": op}, [out, x], strides)


def fill(out: Any, value: int | float | bool) -> None:
    """Set every element."""
    kind = dtype(out.dtype)
    r, c, strides = _rows("fill", out=out)
    raw = np.array([value]).astype(kind.storage).tobytes()
    (pattern,) = struct.unpack(f"<{ {1: 'b', 2: 'h', 4: 'i', 8: 'q'}[kind.itemsize] }", raw)
    types: dict[str, str | None] = {"out_ptr": menu.BITS[kind.itemsize], "value": "i64"}
    _tiled("fill", "fill", r, c, types, {}, [out, pattern], strides)


def copy(out: Any, src: Any) -> None:
    """``out = src``, cast to out's dtype. Any strides; equal shapes."""
    if tuple(out.shape) != tuple(src.shape):
        raise ShapeError(f"copy: shapes differ, out is {tuple(out.shape)} and src is {tuple(src.shape)}")
    to, kind = dtype(out.dtype), dtype(src.dtype)
    if to.name == kind.name:
        types = {"out_ptr": menu.BITS[to.itemsize], "src_ptr": menu.BITS[to.itemsize]}
    elif (kind.name, to.name) in set(menu.cast_types()):
        types = {"out_ptr": to.name, "src_ptr": kind.name}
    else:
        raise DTypeError(f"copy: no kernel casts {kind.name} to {to.name}; go through f32")
    shape, strides = _collapse(tuple(out.shape), [tuple(out.stride()), tuple(src.stride())])
    while len(shape) < 3:
        shape, strides = (1, *shape), [(0, *s) for s in strides]
    if 0 in shape:
        return
    device = devices.current()
    choice = picking.tiled("copy", shape[-2], shape[-1], dict(types), {}, menu.COPY_TILES, device.target)
    outer = shape[:-3]
    for index in np.ndindex(*outer):
        addresses = [
            int(t.data_ptr()) + dtype(t.dtype).itemsize * sum(i * s for i, s in zip(index, stride, strict=False))
            for t, stride in zip((out, src), strides, strict=True)
        ]
        inner = [s for stride in strides for s in stride[-3:]]
        launch(choice.kernel, (*choice.grid[:2], shape[-3]), [*addresses, shape[-2], shape[-1], *inner])


def softmax(out: Any, x: Any) -> None:
    """Softmax over the last axis."""
    kind = _same("softmax", out=out, x=x)
    _by_row("softmax", "softmax", {"out_ptr": kind, "x_ptr": kind}, {}, out, x, [], [])


def layer_norm(out: Any, x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> None:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis; weight and bias are vectors or None."""
    if bias is not None and weight is None:
        raise ShapeError("layer_norm: a bias without a weight is not stored; give a weight of ones")
    _norm("layer_norm", True, out, x, weight, bias, eps)


def rms_norm(out: Any, x: Any, weight: Any = None, eps: float = 1e-6) -> None:
    """``x / sqrt(mean(x*x) + eps) * weight`` over the last axis; weight is a vector or None."""
    _norm("rms_norm", False, out, x, weight, None, eps)


def _norm(name: str, centre: bool, out: Any, x: Any, weight: Any, bias: Any, eps: float) -> None:
    given = {k: v for k, v in (("weight", weight), ("bias", bias)) if v is not None}
    kind = _same(name, out=out, x=x, **given)
    for what, vector in given.items():
        if tuple(vector.shape) != tuple(x.shape[-1:]) or not _unit(vector):
            raise ShapeError(f"{name}: {what} must be contiguous {tuple(x.shape[-1:])}, got {tuple(vector.shape)}")
    types = {"out_ptr": kind, "x_ptr": kind, "weight_ptr": kind if weight is not None else None}
    types |= {"bias_ptr": kind if bias is not None else None, "eps": "f32"}
    _by_row(name, "norm", types, {"CENTRE": centre}, out, x, list(given.values()), [float(eps)])


def _by_row(
    name: str,
    kernel: str,
    types: Mapping[str, str | None],
    constants: Mapping[str, menu.Constant],
    out: Any,
    x: Any,
    vectors: list[Any],
    numbers: list[float],
) -> None:
    _float_only(name, types)
    r, c, strides = _rows(name, False, out=out, x=x)
    if r == 0 or c == 0:
        return
    choice = picking.rows(kernel, r, c, types, constants, devices.current().target)
    launch(choice.kernel, choice.grid, [out, x, *vectors, r, c, *strides, *numbers])


def _tiled(
    name: str,
    kernel: str,
    r: int,
    c: int,
    types: Mapping[str, str | None],
    constants: Mapping[str, menu.Constant],
    args: list[Any],
    strides: list[int],
) -> None:
    if kernel in ("unary", "silu_mul"):
        _float_only(name, types)
    elif kernel.startswith("binary") and constants["OP"] not in menu.OP_TYPES.get(str(types["out_ptr"]), ()):
        raise DTypeError(
            f"{name}: no kernel for {types['out_ptr']}; there are "
            + ", ".join(kind for kind, ops in menu.OP_TYPES.items() if constants["OP"] in ops)
        )
    if r == 0 or c == 0:
        return
    choice = picking.tiled(kernel, r, c, types, constants, menu.FLAT_TILES, devices.current().target)
    launch(choice.kernel, choice.grid, [*args, r, c, *strides])


def _float_only(name: str, types: Mapping[str, str | None]) -> None:
    if types["out_ptr"] not in menu.FLOATS:
        raise DTypeError(f"{name}: no kernel for {types['out_ptr']}; there are {', '.join(menu.FLOATS)}")


def _same(name: str, **tensors: Any) -> str:
    """The one dtype of all tensors."""
    kinds = {what: dtype(t.dtype).name for what, t in tensors.items()}
    if len(set(kinds.values())) > 1:
        given = ", ".join(f"{what} {kind}" for what, kind in kinds.items())
        raise DTypeError(f"{name}: expected one dtype, got {given}; cast with copy first")
    return next(iter(kinds.values()))


def _unit(vector: Any) -> bool:
    return vector.shape[0] <= 1 or vector.stride()[0] == 1


def _rows(name: str, flatten: bool = True, **tensors: Any) -> tuple[int, int, list[int]]:
    """(rows, columns, row stride of each tensor) of tensors of one shape whose last axis is contiguous. With
    ``flatten`` the order of axes is free and what is contiguous altogether is one long row; without it, columns are the
    last axis."""
    shapes = {what: tuple(t.shape) for what, t in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"{name}: shapes differ: {', '.join(f'{what} {shape}' for what, shape in shapes.items())}")
    shape = next(iter(shapes.values()))
    strides = [tuple(t.stride()) for t in tensors.values()]
    if 0 in shape:
        return 0, 0, []
    if flatten:
        order = sorted(range(len(shape)), key=lambda axis: -strides[0][axis])
        shape, strides = _collapse(tuple(shape[i] for i in order), [tuple(s[i] for i in order) for s in strides])
        if len(shape) == 1 and any(s[0] != 1 for s in strides):
            shape, strides = (shape[0], 1), [(s[0], 1) for s in strides]
    elif shape:
        lead, leads = _collapse(shape[:-1], [s[:-1] for s in strides])
        last = [s[-1] for s in strides] if shape[-1] > 1 else [1] * len(strides)
        shape, strides = (*lead, shape[-1]), [(*s, end) for s, end in zip(leads, last, strict=True)]
    while len(shape) < 2:
        shape, strides = (1, *shape) if shape else (1, 1), [(0, *s) if s else (0, 1) for s in strides]
    if len(shape) > 2 or any(s[1] != 1 for s in strides):
        given = ", ".join(f"{what} {tuple(t.stride())}" for what, t in tensors.items())
        raise ShapeError(
            f"{name}: expected tensors whose last axis is contiguous and whose other axes have one common stride, got "
            f"strides {given} for shape {next(iter(shapes.values()))}; make them contiguous with copy first"
        )
    return shape[0], shape[1], [s[0] for s in strides]


def _collapse(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merge neighbouring axes that every tensor walks as if they were one, and drop those of size 1."""
    kept: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if kept and all(walk[-1] == stride[axis] * size for walk, stride in zip(walks, strides, strict=True)):
            kept[-1] *= size
            for walk, stride in zip(walks, strides, strict=True):
                walk[-1] = stride[axis]
        else:
            kept.append(size)
            for walk, stride in zip(walks, strides, strict=True):
                walk.append(stride[axis])
    if not kept:
        return (1,), [(1,) for _ in strides]
    return tuple(kept), [tuple(walk) for walk in walks]
