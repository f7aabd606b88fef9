"""Kernels to look into: dumped, interpreted, tuned."""

import triton
import triton.language as tl


@triton.jit
def row_sums(x, out, n, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        part = tl.load(x + row * n + at, mask=at < n, other=0.0)
        total += part * scale.to(tl.float32)
    tl.store(out + row, tl.sum(total, axis=0))


@triton.jit
def product(a, b, c, K, N: tl.constexpr, BK: tl.constexpr):
    """A loop over K that runs as one matrix product unless one looks into it."""
    i, k = tl.arange(0, N), tl.arange(0, BK)
    a_ptrs = a + i[:, None] * K + k[None, :]
    b_ptrs = b + k[:, None] * N + i[None, :]
    acc = tl.zeros((N, N), tl.float32)
    for _ in range(0, K, BK):
        left = tl.load(a_ptrs)
        right = tl.load(b_ptrs)
        acc = tl.dot(left, right, acc)
        a_ptrs += BK
        b_ptrs += BK * N
    tl.store(c + i[:, None] * N + i[None, :], acc)


@triton.autotune(
    configs=[
        triton.Config({"BLOCK": 16}),
        triton.Config({"BLOCK": 1024}),
        triton.Config({"BLOCK": 1 << 20}),
        triton.Config({"BLOCK": 32}, num_stages=1),
    ],
    key=["n"],
)
@triton.jit
def tuned_copy(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n), mask=at < n)


@triton.autotune(
    configs=[triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 64})],
    key=["n"],
    restore_value=["x"],
    reset_to_zero=["count"],
)
@triton.jit
def increment(x, count, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)
    tl.atomic_add(count, 1)


@triton.jit
def copy_block(src, dst, M, N, stride, START: tl.constexpr, BLOCK: tl.constexpr):
    desc = tl.make_tensor_descriptor(src + START, [M, N], [stride, 1], [BLOCK, BLOCK])
    at = tl.arange(0, BLOCK)
    tl.store(dst + at[:, None] * BLOCK + at[None, :], desc.load([0, 0]))


@triton.jit
def copy_from(desc, dst, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(dst + at[:, None] * BLOCK + at[None, :], desc.load([0, 0]))
