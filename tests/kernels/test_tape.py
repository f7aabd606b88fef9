"""Launches that repeat leave what they would have left anew; launches that are not alike do not repeat."""

import numpy as np
import pytest
import ttir_kernels as kernels
from ttir_run import Machine, plain

from kernbench.kernels import tape
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


CHAIN = """
module {
  tt.func public @chain(%flags: !tt.ptr<i32>, %x: !tt.ptr<f32>, %sums: !tt.ptr<f32>, %last: i32) {
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %yes = arith.constant true
    %pid = tt.get_program_id x : i32
    %next = arith.addi %pid, %c1 : i32
    %xp = tt.addptr %x, %pid : !tt.ptr<f32>, i32
    %mine = tt.load %xp : !tt.ptr<f32>
    %waits = arith.cmpi slt, %pid, %last : i32
    %sum = scf.if %waits -> (f32) {
      %flag = tt.addptr %flags, %next : !tt.ptr<i32>, i32
      scf.while : () -> () {
        %seen = tt.atomic_rmw add, acq_rel, gpu, %flag, %c0, %yes : (!tt.ptr<i32>, i32, i1) -> i32
        %not_yet = arith.cmpi eq, %seen, %c0 : i32
        scf.condition(%not_yet)
      } do {
        scf.yield
      }
      %theirs = tt.addptr %sums, %next : !tt.ptr<f32>, i32
      %before = tt.load %theirs : !tt.ptr<f32>
      %both = arith.addf %before, %mine : f32
      scf.yield %both : f32
    } else {
      scf.yield %mine : f32
    }
    %out = tt.addptr %sums, %pid : !tt.ptr<f32>, i32
    tt.store %out, %sum : !tt.ptr<f32>
    ttg.barrier all
    %own = tt.addptr %flags, %pid : !tt.ptr<i32>, i32
    %0 = tt.atomic_rmw exch, acq_rel, gpu, %own, %c1, %yes : (!tt.ptr<i32>, i32, i1) -> i32
    tt.return
  }
}
"""
"""sums[pid] = x[pid] + x[pid + 1] + ...: each program waits for the one after it."""


@pytest.mark.parametrize("case", ["a lock", "a chain", "branches"])
def test_a_kernel_may_write_what_decides(case, read):
    """Launches repeat where locks, flags and the like say at the start what they said; data may be other."""
    text = {"a lock": kernels.locked(), "a chain": CHAIN, "branches": kernels.branches()}[case]
    again, machines = Kernel("kernel", text), [Machine(), Machine()]
    places = [(m.empty(8, "i32", "flags"), m.empty(8, name="x"), m.empty(8, name="sums")) for m in machines]
    rng = np.random.default_rng(0)
    x, repeated = rng.standard_normal(8), []
    for _ in range(5):
        if case != "branches":  # there x decides
            x = rng.standard_normal(8)
        start, found = rng.standard_normal(8), []
        for kernel, machine, (flags, xs, sums) in zip((again, Kernel("kernel", text)), machines, places, strict=True):
            machine.set(flags, np.zeros(8)), machine.set(xs, x), machine.set(sums, start)
            args = {"a lock": [flags, xs, sums], "a chain": [flags, xs, sums, 7], "branches": [xs, 6]}[case]
            record = execute(kernel, (8, 1, 1), args, machine.space)
            found.append((plain(record), *(machine.get(at).tobytes() for at in (flags, xs, sums))))
        assert found[0] == found[1]
        repeated.append(isinstance(read[-2], Reader))
    assert repeated == [False, False, True, True, True]


def test_a_lock_that_is_taken_is_waited_for_in_vain_each_time():
    kernel, machine = Kernel("locked", kernels.locked()), Machine()
    lock, x, total = machine.empty(1, "i32"), machine.put(np.ones(4)), machine.empty(1)
    for _ in range(3):
        execute(kernel, (4, 1, 1), [lock, x, total], machine.space)
    machine.set(lock, 1)
    for _ in range(3):
        with pytest.raises(KernelFault, match="spins on"):
            execute(kernel, (4, 1, 1), [lock, x, total], machine.space)
    machine.set(lock, 0), machine.set(total, 0)
    execute(kernel, (4, 1, 1), [lock, x, total], machine.space)
    assert machine.get(total) == 15


