"""Element types by every name, and weights of every library as bytes and back."""

import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weights_cases import KERNBENCH, NAMES, SHAPES, random_bytes, strided, weight

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.arrays import (
    copy_into,
    default_framework,
    digest,
    framework_of,
    from_bytes,
    is_contiguous_on_host,
    iter_bytes,
    to_bytes,
)
from kernbench.weight_sync.dtypes import by_code, codes, wire_type

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", NAMES)
def test_a_type_has_many_names(name):
    kind = wire_type(name)
    spellings = [name, f"torch.{name}", getattr(torch, name), kind.storage, kind, kind.torch_name]
    if name in KERNBENCH:
        spellings += [Tensor((1,), name).dtype, Tensor((1,), name).dtype.name]
    if kind.code:
        spellings += [kind.code, kind.code.lower()]
        assert by_code(kind.code) is kind
    assert {wire_type(spelling).name for spelling in spellings} == {name}
    assert kind.itemsize == getattr(torch, name).itemsize


@pytest.mark.parametrize("spec", ["float7", "torch.qint8", object, None, np.dtype("U3")])
def test_an_unknown_type_lists_those_that_are_known(spec):
    with pytest.raises(TypeError, match="bfloat16"):
        wire_type(spec)


def test_packed_types_have_sizes_and_no_arrays():
    assert by_code("F4").nbytes((3, 4)) == 6
    assert by_code("F6_E2M3").nbytes((4,)) == 3
    with pytest.raises(ValueError, match="whole number of bytes"):
        by_code("F4").nbytes((3,))
    with pytest.raises(NotImplementedError, match="range in the file"):
        from_bytes("F4", (2,), b"\0", "numpy")
    assert by_code("bf16") is None and by_code(3) is None
    assert len(codes()) == 22


@pytest.mark.parametrize("framework", ["numpy", "torch", "kernbench"])
@pytest.mark.parametrize("name", NAMES)
def test_every_bit_survives_without_a_copy(name, framework):
    if framework == "kernbench" and name not in KERNBENCH:
        with pytest.raises(TypeError):
            weight(name, (2,), framework)
        return
    for shape in SHAPES:
        raw = random_bytes(name, shape)
        made = from_bytes(name, shape, raw, framework)
        assert framework_of(made) == framework and tuple(made.shape) == shape
        back = to_bytes(made)
        assert (back.kind.name, back.shape) == (name, shape)
        assert back.data.tobytes() == raw.tobytes()
        assert not raw.size or np.shares_memory(back.data, raw)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("chunk", [1, 7, 12, 1 << 20])
def test_strided_views_come_in_c_order_in_pieces(framework, chunk):
    for view in strided(framework):
        plain = np.array(view) if framework == "numpy" else view.contiguous()
        expected = to_bytes(plain).data.tobytes()
        assert not is_contiguous_on_host(view)
        pieces = list(iter_bytes(view, chunk))
        assert b"".join(p.tobytes() for p in pieces) == expected == to_bytes(view).data.tobytes()
        assert max(p.size for p in pieces) <= max(chunk, 2)
        assert digest(view, chunk) == digest(plain)


@given(st.lists(st.integers(0, 4), max_size=4), st.randoms(use_true_random=False), st.integers(1, 40))
def test_pieces_join_to_the_whole(shape, random, chunk):
    axes = list(range(len(shape)))
    random.shuffle(axes)
    array = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape).transpose(axes)
    pieces = [p.tobytes() for p in iter_bytes(array, chunk)]
    assert b"".join(pieces) == array.tobytes()


def test_pieces_of_a_strided_view_are_not_overwritten_by_the_next():
    array = np.arange(64, dtype=np.int64).reshape(8, 8).T
    assert b"".join(p.tobytes() for p in list(iter_bytes(array, 32))) == array.tobytes()


def test_pieces_of_a_strided_view_hold_no_second_copy():
    array = np.zeros((1000, 4000), np.float32).T
    tracemalloc.start()
    assert sum(p.size for p in iter_bytes(array, 1 << 16)) == array.nbytes
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 1 << 19


def test_torch_parameters_and_lazy_views():
    parameter = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.bfloat16))
    assert to_bytes(parameter.t()).data.tobytes() == to_bytes(parameter.detach().t().contiguous()).data.tobytes()
    z = torch.randn(5, dtype=torch.complex64)
    assert to_bytes(z.conj()).to("torch").tolist() == z.conj().tolist()
    assert to_bytes(z.conj().imag).to("torch").tolist() == (-z.imag).tolist()
    assert not is_contiguous_on_host(z.conj())


