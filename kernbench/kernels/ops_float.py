"""Floating-point arithmetic on carriers: float32 for every type of at most 32 bits, rounded after each operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels import directed, special
from kernbench.kernels.libdevice import LIBDEVICE
from kernbench.kernels.numerics import NARROW, narrow, rounded, saturated, toward_zero
from kernbench.kernels.ops_int import in_full, record, short_name
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, unsupported
from kernbench.kernels.ttir import Op

_BINARY: dict[str, tuple[Callable[..., Any], str]] = {
    "arith.addf": (np.add, "add"),
    "arith.subf": (np.subtract, "sub"),
    "arith.mulf": (np.multiply, "mul"),
    "arith.divf": (np.divide, "div"),
    "tt.precise_divf": (np.divide, "div"),
    "arith.remf": (np.fmod, "rem"),
    "arith.maxnumf": (np.fmax, "max"),
    "arith.minnumf": (np.fmin, "min"),
    "arith.maximumf": (np.maximum, "max"),
    "arith.minimumf": (np.minimum, "min"),
    "math.powf": (np.power, "pow"),
    "math.copysign": (np.copysign, "copysign"),
    "math.atan2": (np.arctan2, "atan2"),
}
_UNARY: dict[str, Callable[..., Any]] = {
    "arith.negf": np.negative,
    "math.exp": np.exp,
    "math.exp2": np.exp2,
    "math.expm1": np.expm1,
    "math.log": np.log,
    "math.log2": np.log2,
    "math.log10": np.log10,
    "math.log1p": np.log1p,
    "math.sqrt": np.sqrt,
    "tt.precise_sqrt": np.sqrt,
    "math.rsqrt": special.rsqrt,
    "math.sin": np.sin,
    "math.cos": np.cos,
    "math.tan": np.tan,
    "math.tanh": np.tanh,
    "math.sinh": np.sinh,
    "math.cosh": np.cosh,
    "math.asin": np.arcsin,
    "math.acos": np.arccos,
    "math.atan": np.arctan,
    "math.erf": special.erf,
    "math.absf": np.abs,
    "math.floor": np.floor,
    "math.ceil": np.ceil,
    "math.trunc": np.trunc,
    "math.roundeven": np.rint,
    "math.round": special.round_half_away,
    "math.cbrt": np.cbrt,
}
_EXACT = {"arith.negf", "arith.maxnumf", "arith.minnumf", "arith.maximumf", "arith.minimumf", "math.absf"}
"""Operations whose result is one of their operands, or its negative: nothing to round."""


def binary(op: Op) -> Callable[[Any, Any], Any]:
    """The function of a two-operand float operation."""
    fn, name = _BINARY[op.name][0], element(op.results[0].type)
    if name in NARROW and op.name not in _EXACT:
        return lambda x, y: rounded(fn(x, y), name, fresh=True)
    return fn


@emits(*_BINARY)
def emit_binary(c: Compiler, op: Op) -> None:
    fn = binary(op)
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])

    def step(f: Frame) -> None:
        v = f.v
        v[out] = fn(v[a], v[b])

    c.compute(op, step)
    record(c, op, _BINARY[op.name][1])


def unary(op_name: str, type_name: str) -> Callable[[Any], Any]:
    """The function of a one-operand float operation."""
    fn = _UNARY[op_name]
    if type_name in NARROW and op_name not in _EXACT:
        return lambda x: rounded(fn(x), type_name, fresh=True)
    return fn


@emits(*_UNARY)
def emit_unary(c: Compiler, op: Op) -> None:
    fn = unary(op.name, element(op.results[0].type))
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])

    def step(f: Frame) -> None:
        v = f.v
        v[out] = fn(v[a])

    c.compute(op, step)
    record(c, op, short_name(op.name).removesuffix("f") if op.name.endswith(("negf", "absf")) else short_name(op.name))


@emits("math.fma")
def emit_fma(c: Compiler, op: Op) -> None:
    name = element(op.results[0].type)
    a, b, d = (c.slot(v) for v in op.operands)
    out = c.slot(op.results[0])

    dtype = CARRIER[name]

    def fma(*xs: Any) -> Any:
        xs = tuple(np.asarray(in_full(x, dtype), dtype) for x in xs)
        return rounded(directed.fma_of_narrow(*xs)[()], name) if name in NARROW else directed.fma(*xs)[()]

    c.compute(op, lambda f: f.v.__setitem__(out, fma(f.v[a], f.v[b], f.v[d])))
    record(c, op, "fma")


@emits("math.absi")
def emit_absi(c: Compiler, op: Op) -> None:
    dtype = CARRIER[element(op.results[0].type)]
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    c.compute(op, lambda f: f.v.__setitem__(out, abs(in_full(f.v[a], dtype))))
    record(c, op, "abs")


@emits("tt.clampf")
def emit_clampf(c: Compiler, op: Op) -> None:
    x, low, high = (c.slot(v) for v in op.operands)
    out = c.slot(op.results[0])
    keep_nan = op.attrs.get("propagateNan") == "all"
    least, most = (np.minimum, np.maximum) if keep_nan else (np.fmin, np.fmax)
    c.compute(op, lambda f: f.v.__setitem__(out, least(most(f.v[x], f.v[low]), f.v[high])))
    record(c, op, "clamp")


def scalar_argument(x: float, name: str) -> Any:
    """A launch's float argument on its carrier."""
    number = CARRIER[name].type(x)
    return rounded(number, name) if name in NARROW else number


