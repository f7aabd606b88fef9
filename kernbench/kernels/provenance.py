"""Which parameters of a kernel a pointer is an offset from.

A pointer may only reach the memory of the tensor that it was made of: an address that happens to lie in another tensor
is as wrong as one that lies nowhere. Pointers that were read from memory, made of integers, moved by a number that was
worked out from addresses, or given by another rank come from nowhere that is known, and may reach all there is.
"""

from __future__ import annotations

from functools import lru_cache

from kernbench.kernels.dataflow import VIEWS
from kernbench.kernels.slices import ATOMICS, is_pointer, needed_sources
from kernbench.kernels.ttir import Function, Op, Scalar, Tensor, Type, Value

_KEEPING = VIEWS | {"tt.addptr", "tt.advance", "arith.select", "scf.for", "scf.if", "scf.while"}
"""Operations whose pointers are offsets from those they take."""


def parameters(function: Function, pointer: Value) -> tuple[int, ...]:
    """The parameters of a kernel, by their numbers, that a pointer may be an offset from; empty where that is not
    known, as it is not in functions that a kernel calls."""
    if not function.public:
        return ()
    makers, sources, distances = _graph(function)
    pending, seen, found = [pointer], {pointer}, []
    while pending:
        value = pending.pop()
        if value in function.body.entry.args:
            found.append(value)
            continue
        before = [v for v in sources.get(value, ()) if is_pointer(v.type)]
        maker = makers.get(value)
        if not before or (maker is not None and maker.name not in _KEEPING):
            return ()
        if any(v in distances for v in sources.get(value, ())):
            return ()
        pending += [v for v in before if v not in seen]
        seen.update(before)
    return tuple(i for i, v in enumerate(function.body.entry.args) if v in found)


@lru_cache(64)
def _graph(function: Function) -> tuple[dict[Value, Op], dict[Value, list[Value]], frozenset[Value]]:
    """Who makes each value, of what, and the integers that are worked out from addresses."""
    makers, sources = {r: op for op in function.walk() for r in op.results}, needed_sources(function)
    pending = [r for r, op in makers.items() if op.name == "tt.ptr_to_int"]
    users: dict[Value, list[Value]] = {}
    if pending:
        for value, before in sources.items():
            for v in before:
                users.setdefault(v, []).append(value)
    found = set(pending)
    while pending:
        for value in users.get(pending.pop(), ()):
            maker = makers.get(value)
            read = maker is not None and (maker.name == "tt.load" or maker.name in ATOMICS)
            if value not in found and not read and not is_pointer(value.type) and _element(value) != Scalar("i1"):
                found.add(value)
                pending.append(value)
    return makers, sources, frozenset(found)


def _element(value: Value) -> Type:
    return value.type.elem if isinstance(value.type, Tensor) else value.type
