"""What one operation costs the engine it runs on, in integer picoseconds. Every number comes from the machine's
spec."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


def picoseconds(amount: float, per_unit: float) -> int:
    """``amount * per_unit`` rounded half up, and at least 1: the one rounding rule of durations."""
    return max(1, math.floor(amount * per_unit + 0.5)) if amount > 0 else 0


@dataclass(frozen=True)
class GemmTime:
    """One step ``m x k @ k x n`` on a systolic array: streaming, and what a pass pays once to fill and to drain."""

    stream_ps: int
    fill_ps: int
    drain_ps: int


@dataclass(frozen=True)
class SystolicArray:
    """Rows x cols multiply-accumulate cells.

    The two dimensions that the dataflow keeps in the array are cut into *folds* of rows x cols (edge tiles occupy a
    whole fold); the third streams through, one element a cycle times the element type's rate. A pass adds ``rows + cols
    - 2`` cycles of fill, the skew of the operands, and ``rows`` cycles to load or to drain what stays in the array.
      Together
    these are SCALE-Sim's ``2 rows + cols + T - 2`` (Samajdar et al., ISPASS 2020, eq. 3). Between the folds of one pass
    loading and draining overlap with streaming, as double-buffered cells allow.
    """

    rows: int
    cols: int
    clock: float
    dataflow: str
    rate: tuple[tuple[str, float], ...]

    def step(self, m: int, n: int, k: int, dtype: str) -> GemmTime:
        """Times of one step; ``dtype`` is the inputs' element type, ``rate['default']`` where it is not listed."""
        held = {"output_stationary": (m, n, k), "weight_stationary": (k, n, m), "input_stationary": (k, m, n)}
        down, across, through = held[self.dataflow]
        folds = -(-down // self.rows) * -(-across // self.cols)
        rates = dict(self.rate)
        cycle_ps = 1e12 / self.clock
        return GemmTime(
            stream_ps=picoseconds(folds * through / rates.get(dtype, rates["default"]), cycle_ps),
            fill_ps=picoseconds(self.rows + self.cols - 2, cycle_ps),
            drain_ps=picoseconds(self.rows, cycle_ps),
        )


@dataclass(frozen=True)
class VectorEngine:
    """``lanes`` elements at a time, each group for the cycles of its operation's class."""

    lanes: int
    clock: float
    cycles: tuple[tuple[str, float], ...]

    def time(self, elements: int, op: str) -> int:
        """Picoseconds for one operation over ``elements`` elements."""
        classes = dict(self.cycles)
        return picoseconds(-(-elements // self.lanes) * classes.get(op, classes["default"]), 1e12 / self.clock)


@dataclass(frozen=True)
class Costs:
    """The cost models of a machine: its PEs are all alike."""

    gemm: SystolicArray
    vector: VectorEngine
    launch_ps: int
    sync_ps: int
    copy_ps: int
    collective_ps: int

    @classmethod
    def from_spec(cls, spec: Any) -> Costs:
        """Read them from ``SystemGraph.spec``."""
        pe, host = spec.sip.cube.pe, spec.system.host
        return cls(
            SystolicArray(
                pe.gemm.rows, pe.gemm.cols, pe.gemm.clock, pe.gemm.dataflow, tuple(sorted(pe.gemm.rate.items()))
            ),
            VectorEngine(pe.vector.lanes, pe.vector.clock, tuple(sorted(pe.vector.cycles.items()))),
            launch_ps=host.launch,
            sync_ps=host.sync,
            copy_ps=host.copy,
            collective_ps=host.collective,
        )
