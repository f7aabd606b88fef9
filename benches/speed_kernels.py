"""How fast kernels simulate: against numpy for a large matrix product, against Triton's interpreter for small kernels.

``python benches/speed_kernels.py`` prints each measurement as a ratio of two times taken in one run, with its target.
Needs Triton and torch (the interpreter runs on torch tensors).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ.update(ONE_THREAD)  # both sides of every ratio get one thread

SOFTMAX = (1823, 781)
MATMUL = 1024
MATMUL_TILE = (64, 64, 32)
ADD = 2**20
ADD_BLOCK = 1024
LARGE = 4096
LARGE_TILE = (128, 128, 64)


@dataclass(frozen=True)
class Measurement:
    """One ratio: ``ours`` against ``other`` seconds. Larger speedups are better."""

    name: str
    ours: float
    other: float
    target: float
    """The speedup ``other / ours`` that is wanted."""

    @property
    def speedup(self) -> float:
        return self.other / self.ours

    @property
    def met(self) -> bool:
        return self.speedup >= self.target


def seconds(fn: Callable[[], object], repeat: int = 3) -> float:
    """The best of ``repeat`` runs."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        fn()
        best = min(best, time.perf_counter() - start)
    return best


def numpy_matmul_seconds(n: int) -> float:
    """numpy's float32 matmul of n x n on one thread, in a process of its own, where BLAS can still be told so."""
    code = (
        "import numpy as np, time\n"
        f"a = np.ones(({n}, {n}), np.float32); b = np.ones(({n}, {n}), np.float32); a @ b\n"
        "best = 1e9\n"
        "for _ in range(3):\n"
        "    t = time.perf_counter(); a @ b; best = min(best, time.perf_counter() - t)\n"
        "print(best)"
    )
    env = os.environ | ONE_THREAD
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return float(done.stdout)


def run_softmax(array: Callable, empty: Callable) -> Callable[[], object]:
    import numpy as np
    import tutorial_kernels

    x, out = array(np.random.default_rng(0).standard_normal(SOFTMAX).astype(np.float32)), empty(SOFTMAX, np.float32)
    return lambda: tutorial_kernels.softmax(x, out)


def run_matmul(array: Callable, empty: Callable) -> Callable[[], object]:
    import numpy as np
    import tutorial_kernels

    rng = np.random.default_rng(0)
    a, b = (array(rng.standard_normal((MATMUL, MATMUL)).astype(np.float16)) for _ in range(2))
    out = empty((MATMUL, MATMUL), np.float16)
    return lambda: tutorial_kernels.matmul(a, b, out, tile=MATMUL_TILE)


def run_add(array: Callable, empty: Callable) -> Callable[[], object]:
    import numpy as np
    import tutorial_kernels

    x, y = (array(np.ones(ADD, np.float32)) for _ in range(2))
    out = empty((ADD,), np.float32)
    return lambda: tutorial_kernels.add(x, y, out, ADD_BLOCK)


CASES = {
    f"softmax {SOFTMAX[0]}x{SOFTMAX[1]}": (run_softmax, 30.0),
    f"matmul {MATMUL}^3": (run_matmul, 30.0),
    f"vector add 2^{ADD.bit_length() - 1}": (run_add, 20.0),
}


