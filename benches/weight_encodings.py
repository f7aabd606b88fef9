"""What each encoding of a weight update takes, over how much changes and where: does ``auto`` take the shortest?

``python benches/weight_encodings.py [MiB]`` changes bfloat16 weights in three patterns: elements anywhere, whole rows,
and a step like Adam's, small against most weights, so that it moves few of them to another bfloat16. Sizes are in
percent of the weights; beside the encodings stands zstd of the XOR of all bytes, as deltas are often made. Writing and
applying are timed once each, with hashes and checksums. Exits with 1 where ``auto`` takes 2 % more than the shortest.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import zstandard
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from kernbench.weight_sync.arrays import to_bytes
from kernbench.weight_sync.delta import write_delta
from kernbench.weight_sync.delta_read import DeltaFile

BF16 = np.dtype(ml_dtypes.bfloat16)
FRACTIONS = (0.0001, 0.001, 0.01, 0.025, 0.062, 0.158, 0.5)
COLUMNS = 4096
LIMIT = 1.02
ENCODINGS = ("full", "block", "sparse", "xor")
Floats = NDArray[np.float32]


def anywhere(weights: Floats, fraction: float, rng: np.random.Generator) -> Floats:
    """Other values for a fraction of the elements."""
    chosen = rng.random(weights.shape, np.float32) < fraction
    return np.where(chosen, weights * rng.uniform(0.9, 1.1, weights.shape).astype(np.float32), weights)


def rows(weights: Floats, fraction: float, rng: np.random.Generator) -> Floats:
    """Other values for a fraction of the rows, at least one: as of embeddings of rare words, or of one expert."""
    new = weights.copy()
    count = max(round(fraction * len(weights)), 1)
    new[rng.choice(len(weights), count, replace=False)] *= 1.07
    return new


def step(weights: Floats, fraction: float, rng: np.random.Generator) -> Floats:
    """A step of at most a learning rate, found so that about that fraction of the elements changes in bfloat16."""
    direction = rng.uniform(-1, 1, weights.shape).astype(np.float32)
    low, high = 1e-9, 1e-1
    for _ in range(30):
        rate = (low * high) ** 0.5
        old, new = weights[:64].astype(BF16), (weights[:64] + rate * direction[:64]).astype(BF16)
        low, high = (rate, high) if (old != new).mean() < fraction else (low, rate)
    return weights + np.float32(rate) * direction


PATTERNS = {"anywhere": anywhere, "rows": rows, "training step": step}


def measured(size: int) -> Iterator[list[str]]:
    """A row of the table for each case."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((size // (2 * COLUMNS), COLUMNS), np.float32) * 0.02).astype(BF16).astype(np.float32)
    exact = weights + (rng.uniform(-0.5, 0.5, weights.shape) * 2.0**-9 * np.abs(weights)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for pattern, change in PATTERNS.items():
            for fraction in FRACTIONS:
                start = exact if pattern == "training step" else weights
                old, new = {"w": start.astype(BF16)}, {"w": change(start, fraction, rng).astype(BF16)}
                yield [pattern, *_case(Path(folder) / "delta", old, new)]


def _case(path: Path, old: dict[str, NDArray], new: dict[str, NDArray]) -> list[str]:
    nbytes = old["w"].nbytes
    costs = write_delta(None, old, new, every=True)
    began = time.perf_counter()
    file = io.BytesIO()
    write_delta(file, old, new)
    writing = time.perf_counter() - began
    path.write_bytes(file.getbuffer())
    target = to_bytes(old["w"].copy())
    began = time.perf_counter()
    with DeltaFile(path) as delta:
        delta.apply_to("w", target.kind, target.shape, target.data)
    applying = time.perf_counter() - began
    assert np.array_equal(target.data, to_bytes(new["w"]).data)
    plain = len(zstandard.ZstdCompressor(level=1).compress((to_bytes(old["w"]).data ^ target.data).tobytes()))
    ratio = costs.written / max(min(costs.actual.values()), 1)
    shares = [costs.changed_elements / costs.elements, costs.dirty_blocks / costs.blocks]
    shares += [costs.actual[e] / nbytes for e in ENCODINGS] + [plain / nbytes, costs.written / nbytes]
    chosen = max(costs.chosen, key=lambda e: costs.chosen[e]) if costs.chosen else "-"
    speeds = [f"{nbytes / seconds / 1e9:.2f}" for seconds in (writing, applying)]
    return [*(f"{100 * share:.2f}" for share in shares), chosen, f"{ratio:.3f}", *speeds]


def main() -> int:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 32) << 20
    table = Table("pattern", box=None, title=f"deltas of {size >> 20} MiB of bfloat16, in % of it")
    for title in (
        "changed",
        "blocks",
        *ENCODINGS,
        "zstd of all",
        "auto",
        "chosen",
        "/ shortest",
        "write GB/s",
        "apply",
    ):
        table.add_column(title, justify="right")
    worst = 0.0
    for row in measured(size):
        table.add_row(*row)
        worst = max(worst, float(row[-3]))
    Console(width=150).print(table)
    print(f"auto / shortest at worst {worst:.3f} (limit {LIMIT})")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
