"""Integer and boolean arithmetic: on numbers, on blocks kept symbolic, and on blocks in full.

Integers wrap at their width as the hardware's do. Blocks of indices stay an :class:`AxisSum` as long as that is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kernbench.kernels.numerics import NARROW
from kernbench.kernels.plan import CARRIER, Compiler, Frame, element, emits, record_dtype, shape_of
from kernbench.kernels.ttir import Op, Pointer, Tensor
from kernbench.kernels.values import (
    AxisSum,
    Mask,
    Unfusable,
    add,
    along_axis,
    axis_bits,
    compare,
    mask_and,
    mask_not,
    multiply,
    scale,
    subtract,
)

BITS = {"i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "index": 64}


def wrap(x: int, bits: int) -> int:
    """A Python int as a signed integer of ``bits`` bits."""
    half = 1 << (bits - 1)
    return x if -half <= x < half else (x + half) % (1 << bits) - half


def fit(x: Any, bits: int, dtype: Any) -> Any:
    """A symbolic block whose values fit their width, or the block in full where they wrap."""
    if isinstance(x, AxisSum) and bits < 64:
        half = 1 << (bits - 1)
        if x.lo < -half or x.hi >= half:
            x.tighten()
            if x.lo < -half or x.hi >= half:
                return x.dense(dtype)
    return x


def lifted(x: Any) -> Any:
    """A scalar that differs between programs as a symbol, to go with one that a symbolic loop moves."""
    if isinstance(x, np.ndarray) and x.ndim == 1:
        return AxisSum((), x.astype(np.int64), (), int(x.min()), int(x.max()))
    return x


def in_full(x: Any, dtype: Any) -> Any:
    """A block as an array (axes may have length 1), or a number."""
    if isinstance(x, AxisSum):
        return x.dense(dtype)
    if isinstance(x, Mask):
        return x.full()
    return x


def trunc_div(a: Any, b: Any) -> Any:
    """Integer division that rounds towards zero; 0 where the divisor is 0."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return 0
        q = abs(a) // abs(b)
        return q if (a < 0) == (b < 0) else -q
    return (a - np.fmod(a, b)) // b


