"""The parser of TTIR text."""

import numpy as np
import pytest
import ttir_kernels as kernels

from kernbench.kernels import ttir
from kernbench.kernels.errors import KernelError
from kernbench.kernels.ttir import NOWHERE, Opaque, Pointer, Scalar, Tensor, TensorDesc, parse, parse_type


def body(*lines, args="%p: !tt.ptr<f32>, %n: i32"):
    """The operations of a kernel with these lines."""
    text = "\n".join(["module {", f"tt.func public @k({args}) {{", *lines, "tt.return", "}", "}"])
    return parse(text).kernel.body.entry.ops


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f16", Scalar("f16")),
        ("f8E4M3FN", Scalar("f8E4M3FN")),
        ("!tt.ptr<bf16>", Pointer(Scalar("bf16"))),
        ("!tt.ptr<f32, 1>", Pointer(Scalar("f32"))),
        ("tensor<128x64xf16>", Tensor((128, 64), Scalar("f16"))),
        ("tensor<8x!tt.ptr<i64>>", Tensor((8,), Pointer(Scalar("i64")))),
        ("!tt.ptr<tensor<16x8xf16>>", Pointer(Tensor((16, 8), Scalar("f16")))),
        ("!tt.tensordesc<32x64xf16>", TensorDesc(Tensor((32, 64), Scalar("f16")))),
        ("!tt.tensordesc<tensor<32x64xf16>>", TensorDesc(Tensor((32, 64), Scalar("f16")))),
        ("!ttg.async.token", Opaque("!ttg.async.token")),
    ],
)
def test_types(text, expected):
    assert parse_type(text) == expected


def test_types_print_as_they_are_written():
    for text in ("tensor<4x2x!tt.ptr<f16>>", "!tt.ptr<f8E5M2>", "i1"):
        assert str(parse_type(text)) == text


def test_a_kernel_with_its_arguments_and_source_lines():
    module = parse(kernels.add("f16", 128))
    kernel = module.kernel
    assert kernel.name == "add"
    assert [(a.name, str(a.type)) for a in kernel.args] == [
        ("x", "!tt.ptr<f16>"),
        ("y", "!tt.ptr<f16>"),
        ("out", "!tt.ptr<f16>"),
        ("n", "i32"),
    ]
    by_name = {v.name: op for op in kernel.walk() for v in op.results}
    assert by_name["%a"].loc == ("kernel.py", 4)
    assert by_name["%b"].loc == ("kernel.py", 5)  # of an inlined call: the callee's line
    assert by_name["%0"].loc == NOWHERE
    assert by_name["%a"].result_types == (Tensor((128,), Scalar("f16")),)
    assert by_name["%mask"].result_types == (Tensor((128,), Scalar("i1")),)
    assert by_name["%mask"].attrs["words"] == ("slt",)
    assert by_name["%3"].operands == (by_name["%2"].results[0], by_name["%at"].results[0])


def test_argument_attributes():
    (arg,) = parse(
        'module {\n tt.func public @k(%p: !tt.ptr<f16> {tt.divisibility = 16 : i32} loc("p"(#l))) {\n tt.return\n}\n}'
    ).kernel.args
    assert arg.attrs == {"tt.divisibility": 16}


def test_lines_inside_tritons_library_are_those_of_the_caller():
    ops = body('%0 = arith.addi %n, %n : i32 loc(callsite("/x/triton/language/standard.py":43:13 at "mine.py":7:3))')
    assert ops[0].loc == ("mine.py", 7)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("arith.constant 42 : i32", 42),
        ("arith.constant -7 : i64", -7),
        ("arith.constant true", 1),
        ("arith.constant 1.5e-3 : f32", 1.5e-3),
        ("arith.constant 0xFF800000 : f32", -np.inf),
        ("arith.constant 0x7F80 : bf16", np.inf),
        ("arith.constant 0x3C00 : f16", 1.0),
        ("arith.constant dense<0> : tensor<4xi32>", 0),
        ("arith.constant dense<0xFF800000> : tensor<4xf32>", -np.inf),
        ("arith.constant dense<true> : tensor<4xi1>", 1),
    ],
)
def test_constants(line, value):
    assert body(f"%0 = {line}")[0].attrs["value"] == value


def test_constants_listed_element_by_element():
    (op, _) = body("%0 = arith.constant dense<[[1, 2], [3, -4]]> : tensor<2x2xi32>")
    np.testing.assert_array_equal(op.attrs["value"], [[1, 2], [3, -4]])
    (op, _) = body('%0 = arith.constant dense<"0x0000803F000000C0"> : tensor<2xf32>')
    np.testing.assert_array_equal(op.attrs["value"], [1.0, -2.0])


def test_a_loop():
    kernel = parse(kernels.ragged_sum()).kernel
    (loop,) = [op for op in kernel.walk() if op.name == "scf.for"]
    assert loop.attrs["tt.num_stages"] == 2
    assert [v.name for v in loop.operands] == ["%c0", "%n", "%size", "%zero"]
    inside = loop.regions[0].entry
    assert [v.name for v in inside.args] == ["%i", "%acc"]
    assert inside.args[0].type == Scalar("i32")
    assert inside.ops[-1].name == "scf.yield"
    assert inside.ops[-1].operands[0] is inside.ops[-2].results[0]


