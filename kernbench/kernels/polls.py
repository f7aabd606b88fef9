"""Triton's ordered loads, stores and polls (3.9) as the atomics that do the same.

=============== ======================================================================================
tt.atomic_load  an atomic that adds nothing
tt.atomic_store an exchange whose result nobody looks at
tt.atomic_poll  a loop of such loads, until each element has once had the value expected of it
=============== ======================================================================================

They cost what those cost. Simulated time is not known while a kernel runs, so a timeout counts looks, one for each
``NS_A_LOOK``: what no other program has done by then counts as late.
"""

from __future__ import annotations

from collections.abc import Callable

from kernbench.kernels.ttir import Block, Module, Op, Region, Scalar, Tensor, Type, Value

NS_A_LOOK, MOST_LOOKS = 256, 4096
"""A GPU's memory answers in some hundreds of nanoseconds; others get a turn after every few dozen looks."""
_I1, _I64 = Scalar("i1"), Scalar("i64")


def lower(module: Module) -> Module:
    """Rewrite them, in place."""
    for function in module.functions.values():
        _rewrite(function.body)
    return module


def _rewrite(region: Region) -> None:
    for block in region.blocks:
        if any(op.name in _LOWER or op.regions for op in block.ops):
            made: list[Op] = []
            for op in block.ops:
                for inner in op.regions:
                    _rewrite(inner)
                lowered = _LOWER.get(op.name)
                made += [op] if lowered is None else lowered(op)
            block.ops = made


def _constant(op: Op, kind: Type, value: float) -> Op:
    return Op("arith.constant", (Value("", kind),), (), {"value": value}, loc=op.loc)


def _load(op: Op) -> list[Op]:
    pointer, *mask = op.operands
    return _look(op, pointer, tuple(mask), op.results[0])


def _look(op: Op, pointer: Value, mask: tuple[Value, ...], result: Value) -> list[Op]:
    is_int = str(result.type.elem if isinstance(result.type, Tensor) else result.type).startswith("i")
    nothing = _constant(op, result.type, 0 if is_int else -0.0)  # x + -0.0 is x, for zeros of either sign too
    words = ("or" if is_int else "fadd", *op.attrs.get("words", ())[:2])
    return [nothing, Op("tt.atomic_rmw", (result,), (pointer, nothing.results[0], *mask), {"words": words}, loc=op.loc)]


def _store(op: Op) -> list[Op]:
    before = Value("", op.operands[1].type)
    words = ("exch", *op.attrs.get("words", ())[:2])
    return [Op("tt.atomic_rmw", (before,), op.operands, {"words": words}, loc=op.loc)]


def _poll(op: Op) -> list[Op]:
    pointer, expected, *timeout = op.operands
    (result,) = op.results
    ops: list[Op] = []

    def add(name: str, kind: Type, *operands: Value, regions: tuple[Region, ...] = (), **attrs: object) -> Value:
        ops.append(Op(name, (Value("", kind),), operands, attrs, regions, loc=op.loc))
        return ops[-1].results[0]

    def constant(kind: Type, value: int) -> Value:
        return add("arith.constant", kind, value=value)

    start = [constant(result.type, 0)]
    if timeout:
        looks = add("arith.divui", _I64, timeout[0], constant(_I64, NS_A_LOOK))
        start.append(add("arith.minui", _I64, looks, constant(_I64, MOST_LOOKS)))
    outside, ops = ops, []

    seen, *left = (Value("", v.type) for v in start)
    found = Value("", expected.type)
    ops += _look(op, pointer, (), found)
    now = add("arith.ori", result.type, seen, add("arith.cmpi", result.type, found, expected, words=("eq",)))
    more = add("arith.xori", _I1, _all(add, now), constant(_I1, 1))
    passed = [now]
    if left:
        more = add("arith.andi", _I1, more, add("arith.cmpi", _I1, left[0], constant(_I64, 0), words=("sgt",)))
        passed.append(add("arith.subi", _I64, left[0], constant(_I64, 1)))
    ops.append(Op("scf.condition", (), (more, *passed), {}, loc=op.loc))
    before = Block((seen, *left), ops)

    again = tuple(Value("", v.type) for v in start)
    after = Block(again, [Op("scf.yield", (), again, {}, loc=op.loc)])
    results = (result, *(Value("", v.type) for v in left))
    return [*outside, Op("scf.while", results, tuple(start), {}, (Region([before]), Region([after])), loc=op.loc)]


def _all(add: Callable[..., Value], x: Value) -> Value:
    """Whether a bool holds for all elements."""
    if not isinstance(x.type, Tensor):
        return x
    count = 1
    for n in x.type.shape:
        count *= n
    flat = add("tt.reshape", Tensor((count,), _I1), x) if len(x.type.shape) > 1 else x
    a, b, both = (Value("", _I1) for _ in range(3))
    combine = Block((a, b), [Op("arith.andi", (both,), (a, b), {}), Op("tt.reduce.return", (), (both,), {})])
    return add("tt.reduce", _I1, flat, regions=(Region([combine]),), axis=0)


_LOWER: dict[str, Callable[[Op], list[Op]]] = {
    "tt.atomic_load": _load,
    "tt.atomic_store": _store,
    "tt.atomic_poll": _poll,
}