def test_an_endless_loop_leaves_no_endless_tape(monkeypatch):
    monkeypatch.setattr(tape, "MOST_BYTES", 1000)
    kernel, machine = Kernel("chain", CHAIN), Machine()
    flags, x, sums = machine.empty(64, "i32"), machine.put(np.ones(64)), machine.empty(64)
    for _ in range(3):
        machine.set(flags, np.zeros(64))
        execute(kernel, (64, 1, 1), [flags, x, sums, 63], machine.space)
        assert machine.get(sums)[0] == 64
    assert prepare(kernel.module, kernel.num_stages).tapes._nbytes == 0


@pytest.mark.parametrize("with_values", [True, False], ids=["values", "timing"])
@pytest.mark.parametrize("text", [kernels.ragged_sum(), kernels.gather_rows()], ids=["trip counts", "addresses"])
def test_memory_that_decides_is_looked_at(text, with_values, read):
    """A launch repeats only where the memory that decides addresses and trip counts says what it said."""
    again, machines = Kernel("kernel", text), [Machine(), Machine()]
    places = [(m.put(np.ones((4, 40))), m.empty((4, 8), "i32"), m.empty((4, 8, 16))) for m in machines]
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 3, (2, 4, 8))
    for seed, decides in enumerate((*draws[[0, 0, 0]], draws[1], draws[0], draws[1], draws[1])):
        values = rng.standard_normal((4, 40))
        records = []
        for kernel, machine, (x, index, out) in zip((again, Kernel("kernel", text)), machines, places, strict=True):
            machine.set(x, values), machine.set(index, decides)
            machine.space.find(out).mark_valid(0, 2**62)
            made = execute(kernel, (4, 1, 1), [x, index, out, 16], machine.space, enable_data=with_values)
            records.append((plain(made), machine.get(out).tobytes()))
        assert records[0] == records[1]
        assert isinstance(read[-2], Reader) == (seed in (2, 4, 6))


def test_memory_that_decides_and_was_not_computed_is_missed():
    kernel, machine = Kernel("ragged", kernels.ragged_sum()), Machine()
    x, lengths, out = machine.put(np.ones((4, 40))), machine.empty(4, "i32"), machine.empty(4)
    for n in (40, 40, 40, 7):
        machine.set(lengths, np.full(4, n))
        execute(kernel, (4, 1, 1), [x, lengths, out, 40], machine.space)
        assert (machine.get(out) == n).all()
    machine.space.find(lengths).invalidate()
    with pytest.raises(ValuesNeeded):
        execute(kernel, (4, 1, 1), [x, lengths, out, 40], machine.space, enable_data=False)


def test_where_the_memory_that_decides_is_written_too_nothing_repeats(read):
    """Two arguments, one place: what decides is what an earlier program stored."""
    kernel, machine = Kernel("gather", kernels.gather_rows()), Machine()
    table, both = machine.put(np.zeros((4, 40))), machine.empty((4, 8, 16), "i32")
    for _ in range(3):
        execute(kernel, (1, 1, 1), [table, both, both, 16], machine.space)
    assert read == []


def test_programs_that_take_turns_share_what_a_tape_may_hold(monkeypatch):
    """Nobody writes on when all of them together have written too much."""
    monkeypatch.setattr(tape, "MOST_BYTES", 2000)
    part, started = tape.Tape.of_program, []
    monkeypatch.setattr(tape.Tape, "of_program", lambda whole, pids: started.append(pids) or part(whole, pids))
    kernel, machine = Kernel("locked", kernels.locked()), Machine()
    lock, x, total = machine.empty(1, "i32"), machine.put(np.ones(64)), machine.empty(1)
    for _ in range(2):
        execute(kernel, (64, 1, 1), [lock, x, total], machine.space)
    assert 0 < len(started) < 16