def trunc_rem(a: Any, b: Any) -> Any:
    """The remainder of :func:`trunc_div`, with the sign of ``a``."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return 0
        r = abs(a) % abs(b)
        return -r if a < 0 else r
    return np.fmod(a, b)


def _divide(x: Any, y: Any) -> Any:
    if isinstance(x, AxisSum) and isinstance(y, int) and y > 0 and x.lo >= 0 and x.hi < y:
        return 0
    if isinstance(y, int) and y == 1:
        return x
    return along_axis(trunc_div, x, y)


def _remainder(x: Any, y: Any) -> Any:
    low = y.lo if isinstance(y, AxisSum) else y
    if isinstance(x, AxisSum) and low > 0 and (x.lo < 0 or x.hi >= low):
        x.tighten()
    xlo, xhi = (x.lo, x.hi) if isinstance(x, AxisSum) else (x, x)
    if low > 0 and xlo >= 0 and xhi < low:
        return x
    return along_axis(trunc_rem, x, y)


def _pick(smaller: bool) -> Callable[[Any, Any], Any]:
    fn = np.minimum if smaller else np.maximum

    def choose(x: Any, y: Any) -> Any:
        d = subtract(x, y) if isinstance(x, AxisSum) else add(scale(y, -1), x)
        d.tighten()
        if d.hi <= 0:
            return x if smaller else y
        if d.lo >= 0:
            return y if smaller else x
        return along_axis(fn, x, y)

    return choose


def _shift_left(x: Any, y: Any) -> Any:
    return (
        scale(x, 1 << y)
        if isinstance(x, AxisSum) and isinstance(y, int) and 0 <= y < 32
        else along_axis(np.left_shift, x, y)
    )


def _axis(fn: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    return lambda x, y: along_axis(fn, x, y)


_Binary = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any], Callable[[Any, Any], Any]]
_SIGNED: dict[str, _Binary] = {
    # name: on Python ints, on symbolic blocks (None: not symbolic any more), on arrays
    "arith.addi": (lambda a, b: a + b, add, np.add),
    "arith.subi": (lambda a, b: a - b, subtract, np.subtract),
    "arith.muli": (lambda a, b: a * b, multiply, np.multiply),
    "arith.divsi": (trunc_div, _divide, trunc_div),
    "arith.remsi": (trunc_rem, _remainder, trunc_rem),
    "arith.minsi": (min, _pick(True), np.minimum),
    "arith.maxsi": (max, _pick(False), np.maximum),
    "arith.andi": (lambda a, b: a & b, _axis(np.bitwise_and), np.bitwise_and),
    "arith.ori": (lambda a, b: a | b, _axis(np.bitwise_or), np.bitwise_or),
    "arith.xori": (lambda a, b: a ^ b, _axis(np.bitwise_xor), np.bitwise_xor),
    "arith.shli": (lambda a, b: a << b if 0 <= b < 64 else 0, _shift_left, np.left_shift),
    "arith.shrsi": (lambda a, b: a >> (b if 0 <= b < 64 else 63), _axis(np.right_shift), np.right_shift),
    "arith.floordivsi": (lambda a, b: a // b if b else 0, _axis(np.floor_divide), np.floor_divide),
    "arith.ceildivsi": (lambda a, b: -(-a // b) if b else 0, _axis(lambda a, b: -(-a // b)), lambda a, b: -(-a // b)),
}
_UNSIGNED: dict[str, Callable[[Any, Any], Any]] = {
    "arith.divui": np.floor_divide,
    "arith.remui": np.remainder,
    "arith.minui": np.minimum,
    "arith.maxui": np.maximum,
    "arith.shrui": np.right_shift,
}
_SAME_WHEN_POSITIVE = {
    "arith.divui": "arith.divsi",
    "arith.remui": "arith.remsi",
    "arith.minui": "arith.minsi",
    "arith.maxui": "arith.maxsi",
    "arith.shrui": "arith.shrsi",
}
NAMES = {"addi": "add", "subi": "sub", "muli": "mul", "divsi": "div", "divui": "div", "remsi": "rem", "remui": "rem"}


def short_name(name: str) -> str:
    """How the record calls an operation: without dialect and type suffix."""
    bare = name.split(".", 1)[1]
    return NAMES.get(bare, bare)


def signed(name: str, type_name: str) -> Callable[[Any, Any], Any]:
    """The function of a signed or bitwise integer operation."""
    number, symbolic, array = _SIGNED[name]
    bits, dtype = BITS[type_name], CARRIER[type_name]

    def apply(x: Any, y: Any) -> Any:
        if type(x) is int and type(y) is int:
            return wrap(number(x, y), bits)
        if isinstance(x, AxisSum) or isinstance(y, AxisSum):
            x, y = lifted(x), lifted(y)
            if isinstance(x, AxisSum | int) and isinstance(y, AxisSum | int):
                found = symbolic(x, y)
                if found is not None:
                    return fit(found, bits, dtype)
            x, y = in_full(x, dtype), in_full(y, dtype)
        return array(x, y)

    return apply


def unsigned(name: str, type_name: str) -> Callable[[Any, Any], Any]:
    """The function of an unsigned integer operation; values are held signed."""
    bits, dtype = BITS[type_name], CARRIER[type_name]
    view = np.dtype(f"u{dtype.itemsize}")
    array, like = _UNSIGNED[name], signed(_SAME_WHEN_POSITIVE[name], type_name)

    def positive(x: Any) -> bool:
        return x >= 0 if isinstance(x, int) else isinstance(x, AxisSum) and x.lo >= 0

    def apply(x: Any, y: Any) -> Any:
        if positive(x) and positive(y):
            return like(x, y)
        a, b = (np.asarray(in_full(v, dtype), dtype).view(view) for v in (x, y))
        if name == "arith.shrui":
            b = np.minimum(b, bits - 1)
        out = array(a, b).view(dtype)
        return int(out) if out.ndim == 0 else out

    return apply


def _bool_and(x: Any, y: Any) -> Any:
    if isinstance(x, bool):
        return y if x else False
    if isinstance(y, bool):
        return x if y else False
    if isinstance(x, Mask) or isinstance(y, Mask):
        return mask_and(x, y)
    return x & y


def _bool_or(x: Any, y: Any) -> Any:
    if isinstance(x, bool):
        return True if x else y
    if isinstance(y, bool):
        return True if y else x
    return in_full(x, np.bool_) | in_full(y, np.bool_)


def _bool_xor(x: Any, y: Any) -> Any:
    if isinstance(x, bool) and isinstance(y, bool):
        return x != y
    for a, b in ((x, y), (y, x)):
        if isinstance(a, bool):
            if not a:
                return b
            return mask_not(b) if isinstance(b, Mask) else ~b
    return in_full(x, np.bool_) ^ in_full(y, np.bool_)


_BOOLEAN = {
    "arith.andi": _bool_and,
    "arith.muli": _bool_and,
    "arith.minui": _bool_and,
    "arith.maxsi": _bool_and,
    "arith.ori": _bool_or,
    "arith.maxui": _bool_or,
    "arith.minsi": _bool_or,
    "arith.xori": _bool_xor,
    "arith.addi": _bool_xor,
    "arith.subi": _bool_xor,
}


def tidy(x: Any) -> Any:
    """numpy's scalars as Python's, so that they are recognised as such."""
    return x.item() if isinstance(x, np.bool_ | np.integer) else x


def binary(op: Op) -> Callable[[Any, Any], Any]:
    """The function of a two-operand integer operation."""
    name, type_name = op.name, element(op.results[0].type)
    if type_name == "i1" and name in _BOOLEAN:
        return _BOOLEAN[name]
    return unsigned(name, type_name) if name in _UNSIGNED else signed(name, type_name)


@emits(*_SIGNED, *_UNSIGNED)
def emit_binary(c: Compiler, op: Op) -> None:
    fn = binary(op)
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])

    def step(f: Frame) -> None:
        v = f.v
        v[out] = fn(v[a], v[b])

    c.compute(op, step)
    record(c, op, short_name(op.name))


def record(c: Compiler, op: Op, name: str) -> None:
    """The row of an elementwise operation, at its operands' type."""
    kind = op.results[0].type
    c.record(op, name, int(np.prod(shape_of(kind), dtype=np.int64)), record_dtype(op.operands[0].type))


