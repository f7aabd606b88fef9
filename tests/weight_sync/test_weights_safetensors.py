"""The safetensors format, held to the library both ways and against malformed headers."""

import io
import json
import mmap
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weights_cases import NAMES, SHAPES, random_bytes, weight

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.safetensors import (
    INDEX_NAME,
    MAX_HEADER,
    SafetensorsError,
    files_of,
    index_text,
    parse_safetensors_header,
    read_header,
    read_index,
    read_tensors,
    serialize,
    write_safetensors,
)

torch = pytest.importorskip("torch")
library = pytest.importorskip("safetensors.torch")
STORED = [n for n in NAMES if n not in ("complex128", "float8_e8m0fnu")]


def packed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def refused(tmp_path, content, match):
    """Refused as a buffer and as a file; the message."""
    with pytest.raises(SafetensorsError, match=match):
        parse_safetensors_header(content)
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(SafetensorsError, match=match) as caught:
        read_header(path)
    assert "bad.safetensors" in str(caught.value)
    with pytest.raises(safetensors.SafetensorError):
        library.load(content)


# Agreement with the library.


def test_the_bytes_are_those_of_the_library(tmp_path):
    for name, shape in [(n, s) for n in STORED for s in SHAPES]:
        tensors = {
            "b": weight(name, shape, "torch"),
            'a\u00e9"\\\n\x7f\u2028': weight("bfloat16", (3,), "torch"),
            "": torch.ones(5),
        }
        ours = b"".join(bytes(piece) for piece in serialize(tensors, {"k\u00e9y": "v"}))
        assert ours == library.save(tensors, {"k\u00e9y": "v"}), (name, shape)


def test_tensors_of_every_type_cross_both_ways(tmp_path):
    tensors = {f"{n}.{i}": weight(n, s, "torch") for n in STORED for i, s in enumerate(SHAPES)}
    expected = {name: digest(tensor) for name, tensor in tensors.items()}
    library.save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    for path in (tmp_path / "theirs", tmp_path / "ours"):
        for read in (library.load_file(path), read_tensors(path), read_tensors(path, framework="numpy")):
            assert {name: digest(tensor) for name, tensor in read.items()} == expected
        assert read_header(path).metadata == {"format": "pt"}
    some = read_tensors(tmp_path / "theirs", ["bfloat16.5", "bool.0"])
    assert {name: digest(t) for name, t in some.items()} == {name: expected[name] for name in some}
    with pytest.raises(KeyError):
        read_tensors(tmp_path / "ours", ["nope"])


