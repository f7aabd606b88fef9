"""Kernels that are guilty, one for each check, and what the message says of them."""

import inspect
import warnings

import numpy as np
import pytest

from kernbench.kernels import sanitize
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.sanitize import NumericWarning
from kernbench.kernels.standalone import StandaloneDevice

pytest.importorskip("triton")

import guilty_kernels as guilty


@pytest.fixture
def device():
    with StandaloneDevice() as made, sanitize.enabled(nan="fault"):
        yield made


def line(kernel, text):
    """``file:line`` of the only line of a kernel that contains ``text``."""
    source, start = inspect.getsourcelines(kernel.fn)
    (at,) = [i for i, row in enumerate(source) if text in row]
    return f"guilty_kernels.py:{start + at}"


def fault(launch):
    with pytest.raises(KernelFault) as caught:
        launch()
    return str(caught.value)


def array(device, n, kind="f32", name="array"):
    return device.array(np.arange(n), kind, name)


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_uninitialised_read(device, kind):
    x, out = device.empty((64,), kind, "half full"), device.empty((64,), kind)
    x[:40].copy_(np.ones(40))
    message = fault(lambda: guilty.copy[(4,)](x, out, 64, BLOCK=16))
    assert f"{line(guilty.copy, 'tl.load')}: kernel 'copy', program (2, 0, 0): uninitialised read of 'x'" in message
    size = x.element_size()
    assert f"element 40 of 'half full' (bytes {40 * size}..{41 * size - 1}, index (8,) of the block)" in message
    guilty.copy[(4,)](x, out, 40, BLOCK=16)
    np.testing.assert_array_equal(out.numpy()[:40], 1)


def test_out_of_bounds_says_which_element_and_what_the_mask_leaves(device):
    x, out = array(device, 60, name="short"), device.empty((200,), "f32")
    message = fault(lambda: guilty.copy[(4,)](x, out, 70, BLOCK=32))
    at = line(guilty.copy, "tl.load")
    assert f"{at}: kernel 'copy', program (1, 0, 0): load from 'x' out of bounds" in message
    assert "'short'" in message and "(elements 32..63 of 60)" in message
    assert "the first outside is index (28,) of the block, the mask leaves 32 of 32 elements" in message
    message = fault(lambda: guilty.overlapping[(3,)](x, STEP=24, BLOCK=16))
    assert "program (2, 0, 0): store to 'out' out of bounds" in message
    assert "index (12,) of the block, there is no mask" in message


def test_uninitialised_read_in_a_fused_loop(device):
    a, b, out = (
        device.empty((32, 64), "f16", "left"),
        device.array(np.ones((64, 32)), "f16"),
        device.empty((32, 32), "f32"),
    )
    a[:, :48].copy_(np.ones((32, 48)))
    message = fault(lambda: guilty.dots[(1,)](a, b, out, 64, N=32, BK=16))
    assert f"{line(guilty.dots, 'tl.load(a')}: kernel 'dots', program (0, 0, 0): uninitialised read of 'a'" in message
    assert "element 48 of 'left'" in message


def test_write_by_two_programs(device):
    out = array(device, 64, name="out buffer")
    message = fault(lambda: guilty.overlapping[(3,)](out, STEP=12, BLOCK=16))
    at = line(guilty.overlapping, "tl.store")
    assert f"{at}: kernel 'overlapping': race on 'out': program (1, 0, 0) writes element 12 of 'out buffer'" in message
    assert "(bytes 48..51)" in message
    assert "program (0, 0, 0) wrote at" in message
    assert message.count(at) == 2
    guilty.overlapping[(3,)](out, STEP=16, BLOCK=16)


def test_write_by_all_programs_to_one_place(device):
    message = fault(lambda: guilty.overlapping[(3,)](array(device, 64), STEP=0, BLOCK=16))
    assert "race on 'out': program (1, 0, 0) writes element 0" in message