_UNSIGNED_PREDICATES = {"ult": "slt", "ule": "sle", "ugt": "sgt", "uge": "sge"}
_PREDICATES: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "slt": lambda a, b: a < b,
    "sle": lambda a, b: a <= b,
    "sgt": lambda a, b: a > b,
    "sge": lambda a, b: a >= b,
}


def compare_ints(predicate: str, type_name: str) -> Callable[[Any, Any], Any]:
    dtype = CARRIER[type_name]
    plain = _UNSIGNED_PREDICATES.get(predicate, predicate)
    test, is_unsigned = _PREDICATES[plain], plain != predicate

    def apply(x: Any, y: Any) -> Any:
        if isinstance(x, AxisSum) or isinstance(y, AxisSum):
            x, y = lifted(x), lifted(y)
        if isinstance(x, AxisSum | int) and isinstance(y, AxisSum | int):
            lows = [v.lo if isinstance(v, AxisSum) else v for v in (x, y)]
            if not is_unsigned or min(lows) >= 0:
                if isinstance(x, AxisSum) or isinstance(y, AxisSum):
                    return compare(plain, x, y)
                return test(x, y)
        a, b = in_full(x, dtype), in_full(y, dtype)
        if is_unsigned:
            view = np.dtype(f"u{dtype.itemsize}")
            a, b = (np.asarray(v, dtype).view(view) for v in (a, b))
        return tidy(test(a, b))

    return apply


@emits("arith.cmpi")
def emit_cmpi(c: Compiler, op: Op) -> None:
    fn = compare_ints(op.attrs["words"][0], element(op.operands[0].type))
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])

    def step(f: Frame) -> None:
        v = f.v
        v[out] = fn(v[a], v[b])

    c.compute(op, step)
    record(c, op, "cmp")


def select(condition: Any, x: Any, y: Any, dtype: Any) -> Any:
    """``x`` where the condition holds, else ``y``."""
    if isinstance(condition, bool):
        return x if condition else y
    if isinstance(condition, Mask):
        if isinstance(x, AxisSum | int) and isinstance(y, AxisSum | int) and dtype != np.bool_:
            found = _select_symbolic(condition, x, y)
            if found is not None:
                return found
        condition = condition.full()
    out = np.where(condition, in_full(x, dtype), in_full(y, dtype))
    return out if out.dtype == dtype else out.astype(dtype)


def _select_symbolic(condition: Mask, x: Any, y: Any) -> AxisSum | None:
    conditions = [d for d, axis in enumerate(condition.axes) if axis is not None]
    sums = [v for v in (x, y) if isinstance(v, AxisSum)]
    used = {d for v in sums for d in v.axes()} | set(conditions)
    if len(used) != 1 or condition.programs is not None or condition.dense is not None:
        return None
    axis = used.pop()
    bits = axis_bits(condition.axes[axis], condition.shape[axis])
    if any(not isinstance(v.step, int) or v.step for v in sums):
        raise Unfusable
    values = np.where(bits, *(v.along(axis) if isinstance(v, AxisSum) else v for v in (x, y)))
    terms: list[Any] = [0] * len(condition.shape)
    terms[axis] = values.astype(np.int64)
    return AxisSum(condition.shape, 0, tuple(terms), int(values.min()), int(values.max()))


