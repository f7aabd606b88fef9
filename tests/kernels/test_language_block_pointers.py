# ruff: noqa: E501
"""Block pointers, which Triton had until 3.8, from the text that Triton 3.7.1 makes of a kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ttir_run import Machine, run

from kernbench.kernels.errors import KernelFault

# p, q = blocks of 16 x 16 at the top of two matrices [m, n]; four times: q = p + p, both move down; then once unchecked
COPY = """\
module {
  tt.func public @twice(%a: !tt.ptr<f32>, %o: !tt.ptr<f32>, %m: i32, %n: i32) attributes {noinline = false} {
    %c1_i32 = arith.constant 1 : i32
    %c4_i32 = arith.constant 4 : i32
    %c16_i32 = arith.constant 16 : i32
    %c0_i32 = arith.constant 0 : i32
    %c1_i64 = arith.constant 1 : i64
    %0 = arith.extsi %m : i32 to i64
    %1 = arith.extsi %n : i32 to i64
    %2 = tt.make_tensor_ptr %a, [%0, %1], [%1, %c1_i64], [%c0_i32, %c0_i32] {order = array<i32: 1, 0>} : <tensor<16x16xf32>>
    %3 = tt.make_tensor_ptr %o, [%0, %1], [%1, %c1_i64], [%c0_i32, %c0_i32] {order = array<i32: 1, 0>} : <tensor<16x16xf32>>
    %4:2 = scf.for %i = %c0_i32 to %c4_i32 step %c1_i32 iter_args(%p = %2, %q = %3) -> (!tt.ptr<tensor<16x16xf32>>, !tt.ptr<tensor<16x16xf32>>)  : i32 {
      %6 = tt.load %p {boundaryCheck = array<i32: 0, 1>, padding = 1 : i32} : !tt.ptr<tensor<16x16xf32>>
      %7 = tt.load %p {boundaryCheck = array<i32: 0, 1>, padding = 2 : i32} : !tt.ptr<tensor<16x16xf32>>
      %8 = arith.addf %6, %7 : tensor<16x16xf32>
      tt.store %q, %8 {boundaryCheck = array<i32: 0, 1>} : !tt.ptr<tensor<16x16xf32>>
      %9 = tt.advance %p, [%c16_i32, %c0_i32] : <tensor<16x16xf32>>
      %10 = tt.advance %q, [%c16_i32, %c0_i32] : <tensor<16x16xf32>>
      scf.yield %9, %10 : !tt.ptr<tensor<16x16xf32>>, !tt.ptr<tensor<16x16xf32>>
    }
    LAST
    tt.return
  }
}
"""
AFTER = """%5 = tt.load %4#0 : !tt.ptr<tensor<16x16xf32>>
    tt.store %4#1, %5 : !tt.ptr<tensor<16x16xf32>>"""

