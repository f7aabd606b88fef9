"""Symbolic index blocks against the same arithmetic on numpy arrays in full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels import ops_int, values
from kernbench.kernels.values import AxisSum, Mask, Unfusable

PROGRAMS, ROWS, COLUMNS = 3, 4, 8
SHAPE = (ROWS, COLUMNS)
I32 = np.dtype(np.int32)
PREDICATES = ["slt", "sle", "sgt", "sge", "eq", "ne", "ult", "ule", "ugt", "uge"]


def full(x):
    """Any value as an array [PROGRAMS, *SHAPE] of what it stands for."""
    if isinstance(x, AxisSum):
        x = x.dense(I32)
    if isinstance(x, Mask):
        x = x.full()
    return np.broadcast_to(np.asarray(x), (PROGRAMS, *SHAPE))


IN_C = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.divsi": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "arith.remsi": lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
    "arith.minsi": min,
    "arith.maxsi": max,
    "arith.andi": lambda a, b: a & b,
    "arith.ori": lambda a, b: a | b,
    "arith.xori": lambda a, b: a ^ b,
    "arith.shrsi": lambda a, b: a >> b,
    "arith.divui": lambda a, b: a % 2**32 // (b % 2**32),
    "arith.remui": lambda a, b: a % 2**32 % (b % 2**32),
    "arith.shrui": lambda a, b: a % 2**32 >> b,
}
"""C's operations on 32-bit integers, before the result is cut to 32 bits."""


def reference(name, x, y):
    """An integer operation element by element."""
    out = np.empty((PROGRAMS, *SHAPE), np.int64)
    for at in np.ndindex(out.shape):
        out[at] = IN_C[name](int(x[at]), int(y[at]))
    return out.astype(np.int32)


def leaf(kind, numbers):
    """A block that a kernel starts from: a range along an axis, a splat of a number, or of one number a program."""
    if kind == "rows":
        return values.broadcast(values.expand_dims(values.arange(0, ROWS), 1), SHAPE)
    if kind == "columns":
        return values.broadcast(values.expand_dims(values.arange(2, 2 + COLUMNS), 0), SHAPE)
    if kind == "programs":
        return values.splat(np.array(numbers[:PROGRAMS], np.int32), SHAPE)
    return values.splat(int(numbers[0]), SHAPE)


small = st.lists(st.integers(-40, 1000), min_size=PROGRAMS, max_size=PROGRAMS)
wide = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=PROGRAMS, max_size=PROGRAMS)
leaves = st.tuples(st.sampled_from(["rows", "columns", "programs", "number"]), small | wide)


@settings(max_examples=400, deadline=None)
@given(start=leaves, steps=st.lists(st.tuples(st.sampled_from(sorted(IN_C)), leaves, st.booleans()), max_size=5))
def test_arithmetic_is_exact_and_wraps(start, steps):
    x = leaf(*start)
    for name, other, swap in steps:
        y = leaf(*other)
        if "shr" in name:
            y = abs(other[1][0]) % 31
        elif swap:
            x, y = y, x
        if "div" in name or "rem" in name:
            a, b = full(x), full(y)
            if (b == 0).any() or ((a == -(2**31)) & (b == -1)).any():
                continue
        fn = ops_int.unsigned(name, "i32") if name.endswith("ui") else ops_int.signed(name, "i32")
        expected = reference(name, full(x), full(y))
        x = fn(x, y)
        np.testing.assert_array_equal(full(x), expected, err_msg=name)
        if isinstance(x, AxisSum):
            assert x.lo <= expected.min() and expected.max() <= x.hi


