"""Kernels that do nothing wrong must not be accused, whatever their shapes; and checks change no record."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels import sanitize
from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")

import tutorial_kernels as tutorials
from test_tutorials import layer_norm, random


@pytest.fixture(scope="module")
def device():
    with StandaloneDevice() as made:
        yield made


def checked(launch):
    """What a launch gives under all checks; a warning is an error."""
    with sanitize.enabled(nan="fault", shuffle=5), warnings.catch_warnings():
        warnings.simplefilter("error")
        return launch()


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 5000), block=st.sampled_from([16, 128, 1024]), kind=st.sampled_from(["f16", "f32"]))
def test_01_vector_add(device, n, block, kind):
    def launch():
        x, out = device.array(random((n,), kind), kind), device.empty((n,), kind)
        tutorials.add(x, x, out, block)
        tutorials.add(out, x, out, block)  # in place
        return out.numpy()

    np.testing.assert_allclose(checked(launch), 3 * random((n,), kind), rtol=2e-3)


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 60), cols=st.integers(1, 900), programs=st.sampled_from([1, 7, 64]))
def test_02_fused_softmax(device, rows, cols, programs):
    def launch():
        out = device.empty((rows, cols), "f32")
        tutorials.softmax(device.array(random((rows, cols)), "f32"), out, programs)
        return out.numpy()

    np.testing.assert_allclose(checked(launch).sum(1), 1, rtol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    m=st.integers(1, 150),
    n=st.integers(1, 150),
    k=st.integers(1, 150),
    tile=st.sampled_from([(16, 16, 16), (64, 32, 32), (128, 128, 64)]),
)
def test_03_matmul(device, m, n, k, tile):
    a, b = random((m, k), "f16", 1), random((k, n), "f16", 2)

    def launch():
        out = device.empty((m, n), "f16")
        tutorials.matmul(device.array(a, "f16"), device.array(b, "f16"), out, "leaky_relu", tile)
        return out.numpy().astype(np.float64)

    expected = np.where(a @ b >= 0, a @ b, 0.01 * (a @ b))
    np.testing.assert_allclose(checked(launch), expected, rtol=2e-3, atol=2e-3 * np.sqrt(k))


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(8, 30), cols=st.integers(2, 300), block=st.sampled_from([64, 512]))
def test_05_layer_norm_with_the_locks_of_its_backward_pass(device, rows, cols, block):
    found, expected = checked(lambda: layer_norm(device, rows, cols, "f32", block))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_checks_change_neither_values_nor_the_record():
    def launch():
        with StandaloneDevice() as device:
            a, b = device.array(random((100, 70), "f16", 1), "f16"), device.array(random((70, 90), "f16", 2), "f16")
            out = device.empty((100, 90), "f16")
            tutorials.matmul(a, b, out, tile=(32, 32, 32))
            found = layer_norm(device, 20, 100, "f32", 64)[0]
            return out.numpy().tobytes(), [x.tobytes() for x in found], repr(device.records)

    assert launch() == checked(launch)
