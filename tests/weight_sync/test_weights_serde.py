"""Entries for HTTP and IPC: what old receivers read, what is bit exact, and what is refused."""

import base64
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from weights_cases import KERNBENCH, NAMES, SHAPES, strided, weight

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.serde import (
    CAPABILITIES,
    PIECE,
    ChecksumError,
    EncodingRangeError,
    choose_encoding,
    decode_from_http,
    decode_from_ipc,
    encode_for_http,
    encode_for_ipc,
    http_batches,
    stream_http,
)

torch = pytest.importorskip("torch")
ROUTES = {
    "http": (lambda *a, **k: json.loads(json.dumps(encode_for_http(*a, **k))), decode_from_http),
    "ipc": (encode_for_ipc, decode_from_ipc),
}


@pytest.fixture(params=ROUTES)
def route(request):
    return ROUTES[request.param]


def old_worker(entry):
    """How a receiver of the field reads an HTTP entry: the bytes of an element tell the type that travelled."""
    raw = base64.b64decode(entry["data"])
    size = len(raw) // max(int(np.prod(entry["shape"])), 1)
    wire = {2: np.float16, 4: np.float32}[size]
    return torch.from_numpy(np.frombuffer(raw, wire).reshape(entry["shape"]).copy()).to(
        getattr(torch, entry["dtype"].split(".")[-1])
    )


# The default encoding.


def test_entries_have_exactly_the_keys_of_the_field():
    bf16 = torch.ones(2, 3, dtype=torch.bfloat16)
    ones = np.ones((2, 3), np.float16).tobytes()
    assert encode_for_http("w", bf16) == {
        "name": "w",
        "dtype": "torch.bfloat16",
        "shape": [2, 3],
        "data": base64.b64encode(ones).decode(),
    }
    assert encode_for_ipc("w", bf16) == {
        "name": "w",
        "data": ones,
        "dtype": "float16",
        "target_dtype": "bfloat16",
        "shape": [2, 3],
    }
    f32 = encode_for_ipc("w", torch.zeros(2))
    assert (f32["dtype"], f32["target_dtype"]) == ("float32", "float32")


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_f32_and_f16_are_bit_exact(route, kind, shape):
    encode, decode = route
    sent = torch.randn(shape).to(kind)
    name, got = decode(encode("layers.0.w", sent))
    assert name == "layers.0.w" and got.dtype == kind and got.shape == sent.shape
    assert digest(got) == digest(sent)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_comes_back_as_bf16_within_the_bounds(route, shape):
    encode, decode = route
    sent = torch.randn(shape).to(torch.bfloat16)
    got = decode(encode("w", sent))[1]
    assert got.dtype == torch.bfloat16 and got.shape == sent.shape
    assert torch.allclose(got.float(), sent.float(), atol=0.05, rtol=0)
    again = decode_from_ipc(encode_for_ipc("w", got))[1]
    assert torch.allclose(again.float(), sent.float(), atol=2e-2, rtol=2e-2)


def test_bf16_within_the_range_of_f16_rounds_as_torch_does():
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(ml_dtypes.bfloat16).astype(np.float32))]
    fits = finite[np.abs(finite.view(ml_dtypes.bfloat16).astype(np.float64)) < 65536]
    sent = torch.from_numpy(fits.view(np.int16)).view(torch.bfloat16)
    expected = sent.to(torch.float16)
    entry = encode_for_ipc("w", sent)
    assert entry["data"] == expected.numpy().tobytes()
    assert digest(decode_from_ipc(entry)[1]) == digest(expected.to(torch.bfloat16))
    assert len(fits) == 2 * 0x4780 and torch.isfinite(expected).all()


@pytest.mark.parametrize("shape", [(128,), (4, 32), (2, 3, 16), (2, 2, 2, 8), ()])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_workers_of_the_field_read_the_default(shape, kind):
    sent = torch.randn(shape).to(kind)
    got = old_worker(encode_for_http("w", sent, checksum=True))
    assert got.dtype == kind and torch.allclose(got.float(), sent.float(), atol=0.05)


@pytest.mark.parametrize("number", [65536.0, -7e4, 1e5, 3e38])
def test_bf16_beyond_f16_is_refused_and_says_what_to_do(route, number):
    encode, decode = route
    sent = torch.tensor([1.0, number], dtype=torch.bfloat16)
    with pytest.raises(EncodingRangeError, match='encoding="bits"'):
        encode("big", sent)
    assert digest(decode(encode("big", sent, encoding="bits"))[1]) == digest(sent)