@emits("arith.select")
def emit_select(c: Compiler, op: Op) -> None:
    dtype = CARRIER[element(op.results[0].type)]
    cond, a, b = (c.slot(v) for v in op.operands)
    out = c.slot(op.results[0])
    lift = isinstance(op.results[0].type, Tensor) and not isinstance(op.operands[0].type, Tensor)
    rank = len(shape_of(op.results[0].type))

    def step(f: Frame) -> None:
        v = f.v
        condition = v[cond]
        if lift and isinstance(condition, np.ndarray):
            condition = condition.reshape((-1,) + (1,) * rank)
        v[out] = select(condition, v[a], v[b], dtype)

    c.compute(op, step)
    kind = op.results[0].type
    c.record(op, "select", int(np.prod(shape_of(kind), dtype=np.int64)), record_dtype(kind))


def resize(op_name: str, source: str, target: str) -> Callable[[Any], Any]:
    """Extension or truncation of integers."""
    dtype, bits, from_bits = CARRIER[target], BITS[target], BITS[source]
    is_unsigned = op_name == "arith.extui"

    def apply(x: Any) -> Any:
        if isinstance(x, bool) or source == "i1":
            x = in_full(x, np.bool_)
            if isinstance(x, bool | int):
                return int(x) if is_unsigned else -int(x)
            return x.astype(dtype) if is_unsigned else -x.astype(dtype)
        if target == "i1":
            x = in_full(x, dtype=CARRIER[source])
            return bool(x & 1) if isinstance(x, int) else (x & 1).astype(np.bool_)
        if isinstance(x, int):
            return x % (1 << from_bits) if is_unsigned else wrap(x, bits)
        if isinstance(x, AxisSum):
            if not is_unsigned or x.lo >= 0:
                return fit(x, bits, dtype)
            x = x.dense(CARRIER[source])
        if is_unsigned:
            x = x.view(np.dtype(f"u{x.dtype.itemsize}"))
        return x.astype(dtype)

    return apply


@emits("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "arith.index_castui")
def emit_resize(c: Compiler, op: Op) -> None:
    source, target = element(op.operands[0].type), element(op.results[0].type)
    fn = resize(op.name, source, target)
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    c.compute(op, lambda f: f.v.__setitem__(out, fn(f.v[a])))
    record(c, op, "cast")


@emits("tt.addptr", "tt.advance")
def emit_addptr(c: Compiler, op: Op) -> None:
    if op.name == "tt.advance":
        from kernbench.kernels.plan import unsupported

        raise unsupported(op, "block pointers")
    kind = op.results[0].type
    pointer = kind.elem if isinstance(kind, Tensor) else kind
    assert isinstance(pointer, Pointer)
    size = itemsize(element(pointer.pointee))
    plus, times = signed("arith.addi", "i64"), signed("arith.muli", "i64")
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])

    def step(f: Frame) -> None:
        v = f.v
        offset = v[b]
        if isinstance(offset, np.ndarray) and offset.dtype != np.int64:
            offset = offset.astype(np.int64)
        v[out] = plus(v[a], times(offset, size))

    c.compute(op, step)
    record(c, op, "add")


@emits("tt.ptr_to_int", "tt.int_to_ptr")
def emit_pointer_cast(c: Compiler, op: Op) -> None:
    a, out = c.slot(op.operands[0]), c.slot(op.results[0])
    c.compute(op, lambda f: f.v.__setitem__(out, f.v[a]))
    c.alias(op)


def itemsize(name: str) -> int:
    """Bytes of an element in memory."""
    return (NARROW[name][1] if name in NARROW else CARRIER[name]).itemsize


@emits("tt.mulhiui")
def emit_mulhiui(c: Compiler, op: Op) -> None:
    name = element(op.results[0].type)
    dtype = CARRIER[name]
    a, b, out = c.slot(op.operands[0]), c.slot(op.operands[1]), c.slot(op.results[0])

    def high(x: Any, y: Any) -> Any:
        if isinstance(x, int) and isinstance(y, int):
            bits = BITS[name]
            return wrap((x % (1 << bits)) * (y % (1 << bits)) >> bits, bits)
        x, y = (np.asarray(in_full(v, dtype), dtype).view(np.dtype(f"u{dtype.itemsize}")) for v in (x, y))
        if name == "i32":
            return ((x.astype(np.uint64) * y.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32).view(np.int32)
        half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
        x1, x0, y1, y0 = x >> half, x & low, y >> half, y & low
        middle = x1 * y0 + (x0 * y0 >> half)
        carry = x0 * y1 + (middle & low)
        return (x1 * y1 + (middle >> half) + (carry >> half)).view(np.int64)

    c.compute(op, lambda f: f.v.__setitem__(out, high(f.v[a], f.v[b])))
    record(c, op, "mulhi")
