"""Kernels whose blocks of pointers reach into several tensors."""

import triton
import triton.language as tl


@triton.jit
def interleave(a, b, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = tl.where(i % 2 == 0, a + i, b + i)
    tl.store(out + i, tl.load(source, mask=i < n, other=-1.0), mask=i < n)


@triton.jit
def concatenate(a, b, out, rows, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = tl.where(i < rows, a + i, b + i - rows)
    tl.store(out + i, tl.load(source, mask=i < n), mask=i < n)


@triton.jit
def distribute(x, a, b, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n)
    tl.store(tl.where(value > 0, a + i, b + i), value, mask=i < n)
    tl.atomic_add(tl.where(value > 0, a, b) + n + tl.zeros((BLOCK,), tl.int32), 1.0, mask=i < n)


@triton.jit
def by_program(addresses, sizes, out, BLOCK: tl.constexpr):
    g = tl.program_id(0)
    source = tl.load(addresses + g).to(tl.pointer_type(tl.float32))
    n = tl.load(sizes + g)
    i = tl.arange(0, BLOCK)
    for start in range(0, n, BLOCK):
        x = tl.load(source + start + i, mask=start + i < n, other=0.0)
        tl.store(out + g * 4 * BLOCK + start + i, x, mask=start + i < n)


@triton.jit
def by_element(addresses, x, K: tl.constexpr):
    i = tl.arange(0, K)
    target = tl.load(addresses + i).to(tl.pointer_type(tl.float32))
    old = tl.load(target + 1)
    tl.store(target, tl.load(x + i))
    tl.atomic_add(target + 1, old)


@triton.jit
def strided(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    while i < n:
        lanes = i * BLOCK + tl.arange(0, BLOCK)
        tl.store(out + lanes, tl.load(x + lanes) * 2)
        i += tl.num_programs(0)


@triton.jit
def search(sorted_values, wanted, out, n):
    w = tl.load(wanted + tl.program_id(0))
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if tl.load(sorted_values + middle) < w:
            low = middle + 1
        else:
            high = middle
    tl.store(out + tl.program_id(0), low)


@triton.jit
def ticket(counter, out):
    me = tl.program_id(0)
    while tl.load(counter, volatile=True) != me:
        pass
    tl.store(out + me, me)
    tl.atomic_add(counter, 1)


@triton.jit
def plus(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)
