"""Built-in kernels against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels import OutOfResources, Target, builtin
from kernbench.kernels.builtin import menu, store
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.memory import dtype
from kernbench.sim_engine.oplog import OpKind

TOLERANCE = {"f16": 2e-3, "bf16": 1.6e-2, "f32": 2e-6}
FLOATS = sorted(TOLERANCE)


@pytest.fixture(scope="module")
def device():
    with StandaloneDevice() as made:
        yield made


def random(shape, kind, seed=0, low=-4.0, high=4.0):
    """Values that ``kind`` holds exactly, as float64."""
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return values.astype(dtype(kind).storage).astype(np.float64)


def result(array):
    return array.numpy().astype(np.float64)


def close(found, expected, kind, scale=1.0):
    np.testing.assert_allclose(result(found), expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * scale)


sizes = st.integers(1, 150)
flags = st.booleans()


@settings(max_examples=40, deadline=None)
@given(
    m=sizes, n=sizes, k=sizes, kind=st.sampled_from(FLOATS), layout=st.tuples(*[st.booleans()] * 3), bias=st.booleans()
)
def test_matmul(device, m, n, k, kind, layout, bias):
    a, b, v = random((m, k), kind, 1), random((k, n), kind, 2), random((n,), kind, 3)

    def stored(values, turned):
        return device.array(values.T, kind).T if turned else device.array(values, kind)

    out = device.empty((n, m), kind).T if layout[2] else device.empty((m, n), kind)
    builtin.matmul(out, stored(a, layout[0]), stored(b, layout[1]), device.array(v, kind) if bias else None)
    close(out, a @ b + (v if bias else 0), kind, scale=4 * np.sqrt(k))


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("shape", [(128, 256, 2048), (40, 72, 3000)])
def test_a_matmul_with_few_outputs_is_split_along_k(device, kind, shape):
    m, n, k = shape
    a, b, v = random((m, k), kind, 1), random((k, n), kind, 2), random((n,), kind, 3)
    out = device.empty((m, n), kind)
    before, held = len(device.records), device.space.allocated
    args = device.array(a, kind), device.array(b, kind), device.array(v, kind)
    builtin.matmul(out, *args)
    assert [record.name for record in device.records[before:]] == ["matmul", "sum_pieces"]
    assert device.records[before].grid[1] > 1
    close(out, a @ b + v, kind, scale=4 * np.sqrt(k))
    del args
    assert device.space.allocated - held <= sum(x.nbytes for x in device.space.allocations()), "scratch is returned"
    assert not any("split" in x.name for x in device.space.allocations())


def test_matmul_accumulates_and_may_write_f32(device):
    a, b = np.full((3, 4096), 1.0), np.full((4096, 5), 1.0)
    out = device.empty((3, 5), "f32")
    builtin.matmul(out, device.array(a, "f16"), device.array(b, "f16"))
    assert (out.numpy() == 4096.0).all()


def test_matmul_with_an_empty_side(device):
    out = device.array(np.ones((3, 4)), "f32")
    builtin.matmul(out, device.empty((3, 0), "f32"), device.empty((0, 4), "f32"))
    assert (out.numpy() == 0).all()
    builtin.matmul(device.empty((0, 4), "f32"), device.empty((0, 2), "f32"), device.empty((2, 4), "f32"))


@settings(max_examples=25, deadline=None)
@given(m=sizes, n=st.integers(1, 900), k=st.integers(1, 1200), kind=st.sampled_from(FLOATS), pes=st.integers(1, 70))
def test_however_a_matmul_is_cut_the_values_are_right(m, n, k, kind, pes):
    a, b, v = random((m, k), kind, 1), random((k, n), kind, 2), random((n,), kind, 3)
    with StandaloneDevice(Target(tcm_capacity=2 * 2**20, programs_in_flight=2, pes=pes)) as device:
        out = device.array(np.full((m, n), np.nan), kind)
        builtin.matmul(out, *(device.array(x, kind) for x in (a, b, v)))
        error = np.abs(result(out) - (a @ b + v))
    assert (error <= TOLERANCE[kind] * (np.abs(a) @ np.abs(b) + np.abs(v))).all()


def gemm_steps(record):
    """Steps of the K loop, by program."""
    steps = np.zeros(record.programs, np.int64)
    for block in record.blocks:
        for row in block.rows:
            if row.kind == OpKind.GEMM:
                steps[block.programs] += block.loops[row.loop].trips
    return steps


@pytest.mark.parametrize(
    "shape",
    [(128, 3584, 4096), (128, 4096, 3584), (128, 1792, 4096), (128, 7168, 4096), (128, 14336, 4096), (1, 4096, 4096)],
)
def test_every_pe_gets_the_same_work_at_the_sizes_that_matter(shape):
    m, n, k = shape
    target = Target(tcm_capacity=2 * 2**20, programs_in_flight=2, pes=64)
    with StandaloneDevice(target, enable_data=False) as device:
        builtin.matmul(*(device.empty(s, "f16") for s in ((m, n), (m, k), (k, n))))
    product = device.records[0]
    assert product.programs_in_flight == 2
    steps = gemm_steps(product)
    assert len(steps) % target.pes == 0 and steps.max() <= 1.15 * steps.mean()


@pytest.mark.parametrize("size", [1024, 2048, 4096])
def test_a_large_square_is_not_split_along_k(size):
    target = Target(tcm_capacity=2 * 2**20, programs_in_flight=2, pes=64)
    tiles, pieces, _ = builtin.pick("matmul", (size, size, size), ("f16", "f16"), target).grid
    assert pieces == 1 and tiles % target.pes == 0


def test_a_small_scratchpad_gets_small_tiles_and_none_gets_an_error():
    small = Target(tcm_capacity=64 * 1024, programs_in_flight=2, pes=4)
    assert builtin.pick("matmul", (4096, 4096, 4096), ("f16", "f16"), small).kernel.tcm.nbytes <= 64 * 1024
    with pytest.raises(OutOfResources):
        builtin.pick("matmul", (64, 64, 64), ("f16", "f16"), Target(1024, 2, 4))


NUMPY_OPS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@pytest.mark.parametrize("kind", list(menu.OP_TYPES))
@pytest.mark.parametrize("shape", [(7,), (3, 5, 70), (2000, 9)])
def test_elementwise_of_tensors_vectors_and_numbers(device, kind, shape):
    numpy_kind = dtype(kind).storage
    whole = not dtype(kind).is_floating_point
    rng = np.random.default_rng(5)
    low = 0 if kind == "u8" else -5
    a = rng.integers(low, 6, shape) if whole else rng.uniform(-3, 3, shape)
    b = rng.integers(1, 4, shape) if whole else rng.uniform(1, 3, shape)
    a, b = a.astype(numpy_kind), b.astype(numpy_kind)
    left, right, vector = (device.array(x, kind) for x in (a, b, b[..., :].reshape(-1)[: shape[-1]]))
    out = device.empty(shape, kind)
    wide = np.int64 if whole else np.float64
    for op in menu.OP_TYPES[kind]:
        cases = [(right, b), (vector, vector.numpy()), (2, np.array(2, numpy_kind))]
        for given_b, values in cases:
            builtin.elementwise(op, out, left, given_b)
            expected = NUMPY_OPS[op](a.astype(wide), values.astype(wide)).astype(numpy_kind)
            got = out.numpy()
            if kind in TOLERANCE:
                np.testing.assert_allclose(got.astype(np.float64), expected.astype(np.float64), rtol=TOLERANCE[kind])
            else:
                np.testing.assert_array_equal(got, expected)


def test_f16_results_are_rounded_and_overflow(device):
    x = device.array(np.array([60000.0, 1.0, 2048.0]), "f16")
    y = device.array(np.array([60000.0, 2.0**-12, 1.0]), "f16")
    builtin.elementwise("add", x, x, y)
    assert x.numpy().tolist() == [np.inf, 1.0, 2048.0]


def test_max_and_min_propagate_nan(device):
    x, y = device.array(np.array([np.nan, 1.0]), "f32"), device.array(np.array([2.0, np.nan]), "f32")
    for op in ("max", "min"):
        out = device.empty((2,), "f32")
        builtin.elementwise(op, out, x, y)
        assert np.isnan(out.numpy()).all()


def test_rows_of_a_larger_tensor(device):
    values = random((40, 100), "f32")
    whole = device.array(values, "f32")
    out = device.empty((40, 30), "f32")
    builtin.elementwise("add", out, whole[:, 20:50], whole[:, 60:90])
    close(out, values[:, 20:50] + values[:, 60:90], "f32")
    builtin.activation("relu", whole[10:20, :50], whole[10:20, :50])
    values[10:20, :50] = np.maximum(values[10:20, :50], 0)
    close(whole, values, "f32")


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("op", menu.ACTIVATIONS)
def test_activations(device, kind, op):
    from math import erf

    x = np.concatenate([random((3, 500), kind, 7), random((3, 12), kind, 8, -90, 80)], 1)
    x = np.clip(x, -10, 10) if op == "exp" else x
    with np.errstate(over="ignore"):
        logistic = 1 / (1 + np.exp(-x))
    expected = {
        "silu": x * logistic,
        "gelu": 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "relu": np.maximum(x, 0),
        "sigmoid": logistic,
        "tanh": np.tanh(x),
        "exp": np.exp(x),
        "neg": -x,
    }[op]
    given_x, out = device.array(x, kind), device.empty(x.shape, kind)
    builtin.activation(op, out, given_x)
    close(out, expected, kind)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 80), cols=st.integers(1, 900), kind=st.sampled_from(FLOATS), fused=flags)
def test_silu_mul(device, rows, cols, kind, fused):
    x = random((rows, 2 * cols), kind, 9)
    gate, up = x[:, :cols], x[:, cols:]
    out = device.empty((rows, cols), kind)
    if fused:
        builtin.silu_mul(out, device.array(x, kind))
    else:
        builtin.silu_mul(out, device.array(gate, kind), device.array(up, kind))
    close(out, gate / (1 + np.exp(-gate)) * up, kind)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 20), min_size=0, max_size=4),
    order=st.randoms(use_true_random=False),
    types=st.sampled_from([*menu.cast_types(), *((k, k) for k in ("f16", "bf16", "i8", "i64", "i1", "u16"))]),
)
def test_copy_casts_and_permutes(device, shape, order, types):
    source, to = types
    axes = list(range(len(shape)))
    order.shuffle(axes)
    low = 0 if "u8" in types or "u16" in types else -100
    values = np.random.default_rng(1).integers(low, 100, shape).astype(dtype(source).storage)
    given_src = device.array(values, source)
    back = np.argsort(axes)
    out = device.empty([shape[i] for i in axes], to)
    turned = type(out)(out.allocation, out.dtype, [out.shape[i] for i in back], [out.stride()[i] for i in back])
    builtin.copy(turned, given_src)
    carried = values.astype(np.float64) if dtype(source).is_floating_point else values
    np.testing.assert_array_equal(turned.numpy(), carried.astype(dtype(to).storage))


def test_copy_rounds_to_nearest_even(device):
    x = np.array([1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, 65519.0, 65520.0, 1e-8, -0.0], np.float32)
    for kind in ("f16", "bf16"):
        out = device.empty(x.shape, kind)
        builtin.copy(out, device.array(x, "f32"))
        with np.errstate(over="ignore"):
            expected = x.astype(dtype(kind).storage)
        assert out.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64", "i8", "u8", "i16", "i32", "i64", "i1", "f8e4m3"])
def test_fill(device, kind):
    out = device.empty((37, 3), kind)
    value = 1 if kind == "i1" else 3 if not dtype(kind).is_floating_point else -1.75
    builtin.fill(out, value)
    assert (out.numpy() == np.array(value).astype(dtype(kind).storage)).all()


@pytest.mark.parametrize("op", ["sum", "prod", "max", "min"])
def test_combine_works_in_place(device, op):
    a, b = random((1000,), "f16", 1), random((1000,), "f16", 2)
    dst = device.array(a, "f16")
    builtin.combine(op, dst, device.array(b, "f16"))
    expected = {"sum": a + b, "prod": a * b, "max": np.maximum(a, b), "min": np.minimum(a, b)}[op]
    np.testing.assert_array_equal(dst.numpy(), expected.astype(np.float16))


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 300), (2, 3000), (2, 20000), (17,)])
def test_kernels_over_the_last_axis(device, kind, shape):
    x, w, b = random(shape, kind, 1), random(shape[-1:], kind, 2), random(shape[-1:], kind, 3)
    given_x, weight, bias = device.array(x, kind), device.array(w, kind), device.array(b, kind)
    out = device.empty(shape, kind)

    builtin.softmax(out, given_x)
    e = np.exp(x - x.max(-1, keepdims=True))
    expected = e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(result(out), expected, rtol=4 * TOLERANCE[kind], atol=1e-7)

    centred = x - x.mean(-1, keepdims=True)
    norm = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    for args, want in (((), norm), ((weight,), norm * w), ((weight, bias), norm * w + b)):
        builtin.layer_norm(out, given_x, *args)
        close(out, want, kind, scale=8)
    rms = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    for args, want in (((), rms), ((weight,), rms * w)):
        builtin.rms_norm(out, given_x, *args)
        close(out, want, kind, scale=8)


def test_any_common_order_of_axes_and_strided_vectors(device):
    values = random((30, 40), "f32")
    array = device.array(values, "f32")
    out = device.empty((30, 40), "f32")
    builtin.elementwise("add", out.T, array.T, array.T)
    close(out, 2 * values, "f32")
    column = device.empty((30,), "f32")
    builtin.elementwise("mul", column, array[:, 3], array[:, 7])
    close(column, values[:, 3] * values[:, 7], "f32")


def test_mistakes_are_named(device):
    f16, f32 = device.empty((4, 4), "f16"), device.empty((4, 4), "f32")
    with pytest.raises(builtin.DTypeError, match=r"matmul: expected one dtype, got a f16, b f32"):
        builtin.matmul(f32, f16, f32)
    with pytest.raises(builtin.DTypeError, match=r"no kernel takes f32 and gives f16"):
        builtin.matmul(f16, f32, f32)
    with pytest.raises(builtin.ShapeError, match=r"b \(4, 5\)"):
        builtin.matmul(f16, f16, device.empty((4, 5), "f16"))
    with pytest.raises(builtin.ShapeError, match=r"shapes differ: out \(4, 4\), a \(4, 4\), b \(2, 4\)"):
        builtin.elementwise("add", f16, f16, device.empty((2, 4), "f16"))
    with pytest.raises(builtin.ShapeError, match="make them contiguous"):
        builtin.activation("silu", f16, device.empty((4, 4), "f16").T)
    with pytest.raises(ValueError, match="there is no operation 'pow'"):
        builtin.elementwise("pow", f16, f16, f16)
    with pytest.raises(builtin.DTypeError, match="no kernel for i32; there are f16"):
        builtin.elementwise("div", *[device.empty((4,), "i32")] * 3)
    with pytest.raises(builtin.StoreError, match="no built-in kernel 'convolve'"):
        builtin.pick("convolve", (1, 1), ("f16",), device.target)


def test_the_store_was_made_from_the_sources_beside_it():
    for source in store.SOURCES:
        assert store.read(source)["source_hash"] == store.source_hash(source)
    stored = {name for source in store.SOURCES for name in store.read(source)["kernels"]}
    assert stored == {variant.key for variant in menu.variants()}


def test_stored_locations_name_files_of_the_package_only():
    for source in store.SOURCES:
        for entry in store.read(source)["kernels"].values():
            files = {line.split('"')[1] for line in entry["text"].splitlines() if line.endswith(")") and '":' in line}
            assert files <= {f"kernbench/kernels/builtin/sources/{source}.py", "/triton/language/standard.py"}


def test_lowering_the_sources_again_gives_the_stored_text():
    triton = pytest.importorskip("triton")
    if not triton.__version__.startswith("3.9."):
        pytest.skip(f"the store holds the text of Triton 3.9, this is {triton.__version__}")
    from kernbench.kernels.builtin.__main__ import differences, lower_all

    assert [line for source, content in lower_all() for line in differences(source, content)] == []
