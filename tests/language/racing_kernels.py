"""Kernels of several ranks with a race each, which a constant mends."""

import triton
import triton.language as tl

import kernbench.language as kl


@triton.jit
def mailbox(inbox, flag, out, WAIT: tl.constexpr, HOW: tl.constexpr):
    """Every rank writes to its right neighbour, who reads it; without WAIT at once."""
    i = tl.arange(0, 16)
    right = (kl.rank() + 1) % kl.num_ranks()
    if HOW == "copy":
        kl.copy(inbox + 16, inbox, 16, right)
    elif HOW == "atomic":
        tl.atomic_add(kl.remote(inbox, right) + 16 + i, 1.0)
    else:
        kl.put(inbox + 16 + i, i.to(tl.float32), right)
    kl.signal(flag, right)
    if WAIT:
        kl.wait(flag, 1)
    tl.store(out + i, tl.load(inbox + 16 + i))


@triton.jit
def everybody_to_rank_0(inbox, APART: tl.constexpr):
    """Two ranks put in one place."""
    i = tl.arange(0, 16)
    kl.put(inbox + kl.rank() * APART + i, i.to(tl.float32), 0)


@triton.jit
def gather_to_rank_0(inbox, flag, out, ENOUGH: tl.constexpr):
    """Rank 0 adds up what all others put; it has to wait for all of them."""
    i = tl.arange(0, 16)
    if kl.rank() > 0:
        kl.put_signal(inbox + kl.rank() * 16 + i, i.to(tl.float32), flag, 0, 1, "add")
    else:
        kl.wait(flag, ENOUGH)
        for r in range(1, kl.num_ranks()):
            tl.store(out + i, tl.load(inbox + r * 16 + i))


@triton.jit
def reuse(inbox, flag, free, rounds, CREDIT: tl.constexpr):
    """One buffer, again and again: it may be written only after it has been read."""
    i = tl.arange(0, 16)
    total = tl.zeros((16,), tl.float32)
    for n in range(rounds):
        if kl.rank() == 0:
            if CREDIT:
                kl.wait(free, n)
            kl.put_signal(inbox + i, total + n, flag, 1, n + 1)
        else:
            kl.wait(flag, n + 1)
            total += tl.load(inbox + i)
            kl.signal(free, 0, n + 1)


@triton.jit
def round_about(x, flag, out, LAST: tl.constexpr):
    """Program 0 of rank 0 writes its own memory; program 1 of rank 0 reads it, told so by way of rank 1."""
    i = tl.arange(0, 16)
    p = tl.program_id(0)
    if kl.rank() == 0:
        if p == 0:
            tl.store(x + i, i.to(tl.float32))
            kl.signal(flag, 1)
        else:
            if LAST:
                kl.wait(flag + 1, 1)
            tl.store(out + i, tl.load(x + i))
    elif p == 0:
        kl.wait(flag, 1)
        kl.signal(flag + 1, 0)


@triton.jit
def told_by_message(x, out, BY: tl.constexpr):
    """A put that a message, or a barrier, follows."""
    i = tl.arange(0, 16)
    peer = 1 - kl.rank()
    kl.put(x + i, i.to(tl.float32), peer)
    if BY == "message":
        kl.send(peer, 0, peer)
        kl.recv((), tl.int32, 0, peer)
    if BY == "barrier":
        kl.barrier("world")
    tl.store(out + i, tl.load(x + i))


@triton.jit
def put_to_the_right(x):
    i = tl.arange(0, 16)
    kl.put(x + i, i.to(tl.float32), (kl.rank() + 1) % kl.num_ranks())


@triton.jit
def plain_read(out, x):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def spin_for_a_peer(x, flag, out, SEM: tl.constexpr):
    i = tl.arange(0, 16)
    if kl.rank() == 0:
        kl.put(x + i, i.to(tl.float32), 1)
        tl.atomic_xchg(kl.remote(flag, 1), 1, sem=SEM)
    else:
        while tl.atomic_add(flag, 0, sem="acquire") == 0:
            pass
        tl.store(out + i, tl.load(x + i))
