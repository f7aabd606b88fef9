"""Liger-Kernel's operators, unmodified and through their own autograd functions, forward and backward, against torch.

The library believes in a CUDA device: it is imported and run under ``kernbench.triton.impersonate``.
"""

import inspect
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed (it is in the extra 'test')")

import torch.nn.functional as F  # noqa: E402
from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: E402

from kernbench.triton import impersonate  # noqa: E402

ROWS, COLUMNS, VOCABULARY = 6, 96, 200
KINDS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"f32": (2e-4, 2e-5), "f16": (1e-2, 4e-3), "bf16": (4e-2, 3e-2)}


@pytest.fixture(scope="module")
def ops():
    """Liger's autograd functions, with a context open underneath."""
    with impersonate("cuda:90") as ctx, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGER_FUSED_MOE_AUTOTUNE", "0")  # tuning alone would take longer than all tests here
        from liger_kernel import ops

        yield SimpleNamespace(ctx=ctx, **vars(ops))


def normal(*shape, scale=1.0):
    return torch.randn(shape) * scale


def labels(ignored=1):
    made = torch.randint(0, VOCABULARY, (ROWS,))
    made[:ignored] = -100
    return made


def rms(x, w, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def angles():
    phase = torch.arange(5).float()[:, None] / 10 ** (torch.arange(16).float() / 8)
    phase = torch.cat((phase, phase), -1)[None]
    return phase.cos(), phase.sin()


def jsd(p, q, beta):
    """Of log-probabilities: student p, teacher q, as Liger defines it."""
    m = torch.log((1 - beta) * p.exp() + beta * q.exp())
    return beta * F.kl_div(m, q, log_target=True, reduction="sum") + (1 - beta) * F.kl_div(
        m, p, log_target=True, reduction="sum"
    )


def fused(linear, loss):
    """Loss of a linear layer's outputs."""
    return lambda x, w, *rest: loss(linear(x, w), *rest)


def poly(x, w, b, eps=1e-6):
    normed = [x**k * torch.rsqrt((x**k).pow(2).mean(-1, keepdim=True) + eps) for k in (3, 2, 1)]
    return sum(w[i] * normed[i] for i in range(3)) + b


def sparsemax(x):
    ordered = x.sort(-1, descending=True).values
    k = torch.arange(1, x.shape[-1] + 1)
    total = ordered.cumsum(-1)
    support = (1 + k * ordered > total).sum(-1, keepdim=True)
    return (x - (total.gather(-1, support - 1) - 1) / support).clamp(min=0)


def multimodal(q, k, cos, sin):
    """Qwen2-VL: each section of the head takes its angles from one of three axes."""
    c, s = (
        torch.cat([part[i % 3] for i, part in enumerate(a.split([4, 6, 6] * 2, -1))], -1)[:, None] for a in (cos, sin)
    )
    return rotate(q, c, s), rotate(k, c, s)


def turn(x, f):
    """Pairs of neighbours as complex numbers, turned by f[T, D/2]."""
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.view_as_complex(f)[None, :, None]
    return torch.view_as_real(z).flatten(-2)


def multi_token(scores, w):
    future = torch.ones(scores.shape[-2:]).triu(1).bool()
    mixed = F.conv2d(scores.masked_fill(future, -1e9).softmax(-1), w, padding=1, groups=2)
    return mixed.masked_fill(future, 0)


def experts(x, gate_up, down, weights, chosen):
    gate, up = torch.einsum("th,tkfh->tkf", x, gate_up[chosen]).chunk(2, -1)
    return torch.einsum("tkf,tkhf,tk->th", F.silu(gate) * up, down[chosen], weights)


X, W, B = (ROWS, COLUMNS), (COLUMNS,), (COLUMNS,)
LOGITS, LINEAR = (ROWS, VOCABULARY), (VOCABULARY, COLUMNS)
HEADS = (2, 4, 5, 32)


def log_softmax(*shape):
    return F.log_softmax(normal(*shape), -1)


# name -> (how Liger is called, the reference, inputs that need gradients, other inputs). Both are functions of the
# inputs in order; inputs given as shapes are normally distributed.
CASES = {
    "rms_norm": (lambda o, x, w: o.LigerRMSNormFunction.apply(x, w, 1e-6), rms, [X, W], []),
    "rms_norm_gemma": (
        lambda o, x, w: o.LigerRMSNormFunction.apply(x, w, 1e-6, 1.0, "gemma", False),
        lambda x, w: rms(x, 1 + w),
        [X, W],
        [],
    ),
    "rms_norm_many_rows": (lambda o, x, w: o.LigerRMSNormFunction.apply(x, w, 1e-6), rms, [(70, 48), (48,)], []),
    "fused_add_rms_norm": (
        lambda o, x, r, w: o.LigerFusedAddRMSNormFunction.apply(x, r, w, 1e-6),
        lambda x, r, w: (rms(x + r, w), x + r),
        [X, X, W],
        [],
    ),
    "layer_norm": (
        lambda o, x, w, b: o.LigerLayerNormFunction.apply(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        [X, W, B],
        [],
    ),
    "group_norm": (
        lambda o, x, w, b: o.LigerGroupNormFunction.apply(x, w, b, 6, 3, 1e-5),
        lambda x, w, b: F.group_norm(x, 3, w, b),
        [(2, 6, 20), (6,), (6,)],
        [],
    ),
    "dyt": (
        lambda o, x, a, g, b: o.LigerDyTFunction.apply(x, a, g, b),
        lambda x, a, g, b: g * torch.tanh(a * x) + b,
        [X, (1,), W, B],
        [],
    ),
    "poly_norm": (
        lambda o, x, w, b: o.LigerPolyNormFunction.apply(x, w, b, 1e-6, False),
        poly,
        [X, (3,), ()],
        [],
    ),
    "swiglu": (lambda o, a, b: o.LigerSiLUMulFunction.apply(a, b), lambda a, b: F.silu(a) * b, [X, X], []),
    "geglu": (
        lambda o, a, b: o.LigerGELUMulFunction.apply(a, b),
        lambda a, b: F.gelu(a, approximate="tanh") * b,
        [X, X],
        [],
    ),
    "relu_squared": (lambda o, x: o.LigerReLUSquaredFunction.apply(x), lambda x: F.relu(x) ** 2, [X], []),
    "softmax": (lambda o, x: o.LigerSoftmaxFunction.apply(x), lambda x: x.softmax(-1), [X], []),
    "sparsemax": (lambda o, x: o.LigerSparsemaxFunction.apply(x, -1), sparsemax, [X], []),
    "rope": (
        lambda o, q, k, c, s: o.LigerRopeFunction.apply(q, k, c, s),
        lambda q, k, c, s: (rotate(q, c[:, None], s[:, None]), rotate(k, c[:, None], s[:, None])),
        [HEADS, (2, 2, 5, 32)],
        angles,
    ),
    "embedding": (
        lambda o, w, i: o.LigerEmbeddingFunction.apply(w, i),
        lambda w, i: F.embedding(i, w),
        [LINEAR],
        lambda: [torch.randint(0, VOCABULARY, (3, 7))],
    ),
    "cross_entropy": (
        lambda o, x, t: o.LigerCrossEntropyFunction.apply(x, t, None)[0],
        lambda x, t: F.cross_entropy(x, t),
        [LOGITS],
        lambda: [labels()],
    ),
    "cross_entropy_smoothed": (
        lambda o, x, t, w: o.LigerCrossEntropyFunction.apply(x, t, w, -100, 0.0, 0.1, "sum")[0],
        lambda x, t, w: F.cross_entropy(x, t, w, label_smoothing=0.1, reduction="sum"),
        [LOGITS],
        lambda: [labels(), torch.rand(VOCABULARY)],
    ),
    "cross_entropy_softcap": (
        lambda o, x, t: o.LigerCrossEntropyFunction.apply(x, t, None, -100, 1e-3, 0.0, "mean", 20.0)[0],
        lambda x, t: (
            F.cross_entropy(20 * torch.tanh(x / 20), t)
            + 1e-3 * (20 * torch.tanh(x / 20)).logsumexp(-1)[t != -100].pow(2).mean()
        ),
        [LOGITS],
        lambda: [labels()],
    ),
    "fused_linear_cross_entropy": (
        lambda o, x, w, t: o.LigerFusedLinearCrossEntropyFunction.apply(x, w, t)[0],
        fused(F.linear, lambda y, t: F.cross_entropy(y, t)),
        [X, LINEAR],
        lambda: [labels()],
    ),
    "kl_div": (
        lambda o, p, q: o.LigerKLDivLossFunction.apply(p, q),
        lambda p, q: F.kl_div(p, q, reduction="batchmean"),
        lambda: [log_softmax(*LOGITS)],
        lambda: [log_softmax(*LOGITS).exp()],
    ),
    "jsd": (
        lambda o, p, q: o.LigerJSDFunction.apply(p, q, None, 0.3),
        lambda p, q: jsd(p, q, 0.3) / ROWS,
        lambda: [log_softmax(*LOGITS)],
        lambda: [log_softmax(*LOGITS)],
    ),
    "tvd": (
        lambda o, p, q: o.LigerTVDLossFunction.apply(p, q, None, "batchmean"),
        lambda p, q: 0.5 * (p - q).abs().sum() / ROWS,
        lambda: [log_softmax(*LOGITS).exp()],
        lambda: [log_softmax(*LOGITS).exp()],
    ),
    "fused_linear_jsd": (
        lambda o, x, w, tx, tw: o.LigerFusedLinearJSDFunction.apply(x, w, tx, tw, None, 0.5),
        lambda x, w, tx, tw: jsd(F.log_softmax(x @ w.T, -1), F.log_softmax(tx @ tw.T, -1), 0.5) / ROWS,
        [X, LINEAR],
        lambda: [normal(*X) / 9, normal(*LINEAR)],
    ),
}


CASES |= {
    "modulated_rms_norm": (
        lambda o, x, w, a, b: o.LigerModulatedRMSNormFunction.apply(x, w, a, b, 1e-6, 0.0, "llama", False),
        lambda x, w, a, b: rms(x, w) * (1 + a) + b,
        [X, W, X, X],
        [],
    ),
    "multimodal_rope": (
        lambda o, q, k, c, s: o.LigerQwen2VLMRopeFunction.apply(q, k, c, s, [4, 6, 6]),
        multimodal,
        [HEADS, (2, 2, 5, 32)],
        lambda: [torch.stack([a.expand(2, 5, 32) * (1 + i / 7) for i in range(3)]) for a in angles()],
    ),
    "llama4_rope": (
        lambda o, q, k, f: o.LigerLlama4RopeFunction.apply(q, k, torch.view_as_complex(f.float())),
        lambda q, k, f: (turn(q, f), turn(k, f)),
        [(2, 5, 4, 32), (2, 5, 2, 32)],
        lambda: [normal(5, 16, 2)],
    ),
    "attention_residual": (
        lambda o, v, q, n: o.LigerAttnResFunction.apply(v, q, n, 1e-6),
        lambda v, q, n: (torch.softmax((rms(v, n) * q).sum(-1), 0)[..., None] * v).sum(0),
        [(3, 2, 5, 64), (64,), (64,)],
        [],
    ),
    "fused_linear_kl_div": (
        lambda o, x, w, t: o.LigerFusedLinearKLDivFunction.apply(x, w, t),
        lambda x, w, t: F.kl_div(F.log_softmax(x @ w.T, -1), t, reduction="batchmean"),
        [X, LINEAR],
        lambda: [log_softmax(*LOGITS).exp()],
    ),
    "hyper_connections_pre": (
        lambda o, x, h: o.LigerMHCPreFunction.apply(x, h),
        lambda x, h: (x * h[..., None]).sum(-2),
        [(2, 3, 4, 64), (2, 3, 4)],
        [],
    ),
    "hyper_connections_post": (
        lambda o, x, f, p, r: o.LigerMHCPostResFunction.apply(x, f, p, r),
        lambda x, f, p, r: torch.einsum("btij,btjc->btic", r, x) + p[..., None] * f[..., None, :],
        [(2, 3, 4, 64), (2, 3, 64), (2, 3, 4), (2, 3, 4, 4)],
        [],
    ),
    "multi_token_attention": (
        lambda o, s, w: o.LigerMultiTokenAttentionFunction.apply(s, w, None, 1, 1, 1, 2, False),
        multi_token,
        [(2, 2, 8, 8), (2, 1, 3, 3)],
        [],
    ),
    "mlp": (
        lambda o, x, g, u, d: o.LigerMLPFunction.apply(x, g, u, d),
        lambda x, g, u, d: (F.silu(x @ g.T) * (x @ u.T)) @ d.T,
        [(1, 32, 64), (128, 64), (128, 64), (64, 128)],
        [],
    ),
    "fused_moe": (
        lambda o, x, g, d, p, i: o.LigerFusedMoEFunction.apply(x, g, d, i.int(), p),
        experts,
        [(16, 64), (4, 128, 64), (4, 64, 64), (16, 2)],
        lambda: [torch.stack([torch.randperm(4)[:2] for _ in range(16)])],
    ),
}
NO_TRITON = {
    "LigerFusedLinearScaledCrossEntropyFunction": "CUTLASS on GPUs of compute capability 9, else torch",
    "LigerFusedLinearScaledCrossEntropyTPFunction": "CUTLASS with NVSHMEM, else torch and a process group",
}


def tokens(ids, x):
    """Log-probabilities of the chosen ids."""
    return F.log_softmax(x, -1).gather(-1, ids[..., None])[..., 0]


def grpo(x, ids, old, ref, advantages, mask, sequence):
    """Clipped policy gradient with a penalty for leaving the reference policy, of the first L of L + 1 positions."""
    new, count = tokens(ids, x[:, :-1] / 0.9), mask.sum(-1).clamp(min=1)
    log_ratio = new - old
    if sequence:
        log_ratio = ((log_ratio * mask).sum(-1) / count)[:, None]
    ratio, gain = log_ratio.exp(), advantages[:, None]
    loss = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain) + 0.04 * ((ref - new).exp() - (ref - new) - 1)
    return ((loss * mask).sum(-1) / count).mean()


def rollouts():
    """Ids, log-probabilities of the old and of the reference policy, advantages, mask."""
    ids, mask = torch.randint(0, VOCABULARY, (3, 5)), torch.ones(3, 5)
    mask[0, 3:] = 0
    return [ids, *(log_softmax(3, 5, VOCABULARY)[..., 0].contiguous() for _ in range(2)), normal(3), mask]


def doubly_stochastic(logits, steps, eps=1e-6):
    m = logits.softmax(-1) + eps
    m = m / (m.sum(-2, keepdim=True) + eps)
    for _ in range(steps - 1):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m


def coefficients(x, phi, b, pre, post, res):
    """How hyper-connections of four streams mix: what enters the layer, where its result goes, stream to stream."""
    flat = x.flatten(-2)
    mix = flat @ phi * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + 1e-6)
    scaled = torch.cat((mix[..., :4] * pre, mix[..., 4:8] * post, mix[..., 8:] * res), -1) + b
    residual = doubly_stochastic(scaled[..., 8:].unflatten(-1, (4, 4)), 5)
    return scaled[..., :4].sigmoid() + 1e-2, 2 * scaled[..., 4:8].sigmoid(), residual