def test_names_are_scoped_by_region():
    """Both branches call their value the same."""
    (branch,) = [op for op in parse(kernels.branches()).kernel.walk() if op.name == "scf.if"]
    first, second = (region.entry.ops for region in branch.regions)
    assert (first[0].name, second[0].name) == ("arith.mulf", "arith.subf")
    assert first[1].operands == first[0].results
    assert second[1].operands == second[0].results


def test_blocks_and_branches():
    blocks = parse(kernels.branches()).kernel.body.blocks
    assert [b.ops[-1].name for b in blocks] == ["cf.cond_br", "tt.return", "tt.return"]
    assert [target for target, _ in blocks[0].ops[-1].successors] == blocks[1:]


def test_blocks_take_arguments():
    ops = parse(
        "module {\n tt.func public @k(%n: i32) {\n cf.br ^bb1(%n : i32)\n ^bb1(%m: i32):  // pred: ^bb0\n"
        " tt.return\n}\n}"
    ).kernel.body
    assert ops.blocks[1].args[0].name == "%m"
    assert ops.blocks[0].ops[0].successors == ((ops.blocks[1], ops.blocks[0].args),)


def test_a_while_loop_has_two_regions():
    (loop,) = [op for op in parse(kernels.collatz()).kernel.walk() if op.name == "scf.while"]
    assert [len(r.entry.args) for r in loop.regions] == [2, 2]
    assert [v.name for v in loop.results] == ["%r#0", "%r#1"]


def test_functions_call_each_other():
    module = parse(
        "module {\n tt.func public @k(%x: f32) {\n %0 = tt.call @f.g__fp32(%x) : (f32) -> f32\n tt.return\n }\n"
        " tt.func private @f.g__fp32(%a: f32) -> f32 attributes {noinline = true} {\n tt.return %a : f32\n }\n}"
    )
    assert module.kernel.name == "k"
    assert module.functions["f.g__fp32"].results == (Scalar("f32"),)
    assert module.kernel.body.entry.ops[0].attrs["callee"] == "f.g__fp32"


T2, T4, T42 = "tensor<2xi32>", "tensor<4xf32>", "tensor<4x2xf32>"
DESCRIPTOR = "!tt.tensordesc<tensor<32x64xf16>>"
TRANSPOSED = "tensor<2x4xf32>"


@pytest.mark.parametrize(
    ("line", "results", "attrs"),
    [
        ("%0 = tt.load %p evictionPolicy = evict_last {isVolatile = true} : !tt.ptr<f32>", "f32", {"isVolatile": True}),
        ("%0 = tt.fp_to_fp %n, rounding = rtne : f32 -> f16", "f16", {"rounding": "rtne"}),
        ("%0 = arith.truncf %n : f32 to bf16", "bf16", {}),
        ("%0 = tt.clampf %n, %n, %n, propagateNan = none : f32", "f32", {"propagateNan": "none"}),
        (f"%0, %1 = tt.split %n : {T42} -> {T4}", f"{T4} {T4}", {}),
        (f"%0 = tt.trans %n {{order = array<i32: 1, 0>}} : {T42} -> {TRANSPOSED}", TRANSPOSED, {"order": [1, 0]}),
        (f"%0 = tt.gather %n[%n] {{axis = 0 : i32}} : ({T4}, tensor<4xi32>) -> {T4}", T4, {"axis": 0}),
        ("%0 = tt.make_tensor_descriptor %p, [%n, %n], [%n, %n] : <f16>, <32x64xf16>", DESCRIPTOR, {}),
        ('%0 = tt.extern_elementwise %n {pure = true, symbol = "__nv_tanhf"} : (f32) -> f32', "f32", {"pure": True}),
        (f"%0 = some.new_thing %n, mode = fast {{a = [1, 2]}} : i32 -> {T2}", T2, {"mode": "fast", "a": [1, 2]}),
        ('tt.print " x: " {hex = false, isSigned = array<i32: 0>} : %n : i32', "", {"strings": [" x: "]}),
        ('tt.assert %n, "no" : i32', "", {"strings": ["no"]}),
    ],
)
def test_short_forms(line, results, attrs):
    """Also of operations nobody has heard of."""
    op = body(line)[0]
    assert [str(t) for t in op.result_types] == results.split()
    assert attrs.items() <= op.attrs.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module {\n tt.func public @k() {\n %0 = arith.addi %a, $ : i32\n}\n}", "line 3: cannot read"),
        ("module {\n}\n", "no public function"),
        ("hello", "line 1: expected a function"),
    ],
)
def test_what_is_no_ttir_says_where(text, message):
    with pytest.raises(KernelError, match=message):
        parse(text)


def test_an_operation_that_cannot_run_is_refused_before_anything_runs():
    module = parse(
        "module {\n tt.func public @k(%n: i32) {\n"
        ' %0 = tt.warp_group_dot %n : i32 -> i32 loc("mine.py":9:1)\n tt.return\n}\n}'
    )
    with pytest.raises(KernelError, match=r"mine.py:9: .*tt.warp_group_dot.*What to do: rewrite the line"):
        ttir.check(module)


def test_supported_kernels_pass_the_check():
    for text in (kernels.add(), kernels.branches(), kernels.collatz(), kernels.ragged_sum(), kernels.locked()):
        ttir.check(parse(text))
