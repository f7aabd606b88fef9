"""The executor against numpy, and its record against a plain reading of what each program touches."""

import math

import numpy as np
import pytest
import ttir_kernels as kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from ttir_run import Machine, plain, rows_of, run, touched

from kernbench.kernels.builtin import store
from kernbench.kernels.errors import KernelFault, ValuesNeeded
from kernbench.kernels.executor import execute
from kernbench.memory import dtype
from kernbench.sim_engine.oplog import OpKind

CHUNKS = (1, 3, None)


def same_record_however_run(machine, text, grid, args, before=None, **options):
    """Execute for every chunk size and without data; the record must be the same. Leaves the values of the last."""
    records = []
    for chunk in CHUNKS:
        if before:
            before()
        records.append(run(machine, text, grid, args, chunk=chunk, **options))
    kept = {a.base: a.bytes.copy() for a in machine.space.allocations()}
    if before:
        before()
    records.append(run(machine, text, grid, args, enable_data=False, **options))
    for allocation in machine.space.allocations():
        allocation.bytes[:] = kept[allocation.base]
        allocation.mark_valid(0, allocation.nbytes)
        allocation.wrote()
    first = plain(records[0])
    assert all(plain(r) == first for r in records[1:])
    return records[0]


def normal(shape, kind="f32", seed=0):
    """Random values that ``kind`` holds exactly, as float32."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(dtype(kind).storage).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 700), kind=st.sampled_from(["f16", "bf16", "f32"]), block=st.sampled_from([16, 64]))
def test_add(n, kind, block):
    """Every bit right, rounded to its type, and no byte outside touched."""
    machine = Machine()
    x, y = normal(n, kind, 1) * 200, normal(n, kind, 2)
    out = machine.empty(n, kind)
    args = [machine.put(x, kind), machine.put(y, kind), out, n]
    record = same_record_however_run(machine, kernels.add(kind, block), math.ceil(n / block), args)
    storage = dtype(kind).storage
    expected = (x.astype(storage).astype(np.float32) + y).astype(storage)
    assert machine.get(out).tobytes() == expected.tobytes()
    size = storage.itemsize
    for program in {0, math.ceil(n / block) - 1}:
        block_of, column = rows_of(record, program)
        assert [r.kind for r in block_of.rows] == [OpKind.READ, OpKind.READ, OpKind.VECTOR, OpKind.WRITE]
        assert [r.deps for r in block_of.rows] == [(), (), (0, 1), (2,)]
        assert [record.lines[r.line][1] for r in block_of.rows] == [4, 5, 5, 6]
        first, last = program * block * size, min(n, (program + 1) * block) * size
        for row, base in zip((0, 1, 3), args, strict=False):
            assert touched(block_of.rows[row].access, column) == set(range(base + first, base + last))


def test_f16_overflows_after_every_operation():
    machine = Machine()
    out = machine.empty(16, "f16")
    x = np.full(16, 60000.0)
    run(machine, kernels.add("f16", 16), 1, [machine.put(x, "f16"), machine.put(x, "f16"), out, 16])
    assert np.isinf(machine.get(out)).all()


TILE = (32, 32, 32)


def stored_matmul(kind, out="f32"):
    types = {"out_ptr": out, "a_ptr": kind, "b_ptr": kind, "bias_ptr": None}
    return store.kernel(
        "matmul", types, dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M"), (*TILE, 8), strict=True))
    )


def matmul_args(kernel, out, a, b, m, n, k, b_strides, split):
    """The arguments of the stored matmul, by their names."""
    sizes = {"M": m, "N": n, "K": k, "k_split": split, "width": TILE[1]}
    strides = {"stride_om": n, "stride_on": 1, "stride_am": k, "stride_ak": 1}
    strides |= {"stride_bk": b_strides[0], "stride_bn": b_strides[1]}
    given_to = {"out_ptr": out, "a_ptr": a, "b_ptr": b, **sizes, **strides}
    return [given_to[name] for name in kernel.arg_names]


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 80),
    n=st.integers(1, 80),
    k=st.integers(1, 150),
    types=st.sampled_from([("f16", "f32"), ("bf16", "f32"), ("f32", "f32"), ("f16", "f16")]),
    turned=st.booleans(),
    pieces=st.sampled_from([1, 2, 3]),
)
def test_matmul(m, n, k, types, turned, pieces):
    """Ragged edges and K tails, either layout of b, K split over programs: values, record, and every byte read."""
    kind, out_kind = types
    machine = Machine()
    a, b = normal((m, k), kind, 1), normal((k, n), kind, 2)
    split = math.ceil(math.ceil(k / pieces) / TILE[2]) * TILE[2]
    out = machine.empty((pieces, m, n), out_kind)
    at, bt = machine.put(a, kind), machine.put(b.T if turned else b, kind)
    b_strides = (1, k) if turned else (n, 1)
    grid = (math.ceil(m / TILE[0]) * math.ceil(n / TILE[1]), pieces)
    kernel = stored_matmul(kind, out_kind)
    args = matmul_args(kernel, out, at, bt, m, n, k, b_strides, split)
    record = same_record_however_run(machine, kernel.text, grid, args)
    found = machine.get(out).astype(np.float64).sum(axis=0)
    scale = np.abs(a).astype(np.float64) @ np.abs(b) + 1e-6
    assert (np.abs(found - a.astype(np.float64) @ b) / scale).max() < (2e-3 if out_kind == "f16" else 1e-6) * pieces

    size = dtype(kind).storage.itemsize
    rows, columns = math.ceil(m / TILE[0]), math.ceil(n / TILE[1])
    program = int(np.prod(grid)) - 1  # the last tile of the last piece: all edges are ragged there
    block, column = rows_of(record, program)
    begin = (pieces - 1) * split
    trips = max(0, math.ceil((min(begin + split, k) - begin) / TILE[2]))
    assert [loop.trips[column] for loop in block.loops] == ([trips] if trips else [])
    reads = [r for r in block.rows if r.kind == OpKind.READ]
    last_rows = range((rows - 1) * TILE[0], m)
    last_columns = range((columns - 1) * TILE[1], n)
    for t in range(trips):
        depth = range(begin + t * TILE[2], min(begin + (t + 1) * TILE[2], k))
        wanted_a = {at + (i * k + j) * size + byte for i in last_rows for j in depth for byte in range(size)}
        wanted_b = {
            bt + (i * b_strides[0] + j * b_strides[1]) * size + byte
            for i in depth
            for j in last_columns
            for byte in range(size)
        }
        assert touched(reads[0].access, column, t) == wanted_a
        assert touched(reads[1].access, column, t) == wanted_b


def test_a_matmul_over_wrapped_rows():
    """Triton's tutorial takes rows and columns modulo M and N: what wraps is read in pieces, the rest is one block."""
    triton = pytest.importorskip("triton")
    assert triton
    import tutorial_kernels

    from kernbench.kernels.standalone import StandaloneDevice

    m, n, k = 100, 20, 70
    a, b = normal((m, k), "f16", 1), normal((k, n), "f16", 2)
    with StandaloneDevice() as device:
        at, bt, ct = device.array(a, "f16"), device.array(b, "f16"), device.empty((m, n), "f16")
        tutorial_kernels.matmul(at, bt, ct, tile=(64, 64, 32))
        record = device.records[-1]
        np.testing.assert_allclose(ct.numpy().astype(np.float32), a @ b, rtol=2e-3, atol=1e-2)
        start = at.data_ptr()
    block, column = rows_of(record, 1)
    line = next(r.line for r in block.rows if r.kind == OpKind.READ)
    reads = [r for r in block.rows if r.kind == OpKind.READ and r.line == line]
    assert len(reads) == 2  # rows 64..99, and 0..27 again
    for t in range(3):
        depth = range(t * 32, min((t + 1) * 32, k))
        rows = [i % m for i in range(64, 128)]
        wanted = {start + (i * k + j) * 2 + byte for i in rows for j in depth for byte in (0, 1)}
        assert set().union(*(touched(r.access, column, t) for r in reads)) == wanted


