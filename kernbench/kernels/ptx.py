"""PTX, as far as inline assembly in kernels uses it: straight-line code on registers, with predicates.

A register is an array of bits, one element for each group of packed elements; a predicate register holds 0 or 1.
Instructions are read once, when a kernel is compiled; one that is not known is refused then.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import directed, special

Bits = NDArray[Any]
Registers = dict[str, Bits]

_FLOAT: dict[str, Any] = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f32": np.float32,
    "f64": np.float64,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
_WIDTH = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "e4m3": 1, "e5m2": 1}
_LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "e4m3": 448.0, "e5m2": 57344.0, "e2m1": 6.0}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs, "neg": np.negative, "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "rsqrt": special.rsqrt, "rcp": lambda x: (1 / x).astype(x.dtype), "not": np.invert,
    "popc": np.bitwise_count, "clz": lambda x: _leading_zeros(x), "brev": lambda x: _reversed(x),
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.fmin, "max": np.fmax, "div": np.divide,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "copysign": lambda x, y: np.copysign(y, x),
    "rem": lambda x, y: x - y * _quotient(x, y),
}  # fmt: skip
_ROUNDINGS = frozenset(["rm", "rmi", "rn", "rna", "rni", "rp", "rpi", "rz", "rzi"])
_MODIFIERS = _ROUNDINGS | {"approx", "ftz", "full", "lo", "NaN", "relu", "sat", "satfinite"}
_TOWARDS = {"rm": "rd", "rp": "ru", "rz": "rz"}
"""PTX's directed roundings by the names that libdevice has for them."""
_WHOLE: dict[str, Callable[[Any], Any]] = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNSIGNED_COMPARE = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
KNOWN = "mov, cvt, selp, setp, prmt, lop3, bfe, bfi, dp4a, shifts, arithmetic, each also under a predicate"
"""For messages."""


def _type_of(part: str) -> tuple[str, int] | None:
    """(kind, lanes) of a type suffix: ``f32``, ``f16x2``, ``u32``, ``b16`` ..."""
    found = re.fullmatch(r"(bf16|f16|f32|f64|e4m3|e5m2|e2m1|tf32|[usb](?:8|16|32|64))(x2|x4)?", part)
    return (found[1], int((found[2] or "x1")[1:])) if found else None


def _as(x: Bits, kind: str) -> Any:
    """The low bits of a register as numbers: floats of at most 32 bits as float32."""
    if kind in ("f64", "s64", "u64", "b64"):
        return x.astype(np.uint64).view({"f": np.float64, "s": np.int64}.get(kind[0], np.uint64))
    if kind in ("f32", "tf32"):
        return x.astype(np.uint32).view(np.float32)
    if kind == "e2m1":
        return (x & np.uint64(15)).astype(np.uint8).view(_FLOAT[kind]).astype(np.float32)
    if kind in _FLOAT:
        return x.astype(f"u{_WIDTH[kind]}").view(_FLOAT[kind]).astype(np.float32)
    width = int(kind[1:]) // 8
    return x.astype(f"u{width}").view(f"i{width}" if kind[0] == "s" else f"u{width}")


def _bits(x: Any, kind: str) -> Bits:
    if kind == "e2m1":  # no NaN: PTX makes it the largest number
        number = np.where(np.isnan(x), _LARGEST[kind], x).astype(_FLOAT[kind])
        return np.ascontiguousarray(number).view(np.uint8).astype(np.uint64) & np.uint64(15)
    if kind in _FLOAT:
        return np.ascontiguousarray(np.asarray(x).astype(_FLOAT[kind])).view(f"u{_WIDTH[kind]}").astype(np.uint64)
    if kind == "tf32":
        return np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    width = int(kind[1:]) // 8
    return np.asarray(x).astype(np.int64 if kind[0] == "s" else np.uint64).astype(f"u{width}").astype(np.uint64)


def _lane_bits(kind: str) -> int:
    if kind in ("e2m1", "tf32"):
        return 4 if kind == "e2m1" else 32
    return 8 * _WIDTH[kind] if kind in _WIDTH else int(kind[1:])


def _lanes(x: Bits, kind: str, lanes: int) -> list[Bits]:
    width = _lane_bits(kind)
    return [(x >> np.uint64(width * i)) & np.uint64(2**width - 1) for i in range(lanes)] if lanes > 1 else [x]


