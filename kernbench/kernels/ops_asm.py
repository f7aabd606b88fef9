"""Inline PTX (``tl.inline_asm_elementwise``) on packed elements."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import device as devices
from kernbench.kernels.numerics import NARROW, narrow, widen
from kernbench.kernels.ops_int import in_full, itemsize
from kernbench.kernels.ops_shape import one, same_programs, whole
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, record_dtype, shape_of, unsupported
from kernbench.kernels.ptx import KNOWN, Bits, Program, Registers, UnknownInstruction
from kernbench.kernels.ttir import Op


def _unescaped(text: str) -> str:
    """A string as MLIR prints it: characters as two hexadecimal digits after a backslash, which itself comes twice."""
    return re.sub(r"\\([0-9A-Fa-f]{2}|\\)", lambda m: "\\" if m[1] == "\\" else chr(int(m[1], 16)), text)


def _raw(x: NDArray[Any], name: str) -> Bits:
    """Elements on their carrier as bits of their own width, in 64."""
    raw = narrow(x, name) if name in NARROW else np.ascontiguousarray(x)
    return raw.view(f"u{raw.dtype.itemsize}").astype(np.uint64)


def _carried(bits: Bits, name: str) -> NDArray[Any]:
    raw = np.ascontiguousarray(bits.astype(f"u{itemsize(name)}"))
    return widen(raw, name) if name in NARROW else raw.view(CARRIER[name])


@emits("tt.elementwise_inline_asm")
def emit_inline_asm(c: Compiler, op: Op) -> None:
    pack = int(op.attrs.get("packed_element", 1))
    try:
        program = Program(_unescaped(op.attrs["strings"][0]))
    except UnknownInstruction as unknown:
        raise unsupported(op, f"the PTX instruction '{unknown}'; known are {KNOWN}") from None
    outs = [c.slot(v) for v in op.results]
    slots, names = [c.slot(v) for v in op.operands], [element(v.type) for v in op.operands]
    shapes, results = [shape_of(v.type) for v in op.operands], [element(v.type) for v in op.results]
    shape = shape_of(op.results[0].type)
    if int(np.prod(shape)) % pack:
        raise unsupported(op, f"a block of {int(np.prod(shape))} elements, which pack={pack} does not divide")
    if not program.steps:

        def nothing(f: Frame) -> None:
            for out, name in zip(outs, results, strict=True):
                f.v[out] = np.zeros((1, *shape), CARRIER[name])

        return c.compute(op, nothing)

    if any("ctaid" not in place for place in program.places):
        c.repeats = False  # a time, or a place on one machine

    def step(f: Frame) -> None:
        held = [f.v[s] for s in slots]
        if shape:
            kinds = zip(held, shapes, names, strict=True)
            blocks = same_programs(*(whole(x, d, CARRIER[n]) for x, d, n in kinds)) if slots else []
        else:  # in a combine function, numbers are arrays of any shape
            blocks = [np.asarray(in_full(x, CARRIER[n]), CARRIER[n]) for x, n in zip(held, names, strict=True)]
        places = {name: _place(f, name) for name in program.places}
        lead = np.broadcast_shapes(
            *(x.shape[: x.ndim - len(shape)] for x in blocks), *(x.shape for x in places.values())
        )
        blocks = [np.broadcast_to(x, (*lead, *shape)) for x in blocks]
        of_one = int(np.prod(shape)) // pack
        groups = int(np.prod(lead)) * of_one
        registers: Registers = {n: np.repeat(np.broadcast_to(x, lead), of_one) for n, x in places.items()}
        number = 0
        for name in results:
            number += _registers(name, pack)[1]
        for block, name in zip(blocks, names, strict=True):
            lanes = _raw(block, name).reshape(groups, pack)
            each, count = _registers(name, pack)
            for r in range(count):
                packed = np.zeros(groups, np.uint64)
                for i in range(min(each, pack)):
                    packed |= lanes[:, r * each + i] << np.uint64(8 * itemsize(name) * i)
                registers[f"${number}"] = packed
                number += 1
        program.run(registers)
        number = 0
        for out, name in zip(outs, results, strict=True):
            each, count = _registers(name, pack)
            lanes = np.zeros((groups, pack), np.uint64)
            for r in range(count):
                value = np.broadcast_to(registers[f"${number}"], (groups,))
                for i in range(min(each, pack)):
                    lanes[:, r * each + i] = value >> np.uint64(8 * itemsize(name) * i)
                number += 1
            made = _carried(lanes, name).reshape(*(lead or (1,)), *shape)
            f.v[out] = made if shape or made.size > 1 else one(made.reshape(-1)[0])

    c.compute(op, step)
    kind = op.results[0].type
    c.record(op, "asm", int(np.prod(shape)) // pack * max(1, len(program.steps)), record_dtype(kind))


def _place(f: Frame, name: str) -> Bits:
    """A register that says where or when programs run, [programs or 1]. What time it is is only known when all values
    are: clocks count how often they have been read."""
    what, _, axis = name[1:].partition(".")
    if what.startswith(("clock", "globaltimer")):
        f.launch.ticks += 1
        return np.array([f.launch.ticks], np.uint64)
    if axis:
        at = f.launch.grid["xyz".index(axis)] if what == "nctaid" else f.pids["xyz".index(axis)]
        return np.atleast_1d(np.asarray(at)).astype(np.uint64)
    pes = devices.current().target.pes
    if what == "nsmid":
        return np.array([pes], np.uint64)
    x, y, z = (np.asarray(p, np.int64) for p in f.pids)
    return np.atleast_1d((x + f.launch.grid[0] * (y + f.launch.grid[1] * z)) % pes).astype(np.uint64)


def _registers(name: str, pack: int) -> tuple[int, int]:
    """How many elements of a type share a 32-bit register, and how many registers ``pack`` of them take."""
    each = max(1, 4 // itemsize(name))
    return each, -(-pack // each)