def test_chunks_of_any_size_give_the_same_tutorial_matmul(monkeypatch):
    pytest.importorskip("triton")
    import tutorial_kernels

    from kernbench.kernels import executor
    from kernbench.kernels.standalone import StandaloneDevice

    a, b = normal((150, 40), "f16", 1), normal((40, 90), "f16", 2)
    records = []
    for elements in (1, 1 << 13, 1 << 20):
        monkeypatch.setattr(executor, "CHUNK_ELEMENTS", elements)
        with StandaloneDevice() as device:
            c = device.empty((150, 90), "f16")
            tutorial_kernels.matmul(device.array(a, "f16"), device.array(b, "f16"), c, "leaky_relu", (64, 32, 32))
            records.append(plain(device.records[-1]))
    assert records[0] == records[1] == records[2]


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 90), min_size=1, max_size=9))
def test_programs_that_loop_different_numbers_of_times(lengths):
    machine = Machine()
    x = normal((len(lengths), 96))
    out = machine.empty(len(lengths))
    args = [machine.put(x), machine.put(lengths, "i32"), out, 96]
    record = same_record_however_run(machine, kernels.ragged_sum(16), len(lengths), args)
    expected = [row[:n].sum() for row, n in zip(x, lengths, strict=True)]
    np.testing.assert_allclose(machine.get(out), expected, rtol=1e-5, atol=1e-5)
    assert len(record.blocks) == len({math.ceil(n / 16) for n in lengths})  # as many as there are trip counts
    for p, n in enumerate(lengths):
        block, _ = rows_of(record, p)
        assert sum(r.op == "load" for r in block.rows) == 1 + math.ceil(n / 16)


