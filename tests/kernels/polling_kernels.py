"""Kernels of Triton 3.9's ordered loads, stores and polls."""

import triton
import triton.language as tl


@triton.jit
def moved(x, out, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.atomic_store(out + r, tl.atomic_load(x + r, mask=r < n), mask=r < n)


@triton.jit
def handed_over(flags, payload, out, B: tl.constexpr):
    """The first program waits for all others, each of which writes and then raises a flag."""
    r = tl.arange(0, B)
    if tl.program_id(0) == 0:
        tl.atomic_poll(flags + r, r + 5)
        tl.store(out + r, tl.load(payload + r))
    else:
        at = tl.program_id(0) - 1
        tl.store(payload + at, at * at)
        tl.atomic_store(flags + at, at + 5)


@triton.jit
def polled(flag, seen, late, timeout):
    """The flag is raised by a program that runs later, or by none."""
    if tl.program_id(0) == 0:
        tl.store(seen, tl.atomic_poll(flag, 1, timeout_ns=timeout).to(tl.int32) + 10)
    elif late:
        tl.atomic_store(flag, 1)
