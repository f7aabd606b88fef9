"""Kernels whose programs meet in memory."""

import triton
import triton.language as tl


@triton.jit
def claim(keys, table, found, n, SIZE: tl.constexpr, B: tl.constexpr):
    """Each key tries to take its slot of an empty table, and keeps what it found there."""
    at = tl.program_id(0) * B + tl.arange(0, B)
    key = tl.load(keys + at, mask=at < n, other=0)
    old = tl.atomic_cas(table + key * 31 % SIZE, tl.zeros((B,), tl.int32), key + 1)
    tl.store(found + at, old, mask=at < n)


@triton.jit
def claim_once(flag, winner, B: tl.constexpr):
    """Whoever takes the flag says so: which way a program goes depends on the one before."""
    if tl.atomic_cas(flag, 0, 1) == 0:
        tl.store(winner, tl.program_id(0))


@triton.jit
def claim_and_look(flag, seen):
    """A flag that is read in another way too."""
    old = tl.atomic_xchg(flag, tl.program_id(0) + 1)
    tl.store(seen + tl.program_id(0), old + tl.load(flag))


@triton.jit
def meet(x, out, old, SIZE: tl.constexpr, B: tl.constexpr, KIND: tl.constexpr):
    """Many lanes change few elements and keep what they found."""
    at = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + at)
    slot = out + at * 7 % SIZE
    if KIND == "add":
        found = tl.atomic_add(slot, v)
    elif KIND == "max":
        found = tl.atomic_max(slot, v)
    else:
        found = tl.atomic_xchg(slot, v)
    tl.store(old + at, found)


@triton.jit
def experts(
    a, b, c, weights, tokens, expert_of, count, valid, N, K,
    TOP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A mixture of experts: blocks of tokens sorted by expert; memory says which rows of ``a`` and matrix of ``b``."""
    pm, pn = tl.program_id(0), tl.program_id(1)
    if pm * BM >= tl.load(count):
        return
    token = tl.load(tokens + pm * BM + tl.arange(0, BM)).to(tl.int64)
    real = token < valid
    expert = tl.load(expert_of + pm).to(tl.int64)
    rn, rk = (pn * BN + tl.arange(0, BN)) % N, tl.arange(0, BK)
    ap = a + token[:, None] // TOP * K + rk[None, :]
    bp = b + expert * N * K + rk[:, None] + rn[None, :] * K
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        x = tl.load(ap, mask=real[:, None] & (rk[None, :] < K - k * BK), other=0.0)
        y = tl.load(bp, mask=rk[:, None] < K - k * BK, other=0.0)
        acc += tl.dot(x, y)
        ap += BK
        bp += BK
    acc = acc * tl.load(weights + token, mask=real, other=0.0)[:, None]
    columns = pn * BN + tl.arange(0, BN)
    tl.store(c + token[:, None] * N + columns[None, :], acc, mask=real[:, None] & (columns[None, :] < N))