def test_a_load_waits_for_the_reader_of_its_buffer_slot():
    """With two stages, the load of iteration 2 overwrites what the addition of iteration 0 read."""
    machine = Machine()
    args = [machine.put(normal((1, 96))), machine.put([90], "i32"), machine.empty(1), 96]
    block, _ = rows_of(run(machine, kernels.ragged_sum(16), 1, args), 0)
    loads = [i for i, r in enumerate(block.rows) if r.op == "load"][1:]
    adds = [i for i, r in enumerate(block.rows) if r.op == "add"]
    assert len(loads) == len(adds) == 6
    for t in range(2, len(loads)):
        assert adds[t - 2] in block.rows[loads[t]].deps
    assert not set(adds) & set(block.rows[loads[1]].deps)


@pytest.mark.parametrize("stop", [0, 5, 12])
def test_early_return_and_divergent_if(stop):
    machine = Machine()
    x = normal(12)
    at = machine.put(x)
    record = same_record_however_run(machine, kernels.branches(), 12, [at, stop], lambda: machine.set(at, x))
    expected = np.where(np.arange(12) < stop, np.where(x > 0, x * 2, x - 1), x)
    np.testing.assert_array_equal(machine.get(at), expected.astype(np.float32))
    for p in range(12):
        block, _ = rows_of(record, p)
        ops = [r.op for r in block.rows]
        assert ops == ([] if p >= stop else ["load", "cmp", "mul" if x[p] > 0 else "sub", "store"])


def test_a_while_loop_that_each_program_leaves_on_its_own():
    machine = Machine()
    x = np.arange(1, 20)
    out = machine.empty(19, "i32")
    same_record_however_run(machine, kernels.collatz(), 19, [machine.put(x, "i32"), out])

    def steps(n):
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    np.testing.assert_array_equal(machine.get(out), [steps(n) for n in x.tolist()])


