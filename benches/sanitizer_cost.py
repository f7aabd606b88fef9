"""What the checks cost: seconds of a launch with them over seconds without, from one run. Wanted: at most 3.

``python benches/sanitizer_cost.py`` prints a line for each kernel. Needs Triton.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import tutorial_kernels as tutorials

from kernbench.kernels import sanitize
from kernbench.kernels.standalone import DeviceArray, StandaloneDevice

TARGET = 3.0


def random(device: StandaloneDevice, shape: tuple[int, ...], kind: str = "f32") -> DeviceArray:
    return device.array(np.random.default_rng(0).standard_normal(shape), kind)


def softmax(device: StandaloneDevice) -> Callable[[], object]:
    x, out = random(device, (1823, 781)), device.empty((1823, 781), "f32")
    return lambda: tutorials.softmax(x, out)


def matmul(device: StandaloneDevice) -> Callable[[], object]:
    a, b = (random(device, (512, 512), "f16") for _ in range(2))
    out = device.empty((512, 512), "f16")
    return lambda: tutorials.matmul(a, b, out, tile=(64, 64, 32))


def layer_norm(device: StandaloneDevice) -> Callable[[], object]:
    rows, cols = 1151, 1024
    x, w, b = random(device, (rows, cols)), random(device, (cols,)), random(device, (cols,))
    y, mean, rstd = (device.empty(shape, "f32") for shape in ((rows, cols), (rows,), (rows,)))
    forward = tutorials.layer_norm_fwd_fused
    return lambda: forward[(rows,)](x, y, w, b, mean, rstd, cols, cols, 1e-5, BLOCK_SIZE=1024)


def layer_norm_backward(device: StandaloneDevice) -> Callable[[], object]:
    """With its locks: programs run one by one, under vector clocks."""
    rows, cols, groups = 256, 1024, 64
    x, dy = random(device, (rows, cols)), random(device, (rows, cols))
    w, mean, rstd = random(device, (cols,)), random(device, (rows,)), random(device, (rows,))
    dx, dw, db = (device.empty(shape, "f32") for shape in ((rows, cols), (groups, cols), (groups, cols)))
    locks = device.array(np.zeros(2 * groups), "i32")
    backward = tutorials.layer_norm_bwd_dx_fused

    def launch() -> None:
        locks.zero_()
        backward[(rows,)](
            dx, dy, dw, db, x, w, mean, rstd, locks, cols, cols, GROUP_SIZE_M=groups, BLOCK_SIZE_N=1024
        )  # fmt: skip

    return launch


def add(device: StandaloneDevice) -> Callable[[], object]:
    x, y = (random(device, (2**20,)) for _ in range(2))
    out = device.empty((2**20,), "f32")
    return lambda: tutorials.add(x, y, out)


CASES = {
    "softmax 1823x781": softmax,
    "matmul 512^3": matmul,
    "layer norm 1151x1024": layer_norm,
    "layer norm backward 256x1024": layer_norm_backward,
    "vector add 2^20": add,
}


def seconds(case: Callable[[StandaloneDevice], Callable[[], object]], names: tuple[str, ...] | None) -> float:
    """The best of seven warm launches; no names: without checks."""
    best = float("inf")
    before = sanitize.switch(sanitize.checks(names) if names else None)
    try:
        with StandaloneDevice() as device:
            launch = case(device)
            launch()
            for _ in range(7):
                start = time.perf_counter()
                launch()
                best = min(best, time.perf_counter() - start)
    finally:
        sanitize.switch(before)
    return best


def main() -> int:
    warnings.simplefilter("error")
    worst = 0.0
    for name, case in CASES.items():
        off = seconds(case, None)
        ratio = seconds(case, sanitize.NAMES) / off
        each = ", ".join(f"{check} {seconds(case, (check,)) / off:.2f}" for check in sanitize.NAMES)
        worst = max(worst, ratio)
        print(f"{name:30} {off * 1e3:8.2f} ms, checked {ratio:5.2f}x  ({each})")
    print(f"worst {worst:.2f}x, target at most {TARGET:.0f}x")
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