def neighbourhood(q, k, v):
    """Attention to 5 places around each, every second one."""
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    near = (distance.abs() <= 4) & (distance % 2 == 0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=near)


def distance_and_loss(x, teacher, t):
    kept = t != -100
    return (
        F.cross_entropy(x, t, reduction="none"),
        0.5 * (x.softmax(-1) - teacher.softmax(-1)).abs().sum(-1) * kept,
    )


CASES |= {
    "swiglu_of_one_tensor": (
        lambda o, x: o.LigerFusedGateUpSiLUMulFunction.apply(x),
        lambda x: F.silu(x[:, :48]) * x[:, 48:],
        [X],
        [],
    ),
    "tiled_mlp": (
        lambda o, x: o.LigerTiledMLPFunction.apply(
            lambda _, part: o.LigerSiLUMulFunction.apply(part * 2, part * 1), None, x, 4
        ),
        lambda x: F.silu(2 * x) * x,
        [(2, 9, 32)],
        [],
    ),
    "fused_ce_tvd": (
        lambda o, x, teacher, t: o.LigerFusedCETVDFunction.apply(x, teacher, t),
        distance_and_loss,
        [LOGITS],
        lambda: [normal(*LOGITS), labels()],
    ),
    "vocab_parallel_cross_entropy": (
        lambda o, x, t: o.LigerVocabParallelCEFunction.apply(x, t, None, -100, 0.1, "pytorch", "global"),
        lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), label_smoothing=0.1, reduction="none").view(t.shape),
        [(3, 2, VOCABULARY)],
        lambda: [labels().view(3, 2)],
    ),
    "grpo": (
        lambda o, x, *rest: o.GrpoLossFunction.apply(
            x, rest[1], rest[2], rest[0], *rest[3:], 0.9, 0.04, 0.2, 0.2, False
        )[0],
        lambda x, *rest: grpo(x, *rest, False),
        [(3, 6, VOCABULARY)],
        rollouts,
    ),
    "grpo_by_sequence": (
        lambda o, x, *rest: o.GrpoLossFunction.apply(
            x, rest[1], rest[2], rest[0], *rest[3:], 0.9, 0.04, 0.2, 0.2, False, "grpo", None, True, "sequence"
        )[0],
        lambda x, *rest: grpo(x, *rest, True),
        [(3, 6, VOCABULARY)],
        rollouts,
    ),
    "hyper_connections_coefficients": (
        lambda o, *a: o.LigerMHCCoeffsFunction.apply(*a, True, 5, 1e-6, 1e-2, 1e-6, 2.0),
        coefficients,
        [(2, 3, 4, 64), (256, 24), (24,), (), (), ()],
        [],
    ),
    "neighborhood_attention": (
        lambda o, q, k, v: o.LigerFusedNeighborhoodAttentionFunction.apply(q, k, v, 5, 2),
        neighbourhood,
        [(2, 2, 20, 16)] * 3,
        [],
    ),
}


