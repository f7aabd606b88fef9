"""Messages of weights taken apart as they arrive: the same tensors as from the whole text, with less memory."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.serde import ChecksumError, decode_from_http, encode_for_http, stream_http
from kernbench.weight_sync.serde_stream import EntryDecoder

WEIGHTS = [
    ('w"\\é{', torch.randn(37, 3).to(torch.bfloat16)),
    ("model.a", torch.arange(100, dtype=torch.int64)),
    ("f8", torch.randn(7, 5).to(torch.float8_e4m3fn)),
    ("empty", torch.zeros(0, 3)),
    ("scalar", torch.tensor(2.0, dtype=torch.float16)),
]


def decoded(text, size=1 << 20, **options):
    decoder = EntryDecoder(**options)
    found = [pair for i in range(0, len(text), size) for pair in decoder.feed(text[i : i + size])]
    decoder.finish()
    assert decoder.count == len(found)
    return [(name, digest(tensor)) for name, tensor in found]


def expected(text):
    return [(name, digest(t)) for name, t in map(decode_from_http, json.loads(text)["params"])]


@pytest.mark.parametrize("encoding", ["compatible", "bits"])
@pytest.mark.parametrize("size", [1, 2, 5, 64, 1 << 20])
def test_pieces_of_any_size_give_what_the_whole_gives(size, encoding):
    text = b"".join(stream_http(WEIGHTS, encoding=encoding))
    assert decoded(text, size) == expected(text)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 50), st.booleans())
def test_any_order_spacing_and_further_keys(random, size, escaped):
    entries = []
    for name, tensor in WEIGHTS:
        keys = [*list(encode_for_http(name, tensor, encoding="bits").items()), ("more", [{"a": "}]\\"}, 1500.0, None])]
        random.shuffle(keys)
        entries.append(dict(keys))
    text = json.dumps({"x": {"params": []}, "params": entries, "n": -1}, indent=random.choice([None, 2]))
    text = (text.replace("/", "\\/") if escaped else text).encode()  # as some writers of JSON do
    assert decoded(text, size) == expected(text)


def test_floats_that_travelled_as_another_float():
    for wire in (np.float16, np.float32):
        for kind in ("bfloat16", "float32", "float64", "float8_e5m2"):
            entry = encode_for_http("w", np.array([1.5, -2.0, 0.25], wire)) | {"dtype": f"torch.{kind}"}
            text = json.dumps({"params": [entry]}).encode()
            assert decoded(text, 9) == expected(text)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b'{"params":', b'{"params":[{"name":"w"}]}', b'{"params":[1]}', b'{"x":1}', b'{"params":[]} x',
        b'{"params":[],"params":[]}', b'{"params":{}}', b'{"params":[{"name":"w","dtype":"F32","shape":[1],"data":7}]}',
        b'{"params":[{"name":"w","dtype":"F32","shape":[1],"data":"AAA"}]}',
        b'{"params":[{"name":"w","dtype":"F32","shape":[1],"data":"AA==AAAA"}]}',
        b'{"params":[{"name":"w","dtype":"F32","shape":[1],"data":"A*AAAAAA"}]}',
        b'{"params":[{"name":"w","dtype":"F32","shape":[3],"data":"AAAAAA=="}]}',
        b'{"params":[{"name":"w","dtype":"F32","shape":[1],"data":"' + b"A" * 400 + b'"}]}',
        b'{"params":[{"name":"w","name":"v"}]}', b'{"params":[{"name":w}]}', b'{"params":[{"name" 1}]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_malformed_is_refused(text, size):
    with pytest.raises(ValueError):
        decoded(text, size)


def test_sizes_are_checked_before_memory_is_taken():
    head = b'{"params":[{"name":"w","dtype":"F32","shape":[1000000000000],"data":"'
    with pytest.raises(ValueError, match="more than the 1000 allowed"):
        EntryDecoder(max_bytes=1000).feed(head)
    with pytest.raises(ValueError, match="more than the 1000 bytes"):
        EntryDecoder(max_bytes=1000).feed(b'{"params":[{"data":"' + b"A" * 2000)
    with pytest.raises(ValueError, match="more than 64 keys"):
        EntryDecoder().feed(b'{"params":[{' + b",".join(b'"%d":1' % i for i in range(100)))
    with pytest.raises(ValueError, match="a value is longer"):
        EntryDecoder().feed(b'{"params":[{"name":"' + b"A" * (2 << 20))


def test_a_wrong_byte_is_found_by_the_checksum():
    text = b"".join(stream_http(WEIGHTS[:1], encoding="bits"))
    at = text.index(b'"data":"') + 20
    with pytest.raises(ChecksumError):
        decoded(text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :])


def test_memory_is_one_tensor_and_a_piece():
    """Eight tensors in one message: the first is gone before the second comes."""
    count, nbytes = 8, 8 << 20
    texts = stream_http((f"w{i}", np.full(nbytes // 4, i, np.float32)) for i in range(count))
    decoder = EntryDecoder(framework="numpy")
    tracemalloc.start()
    seen = [int(t[-1]) for text in texts for _, t in decoder.feed(text)]
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == list(range(count))
    assert top < 5 * nbytes  # a tensor at the sender, one decoded, the one under way, and pieces
