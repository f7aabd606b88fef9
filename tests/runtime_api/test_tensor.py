import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kernbench.topology
from kernbench.memory import dtype
from kernbench.runtime_api import layout
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.tensor import Tensor


def test_a_host_tensor_by_hand():
    tensor = Tensor(shape=(2, 3), dtype="f16", name="x")
    assert tensor.shape == (2, 3)
    assert tensor._host_buffer.dtype == np.float16
    tensor._host_buffer[1, 2] = 7
    tensor._host_buffer = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert tensor.numpy().dtype == np.float16
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match=r"shape \(2, 3\), the buffer has \(3,\)"):
        tensor._host_buffer = np.zeros(3)


@pytest.mark.parametrize(
    "spec", ["f16", "float16", "torch.float16", np.float16, np.dtype("float16"), torch.float16, "half"]
)
def test_one_type_by_many_names(ctx, spec):
    tensor = ctx.zeros((2,), dtype=spec)
    assert (str(tensor.dtype), tensor.element_size(), tensor.dtype) == ("torch.float16", 2, ctx.float16)


def test_what_a_device_tensor_says_of_itself(ctx):
    tensor = ctx.zeros(2, 3, dtype="f32", name="x")
    assert (tensor.shape, tensor.size(1), tensor.size(), tensor.dim(), tensor.numel(), len(tensor)) == (
        (2, 3), 3, (2, 3), 2, 6, 2,
    )  # fmt: skip
    assert (tensor.stride(), tensor.stride(0), tensor.nbytes, tensor.is_contiguous()) == ((3, 1), 3, 24, True)
    assert str(tensor.device) == "ahbm:0"
    assert (tensor.device.type, tensor.device.index) == ("ahbm", 0)
    assert tensor.data_ptr() % 256 == 0
    assert not tensor.is_cpu
    assert tensor.is_floating_point()
    with pytest.raises(RuntimeError, match=r"'x' is on ahbm:0 and has no host buffer"):
        _ = tensor._host_buffer


def test_factories(ctx):
    assert ctx.ones(2, dtype="i32").tolist() == [1, 1]
    assert ctx.zeros((2, 3), "i32", None, "counts").name == "counts"
    assert ctx.empty([2, 3], "f32").dtype == ctx.float32
    assert ctx.host_empty((2,), "i8").dtype == ctx.int8
    assert ctx.full((2, 1), 2.5).tolist() == [[2.5], [2.5]]
    assert ctx.arange(3).tolist() == [0, 1, 2]
    assert ctx.arange(3).dtype == ctx.int64
    assert ctx.arange(1.0, 2.0, 0.25).dtype == ctx.float32
    assert ctx.arange(1, 9, 3, dtype="f16").tolist() == [1, 4, 7]
    assert ctx.tensor([[1, 2], [3, 4]]).dtype == ctx.int64
    assert ctx.tensor([1.5, 2]).dtype == ctx.float32
    assert ctx.tensor([True, False]).dtype == ctx.bool
    assert ctx.tensor(3).item() == 3
    assert ctx.zeros_like(ctx.ones(2, 2, dtype="bf16")).dtype == ctx.bfloat16
    assert ctx.ones_like(Tensor((2,), "i8")).device == "cpu"
    assert ctx.empty(0, 4).numpy().shape == (0, 4)
    assert ctx.zeros(2, device="cpu").is_cpu
    draws = ctx.randn(1000, dtype="f32").numpy()
    assert abs(draws.mean()) < 0.2
    assert abs(draws.std() - 1) < 0.2
    assert ctx.rand(100).numpy().min() >= 0
    assert set(ctx.randint(2, 4, (50,)).tolist()) == {2, 3}
    with pytest.raises(AttributeError, match="no 'conv2d'"):
        ctx.conv2d(3)
    with pytest.raises(TypeError, match="unknown dtype 'f17'"):
        ctx.zeros(2, dtype="f17")
    with pytest.raises(ValueError, match="unknown device 'cuda'"):
        ctx.zeros(2, device="cuda")
    with pytest.raises(TypeError, match="a shape is made of integers"):
        ctx.zeros((2.5, 1))


MACHINE = kernbench.topology.load("tiny")
STORED = ["f16", "f32", "i32", "i64", "u8", "i1", "bf16", "f8e4m3", "f8e5m2"]