_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def compare_floats(predicate: str) -> Callable[[Any, Any], Any]:
    """A float comparison: ``o``rdered ones are false where an operand is NaN, ``u``nordered ones true."""
    nan = lambda x, y: np.isnan(x) | np.isnan(y)  # noqa: E731
    special_cases: dict[str, Callable[[Any, Any], Any]] = {
        "ord": lambda x, y: ~nan(x, y),
        "uno": nan,
        "true": lambda x, y: True,
        "false": lambda x, y: False,
        "one": lambda x, y: (x != y) & ~nan(x, y),
        "une": np.not_equal,
    }
    if predicate in special_cases:
        fn = special_cases[predicate]
    elif predicate[0] == "o":
        fn = _ORDERED[predicate[1:]]
    else:
        test = _ORDERED[predicate[1:]]
        fn = lambda x, y: test(x, y) | nan(x, y)  # noqa: E731

    def apply(x: Any, y: Any) -> Any:
        out = fn(x, y)
        return bool(out) if isinstance(out, np.bool_) else out

    return apply


@emits("arith.cmpf")
def emit_cmpf(c: Compiler, op: Op) -> None:
    fn = compare_floats(op.attrs["words"][0])
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])
    c.compute(op, lambda f: f.v.__setitem__(out, fn(f.v[a], f.v[b])))
    record(c, op, "cmp")


def cast(source: str, target: str) -> Callable[[Any], Any]:
    """A value of one float type as another."""
    dtype = CARRIER[target]
    wider = source in NARROW and (target in ("f32", "f64") or (source.startswith("f8") and target in ("f16", "bf16")))

    def apply(x: Any) -> Any:
        if source == "f64" and target in NARROW:
            x = directed.rounded_to_odd(x)[()]  # so that rounding again, to the target, rounds as if once
        elif x.dtype != dtype:
            with np.errstate(over="ignore"):
                x = x.astype(dtype)
        return x if wider or target not in NARROW else rounded(x, target)

    return apply


@emits("arith.extf", "arith.truncf", "tt.fp_to_fp")
def emit_cast(c: Compiler, op: Op) -> None:
    source, target = element(op.operands[0].type), element(op.results[0].type)
    rounding = op.attrs.get("rounding", "rtne")
    words = {rounding, *op.attrs.get("words", ())}
    fn = cast(source, target)
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    users = c.users.get(op.results[0], [])
    if target in NARROW and source != "f64" and users and all(_writes(u, op) for u in users):
        fn = lambda x: x  # noqa: E731  the store rounds
    if target in NARROW and "rtz" in words:
        fn = lambda x: toward_zero(x, target)  # noqa: E731
    elif op.name == "tt.fp_to_fp" and target.startswith("f8"):
        plain = fn
        fn = lambda x: plain(saturated(x, target))  # noqa: E731
    c.compute(op, lambda f: f.v.__setitem__(out, fn(f.v[a])))
    record(c, op, "cast")


def _writes(user: Op, op: Op) -> bool:
    """Whether all an operation does with a value is write it to memory."""
    return user.name == "tt.store" and user.operands[1] is op.results[0]