@pytest.mark.parametrize("chunk", [None, 1])
def test_read_of_what_another_program_writes(device, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr("kernbench.kernels.executor.MOST_PROGRAMS", chunk)
    x = array(device, 80)
    message = fault(lambda: guilty.shift[(4,)](x, BY=16, BLOCK=16))
    assert (
        f"{line(guilty.shift, 'tl.store')}: kernel 'shift': race on 'x': program (1, 0, 0) writes element 16" in message
    )
    assert "program (0, 0, 0) read at" in message and line(guilty.shift, "tl.load") in message
    guilty.shift[(4,)](x, BY=0, BLOCK=16)


def test_plain_write_against_an_atomic(device):
    total = array(device, 1)
    message = fault(lambda: guilty.half_atomic[(2,)](total))
    assert "race on 'total': program (1, 0, 0) writes element 0" in message
    assert line(guilty.half_atomic, "tl.atomic_add") in message and line(guilty.half_atomic, "tl.store") in message


def test_atomics_alone_are_no_race(device):
    total = device.array(np.zeros(1), "f32")
    guilty.all_atomic[(50,)](total)
    assert total.numpy()[0] == 50


@pytest.mark.parametrize("sem", ["acq_rel", "relaxed"])
def test_the_last_program_reads_what_the_others_wrote(device, sem):
    """A counter orders programs only where it acquires and releases."""
    partial, count, out = device.empty((8,), "f32"), device.array(np.zeros(1), "i32"), device.empty((1,), "f32")
    launch = lambda: guilty.last_block[(8,)](partial, count, out, PROGRAMS=8, SEM=sem)  # noqa: E731
    if sem == "acq_rel":
        launch()
        assert out.numpy()[0] == sum(range(8))
    else:
        message = fault(launch)
        assert "race on 'partial': program (7, 0, 0) reads element 0" in message
        assert "program (0, 0, 0) wrote at" in message


def test_a_lock_that_is_forgotten(device):
    total, lock = device.array(np.zeros(4), "f32"), device.array(np.zeros(1), "i32")
    guilty.locked[(6,)](total, lock, TAKE=True)
    np.testing.assert_array_equal(total.numpy(), 6)
    lock.zero_()
    message = fault(lambda: guilty.locked[(6,)](total, lock, TAKE=False))
    assert "race on 'total': program (1, 0, 0) reads element 0" in message
    assert "which program (0, 0, 0) wrote" in message


def test_a_lock_that_is_never_freed(device):
    total, lock = device.array(np.zeros(1), "f32"), device.array(np.zeros(2), "i32", "locks")
    message = fault(lambda: guilty.never_freed[(3,)](total, lock))
    assert "kernel 'never_freed': deadlock: no program can go on" in message
    assert f"{line(guilty.never_freed, 'atomic_cas')}: program (1, 0, 0) of kernel 'never_freed' spins on" in message
    assert "'lock', element 1 of 'locks': it is 1" in message
    lock.zero_()
    guilty.never_freed[(1,)](total, lock)


def test_offsets_that_wrap(device):
    x = array(device, 8)
    message = fault(lambda: guilty.far[(1,)](x, 70000, 70000))
    assert f"{line(guilty.far, 'row * stride')}: kernel 'far', program (0, 0, 0): an offset overflows" in message
    assert "70000 * 70000 = 4900000000 does not fit in 32 bits and wraps to 605032704" in message
    assert "tl.int64" in message


def test_offsets_that_wrap_in_a_block(device):
    message = fault(lambda: guilty.far_block[(1,)](array(device, 8), 1 << 29, BLOCK=8))
    assert f"{line(guilty.far_block, '* stride')}" in message and "4 * 536870912 = 2147483648" in message


def test_a_hash_may_wrap(device):
    guilty.hashed[(4,)](array(device, 8), device.empty((4,), "f32"))


@pytest.mark.parametrize(
    ("value", "kernel", "text", "what"),
    [
        (0.0, guilty.ratio, "y = ", "arith.divf makes the first inf, of 1 and 0 (element 0 of its block)"),
        (0.0, guilty.difference, "1 / x", "arith.divf makes the first inf, of 1 and 0"),
        (-np.inf, guilty.centred, "x - ", "arith.subf makes the first NaN, of -inf and -inf"),
        (1e30, guilty.squares, "tl.sum", "tt.reduce makes the first inf, of finite operands"),
    ],
)
def test_origin_of_a_nan(device, value, kernel, text, what):
    x, out = device.array(np.full(16, value), "f32"), device.empty((16,), "f32")
    message = fault(lambda: kernel[(1,)](x, out, BLOCK=16))
    assert f"{line(kernel, text)}: kernel '{kernel.__name__}', program (0, 0, 0): {what}" in message
    assert "it reaches 'out' at" in message and line(kernel, "tl.store") in message
    kernel[(1,)](device.array(np.ones(16), "f32"), out, BLOCK=16)


def test_a_nan_that_came_in_is_named_once_and_is_no_fault_of_this_kernel(device):
    x, out, then = (device.array(np.zeros(16), "f32", name) for name in ("x", "out", "then"))
    guilty.copy[(1,)](device.array(np.full(16, np.inf), "f32"), out, 16, BLOCK=16)
    x.copy_(np.where(np.arange(16) == 5, np.nan, 1.0))
    with pytest.warns(NumericWarning) as told:
        guilty.copy[(1,)](x, out, 16, BLOCK=16)
        guilty.copy[(1,)](out, then, 16, BLOCK=16)
    (told,) = told
    assert f"{line(guilty.copy, 'tl.load')}: kernel 'copy': a NaN comes in: element 5 of 'x'" in str(told.message)
    assert "it reaches 'out' at" in str(told.message) and np.isnan(then.numpy()[5])


def test_a_nan_behind_a_mask_is_not_reported(device):
    out = device.array(np.zeros(16), "f32")
    guilty.masked_ratio[(1,)](device.array(np.ones(10), "f32"), out, 10, BLOCK=16)


def test_nan_is_a_warning_by_default():
    with StandaloneDevice() as device, sanitize.enabled():
        x, out = device.array(np.zeros(16), "f32"), device.empty((16,), "f32")
        with pytest.warns(NumericWarning, match="arith.divf makes the first inf"):
            guilty.ratio[(1,)](x, out, BLOCK=16)


def test_an_f16_that_is_too_large_for_memory(device):
    x, out = device.array(np.full(16, 300.0), "f32"), device.empty((16,), "f16")
    message = fault(lambda: guilty.squares_of[(1,)](x, out, BLOCK=16))
    assert "f16 and becomes inf" in message or "makes the first inf" in message


def test_order_of_programs():
    with StandaloneDevice() as device, sanitize.enabled((), shuffle=3):
        x = array(device, 80, "i32", "chain")
        message = fault(lambda: guilty.shift[(4,)](x, BY=16, BLOCK=16))
        assert "depends on the order of its programs" in message and "of 'x' ('chain')" in message
        assert "order of seed 3" in message and line(guilty.shift, "tl.store") in message
        y = array(device, 80, "i32")
        guilty.shift[(4,)](y, BY=0, BLOCK=16)
        np.testing.assert_array_equal(y.numpy(), np.r_[np.arange(64) + 1, np.arange(64, 80)])


def test_a_choice_of_checks():
    with StandaloneDevice() as device, sanitize.enabled(("overflow",)), warnings.catch_warnings():
        warnings.simplefilter("error")
        guilty.overlapping[(3,)](array(device, 64), STEP=12, BLOCK=16)
        guilty.copy[(1,)](device.empty((16,), "f32"), device.empty((16,), "f32"), 16, BLOCK=16)
    with pytest.raises(ValueError, match="unknown checks shuffle: choose from uninitialised, race"):
        sanitize.checks(("shuffle",))
    with pytest.raises(ValueError, match="'warn' or 'fault'"):
        sanitize.checks(nan="ignore")


def test_the_environment_turns_checks_on(monkeypatch):
    monkeypatch.setattr(sanitize, "_current", sanitize._ENVIRONMENT)
    monkeypatch.setenv("KERNBENCH_CHECK", "race, nan")
    assert sanitize.current() == sanitize.checks(("race", "nan"))
    monkeypatch.setattr(sanitize, "_current", sanitize._ENVIRONMENT)
    monkeypatch.setenv("KERNBENCH_CHECK", "0")
    assert sanitize.current() is None
    monkeypatch.setattr(sanitize, "_current", sanitize._ENVIRONMENT)
    monkeypatch.setenv("KERNBENCH_CHECK", "1")
    assert sanitize.current() == sanitize.checks()
    monkeypatch.setattr(sanitize, "_current", None)


def test_a_context_that_checks():
    from kernbench.runtime_api.context import RuntimeContext

    before = sanitize.current()
    with RuntimeContext.open("tiny", check=True) as ctx:
        x, out = ctx.empty(64, dtype="f32", name="fresh"), ctx.empty(64, dtype="f32")
        assert "uninitialised read of 'x': element 0 of 'fresh'" in fault(
            lambda: guilty.copy[(4,)](x, out, 64, BLOCK=16)
        )
        x.copy_(ctx.tensor(np.ones(64), dtype="f32"))
        guilty.copy[(4,)](x, out, 64, BLOCK=16)
        guilty.copy[(4,)](ctx.zeros(64, dtype="f32"), out, 64, BLOCK=16)
        assert not out.numpy().any()
    assert sanitize.current() is before


def test_the_fixture(kernel_checks):
    assert sanitize.current() == sanitize.checks()