def test_infinities_and_nans_stay_what_they_are(route):
    encode, decode = route
    sent = torch.tensor([float("inf"), float("-inf"), float("nan"), 65280.0, 0.0, -0.0], dtype=torch.bfloat16)
    got = decode(encode("w", sent))[1]
    assert torch.equal(got.isnan(), sent.isnan())
    assert torch.equal(got[[0, 1, 3, 4, 5]], sent[[0, 1, 3, 4, 5]]) and torch.signbit(got[5])


# Every type.


@pytest.mark.parametrize("framework", ["torch", "numpy", "kernbench"])
@pytest.mark.parametrize("name", NAMES)
def test_every_type_and_shape_is_bit_exact(route, name, framework):
    if framework == "kernbench" and name not in KERNBENCH:
        pytest.skip("contexts have no such tensors")
    encode, decode = route
    for shape in SHAPES:
        sent = weight(name, shape, framework)
        got = decode(encode("w", sent, encoding="bits"), framework=framework)[1]
        assert type(got) is type(sent) and got.dtype == sent.dtype and tuple(got.shape) == shape
        assert digest(got) == digest(sent)
        if name != "bfloat16":
            assert digest(decode(encode("w", sent))[1]) == digest(sent)


@pytest.mark.parametrize("encoding", ["compatible", "bits"])
@pytest.mark.parametrize("framework", ["torch", "numpy"])
def test_views_and_parameters_are_sent_as_they_look(route, framework, encoding):
    encode, decode = route
    for view in strided(framework, "float16"):
        assert digest(decode(encode("w", view, encoding=encoding))[1]) == digest(view)
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    got = decode(encode("w", parameter, encoding=encoding))[1]
    assert torch.equal(got, parameter) and not got.requires_grad


def test_device_tensors_of_a_context(route):
    encode, decode = route
    values = np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16)
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=1)) as ctx:
        entry = encode("w", ctx.tensor(values, name="w"))
    assert digest(decode(entry, framework="kernbench")[1]) == digest(values)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.float32, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
def test_any_array_survives_both_routes(array):
    for encode, decode in ROUTES.values():
        assert digest(decode(encode("w", array, checksum=True), framework="numpy")[1]) == digest(array)


def test_arrays_longer_than_a_piece_survive(route):
    encode, decode = route
    for count in (PIECE // 2 - 1, PIECE // 2, PIECE // 2 + 1, PIECE + 7):
        sent = np.arange(count, dtype=np.uint16).view(np.float16)
        assert digest(decode(encode("w", sent, checksum=True))[1]) == digest(sent)
        view = np.arange(2 * count, dtype=np.uint16)[::2]
        assert digest(decode(encode("w", view, checksum=True))[1]) == digest(view)


def test_a_decoded_tensor_has_memory_of_its_own():
    buffer = bytearray(np.ones(4, np.float32).tobytes())
    entry = encode_for_ipc("w", np.zeros(4, np.float32)) | {"data": memoryview(buffer)}
    for framework in ("numpy", "torch", "kernbench"):
        got = decode_from_ipc(entry, framework=framework)[1]
        buffer[:4] = b"\0\0\0\0"
        assert float(got[0]) == 1.0
        got[1] = 3.0
        assert np.frombuffer(buffer, np.float32)[1] == 1.0
        buffer[:4] = np.ones(1, np.float32).tobytes()


# Older and other senders.


def test_a_missing_target_dtype_means_the_type_of_the_bytes():
    entry = encode_for_ipc("w", torch.ones(3, dtype=torch.bfloat16))
    del entry["target_dtype"]
    got = decode_from_ipc(entry)[1]
    assert got.dtype == torch.float16 and got.tolist() == [1, 1, 1]
    assert decode_from_ipc(entry | {"target_dtype": None})[1].dtype == torch.float16


@pytest.mark.parametrize("wire", [np.float16, np.float32])
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "float64", "float8_e5m2"])
def test_floats_that_travelled_as_another_float(wire, kind):
    values = np.array([1.5, -2.0, 0.25], wire)
    http = {"name": "w", "dtype": f"torch.{kind}", "shape": [3], "data": base64.b64encode(values.tobytes()).decode()}
    ipc = {"name": "w", "dtype": wire.__name__, "target_dtype": kind, "shape": [3], "data": values.tobytes()}
    for got in (decode_from_http(http)[1], decode_from_ipc(ipc)[1]):
        assert got.dtype == getattr(torch, kind) and got.float().tolist() == [1.5, -2.0, 0.25]


def test_integers_never_pass_for_floats():
    entry = encode_for_ipc("w", np.ones(3, np.int32)) | {"target_dtype": "float32"}
    with pytest.raises(ValueError, match="int32 cannot become float32"):
        decode_from_ipc(entry)


