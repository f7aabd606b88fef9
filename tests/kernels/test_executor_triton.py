"""Loops that fuse in unusual ways, or must not; calls; and how each is written down."""

import numpy as np
import pytest
from ttir_run import plain

from kernbench.kernels import executor
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.sim_engine.oplog import OpKind

pytest.importorskip("triton")

import sample_kernels as kernels


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(monkeypatch, kernel, grid, inputs, output, *rest, **options):
    """Launch for several chunk sizes and without data. Every record must be the same; returns it and the values.

    ``inputs`` are (values, type); ``output`` is (shape, type).
    """
    records, found = [], None
    for elements, with_data in ((1, True), (1 << 11, True), (1 << 20, True), (1 << 20, False)):
        monkeypatch.setattr(executor, "CHUNK_ELEMENTS", elements)
        with StandaloneDevice() as device:
            device.enable_data = with_data
            given = [device.array(x, kind) for x, kind in inputs]
            out = device.empty(*output)
            kernel[grid](*given, out, *rest, **options)
            records.append(device.records[-1])
            if with_data:
                found = out.numpy()
    first = plain(records[0])
    assert all(plain(r) == first for r in records[1:])
    return records[0], found.astype(np.float64)


def test_two_accumulators_in_one_loop(monkeypatch):
    x, g, u = normal(70, 50), normal(50, 90, seed=1), normal(50, 90, seed=2)
    x, g, u = (v.astype(np.float16).astype(np.float32) for v in (x, g, u))
    inputs = [(v, "f16") for v in (x, g, u)]
    record, found = run(
        monkeypatch, kernels.gate_up, (3, 3), inputs, ((70, 90), "f32"), 70, 90, 50, BM=32, BN=32, BK=16
    )
    a = x @ g
    np.testing.assert_allclose(found, a / (1 + np.exp(-a)) * (x @ u), rtol=1e-4, atol=1e-4)
    for block in record.blocks:
        assert [(r.op, r.loop) for r in block.rows[:5]] == [
            ("load", 0),
            ("load", 0),
            ("dot", 0),
            ("load", 0),
            ("dot", 0),
        ]
        assert (block.loops[0].trips == 4).all()


def test_blocks_of_k_that_are_not_neighbours(monkeypatch):
    a, b = normal(32, 96), normal(64, 96, seed=1)
    record, found = run(
        monkeypatch,
        kernels.interleaved,
        (2, 2, 3),
        [(a, "f32"), (b, "f32")],
        ((3, 32, 64), "f32"),
        32,
        64,
        96,
        BM=16,
        BN=32,
        BK=16,
        SPLIT=3,
    )
    np.testing.assert_allclose(found.sum(axis=0), a @ b.T, rtol=1e-4, atol=1e-4)
    (block,) = record.blocks
    assert len(block.programs) == 12
    assert [r.access.base_step for r in block.rows if r.kind == OpKind.READ] == [16 * 3 * 4] * 2


def test_casts_in_the_loop_round(monkeypatch):
    a, b = normal(16, 64), normal(64, 48, seed=1)
    record, found = run(
        monkeypatch, kernels.narrowed, (3,), [(a, "f32"), (b, "f32")], ((16, 48), "f32"), 48, 64, BM=16, BN=16, BK=16
    )
    import ml_dtypes

    x, y = (v.astype(ml_dtypes.bfloat16).astype(np.float64) for v in (a, b))
    np.testing.assert_allclose(found, x @ y + 1, rtol=1e-5, atol=1e-5)
    (block,) = record.blocks
    assert [r.op for r in block.rows] == ["load", "cast", "load", "cast", "dot", "store"]
    assert {r.loop for r in block.rows[:5]} == {0}


def test_integer_products_are_exact(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (16, 512)), rng.integers(-128, 128, (512, 32))
    _, found = run(
        monkeypatch,
        kernels.whole_numbers,
        (2,),
        [(a, "i8"), (b, "i8")],
        ((16, 32), "i32"),
        32,
        512,
        BM=16,
        BN=16,
        BK=32,
    )
    np.testing.assert_array_equal(found, a @ b)


def test_a_loop_that_scales_each_product_is_written_out(monkeypatch):
    a, b, scale = normal(16, 64), normal(64, 32, seed=1), normal(4, seed=2)
    inputs = [(a, "f32"), (b, "f32"), (scale, "f32")]
    record, found = run(monkeypatch, kernels.scaled, (2,), inputs, ((16, 32), "f32"), 32, 64, BM=16, BN=16, BK=16)
    expected = sum(a[:, k : k + 16] @ b[k : k + 16] * scale[k // 16] for k in range(0, 64, 16))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    (block,) = record.blocks
    assert not block.loops
    dots = [r for r in block.rows if r.op == "dot"]
    assert len(dots) == 4
    assert not any(r.chained for r in dots)  # each product starts from zero


def test_a_function_that_is_not_inlined(monkeypatch):
    x = normal(5)
    record, found = run(monkeypatch, kernels.calls, (5,), [(x, "f32")], ((5,), "f32"))
    np.testing.assert_array_equal(found, x * np.float32(0.5))
    rows = record.blocks[0].rows
    assert [r.op for r in rows] == ["load", "mul", "store"]
    assert [r.deps for r in rows] == [(), (0,), (1,)]


def test_sums_in_half_precision_round_at_each_step(monkeypatch):
    x = np.full((2, 4096), 1.0)
    _, found = run(monkeypatch, kernels.half_sums, (2,), [(x, "f16")], ((2,), "f16"), BLOCK=4096)
    np.testing.assert_array_equal(found, 4096)  # pairs of equal numbers: exact at each step
    x[:, ::2] = 0.0004
    _, found = run(monkeypatch, kernels.half_sums, (2,), [(x, "f16")], ((2,), "f16"), BLOCK=4096)
    assert (np.abs(found - x[0].sum()) <= 8).all()
    assert (found == found.astype(np.float16)).all()


def test_loops_that_end_by_program_id_with_a_triangular_mask(monkeypatch):
    block, limit = 8, 20
    x = normal(6 * block, block)
    record, found = run(
        monkeypatch, kernels.cut_short, (6,), [(x, "f32")], ((6, block, block), "f32"), limit, BLOCK=block
    )
    i, j = np.indices((block, block))
    for row in range(6):
        expected = np.zeros((block, block))
        for start in range(0, row * block + 1, block):
            keep = (i + start >= j) & (j < limit - start)
            expected += np.where(keep, x[start : start + block], 0)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-6)
    assert len(record.blocks) == 6  # one for each trip count
