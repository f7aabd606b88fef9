"""Kernels that communicate, right ones and wrong ones."""

import triton
import triton.language as tl

import kernbench.language as kl


@triton.jit
def identities(out):
    at = out + tl.program_id(0) * 5
    tl.store(at, kl.rank())
    tl.store(at + 1, kl.num_ranks())
    tl.store(at + 2, kl.pe())
    tl.store(at + 3, kl.num_pes())
    tl.store(at + 4, kl.program())


@triton.jit
def rotate(out, x, BLOCK: tl.constexpr, rounds):
    """Blocks go round the programs, by messages."""
    p, n = kl.program(), tl.num_programs(0)
    i = p * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i)
    for _ in range(rounds):
        kl.send(value, (p + 1) % n)
        value = kl.recv((BLOCK,), x.dtype.element_ty, (p - 1 + n) % n)
    tl.store(out + i, value)


@triton.jit
def message_to_next_rank(out, x, BLOCK: tl.constexpr):
    p, ranks = kl.program(), kl.num_ranks()
    i = p * BLOCK + tl.arange(0, BLOCK)
    kl.send(tl.load(x + i), p, (kl.rank() + 1) % ranks)
    tl.store(out + i, kl.recv((BLOCK,), x.dtype.element_ty, p, (kl.rank() + ranks - 1) % ranks))


@triton.jit
def reverse_by_barrier(out, scratch, SCOPE: tl.constexpr):
    """out[p] = what program n-1-p of the next rank wrote before the barrier."""
    p, n = kl.program(), tl.num_programs(0)
    peer = (kl.rank() + 1) % kl.num_ranks() if SCOPE == "world" else kl.rank()
    kl.put(scratch + p, 100 * kl.rank() + p, peer)
    kl.barrier(SCOPE)
    tl.store(out + p, tl.load(scratch + n - 1 - p))


@triton.jit
def look_ahead(out, flag):
    """out[p] = p + out[p+1]: every program spins for the next one."""
    p, last = tl.program_id(0), tl.num_programs(0) - 1
    total = p
    if p < last:
        while tl.load(flag + p + 1, volatile=True) == 0:
            pass
        total += tl.load(out + p + 1)
    tl.store(out + p, total)
    tl.atomic_xchg(flag + p, 1, sem="release")


@triton.jit
def look_back(out, flag):
    p = tl.program_id(0)
    total = p
    if p > 0:
        while tl.atomic_add(flag + p - 1, 0) == 0:
            pass
        total += tl.load(out + p - 1)
    tl.store(out + p, total)
    tl.atomic_xchg(flag + p, 1)


@triton.jit
def ping_pong(ball, out, rounds):
    """Two programs take turns in adding to a number."""
    p = tl.program_id(0)
    for _ in range(rounds):
        while tl.atomic_add(ball, 0) % 2 != p:
            pass
        tl.store(out, tl.load(out) * 3 + p + 1)
        tl.atomic_add(ball, 1)


@triton.jit
def impatient(flag, out):
    """Gives up after some tries; program 1 raises the flag in time."""
    p = tl.program_id(0)
    if p == 0:
        tries = 0
        while (tl.load(flag, volatile=True) == 0) & (tries < 1000):
            tries += 1
        tl.store(out, tries)
    else:
        tl.atomic_xchg(flag, 1)


@triton.jit
def pass_on(x, flag, n, STEPS: tl.constexpr):
    """One program: a block of n elements goes STEPS places round the ring, memory to memory."""
    right = (kl.rank() + 1) % kl.num_ranks()
    for step in range(STEPS):
        kl.copy(x + (step + 1) * n, x + step * n, n, right)
        kl.signal(flag + step, right, 1)
        kl.wait(flag + step, 1)


@triton.jit
def hand_over(x, out, flag, ORDER: tl.constexpr):
    """Program 0 writes, the others read."""
    p = tl.program_id(0)
    i = tl.arange(0, 16)
    if p == 0:
        tl.store(x + i, i)
        if ORDER == "signal":
            kl.signal(flag, value=1)
    elif ORDER == "signal":
        kl.wait(flag, 1)
    if ORDER == "barrier":
        kl.barrier()
    if p > 0:
        tl.store(out + p * 16 + i, tl.load(x + i))


@triton.jit
def counter(flag, out, rounds):
    """All programs count up; each waits for all, again and again, without a reset."""
    n = tl.num_programs(0)
    for i in range(rounds):
        kl.signal(flag, value=1, op="add")
        kl.wait(flag, (i + 1) * n)
    tl.store(out + tl.program_id(0), tl.load(flag))


