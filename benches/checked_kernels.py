"""Kernels for ``sanitizer_cost.py`` that tutorials do not have: in place, with atomics, with addresses from memory."""

import triton
import triton.language as tl


@triton.jit
def cross_entropy(x, target, loss, stride, n_cols, ignored, BLOCK: tl.constexpr):
    """Loss of each row and, over the logits themselves, its gradient; rows with an ignored target are zeroed."""
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(target + row)
    x += row * stride
    if y == ignored:
        for i in range(0, n_cols, BLOCK):
            at = i + tl.arange(0, BLOCK)
            tl.store(x + at, 0.0, mask=at < n_cols)
        return
    of_target = tl.load(x + y).to(tl.float32)
    most, total = float("-inf"), 0.0
    for i in range(0, n_cols, BLOCK):
        at = i + tl.arange(0, BLOCK)
        block = tl.load(x + at, mask=at < n_cols, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(block))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(block - larger))
        most = larger
    for i in range(0, n_cols, BLOCK):
        at = i + tl.arange(0, BLOCK)
        block = tl.load(x + at, mask=at < n_cols, other=float("-inf")).to(tl.float32)
        tl.store(x + at, tl.where(at == y, -1.0, 0.0) + tl.exp(block - most) / total, mask=at < n_cols)
    tl.store(loss + row, most + tl.log(total) - of_target)


@triton.jit
def histogram(x, counts, n, BINS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    tl.atomic_add(counts + (tl.load(x + at, mask=keep, other=0) & (BINS - 1)), 1, mask=keep)


@triton.jit
def permute(x, source, to, out, n, BLOCK: tl.constexpr):
    """Reads elements wherever memory says, and writes them wherever it says."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    value = tl.load(x + tl.load(source + at, mask=keep), mask=keep)
    tl.store(out + tl.load(to + at, mask=keep), value, mask=keep)


@triton.jit
def rows_of(table, index, out, COLUMNS: tl.constexpr):
    """An embedding: a row of a table for each program."""
    row, at = tl.program_id(0), tl.arange(0, COLUMNS)
    tl.store(out + row * COLUMNS + at, tl.load(table + tl.load(index + row) * COLUMNS + at))


@triton.jit
def add_to_rows(grad, index, table, COLUMNS: tl.constexpr):
    """Its backward pass: programs add to the same rows."""
    row, at = tl.program_id(0), tl.arange(0, COLUMNS)
    tl.atomic_add(table + tl.load(index + row) * COLUMNS + at, tl.load(grad + row * COLUMNS + at))


@triton.jit
def compact(x, out, count, n, BLOCK: tl.constexpr):
    """Collects what is positive; programs ask a counter where theirs goes."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=-1.0)
    keep = (value > 0).to(tl.int32)
    first = tl.atomic_add(count, tl.sum(keep))
    tl.store(out + first + tl.cumsum(keep) - keep, value, mask=value > 0)


@triton.jit
def last_sums(x, partial, count, out, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """A sum in two steps; the program that a counter says is the last adds up what all others left."""
    pid = tl.program_id(0)
    tl.store(partial + pid, tl.sum(tl.load(x + pid * BLOCK + tl.arange(0, BLOCK))))
    if tl.atomic_add(count, 1) == PROGRAMS - 1:
        tl.store(out, tl.sum(tl.load(partial + tl.arange(0, PROGRAMS))))
