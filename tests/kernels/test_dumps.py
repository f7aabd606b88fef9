"""Looking at values of a kernel at a line."""

import inspect

import numpy as np
import pytest

from kernbench.kernels.dumps import DumpError, Spot, dump
from kernbench.kernels.standalone import StandaloneDevice

triton = pytest.importorskip("triton")

import looked_at_kernels as kernels  # noqa: E402


def line(kernel, text):
    """The only line of a kernel that contains ``text``."""
    source, start = inspect.getsourcelines(kernel.fn)
    (at,) = [i for i, row in enumerate(source) if text in row]
    return start + at


@pytest.fixture
def device():
    with StandaloneDevice() as made:
        yield made


def test_each_iteration_of_each_program_that_was_asked_for(device):
    x = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    out = device.empty((5,), "f32")
    spots = [f"{line(kernels.row_sums, text)}:{text.split()[0]}" for text in ("part =", "total +=", "at = start")]
    with dump(*spots, programs=[1, (4, 0, 0)], iterations=[0, 2]) as found:
        kernels.row_sums[(5,)](device.array(x), out, 40, 2.0, BLOCK=16)
    assert len(found) == 3 * 2 * 2
    for one in found:
        row, first = one.program[0], one.iteration * 16
        inside = np.zeros(16, np.float32)
        inside[: max(0, min(16, 40 - first))] = x[row, first : first + 16]
        if one.spot.name == "at":
            assert one.dtype == "i32"
            np.testing.assert_array_equal(one.value, first + np.arange(16))
        elif one.spot.name == "part":
            np.testing.assert_array_equal(one.value, inside)
        else:
            padded = np.pad(x[row], (0, 8)).reshape(3, 16)
            np.testing.assert_allclose(one.value, 2 * padded[: one.iteration + 1].sum(0), rtol=1e-6)
    assert {(one.program, one.iteration) for one in found} == {((p, 0, 0), i) for p in (1, 4) for i in (0, 2)}
    np.testing.assert_allclose(out.numpy(), 2 * x.sum(1), rtol=1e-5)


def test_a_fused_loop_runs_step_by_step_and_leaves_the_same_record(device):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((32, 64), (64, 32)))
    args = [device.array(a), device.array(b), device.empty((32, 32), "f32"), 64]
    kernels.product[(1,)](*args, N=32, BK=16)
    with dump(f"{line(kernels.product, 'acc = tl.dot')}:acc") as found:
        kernels.product[(1,)](*args, N=32, BK=16)
    assert [one.iteration for one in found] == [0, 1, 2, 3]
    for one in found:
        k = 16 * (one.iteration + 1)
        np.testing.assert_allclose(one.value, a[:, :k] @ b[:k], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(args[2].numpy(), a @ b, rtol=1e-4, atol=1e-4)
    with dump(f"{line(kernels.product, 'a_ptrs += BK')}:a_ptrs", iterations=[1]) as found:
        kernels.product[(1,)](*args, N=32, BK=16)
    (pointers,) = found
    assert pointers.points_into == "a"
    np.testing.assert_array_equal(pointers.value, np.arange(32)[:, None] * 64 + 32 + np.arange(16))


def test_nothing_is_dumped_outside_and_launches_are_told_apart(device):
    x, out = device.array(np.ones((2, 16), np.float32)), device.empty((2,), "f32")
    spot = Spot(line(kernels.row_sums, "part ="), "part", "looked_at_kernels.py")
    with dump(spot) as found:
        kernels.row_sums[(2,)](x, out, 16, 1.0, BLOCK=16)
        kernels.row_sums[(2,)](x, out, 16, 1.0, BLOCK=16)
    kernels.row_sums[(2,)](x, out, 16, 1.0, BLOCK=16)
    assert len(found) == 2 and found[0].launch is not found[1].launch


@pytest.mark.skipif(triton.__version__.startswith(("3.4.", "3.5.")), reason="its TTIR has no names of variables")
def test_what_is_not_there_is_said(device):
    x, out = device.array(np.ones((1, 16), np.float32)), device.empty((1,), "f32")
    at = line(kernels.row_sums, "part =")
    said = rf"no kernel that ran has a variable 'prat' at line {at}.*{at}:part"
    with pytest.raises(DumpError, match=said), dump(f"{at}:prat"):
        kernels.row_sums[(1,)](x, out, 16, 1.0, BLOCK=16)
    for bad in ("part", "x:part", "12:", "12:a b"):
        with pytest.raises(DumpError, match="expected LINE:NAME"), dump(bad):
            pass
