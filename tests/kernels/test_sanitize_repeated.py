"""Checked launches that repeat: what was seen once is not looked at again, and what changed meanwhile is found."""

import warnings

import numpy as np
import pytest

from kernbench.kernels import sanitize
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.sanitize import NumericWarning
from kernbench.kernels.standalone import StandaloneDevice
from kernbench.kernels.tape import Reader, Tapes

pytest.importorskip("triton")

import guilty_kernels as guilty
import tutorial_kernels as tutorials
from test_sanitize_checks import fault, line


@pytest.fixture
def device():
    with StandaloneDevice() as made, sanitize.enabled(nan="fault"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield made


@pytest.fixture
def reads(monkeypatch):
    """Of each launch, whether it read a tape."""
    found, find = [], Tapes.find

    def watched(*args):
        made = find(*args)
        found.append(isinstance(made, Reader))
        return made

    monkeypatch.setattr(Tapes, "find", watched)
    return found


def test_a_repeated_launch_reads_a_tape_and_leaves_what_it_left_without_checks(reads):
    def launches():
        with StandaloneDevice() as device:
            a, b = (device.array(np.random.default_rng(s).standard_normal((70, 70)), "f16") for s in (1, 2))
            out, soft = device.empty((70, 70), "f16"), device.empty((70, 70), "f32")
            x, y = device.array(np.linspace(-1, 1, 4900).reshape(70, 70), "f32"), device.empty((70, 70), "f32")
            for _ in range(4):
                tutorials.matmul(a, b, out, tile=(32, 32, 32))
                tutorials.softmax(x, soft, programs=8)
                tutorials.add(soft, x, y, 256)
            return [t.numpy().tobytes() for t in (out, soft, y)], repr(device.records)

    plain = launches()
    del reads[:]
    with sanitize.enabled(nan="fault"):
        assert launches() == plain
    assert reads == [False] * 6 + [True] * 6


def test_memory_that_was_freed_and_allocated_again_is_unwritten(device, reads):
    x, out = device.array(np.ones(64), "f32"), device.empty((64,), "f32")
    for _ in range(3):
        guilty.copy[(4,)](x, out, 64, BLOCK=16)
    device.space.free(x.allocation)
    again = device.empty((64,), "f32", "fresh")
    assert again.allocation.base == x.allocation.base
    again[:40].copy_(np.ones(40))
    message = fault(lambda: guilty.copy[(4,)](again, out, 64, BLOCK=16))
    assert f"{line(guilty.copy, 'tl.load')}: kernel 'copy', program (2, 0, 0): uninitialised read of 'x'" in message
    assert "element 40 of 'fresh'" in message and reads[-1]
    again[40:].copy_(np.ones(24))
    guilty.copy[(4,)](again, out, 64, BLOCK=16)
    assert reads[-1]


def test_a_fused_loop_that_repeats_reads_nothing_unwritten(device, reads):
    a, b, out = (device.array(np.ones(shape), "f16") for shape in ((32, 64), (64, 32), (32, 32)))
    for _ in range(3):
        guilty.dots[(1,)](a, b, out, 64, N=32, BK=16)
    a.allocation.unwritten = np.zeros(a.allocation.nbytes, np.bool_)
    a.allocation.unwritten[2 * 48] = True
    message = fault(lambda: guilty.dots[(1,)](a, b, out, 64, N=32, BK=16))
    assert "uninitialised read of 'a'" in message and "element 48 of" in message and reads[-1]


def test_new_memory_is_written_by_a_launch_that_repeats(device, reads):
    """All that the launch stores counts as written, no more, and then need not be looked at again."""
    x, out = device.array(np.ones(64), "f32"), device.empty((64,), "f32", "out")
    for _ in range(3):
        guilty.copy[(4,)](x, out, 40, BLOCK=16)
    for _ in range(2):
        out.allocation.forget()
        guilty.copy[(4,)](x, out, 40, BLOCK=16)
        assert reads[-1]
        assert (out.allocation.unwritten == (np.arange(256) >= 160)).all()
    guilty.copy[(4,)](x, out, 40, BLOCK=16)
    guilty.copy[(4,)](out, x, 40, BLOCK=16)
    assert "element 40 of 'out'" in fault(lambda: guilty.copy[(4,)](out, x, 48, BLOCK=16))


def test_memory_that_a_launch_fills(device, reads):
    """Seen once, it is filled by each launch that repeats; not so where the launch reads it too."""
    x, out, total = device.array(np.ones(64), "f32"), device.empty((64,), "f32", "out"), device.empty((1,), "f32")
    for _ in range(4):
        out.allocation.forget()
        guilty.copy[(4,)](x, out, 64, BLOCK=16)
        assert out.allocation.unwritten is None
    assert reads[-2:] == [True, True]
    total.zero_()
    for _ in range(3):
        guilty.all_atomic[(4,)](total)
    total.allocation.forget()
    assert "uninitialised read of 'total'" in fault(lambda: guilty.all_atomic[(4,)](total))
    assert reads[-1]


@pytest.mark.parametrize(
    ("kernel", "text", "what"),
    [(guilty.ratio, "y = ", "arith.divf makes the first inf"), (guilty.squares, "tl.sum", "tt.reduce makes")],
)
def test_a_nan_in_new_data(device, reads, kernel, text, what):
    x, out = device.array(np.ones(16), "f32"), device.empty((16,), "f32")
    for _ in range(3):
        kernel[(1,)](x, out, BLOCK=16)
    x.copy_(np.full(16, 0.0 if kernel is guilty.ratio else 1e30))
    first = fault(lambda: kernel[(1,)](x, out, BLOCK=16))
    assert reads[-1] and f"{line(kernel, text)}: kernel '{kernel.__name__}', program (0, 0, 0): {what}" in first
    assert fault(lambda: kernel[(1,)](x, device.empty((16,), "f32"), BLOCK=16)) == first and not reads[-1]
    x.copy_(np.full(16, np.nan))
    with pytest.warns(NumericWarning, match="a NaN comes in: element 0 of 'x'"):
        kernel[(1,)](x, out, BLOCK=16)
    assert reads[-1]


def test_a_loop_that_makes_an_infinity_late():
    """In the third of four steps, in a launch that reads a tape; the values are those of a launch without checks."""
    with StandaloneDevice() as device, sanitize.enabled():
        a, b, out = (device.array(np.ones(shape), "f32") for shape in ((16, 64), (64, 16), (16, 16)))
        for _ in range(3):
            guilty.dots[(1,)](a, b, out, 64, N=16, BK=16)
        values = np.ones((16, 64))
        values[3, 33] = 3e38
        a.copy_(values), b.copy_(np.full((64, 16), 2.0))
        with pytest.warns(NumericWarning, match=r"tt\.dot makes the first inf.*reaches 'out'"):
            guilty.dots[(1,)](a, b, out, 64, N=16, BK=16)
        assert np.isinf(out.numpy()[3]).all() and np.isfinite(np.delete(out.numpy(), 3, 0)).all()


def test_a_product_that_makes_an_infinity_in_one_program(device, reads):
    a, b, out = (device.array(np.ones(shape), "f32") for shape in ((64, 32), (32, 16), (64, 16)))
    for _ in range(3):
        guilty.doubled_dots[(4,)](a, b, out, M=16, N=16, K=32)
    values = np.ones((64, 32))
    values[40] = 1e38
    a.copy_(values)
    message = fault(lambda: guilty.doubled_dots[(4,)](a, b, out, M=16, N=16, K=32))
    assert reads[-1] and "program (2, 0, 0): tt.dot makes the first inf, of finite operands" in message
    assert "element 128 of the stored block" in message


def test_a_number_that_one_program_divides_by(device):
    x, out = device.array(np.arange(8) - 5, "f32"), device.empty((8,), "f32")
    message = fault(lambda: guilty.reciprocals[(8,)](x, out))
    assert "program (5, 0, 0): arith.divf makes the first inf, of 1 and 0 (element 0 of its block)" in message


def test_an_f16_that_becomes_too_large_for_memory(device, reads):
    x, out = device.array(np.ones(16), "f32"), device.empty((16,), "f16")
    for _ in range(3):
        guilty.squares_of[(1,)](x, out, BLOCK=16)
    x.copy_(np.full(16, 255.93))  # 65500: rounds to 65504, the largest
    guilty.squares_of[(1,)](x, out, BLOCK=16)
    x.copy_(np.full(16, 300.0))
    assert "becomes inf" in fault(lambda: guilty.squares_of[(1,)](x, out, BLOCK=16)) and reads[-1]


def test_a_guilty_launch_is_guilty_each_time(device, reads):
    out = device.array(np.zeros(64), "f32")
    messages = {fault(lambda: guilty.overlapping[(3,)](out, STEP=12, BLOCK=16)) for _ in range(4)}
    assert len(messages) == 1 and "race on 'out'" in messages.pop() and not any(reads)
    assert len({fault(lambda: guilty.far_block[(1,)](out, 1 << 29, BLOCK=8)) for _ in range(4)}) == 1


def test_a_race_comes_before_what_it_leads_to(device):
    """Every program writes past the block of the next; the last one past the end."""
    message = fault(lambda: guilty.overlapping[(4,)](device.array(np.zeros(52), "f32"), STEP=12, BLOCK=16))
    assert "race on 'out'" in message or "out of bounds" in message
    with pytest.raises(KernelFault, match="race on 'x'"):
        guilty.raced_and_lost[(2,)](device.array(np.zeros(8), "f32"), 8)


def test_a_choice_of_addresses_from_memory_changes(device):
    """Programs that write where memory says keep apart, until it says otherwise."""
    out, to = device.array(np.zeros(64), "f32"), device.array(np.arange(64), "i32")
    for _ in range(3):
        guilty.scatter[(4,)](to, out, BLOCK=16)
    where = np.arange(64)
    where[50] = 7
    to.copy_(where)
    message = fault(lambda: guilty.scatter[(4,)](to, out, BLOCK=16))
    assert "race on 'out': program (3, 0, 0) writes element 7" in message and "program (0, 0, 0) wrote" in message
