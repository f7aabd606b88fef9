"""Descriptors that no hardware could use."""

import numpy as np
import pytest

from kernbench.kernels import sanitize
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")

import looked_at_kernels as kernels


@pytest.fixture
def device():
    with StandaloneDevice() as made, sanitize.enabled(["alignment"]):
        yield made


def copy(device, kind, stride, start=0):
    src = device.array(np.arange(2048), kind, "source")
    out = device.empty((8, 8), kind)
    kernels.copy_block[(1,)](src, out, 8, 8, stride, START=start, BLOCK=8)
    expected = (np.arange(8)[:, None] * stride + np.arange(8) + start).astype(np.float32)
    np.testing.assert_array_equal(out.numpy().astype(np.float32), np.asarray(expected, out.numpy().dtype))


@pytest.mark.parametrize(("kind", "stride", "start"), [("f32", 12, 4), ("f16", 24, 8), ("f32", 64, 0)])
def test_aligned_ones_pass(device, kind, stride, start):
    copy(device, kind, stride, start)


@pytest.mark.parametrize(
    ("kind", "stride", "start", "said"),
    [
        ("f32", 10, 0, "the stride of axis 0 is 10 elements of 4 bytes, 40 bytes, no multiple of 16"),
        ("f16", 12, 0, "the stride of axis 0 is 12 elements of 2 bytes, 24 bytes, no multiple of 16"),
        ("f32", 12, 1, "its base is byte 4 of 'source', address"),
    ],
)
def test_misaligned_ones_are_named_with_line_and_argument(device, kind, stride, start, said):
    with pytest.raises(KernelFault) as caught:
        copy(device, kind, stride, start)
    at = kernels.copy_block.starting_line_number + 1 + 1
    head = f"looked_at_kernels.py:{at}: kernel 'copy_block', program (0, 0, 0): misaligned descriptor of 'src': "
    assert head + said in str(caught.value)
    with sanitize.enabled(["race"]):
        copy(device, kind, stride, start)  # it works here, and is no fault unless it is looked for


def test_a_hosts_descriptor_is_checked_where_it_is_used(device):
    from triton.tools.tensor_descriptor import TensorDescriptor

    src, out = device.array(np.arange(256), "f32", "source"), device.empty((8, 8), "f32")
    with pytest.raises(AssertionError, match="16-byte aligned"):
        TensorDescriptor(src, [8, 8], [10, 1], [8, 8])
    desc = TensorDescriptor(src, [8, 8], [12, 1], [8, 8])
    kernels.copy_from[(1,)](desc, out, BLOCK=8)
    desc.strides = [10, 1]
    with pytest.raises(KernelFault, match=r"misaligned descriptor of 'desc': the stride of axis 0 is 10"):
        kernels.copy_from[(1,)](desc, out, BLOCK=8)
