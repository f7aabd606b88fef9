"""How an exception looks at the terminal: what went wrong and the user's own line, no internals."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from rich.console import Console
from rich.markup import escape

PACKAGE = str(Path(__file__).resolve().parents[1])


def user_line(error: BaseException) -> str | None:
    """``file:line`` of the innermost frame that belongs neither to KernBench nor to Python or an installed package."""
    outside = (PACKAGE, sys.prefix, sys.base_prefix, "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(outside):
            return f"{frame.filename}:{frame.lineno}"
    return None


def root_cause(error: BaseException) -> BaseException:
    """The exception to show: of a failed spawn, the first rank's own."""
    ranks = getattr(error, "errors", None)
    if isinstance(ranks, dict) and ranks:
        return root_cause(ranks[min(ranks)])
    return error


def explain(error: Exception) -> int:
    """Print ``error`` to stderr for a person and return the exit code 1.

    ``KERNBENCH_TRACEBACK=1`` prints the whole traceback instead.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if os.environ.get("KERNBENCH_TRACEBACK") == "1":
        traceback.print_exception(error)
        return 1
    cause = root_cause(error)
    ranks = getattr(error, "errors", None)
    where = user_line(cause) or user_line(error)
    known = type(cause).__module__.startswith("kernbench") or isinstance(cause, (ValueError, OSError))
    text = str(cause) or type(cause).__name__
    console.print(f"[bold red]error:[/] {escape(text if known else f'{type(cause).__name__}: {text}')}")
    if isinstance(ranks, dict) and ranks:
        more = f", and in {len(ranks) - 1} more ranks" if len(ranks) > 1 else ""
        console.print(f"  in rank {min(ranks)}{more}")
    if where:
        console.print(f"  at {escape(where)}")
    if not known:
        console.print("  KERNBENCH_TRACEBACK=1 shows the whole traceback")
    return 1