def to_float(source: str, target: str, is_unsigned: bool) -> Callable[[Any], Any]:
    dtype = CARRIER[target]

    def apply(x: Any) -> Any:
        x = np.asarray(in_full(x, CARRIER[source]), CARRIER[source])
        if is_unsigned and source != "i1":
            x = x.view(np.dtype(f"u{x.dtype.itemsize}"))
        elif source == "i1" and not is_unsigned:
            x = -x.astype(np.int8)
        if target in NARROW:
            with np.errstate(over="ignore"):
                return rounded(x.astype(np.float32), target)[()]
        return x.astype(dtype)[()]

    return apply


@emits("arith.sitofp", "arith.uitofp")
def emit_to_float(c: Compiler, op: Op) -> None:
    source, target = element(op.operands[0].type), element(op.results[0].type)
    fn = to_float(source, target, op.name == "arith.uitofp")
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    c.compute(op, lambda f: f.v.__setitem__(out, fn(f.v[a])))
    record(c, op, "cast")


def truncated(x: NDArray[Any], dtype: np.dtype, unsigned: bool) -> NDArray[Any]:
    """Floats as integers, towards zero. What does not fit becomes the nearest that does, and NaN 0, as a GPU's ``cvt``
    has it; bytes are the low half of 16 bits converted so."""
    kind = np.dtype(f"{'u' if unsigned else 'i'}{max(2, dtype.itemsize)}")
    info = np.iinfo(kind)
    above, below = x >= float(info.max + 1), x < float(info.min)
    unfit = above | below | np.isnan(x)
    if not unfit.any():
        return x.astype(kind).astype(f"u{dtype.itemsize}").view(dtype)
    made = np.where(unfit, 0, x).astype(kind)
    made = np.where(above, kind.type(info.max), np.where(below, kind.type(info.min), made))
    return made.astype(f"u{dtype.itemsize}").view(dtype)


@emits("arith.fptosi", "arith.fptoui")
def emit_to_int(c: Compiler, op: Op) -> None:
    dtype = CARRIER[element(op.results[0].type)]
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    unsigned = op.name == "arith.fptoui"

    def convert(x: Any) -> Any:
        made = np.asarray(x).astype(dtype) if dtype == np.bool_ else truncated(np.asarray(x), dtype, unsigned)
        return made.item() if made.ndim == 0 else made

    c.compute(op, lambda f: f.v.__setitem__(out, convert(f.v[a])))
    record(c, op, "cast")


def bitcast(source: str, target: str) -> Callable[[Any], Any]:
    """The same bits as another type of the same width."""

    def apply(x: Any) -> Any:
        x = np.asarray(in_full(x, CARRIER[source]), CARRIER[source])
        raw = narrow(x, source) if source in NARROW else x
        if target in NARROW:
            made = raw.view(NARROW[target][1]).astype(np.float32)
        else:
            made = raw.view(CARRIER[target])
        if made.ndim:
            return made
        return made[()] if target.startswith(("f", "b")) else made.item()

    return apply


@emits("tt.bitcast", "arith.bitcast")
def emit_bitcast(c: Compiler, op: Op) -> None:
    source, target = element(op.operands[0].type), element(op.results[0].type)
    same = source == target
    fn = bitcast(source, target)
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    c.compute(op, lambda f: f.v.__setitem__(out, f.v[a] if same else fn(f.v[a])))
    c.alias(op)


@emits("tt.extern_elementwise")
def emit_extern(c: Compiler, op: Op) -> None:
    symbol = op.attrs.get("symbol", "")
    fn = LIBDEVICE.get(symbol)
    if fn is None:
        raise unsupported(op, f"libdevice function {symbol}")
    name = element(op.results[0].type)
    dtype = CARRIER[name]
    slots = [c.slot(v) for v in op.operands]
    kinds = [CARRIER[element(v.type)] for v in op.operands]
    out = c.slot(op.results[0])

    def step(f: Frame) -> None:
        made = np.asarray(fn(*(in_full(f.v[s], k) for s, k in zip(slots, kinds, strict=True)))).astype(dtype)
        f.v[out] = (rounded(made, name) if name in NARROW else made)[()]

    c.compute(op, step)
    record(c, op, symbol.removeprefix("__nv_").removesuffix("f"))
