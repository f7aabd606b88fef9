"""The stream of frames: bit exact, in pieces of any size, and every damage found."""

import json
import tracemalloc

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_cases import KERNBENCH, NAMES, SHAPES, strided, weight

from kernbench.weight_sync import frames
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.frames import FrameDecoder, FrameError, decode_frames, encode_frames

WEIGHTS = [("a", np.arange(9, dtype=np.int16)), ("b.c", np.float32(2.5)), ("none", np.zeros((0, 3), np.int8))]


def stream(weights, **options):
    return b"".join(bytes(piece) for piece in encode_frames(weights, **options))


def digests(weights):
    return [(name, digest(tensor)) for name, tensor in weights]


def in_pieces(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("framework", ["torch", "numpy", "kernbench"])
def test_every_type_and_shape_is_bit_exact(framework):
    if framework == "torch":
        pytest.importorskip("torch")
    kinds = KERNBENCH if framework == "kernbench" else NAMES
    sent = [(f"{n}.{i}", weight(n, s, framework)) for n in kinds for i, s in enumerate(SHAPES)]
    got = list(decode_frames([stream(sent)], framework))
    assert digests(got) == digests(sent)
    assert {type(t) for _, t in got} == {type(sent[0][1])}


def test_strided_views_are_sent_as_they_look():
    sent = [(str(i), view) for i, view in enumerate(strided("numpy"))]
    assert digests(decode_frames([stream(sent, chunk=8)])) == digests(sent)


@given(st.integers(1, 400))
@settings(deadline=None)
def test_the_cut_of_the_stream_does_not_matter(size):
    assert digests(decode_frames(in_pieces(stream(WEIGHTS), size))) == digests(WEIGHTS)


def reader(data, most=1 << 30):
    """``readinto`` of a source that gives ``most`` bytes at a time until its end."""
    left = memoryview(data)

    def readinto(memory):
        nonlocal left
        at = 0
        while at < len(memory) and left:
            take = min(len(memory) - at, len(left), most)
            memory[at : at + take], left = left[:take], left[take:]
            at += take
        return at

    return readinto


@pytest.mark.parametrize("piece", [1 << 20, 5])
def test_a_stream_is_read_straight_into_its_tensors(piece, monkeypatch):
    monkeypatch.setattr(frames, "_PIECE", piece)
    sent = [(f"{n}.{i}", weight(n, s)) for n in NAMES for i, s in enumerate(SHAPES)]
    decoder = FrameDecoder("numpy")
    assert digests(decoder.read(reader(stream(sent), 7))) == digests(sent) == list(decoder.digests.items())
    known = {name: digest(tensor) for name, tensor in sent}
    assert stream(sent, digests=known) == stream(sent)


def test_what_is_read_is_checked_as_what_is_fed():
    data = stream(WEIGHTS)
    for end in range(len(data)):
        with pytest.raises(FrameError, match="cut off"):
            list(FrameDecoder("numpy").read(reader(data[:end])))
    with pytest.raises(FrameError, match="bytes follow the end"):
        list(FrameDecoder("numpy").read(reader(data + b"x")))
    wrong = stream(WEIGHTS, digests={name: "0" * 32 for name, _ in WEIGHTS})
    with pytest.raises(FrameError, match=f"the sender's to {'0' * 32}"):
        list(FrameDecoder("numpy").read(reader(wrong)))


def test_a_tensor_comes_as_soon_as_it_is_complete():
    decoder = FrameDecoder("numpy")
    pieces = in_pieces(stream(WEIGHTS, meta={"version": 3}), 1)
    came = [[name for name, _ in decoder.feed(piece)] for piece in pieces]
    assert [names for names in came if names] == [["a"], ["b.c"], ["none"]]
    assert decoder.done and decoder.count == 3 and decoder.meta == {"version": 3}
    decoder.finish()


def test_an_empty_stream_still_has_a_beginning_and_an_end():
    decoder = FrameDecoder()
    assert decoder.feed(stream([], meta={"version": 4})) == [] and decoder.done and decoder.meta == {"version": 4}


def test_every_cut_is_found():
    data = stream(WEIGHTS)
    for end in range(len(data)):
        with pytest.raises(FrameError, match="cut off"):
            list(decode_frames([data[:end]]))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_every_damaged_byte_is_found(at, flip):
    data = bytearray(stream(WEIGHTS))
    data[at % len(data)] ^= flip
    with pytest.raises(FrameError):
        list(decode_frames([bytes(data)]))


def frames_of(data):
    """The stream's head and its frames, cut at their magic."""
    head, *rest = data.split(b"KBWF")
    return head, [b"KBWF" + frame for frame in rest]


@pytest.mark.parametrize("order", [(0, 2, 3), (0, 0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3), (3,), (0, 1, 2, 3, 3)])
def test_lost_doubled_and_reordered_frames_are_found(order):
    head, parts = frames_of(stream(WEIGHTS))
    assert digests(decode_frames([head, *parts])) == digests(WEIGHTS)
    with pytest.raises(FrameError, match=r"lost, doubled or reordered|follow the end"):
        list(decode_frames([head, *[parts[i] for i in order]]))


def test_a_frame_of_another_stream_is_found_at_the_end():
    head, parts = frames_of(stream(WEIGHTS))
    _, others = frames_of(stream([(name, np.array(t) + 1) for name, t in WEIGHTS]))
    with pytest.raises(FrameError, match="whole stream"):
        list(decode_frames([head, parts[0], others[1], *parts[2:]]))


def test_other_streams_are_refused():
    with pytest.raises(FrameError, match="other format or version"):
        list(decode_frames([b"HTTP/1.1 404 Not Found"]))


def with_text(about):
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return frames._START + frames._HEAD.pack(b"KBWF", len(text), xxhash.xxh3_64_intdigest(text)) + text


@pytest.mark.parametrize(
    "about",
    [b"{", b"[]", b"3", {}, {"seq": 0}, {"seq": 0, "name": "a", "dtype": "float7", "shape": []},
     {"seq": 0, "name": "a", "dtype": "int8", "shape": [-1]}, {"seq": 0, "name": "a", "dtype": "int8", "shape": 4},
     {"seq": 0, "name": "a", "dtype": "int8", "shape": [1.5]}],
)  # fmt: skip
def test_text_that_makes_no_sense_is_refused(about):
    with pytest.raises(FrameError, match="makes no sense"):
        FrameDecoder().feed(with_text(about))


def test_a_size_limit_holds_before_memory_is_taken():
    huge = with_text({"seq": 0, "name": "a", "dtype": "int8", "shape": [1 << 50]})
    with pytest.raises(FrameError, match="more than the 1000 allowed"):
        FrameDecoder(max_bytes=1000).feed(huge)


def test_sending_copies_nothing_and_receiving_holds_one_tensor():
    big = np.zeros(1 << 24, np.uint8)
    pieces = list(encode_frames([("w", big)], chunk=1 << 20))
    assert sum(isinstance(p, np.ndarray) and np.shares_memory(p, big) for p in pieces) == 16
    tracemalloc.start()
    for _, tensor in decode_frames(encode_frames([("w", big), ("v", big)]), "numpy"):
        del tensor
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert top < 2.1 * big.nbytes