def interpreter() -> dict[str, float]:
    """Seconds of each case under Triton's interpreter. It is chosen by the environment before Triton is imported, and
    so runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--interpreter"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _interpreter_main() -> None:
    import torch

    torch.set_num_threads(1)

    def empty(shape: tuple[int, ...], kind: type) -> torch.Tensor:
        return torch.empty(shape, dtype={"float32": torch.float32, "float16": torch.float16}[kind.__name__])

    found = {}
    for name, (case, _) in CASES.items():
        fn = case(torch.from_numpy, empty)
        if "matmul" not in name:  # ten seconds a run: its first iterations warm up enough
            fn()
        found[name] = seconds(fn, 1)
    print(json.dumps(found))


def against_interpreter() -> list[Measurement]:
    """Warm launches, recording on, against ``TRITON_INTERPRET=1``."""
    from kernbench.kernels.standalone import StandaloneDevice

    theirs = interpreter()
    found = []
    with StandaloneDevice() as device:
        for name, (case, target) in CASES.items():
            fn = case(device.array, device.empty)
            fn()
            found.append(Measurement(f"{name} against the interpreter", seconds(fn), theirs[name], target))
    return found


def large_matmul() -> tuple[list[Measurement], dict[str, float]]:
    """Tutorial 03 at 4096^3 in f16 on 64 PEs, recorded and replayed: second launch, with values and timing-only.

    Returns the measurements, and further seconds worth printing (the cold first launch, the parts).
    """
    import numpy as np
    import tutorial_kernels

    from kernbench.kernels.device import Target
    from kernbench.kernels.standalone import StandaloneDevice
    from kernbench.policy.bind import Binder
    from kernbench.sim_engine.engine import GraphEngine
    from kernbench.sim_engine.oplog import Launch
    from kernbench.topology import load

    graph = load("ahbm-1sip")
    engine = GraphEngine(graph)
    engine.binder = Binder(graph)
    target = Target.from_spec(graph.spec)
    assert target.pes == 64
    numpy_seconds = numpy_matmul_seconds(LARGE)
    extra = {"numpy float32 matmul, one thread": numpy_seconds}
    found = []
    rng = np.random.default_rng(0)
    a = rng.standard_normal((LARGE, LARGE)).astype(np.float16)
    for enable_data in (False, True):
        mode = "with values" if enable_data else "timing only"
        with StandaloneDevice(target, enable_data) as device:
            left, right, out = device.array(a), device.array(a), device.empty(a.shape, "f16")

            def launch(left=left, right=right, out=out) -> None:
                tutorial_kernels.matmul(left, right, out, tile=LARGE_TILE)

            def whole(launch=launch, device=device) -> None:
                launch()
                engine.time_alone([Launch(device.records.pop())])

            extra[f"cold first launch and replay, {mode}"] = seconds(whole, 1)
            best = seconds(whole, 2)
            extra[f"second launch alone, {mode}"] = seconds(launch, 1)
        if enable_data:
            found.append(Measurement(f"matmul {LARGE}^3 with values against numpy", best, numpy_seconds, 0.5))
        else:
            found.append(Measurement(f"matmul {LARGE}^3 timing only against 0.5 s", best, 0.5, 1.0))
    return found, extra


def symbolic_pointers() -> list[Measurement]:
    """Tutorial 03 at 1024^3 against numpy, launch only: how near its symbolic loads come to BLAS."""
    import numpy as np
    import tutorial_kernels

    from kernbench.kernels.standalone import StandaloneDevice

    a = np.random.default_rng(0).standard_normal((MATMUL, MATMUL)).astype(np.float16)
    with StandaloneDevice() as device:
        left, right, out = device.array(a), device.array(a), device.empty(a.shape, "f16")
        ours = seconds(lambda: tutorial_kernels.matmul(left, right, out, tile=LARGE_TILE), 4)
    return [Measurement(f"matmul {MATMUL}^3 with values against numpy", ours, numpy_matmul_seconds(MATMUL), 0.4)]


def table(found: list[Measurement]) -> str:
    """A line each: name, both times, speedup, target, verdict."""
    lines = [f"{'measurement':44} {'ours':>9} {'other':>9} {'ratio':>8} {'target':>8}"]
    for m in found:
        verdict = "ok" if m.met else "MISSED"
        lines.append(f"{m.name:44} {m.ours:8.3f}s {m.other:8.3f}s {m.speedup:7.1f}x {m.target:7.1f}x  {verdict}")
    return "\n".join(lines)


def main() -> int:
    found, extra = large_matmul()
    found += symbolic_pointers() + against_interpreter()
    print(table(found))
    for name, value in extra.items():
        print(f"  {name}: {value:.3f} s")
    return 0 if all(m.met for m in found) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    if "--interpreter" in sys.argv:
        _interpreter_main()
    else:
        sys.exit(main())
