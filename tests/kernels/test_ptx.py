"""Single PTX instructions on registers: modifiers that change the result, packed integers, and saturation."""

import numpy as np
import pytest

from kernbench.kernels.ptx import Program, UnknownInstruction


def run(opcode, *sources):
    """The bits of an instruction's result, as an unsigned number of as many bits as its sources have."""
    names = [f"${i}" for i in range(1, len(sources) + 1)]
    registers = {n: np.array([s.view(f"u{s.itemsize}")], np.uint64) for n, s in zip(names, sources, strict=True)}
    Program(f"{opcode} $0, {', '.join(names)};").run(registers)
    return int(registers["$0"][0])


def f32(x):
    return np.float32(x)


def u32(x):
    return np.uint32(x)


def of_f32(x):
    return int(np.float32(x).view(np.uint32))


@pytest.mark.parametrize(
    ("opcode", "sources", "expected"),
    [
        ("add.sat.s32", (u32(2**31 - 1), u32(1)), 2**31 - 1),
        ("sub.sat.s32", (u32(2**31), u32(1)), 2**31),
        ("add.s16x2", (u32(0x7FFF0001), u32(0x00010004)), 0x80000005),
        ("max.s16x2", (u32(0x0002FFFF), u32(0x00030004)), 0x00030004),
        ("min.u16x2", (u32(0x0002FFFF), u32(0x00030004)), 0x00020004),
        ("max.s16x2.relu", (u32(0x8002FFFF), u32(0x80030004)), 0x00000004),
        ("fma.rn.relu.f16", (np.float16(-1), np.float16(2), np.float16(0)), 0),
        ("cvt.rn.relu.f16.f32", (f32(np.nan),), 0x7E00),
        ("cvt.sat.f32.f32", (f32(3),), of_f32(1)),
        ("cvt.sat.f32.f32", (f32(np.nan),), 0),
        ("add.sat.f32", (f32(np.nan), f32(1)), 0),
        ("cvt.rzi.s64.f32", (f32(1e30),), 2**63 - 1),
        ("cvt.rzi.u64.f32", (f32(1e30),), 2**64 - 1),
        ("cvt.rzi.s32.f32", (f32(-3e9),), 2**31),
        ("min.f32", (f32(0.0), f32(-0.0)), 2**31),
        ("max.f32", (f32(-0.0), f32(0.0)), 0),
        # The exact result is just below the middle of two float16; rounded to float32 it lies on it.
        ("fma.rn.f16", tuple(np.array([0xB97F, 0x1D81, 0xACD3], np.uint16).view(np.float16)), 0xAD0F),
    ],
)
def test_instruction(opcode, sources, expected):
    assert run(opcode, *sources) == expected


@pytest.mark.parametrize("opcode", ["max.f32", "add.sat.u32", "mul.sat.s32", "add.relu.f16", "add.satfinite.f16"])
def test_what_is_not_known_is_refused(opcode):
    with pytest.raises(UnknownInstruction, match=opcode):
        Program(f"{opcode} $0, $1, $2{', $3' if opcode == 'max.f32' else ''};")
