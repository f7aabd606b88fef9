"""The reductions of collectives, rounded to the element type at every step."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernbench.memory import DType

Combine = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]


class ReduceOp(Enum):
    """How a collective combines elements. AVG is SUM divided by the number of ranks; integers round towards zero."""

    SUM = "sum"
    AVG = "avg"
    PRODUCT = "product"
    MIN = "min"
    MAX = "max"
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"


_NUMBERS: dict[str, Combine] = {
    "sum": np.add,
    "avg": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_TRUTHS: dict[str, Combine] = {
    "sum": np.logical_or,
    "product": np.logical_and,
    "min": np.logical_and,
    "max": np.logical_or,
    "band": np.logical_and,
    "bor": np.logical_or,
    "bxor": np.logical_xor,
}


def check(op: Any, kind: DType) -> str:
    """The name of a reduction that is allowed for an element type.

    Raises:
        TypeError: ``op`` is no ReduceOp.
        RuntimeError: a bitwise one for floats, or AVG of bool.
    """
    if not isinstance(op, ReduceOp):
        raise TypeError(f"expected a ReduceOp such as ReduceOp.SUM, got {op!r}")
    if kind.is_floating_point and op in (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR):
        raise RuntimeError(f"Cannot use ReduceOp.{op.name} with non-integral dtype {kind}")
    if kind.name == "i1" and op is ReduceOp.AVG:
        raise RuntimeError("Cannot use ReduceOp.AVG with bool")
    return op.value


def combiner(op: str, kind: DType) -> Combine:
    """``combine(a, b)`` on arrays of the type's carrier."""
    fn = _TRUTHS[op] if kind.name == "i1" else _NUMBERS[op]
    if kind.carrier == kind.storage or op in ("min", "max"):
        return fn
    return lambda a, b: fn(a, b).astype(kind.storage).astype(kind.carrier)


def finish(op: str, total: NDArray[Any], ranks: int, kind: DType) -> NDArray[Any]:
    """What is left to do once everything is combined."""
    if op != "avg":
        return total
    if kind.is_floating_point:
        return total / kind.carrier.type(ranks)
    return np.trunc(total / ranks).astype(kind.storage)
