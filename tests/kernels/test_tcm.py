"""Scratchpad need against counts made by hand."""

import pytest

from kernbench.kernels import Kernel, OutOfResources
from kernbench.kernels.builtin import store
from kernbench.kernels.tcm import programs_in_flight


def kernel(body: str, args: str = "%p: !tt.ptr<f32>, %q: !tt.ptr<f32>, %n: i32", num_stages: int = 3) -> Kernel:
    """A kernel over 1024-element tiles; ``body`` may use %x_ptr and %q_ptr, blocks of pointers."""
    text = f"""
module {{
  tt.func public @k({args}) attributes {{noinline = false}} {{
    %zero = arith.constant dense<0.000000e+00> : tensor<1024xf32>
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %r = tt.make_range {{end = 1024 : i32, start = 0 : i32}} : tensor<1024xi32>
    %ps = tt.splat %p : !tt.ptr<f32> -> tensor<1024x!tt.ptr<f32>>
    %x_ptr = tt.addptr %ps, %r : tensor<1024x!tt.ptr<f32>>, tensor<1024xi32>
    %qs = tt.splat %q : !tt.ptr<f32> -> tensor<1024x!tt.ptr<f32>>
    %q_ptr = tt.addptr %qs, %r : tensor<1024x!tt.ptr<f32>>, tensor<1024xi32>
    {body}
    tt.return
  }}
}}
"""
    return Kernel("k", text, num_stages)


TILE = 4096  # bytes of 1024 f32


def test_index_arithmetic_and_masks_take_no_space():
    made = kernel(
        "%m = arith.cmpi slt, %r, %r : tensor<1024xi32>\n    tt.store %x_ptr, %zero, %m : tensor<1024x!tt.ptr<f32>>"
    )
    assert made.tcm.nbytes == 0


def test_an_elementwise_result_takes_the_place_of_a_dying_operand():
    made = kernel(
        """%x = tt.load %x_ptr : tensor<1024x!tt.ptr<f32>>
    %y = tt.load %q_ptr : tensor<1024x!tt.ptr<f32>>
    %z = arith.addf %x, %y : tensor<1024xf32>
    %w = arith.mulf %z, %z : tensor<1024xf32>
    tt.store %x_ptr, %w : tensor<1024x!tt.ptr<f32>>"""
    )
    assert made.tcm.nbytes == 2 * TILE


def test_an_operand_used_later_keeps_its_space():
    made = kernel(
        """%x = tt.load %x_ptr : tensor<1024x!tt.ptr<f32>>
    %e = math.exp %x : tensor<1024xf32>
    %f = math.exp %e : tensor<1024xf32>
    %z = arith.addf %x, %e : tensor<1024xf32>
    %w = arith.addf %z, %f : tensor<1024xf32>
    tt.store %x_ptr, %w : tensor<1024x!tt.ptr<f32>>"""
    )
    assert made.tcm.nbytes == 3 * TILE
    assert sorted(tile.name for tile in made.tcm.tiles) == ["e", "f", "x"]


def test_tiles_count_in_their_own_type_and_a_wider_result_needs_new_space():
    made = kernel(
        """%h = tt.load %x_ptr : tensor<1024x!tt.ptr<f32>>
    %s = arith.truncf %h : tensor<1024xf32> to tensor<1024xf16>
    %d = arith.extf %s : tensor<1024xf16> to tensor<1024xf64>
    tt.store %x_ptr, %h : tensor<1024x!tt.ptr<f32>>
    %b = arith.addf %d, %d : tensor<1024xf64>"""
    )
    # h stays for its store: h (4 B) with s (2 B) and d (8 B) at once.
    assert made.tcm.nbytes == 1024 * (4 + 2 + 8)


