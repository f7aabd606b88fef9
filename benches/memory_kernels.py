"""Kernels in which memory decides what is touched: a mixture of experts, attention over pages, a loss of labels."""

import numpy as np
import triton
import triton.language as tl


@triton.jit
def experts(
    x, weights, out, tokens, expert_of, valid, N, K, TOP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Blocks of tokens sorted by expert: which rows of ``x`` and which matrix of ``weights``, memory says."""
    pm, pn = tl.program_id(0), tl.program_id(1)
    token = tl.load(tokens + pm * BM + tl.arange(0, BM))
    real = token < valid
    expert = tl.load(expert_of + pm).to(tl.int64)
    rn, rk = pn * BN + tl.arange(0, BN), tl.arange(0, BK)
    xp = x + token[:, None] // TOP * K + rk[None, :]
    wp = weights + expert * N * K + rk[:, None] + rn[None, :] * K
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        a = tl.load(xp, mask=real[:, None] & (rk[None, :] < K - k * BK), other=0.0)
        b = tl.load(wp, mask=rk[:, None] < K - k * BK, other=0.0)
        acc += tl.dot(a, b)
        xp += BK
        wp += BK
    tl.store(out + token[:, None] * N + rn[None, :], acc.to(out.dtype.element_ty), mask=real[:, None])


def sorted_by_expert(count, top, experts_, block, seed=0):
    """Tokens in blocks of one expert each, as a router that draws experts leaves them: int32 (tokens, expert of each
    block). Blocks are filled up with ``count * top``."""
    chosen = np.random.default_rng(seed).integers(0, experts_, count * top)
    tokens, expert_of = [], []
    for expert in range(experts_):
        own = np.flatnonzero(chosen == expert)
        own = np.concatenate([own, np.full(-len(own) % block, count * top)])
        tokens.append(own)
        expert_of += [expert] * (len(own) // block)
    return np.concatenate(tokens).astype(np.int32), np.array(expert_of, np.int32)


@triton.jit
def paged_attention(
    q, keys, values, pages, lengths, out, scale, most_pages, H: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """One query for each sequence and head, over keys and values that lie in the pages of a table."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    d, n = tl.arange(0, D), tl.arange(0, PAGE)
    length = tl.load(lengths + sequence)
    query = tl.load(q + (sequence * H + head) * D + d).to(tl.float32)
    most, total, acc = -float("inf"), 0.0, tl.zeros([D], tl.float32)
    for i in range(0, tl.cdiv(length, PAGE)):
        page = tl.load(pages + sequence * most_pages + i)
        at = ((page * PAGE + n)[:, None] * H + head) * D + d[None, :]
        score = tl.sum(query[None, :] * tl.load(keys + at).to(tl.float32), 1) * scale
        score = tl.where(i * PAGE + n < length, score, -float("inf"))
        larger = tl.maximum(most, tl.max(score, 0))
        p, shrink = tl.exp(score - larger), tl.exp(most - larger)
        acc = acc * shrink + tl.sum(p[:, None] * tl.load(values + at).to(tl.float32), 0)
        total = total * shrink + tl.sum(p, 0)
        most = larger
    tl.store(out + (sequence * H + head) * D + d, acc / total)


@triton.jit
def cross_entropy(logits, labels, loss, gradient, V, B: tl.constexpr):
    """The loss of each row and its gradient. Rows with label -100 have none."""
    row = tl.program_id(0)
    logits += row * V
    gradient += row * V
    label = tl.load(labels + row)
    if label == -100:
        tl.store(loss + row, 0.0)
        return
    chosen = tl.load(logits + label)
    most, total = -float("inf"), 0.0
    for i in range(0, V, B):
        at = i + tl.arange(0, B)
        x = tl.load(logits + at, mask=at < V, other=-float("inf"))
        larger = tl.maximum(most, tl.max(x, 0))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(x - larger), 0)
        most = larger
    for i in range(0, V, B):
        at = i + tl.arange(0, B)
        x = tl.load(logits + at, mask=at < V, other=-float("inf"))
        tl.store(gradient + at, tl.exp(x - most) / total - tl.where(at == label, 1.0, 0.0), mask=at < V)
    tl.store(loss + row, most + tl.log(total) - chosen)
