"""torch CPU tensors and numpy arrays as kernel arguments."""

import gc
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernbench.kernels import foreign, launch
from kernbench.kernels.builtin import store
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.standalone import StandaloneDevice

FILL = {"out_ptr": "i32", "value": "i64"}
TILE = {"BLOCK_R": 1, "BLOCK_C": 1024}


def fill(out, value, n):
    launch(store.kernel("fill", FILL, TILE), (1,), [out, value, 1, n, n])


@pytest.fixture
def device():
    with StandaloneDevice() as device:
        yield device


def test_a_stored_kernel_writes_a_numpy_array_in_place(device):
    x = np.zeros(10, np.int32)
    fill(x[2:], 7, 5)
    assert x.tolist() == [0, 0, 7, 7, 7, 7, 7, 0, 0, 0]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_empty_part_may_be_passed_but_not_reached(device, kind):
    x = np.zeros(8, np.int32)
    if kind == "torch":
        x = pytest.importorskip("torch").from_numpy(x)
    for empty in (x[8:], x[3:3]):
        fill(empty, 7, 0)
        with pytest.raises(KernelFault, match="out of bounds"):
            fill(empty, 7, 1)
    assert not x.any()


def test_a_read_only_array_is_refused_only_where_it_is_written(device):
    x = np.zeros(8, np.int32)
    x.flags.writeable = False
    with pytest.raises(foreign.ForeignArgumentError, match=r"'fill', argument 'out_ptr'.*read-only"):
        fill(x, 1, 8)
    assert not x.any()


def test_memory_is_taken_once_for_all_views_and_returns_with_the_array(device):
    x = np.zeros(64, np.int32)
    for view in (x[:8], x[32:], x.reshape(8, 8)[1]):
        fill(view, 1, 4)
    (allocation,) = device.space.allocations()
    assert (allocation.nbytes, allocation.name) == (256, "out_ptr")
    base = allocation.base
    fill(x, 2, 64)
    assert device.space.allocations()[0].base == base
    del x, view
    gc.collect()
    assert device.space.allocations() == []


def test_without_values_a_host_array_is_refused():
    with StandaloneDevice(enable_data=False), pytest.raises(NotImplementedError, match="ctx tensors"):
        fill(np.zeros(4, np.int32), 1, 4)


def test_reading_past_a_host_array_is_a_fault_and_not_a_crash(device):
    from kernbench.kernels.errors import KernelFault

    with pytest.raises(KernelFault, match="out_ptr"):
        fill(np.zeros(4, np.int32), 1, 5)


def test_a_tensor_and_a_numpy_view_of_it_share_an_allocation(device):
    torch = pytest.importorskip("torch")
    x = torch.zeros(16, dtype=torch.int32)
    part = x[4:8].numpy()
    fill(part, 3, 4)  # known by a part first, then by the whole
    fill(x, 5, 2)
    assert x.tolist() == [5, 5, 0, 0, 3, 3, 3, 3] + 8 * [0]
    assert len(device.space.allocations()) == 1


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), min_size=1, max_size=12))
def test_ranges_of_host_memory_become_disjoint_mirrors(ranges):
    """However they overlap and in whatever order they come, each lies in one, and none in two."""
    memory, owners = np.zeros(80, np.uint8), []
    at = memory.ctypes.data
    with StandaloneDevice() as device:
        mirrors = foreign.Mirrors(device.space)
        for start, nbytes in ranges:
            owners.append(foreign._Bytes(at, 0))
            mirrors.cover(owners[-1], at + start, nbytes, "x", device)
        kept = sorted(mirrors._by_start.values(), key=lambda m: m.start)
        assert all(m.end <= later.start for m, later in pairwise(kept))
        for start, nbytes in ranges:
            meets = [m for m in kept if m.start < at + start + nbytes and at + start < m.end]
            assert len(meets) == 1 or nbytes == 0
            assert all(m.start <= at + start and at + start + nbytes <= m.end for m in meets)
        assert sorted(a.nbytes for a in device.space.allocations()) == sorted(m.end - m.start for m in kept)


def test_a_tensor_elsewhere_says_what_to_do(device):
    torch = pytest.importorskip("torch")
    with pytest.raises(foreign.ForeignArgumentError, match=r"'out_ptr'.*'meta'"):
        fill(torch.zeros(4, dtype=torch.int32, device="meta"), 1, 4)


class TestThroughTriton:
    @pytest.fixture(autouse=True)
    def kernels(self):
        pytest.importorskip("triton")

    def add(self, x, y, out):
        import tutorial_kernels as tutorials

        tutorials.add_kernel[(2,)](x, y, out, 12, BLOCK_SIZE=8)

    @pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int32"])
    def test_torch_tensors(self, device, kind):
        torch = pytest.importorskip("torch")
        x, y = (torch.randn(12, generator=torch.Generator().manual_seed(i)).mul(9) for i in range(2))
        x, y = x.to(getattr(torch, kind)), y.to(getattr(torch, kind))
        out = torch.empty_like(x)
        self.add(x, y, out)
        assert torch.equal(out, x + y)
        x += 1  # no launch sees what it cached before
        self.add(x, y, out)
        assert torch.equal(out, x + y)

    @pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
    def test_numpy_arrays(self, device, kind):
        x, y, out = np.arange(12).astype(kind), np.ones(12, kind), np.zeros(12, kind)
        self.add(x, y, out=out)
        assert (out == x + y).all()

    def test_numpy_arrays_are_refused_again_outside(self):
        from triton.runtime import JITFunction

        before = JITFunction.run
        with StandaloneDevice():
            assert JITFunction.run is not before
        assert JITFunction.run is before

    def test_kinds_of_tensors_mix(self, device):
        torch = pytest.importorskip("torch")
        x, y = torch.arange(12, dtype=torch.float32), np.ones(12, np.float32)
        out = device.empty((12,), "f32")
        self.add(x, y, out)
        assert out.numpy().tolist() == [i + 1 for i in range(12)]

    def test_in_a_context_the_launch_is_timed(self):
        torch = pytest.importorskip("torch")
        from kernbench.runtime_api.context import RuntimeContext

        with RuntimeContext.open("tiny") as ctx:
            x = torch.ones(12)
            self.add(x, x, x)
            assert x.tolist() == [2.0] * 12
            assert [c.bound.kind for c in ctx.timeline().commands] == ["launch"]


def test_what_kernels_do_not_take_is_said_of_arrays(device):
    for array, said in ((np.zeros(4, np.complex64), "complex64 is an argument"), (np.zeros(4, ">f4"), "other order")):
        with pytest.raises(foreign.ForeignArgumentError, match=said):
            foreign.HostArray(array)


def test_numbers_of_numpy_are_numbers(device):
    pytest.importorskip("triton")
    import guilty_kernels

    x, out = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    guilty_kernels.copy[(np.int64(1),)](x, out, n=np.int32(5), BLOCK=np.int16(8))
    assert out.tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