LOOP = """%acc = scf.for %i = %c0 to %n step %c1 iter_args(%a = %zero) -> (tensor<1024xf32>)  : i32 {{
      %x = tt.load %x_ptr : tensor<1024x!tt.ptr<f32>>
      %s = arith.addf %a, %x : tensor<1024xf32>
      scf.yield %s : tensor<1024xf32>
    }}{attrs}
    tt.store %q_ptr, %acc : tensor<1024x!tt.ptr<f32>>"""


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_a_load_in_a_loop_takes_num_stages_slots_and_the_accumulator_one_place(stages):
    made = kernel(LOOP.format(attrs=""), num_stages=stages)
    assert made.tcm.nbytes == (stages + 1) * TILE


def test_a_loop_that_says_its_own_number_of_stages_is_believed():
    made = kernel(LOOP.format(attrs=" {tt.num_stages = 2 : i32}"), num_stages=7)
    assert made.tcm.nbytes == 3 * TILE


def test_slots_are_given_back_when_the_loop_ends():
    two = LOOP.format(attrs="") + "\n    " + LOOP.format(attrs="").replace("%acc", "%acc2").replace("%x ", "%x2 ")
    assert kernel(two).tcm.nbytes == 4 * TILE


def test_what_is_used_inside_a_loop_is_held_while_it_runs():
    body = "%w = tt.load %q_ptr : tensor<1024x!tt.ptr<f32>>\n    " + LOOP.format(attrs="").replace(
        "arith.addf %a, %x", "arith.addf %a, %w"
    )
    # slots of x, the accumulator, and w, which no iteration may overwrite.
    assert kernel(body).tcm.nbytes == (3 + 1 + 1) * TILE


def test_both_sides_of_a_branch_count_and_the_larger_decides():
    made = kernel(
        """%c = arith.cmpi slt, %n, %c1 : i32
    %x = tt.load %x_ptr : tensor<1024x!tt.ptr<f32>>
    %v = scf.if %c -> (tensor<1024xf32>) {
      %e = math.exp %x : tensor<1024xf32>
      scf.yield %e : tensor<1024xf32>
    } else {
      %y = tt.load %q_ptr : tensor<1024x!tt.ptr<f32>>
      %z = arith.addf %x, %y : tensor<1024xf32>
      scf.yield %z : tensor<1024xf32>
    }
    tt.store %x_ptr, %v : tensor<1024x!tt.ptr<f32>>"""
    )
    assert made.tcm.nbytes == 2 * TILE


@pytest.mark.parametrize(("m", "n", "k"), [(128, 128, 64), (64, 64, 64), (128, 256, 64)])
@pytest.mark.parametrize(("kind", "width"), [("f16", 2), ("f32", 4)])
def test_a_matmul_holds_its_accumulator_and_three_slots_of_each_operand(m, n, k, kind, width):
    types = {"out_ptr": kind, "a_ptr": kind, "b_ptr": kind, "bias_ptr": None}
    found = store.kernel("matmul", types, {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8})
    assert found.tcm.nbytes == 4 * m * n + 3 * width * (m * k + k * n)


def test_fewer_programs_overlap_before_a_launch_fails():
    need = kernel(LOOP.format(attrs="")).tcm
    assert programs_in_flight("k", need, 8 * TILE, 2) == 2
    assert programs_in_flight("k", need, 8 * TILE - 1, 2) == 1
    assert programs_in_flight("k", need, 4 * TILE, 3) == 1
    with pytest.raises(OutOfResources):
        programs_in_flight("k", need, 4 * TILE - 1, 2)


def test_the_error_is_a_map_of_the_scratchpad_with_source_lines():
    types = {"out_ptr": "f16", "a_ptr": "f16", "b_ptr": "f16", "bias_ptr": None}
    found = store.kernel("matmul", types, {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 8})
    with pytest.raises(OutOfResources) as caught:
        programs_in_flight("matmul", found.tcm, 100_000, 2)
    error = caught.value
    assert (error.required, error.limit, error.name) == (278_528, 100_000, "TCM")
    lines = str(error).splitlines()
    assert "Required: 278528, Hardware limit: 100000" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["131,072", "98,304", "49,152"]
    assert "b: 3 slots of 64x256xf16  (matmul.py:" in lines[3]