@given(
    st.sampled_from(STORED), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), st.binary(max_size=99)
)
def test_round_trip_of_every_type(kind, shape, noise):
    size = int(np.prod(shape)) * dtype(kind).itemsize
    raw = np.resize(np.frombuffer(noise or b"\0", np.uint8), size) & (1 if kind == "i1" else 255)
    values = raw.view(dtype(kind).storage).reshape(shape)
    with RuntimeContext.open(MACHINE) as ctx:
        there = ctx.zeros(values.shape, dtype=kind)
        there.copy_(ctx.from_numpy(values))
        back = there.numpy()
    assert back.dtype == values.dtype
    assert back.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "kind", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32, torch.bool]
)
def test_torch_tensors_go_in_and_out(ctx, kind):
    source = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(kind)
    there = ctx.tensor(source.T)
    assert str(there.dtype) == str(kind)
    want = source.T.float().numpy()
    np.testing.assert_array_equal(there.numpy().astype(np.float32), want)
    there.zero_()
    there.copy_(source.T)
    np.testing.assert_array_equal(np.asarray(there).astype(np.float32), want)
    if kind in (torch.float32, torch.int32):
        assert torch.equal(torch.from_numpy(there.numpy()), source.T)


class TestCopy:
    def test_host_to_device_casts_and_stretches(self, ctx):
        target = ctx.zeros((2, 3))
        assert target.copy_(np.array([1, 2, 65504.0 * 2])) is target
        assert target.tolist() == [[1, 2, float("inf")]] * 2

    def test_device_to_host(self, ctx):
        target = Tensor((2, 2), "f32")
        target.copy_(ctx.full((2, 2), 0.5))
        assert target.tolist() == [[0.5, 0.5]] * 2

    def test_device_to_device(self, ctx):
        source = ctx.tensor([[1.0, 2], [3, 4]], dtype="f16")
        assert ctx.zeros((2, 2)).copy_(source).tolist() == [[1, 2], [3, 4]]

    def test_device_to_strided_and_cast(self, ctx):
        source = ctx.tensor([[1.0, 2], [3, 4]], dtype="f16")
        target = ctx.zeros((2, 4), dtype="f32")
        target[:, ::2].copy_(source)
        target[:, 1:2].copy_(source[:, 1:])
        assert target.tolist() == [[1, 2, 2, 0], [3, 4, 4, 0]]

    def test_host_to_host(self):
        target = Tensor((2,), "f16")
        target.copy_(Tensor((1,), "f32").fill_(3))
        assert target.tolist() == [3, 3]

    def test_shapes_that_do_not_fit(self, ctx):
        with pytest.raises(RuntimeError, match=r"copy_ from shape \(3,\) into shape \(2,\)"):
            ctx.zeros(2).copy_(np.zeros(3))
        with pytest.raises(RuntimeError, match=r"copy_ from shape \(2, 2\) into shape \(2,\)"):
            ctx.zeros(2).copy_(np.zeros((2, 2)))

    def test_a_later_change_of_the_source_changes_nothing(self, ctx):
        source = np.ones(3, np.float16)
        target = ctx.zeros(3).copy_(source)
        source[:] = 9
        assert target.tolist() == [1, 1, 1]
        read = target.numpy()
        read[:] = 5
        assert target.tolist() == [1, 1, 1]


slices = st.one_of(
    st.integers(-3, 2),
    st.builds(slice, st.none() | st.integers(-4, 4), st.none() | st.integers(-4, 4), st.none() | st.integers(1, 3)),
    st.none(),
)


@given(
    st.lists(slices, max_size=5).filter(lambda keys: sum(k is not None for k in keys) <= 3), st.permutations([0, 1, 2])
)
def test_views_are_what_numpy_makes_of_them(keys, order):
    shape = (3, 4, 5)
    values = np.arange(60).reshape(shape)
    want = values.transpose(order)[tuple(keys)] if all(_in(k, n) for k, n in _aligned(keys, order, shape)) else None
    strides = tuple(layout.row_major(shape)[i] for i in order)
    new = tuple(shape[i] for i in order)
    if want is None:
        with pytest.raises(IndexError):
            layout.index(new, strides, tuple(keys))
        return
    got_shape, got_strides, offset = layout.index(new, strides, tuple(keys))
    got = np.lib.stride_tricks.as_strided(values.reshape(-1)[offset:], got_shape, [s * 8 for s in got_strides])
    np.testing.assert_array_equal(got, want)
    access = layout.access(1000 + 8 * offset, got_shape, got_strides, 8)
    assert _bytes(access) == {1000 + 8 * int(v) + b for v in np.ravel(want) for b in range(8)}


