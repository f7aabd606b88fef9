"""Cost models against a walk through the array, cycle by cycle, and against published formulas."""

import numpy as np
import pytest

import kernbench.topology
from kernbench.sim_engine.costs import Costs, SystolicArray, VectorEngine, picoseconds

RATES = (("default", 1.0), ("f32", 0.25), ("f8e4m3", 2.0))


def array(rows, cols, dataflow="output_stationary", clock=1e9):
    return SystolicArray(rows, cols, clock, dataflow, RATES)


def cycles_of_one_fold(rows, cols, through):
    """Operand t of cell (r, c) is there in cycle t + r + c; the results leave over the rows, one row a cycle."""
    last = max(t + r + c for t in range(through) for r in range(rows) for c in range(cols))
    return last + 1 + rows


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (4, 4), (8, 2), (3, 7)])
@pytest.mark.parametrize("through", [1, 5, 40])
def test_one_fold_takes_what_the_skewed_array_takes(rows, cols, through):
    step = array(rows, cols).step(rows, cols, through, "f16")
    total = step.stream_ps + step.fill_ps + step.drain_ps
    assert total == 1000 * cycles_of_one_fold(rows, cols, through)
    assert total == 1000 * (2 * rows + cols + through - 2)  # SCALE-Sim


@pytest.mark.parametrize(
    ("dataflow", "folds", "through"),
    [("output_stationary", 2 * 3, 100), ("weight_stationary", 4 * 3, 60), ("input_stationary", 4 * 2, 90)],
)
def test_edge_tiles_take_whole_folds(dataflow, folds, through):
    # m=60, n=90, k=100 on 32 x 32: two, three and four folds
    assert array(32, 32, dataflow).step(60, 90, 100, "f16").stream_ps == 1000 * folds * through


def test_rates_and_clock_scale_streaming_only():
    base = array(16, 16).step(16, 16, 64, "f16")
    assert array(16, 16).step(16, 16, 64, "f32").stream_ps == 4 * base.stream_ps
    assert array(16, 16).step(16, 16, 64, "f8e4m3").stream_ps == base.stream_ps // 2
    assert array(16, 16).step(16, 16, 64, "f32").fill_ps == base.fill_ps
    assert array(16, 16, clock=2e9).step(16, 16, 64, "f16").drain_ps == base.drain_ps // 2


def test_a_full_array_reaches_its_peak():
    step = array(64, 64).step(128, 128, 4096, "f16")
    assert 2 * 128 * 128 * 4096 / (step.stream_ps * 1e-12) == pytest.approx(2 * 64 * 64 * 1e9)


def test_vector_classes():
    engine = VectorEngine(32, 2e9, (("default", 1.0), ("exp", 4.0)))
    assert engine.time(64, "add") == 1000
    assert engine.time(65, "add") == 1500
    assert engine.time(64, "exp") == 4000
    assert engine.time(0, "add") == 0


def test_costs_come_from_the_machine():
    spec = kernbench.topology.load("tiny", overrides=["system.host.launch=7 us", "sip.cube.pe.vector.lanes=9"]).spec
    costs = Costs.from_spec(spec)
    assert costs.launch_ps == 7_000_000
    assert costs.vector.lanes == 9
    assert costs.gemm.dataflow == spec.sip.cube.pe.gemm.dataflow


def test_rounding_is_half_up_and_never_nothing():
    assert [picoseconds(a, 1.0) for a in (0, 0.1, 1.49, 1.5, 2.5)] == [0, 1, 1, 2, 3]
    assert np.floor(2.5 + 0.5) == 3
