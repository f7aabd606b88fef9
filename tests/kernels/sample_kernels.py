"""Triton kernels that take the roads the tutorials do not."""

import triton
import triton.language as tl


@triton.jit
def gate_up(x, gate, up, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """silu(x @ gate) * (x @ up): two accumulators in one loop, addresses rebuilt from k."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    g = tl.zeros((BM, BN), tl.float32)
    u = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        a = tl.load(x + rm[:, None] * K + rk[None, :], mask=(rm[:, None] < M) & (rk[None, :] < K), other=0.0)
        inside = (rk[:, None] < K) & (rn[None, :] < N)
        at = rk[:, None] * N + rn[None, :]
        g = tl.dot(a, tl.load(gate + at, mask=inside, other=0.0), g)
        u = tl.dot(a, tl.load(up + at, mask=inside, other=0.0), u)
    h = g * tl.sigmoid(g) * u
    tl.store(out + rm[:, None] * N + rn[None, :], h, mask=(rm[:, None] < M) & (rn[None, :] < N))


@triton.jit
def interleaved(a, b, out, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    """Program axis 2 takes every SPLIT-th block of K; b is [N, K] and its tile is transposed."""
    piece = tl.program_id(2)
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = piece * BK + tl.arange(0, BK)
    pa = a + rm[:, None] * K + rk[None, :]
    pb = b + rn[:, None] * K + rk[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, K // (BK * SPLIT)):
        acc = tl.dot(tl.load(pa), tl.trans(tl.load(pb)), acc)
        pa += BK * SPLIT
        pb += BK * SPLIT
    tl.store(out + piece * M * N + rm[:, None] * N + rn[None, :], acc)


@triton.jit
def narrowed(a, b, out, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """f32 operands rounded to bf16 inside the loop, onto an accumulator that starts at one."""
    rm, rn, rk = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.full((BM, BN), 1.0, tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + (k + rk)[None, :]).to(tl.bfloat16)
        y = tl.load(b + (k + rk)[:, None] * N + rn[None, :]).to(tl.bfloat16)
        acc = tl.dot(x, y, acc)
    tl.store(out + rm[:, None] * N + rn[None, :], acc)


@triton.jit
def whole_numbers(a, b, out, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """int8 operands, int32 sums."""
    rm, rn, rk = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.int32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + (k + rk)[None, :])
        y = tl.load(b + (k + rk)[:, None] * N + rn[None, :])
        acc = tl.dot(x, y, acc, out_dtype=tl.int32)
    tl.store(out + rm[:, None] * N + rn[None, :], acc)


@triton.jit
def scaled(a, b, scale, out, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Each block of K has a scale of its own: this loop does more than a chain of dots."""
    rm, rn, rk = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + (k + rk)[None, :])
        y = tl.load(b + (k + rk)[:, None] * N + rn[None, :])
        acc += tl.dot(x, y) * tl.load(scale + k // BK)
    tl.store(out + rm[:, None] * N + rn[None, :], acc)


@triton.jit(noinline=True)
def halved(x):
    return x * 0.5


@triton.jit
def calls(x, out):
    at = tl.program_id(0)
    tl.store(out + at, halved(tl.load(x + at)))


@triton.jit
def half_sums(x, out, BLOCK: tl.constexpr):
    """A sum in f16, rounded after every addition."""
    row = tl.program_id(0)
    tl.store(out + row, tl.sum(tl.load(x + row * BLOCK + tl.arange(0, BLOCK)), axis=0))


@triton.jit
def cut_short(x, out, limit, BLOCK: tl.constexpr):
    """Rows end at different columns by their program id: trip counts, masks and a two-axis comparison at once."""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    for start in range(0, row * BLOCK + 1, BLOCK):
        keep = (i + start >= j) & (j < limit - start)
        total += tl.load(x + (start + i) * BLOCK + j, mask=keep, other=0.0)
    tl.store(out + row * BLOCK * BLOCK + i * BLOCK + j, total)
