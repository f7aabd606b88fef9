"""Which parameters of a kernel a pointer is an offset from.

A pointer may only reach the memory of the tensor that it was made of: an address that happens to lie in another tensor
is as wrong as one that lies nowhere. Pointers that were read from memory, made of integers, or given by another rank
come from nowhere that is known, and may reach all there is.
"""

from __future__ import annotations

from functools import lru_cache

from kernbench.kernels.dataflow import VIEWS
from kernbench.kernels.slices import needed_sources
from kernbench.kernels.ttir import Function, Op, Pointer, Tensor, Value

_KEEPING = VIEWS | {"tt.addptr", "tt.advance", "arith.select", "scf.for", "scf.if", "scf.while"}
"""Operations whose pointers are offsets from those they take."""


def parameters(function: Function, pointer: Value) -> tuple[int, ...]:
    """The parameters of a kernel, by their numbers, that a pointer may be an offset from; empty where that is not
    known, as it is not in functions that a kernel calls."""
    if not function.public:
        return ()
    makers, sources = _graph(function)
    pending, seen, found = [pointer], {pointer}, []
    while pending:
        value = pending.pop()
        if value in function.body.entry.args:
            found.append(value)
            continue
        before = [v for v in sources.get(value, ()) if _is_pointer(v)]
        maker = makers.get(value)
        if not before or (maker is not None and maker.name not in _KEEPING):
            return ()
        pending += [v for v in before if v not in seen]
        seen.update(before)
    return tuple(i for i, v in enumerate(function.body.entry.args) if v in found)


@lru_cache(64)
def _graph(function: Function) -> tuple[dict[Value, Op], dict[Value, list[Value]]]:
    return {r: op for op in function.walk() for r in op.results}, needed_sources(function)


def _is_pointer(value: Value) -> bool:
    kind = value.type.elem if isinstance(value.type, Tensor) else value.type
    return isinstance(kind, Pointer)