# Negotiation and checks.


def test_the_encoding_is_what_the_peer_announces():
    assert choose_encoding(CAPABILITIES) == "bits"
    for silent in (None, {}, {"encodings": None}, {"encodings": ["compatible", "zstd"]}):
        assert choose_encoding(silent) == "compatible"
    entry = encode_for_http("w", torch.ones(1), encoding="bits")
    assert entry["encoding"] == "bits" and len(entry["xxh3_128"]) == 32


@pytest.mark.parametrize("encoding", ["compatible", "bits"])
def test_a_wrong_byte_is_found_by_the_checksum(encoding):
    sent = torch.randn(64).to(torch.bfloat16)
    entry = encode_for_ipc("w", sent, encoding=encoding, checksum=True)
    for at in range(0, 128, 17):
        data = bytearray(entry["data"])
        data[at] ^= 1
        with pytest.raises(ChecksumError, match="'w'"):
            decode_from_ipc(entry | {"data": bytes(data)})
    with pytest.raises(ChecksumError, match="'w'"):
        decode_from_ipc(entry | {"shape": [8, 8]})


@pytest.mark.parametrize(
    "change,error,match",
    [
        ({"shape": [5]}, ValueError, "'w': 12 bytes"),
        ({"shape": [-3]}, ValueError, "integers from 0 on"),
        ({"shape": [3.0]}, ValueError, "integers from 0 on"),
        ({"shape": "3"}, ValueError, "integers from 0 on"),
        ({"dtype": "torch.float7"}, TypeError, "'w', 'dtype'"),
        ({"name": 3}, ValueError, "name is 3"),
        ({"encoding": "rot13"}, ValueError, "rot13"),
        ({"data": 7}, ValueError, "'data' is int"),
    ],
)
def test_malformed_entries_say_what_is_wrong(route, change, error, match):
    encode, decode = route
    with pytest.raises(error, match=match):
        decode(encode("w", torch.ones(3)) | change)


@pytest.mark.parametrize("key", ["name", "dtype", "shape", "data"])
def test_a_missing_key_is_named(route, key):
    encode, decode = route
    entry = encode("w", torch.ones(3))
    del entry[key]
    with pytest.raises(ValueError, match=f"no '{key}'"):
        decode(entry)


@pytest.mark.parametrize("data", ["AAA", "AA==AAAA", "A*AAAAAA", "ÄAAA", "AAAA\nAAAA"])
def test_what_is_no_base64_is_refused(data):
    with pytest.raises(ValueError, match="'w'"):
        decode_from_http({"name": "w", "dtype": "uint8", "shape": [6], "data": data})


def test_bit_exact_bytes_are_of_the_weights_own_type():
    entry = encode_for_ipc("w", torch.ones(3), encoding="bits") | {"target_dtype": "bfloat16"}
    with pytest.raises(ValueError, match="bit-exact, yet"):
        decode_from_ipc(entry)
    with pytest.raises(ValueError, match="expected 'compatible' or 'bits'"):
        encode_for_ipc("w", torch.ones(3), encoding="raw")


# Many weights.


def test_batches_keep_the_limit_and_the_order():
    weights = [(f"w{i}", np.full(n, i, np.uint8)) for i, n in enumerate([30, 30, 30, 300, 3, 3])]
    batches = list(http_batches(weights, 100))
    assert [[e["name"] for e in b["params"]] for b in batches] == [["w0", "w1"], ["w2"], ["w3"], ["w4", "w5"]]


@pytest.mark.parametrize("encoding", ["compatible", "bits"])
def test_the_streamed_text_is_that_of_the_entries(encoding):
    for count in range(4):
        weights = [(f'w"{i}', torch.randn(5 + i).to(torch.bfloat16)) for i in range(count)]
        text = b"".join(stream_http(weights, encoding=encoding))
        assert json.loads(text) == {"params": [encode_for_http(n, w, encoding=encoding) for n, w in weights]}


def test_streaming_holds_no_second_copy():
    big = torch.zeros(1 << 24, dtype=torch.bfloat16)
    tracemalloc.start()
    assert sum(len(p) for p in stream_http([("w", big), ("v", big.view(4096, 4096).t())])) > 2.6 * big.nbytes
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 0.9 * big.nbytes


def test_decoding_takes_memory_for_one_tensor():
    entry = encode_for_http("w", np.zeros(1 << 23, np.float32))
    tracemalloc.start()
    decode_from_http(entry)
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 1.4 * (4 << 23)
