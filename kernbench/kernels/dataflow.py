"""Which values of a kernel are *data*: made from what was read from memory, or floating-point tiles.

Everything else (program ids, ranges, index and pointer arithmetic on them, masks from bounds) is address generation: it
costs no vector time and no scratchpad. The rule is static, so that timing never depends on values.
"""

from __future__ import annotations

from collections.abc import Iterable

from kernbench.kernels.ttir import Block, Function, Op, Scalar, Tensor, Type, Value

READS = frozenset({"tt.load", "tt.atomic_rmw", "tt.atomic_cas", "tt.call", "kb.wait", "kb.recv"})
"""Operations whose result comes from memory or from another program."""
VIEWS = frozenset({"tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "tt.bitcast", "tt.unsplat"})
"""Operations that only rename bytes: no engine runs and no new tile is made."""
_IMMEDIATE = frozenset({"arith.constant", "tt.splat", "ub.poison"})
_COMBINES = frozenset({"tt.reduce", "tt.scan", "tt.map_elementwise"})


def is_float(kind: Type) -> bool:
    """Whether a type is a float or a tile of floats."""
    elem = kind.elem if isinstance(kind, Tensor) else kind
    return isinstance(elem, Scalar) and elem.name.startswith(("f", "bf", "tf"))


def data_values(function: Function, given: frozenset[Value] = frozenset()) -> frozenset[Value]:
    """The data values of a function, scalars included: results of reads, what is computed from data, and float tiles
    computed from anything but constants. What a loop carries is data when any iteration may carry data. ``given`` are
    arguments that are data; the results of a call always are."""
    data: set[Value] = set(given)
    before = -1
    while before != len(data):
        before = len(data)
        for block in function.body.blocks:
            _spread(block, data)
    return frozenset(data)


def _spread(block: Block, data: set[Value]) -> None:
    for op in block.ops:
        for successor, handed in op.successors:
            _flow(handed, successor.args, data)
        if op.name == "scf.for":
            _spread_for(op, data)
        elif op.name == "scf.while":
            _spread_while(op, data)
        elif op.name == "scf.if":
            for region in op.regions:
                _spread(region.entry, data)
                _flow(_terminator(region.entry).operands, op.results, data)
            if op.operands[0] in data:
                data.update(op.results)
        elif op.name in READS or any(v in data for v in op.operands) or _makes_floats(op):
            data.update(op.results)


def _spread_for(op: Op, data: set[Value]) -> None:
    body = op.regions[0].entry
    if any(v in data for v in (op.operands[0], op.operands[2])):  # an upper bound decides how often, not what it is
        data.add(body.args[0])
    _flow(op.operands[3:], body.args[1:], data)
    _spread(body, data)
    yielded = _terminator(body).operands
    _flow(yielded, body.args[1:], data)
    _flow(yielded, op.results, data)
    _flow(op.operands[3:], op.results, data)


def _spread_while(op: Op, data: set[Value]) -> None:
    before, after = op.regions[0].entry, op.regions[1].entry
    _flow(op.operands, before.args, data)
    _spread(before, data)
    passed = _terminator(before).operands[1:]
    _flow(passed, after.args, data)
    _flow(passed, op.results, data)
    _spread(after, data)
    _flow(_terminator(after).operands, before.args, data)


def _terminator(block: Block) -> Op:
    return block.ops[-1] if block.ops else Op("scf.yield", (), (), {})


def _flow(sources: Iterable[Value], targets: Iterable[Value], data: set[Value]) -> None:
    data.update(target for source, target in zip(sources, targets, strict=False) if source in data)


def _makes_floats(op: Op) -> bool:
    """A float tile computed from no data, such as a range cast to float: still a tile somebody has to compute."""
    if op.name in _IMMEDIATE or op.name in VIEWS or op.name in _COMBINES:
        return False
    return any(isinstance(v.type, Tensor) and is_float(v.type) for v in op.results)
