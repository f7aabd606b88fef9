"""Operations of ``kernbench.language`` in TTIR: calls of external functions whose symbols begin with ``kb_``.

:func:`lower` gives each a name of its own, so that the rest of the executor need not look at symbols.

===========  ======================================  =======================================================
operation    operands                                result
===========  ======================================  =======================================================
kb.rank      (unused)                                i32; likewise kb.num_ranks, kb.pe, kb.num_pes, kb.program
kb.remote    pointer(s), rank                        the same pointer(s) in that rank's memory
kb.copy      pointer to, pointer from, count, rank   i32, nothing
kb.signal    pointer, rank, value                    i32, nothing
kb.wait      pointer, value                          the value found
kb.send      value, program, rank                    i32, nothing
kb.recv      any value of the type, program, rank    the value received
kb.barrier   (unused)                                i32, nothing
===========  ======================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kernbench.kernels.ttir import Function, Module, Op

PREFIX = "kb_"
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
}
SIGN = {"eq": "==", "ne": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<="}
IDENTITIES = ("rank", "num_ranks", "pe", "num_pes", "program")
SYMBOLS: dict[str, tuple[str, dict[str, str]]] = {
    **{name: (f"kb.{name}", {}) for name in (*IDENTITIES, "remote", "copy", "send", "recv")},
    **{f"wait_{name}": ("kb.wait", {"compare": name}) for name in COMPARE},
    **{f"signal_{how}": ("kb.signal", {"how": how}) for how in ("set", "add")},
    **{f"barrier_{scope}": ("kb.barrier", {"scope": scope}) for scope in ("rank", "world")},
}
"""Symbol, without its prefix -> name of the operation and what else the symbol says."""
BLOCKING = frozenset({"kb.wait", "kb.send", "kb.recv", "kb.barrier"})
TELLING = BLOCKING | {"kb.copy", "kb.signal", "tt.call"}
"""What may let another program go on."""


def lower(module: Module) -> Module:
    """Name the operations of ``kernbench.language``, in place."""
    for function in module.functions.values():
        for op in function.walk():
            symbol = op.attrs.get("symbol", "") if op.name == "tt.extern_elementwise" else ""
            if symbol.startswith(PREFIX) and symbol.removeprefix(PREFIX) in SYMBOLS:
                op.name, said = SYMBOLS[symbol.removeprefix(PREFIX)]
                op.attrs |= said
    return module


def communicates(functions: Iterable[Function]) -> bool:
    """Whether a kernel uses ``kernbench.language``."""
    return any(op.name.startswith("kb.") for function in functions for op in function.walk())


def blocks(functions: Iterable[Function]) -> bool:
    """Whether its programs may wait for each other, or for those of other ranks, in simulated time."""
    return any(op.name in BLOCKING for function in functions for op in function.walk())


def polls(op: Op) -> list[Op]:
    """What a loop looks at memory with; a program may spin in it."""
    looking = ("tt.load", "tt.atomic_rmw", "tt.atomic_cas", "tt.call")
    return [inner for inner in op.walk() if inner.name in looking]