def _aligned(keys, order, shape):
    return zip([k for k in keys if k is not None], [shape[i] for i in order], strict=False)


def _in(key, n):
    return not isinstance(key, int) or -n <= key < n


def _bytes(access):
    touched = np.array([int(access.base[0])])
    if 0 in access.counts:
        return set()
    for n, stride in zip(access.counts, access.strides, strict=True):
        touched = (touched[:, None] + np.arange(n) * stride).ravel()
    return set(touched.tolist())


@given(
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
    st.permutations([0, 1, 2]),
    st.sampled_from([(-1,), (2, -1), (4, -1), (1, -1, 2), (3, 2, 2), (12,)]),
)
def test_reshape_is_a_view_exactly_where_torch_has_one(shape, order, new):
    base = torch.arange(int(np.prod(shape))).reshape(shape)
    order = [i for i in order if i < len(shape)]
    base = base.permute(order)
    try:
        want = base.reshape(new)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            layout.reshape(tuple(base.shape), base.stride(), new)
        return
    got, strides = layout.reshape(tuple(base.shape), base.stride(), new)
    assert got == tuple(want.shape)
    assert (strides is not None) == (want.data_ptr() == base.data_ptr() or base.numel() == 0)


def test_views_share_memory(ctx):
    whole = ctx.tensor(np.arange(12, dtype=np.float16).reshape(3, 4))
    row = whole[1]
    assert (row.shape, row.storage_offset(), row.data_ptr() - whole.data_ptr()) == ((4,), 4, 8)
    row.fill_(-1)
    whole[0, 1:3] = 9
    whole[2] = np.array([5, 6, 7, 8])
    assert whole.tolist() == [[0, 9, 9, 3], [-1, -1, -1, -1], [5, 6, 7, 8]]
    assert whole.T[3].tolist() == [3, -1, 8]
    assert whole.view(-1)[4].item() == -1
    assert whole.unsqueeze(0).shape == (1, 3, 4)
    assert whole[:1].squeeze().shape == (4,)
    assert whole[0].expand(2, 4).tolist() == [[0, 9, 9, 3]] * 2
    assert [part.shape for part in whole.split(3, dim=1)] == [(3, 3), (3, 1)]
    assert [part.tolist() for part in whole.chunk(2, dim=1)][1] == [[9, 3], [-1, -1], [7, 8]]
    assert whole.permute(1, 0).transpose(0, 1).is_contiguous()
    assert [int(x[0]) for x in whole] == [0, -1, 5]
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        whole.T.view(12)
    with pytest.raises(ValueError, match="step must be positive"):
        whole[::-1]
    with pytest.raises(IndexError):
        whole[3]
    with pytest.raises(NotImplementedError, match=r"use slices, or \.cpu\(\)"):
        whole[[0, 2]]
    assert whole.cpu()[[0, 2], 0].tolist() == [0, 5]


@given(
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    st.permutations([0, 1, 2]),
    st.integers(0, 2),
    st.sampled_from(["uint8", "float16", "int32", "float64"]),
    st.sampled_from(["int8", "bfloat16", "float32", "int64"]),
)
def test_bytes_seen_as_another_type_are_what_torch_sees(shape, order, skip, old, new):
    count, order = int(np.prod(shape)), [i for i in order if i < len(shape)]
    base = torch.arange(count * 8).to(torch.uint8).view(getattr(torch, old))[:count].reshape(shape).permute(order)
    base = base[skip:] if shape else base
    lies = tuple(base.shape), base.stride(), base.storage_offset(), dtype(old), dtype(new)
    try:
        want = base.view(getattr(torch, new))
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=re.escape(str(error).split(" to view")[0])):
            layout.reinterpret(*lies)
        return
    assert layout.reinterpret(*lies) == (tuple(want.shape), want.stride(), want.storage_offset())
    here = Tensor._of_array(base.numpy()).view(getattr(torch, new))
    assert here.dtype == dtype(new) and here.shape == tuple(want.shape)
    plain = want.clone(memory_format=torch.contiguous_format).reshape(-1)
    assert here.numpy().tobytes() == plain.view(torch.uint8).numpy().tobytes()


