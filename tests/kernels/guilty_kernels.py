"""Kernels with one fault each, and relatives without."""

import triton
import triton.language as tl


@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit
def dots(a, b, out, K, N: tl.constexpr, BK: tl.constexpr):
    """One block of a matrix product whose loop over K runs fused."""
    i, k = tl.arange(0, N), tl.arange(0, BK)
    acc = tl.zeros((N, N), tl.float32)
    for start in range(0, K, BK):
        left = tl.load(a + i[:, None] * K + (start + k)[None, :])
        right = tl.load(b + (start + k)[:, None] * N + i[None, :])
        acc = tl.dot(left, right, acc)
    tl.store(out + i[:, None] * N + i[None, :], acc)


@triton.jit
def overlapping(out, STEP: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    tl.store(out + pid * STEP + tl.arange(0, BLOCK), pid.to(tl.float32))


@triton.jit
def shift(x, BY: tl.constexpr, BLOCK: tl.constexpr):
    """x[i] = x[i + BY] + 1, in place: a race between neighbours unless BY is 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at + BY)
    tl.store(x + at, v + 1)


@triton.jit
def half_atomic(total):
    if tl.program_id(0) == 0:
        tl.atomic_add(total, 1.0)
    else:
        tl.store(total, 1.0)


@triton.jit
def all_atomic(total):
    tl.atomic_add(total, 1.0)


@triton.jit
def last_block(partial, count, out, PROGRAMS: tl.constexpr, SEM: tl.constexpr):
    pid = tl.program_id(0)
    tl.store(partial + pid, pid.to(tl.float32))
    if tl.atomic_add(count, 1, sem=SEM) == PROGRAMS - 1:
        tl.store(out, tl.sum(tl.load(partial + tl.arange(0, PROGRAMS)), axis=0))


@triton.jit
def locked(total, lock, TAKE: tl.constexpr):
    """Adds one under a lock; without TAKE the odd half of the programs ignores it."""
    pid = tl.program_id(0)
    if TAKE or pid % 2 == 0:
        while tl.atomic_cas(lock, 0, 1 if TAKE else 0) == 1:
            pass
    at = tl.arange(0, 4)
    v = tl.load(total + at)
    tl.store(total + at, v + 1)
    if TAKE:
        tl.atomic_xchg(lock, 0)


@triton.jit
def far(x, row, stride):
    offset = row * stride
    tl.store(x + offset, 0.0)


@triton.jit
def far_block(x, stride, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK) * stride
    tl.store(x + offset, 0.0, mask=offset < 8)


@triton.jit
def hashed(x, out):
    pid = tl.program_id(0)
    at = ((pid + 7) * 1640531527) & 7
    tl.store(out + pid, tl.load(x + at))


@triton.jit
def ratio(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x + at)
    y = 1.0 / x
    tl.store(out + at, y * 2)


@triton.jit
def difference(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x + at)
    y = 1 / x
    tl.store(out + at, y - y)


@triton.jit
def centred(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x + at)
    tl.store(out + at, x - tl.max(x, axis=0))


@triton.jit
def squares(x, out, BLOCK: tl.constexpr):
    """The sum of 16 numbers of 1e30 times 2e7 is more than f32 holds; each is not."""
    at = tl.arange(0, BLOCK)
    x = tl.load(x + at) * 3e7
    total = tl.sum(x, axis=0)
    tl.store(out + at, total)


@triton.jit
def squares_of(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x + at)
    tl.store(out + at, x * x)


@triton.jit
def masked_ratio(x, out, n, BLOCK: tl.constexpr):
    """Divides by zero, but only in elements that are not stored."""
    at = tl.arange(0, BLOCK)
    x = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, 1.0 / x, mask=at < n)


@triton.jit
def never_freed(total, lock):
    """Takes a lock and keeps it."""
    while tl.atomic_cas(lock + 1, 0, 1) == 1:
        pass
    tl.store(total, tl.load(total) + 1)


@triton.jit
def raced_and_lost(x, n):
    """All programs write the same element; then one reads past the end."""
    tl.store(x, 1.0)
    at = tl.program_id(0) * n
    tl.store(x + 1 + tl.program_id(0), tl.load(x + at))


@triton.jit
def scatter(to, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.load(to + at), 1.0)


@triton.jit
def rows_by_pointer(x, out, rows, n, BLOCK: tl.constexpr):
    """Adds up rows with a pointer that moves on."""
    at = tl.arange(0, BLOCK)
    row = x + at
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(rows):
        total += tl.load(row)
        row += n
    tl.store(out + at, total)


@triton.jit
def either(x, y, out, which, BLOCK: tl.constexpr):
    """Reads one of two tensors, whichever it is told."""
    at = tl.arange(0, BLOCK)
    source = x if which == 0 else y
    if which == 2:
        source = x + BLOCK
    tl.store(out + at, tl.load(source + at))


@triton.jit
def shifted_copy(y, out, start, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(y + start + at))


@triton.jit
def by_difference(x, y, out, BLOCK: tl.constexpr):
    """Reaches one tensor from another, by how far their addresses lie apart."""
    at = tl.arange(0, BLOCK)
    apart = (y.to(tl.int64) - x.to(tl.int64)) // 4
    tl.store(out + at, tl.load(x + apart + at))


@triton.jit
def through_a_table(table, out, BLOCK: tl.constexpr):
    """Copies the tensors whose addresses a table holds."""
    at = tl.arange(0, BLOCK)
    source = tl.load(table + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(out + tl.program_id(0) * BLOCK + at, tl.load(source + at))


@triton.jit
def doubled_dots(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """A matrix product of what is computed, not loaded; every program writes rows of its own."""
    i, j, k = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + i[:, None] * K + k[None, :]) * 2
    right = tl.load(b + k[:, None] * N + j[None, :])
    tl.store(out + i[:, None] * N + j[None, :], tl.dot(left, right))


@triton.jit
def reciprocals(x, out):
    """Of a number each, by programs that work together."""
    pid = tl.program_id(0)
    tl.store(out + pid, 1.0 / tl.load(x + pid))
