"""``tl.dot_scaled``: products of microscaled blocks (OCP MX formats 1.0, and nvfp4), each scale shared along K."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.ops_reduce import product
from kernbench.kernels.ops_shape import whole
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, join, shape_of, unsupported
from kernbench.kernels.recorder import RowKind
from kernbench.kernels.ttir import Op, Value
from kernbench.sim_engine.oplog import OpKind

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The values of a 4-bit float by its bits."""
_F8: dict[str, Any] = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
# The array has no rate of its own for 4-bit floats: they run as 8-bit ones.
_RECORD = {"e2m1": "f8e4m3", "e4m3": "f8e4m3", "e5m2": "f8e5m2", "fp16": "f16", "bf16": "bf16"}

_BITS = {"e2m1": 4, "e4m3": 8, "e5m2": 8, "fp16": 16, "bf16": 16}
# The wider of two formats sets the rate of their product.


def unpacked(x: NDArray[np.int8], axis: int) -> NDArray[np.float32]:
    """Two 4-bit floats from each byte, the low half first along ``axis`` (counted from the end, negative)."""
    raw = x.view(np.uint8)
    both = np.stack([raw & 15, raw >> 4], axis=axis)
    shape = list(x.shape)
    shape[axis] *= 2
    return E2M1[both.reshape(shape)]


def scale_values(x: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Scales as float32: bytes are powers of two biased by 127 (E8M0, 255 is NaN), floats are what they are."""
    if name != "i8":
        return x.astype(np.float32)
    exponent = x.view(np.uint8).astype(np.int32)
    return np.where(exponent == 255, np.float32(np.nan), np.ldexp(np.float32(1), exponent - 127)).astype(np.float32)


class _Operand:
    """One side: its block, its scales (or none), and its format."""

    def __init__(self, c: Compiler, op: Op, side: str, value: Value, scale: Value | None) -> None:
        self.format = str(op.attrs[side])
        if self.format not in _RECORD:
            raise unsupported(op, f"the format {self.format}; use {', '.join(_RECORD)}")
        self.slot, self.shape, self.name = c.slot(value), shape_of(value.type), element(value.type)
        self.k_axis = -1 if side == "lhs" else -2
        packed_along_k = bool(op.attrs.get(f"{side}_k_pack", True))
        self.pack_axis = self.k_axis if packed_along_k else -3 - self.k_axis
        self.scale = None if scale is None else (c.slot(scale), shape_of(scale.type), element(scale.type))

    def values(self, f: Frame) -> NDArray[np.float32]:
        x = whole(f.v[self.slot], self.shape, CARRIER[self.name])
        if self.format == "e2m1":
            x = unpacked(np.ascontiguousarray(x), self.pack_axis)
        elif self.name == "i8":
            x = np.ascontiguousarray(x).view(_F8[self.format]).astype(np.float32)
        if self.scale is None:
            return x
        slot, shape, name = self.scale
        scales = scale_values(np.ascontiguousarray(whole(f.v[slot], shape, CARRIER[name])), name)
        scales = np.repeat(scales, x.shape[self.k_axis] // shape[-1], axis=-1)
        return x * (scales if self.k_axis == -1 else np.swapaxes(scales, -1, -2))


@emits("tt.dot_scaled")
def emit_dot_scaled(c: Compiler, op: Op) -> None:
    scaled = op.attrs.get("groups", ())
    values = list(op.operands)
    a = values.pop(0)
    a_scale = values.pop(0) if 1 in scaled else None
    b = values.pop(0)
    b_scale = values.pop(0) if len(values) > 1 else None
    (acc,) = values
    left, right = _Operand(c, op, "lhs", a, a_scale), _Operand(c, op, "rhs", b, b_scale)
    start, out, kind = c.slot(acc), c.slot(op.results[0]), op.results[0].type

    def step(f: Frame) -> None:
        f.v[out] = product(left.values(f), right.values(f), element(kind)) + f.v[start]

    c.compute(op, step)
    *batch, m, n = shape_of(kind)
    k = left.shape[-1] * (2 if left.format == "e2m1" and left.pack_axis == -1 else 1)
    size = (int(np.prod(batch, dtype=np.int64)) * m, n, k)
    wider = max(left, right, key=lambda side: _BITS[side.format])
    row = RowKind(OpKind.GEMM, c.line(op.loc), "dot_scaled", _RECORD[wider.format], 0, size)
    sources, acc_dep, target = c.deps(op.operands), c.dep(acc), c.dep(op.results[0])

    def record(f: Frame) -> None:
        chained = acc_dep != 0 and f.recorder.is_gemm(f.d[acc_dep])
        f.d[target] = f.recorder.add(row, join(f.d, sources), f.members, chained=chained)

    c.recorded(record)
