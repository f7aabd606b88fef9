"""Kernels that name memory by tensor descriptors."""

import triton
import triton.language as tl


@triton.jit
def shift(source, out, m, n, stride, row, col, R: tl.constexpr, C: tl.constexpr, PAD: tl.constexpr):
    """``out[0:R, 0:C] = source[row:, col:]``, cut at the tensor's edges."""
    if PAD == "zero":
        a = tl.make_tensor_descriptor(source, [m, n], [stride, 1], [R, C])
    else:
        a = tl.make_tensor_descriptor(source, [m, n], [stride, 1], [R, C], padding_option=PAD)
    b = tl.make_tensor_descriptor(out, [R, C], [C, 1], [R, C])
    b.store([0, 0], a.load([row, col]))


@triton.jit
def matmul(a, b, out, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    left = tl.make_tensor_descriptor(a, [m, k], [k, 1], [M, K])
    right = tl.make_tensor_descriptor(b, [n, k], [k, 1], [N, K])
    target = tl.make_tensor_descriptor(out, [m, n], [n, 1], [M, N])
    row, col = tl.program_id(0) * M, tl.program_id(1) * N
    total = tl.zeros((M, N), tl.float32)
    for at in range(0, tl.cdiv(k, K)):
        total = tl.dot(left.load([row, at * K]), right.load([col, at * K]).T, total)
    target.store([row, col], total.to(tl.float16))


@triton.jit
def host_matmul(left, right, target, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, col = tl.program_id(0) * M, tl.program_id(1) * N
    total = tl.zeros((M, N), tl.float32)
    for at in range(0, tl.cdiv(k, K)):
        total = tl.dot(left.load([row, at * K]), right.load([at * K, col]), total)
    target.store([row, col], total.to(tl.float16))


@triton.jit
def rows(source, out, m, n, stride, index, col, R: tl.constexpr, C: tl.constexpr):
    """``out[index[i]] = source[index[i]] + 1``, columns ``col`` to ``col + C``."""
    a = tl.make_tensor_descriptor(source, [m, n], [stride, 1], [1, C])
    b = tl.make_tensor_descriptor(out, [m, n], [stride, 1], [1, C])
    which = tl.load(index + tl.arange(0, R))
    b.scatter(a.gather(which, col) + 1, which, col)


@triton.jit
def add_up(out, source, m, n, R: tl.constexpr, C: tl.constexpr, HOW: tl.constexpr):
    a = tl.make_tensor_descriptor(source, [m, n], [n, 1], [R, C])
    b = tl.make_tensor_descriptor(out, [m, n], [n, 1], [R, C])
    for row in range(0, m, R):
        for col in range(0, n, C):
            x = a.load([row, col])
            if HOW == "add":
                b.atomic_add([row, col], x)
            elif HOW == "max":
                b.atomic_max([row, col], x)
            elif HOW == "min":
                b.atomic_min([row, col], x)
            elif HOW == "xor":
                b.atomic_xor([row, col], x)


@triton.jit
def merge(target, source, n, R: tl.constexpr, HOW: tl.constexpr):
    """Into a descriptor made on the host."""
    x = tl.load(source + tl.arange(0, R), mask=tl.arange(0, R) < n, other=0)
    if HOW == "max":
        target.atomic_max([0], x)
    else:
        target.atomic_min([0], x)


@triton.jit
def padded_copy(source, target, row, col):
    """``target = source[row:, col:]``, of descriptors made on the host."""
    target.store([0, 0], source.load([row, col]))


@triton.jit
def chosen(a, b, out, n, which, C: tl.constexpr):
    """Descriptors through a branch and a loop that swaps them."""
    first = tl.make_tensor_descriptor(a, [n], [1], [C])
    second = tl.make_tensor_descriptor(b, [n], [1], [C])
    if which > 0:
        now = first
    else:
        now = second
    other = tl.make_tensor_descriptor(b, [n], [1], [C])
    target = tl.make_tensor_descriptor(out, [2 * n], [1], [C])
    for i in range(0, 2):
        target.store([i * n], now.load([0]))
        now, other = other, now


@triton.jit
def three(source, out, x, y, z, X: tl.constexpr, Y: tl.constexpr, Z: tl.constexpr):
    a = tl.make_tensor_descriptor(source, [x, y, z], [y * z, z, 1], [1, Y, Z])
    b = tl.make_tensor_descriptor(out, [X, Y, Z], [Y * Z, Z, 1], [X, Y, Z])
    at = tl.program_id(0)
    block = a.load([at, 0, 0]).reshape(Y, Z)
    b.store([0, 0, 0], tl.broadcast_to(block[None], (X, Y, Z)))
