"""Benches: Python files with a ``bench(ctx, **params)`` function, run on a machine and judged."""

from kernbench.bench.check import Check, compare
from kernbench.bench.host import meet, upload
from kernbench.bench.runner import BenchError, Run, load, run

__all__ = ["BenchError", "Check", "Run", "compare", "load", "meet", "run", "upload"]