@triton.jit
def reset_flag(flag, out, rounds):
    """Program 0 raises a flag, program 1 takes it down."""
    p = tl.program_id(0)
    for i in range(rounds):
        if p == 0:
            tl.store(out, i)
            kl.signal(flag, value=1)
            kl.wait(flag, 0, "==")
        else:
            kl.wait(flag, 1, "==")
            tl.store(out + 1 + i, tl.load(out))
            kl.signal(flag, value=0)


@triton.jit
def send_to(x, rank):
    kl.put(x, 1, rank)


@triton.jit
def wait_for_ever(flag):
    kl.wait(flag + tl.program_id(0), 7)


@triton.jit
def wait_elsewhere(flag):
    kl.wait(kl.remote(flag, 1 - kl.rank()), 1)


@triton.jit
def wrong_message(x):
    p = tl.program_id(0)
    if p == 0:
        kl.send(tl.load(x + tl.arange(0, 16)), 1)
    else:
        tl.store(x + tl.arange(0, 8), kl.recv((8,), tl.float32, 0))


@triton.jit
def one_rank_flag(flag, out):
    """Rank 1 spins, by hand, on what rank 0 writes from afar."""
    if kl.rank() == 0:
        kl.signal(flag, 1, 5)
    else:
        while tl.load(flag, volatile=True) != 5:
            pass
        tl.store(out, 1)


@triton.jit
def pull(out, x, BLOCK: tl.constexpr):
    """A block of every rank, read from afar."""
    i = tl.arange(0, BLOCK)
    for rank in range(kl.num_ranks()):
        tl.store(out + rank * BLOCK + i, tl.load(kl.remote(x, rank) + i))


@triton.jit
def never_received(x):
    if tl.program_id(0) == 0:
        kl.send(tl.load(x), 1)


@triton.jit
def spin_and_tell(count, go, out):
    """Program 0 counts while it waits for program 1, which waits until it has counted enough."""
    if tl.program_id(0) == 0:
        while tl.load(go, volatile=True) == 0:
            tl.atomic_add(count, 1)
    else:
        while tl.load(count, volatile=True) < 200:
            pass
        tl.store(out, tl.load(count))
        tl.atomic_xchg(go, 1)


@triton.jit
def count_everywhere(x):
    for rank in range(kl.num_ranks()):
        tl.atomic_add(kl.remote(x, rank), 1)


@triton.jit
def plain_flag(flag):
    if tl.program_id(0) == 0:
        kl.wait(flag, 1)
    else:
        tl.atomic_xchg(flag, 1)


@triton.autotune(configs=[triton.Config({"BLOCK": 16}), triton.Config({"BLOCK": 32})], key=["n"])
@triton.jit
def tuned(out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, kl.rank() + tl.zeros((BLOCK,), tl.int32), mask=i < n)


@triton.jit
def leaves_nan(out, flag):
    """Program 0 spins until program 1 has put a number in the place of NaN."""
    if tl.program_id(0) == 0:
        value = tl.load(flag, volatile=True)
        while value != value:
            value = tl.load(flag, volatile=True)
        tl.store(out, value)
    else:
        tl.store(flag, 3.0)


@triton.jit
def copied(dst, src, n):
    kl.copy(dst, src, n)


@triton.jit
def message_to_rank(x, rank):
    if kl.rank() != rank:
        kl.send(tl.load(x), 0, rank)


@triton.jit
def only_meet(out):
    kl.barrier("world")
    tl.store(out + tl.program_id(0), 1)


@triton.jit
def product_beside_writes(out, a, b, M, N, K, sa, sb, ka, kb, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """out = a @ b, both of which the programs write to, elsewhere, before they meet."""
    p = tl.program_id(0)
    tl.store(a + M * K + p, 1.0)
    tl.store(b + N * K + p, 1.0)
    kl.barrier()
    m, n, k = p * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK), tl.arange(0, STEP)
    acc = tl.full((BLOCK, BLOCK), 0.5, tl.float32)
    for at in range(0, K, STEP):
        inside = k < K - at
        x = tl.load(a + m[:, None] * sa + (at + k)[None, :] * ka, mask=(m < M)[:, None] & inside[None, :], other=0.0)
        y = tl.load(b + (at + k)[:, None] * kb + n[None, :] * sb, mask=inside[:, None] & (n < N)[None, :], other=0.0)
        acc = tl.dot(x, y, acc)
    tl.store(out + m[:, None] * N + n[None, :], acc, mask=(m < M)[:, None] & (n < N)[None, :])
