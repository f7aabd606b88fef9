"""Are tensor descriptors what the hardware that reads through them can take?

Triton asks of ``tl.make_tensor_descriptor`` and of a host's ``TensorDescriptor`` that the base lies on 16 bytes, that
all strides but the last are multiples of 16 bytes, and that the last axis is contiguous; it is what CUDA's
``cuTensorMapEncodeTiled`` requires of global memory. A kernel that breaks the rule works here and fails on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernbench.kernels.descriptors import MARK
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.ops_int import itemsize
from kernbench.kernels.plan import Compiler, Frame, element, emits, where
from kernbench.kernels.ttir import Op, Pointer

ALIGNED = 16
"""Bytes."""


@emits(MARK)
def emit_mark(c: Compiler, op: Op) -> None:
    """Nothing happens where a descriptor is made: the checks look at it."""


def alignment(c: Compiler, op: Op) -> None:
    """Fault where the descriptor that an operation marks is misaligned."""
    pointer = op.operands[0].type
    assert isinstance(pointer, Pointer)
    width = itemsize(element(pointer.pointee))
    base, *strides = (c.slot(v) for v in op.operands)
    argument = c.argument(op.operands[0])
    target = f"'{argument}'" if argument else "memory"

    def fault(f: Frame, at: int, text: str, advice: str) -> KernelFault:
        return KernelFault(
            f"{where(op.loc)}: kernel '{f.launch.name}', program {f.program(at)}: misaligned descriptor of "
            f"{target}: {text}. Tensor descriptors (TMA) need a base and strides that "
            f"are multiples of {ALIGNED} bytes and a last stride of 1. {advice}"
        )

    def step(f: Frame) -> None:
        addresses = _column(f.v[base])
        for at in np.flatnonzero(addresses % ALIGNED)[:1].tolist():
            address = int(addresses[at])
            owner = f.launch.space.find(address)
            start = f" is byte {address - owner.base} of '{owner.name}'," if owner is not None else ""
            raise fault(
                f,
                at,
                f"its base{start} address {address:#x}, no multiple of {ALIGNED}",
                "Start it at an aligned element.",
            )
        for axis, slot in enumerate(strides):
            values = _column(f.v[slot])
            last = axis == len(strides) - 1
            for at in np.flatnonzero(values != 1 if last else values * width % ALIGNED)[:1].tolist():
                stride = int(values[at])
                if last:
                    raise fault(f, at, f"the stride of its last axis is {stride}", "Permute the axes or copy it first.")
                raise fault(
                    f,
                    at,
                    f"the stride of axis {axis} is {stride} elements of {width} bytes, {stride * width} bytes, no "
                    f"multiple of {ALIGNED}",
                    f"Pad the rows to a multiple of {ALIGNED // width} elements, or load through pointers.",
                )

    c.check(step, op.operands)


def _column(x: Any) -> np.ndarray:
    return np.asarray(x, np.int64).reshape(-1)
