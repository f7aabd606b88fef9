"""What the checks cost: seconds of a launch with them over seconds without. Wanted: at most 3.

``python benches/sanitizer_cost.py [NAME ...]`` prints a line for each kernel: launches that repeat one with the same
arguments, with all checks and with each alone, and launches with arguments that are new. Times are of the processor, on
one thread and with and without checks in turns, so that little depends on what else the machine does. Needs Triton.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from unittest import mock

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import checked_kernels as kernels
import flash_kernels
import numpy as np
import tutorial_kernels as tutorials

from kernbench.kernels import sanitize
from kernbench.kernels.standalone import DeviceArray, StandaloneDevice
from kernbench.kernels.tape import Tapes

TARGET = 3.0
WARM, TURNS = 3, 9
"""Launches of each case."""
EACH = [sanitize.checks((name,)) for name in sanitize.NAMES]
Case = Callable[[StandaloneDevice], Callable[[], object]]


def random(device: StandaloneDevice, shape: tuple[int, ...], kind: str = "f32") -> DeviceArray:
    return device.array(np.random.default_rng(0).standard_normal(shape), kind)


def indices(device: StandaloneDevice, n: int, below: int) -> DeviceArray:
    return device.array(np.random.default_rng(1).integers(0, below, n), "i32")


def never_written(*arrays: DeviceArray) -> None:
    """As if they had just been allocated."""
    if sanitize.tracks_writes():
        for a in arrays:
            a.allocation.forget()


def softmax(device: StandaloneDevice) -> Callable[[], object]:
    x, out = random(device, (1823, 781)), device.empty((1823, 781), "f32")
    return lambda: tutorials.softmax(x, out)


def softmax_anew(device: StandaloneDevice) -> Callable[[], object]:
    x, out = random(device, (1823, 781)), device.empty((1823, 781), "f32")
    return lambda: (never_written(out), tutorials.softmax(x, out))


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


def add_anew(device: StandaloneDevice) -> Callable[[], object]:
    x, y = (random(device, (2**20,)) for _ in range(2))
    out = device.empty((2**20,), "f32")
    return lambda: (never_written(out), tutorials.add(x, y, out))


def add_small(device: StandaloneDevice) -> Callable[[], object]:
    x, y = (random(device, (4096,)) for _ in range(2))
    out = device.empty((4096,), "f32")
    return lambda: tutorials.add(x, y, out)


def attention(device: StandaloneDevice) -> Callable[[], object]:
    heads, n, d = 4, 512, 64
    q, k, v = (random(device, (heads * n, d), "f16") for _ in range(3))
    out, lse = device.empty((heads * n, d), "f16"), device.empty((heads, n), "f32")
    kernel = flash_kernels.attention[(n // 128, heads)]
    return lambda: kernel(0.125, lse, 1, heads, q, k, v, out, n, D=d, M=128, N=64, STAGE=3)


def attention_by_pointers(device: StandaloneDevice) -> Callable[[], object]:
    heads, n, d = 4, 500, 64
    q, k, v = (random(device, (heads * n, d), "f16") for _ in range(3))
    out = device.empty((heads * n, d), "f16")
    kernel = flash_kernels.attention_by_pointers[(4, heads)]
    return lambda: kernel(q, k, v, out, 0.125, n, D=d, M=128, N=64, CAUSAL=True)


def cross_entropy(device: StandaloneDevice) -> Callable[[], object]:
    rows, cols = 512, 4000
    x, target = random(device, (rows, cols)), indices(device, rows, cols)
    loss = device.array(np.zeros(rows), "f32")
    return lambda: kernels.cross_entropy[(rows,)](x, target, loss, cols, cols, -100, BLOCK=1024)


def histogram(device: StandaloneDevice) -> Callable[[], object]:
    x, counts = indices(device, 2**18, 2**30), device.array(np.zeros(256), "i32")
    return lambda: kernels.histogram[(2**8,)](x, counts, 2**18, BINS=256, BLOCK=1024)


def permute(device: StandaloneDevice) -> Callable[[], object]:
    n = 2**18
    x, out = random(device, (n,)), device.empty((n,), "f32")
    order = [device.array(np.random.default_rng(seed).permutation(n), "i32") for seed in (0, 1)]
    return lambda: kernels.permute[(n // 1024,)](x, *order, out, n, BLOCK=1024)


def embedding(device: StandaloneDevice) -> Callable[[], object]:
    table, index, out = random(device, (5000, 256)), indices(device, 2000, 5000), device.empty((2000, 256), "f32")
    return lambda: kernels.rows_of[(2000,)](table, index, out, COLUMNS=256)


def embedding_backward(device: StandaloneDevice) -> Callable[[], object]:
    grad, index, table = random(device, (2000, 256)), indices(device, 2000, 500), random(device, (500, 256))
    return lambda: kernels.add_to_rows[(2000,)](grad, index, table, COLUMNS=256)


def compact(device: StandaloneDevice) -> Callable[[], object]:
    n = 2**18
    x, out, count = random(device, (n,)), device.empty((n,), "f32"), device.array(np.zeros(1), "i32")
    return lambda: (count.zero_(), kernels.compact[(n // 1024,)](x, out, count, n, BLOCK=1024))


def last_sums(device: StandaloneDevice) -> Callable[[], object]:
    x, partial, out = random(device, (2**18,)), device.empty((256,), "f32"), device.empty((1,), "f32")
    count = device.array(np.zeros(1), "i32")
    kernel = kernels.last_sums[(256,)]
    return lambda: (count.zero_(), kernel(x, partial, count, out, BLOCK=1024, PROGRAMS=256))


CASES: dict[str, Case] = {
    "softmax 1823x781": softmax,
    "softmax into new memory": softmax_anew,
    "matmul 512^3": matmul,
    "layer norm 1151x1024": layer_norm,
    "layer norm backward 256x1024": layer_norm_backward,
    "vector add 2^20": add,
    "vector add into new memory": add_anew,
    "vector add 2^12": add_small,
    "flash attention 4x512x64": attention,
    "the same by pointers, 4x500x64": attention_by_pointers,
    "cross entropy 512x4000, in place": cross_entropy,
    "histogram 2^18": histogram,
    "permutation 2^18": permute,
    "embedding 2000x256": embedding,
    "embedding backward 2000x256": embedding_backward,
    "compaction 2^18": compact,
    "sum by the last program 2^18": last_sums,
}


def seconds(case: Case, choices: list[sanitize.Checks | None], repeat: bool) -> list[float]:
    """A launch under each choice of checks: the best of several, taken in turns. ``repeat``: each but the first two
    repeats one before; else none does."""
    devices = [StandaloneDevice() for _ in choices]
    launches: list[Callable[[], object]] = []
    best = [float("inf")] * len(choices)
    find = Tapes.find if repeat else lambda *_: None
    with mock.patch.object(Tapes, "find", find):
        for turn in range(-WARM, TURNS):
            for i, (device, checks) in enumerate(zip(devices, choices, strict=True)):
                before = sanitize.switch(checks)
                try:
                    with device:
                        if turn == -WARM:
                            launches.append(case(device))
                        start = time.process_time()
                        launches[i]()
                        if turn >= 0:
                            best[i] = min(best[i], time.process_time() - start)
                finally:
                    sanitize.switch(before)
    return best


def main(names: list[str]) -> int:
    warnings.simplefilter("error")
    unknown = set(names) - set(CASES)
    if unknown:
        raise SystemExit(f"no case {', '.join(sorted(unknown))}: choose from {', '.join(CASES)}")
    worst = 0.0
    for name in names or CASES:
        off, on, *each = seconds(CASES[name], [None, sanitize.checks(), *EACH], repeat=True)
        first, first_on = seconds(CASES[name], [None, sanitize.checks()], repeat=False)
        worst = max(worst, on / off, first_on / first)
        alone = ", ".join(f"{check} {t / off:.2f}" for check, t in zip(sanitize.NAMES, each, strict=True))
        print(f"{name:32} {off * 1e3:7.2f} ms, checked {on / off:5.2f}x ({alone}); ", end="")
        print(f"with new arguments {first * 1e3:7.2f} ms, {first_on / first:5.2f}x", flush=True)
    print(f"worst {worst:.2f}x, target at most {TARGET:.0f}x")
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