def made(spec):
    return list(spec()) if callable(spec) else [normal(*shape, scale=0.5) for shape in spec]


def outputs(value):
    return [v for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, torch.Tensor)]


def forward_and_backward(fn, inputs, others):
    """Outputs, and the gradients of a fixed weighted sum of them."""
    found = outputs(fn(*inputs, *others))
    torch.manual_seed(1)
    weights = [torch.randn(v.shape) if v.dim() else torch.ones(()) for v in found]
    gradients = torch.autograd.grad(found, inputs, [w.to(v.dtype) for w, v in zip(weights, found, strict=True)])
    return found, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_operator(ops, name, kind):
    call, reference, inputs, others = CASES[name]
    if name == "mlp" and "padding" not in inspect.signature(TensorDescriptor.from_tensor).parameters:
        pytest.skip("Liger pads its descriptors, which this Triton cannot")
    torch.manual_seed(0)
    inputs = [x.to(KINDS[kind]) for x in made(inputs)]
    others = [x.to(KINDS[kind]) if x.is_floating_point() else x for x in made(others)]
    if name.startswith("cross_entropy_smoothed"):
        others[1] = others[1].float()
    exact = [x.double().requires_grad_() for x in inputs]
    expected = forward_and_backward(reference, exact, [x.double() if x.is_floating_point() else x for x in others])
    # Liger works in place on some of its inputs, which must not be leaves then.
    leaves = [x.clone().requires_grad_() for x in inputs]
    mine = forward_and_backward(lambda *args: call(ops, *args), [x * 1 for x in leaves], others)
    relative, absolute = TOLERANCE[kind]
    for got, want in zip([*mine[0], *mine[1]], [*expected[0], *expected[1]], strict=True):
        size = want.abs().max().clamp(min=1e-3).item()
        torch.testing.assert_close(got.double(), want, rtol=relative, atol=absolute * size)


def test_every_operator_has_a_case(ops):
    operators = {name for name, value in vars(ops).items() if isinstance(value, type) and name.endswith("Function")}
    called = {name for call, *_ in CASES.values() for name in call.__code__.co_names}
    assert len(operators) > 30
    assert operators - called == set(NO_TRITON)


def test_int8_times_four_packed_values_of_two_bits(ops):
    from liger_kernel.ops.experimental import mm_int8int2

    weights, x = torch.randint(-1, 2, (512, 32)), torch.randint(-128, 128, (16, 512))
    packed = sum((part + 1) << 2 * i for i, part in enumerate(weights.chunk(4)))
    found = mm_int8int2.matmul(x.to(torch.int8), packed.to(torch.uint8))
    torch.testing.assert_close(found.long(), x @ weights)


def test_the_launches_were_timed(ops):
    before = len(ops.ctx.engine.log.commands[0])
    ops.LigerSiLUMulFunction.apply(normal(4, 64), normal(4, 64))
    assert len(ops.ctx.engine.log.commands[0]) == before + 1
    assert ops.ctx.timeline().makespan_ps > 0