def test_ranges_are_where_the_bytes_are(tmp_path):
    tensors = {"a": weight("int16", (3, 2)), "b": weight("float64", ()), "z": weight("int8", (0,))}
    safetensors.numpy.save_file(tensors, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    header = read_header(tmp_path / "x")
    for name, place in header.tensors.items():
        assert content[place.start : place.stop] == tensors[name].tobytes()
        assert (place.kind, place.shape) == (wire_type(tensors[name].dtype), tensors[name].shape)
    start, parsed = parse_safetensors_header(content)
    assert (start, header.data_start, header.file_size) == (len(content) - 20, len(content) - 20, len(content))
    assert parsed == json.loads(content[8:start])
    with open(tmp_path / "x", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert parse_safetensors_header(mapped) == (start, parsed)
        mapped.close()  # no view of it is left
    assert parse_safetensors_header(content[:start]) == (start, parsed)
    assert parse_safetensors_header(content[: start + 3], len(content)) == (start, parsed)


@pytest.mark.parametrize(
    "content",
    [
        packed({}),
        packed({"__metadata__": {"a": "b"}}),
        packed({"__metadata__": None}),
        packed(b"  \t\n" + json.dumps({"a": entry()}).encode() + b" \r\n", b"abcd"),
        packed({"b": entry(offsets=(4, 8)), "a": entry()}, b"abcdefgh"),
        packed({"a": entry(), "z": entry(shape=(0,), offsets=(4, 4))}, b"abcd"),
        packed({"a": entry(note="ignored")}, b"abcd"),
    ],
)
def test_odd_headers_that_the_library_takes_are_taken(content):
    _, header = parse_safetensors_header(content)
    theirs = library.load(content)
    assert header.keys() - {"__metadata__"} == theirs.keys()


# Malformed files.


@pytest.mark.parametrize(
    "content,match",
    [
        (b"", "too few"),
        (b"\x02\0\0", "too few"),
        ((100).to_bytes(8, "little") + b"{}", "said to take 100 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "allows 100000000"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}", "allows 100000000"),
        (packed(b""), "does not start"),
        (packed(b"[]"), "does not start"),
        (packed(b"{"), "no valid JSON"),
        (packed(b"{}x"), "no valid JSON"),
        (packed(b'{"a\xff":1}'), "no valid JSON"),
        (packed(b'{"a\\ud800":' + json.dumps(entry()).encode() + b"}", b"abcd"), "no valid JSON"),
        (packed(b'{"a":' * 100_000), "nested too deeply|no valid JSON"),
        (packed({"a": 1}), "needs 'dtype'"),
        (packed({"a": {"dtype": "F32", "shape": [1]}}, b"abcd"), "needs 'dtype'"),
        (packed({"a": entry("f32")}, b"abcd"), "has dtype 'f32'"),
        (packed({"a": entry("F33")}, b"abcd"), "expected one of BOOL"),
        (packed({"a": entry(shape=(1.0,))}, b"abcd"), "shape"),
        (packed({"a": entry(shape=(True,))}, b"abcd"), "shape"),
        (packed({"a": entry(shape=(-1,))}, b"abcd"), "shape"),
        (packed({"a": entry(shape=(10**400,))}, b"abcd"), "shape"),
        (packed({"a": entry(shape=(2**32, 2**32))}, b"abcd"), "overflows"),
        (packed({"a": entry(shape=(2**32, 2**32, 0), offsets=(0, 0))}), "overflows"),
        (packed({"a": entry(offsets=(4, 0))}, b"abcd"), "begin <= end"),
        (packed({"a": entry(offsets=(0, 4, 8))}, b"abcd"), "begin, end"),
        (packed({"a": entry(offsets=(0, 8))}, b"abcdefgh"), "span 8"),
        (packed({"a": entry("F4", (3,), (0, 2))}, b"ab"), "whole number of bytes"),
        (packed({"a": entry(offsets=(4, 8))}, b"abcdefgh"), "hole of 4 bytes"),
        (packed({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "hole of 4 bytes after the end of 'a'"),
        (packed({"a": entry(), "b": entry()}, b"abcd"), "overlaps the end of 'a'"),
        (packed({"a": entry(), "b": entry(offsets=(2, 6))}, b"abcdef"), "overlaps"),
        (packed({"a": entry(), "z": entry(shape=(0,), offsets=(2, 2))}, b"abcd"), "overlaps"),
        (packed({"a": entry()}, b"abcdX"), "belong to no tensor"),
        (packed({"a": entry()}, b"abc"), "cut off"),
        (packed({"__metadata__": {"a": 1}}), "__metadata__ has to map"),
        (packed({"__metadata__": []}), "__metadata__ has to map"),
    ],
)
def test_malformed_files_are_refused_as_by_the_library(tmp_path, content, match):
    refused(tmp_path, content, match)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":%b,"a":%b}',
        b'{"__metadata__":{"x":"1","x":"2"},"a":%b}',
    ],
)
def test_duplicate_names_are_refused_though_the_library_takes_them(text):
    content = packed(text.replace(b"%b", json.dumps(entry()).encode()), b"abcd")
    library.load(content)
    with pytest.raises(SafetensorsError, match="appears twice"):
        parse_safetensors_header(content)


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path):
    path = tmp_path / "huge"
    claims = [
        packed({"a": entry("F32", (2**40,), (0, 2**42))}, b"abcd"),
        (MAX_HEADER - 8).to_bytes(8, "little") + b"{",
        packed({"a": entry("F32", (2**40,), (0, 2**42)), "b": entry("F32", (2**40,), (0, 2**42))}, b"abcd"),
    ]
    for content in claims:
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(SafetensorsError):
            read_tensors(path)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert top < 1 << 20


def test_a_buffer_without_the_whole_header_is_refused():
    content = packed({"a": entry()}, b"abcd")
    with pytest.raises(SafetensorsError, match="within the header"):
        parse_safetensors_header(content[:20], len(content))


small = st.integers(0, 9)
value = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 20), st.just("F32"), st.lists(small, max_size=3), st.just(1.0)
)
tensor = st.one_of(
    value,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BOOL", "BF16", "U8", "F8_E4M3", "X"]),
            "shape": st.one_of(value, st.lists(st.integers(0, 3), max_size=2)),
            "data_offsets": st.one_of(value, st.tuples(small, small).map(list)),
        }
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), tensor, max_size=3), st.integers(0, 12))
@example({"a": entry(shape=(0,), offsets=(3, 3)), "b": entry(shape=(0,), offsets=(0, 0))}, 0)
def test_ours_accepts_exactly_what_the_library_accepts(header, size):
    content = packed(header, bytes(size))
    try:
        theirs = library.load(content).keys()
    except safetensors.SafetensorError:
        theirs = None
    try:
        ours = parse_safetensors_header(content, len(content))[1].keys() - {"__metadata__"}
    except SafetensorsError:
        ours = None
    assert ours == theirs


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 199), st.integers(0, 255))
def test_a_damaged_byte_never_ends_in_another_error(at, byte):
    content = bytearray(safetensors.numpy.save({"w": np.arange(6.0), "v": np.ones(3, np.int8)}))
    content[at % len(content)] = byte
    try:
        start, header = parse_safetensors_header(content)
        assert start <= len(content) and all(isinstance(v, dict) for v in header.values())
    except SafetensorsError:
        pass


