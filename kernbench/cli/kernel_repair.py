"""Other guesses for arguments with which a kernel does not compile: another element type, another block size, a flag.

A guess that moves the compiler's error further down the source is kept, until there is none left or no guess helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

MOST = 120
"""Compilations that are tried."""
_SIZES = (64, 128, 32, 16, 256, 1, 2, 4, 8, 1024)

Change = tuple[dict[str, Any], str, Any]
"""(where a value stands, its name, another value)."""


def how_far(error: BaseException) -> tuple[int, ...]:
    """The lines that the compiler got to, outermost function first; empty where the error is none of the compiler's."""
    lines = []
    one: BaseException | None = error
    while one is not None:
        line = getattr(getattr(one, "node", None), "lineno", None)
        if type(one).__module__.startswith("triton.compiler") and line is not None:
            lines.append(line)
        one = one.__cause__
    return tuple(lines)


def repair(attempt: Callable[[], Any], changes: Callable[[], Iterator[list[Change]]]) -> bool:
    """Try changes until ``attempt`` compiles; whether it does. Where it never does, all is as it was.

    Args:
        attempt: compiles, or raises what the compiler raises.
        changes: gives alternatives, each some values that change together.
    """
    undo: list[Change] = []
    reached = _reached(attempt)
    tried = 0
    while reached is not None:
        for change in changes():
            tried += 1
            if tried > MOST:
                break
            before = [(where, name, where[name]) for where, name, _ in change]
            _apply(change)
            now = _reached(attempt)
            if now is None or now > reached:
                undo = before + undo
                reached = now
                break
            _apply(before)
        else:
            break
        if tried > MOST:
            break
    if reached is not None:
        _apply(undo)
    return reached is None


def explain(error: BaseException) -> str:
    """What to do about an error of the compiler that no other inputs mend; empty where that is not known."""
    text = f"{error} {error.__cause__ or ''}"
    if "lock pointers have been removed" in text:
        import triton

        return (
            f"Triton {triton.__version__} has no block pointers (tl.make_block_ptr, tl.advance): install triton 3.8 or "
            "older, or use tl.make_tensor_descriptor"
        )
    return ""


def _apply(change: list[Change]) -> None:
    for where, name, value in change:
        where[name] = value


def _reached(attempt: Callable[[], Any]) -> tuple[int, ...] | None:
    """None where it compiles, or where no change helps."""
    try:
        attempt()
    except Exception as error:
        return None if explain(error) else how_far(error)
    return None


def others(value: Any) -> list[Any]:
    """What a constexpr that was made up may be instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [*(size for size in _SIZES if size != value), True, False]
    return [None] if isinstance(value, str) else []
