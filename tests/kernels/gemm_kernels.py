"""Matrix products that schedule their own tiles, as Triton's tutorials 08 (groups) and 09 (persistent programs) do."""

import triton
import triton.language as tl


@triton.jit
def grouped(
    a_addresses, b_addresses, c_addresses, sizes, strides, groups, DTYPE: tl.constexpr, PROGRAMS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """C[g] = A[g] @ B[g] of whole tiles; int64 tables hold where the matrices lie, int32 ones [groups, 3] their sizes
    (m, n, k) and row strides. A fixed number of programs walks over all tiles of all groups."""
    tile = tl.program_id(0)
    done = 0
    for g in range(groups):
        m, n, k = tl.load(sizes + g * 3), tl.load(sizes + g * 3 + 1), tl.load(sizes + g * 3 + 2)
        columns = tl.cdiv(n, N)
        tiles = tl.cdiv(m, M) * columns
        while tile >= done and tile < done + tiles:
            stride_a, stride_b = tl.load(strides + g * 3), tl.load(strides + g * 3 + 1)
            stride_c = tl.load(strides + g * 3 + 2)
            a = tl.load(a_addresses + g).to(tl.pointer_type(DTYPE))
            b = tl.load(b_addresses + g).to(tl.pointer_type(DTYPE))
            c = tl.load(c_addresses + g).to(tl.pointer_type(DTYPE))
            row = (tile - done) // columns * M + tl.arange(0, M)
            col = (tile - done) % columns * N + tl.arange(0, N)
            inner = tl.arange(0, K)
            a_block, b_block = (
                a + row[:, None] * stride_a + inner[None, :],
                b + inner[:, None] * stride_b + col[None, :],
            )
            total = tl.zeros((M, N), tl.float32)
            for _ in range(0, tl.cdiv(k, K)):
                tl.multiple_of(a_block, [16, 16])
                tl.multiple_of(b_block, [16, 16])
                total += tl.dot(tl.load(a_block), tl.load(b_block), input_precision="ieee")
                a_block += K
                b_block += K * stride_b
            tl.store(c + row[:, None] * stride_c + col[None, :], total.to(DTYPE))
            tile += PROGRAMS
        done += tiles


@triton.jit
def grouped_with_descriptors(
    a_addresses, b_addresses, c_addresses, sizes, strides, groups, DTYPE: tl.constexpr, PROGRAMS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The same with descriptors, made where a program enters a group, of A[m, k] and of B transposed, [n, k]."""
    tile = tl.program_id(0)
    done = 0
    for g in range(groups):
        m, n, k = tl.load(sizes + g * 3), tl.load(sizes + g * 3 + 1), tl.load(sizes + g * 3 + 2)
        columns = tl.cdiv(n, N)
        tiles = tl.cdiv(m, M) * columns
        if tile >= done and tile < done + tiles:
            stride_a, stride_b = tl.load(strides + g * 3), tl.load(strides + g * 3 + 1)
            stride_c = tl.load(strides + g * 3 + 2)
            a = tl.make_tensor_descriptor(
                tl.load(a_addresses + g).to(tl.pointer_type(DTYPE)), [m, k], [stride_a, 1], [M, K]
            )
            b = tl.make_tensor_descriptor(
                tl.load(b_addresses + g).to(tl.pointer_type(DTYPE)), [n, k], [stride_b, 1], [N, K]
            )
            c = tl.make_tensor_descriptor(
                tl.load(c_addresses + g).to(tl.pointer_type(DTYPE)), [m, n], [stride_c, 1], [M, N]
            )
            while tile >= done and tile < done + tiles:
                row, col = (tile - done) // columns * M, (tile - done) % columns * N
                total = tl.zeros((M, N), tl.float32)
                for at in range(0, tl.cdiv(k, K)):
                    total += tl.dot(a.load([row, at * K]), b.load([col, at * K]).T, input_precision="ieee")
                c.store([row, col], total.to(DTYPE))
                tile += PROGRAMS
        done += tiles


@triton.jit
def _place(tile, rows, in_group, GROUP: tl.constexpr):
    """Row and column of a tile, in groups of GROUP rows of tiles that share their columns' operands."""
    first = tile // in_group * GROUP
    height = min(rows - first, GROUP)
    return first + tile % height, tile % in_group // height


@triton.jit
def persistent(
    a, b, c, m, n, k, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn, M: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Each program takes every PROGRAMS-th tile; the epilogue counts its tiles apart from the prologue."""
    rows, columns, steps = tl.cdiv(m, M), tl.cdiv(n, N), tl.cdiv(k, K)
    start = tl.program_id(0)
    stored, inner = start - PROGRAMS, tl.arange(0, K)
    for tile in tl.range(start, rows * columns, PROGRAMS, flatten=True):
        row, col = _place(tile, rows, GROUP * columns, GROUP)
        i, j = row * M + tl.arange(0, M), col * N + tl.arange(0, N)
        i = tl.max_contiguous(tl.multiple_of(tl.where(i < m, i, 0), M), M)
        j = tl.max_contiguous(tl.multiple_of(tl.where(j < n, j, 0), N), N)
        total = tl.zeros((M, N), tl.float32)
        for step in range(steps):
            at = step * K + inner
            x = tl.load(
                a + (i[:, None] * stride_am + at[None, :] * stride_ak), mask=inner[None, :] < k - step * K, other=0
            )
            y = tl.load(
                b + (at[:, None] * stride_bk + j[None, :] * stride_bn), mask=inner[:, None] < k - step * K, other=0
            )
            total = tl.dot(x, y, total, input_precision="ieee")
        stored += PROGRAMS
        row, col = _place(stored, rows, GROUP * columns, GROUP)
        i, j = row * M + tl.arange(0, M), col * N + tl.arange(0, N)
        to = c + stride_cm * i[:, None] + stride_cn * j[None, :]
        tl.store(to, total.to(c.dtype.element_ty), mask=(i[:, None] < m) & (j[None, :] < n))


@triton.jit
def _descriptor(x, shape, strides, block: tl.constexpr):
    if isinstance(x, tl.tensor_descriptor):
        return x
    else:
        return tl.make_tensor_descriptor(x, shape, strides, block)


@triton.jit
def persistent_with_descriptors(
    a, b, c, m, n, k, DTYPE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr, HALVES: tl.constexpr, FLATTEN: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """A[m, k], B transposed [n, k] and C as descriptors of the host, or as pointers; HALVES stores a tile in two."""
    rows, columns, steps = tl.cdiv(m, M), tl.cdiv(n, N), tl.cdiv(k, K)
    WIDTH: tl.constexpr = N // 2 if HALVES else N
    a = _descriptor(a, [m, k], [k, 1], [M, K])
    b = _descriptor(b, [n, k], [k, 1], [N, K])
    c = _descriptor(c, [m, n], [n, 1], [M, WIDTH])
    start = tl.program_id(0)
    stored = start - PROGRAMS
    for tile in tl.range(start, rows * columns, PROGRAMS, flatten=FLATTEN, warp_specialize=SPECIALIZE):
        row, col = _place(tile, rows, GROUP * columns, GROUP)
        total = tl.zeros((M, N), tl.float32)
        for step in range(steps):
            x, y = a.load([row * M, step * K]), b.load([col * N, step * K])
            total = tl.dot(x, y.T, total, input_precision="ieee")
        stored += PROGRAMS
        row, col = _place(stored, rows, GROUP * columns, GROUP)
        if HALVES:
            left, right = tl.split(tl.permute(tl.reshape(total, (M, 2, N // 2)), (0, 2, 1)))
            c.store([row * M, col * N], left.to(DTYPE))
            c.store([row * M, col * N + N // 2], right.to(DTYPE))
        else:
            c.store([row * M, col * N], total.to(DTYPE))


@triton.jit
def tile_per_program(
    a, b, c, m, n, k, DTYPE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """Descriptors of the host, one tile a program, a loop over K that may be specialised."""
    rows, columns = tl.cdiv(m, M), tl.cdiv(n, N)
    row, col = _place(tl.program_id(0), rows, GROUP * columns, GROUP)
    total = tl.zeros((M, N), tl.float32)
    for step in tl.range(tl.cdiv(k, K), warp_specialize=SPECIALIZE):
        total = tl.dot(a.load([row * M, step * K]), b.load([col * N, step * K]).T, total, input_precision="ieee")
    c.store([row * M, col * N], total.to(DTYPE))


@triton.jit
def block_scaled(
    a, a_scale, b, b_scale, c, k, A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr, A_PACK: tl.constexpr,
    B_PACK: tl.constexpr, EACH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Host descriptors of A[m, k / A_PACK], B[n, k / B_PACK], C[m, n], and of scales in blocks of 128 rows by 4, as
    [1, rows / 128, k / EACH / 4, 2, 256]: within a block rows 0, 32, 64, 96 come first, then 1, 33 ..."""
    row, col = tl.program_id(0), tl.program_id(1)
    TALL: tl.constexpr = M // 128
    WIDE: tl.constexpr = N // 128
    DEEP: tl.constexpr = K // EACH // 4
    total = tl.zeros((M, N), tl.float32)
    for step in tl.range(0, tl.cdiv(k, K), disallow_acc_multi_buffer=True):
        x = a.load([row * M, step * (K // A_PACK)])
        y = b.load([col * N, step * (K // B_PACK)])
        sx = a_scale.load([0, row * TALL, step * DEEP, 0, 0])
        sy = b_scale.load([0, col * WIDE, step * DEEP, 0, 0])
        sx = sx.reshape(TALL, DEEP, 32, 4, 4).trans(0, 3, 2, 1, 4).reshape(M, K // EACH)
        sy = sy.reshape(WIDE, DEEP, 32, 4, 4).trans(0, 3, 2, 1, 4).reshape(N, K // EACH)
        total = tl.dot_scaled(x, sx, A_FORMAT, y.T, sy, B_FORMAT, total)
    c.store([row * M, col * N], total.to(DTYPE))