# One product of K blocks: both operands move along K in a loop that carries their block pointers.
MATMUL = """\
module {
  tt.func public @matmul(%a: !tt.ptr<f16>, %b: !tt.ptr<f16>, %o: !tt.ptr<f32>, %m: i32, %n: i32, %k: i32) {
    %c0_i32 = arith.constant 0 : i32
    %c32_i32 = arith.constant 32 : i32
    %c1_i64 = arith.constant 1 : i64
    %cst = arith.constant dense<0.000000e+00> : tensor<32x32xf32>
    %row = tt.get_program_id x : i32
    %r = arith.muli %row, %c32_i32 : i32
    %m64 = arith.extsi %m : i32 to i64
    %n64 = arith.extsi %n : i32 to i64
    %k64 = arith.extsi %k : i32 to i64
    %pa = tt.make_tensor_ptr %a, [%m64, %k64], [%k64, %c1_i64], [%r, %c0_i32] {order = array<i32: 1, 0>} : <tensor<32x32xf16>>
    %pb = tt.make_tensor_ptr %b, [%k64, %n64], [%n64, %c1_i64], [%c0_i32, %c0_i32] {order = array<i32: 1, 0>} : <tensor<32x32xf16>>
    %po = tt.make_tensor_ptr %o, [%m64, %n64], [%n64, %c1_i64], [%r, %c0_i32] {order = array<i32: 1, 0>} : <tensor<32x32xf32>>
    %s:3 = scf.for %i = %c0_i32 to %k step %c32_i32 iter_args(%acc = %cst, %p = %pa, %q = %pb) -> (tensor<32x32xf32>, !tt.ptr<tensor<32x32xf16>>, !tt.ptr<tensor<32x32xf16>>)  : i32 {
      %x = tt.load %p {boundaryCheck = array<i32: 0, 1>, padding = 1 : i32} : !tt.ptr<tensor<32x32xf16>>
      %y = tt.load %q {boundaryCheck = array<i32: 0, 1>, padding = 1 : i32} : !tt.ptr<tensor<32x32xf16>>
      %d = tt.dot %x, %y, %acc, inputPrecision = ieee : tensor<32x32xf16> * tensor<32x32xf16> -> tensor<32x32xf32>
      %p2 = tt.advance %p, [%c0_i32, %c32_i32] : <tensor<32x32xf16>>
      %q2 = tt.advance %q, [%c32_i32, %c0_i32] : <tensor<32x32xf16>>
      scf.yield %d, %p2, %q2 : tensor<32x32xf32>, !tt.ptr<tensor<32x32xf16>>, !tt.ptr<tensor<32x32xf16>>
    }
    tt.store %po, %s#0 {boundaryCheck = array<i32: 0, 1>} : !tt.ptr<tensor<32x32xf32>>
    tt.return
  }
}
"""


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 80), n=st.integers(1, 40), seed=st.integers(0, 3))
def test_blocks_walk_down_a_matrix_and_stop_at_its_edges(m, n, seed):
    x = np.random.default_rng(seed).standard_normal((m, n)).astype(np.float32)
    machine = Machine()
    out = machine.put(np.full((m, n), 5, np.float32))
    run(machine, COPY.replace("LAST", ""), 1, [machine.put(x), out, m, n])
    expected = np.full((m, n), 5, np.float32)
    expected[:64, :16] = (x + x)[:64, :16]
    np.testing.assert_array_equal(machine.get(out), expected)


def test_what_a_loop_leaves_is_a_block_pointer_still():
    x = np.arange(80 * 16, dtype=np.float32).reshape(80, 16)
    machine = Machine()
    out = machine.empty((80, 16))
    run(machine, COPY.replace("LAST", AFTER), 1, [machine.put(x), out, 80, 16])
    np.testing.assert_array_equal(machine.get(out), np.concatenate([2 * x[:64], x[64:]]))


def test_an_unchecked_block_beyond_the_matrix_is_a_fault():
    machine = Machine()
    args = [machine.empty((70, 16)), machine.empty((70, 16)), 70, 16]
    with pytest.raises(KernelFault, match="'a' out of bounds"):
        run(machine, COPY.replace("LAST", AFTER), 1, args)


@settings(max_examples=10, deadline=None)
@given(m=st.integers(1, 100), n=st.integers(1, 32), k=st.integers(1, 150))
def test_matmul(m, n, k):
    r = np.random.default_rng(m)
    a, b = r.standard_normal((m, k)).astype(np.float16), r.standard_normal((k, n)).astype(np.float16)
    machine = Machine()
    out = machine.empty((m, n))
    record = run(machine, MATMUL, -(-m // 32), [machine.put(a, "f16"), machine.put(b, "f16"), out, m, n, k])
    np.testing.assert_allclose(machine.get(out), a.astype(np.float64) @ b.astype(np.float64), rtol=1e-4, atol=1e-4)
    assert any(block.loops for block in record.blocks)  # ran as matrix products, not step by step
