"""``tl.device_print`` and ``tl.device_assert``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.ops_int import in_full, itemsize
from kernbench.kernels.ops_shape import whole
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, where
from kernbench.kernels.ttir import Op, Pointer, Tensor, Type


def _hexadecimal(kind: Type) -> Callable[[Any], str]:
    """One element as ``hex=True`` and pointers print it: integers in all their digits, floats as C's ``%a``."""
    name, elem = element(kind), kind.elem if isinstance(kind, Tensor) else kind
    if not isinstance(elem, Pointer) and not name.startswith("i"):
        return lambda x: float(x).hex()
    nbytes = 8 if isinstance(elem, Pointer) else itemsize(name)
    return lambda x: f"0x{int(x) % (1 << 8 * nbytes):0{2 * nbytes}x}"


def _printed(kind: Type, in_hex: bool, signed: bool) -> Callable[[Any], str]:
    """How an operand of one program is printed, a number or a block."""
    elem = kind.elem if isinstance(kind, Tensor) else kind
    if in_hex or isinstance(elem, Pointer):
        one = _hexadecimal(kind)
        every: Any = {"all": one}
        return lambda x: np.array2string(x, formatter=every) if isinstance(x, np.ndarray) else one(x)
    dtype = CARRIER[element(kind)]
    if signed or dtype.kind != "i":
        return str
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return lambda x: str(np.asarray(x, dtype).view(unsigned))


@emits("tt.print")
def emit_print(c: Compiler, op: Op) -> None:
    prefix = "".join(op.attrs.get("strings", ()))
    slots = [c.slot(v) for v in op.operands]
    signed = [bool(s) for s in op.attrs.get("isSigned", ())] or [True] * len(slots)
    shown = [_printed(v.type, bool(op.attrs.get("hex")), s) for v, s in zip(op.operands, signed, strict=True)]
    kinds = [(v.type, CARRIER[element(v.type)]) for v in op.operands]

    def step(f: Frame) -> None:
        for p in range(f.count):
            pid = ", ".join(map(str, f.program(p)))
            if not slots:
                print(f"pid ({pid}){prefix}")
            for s, (kind, dtype), show in zip(slots, kinds, shown, strict=True):
                x = f.v[s]
                if isinstance(kind, Tensor):
                    block = whole(x, kind.shape, dtype)
                    x = block[p if block.shape[0] > 1 else 0]
                elif isinstance(x, np.ndarray):
                    x = x[p]
                print(f"pid ({pid}){prefix}{show(x)}")

    c.effect(step)


@emits("tt.assert")
def emit_assert(c: Compiler, op: Op) -> None:
    message = "".join(op.attrs.get("strings", ())) or "assertion failed"
    a = c.slot(op.operands[0])

    def step(f: Frame) -> None:
        holds = np.asarray(in_full(f.v[a], np.bool_))
        if not holds.all():
            at = int(np.argmin(holds.reshape(holds.shape[0], -1).all(axis=1))) if holds.ndim else 0
            raise KernelFault(f"{where(op.loc)}: {message} (program {f.program(at)})")

    c.effect(step)
