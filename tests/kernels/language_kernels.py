"""One small kernel for each part of the language."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def _larger_or_double(a, b):
    if a > b:
        return a
    else:
        return b * 2


@triton.jit
def _both(a, b):
    return a + b, a - b


@triton.jit
def mapped(x, y, out, other, B: tl.constexpr):
    r = tl.arange(0, B)
    a, b = tl.load(x + r), tl.load(y + r)
    tl.store(out + r, tl.map_elementwise(_larger_or_double, a, b))
    total, difference = tl.map_elementwise(_both, a, b)
    tl.store(other + r, total * difference)


@triton.jit
def swapped(x, expected, new, out, B: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(out + r, tl.atomic_cas(x + r, tl.load(expected + r), tl.load(new + r)))


@triton.jit
def reordered(x, out, R: tl.constexpr, C: tl.constexpr, HOW: tl.constexpr, K: tl.constexpr):
    row, col = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    a = tl.load(x + row * C + col)
    if HOW == "sort":
        b = tl.sort(a, 1)
    elif HOW == "descending":
        b = tl.sort(a, 1, descending=True)
    elif HOW == "topk":
        b = tl.topk(a, K)
    elif HOW == "flip":
        b = tl.flip(a, 1)
    elif HOW == "trans":
        b = tl.trans(a)
    elif HOW == "permute":
        b = tl.permute(a.reshape(R, C // 4, 4), (2, 0, 1))
    elif HOW == "interleave":
        b = tl.interleave(a, a + 1)
    elif HOW == "join":
        b = tl.join(a, a * 2)
    elif HOW == "split":
        b, c = tl.split(a.reshape(R, C // 2, 2))
        b = b - c
    elif HOW == "cat":
        b = tl.cat(tl.ravel(a), tl.ravel(a) + 1, can_reorder=True)
    elif HOW == "gather":
        b = tl.gather(a, ((col * 7 + row) % C).to(tl.int32), 1)
    elif HOW == "cumsum":
        b = tl.cumsum(a, 1)
    elif HOW == "cumsum_reverse":
        b = tl.cumsum(a, 0, reverse=True)
    elif HOW == "cumprod":
        b = tl.cumprod(a, 1)
    elif HOW == "sum":
        b = tl.sum(a, 1)
    elif HOW == "max":
        b = tl.max(a, 0)
    elif HOW == "min":
        b = tl.min(a, 1)
    elif HOW == "argmax":
        b = tl.argmax(a, 1).to(a.dtype)
    elif HOW == "argmin":
        b = tl.argmin(a, 0).to(a.dtype)
    flat = tl.ravel(b)
    tl.store(out + tl.arange(0, flat.shape[0]), flat)


@triton.jit
def _affine(a1, b1, a2, b2):
    return a1 * a2, b1 * a2 + b2


@triton.jit
def recurrence(a, b, out, N: tl.constexpr, REVERSE: tl.constexpr):
    """``h[i] = a[i] * h[i - 1] + b[i]`` by an associative scan of pairs."""
    r = tl.arange(0, N)
    _, h = tl.associative_scan((tl.load(a + r), tl.load(b + r)), 0, _affine, reverse=REVERSE)
    tl.store(out + r, h)


@triton.jit
def counted(x, out, N: tl.constexpr, BINS: tl.constexpr):
    a = tl.load(x + tl.arange(0, N))
    tl.store(out + tl.arange(0, BINS), tl.histogram(a, BINS, mask=a != 3))


@triton.jit
def random_bits(out, seed, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    a, b, c, d = tl.randint4x(seed, r)
    tl.store(out + r * 4, a)
    tl.store(out + r * 4 + 1, b)
    tl.store(out + r * 4 + 2, c)
    tl.store(out + r * 4 + 3, d)


@triton.jit
def random_numbers(uniform, normal, seed, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(uniform + r, tl.rand(seed, r))
    tl.store(normal + r, tl.randn(seed, r))


@triton.jit(noinline=True)
def _cube(x, n):
    if n > 2:
        return x * x * x
    return x * n


@triton.jit
def called(x, out, N: tl.constexpr):
    at = tl.program_id(0)
    tl.store(out + at, _cube(tl.load(x + at), at))


@triton.jit
def printed(x, B: tl.constexpr):
    tl.device_print("value", tl.load(x + tl.program_id(0) * B + tl.arange(0, B)))
    tl.device_print("scalar", tl.program_id(0) * 2)
    tl.device_print("done")
    tl.device_print("bits", tl.load(x + tl.arange(0, B)), tl.arange(0, B) - 1, hex=True)
    tl.device_print("byte", (tl.arange(0, B) - 1).to(tl.uint8))
    tl.device_print("at", x)


@triton.jit
def asserted(x, B: tl.constexpr):
    a = tl.load(x + tl.arange(0, B))
    tl.device_assert(a > 0, "expected only positive numbers")


@triton.jit
def cast(x, out, B: tl.constexpr, DOWN: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(out + r, tl.load(x + r).to(out.dtype.element_ty, fp_downcast_rounding=DOWN))


@triton.jit
def bent(x, out, B: tl.constexpr):
    """Through the 8-bit type and back, without memory in between."""
    r = tl.arange(0, B)
    a = tl.load(x + r)
    tl.store(out + r, a.to(tl.float8e4nv).to(tl.float32) + a.to(tl.float8e5).to(tl.float32))


@triton.jit
def bent_without_zero(x, out, B: tl.constexpr):
    """Through the 8-bit types that have no negative zero."""
    r = tl.arange(0, B)
    a = tl.load(x + r)
    tl.store(out + r, a.to(tl.float8e4b8).to(tl.float32) + a.to(tl.float8e5b16).to(tl.float32))


@triton.jit
def scaled(
    a, a_scale, b, b_scale, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    SCALED_B: tl.constexpr,
):  # fmt: skip
    pa: tl.constexpr = 2 if A == "e2m1" else 1
    pb: tl.constexpr = 2 if B == "e2m1" else 1
    x = tl.load(a + tl.arange(0, M)[:, None] * (K // pa) + tl.arange(0, K // pa)[None, :])
    y = tl.load(b + tl.arange(0, K // pb)[:, None] * N + tl.arange(0, N)[None, :])
    group = tl.arange(0, K // 32)[None, :]
    s = tl.load(a_scale + tl.arange(0, M)[:, None] * (K // 32) + group)
    if SCALED_B:
        t = tl.load(b_scale + tl.arange(0, N)[:, None] * (K // 32) + group)
        z = tl.dot_scaled(x, s, A, y, t, B)
    else:
        z = tl.dot_scaled(x, s, A, y, None, B)
    tl.store(out + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], z)


@triton.jit
def assembled(x, out, B: tl.constexpr, TEXT: tl.constexpr, HOW: tl.constexpr, PACK: tl.constexpr):
    r = tl.arange(0, B)
    y = tl.inline_asm_elementwise(TEXT, HOW, [tl.load(x + r)], out.dtype.element_ty, is_pure=True, pack=PACK)
    tl.store(out + r, y)


@triton.jit
def unpacked_bytes(x, whole, real, B: tl.constexpr):
    r = tl.arange(0, B)
    a, b = tl.inline_asm_elementwise(
        """
        {
            .reg .b8 byte<4>;
            mov.b32 {byte0, byte1, byte2, byte3}, $8;
            cvt.u32.u8 $0, byte0; cvt.u32.u8 $1, byte1; cvt.u32.u8 $2, byte2; cvt.u32.u8 $3, byte3;
        }
        cvt.rn.f32.s32 $4, $0; cvt.rn.f32.s32 $5, $1; cvt.rn.f32.s32 $6, $2; cvt.rn.f32.s32 $7, $3;
        mul.f32 $4, $4, 0.5; mul.f32 $5, $5, 0.5; mul.f32 $6, $6, 0.5; mul.f32 $7, $7, 0.5;
        """,
        "=r,=r,=r,=r,=f,=f,=f,=f,r", [tl.load(x + r)], (tl.int32, tl.float32), is_pure=True, pack=4,
    )  # fmt: skip
    tl.store(whole + r, a)
    tl.store(real + r, b)


@triton.jit
def larger(a, b):
    return tl.inline_asm_elementwise("max.NaN.f32 $0, $1, $2;", "=f,f,f", [a, b], tl.float32, is_pure=True, pack=1)


@triton.jit
def largest_of_rows(x, out, M: tl.constexpr, N: tl.constexpr):
    block = tl.load(x + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(out + tl.arange(0, M), tl.reduce(block, 1, larger))
    tl.store(out + M, larger(tl.load(x), tl.load(x + 1)))


@triton.jit
def register(NAME: tl.constexpr):
    return tl.inline_asm_elementwise("mov.u32 $0, " + NAME + ";", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def placed(out):
    row = out + (tl.program_id(0) + tl.program_id(1) * tl.num_programs(0)) * 5
    before = register("%clock")
    tl.store(row, register("%ctaid.x"))
    tl.store(row + 1, register("%ctaid.y"))
    tl.store(row + 2, register("%nctaid.x"))
    tl.store(row + 3, register("%smid"))
    tl.store(row + 4, register("%clock") - before)


@triton.jit
def device_function(x, y, out, B: tl.constexpr, NAME: tl.constexpr, BINARY: tl.constexpr):
    r = tl.arange(0, B)
    a = tl.load(x + r)
    if BINARY:
        tl.store(out + r, getattr(libdevice, NAME)(a, tl.load(y + r)))
    else:
        tl.store(out + r, getattr(libdevice, NAME)(a))


@triton.jit
def operators(x, y, out, B: tl.constexpr, OP: tl.constexpr):
    r = tl.arange(0, B)
    a, b = tl.load(x + r), tl.load(y + r)
    if OP == "+":
        c = a + b
    elif OP == "-":
        c = a - b
    elif OP == "*":
        c = a * b
    elif OP == "/":
        c = a / b
    elif OP == "//":
        c = a // b
    elif OP == "%":
        c = a % b
    elif OP == "&":
        c = a & b
    elif OP == "|":
        c = a | b
    elif OP == "^":
        c = a ^ b
    elif OP == "<<":
        c = a << (b & 7)
    elif OP == ">>":
        c = a >> (b & 7)
    elif OP == "min":
        c = tl.minimum(a, b)
    elif OP == "max":
        c = tl.maximum(a, b)
    elif OP == "where":
        c = tl.where(a < b, a, b)
    elif OP == "neg":
        c = -a
    elif OP == "abs":
        c = tl.abs(a)
    elif OP == "exp":
        c = tl.exp(a.to(tl.float32)).to(a.dtype)
    elif OP == "fma":
        c = tl.fma(a, b, a)
    elif OP == "clamp":
        c = tl.clamp(a, b * 0 - 1, b * 0 + 1)
    elif OP == "umulhi":
        c = tl.umulhi(a, b)
    tl.store(out + r, c)


@triton.jit
def lost_in_products(a, b, out, B: tl.constexpr):
    """What rounding takes from each product."""
    r = tl.arange(0, B)
    x, y = tl.load(a + r), tl.load(b + r)
    tl.store(out + r, tl.fma(x, y, -tl.load(out + r)))


@triton.jit
def block_pointers(a, b, out, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """A matrix product; ``b`` lies transposed and is read in the other order."""
    row, col = tl.program_id(0) * M, tl.program_id(1) * N
    x = tl.make_block_ptr(a, (m, k), (k, 1), (row, 0), (M, K), (1, 0))
    y = tl.make_block_ptr(b, (k, n), (1, k), (0, col), (K, N), (0, 1))
    total = tl.zeros((M, N), tl.float32)
    for _ in range(0, k, K):
        left = tl.load(x, boundary_check=(0, 1), padding_option="zero")
        right = tl.load(y, boundary_check=(0, 1), padding_option="zero")
        total = tl.dot(left, right, total, input_precision="ieee")
        x = tl.advance(x, (0, K))
        y = tl.advance(y, (K, 0))
    z = tl.make_block_ptr(out, (m, n), (n, 1), (row, col), (M, N), (1, 0))
    tl.store(z, total.to(out.dtype.element_ty), boundary_check=(0, 1))
