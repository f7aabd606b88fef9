"""Kernel files as people write them who have never heard of KernBench, and what is to be found out about each.

The text after each name is a whole file.
"""

HEAD = """import triton
import triton.language as tl


"""

ADD = (
    HEAD
    + """@triton.jit
def add_kernel(x_ptr, y_ptr, output_ptr, n_elements, BLOCK_SIZE: tl.constexpr):
    pid = tl.program_id(axis=0)
    offsets = pid * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offsets < n_elements
    total = tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask)
    tl.store(output_ptr + offsets, total, mask=mask)
"""
)

SOFTMAX = (
    HEAD
    + """@triton.jit
def softmax(out, inp, inp_row_stride, out_row_stride, n_rows, n_cols, BLOCK: tl.constexpr):
    for row in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        cols = tl.arange(0, BLOCK)
        x = tl.load(inp + row * inp_row_stride + cols, mask=cols < n_cols, other=-float("inf"))
        e = tl.exp(x - tl.max(x, axis=0))
        tl.store(out + row * out_row_stride + cols, e / tl.sum(e, axis=0), mask=cols < n_cols)
"""
)

MATMUL = (
    HEAD
    + """def configs():
    return [
        triton.Config({"BM": 32, "BN": 64, "BK": 32, "GROUP": 4}, num_stages=s, num_warps=4) for s in (2, 3)
    ] + [triton.Config({"BM": 1024, "BN": 1024, "BK": 32, "GROUP": 4})]


@triton.autotune(configs=configs(), key=["M", "N", "K"])
@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
           BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = pid // (GROUP * tiles_n) * GROUP
    rows = min(tiles_m - first, GROUP)
    pid_m = first + pid % (GROUP * tiles_n) % rows
    pid_n = pid % (GROUP * tiles_n) // rows
    offs_m = (pid_m * BM + tl.arange(0, BM)) % M
    offs_n = (pid_n * BN + tl.arange(0, BN)) % N
    offs_k = tl.arange(0, BK)
    a_ptrs = a_ptr + offs_m[:, None] * stride_am + offs_k[None, :] * stride_ak
    b_ptrs = b_ptr + offs_k[:, None] * stride_bk + offs_n[None, :] * stride_bn
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        a = tl.load(a_ptrs, mask=offs_k[None, :] < K - k * BK, other=0.0)
        b = tl.load(b_ptrs, mask=offs_k[:, None] < K - k * BK, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BK * stride_ak
        b_ptrs += BK * stride_bk
    cm, cn = pid_m * BM + tl.arange(0, BM), pid_n * BN + tl.arange(0, BN)
    inside = (cm[:, None] < M) & (cn[None, :] < N)
    tl.store(c_ptr + stride_cm * cm[:, None] + stride_cn * cn[None, :], acc.to(tl.float16), mask=inside)
"""
)

LAYER_NORM = (
    HEAD
    + """@triton.heuristics({
    "BLOCK": lambda args: triton.next_power_of_2(args["N"]),
    "HAS_BIAS": lambda args: args["B"] is not None,
})
@triton.jit
def layer_norm(X, Y, W, B, Mean, stride_x, stride_y, M, N, eps, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr):
    row = tl.program_id(0)
    X += row * stride_x
    Y += row * stride_y
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + cols, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / N
    tl.store(Mean + row, mean)
    centred = tl.where(mask, x - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / N + eps)
    y = centred * scale * tl.load(W + cols, mask=mask)
    if HAS_BIAS:
        y += tl.load(B + cols, mask=mask)
    tl.store(Y + cols, y, mask=mask)
"""
)

ATTENTION = (
    HEAD
    + """@triton.jit
def _step(acc, l, m, q, k, v, scale):
    s = tl.dot(q, tl.trans(k)) * scale
    new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp(s - new[:, None])
    keep = tl.exp(m - new)
    return acc * keep[:, None] + tl.dot(p, v), l * keep + tl.sum(p, 1), new


@triton.jit
def attention(Q, K, V, Out, sm_scale, stride_qh, stride_qm, stride_kh, stride_kn, stride_oh, stride_om, N_CTX,
              HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1)
    dim = tl.arange(0, HEAD_DIM)
    q = tl.load(Q + head * stride_qh + rows[:, None] * stride_qm + dim[None, :], mask=rows[:, None] < N_CTX, other=0.0)
    m = tl.full([BLOCK_M], -1e30, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    for start in range(0, N_CTX, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        at = head * stride_kh + keys[:, None] * stride_kn + dim[None, :]
        k = tl.load(K + at, mask=keys[:, None] < N_CTX, other=0.0)
        v = tl.load(V + at, mask=keys[:, None] < N_CTX, other=0.0)
        acc, l, m = _step(acc, l, m, q, k, v, sm_scale)
    at = head * stride_oh + rows[:, None] * stride_om + dim[None, :]
    tl.store(Out + at, acc / l[:, None], mask=rows[:, None] < N_CTX)
"""
)