def test_addresses_from_data():
    machine = Machine()
    table, index = normal((50, 20)), np.random.default_rng(0).integers(0, 50, (3, 8))
    out, at = machine.empty((3, 8, 16)), machine.put(table)
    args = [at, machine.put(index, "i32"), out, 20]
    record = same_record_however_run(machine, kernels.gather_rows(), 3, args)
    np.testing.assert_array_equal(machine.get(out), table[index][:, :, :16])
    for p in range(3):
        block, column = rows_of(record, p)
        reads = [r for r in block.rows if r.kind == OpKind.READ and record.lines[r.line] == ("gather.py", 6)]
        wanted = {at + (int(i) * 20 + j) * 4 + byte for i in index[p] for j in range(16) for byte in range(4)}
        assert set().union(*(touched(r.access, column) for r in reads)) == wanted
        assert all(r.deps for r in reads)  # they wait for the indices


def test_addresses_from_data_that_nobody_computed():
    """Without data, a kernel that needs what an earlier one stored says so instead of using zeros."""
    machine = Machine()
    index = machine.empty((3, 8), "f32")
    zeros = machine.put(np.zeros(24))
    run(machine, kernels.add("f32", 16), 2, [zeros, zeros, index, 24], enable_data=False)
    args = [machine.put(normal((50, 20))), index, machine.empty((3, 8, 16)), 20]
    with pytest.raises(ValuesNeeded, match=r"gather.py:4"):
        run(machine, kernels.gather_rows(), 3, args, enable_data=False)
    run(machine, kernels.add("f32", 16), 2, [zeros, zeros, index, 24])
    run(machine, kernels.gather_rows(), 3, args, enable_data=False)


def test_a_mask_that_no_product_of_axes_can_say():
    machine = Machine()
    x = normal((16, 16))
    out, at = machine.empty((16, 16)), machine.put(x)
    record = same_record_however_run(machine, kernels.triangle(), 2, [at, out])
    np.testing.assert_array_equal(machine.get(out), np.tril(x))
    block, column = rows_of(record, 1)
    wanted = {at + (i * 16 + j) * 4 + byte for i in range(16) for j in range(i + 1) for byte in range(4)}
    assert touched(block.rows[0].access, column) == wanted


ARGMAX = """
      %gt = arith.cmpf ogt, %a, %b : f32
      %eq = arith.cmpf oeq, %a, %b : f32
      %lt = arith.cmpi slt, %i, %j : i32
      %tie = arith.andi %eq, %lt : i1
      %left = arith.ori %gt, %tie : i1
      %v = arith.select %left, %a, %b : f32
      %k = arith.select %left, %i, %j : i32"""


def test_a_reduction_with_a_function_of_its_own():
    machine = Machine()
    x = np.random.default_rng(3).integers(0, 5, (4, 32)).astype(np.float32)
    out, at = machine.empty(4), machine.empty(4, "i32")
    record = same_record_however_run(
        machine, kernels.combine("f32", 32, ARGMAX, "%v, %k"), 4, [machine.put(x), out, at]
    )
    np.testing.assert_array_equal(machine.get(out), x.max(axis=1))
    np.testing.assert_array_equal(machine.get(at), x.argmax(axis=1))
    assert [r.op for r in record.blocks[0].rows] == ["load", "argmax", "store", "store"]


@pytest.mark.parametrize("backwards", [False, True])
def test_a_scan_with_a_function_of_its_own(backwards):
    """Running x[i] = x[i-1]*0.5 + x[i] and the smallest index so far."""
    region = """
      %half = arith.constant 5.000000e-01 : f32
      %h = arith.mulf %a, %half : f32
      %v = arith.addf %b, %h : f32
      %k = arith.minsi %i, %j : i32"""
    machine = Machine()
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    out, at = machine.empty((3, 8)), machine.empty((3, 8), "i32")
    attributes = f"axis = 0 : i32, reverse = {str(backwards).lower()}"
    text = kernels.combine("f32", 8, region, "%v, %k", "tt.scan", attributes)
    same_record_however_run(machine, text, 3, [machine.put(x), out, at])
    smallest = np.minimum.accumulate(np.broadcast_to(np.arange(8), (3, 8))[:, :: -1 if backwards else 1], axis=1)
    np.testing.assert_array_equal(machine.get(at), smallest[:, :: -1 if backwards else 1])