# Writing.


def test_what_the_format_cannot_hold_is_refused():
    for tensors, metadata, match in [
        ({"c": np.zeros(2, np.complex128)}, None, "has no complex128"),
        ({"__metadata__": np.zeros(2)}, None, "cannot be called"),
        ({"a\ud800": np.zeros(2)}, None, "Unicode"),
        ({"a": np.zeros(2)}, {"step": 3}, "turn the values into str"),
    ]:
        with pytest.raises(SafetensorsError, match=match):
            list(serialize(tensors, metadata))


def test_writing_makes_no_copy_of_a_tensor():
    array = np.zeros(1 << 22, np.float32).view(ml_dtypes.bfloat16)

    class Null(io.RawIOBase):
        def write(self, data):
            return min(len(data), 12345 * 7)

    tracemalloc.start()
    write_safetensors(Null(), {"w": array})
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 1 << 19


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_safetensors(path, {"w": np.ones(3)})
    before = path.read_bytes()

    class Failing(dict):
        def __getitem__(self, name):
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_safetensors(path, Failing(w=np.zeros(3)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x"]


# Index files.


def test_an_index_names_the_files_of_a_checkpoint(tmp_path):
    assert read_index(tmp_path) == {} and files_of(tmp_path) == []
    (tmp_path / "b.safetensors").touch()
    assert [p.name for p in files_of(tmp_path)] == ["b.safetensors"]
    (tmp_path / "model.safetensors").touch()
    assert [p.name for p in files_of(tmp_path)] == ["model.safetensors"]
    (tmp_path / INDEX_NAME).write_bytes(index_text({"y": "m2.safetensors", "x": "m1.safetensors"}, 0))
    assert read_index(tmp_path) == {"x": "m1.safetensors", "y": "m2.safetensors"}
    assert [p.name for p in files_of(tmp_path)] == ["m1.safetensors", "m2.safetensors"]


@pytest.mark.parametrize(
    "text,match",
    [
        ('{"weight_map": {"a": "../x.safetensors"}}', "plain name"),
        ('{"weight_map": {"a": "/etc/x"}}', "plain name"),
        ('{"weight_map": {"a": ".."}}', "plain name"),
        ('{"weight_map": {"a": 3}}', "plain name"),
        ('{"weight_map": []}', "weight_map"),
        ("[]", "weight_map"),
        ("{", "no valid JSON"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "appears twice"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, text, match):
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(SafetensorsError, match=match):
        read_index(tmp_path)


def test_random_bytes_of_the_cases_hold_every_bit_pattern():
    assert set(random_bytes("float8_e4m3fn", (64, 64)).tolist()) == set(range(256))