EMBEDDING = (
    HEAD
    + """@triton.jit
def embed(ids, table, out, n_tokens, dim, BLOCK: tl.constexpr):
    t = tl.program_id(0)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + t)
    tl.store(out + t * dim + j, tl.load(table + row * dim + j, mask=j < dim, other=0.0), mask=j < dim)
"""
)

SEVERAL = (
    HEAD
    + """@triton.jit
def histogram(x_ptr, bins_ptr, n, N_BINS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0)
    tl.atomic_add(bins_ptr + x % N_BINS, 1, mask=at < n)


@triton.jit
def total(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + at, mask=at < n, other=0.0), axis=0))
"""
)

DESCRIPTORS = (
    HEAD
    + """@triton.jit
def double(src, dst, M, N, stride_m, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    a = tl.make_tensor_descriptor(src, shape=[M, N], strides=[stride_m, 1], block_shape=[BLOCK_M, BLOCK_N])
    b = tl.make_tensor_descriptor(dst, shape=[M, N], strides=[stride_m, 1], block_shape=[BLOCK_M, BLOCK_N])
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    b.store([m, n], a.load([m, n]) * 2)
"""
)

OFF_BY_ONE = (
    HEAD
    + """@triton.jit
def scale(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs <= n
    x = tl.load(x_ptr + offs, mask=mask)
    tl.store(y_ptr + offs, x * factor, mask=mask)
"""
)

ONE_MASK_MISSING = (
    HEAD
    + """@triton.jit
def rms_norm(X, W, Y, stride, n_cols, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(X + row * stride + cols, mask=cols < n_cols, other=0.0)
    w = tl.load(W + cols)
    tl.store(Y + row * stride + cols, x * w / tl.sqrt(tl.sum(x * x) / n_cols), mask=cols < n_cols)
"""
)

NO_MASK = (
    HEAD
    + """@triton.jit
def copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs), mask=offs < n)
"""
)

MASK_TOO_WIDE = (
    HEAD
    + """@triton.jit
def double(x_ptr, out_ptr, stride, n_cols, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * stride + cols, mask=cols < n_cols)
    tl.store(out_ptr + tl.program_id(0) * stride + cols, x * 2, mask=cols <= n_cols)
"""
)

RACE = (
    HEAD
    + """@triton.jit
def smooth(x_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(x_ptr + i - 1, mask=(i > 0) & (i < n), other=0.0)
    tl.store(x_ptr + i, 0.5 * left, mask=i < n)
"""
)

NAN = (
    HEAD
    + """@triton.jit
def logit(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, tl.log(x), mask=i < n)
"""
)

ACCUMULATE = (
    HEAD
    + """@triton.jit
def accumulate(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    old = tl.load(out_ptr + i, mask=i < n)
    tl.store(out_ptr + i, old + tl.load(x_ptr + i, mask=i < n), mask=i < n)
"""
)

WITH_REFERENCE = (
    "import numpy as np\n"
    + ADD
    + """

def inputs():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 3000)).astype("f4")
    return dict(x_ptr=x, y_ptr=y, output_ptr=np.empty(3000, "f4"), n_elements=3000, BLOCK_SIZE=256)


def grid(meta):
    return (triton.cdiv(meta["n_elements"], meta["BLOCK_SIZE"]),)


def reference(x_ptr, y_ptr):
    return x_ptr + y_ptr
"""
)

SCRIPT = (
    "import torch\n"
    + ADD
    + """

def add(x, y):
    out = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), 256),)](x, y, out, x.numel(), BLOCK_SIZE=256)
    return out


if __name__ == "__main__":
    x, y = torch.randn(2, 1000, device="cuda")
    torch.testing.assert_close(add(x, y), x + y)
    print("the script is happy")
"""
)
