"""Launches that repeat leave what they would have left anew; launches that are not alike do not repeat."""

import numpy as np
import pytest
import ttir_kernels as kernels
from ttir_run import Machine, plain

from kernbench.kernels.builtin import store
from kernbench.kernels.errors import KernelFault, ValuesNeeded
from kernbench.kernels.executor import execute, prepare
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.tape import Reader, Tapes

F16 = {"out_ptr": "f16", "x_ptr": "f16"}


def _matmul():
    types = {"out_ptr": "f16", "a_ptr": "f16", "b_ptr": "f16", "bias_ptr": None}
    tile = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 8}
    sizes = {"M": 50, "N": 70, "K": 90, "k_split": 96, "width": 32, "stride_om": 70, "stride_on": 1}
    strides = {"stride_am": 90, "stride_ak": 1, "stride_bk": 70, "stride_bn": 1}
    return store.kernel("matmul", types, tile), (6, 1, 1), sizes | strides


def _softmax_long():
    sizes = {"R": 3, "C": 20000, "stride_o": 20000, "stride_x": 20000}
    return store.kernel("softmax_long", F16, {"BLOCK_C": 4096}), (3, 1, 1), sizes


def _norm():
    types = {**F16, "weight_ptr": "f16", "bias_ptr": "f16", "eps": "f32"}
    constants = {"CENTRE": True, "BLOCK_R": 16, "BLOCK_C": 256}
    sizes = {"R": 560, "C": 120, "stride_o": 120, "stride_x": 120, "eps": 1e-5}
    return store.kernel("norm", types, constants), (35, 1, 1), sizes


def _text(text, grid, **numbers):
    return Kernel("kernel", text), grid, numbers


CASES = {
    "a fused loop": _matmul,
    "a loop, step by step": _softmax_long,
    "rows, in several chunks": _norm,
    "a mask": lambda: _text(kernels.add(block=64), (5, 1, 1), n=300),
    "a mask that is no box": lambda: _text(kernels.triangle(), (1, 1, 1)),
}


def fresh(kernel):
    """The kernel as if nothing had ever launched it."""
    return Kernel(kernel.name, kernel.text, kernel.num_stages)


class Setting:
    """A memory with a tensor for each pointer of a kernel, always at the same addresses."""

    def __init__(self, kernel, numbers):
        self.machine, self.args = Machine(), []
        for arg, name in zip(kernel.function.args, kernel.arg_names, strict=True):
            kind = "f16" if "f16" in str(arg.type) else "f32"
            self.args.append(self.machine.empty(70000, kind, name) if kernel.is_pointer(arg) else numbers[name])

    def fill(self, seed):
        rng = np.random.default_rng(seed)
        for address in self.machine.kinds:
            self.machine.set(address, rng.standard_normal(70000))
            self.machine.space.find(address).mark_valid(0, 2**62)

    def run(self, kernel, grid, **options):
        return execute(kernel, grid, self.args, self.machine.space, **options)

    def bytes(self):
        found = self.machine.space.allocations()
        return [(a.bytes.tobytes(), None if a.invalid is None else a.invalid.tobytes()) for a in found]


@pytest.fixture
def read(monkeypatch):
    """What each launch found: a Reader where it read a tape."""
    found, find = [], Tapes.find
    monkeypatch.setattr(Tapes, "find", lambda *args: found.append(find(*args)) or found[-1])
    return found


@pytest.mark.parametrize("with_values", [True, False], ids=["values", "timing"])
@pytest.mark.parametrize("case", CASES)
def test_the_third_launch_reads_what_the_second_wrote(case, with_values, read):
    kernel, grid, numbers = CASES[case]()
    again = fresh(kernel)
    mine, anew = Setting(kernel, numbers), Setting(kernel, numbers)
    for seed in range(4):
        mine.fill(seed), anew.fill(seed)
        record = mine.run(again, grid, enable_data=with_values)
        assert isinstance(read[-1], Reader) == (seed >= 2)
        assert plain(record) == plain(anew.run(fresh(kernel), grid, enable_data=with_values))
        assert mine.bytes() == anew.bytes()


def test_numbers_that_decide_nothing_may_change(read):
    kernel, grid, numbers = _norm()
    again = fresh(kernel)
    mine, anew = Setting(kernel, numbers), Setting(kernel, numbers)
    at = kernel.arg_names.index("eps")
    for eps in (1e-5, 0.5, 2.0, -0.0):
        mine.args[at] = anew.args[at] = eps
        mine.fill(1), anew.fill(1)
        mine.run(again, grid), anew.run(fresh(kernel), grid)
        assert mine.bytes() == anew.bytes()
    assert isinstance(read[-2], Reader)


def test_other_sizes_grids_and_addresses_are_worked_out_anew():
    kernel = Kernel("add", kernels.add(block=64))
    machine = Machine()
    x, y, out, other = (machine.put(np.full(400, i), name=name) for i, name in enumerate(("x", "y", "out", "other")))
    for _ in range(3):
        execute(kernel, (5, 1, 1), [x, y, out, 300], machine.space)
    execute(kernel, (2, 1, 1), [x, y, other, 300], machine.space)
    assert (machine.get(other) == [*[1] * 128, *[3] * 272]).all()
    execute(kernel, (5, 1, 1), [y, y, out, 200], machine.space)
    assert (machine.get(out) == [*[2] * 200, *[1] * 100, *[2] * 100]).all()


def test_memory_that_was_freed_and_became_smaller_is_still_checked():
    kernel = Kernel("add", kernels.add(block=64))
    machine = Machine()
    x, y, out = (machine.empty(300) for _ in range(3))
    for _ in range(3):
        execute(kernel, (5, 1, 1), [x, y, out, 300], machine.space)
    machine.space.free(machine.space.find(out))
    assert machine.empty(299) == out
    with pytest.raises(KernelFault, match="out of bounds"):
        execute(kernel, (5, 1, 1), [x, y, out, 300], machine.space)


def test_what_memory_decides_is_never_taken_from_a_tape():
    for text in (kernels.ragged_sum(), kernels.branches(), kernels.locked(), kernels.gather_rows()):
        assert prepare(Kernel("kernel", text).module, 1).tapes is None
    kernel = Kernel("ragged", kernels.ragged_sum())
    machine = Machine()
    x, lengths, out = machine.put(np.ones((4, 40))), machine.empty(4, "i32"), machine.empty(4)
    for n in (40, 40, 40, 7):
        machine.set(lengths, np.full(4, n))
        execute(kernel, (4, 1, 1), [x, lengths, out, 40], machine.space)
        assert (machine.get(out) == n).all()
    machine.space.find(lengths).invalidate()
    with pytest.raises(ValuesNeeded):
        execute(kernel, (4, 1, 1), [x, lengths, out, 40], machine.space, enable_data=False)