@settings(max_examples=300, deadline=None)
@given(a=leaves, b=leaves, scale=st.integers(-5, 5), predicate=st.sampled_from(PREDICATES), c=leaves)
def test_comparisons_and_masks(a, b, scale, predicate, c):
    x = ops_int.signed("arith.muli", "i32")(leaf(*a), scale)
    y = leaf(*b)
    left, right = full(x), full(y)
    if predicate[0] == "u":
        left, right = left.astype(np.int64) % 2**32, right.astype(np.int64) % 2**32
    tests = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    test = {"eq": np.equal, "ne": np.not_equal}.get(predicate) or tests[predicate[1:]]
    expected = test(left, right)
    mask = ops_int.compare_ints(predicate, "i32")(x, y)
    np.testing.assert_array_equal(full(mask), expected)
    other = ops_int.compare_ints("slt", "i32")(leaf(*c), leaf("columns", [0]))
    both, either = ops_int._bool_and(mask, other), ops_int._bool_or(mask, other)
    np.testing.assert_array_equal(full(both), expected & full(other))
    np.testing.assert_array_equal(full(either), expected | full(other))
    np.testing.assert_array_equal(full(ops_int._bool_xor(mask, True)), ~expected)
    chosen = ops_int.select(both, x, y, I32)
    np.testing.assert_array_equal(full(chosen), np.where(full(both), full(x), full(y)))


@settings(max_examples=200, deadline=None)
@given(a=leaves, b=leaves, c=leaves, subset=st.lists(st.booleans(), min_size=PROGRAMS, max_size=PROGRAMS))
def test_programs_apart_and_together_again(a, b, c, subset):
    x = ops_int.signed("arith.addi", "i32")(leaf(*a), leaf(*b))
    y = ops_int.signed("arith.muli", "i32")(leaf(*b), leaf(*c))
    chosen = np.array(subset)
    sides = [np.flatnonzero(chosen), np.flatnonzero(~chosen)]
    parts = [(i, values.take(v, i)) for i, v in zip(sides, (x, y), strict=True) if len(i)]
    merged = values.merge(parts, PROGRAMS, False, I32)
    if isinstance(merged, np.ndarray) and merged.ndim == 1:
        merged = merged.reshape(-1, 1, 1)
    np.testing.assert_array_equal(full(merged), np.where(chosen[:, None, None], full(x), full(y)))


@settings(max_examples=100, deadline=None)
@given(a=leaves, b=leaves, c=leaves, subset=st.lists(st.booleans(), min_size=PROGRAMS, max_size=PROGRAMS))
def test_masks_apart_and_together_again(a, b, c, subset):
    less = ops_int.compare_ints("slt", "i32")
    x, y = less(leaf(*a), leaf(*b)), less(leaf(*b), leaf(*c))
    chosen = np.array(subset)
    sides = [np.flatnonzero(chosen), np.flatnonzero(~chosen)]
    parts = [(i, values.take(v, i)) for i, v in zip(sides, (x, y), strict=True) if len(i)]
    merged = values.merge(parts, PROGRAMS, False, np.dtype(np.bool_))
    if isinstance(merged, np.ndarray) and merged.ndim == 1:
        merged = merged.reshape(-1, 1, 1)
    np.testing.assert_array_equal(full(merged), np.where(chosen[:, None, None], full(x), full(y)))


def test_pointers_of_a_tile_stay_symbolic():
    """(pid*4 + arange)[:, None]*stride + arange[None, :] is a base per program and two strides."""
    add, mul = ops_int.signed("arith.addi", "i32"), ops_int.signed("arith.muli", "i32")
    rows = add(values.splat(np.arange(PROGRAMS, dtype=np.int32) * 4, (ROWS,)), values.arange(0, ROWS))
    wrapped = ops_int.signed("arith.remsi", "i32")(rows, 100)
    assert wrapped is rows  # every row is below 100: the remainder is proven away
    tile = add(
        values.broadcast(mul(values.expand_dims(wrapped, 1), 1000), SHAPE),
        values.broadcast(values.expand_dims(values.arange(0, COLUMNS), 0), SHAPE),
    )
    assert isinstance(tile, AxisSum)
    assert tile.terms == (1000, 1)
    np.testing.assert_array_equal(tile.base, [0, 4000, 8000])


def test_wrapped_rows_become_offsets_of_one_axis():
    rows = ops_int.signed("arith.remsi", "i32")(values.arange(0, ROWS), 3)
    assert isinstance(rows, AxisSum)
    np.testing.assert_array_equal(rows.along(0)[0], [0, 1, 2, 0])


def test_a_moving_block_has_no_values():
    moving = AxisSum((ROWS,), 0, (1,), 0, 100, 4)
    with pytest.raises(Unfusable):
        moving.dense()
    mask = values.compare("slt", moving, 50)
    assert isinstance(mask, Mask)
    assert mask.axes[0] == (0, 50, 0, -4)
