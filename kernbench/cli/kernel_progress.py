"""A line on the terminal that tells what a run is at, so that a long one does not look dead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_teller: Callable[[str], None] | None = None
_step = ""


def step(what: str) -> None:
    """What is done from now on."""
    global _step
    _step = what
    if _teller is not None:
        _teller(what)


def part(what: str) -> None:
    """Which part is done now of what :func:`step` told."""
    if _teller is not None:
        _teller(f"{_step}: {what}" if _step else what)


@contextmanager
def shown() -> Iterator[None]:
    """Show what is told on stderr, where that is a terminal; nothing stays of it."""
    global _teller
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    from kernbench.kernels.triton_backend import tuning

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    spinner = Spinner("dots", Text("starting", style="dim"))
    # What a file prints goes above the line, unless it goes elsewhere.
    live = Live(
        spinner, console=console, transient=True, refresh_per_second=8, redirect_stdout=sys.stdout.isatty()
    )  # fmt: skip

    def teller(what: str) -> None:
        spinner.update(text=Text(what, style="dim", overflow="ellipsis", no_wrap=True))

    _teller, tuning.listener = teller, lambda kernel, n, of: part(f"autotuning {kernel}, configuration {n} of {of}")
    try:
        with live:
            yield
    finally:
        _teller, tuning.listener = None, None