def _joined(parts: list[Bits], kind: str) -> Bits:
    out = parts[0]
    for i, part in enumerate(parts[1:], 1):
        out = out | (part << np.uint64(_lane_bits(kind) * i))
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
    whole = next((_WHOLE[h] for h in how if h in _WHOLE), None)
    towards = next((_TOWARDS[h] for h in how if h in _TOWARDS), "")
    if target in _FLOAT:
        x = np.asarray(x if whole is None else whole(x))
        if towards and target not in _LARGEST:
            return directed.converted(towards, _FLOAT[target])(x)
        if target in _LARGEST and "satfinite" in how:
            x = np.clip(x, -_LARGEST[target], _LARGEST[target])
        if "sat" in how:
            x = _between_0_and_1(x)
        if "relu" in how:
            x = _not_negative(x)
        if "rz" in how and target in _LARGEST and source in ("f32", "f64"):
            raw = x.astype(_FLOAT[target]).view(f"u{_WIDTH[target]}")
            back = raw.view(_FLOAT[target]).astype(np.float64)
            return (raw - (np.abs(back) > np.abs(x))).astype(raw.dtype).view(_FLOAT[target])
        return x
    if source in _FLOAT:
        info = np.iinfo(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
        x = np.nan_to_num((whole or np.trunc)(np.asarray(x, np.float64)), nan=0.0, posinf=info.max, neginf=info.min)
        above = x >= float(info.max)
        return np.where(above, info.max, np.maximum(np.where(above, 0, x), info.min).astype(info.dtype))
    if "sat" in how:
        info = np.iinfo(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
        return np.clip(x, info.min, info.max)
    return x


def _between_0_and_1(x: Any) -> Any:
    """``.sat`` of floats, which makes zeros of NaNs."""
    return np.clip(np.where(np.isnan(x), x.dtype.type(0), x), 0, 1)


def _not_negative(x: Any) -> Any:
    """``.relu``, which leaves NaNs."""
    return np.where(x <= 0, x.dtype.type(0), x)


def _saturated(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``.sat`` of 32-bit integers."""
    info = np.iinfo(np.int32)
    return lambda x, y: np.clip(fn(x.astype(np.int64), y.astype(np.int64)), info.min, info.max)


def _extreme(name: str, keeps_nan: bool) -> Callable[[Any, Any], Any]:
    """``min`` or ``max``, for which -0.0 is less than 0.0."""
    pick = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[name][keeps_nan]

    def apply(x: Any, y: Any) -> Any:
        zero = -(-x + -y) if name == "min" else x + y
        return np.where((x == 0) & (y == 0), zero, pick(x, y))

    return apply


def _quotient(x: Any, y: Any) -> Any:
    """Of integers, rounded towards zero as PTX has it; of floats, exact."""
    if x.dtype.kind == "f":
        return x / y
    with np.errstate(divide="ignore"):
        floor = x // y
        return floor + ((x % y != 0) & ((x < 0) != (y < 0)))


def _leading_zeros(x: Any) -> Any:
    bits, left = 8 * x.dtype.itemsize, x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    return sum(((left >> np.uint64(k)) == 0).astype(np.uint64) for k in range(bits))


def _reversed(x: Any) -> Any:
    bits, left = 8 * x.dtype.itemsize, x.astype(np.uint64)
    return sum(((left >> np.uint64(k)) & np.uint64(1)) << np.uint64(bits - 1 - k) for k in range(bits))


def _upper_half(x: Any, y: Any) -> Any:
    """The upper half of the product of 16- or 32-bit integers."""
    wide = np.int64 if x.dtype.kind == "i" else np.uint64
    return (x.astype(wide) * y.astype(wide)) >> wide(8 * x.dtype.itemsize)


def _funnel(low: Bits, high: Bits, by: Bits, left: bool, wraps: bool) -> Bits:
    """A word out of two that are shifted as one: the upper one where it goes left, else the lower one."""
    by = by & np.uint64(31) if wraps else np.minimum(by, np.uint64(32))
    word = np.uint64(0xFFFFFFFF)
    both = (low & word) | (high << np.uint64(32))
    return (((both << by) >> np.uint64(32)) if left else (both >> by)) & word


def _field(x: Bits, start: Bits, size: Bits, signed: bool) -> Bits:
    """Some bits of a word. Where they reach beyond it, it counts as extended by its sign, or by zeros."""
    start, size = (np.minimum(n & np.uint64(255), np.uint64(32)).astype(np.int64) for n in (start, size))
    word = (x & np.uint64(0xFFFFFFFF)).astype(np.int64)
    if signed:
        word = np.where(word >> 31 != 0, word - (1 << 32), word)
    part = (word >> start) & ((np.int64(1) << size) - 1)
    if signed:
        top = np.minimum(start + size - 1, 31)
        part = np.where((size > 0) & ((word >> top) & 1 != 0), part - (np.int64(1) << size), part)
    return part.astype(np.uint64) & np.uint64(0xFFFFFFFF)


def _with_field(part: Bits, x: Bits, start: Bits, size: Bits) -> Bits:
    """A word with some of its bits replaced."""
    start, size = (np.minimum(n & np.uint64(255), np.uint64(32)) for n in (start, size))
    word = np.uint64(0xFFFFFFFF)
    where = (((np.uint64(1) << size) - np.uint64(1)) << start) & word
    return (x & ~where & word) | ((part << start) & where)


def _dot_of_bytes(x: Bits, y: Bits, z: Bits, first: str, second: str) -> Bits:
    """Four products of bytes, added to a word. The types are ``u32`` or ``s32``, as of the bytes."""
    total = _as(z, second if second == first else "s32").astype(np.int64)
    for i in range(4):
        a, b = (_as((w >> np.uint64(8 * i)) & np.uint64(255), f"{k[0]}8") for w, k in ((x, first), (y, second)))
        total = total + a.astype(np.int64) * b.astype(np.int64)
    return total.astype(np.uint64) & np.uint64(0xFFFFFFFF)


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


def _comparison(parts: list[str], kind: str) -> Callable[..., Bits] | None:
    """``setp``: 1 where two numbers compare so, further combined with a predicate where one is given."""
    named = [p for p in parts if p in _COMPARE or p in _UNSIGNED_COMPARE or p.removesuffix("u") in _COMPARE or
             p in ("num", "nan")]  # fmt: skip
    joins = [p for p in parts if p in ("and", "or", "xor")]
    if len(named) != 1 or set(parts) - {*named, *joins, "ftz"}:
        return None
    name = named[0]
    test = _COMPARE.get(_UNSIGNED_COMPARE.get(name, name)) or _COMPARE.get(name.removesuffix("u"))
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[joins[0]] if joins else None

    def compare(x: Bits, y: Bits, *also: Bits) -> Bits:
        a, b = _as(x, kind), _as(y, kind)
        unordered = (np.isnan(a) | np.isnan(b)) if kind in _FLOAT else np.False_
        if test is None:
            made = unordered if name == "nan" else ~np.asarray(unordered)
        else:
            made = test(a, b) & ~unordered if name in _COMPARE else test(a, b) | unordered
        if join is not None:
            made = join(made, also[0] != 0)
        return np.asarray(made).astype(np.uint64)

    return compare


def _instruction(opcode: str) -> Callable[..., Bits] | None:
    """What an opcode does to the bits of its sources; None where it is not known."""
    name, *parts = opcode.split(".")
    if name in _LOGIC and parts == ["pred"]:
        return _LOGIC[name]
    types = [t for p in parts if (t := _type_of(p))]
    how = {p for p in parts if not _type_of(p)}
    if not types:
        return None
    kind, lanes = types[0]
    if name == "setp" and lanes == 1:
        return _comparison([p for p in parts if not _type_of(p)], kind)
    if name == "mul" and lanes == 1 and how in ({"hi"}, {"wide"}) and kind[1:] in ("16", "32"):
        if how == {"hi"}:
            return lambda x, y: _bits(_upper_half(_as(x, kind), _as(y, kind)), kind)
        double = f"{kind[0]}{2 * int(kind[1:])}"
        wide = np.int64 if kind[0] == "s" else np.uint64
        return lambda x, y: _bits(_as(x, kind).astype(wide) * _as(y, kind).astype(wide), double)
    if name == "shf" and kind == "b32" and how in ({"l", "wrap"}, {"l", "clamp"}, {"r", "wrap"}, {"r", "clamp"}):
        return lambda low, high, by: _funnel(low, high, by, "l" in how, "wrap" in how)
    if name in ("min", "max") and kind in _FLOAT and {"xorsign", "abs"} <= how <= {"xorsign", "abs", "NaN", "ftz"}:
        pick = _extreme(name, "NaN" in how)
        return _by_lane(lambda x, y: np.copysign(pick(abs(x), abs(y)), _sign(x) * _sign(y)), kind, lanes)
    if not how <= _MODIFIERS:
        return None
    if name == "mov":
        return lambda x: x
    if name == "selp":
        return lambda x, y, p: np.asarray(np.where(p != 0, x, y))
    if name == "cvt" and len(types) == 2:
        source, target = types[1][0], kind
        narrow = target in _LARGEST or target == "tf32"
        if "e2m1" in (source, target) and ("rz" in how or lanes != 2):
            return None
        if narrow and (how & {"rm", "rp"} or ("rz" in how and source not in ("f32", "f64"))):
            return None
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
    if name == "bfe" and kind in ("u32", "s32") and not how:
        return lambda x, start, size: _field(x, start, size, kind == "s32")
    if name == "bfi" and kind == "b32" and not how:
        return _with_field
    if name == "dp4a" and len(types) == 2 and not how:
        return lambda x, y, z: _dot_of_bytes(x, y, z, types[0][0], types[1][0])
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
    if name in ("min", "max") and kind in _FLOAT:
        numbers = _extreme(name, "NaN" in how)
    if name == "div" and kind not in _FLOAT:
        numbers = _quotient
    if name in ("popc", "clz") and kind not in _FLOAT:
        count = _UNARY[name]
        return lambda x: np.asarray(count(_as(x, kind))).astype(np.uint64)
    if name in ("fma", "mad"):
        of_floats = directed.fma if kind in ("f32", "f64") else directed.fma_of_narrow
        numbers = of_floats if kind in _FLOAT else lambda x, y, z: x * y + z
    towards = next((_TOWARDS[h] for h in how if h in _TOWARDS), "")
    if towards:
        name = "fma" if name == "mad" else name
        if kind not in ("f32", "f64") or lanes > 1 or name not in directed.NAMES:
            return None
        numbers = directed.arithmetic(name, towards)
    if numbers is None or "satfinite" in how or ("relu" in how and name not in ("fma", "min", "max")):
        return None
    fn = numbers
    if "sat" in how and kind not in _FLOAT:
        return _by_lane(_saturated(fn), kind, lanes) if kind == "s32" and name in ("add", "sub") else None
    if "sat" in how or "relu" in how:
        limit = _between_0_and_1 if "sat" in how else _not_negative
        return _by_lane(lambda *xs: limit(np.asarray(fn(*xs))), kind, lanes)
    return _by_lane(fn, kind, lanes)


def _by_lane(fn: Callable[..., Any], kind: str, lanes: int) -> Callable[..., Bits]:
    """A function of numbers as one of registers, each of which holds so many of them."""

    def apply(*sources: Bits) -> Bits:
        split = [_lanes(s, kind, lanes) for s in sources]
        return _joined([_bits(fn(*(_as(p, kind) for p in lane)), kind) for lane in zip(*split, strict=True)], kind)

    return apply


def _sign(x: Any) -> Any:
    return np.copysign(x.dtype.type(1), x)


_LOGIC: dict[str, Callable[..., Bits]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": lambda p: p ^ np.uint64(1),
    "mov": lambda p: p,
}
"""Of predicates."""
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_RAW = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
_PLACE = re.compile(r"%(?:n?ctaid\.[xyz]|n?smid|clock(?:64)?|globaltimer(?:_lo)?)\b")
"""Registers that say where or when a program runs."""
_SPECIAL = re.compile(r"%(?:n?tid|laneid|n?warpid|gridid|lanemask|pm|clock_hi|globaltimer_hi)")
"""Registers of a GPU's threads, which have no counterpart here."""
_DECIMAL = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+")


def _source(text: str, opcode: str) -> str | Bits:
    """A register's name, or a literal's bits in an instruction of some type."""
    if _DECIMAL.fullmatch(text):
        kinds = [t[0] for p in opcode.split(".") if (t := _type_of(p))]
        kind = next((k for k in reversed(kinds) if k in _FLOAT), "f32")
        return _bits(np.array([float(text)]), kind)
    if _RAW.fullmatch(text):
        number = int(text[2:], 16)
    elif _INTEGER.fullmatch(text):
        number = int(re.sub(r"^(-?)0(?=\d)", r"\g<1>0o", text.rstrip("U")), 0)  # a leading zero alone means octal
    else:
        return text
    return np.array([number & 0xFFFFFFFFFFFFFFFF], np.uint64)


_ORDERING = (
    "griddepcontrol.wait", "griddepcontrol.launch_dependents", "bar.sync", "bar.warp.sync", "barrier.sync", "membar.",
    "fence.acq_rel", "fence.sc",
)  # fmt: skip
"""Instructions that say what comes after what: between launches (as Triton wrote ``gdc_wait`` before it had operations
for them), among a program's threads, and for its accesses to memory. Launches of a stream run one after the other
here, and so do the operations of a program: there is nothing to wait for."""


class UnknownInstruction(Exception):
    """The instruction, as it is written."""


@dataclass(frozen=True)
class _Step:
    """One instruction."""

    apply: Callable[..., Bits]
    targets: tuple[str, ...]
    """Several: equal parts of the result, the low one first; a second one of ``setp`` gets the opposite."""
    sources: tuple[str | Bits | tuple[str, ...], ...]
    """Registers, literals, and registers to be joined, the low part first."""
    guard: str = ""
    """Predicate register under which it happens, or an empty string."""
    negated: bool = False
    opposite: bool = False
    bits: int = 32
    """Width of what is joined or taken apart."""


class Program:
    """Inline PTX, read.

    Raises:
        UnknownInstruction: it has one that is not known here.
    """

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        text = re.sub(r"\{([^{};]+)\}", r"<\1>", text)  # registers that are joined; what braces are left are scopes
        lines = (" ".join(line.split()) for line in re.split(r"[;{}]", text))
        self.steps: list[_Step] = []
        written: set[str] = set()
        for line in lines:
            if line and not line.startswith((".reg", *_ORDERING)):
                step = _read(line)
                read = {r for s in step.sources for r in ([s] if isinstance(s, str) else s if type(s) is tuple else ())}
                read |= {step.guard} - {""}
                if any(r[0] != "$" and r not in written and not _PLACE.match(r) for r in read):
                    raise UnknownInstruction(line.replace("<", "{").replace(">", "}"))
                written.update(step.targets)
                self.steps.append(step)
        self.places = sorted({s for step in self.steps for s in step.sources if isinstance(s, str) and _PLACE.match(s)})
        """Registers it reads that say where or when it runs: ``run`` expects them to be there."""

    def run(self, registers: Registers) -> None:
        """Carry it out on registers, which it changes."""
        for step in self.steps:
            given = [
                _side_by_side([registers[r] for r in s], step.bits)
                if isinstance(s, tuple)
                else registers[s]
                if isinstance(s, str)
                else s
                for s in step.sources
            ]
            with np.errstate(all="ignore"):
                made = step.apply(*given)
            if step.opposite:
                parts = [made, made ^ np.uint64(1)]
            else:
                parts = _taken_apart(made, step.bits, len(step.targets))
            for target, part in zip(step.targets, parts, strict=True):
                if step.guard:
                    holds = (registers[step.guard] != 0) != step.negated
                    part = np.where(holds, part, registers.get(target, np.uint64(0)))
                registers[target] = part


def _read(line: str) -> _Step:
    guarded = re.fullmatch(r"@(!?)\s*([%$\w]+)\s+(.*)", line)
    body = guarded[3] if guarded else line
    opcode, _, rest = body.partition(" ")
    operands = [o.strip() for o in re.findall(r"\s*(<[^>]*>|[^,]+)", rest)]
    fn = (lambda *xs: xs[0]) if opcode.startswith("mov.") and "<" in rest else _instruction(opcode)
    if fn is None or not operands or _SPECIAL.search(rest) or len(operands) - 1 != _taken(opcode, len(operands) - 1):
        raise UnknownInstruction(line.replace("<", "{").replace(">", "}"))
    opposite = opcode.startswith("setp.") and "|" in operands[0]
    targets = _joined_names(operands[0]) or tuple(t.strip() for t in operands[0].split("|"))
    sources = tuple(_joined_names(o) or _source(o, opcode) for o in operands[1:])
    width = re.fullmatch(r"mov\.b(\d+)", opcode)
    bits = int(width[1]) if width else 32
    return _Step(fn, targets, sources, guarded[2] if guarded else "", bool(guarded and guarded[1]), opposite, bits)


def _taken(opcode: str, given: int) -> int:
    """How many sources arithmetic takes; of other instructions, as many as they are given."""
    name = opcode.partition(".")[0]
    return 1 if name in _UNARY else 2 if name in _BINARY else 3 if name in ("fma", "mad") else given


def _side_by_side(parts: list[Bits], bits: int) -> Bits:
    """Registers as the equal parts of one of so many bits, the low one first."""
    width = bits // len(parts)
    out, kept = np.zeros_like(parts[0]), np.uint64(2**width - 1)
    for i, part in enumerate(parts):
        out = out | ((part & kept) << np.uint64(width * i))
    return out


def _taken_apart(x: Bits, bits: int, count: int) -> list[Bits]:
    width = bits // count
    kept = np.uint64(2**width - 1)
    return [x] if count == 1 else [(x >> np.uint64(width * i)) & kept for i in range(count)]


def _joined_names(operand: str) -> tuple[str, ...]:
    return tuple(r.strip() for r in operand.strip("<>").split(",")) if operand.startswith("<") else ()