@pytest.mark.parametrize(
    "make,advice",
    [
        (lambda: torch.zeros(3).to_sparse(), "to_dense"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "unknown element type"),
        (lambda: [1.0, 2.0], "list"),
        (lambda: np.array([object()]), "unknown element type"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_plain_bytes_is_refused(make, advice):
    with pytest.raises(TypeError, match=advice):
        to_bytes(make())


def test_big_endian_arrays_become_little_endian():
    array = np.arange(4, dtype=">f4")
    assert to_bytes(array).data.tobytes() == array.astype("<f4").tobytes()
    assert b"".join(p.tobytes() for p in iter_bytes(array, 8)) == array.astype("<f4").tobytes()


def test_bytes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'w': 7 bytes, but float32 of shape \[2\] takes 8"):
        from_bytes("float32", (2,), b"1234567", name="w")
    with pytest.raises(ValueError, match="negative"):
        from_bytes("float32", (-1,), b"")
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        from_bytes("bool", (2,), b"\1\2")
    with pytest.raises(ValueError, match="framework"):
        from_bytes("bool", (), b"\1", "jax")


@pytest.mark.parametrize("offset", [0, 1])
def test_torch_gets_memory_that_it_can_use(offset):
    raw = bytes(range(17))[offset:]
    made = from_bytes("float32", (4,), raw[:16], "torch")
    made += 0  # neither read-only nor unaligned
    assert made.data_ptr() % 4 == 0


def test_the_digest_is_of_type_shape_and_bits_only():
    raw = random_bytes("float16", (4, 6))
    same = {digest(from_bytes("float16", (4, 6), raw, f)) for f in ("numpy", "torch", "kernbench")}
    assert len(same) == 1
    others = [from_bytes("float16", (6, 4), raw, "numpy"), from_bytes("bfloat16", (4, 6), raw, "numpy")]
    flipped = raw.copy()
    flipped[5] ^= 1
    others.append(from_bytes("float16", (4, 6), flipped, "numpy"))
    assert len(same | {digest(other) for other in others}) == 4


@pytest.mark.parametrize("source", ["numpy", "torch", "kernbench"])
@pytest.mark.parametrize("target", ["numpy", "strided numpy", "torch", "strided torch", "kernbench"])
def test_copying_into_another_library_keeps_the_bits(source, target):
    for name in ("bfloat16", "float8_e4m3fn", "float32", "bool", "int64"):
        made = weight(name, (3, 4), source)
        if target == "kernbench":
            into = Tensor((3, 4), name)
        else:
            into = weight(name, (4, 3), target.split()[-1], seed=1)
            into = into.T if target.startswith("strided") else into.reshape(3, 4)
        copy_into(into, made)
        assert digest(into) == digest(made)


def test_copying_checks_type_and_shape():
    with pytest.raises(TypeError, match="cannot copy float16"):
        copy_into(np.zeros(2, np.float32), np.zeros(2, np.float16))
    with pytest.raises(ValueError, match="cannot copy"):
        copy_into(np.zeros(2), np.zeros((2, 1)))


def test_device_tensors_of_a_context_are_read_in_pieces():
    values = np.random.default_rng(0).standard_normal((6, 10)).astype(ml_dtypes.bfloat16)
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=1)) as ctx:
        tensor = ctx.tensor(values)
        assert not is_contiguous_on_host(tensor)
        assert digest(tensor, 16) == digest(tensor) == digest(values)
        assert digest(tensor.t(), 6) == digest(values.T)
        copy_into(tensor, np.zeros_like(values))
        assert not tensor.numpy().any()


def test_importing_loads_no_torch():
    code = (
        "import sys\n"
        "from kernbench.weight_sync import frames, serde, snapshot\n"
        "import numpy as np, json\n"
        "from kernbench.weight_sync.arrays import default_framework\n"
        "entry = json.loads(json.dumps(serde.encode_for_http('w', np.ones(3, 'f2'))))\n"
        "assert isinstance(serde.decode_from_http(entry)[1], np.ndarray) and default_framework() == 'numpy'\n"
        "print([m for m in ('torch', 'safetensors', 'httpx', 'zstandard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert default_framework() == "torch"
