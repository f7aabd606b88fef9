"""Blocks of pointers that reach into several tensors, tables of addresses, and loops that only look like polling."""

import numpy as np
import pytest

pytest.importorskip("triton")

import scattered_kernels as kernels

from kernbench.kernels.describe import MOST_PIECES, _distinct, describe
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.executor import prepare
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.kernels.window import Window
from kernbench.runtime_api.context import RuntimeContext


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


def floats(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def test_elements_from_two_tensors_in_turn(device):
    a, b, out = floats(100, 1), floats(100, 2), device.empty((100,), np.float32)
    kernels.interleave[(4,)](device.array(a), device.array(b), out, 100, BLOCK=32)
    np.testing.assert_array_equal(out.numpy(), np.where(np.arange(100) % 2 == 0, a, b))


def test_a_program_on_the_seam_of_two_tensors(device):
    a, b, out = floats(100, 1), floats(57, 2), device.empty((157,), np.float32)
    kernels.concatenate[(5,)](device.array(a), device.array(b), out, 100, 157, BLOCK=32)
    np.testing.assert_array_equal(out.numpy(), np.concatenate((a, b)))


def test_it_takes_simulated_time():
    with RuntimeContext.open("tiny") as ctx:
        a, b, out = (ctx.zeros(4096, dtype=ctx.float32) for _ in range(3))
        kernels.interleave[(4,)](a, b, out, 4096, BLOCK=1024)
        start, end = (ctx.ahbm.Event(enable_timing=True) for _ in range(2))
        start.record()
        kernels.interleave[(4,)](a, b, out, 4096, BLOCK=1024)
        end.record()
        end.synchronize()
        assert start.elapsed_time(end) > 0


def test_stores_and_atomics_to_either_tensor(device):
    x = floats(90)
    a, b = device.array(np.zeros(91, np.float32)), device.array(np.zeros(91, np.float32))
    kernels.distribute[(3,)](device.array(x), a, b, 90, BLOCK=32)
    np.testing.assert_array_equal(a.numpy(), np.append(np.where(x > 0, x, 0), (x > 0).sum()))
    np.testing.assert_array_equal(b.numpy(), np.append(np.where(x > 0, 0, x), (x <= 0).sum()))


def test_one_element_outside_is_still_found(device):
    a, b, out = device.array(floats(100)), device.array(floats(40)), device.empty((157,), np.float32)
    with pytest.raises(KernelFault, match="out of bounds"):
        kernels.concatenate[(5,)](a, b, out, 100, 157, BLOCK=32)


def table(device):
    tensors = [device.array(floats(n, n)) for n in (5, 64, 33, 2)]
    sizes = np.array([t.shape[0] for t in tensors], np.int32)
    return tensors, device.array(np.array([t.data_ptr() for t in tensors])), device.array(sizes)


def test_a_tensor_for_each_program(device):
    tensors, addresses, sizes = table(device)
    out = device.array(np.zeros((4, 64), np.float32))
    kernels.by_program[(4,)](addresses, sizes, out, BLOCK=16)
    for row, tensor in zip(out.numpy(), tensors, strict=True):
        np.testing.assert_array_equal(row[: tensor.shape[0]], tensor.numpy())
        assert not row[tensor.shape[0] :].any()


def test_a_tensor_for_each_element(device):
    tensors, addresses, _ = table(device)
    before, x = [t.numpy() for t in tensors], floats(4)
    kernels.by_element[(1,)](addresses, device.array(x), K=4)
    for i, tensor in enumerate(tensors):
        expected = before[i].copy()
        expected[:2] = x[i], expected[1] * 2
        np.testing.assert_array_equal(tensor.numpy(), expected)


def serial(kernel, *args, **constants):
    compiled = kernel.warmup(*args, **constants, grid=(1,))
    made = Kernel(kernel.__name__, compiled.asm["kernbench"].decode())
    return prepare(made.module, made.num_stages).serial


def test_loops_that_end_by_what_others_write_run_in_turns_and_no_others_do(device):
    x, whole = device.array(floats(64)), device.array(np.zeros(8, np.int32))
    assert not serial(kernels.strided, x, x, 4, BLOCK=16)
    assert not serial(kernels.search, x, x, whole, 64)
    assert serial(kernels.ticket, whole, whole)


def test_loops_that_run_together(device):
    x, out = floats(160), device.empty((160,), np.float32)
    kernels.strided[(3,)](device.array(x), out, 10, BLOCK=16)
    np.testing.assert_array_equal(out.numpy(), x * 2)
    ordered, found = np.sort(floats(64, 5)), device.empty((160,), np.int32)
    kernels.search[(160,)](device.array(ordered), device.array(x), found, 64)
    np.testing.assert_array_equal(found.numpy(), np.searchsorted(ordered, x))


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (40, 1), (300, 5)])
def test_distinct_rows(rows, columns):
    x = np.random.default_rng(rows).integers(-2, 3, (rows, columns)) * 2**40
    found, which = _distinct(x)
    expected, index = np.unique(x, axis=0, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(which, index.ravel())


def touched(layout, columns, p):
    """The addresses of the bytes that one program's row names, in order."""
    if not layout.counts:
        runs = slice(columns.run_ptr[p], columns.run_ptr[p + 1])
        spans = zip(columns.run_addr[runs], columns.run_bytes[runs], strict=True)
        return np.concatenate([np.arange(a, a + n) for a, n in spans] or [np.empty(0, np.int64)])
    extent = layout.counts if columns.extent is None else columns.extent[p]
    at = columns.base[p]
    for n, stride in zip(extent, layout.strides, strict=True):
        at = np.add.outer(at, np.arange(n) * stride)
    return np.ravel(at)


def test_wrapped_indices_are_pieces_each_program_its_own():
    rng = np.random.default_rng(5)
    for masked in (False, True):
        start, wrap = rng.integers(0, 40, (300, 1)), rng.integers(2, 60, (300, 1))
        index = start + np.arange(16)
        offsets = index // wrap * 4096 + index % wrap * 4
        offsets[:50] = rng.integers(0, 3, (50, 16)) * 4  # the same few elements again and again
        hi = np.full((300, 1), 16)
        if masked:
            hi[:, 0] = rng.integers(0, 17, 300)
        window = Window((16,), 4, rng.integers(0, 9, 300) * 65536, (offsets,), np.zeros((300, 1), np.int64), hi)
        found = [[] for _ in range(300)]
        for members, layout, columns in describe(window):
            for i, p in enumerate(range(300) if members is None else members):
                found[p].append(touched(layout, columns, i))
        for p, pieces in enumerate(found):
            once = np.unique(offsets[p]) if hi[p, 0] == 16 else offsets[p, : hi[p, 0]]
            expected = (window.base[p] + once[:, None] + np.arange(4)).ravel()
            assert 1 <= len(pieces) <= MOST_PIECES
            np.testing.assert_array_equal(np.sort(np.concatenate(pieces)), np.sort(expected))