def test_atomics_count_in_program_order():
    machine = Machine()
    counter, total = machine.put([5], "i32"), machine.put([1.0])
    x = normal(10)
    out = machine.empty(10, "i32")

    def reset():
        machine.set(counter, [5])
        machine.set(total, [1.0])

    record = same_record_however_run(machine, kernels.ticket(), 10, [counter, machine.put(x), total, out], reset)
    np.testing.assert_array_equal(machine.get(out), 5 + np.arange(10))
    np.testing.assert_array_equal(machine.get(counter), [15])
    np.testing.assert_allclose(machine.get(total), [1 + x.sum()], rtol=1e-5)
    assert [r.atomics for r in record.blocks[0].rows if r.kind == OpKind.ATOMIC] == [1, 1]


def test_programs_that_share_a_lock_run_one_after_another():
    machine = Machine()
    lock, total = machine.put([0], "i32"), machine.put([0.0])
    x = normal(7)

    def reset():
        machine.set(lock, [0])
        machine.set(total, [0.0])

    same_record_however_run(machine, kernels.locked(), 7, [lock, machine.put(x), total], reset)
    expected = np.float32(0)
    for v in x:
        expected = expected * np.float32(2) + v
    np.testing.assert_array_equal(machine.get(total), [expected])
    np.testing.assert_array_equal(machine.get(lock), [0])


def test_out_of_bounds_names_line_argument_program_and_tensor():
    machine = Machine()
    x, y = machine.put(normal(40), name="short"), machine.put(normal(64))
    with pytest.raises(KernelFault) as fault:
        run(machine, kernels.add("f32", 16), 4, [x, y, machine.empty(64), 64])
    message = str(fault.value)
    for part in ("kernel.py:4", "program (2, 0, 0)", "'x'", "'short'", "elements 32..47 of 40", "Check the mask"):
        assert part in message


def test_a_masked_out_program_may_point_anywhere():
    machine = Machine()
    x = machine.put(normal(16))
    out = machine.empty(16)
    run(machine, kernels.add("f32", 16), 500, [x, x, out, 16])
    np.testing.assert_array_equal(machine.get(out), 2 * machine.get(x))


def test_an_input_that_is_also_the_output():
    machine = Machine()
    x = normal(64, "f16")
    at = machine.put(x, "f16")
    for _ in range(2):
        run(machine, kernels.add("f16", 16), 4, [at, at, at, 64])
    np.testing.assert_array_equal(machine.get(at), (4 * x).astype(np.float16))


def test_a_changed_input_is_read_anew():
    """Casts of inputs are kept between launches; a write drops them."""
    machine = Machine()
    a, b = normal((32, 32), "f16", 1), normal((32, 32), "f16", 2)
    at, bt, out = machine.put(a, "f16"), machine.put(b, "f16"), machine.empty((1, 32, 32))
    kernel = stored_matmul("f16")
    args = matmul_args(kernel, out, at, bt, 32, 32, 32, (32, 1), 32)
    for scale in (1, 2):
        machine.set(at, a * scale)
        execute(kernel, (1, 1, 1), args, machine.space)
        np.testing.assert_allclose(machine.get(out)[0], (a * scale) @ b, rtol=1e-5, atol=1e-5)


def test_a_stored_index_is_known_without_data():
    """What depends on no data is computed in a timing-only run too: later kernels may use it as an address."""
    machine = Machine()
    counter, total, out = machine.put([0], "i32"), machine.put([0.0]), machine.empty(4, "i32")
    x = machine.put(normal(4))
    run(machine, kernels.ticket(), 4, [counter, x, total, out], enable_data=False)
    np.testing.assert_array_equal(machine.get(counter), [4])
    assert machine.space.find(total).invalid.all()
    assert machine.space.find(counter).invalid is None
