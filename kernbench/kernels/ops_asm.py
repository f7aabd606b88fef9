"""Inline PTX (``tl.inline_asm_elementwise``): straight-line code of conversions and arithmetic on registers.

A register is an array of bits, one element for each group of packed elements. Instructions are read once, when the
kernel is compiled; one that is not known is refused then, by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import special
from kernbench.kernels.numerics import NARROW, narrow, widen
from kernbench.kernels.ops_int import itemsize
from kernbench.kernels.ops_shape import same_programs, whole
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, record_dtype, shape_of, unsupported
from kernbench.kernels.ttir import Op

Bits = NDArray[Any]
Registers = dict[str, Bits]

_FLOAT: dict[str, Any] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
_WIDTH = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "e4m3": 1, "e5m2": 1}
_LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "e4m3": 448.0, "e5m2": 57344.0}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs, "neg": np.negative, "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "rsqrt": special.rsqrt, "rcp": lambda x: (1 / x).astype(x.dtype), "not": np.invert,
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin, "max": np.fmax, "div": np.divide,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip
_ROUNDINGS = frozenset(["rm", "rmi", "rn", "rna", "rni", "rp", "rpi", "rz", "rzi"])
_MODIFIERS = _ROUNDINGS | {"approx", "ftz", "full", "lo", "relu", "sat", "satfinite"}


def _type_of(part: str) -> tuple[str, int] | None:
    """(kind, lanes) of a type suffix: ``f32``, ``f16x2``, ``u32``, ``b16`` ..."""
    found = re.fullmatch(r"(bf16|f16|f32|f64|e4m3|e5m2|tf32|[usb](?:8|16|32|64))(x2|x4)?", part)
    return (found[1], int((found[2] or "x1")[1:])) if found else None


def _as(x: Bits, kind: str) -> Any:
    """The low bits of a register as numbers: floats of at most 32 bits as float32."""
    if kind in ("f64", "s64", "u64", "b64"):
        return x.astype(np.uint64).view({"f": np.float64, "s": np.int64}.get(kind[0], np.uint64))
    if kind in ("f32", "tf32"):
        return x.astype(np.uint32).view(np.float32)
    if kind in _FLOAT:
        return x.astype(f"u{_WIDTH[kind]}").view(_FLOAT[kind]).astype(np.float32)
    width = int(kind[1:]) // 8
    return x.astype(f"u{width}").view(f"i{width}" if kind[0] == "s" else f"u{width}")


def _bits(x: Any, kind: str) -> Bits:
    if kind in _FLOAT:
        return np.ascontiguousarray(np.asarray(x).astype(_FLOAT[kind])).view(f"u{_WIDTH[kind]}").astype(np.uint64)
    if kind == "tf32":
        return np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    width = int(kind[1:]) // 8
    return np.asarray(x).astype(np.int64 if kind[0] == "s" else np.uint64).astype(f"u{width}").astype(np.uint64)


def _lanes(x: Bits, kind: str, lanes: int) -> list[Bits]:
    width = 8 * _WIDTH.get(kind, 4)
    return [(x >> np.uint64(width * i)) & np.uint64(2**width - 1) for i in range(lanes)] if lanes > 1 else [x]


def _joined(parts: list[Bits], kind: str) -> Bits:
    out = parts[0]
    for i, part in enumerate(parts[1:], 1):
        out = out | (part << np.uint64(8 * _WIDTH.get(kind, 4) * i))
    return out


def _convert(x: Any, source: str, target: str, how: set[str]) -> Any:
    """A number of one PTX type as another."""
    if target == "tf32":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
        low: Any = np.uint64(0 if "rz" in how else 0x1000)
        if "rn" in how:
            low = np.uint64(0xFFF) + ((bits >> np.uint64(13)) & np.uint64(1))
        finite = np.isfinite(x)
        made = np.where(finite, (bits + low) & np.uint64(0xFFFFE000), bits).astype(np.uint32)
        return made.view(np.float32)
    if target in _FLOAT:
        x = np.asarray(x)
        if target in _LARGEST and "satfinite" in how:
            x = np.clip(x, -_LARGEST[target], _LARGEST[target])
        if "relu" in how:
            x = np.where(x > 0, x, 0)
        if "rz" in how and target in _LARGEST and source in ("f32", "f64"):
            raw = x.astype(_FLOAT[target]).view(f"u{_WIDTH[target]}")
            back = raw.view(_FLOAT[target]).astype(np.float64)
            return (raw - (np.abs(back) > np.abs(x))).astype(raw.dtype).view(_FLOAT[target])
        return x
    if source in _FLOAT:
        whole_number = np.rint if "rni" in how else np.floor if "rmi" in how else np.ceil if "rpi" in how else np.trunc
        info = np.iinfo(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
        x = np.nan_to_num(whole_number(np.asarray(x, np.float64)), nan=0.0, posinf=info.max, neginf=info.min)
        top = np.nextafter(float(info.max), 0) if info.bits == 64 else info.max
        return np.clip(x, info.min, top).astype(info.dtype)
    if "sat" in how:
        info = np.iinfo(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
        return np.clip(x, info.min, info.max)
    return x


def _byte_permute(a: Bits, b: Bits, selector: Bits) -> Bits:
    both = (a & np.uint64(0xFFFFFFFF)) | (b << np.uint64(32))
    out = np.zeros_like(both)
    for i in range(4):
        pick = (selector >> np.uint64(4 * i)) & np.uint64(15)
        byte = (both >> ((pick & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        byte = np.where(pick & np.uint64(8), np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte)
        out |= byte << np.uint64(8 * i)
    return out


def _lookup(a: Bits, b: Bits, c: Bits, table: Bits) -> Bits:
    out = np.zeros_like(a | b | c)
    chosen = int(np.asarray(table).reshape(-1)[0])
    for i in range(8):
        if chosen >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out & np.uint64(0xFFFFFFFF)


def _instruction(opcode: str) -> Callable[..., Bits] | None:
    """What an opcode does to the bits of its sources; None where it is not known."""
    name, *parts = opcode.split(".")
    types = [t for p in parts if (t := _type_of(p))]
    how = {p for p in parts if not _type_of(p)}
    if not types or not how <= _MODIFIERS:
        return None
    kind, lanes = types[0]
    if name == "mov":
        return lambda x: x
    if name == "cvt" and len(types) == 2:
        source, target = types[1][0], kind
        if lanes == 2 and types[1][1] == 1:  # two sources: the first becomes the upper half
            return lambda hi, lo: _joined(
                [_bits(_convert(_as(x, source), source, target, how), target) for x in (lo, hi)], target
            )
        return lambda x: _joined(
            [_bits(_convert(_as(p, source), source, target, how), target) for p in _lanes(x, source, lanes)], target
        )
    if name == "prmt":
        return _byte_permute
    if name == "lop3":
        return _lookup
    if name in ("shl", "shr") and lanes == 1:
        last = int(kind[1:]) - 1
        shift = np.left_shift if name == "shl" else np.right_shift

        def shifted(x: Bits, by: Bits) -> Bits:
            number = _as(x, kind)
            amount = np.minimum(by, np.uint64(last)).astype(number.dtype)
            made = shift(number, amount)
            return _bits(made if kind[0] == "s" and name == "shr" else np.where(by > last, 0, made), kind)

        return shifted
    numbers: Callable[..., Any] | None = _UNARY.get(name) or _BINARY.get(name)
    if name in ("fma", "mad"):
        numbers = lambda x, y, z: (np.asarray(x, np.float64) * y + z) if kind in _FLOAT else x * y + z  # noqa: E731
    if numbers is None:
        return None
    fn = numbers

    def apply(*sources: Bits) -> Bits:
        split = [_lanes(s, kind, lanes) for s in sources]
        made = []
        for lane in zip(*split, strict=True):
            x = fn(*(_as(p, kind) for p in lane))
            made.append(_bits(np.clip(x, 0, 1) if "sat" in how else x, kind))
        return _joined(made, kind)

    return apply


_LITERAL = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[fF][0-9a-fA-F]{8}|\d+)U?")


def _source(text: str) -> str | Bits:
    """A register's name, or a literal's bits."""
    if not _LITERAL.fullmatch(text):
        return text
    text = text.rstrip("U")
    number = int(text[2:], 16) if text[:2] in ("0f", "0F") else int(text, 0)
    return np.array([number & 0xFFFFFFFFFFFFFFFF], np.uint64)


class _Program:
    """Inline PTX, read."""

    def __init__(self, op: Op) -> None:
        text = op.attrs["strings"][0].encode().decode("unicode_escape")
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        self.steps: list[tuple[Callable[..., Bits], str | tuple[str, str], list[str | Bits | list[str]]]] = []
        flat = re.sub(r"(?<![\w,\s$])\s*[{}](?=\s|$)", ";", re.sub(r"^\s*\{|\}\s*$", ";", text.strip()))
        for line in flat.split(";"):
            line = " ".join(line.split())
            if not line or line.startswith(".reg"):
                continue
            opcode, _, rest = line.partition(" ")
            operands = [o.strip() for o in re.findall(r"\{[^}]*\}|[^,]+", rest)]
            fn = (lambda *xs: xs[0]) if opcode.startswith("mov.") and "{" in rest else _instruction(opcode)
            if fn is None or not operands or line.startswith("@"):
                raise unsupported(
                    op, f"the PTX instruction '{line}'; known are mov, cvt, prmt, lop3, shifts, arithmetic"
                )
            if operands[0].startswith("{"):
                low, high = (r.strip() for r in operands[0].strip("{}").split(","))
                self.steps.append((fn, (low, high), [_source(operands[1])]))
            elif len(operands) > 1 and operands[1].startswith("{"):
                self.steps.append((fn, operands[0], [[r.strip() for r in operands[1].strip("{}").split(",")]]))
            else:
                self.steps.append((fn, operands[0], [_source(o) for o in operands[1:]]))

    def run(self, registers: Registers) -> None:
        half = np.uint64(16)
        for fn, target, sources in self.steps:
            given = []
            for s in sources:
                if isinstance(s, list):
                    given.append(registers[s[0]] | (registers[s[1]] << half))
                else:
                    given.append(registers[s] if isinstance(s, str) else s)
            made = fn(*given)
            if isinstance(target, tuple):
                registers[target[0]], registers[target[1]] = (
                    made & np.uint64(0xFFFF),
                    (made >> half) & np.uint64(0xFFFF),
                )
            else:
                registers[target] = made


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
    program = _Program(op)
    outs = [c.slot(v) for v in op.results]
    slots, names = [c.slot(v) for v in op.operands], [element(v.type) for v in op.operands]
    shapes, results = [shape_of(v.type) for v in op.operands], [element(v.type) for v in op.results]
    shape = shape_of(op.results[0].type)

    def step(f: Frame) -> None:
        blocks = same_programs(
            *(whole(f.v[s], d, CARRIER[n]) for s, d, n in zip(slots, shapes, names, strict=True))
        ) if slots else []  # fmt: skip
        programs = blocks[0].shape[0] if blocks else 1
        groups = programs * int(np.prod(shape)) // pack
        registers: Registers = {}
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
            f.v[out] = _carried(lanes, name).reshape(programs, *shape)

    c.compute(op, step)
    kind = op.results[0].type
    c.record(op, "asm", int(np.prod(shape)) // pack * max(1, len(program.steps)), record_dtype(kind))


def _registers(name: str, pack: int) -> tuple[int, int]:
    """How many elements of a type share a 32-bit register, and how many registers ``pack`` of them take."""
    each = max(1, 4 // itemsize(name))
    return each, -(-pack // each)
