"""Ordered loads, stores and polls: what they move, whom they wait for, and that they order programs."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton")

import polling_kernels as kernels
import triton.language as tl

from kernbench.kernels.errors import KernelError
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.runtime_api.context import RuntimeContext

pytestmark = pytest.mark.skipif(not hasattr(tl, "atomic_poll"), reason="new in Triton 3.9")


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_bytes_arrive_as_they_were(device, kind):
    x = (np.random.default_rng(1).standard_normal(100) * 50).astype(kind)
    x[3] = -0.0
    out = device.array(np.full(128, 7, kind))
    kernels.moved[(2,)](device.array(x), out, len(x), B=64)
    assert out.numpy()[:100].tobytes() == x.tobytes()
    assert (out.numpy()[100:] == 7).all()


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
def test_a_poll_waits_for_every_element(kind):
    with RuntimeContext.open("ahbm-1sip", check=True):  # a race would be a fault
        flags, payload, out = np.zeros(8, kind), np.zeros(8, np.int32), np.zeros(8, np.int32)
        kernels.handed_over[(9,)](flags, payload, out, B=8)
    np.testing.assert_array_equal(out, np.arange(8) ** 2)


def test_a_poll_that_nobody_ends_is_a_deadlock(device):
    flags, payload, out = (device.empty((8,), np.int32) for _ in range(3))
    with pytest.raises(KernelError, match=r"polling_kernels.py:\d+: program \(0, 0, 0\).*spins on 'flags'"):
        kernels.handed_over[(8,)](flags, payload, out, B=8)  # one program too few


@pytest.mark.parametrize(("timeout", "late", "found"), [(0, 0, 0), (0, 1, 0), (100_000, 0, 0), (100_000, 1, 1)])
def test_a_poll_with_a_timeout_gives_up(device, timeout, late, found):
    flag, seen = (device.empty((1,), np.int32) for _ in range(2))
    kernels.polled[(2,)](flag, seen, late, timeout)
    assert seen.numpy()[0] == 10 + found