def test_device_bytes_seen_as_another_type(ctx):
    whole = ctx.tensor(np.arange(14, dtype=np.uint8))  # no multiple of the types' sizes
    halves = whole[2:10].view(ctx.float16)
    assert (halves.shape, halves.storage_offset(), halves.dtype) == ((4,), 1, ctx.float16)
    assert halves.numpy().tobytes() == bytes(range(2, 10))
    assert whole[4:12].view(4, 2).view(dtype="i16").shape == (4, 1)
    halves[1:3].view("i32").fill_(-1)
    assert whole.tolist() == [0, 1, 2, 3, *[255] * 4, *range(8, 14)]
    assert whole[4:12].view(torch.float32)[1].item() == np.frombuffer(bytes(range(8, 12)), np.float32)[0]
    with pytest.raises(RuntimeError, match=r"storage_offset\(\) must be divisible by 4 .*got 2"):
        whole[2:10].view("f32")
    with pytest.raises(TypeError, match="shape is made of integers"):
        whole.view("nothing")


def test_the_memory_of_a_view_lives_as_long_as_the_view(ctx):
    before = ctx.ahbm.memory_allocated()
    view = ctx.ones(8)[2:4]
    assert ctx.ahbm.memory_allocated() > before
    assert view.tolist() == [1, 1]
    del view
    assert ctx.ahbm.memory_allocated() == before


def test_moving_and_casting(ctx):
    there = ctx.ones(3)
    assert there.to("ahbm") is there
    assert there.cpu().device == "cpu"
    assert there.cpu().to("ahbm:0").device == "ahbm:0"
    assert there.to(torch.float32).dtype == ctx.float32
    assert there.float().half().tolist() == [1, 1, 1]
    assert there.to("cpu", "i32").tolist() == [1, 1, 1]
    assert there.to(ctx.zeros(1, dtype="bf16")).dtype == ctx.bfloat16
    assert there.clone().data_ptr() != there.data_ptr()
    assert there.contiguous() is there
    assert there.data.data_ptr() == there.data_ptr()


def test_reading_scalars(ctx):
    assert ctx.full((1, 1), 2.5).item() == 2.5
    assert float(ctx.full((), 2.5)) == 2.5
    assert bool(ctx.ones(1))
    assert [10, 20][ctx.tensor(1)] == 20
    assert f"{ctx.full((), 2.5):.2f}" == "2.50"
    assert isinstance(ctx.full((2,), 2.5, dtype="bf16").tolist()[0], float)
    with pytest.raises(RuntimeError, match="2 elements cannot be converted to Scalar"):
        ctx.ones(2).item()
    assert (ctx.ones(1) == 1).item()
    with pytest.raises(NotImplementedError, match=r"compare \.cpu\(\)"):
        _ = ctx.ones(2) == 1


@pytest.mark.parametrize(
    "values",
    [
        [[1.0, 2.0], [3.5, -4.25]],
        [1.0, 2.0, 300.0],
        [0.00001, 1.0],
        [1e9, 1.0],
        [float("nan"), 1.5, float("-inf")],
        [float("inf"), 1.0],
        [[True, False]],
        [1, -20, 300],
        [],
        2.5,
        [[[0.1] * 3] * 2] * 2,
        list(range(2000)),
    ],
    ids=str,
)
def test_repr_is_torchs(ctx, values):
    reference = torch.tensor(values)
    mine = ctx.tensor(reference.numpy())
    assert repr(mine).replace(", device='ahbm:0'", "").split() == repr(reference).split()
    if reference.dtype == torch.float32:
        assert repr(mine.half()).replace(", device='ahbm:0'", "").split() == repr(reference.half()).split()


def test_repr_says_where_it_is(ctx):
    assert repr(ctx.ones(2)) == "tensor([1., 1.], device='ahbm:0', dtype=torch.float16)"
    assert repr(Tensor((2,), "i64")) == "tensor([0, 0])"


def test_dtype_objects_are_shared():
    assert Tensor((1,), "f16").dtype is dtype("float16")


def test_dlpack(ctx):
    assert torch.from_dlpack(ctx.ones(3, dtype="f32")).tolist() == [1, 1, 1]
    assert np.from_dlpack(ctx.ones(3, dtype="i32").cpu()).tolist() == [1, 1, 1]


def test_anything_with_dlpack_goes_in(ctx):
    values = np.arange(3, dtype=np.float32)
    foreign = type("Array", (), {n: staticmethod(getattr(values, n)) for n in ("__dlpack__", "__dlpack_device__")})()
    assert ctx.zeros(3).copy_(foreign).tolist() == [0, 1, 2]
