"""What the commands on weights share: progress at the terminal, sizes for people, options."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

ModelDir = Annotated[Path, typer.Option("--model-dir", help="Folder of the checkpoint.", show_default=False)]
HandlesFile = Annotated[Path, typer.Option("--handles", help="File that export_handles wrote.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read a pickled file of CUDA handles. It can run code: trust its writer.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no progress.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Publish = Annotated[
    bool, typer.Option("--publish", help="Patch copies and rename them: for files that readers have mapped.")
]
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def size(nbytes: float) -> str:
    """``1.5 MB``."""
    for unit in ("B", "KB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def parse_size(text: str) -> int:
    """Bytes of ``"1GB"``, ``"512 MiB"`` or ``"4096"``.

    Raises:
        typer.BadParameter: anything else.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if not found or found[2] not in _UNITS or (made := int(float(found[1]) * _UNITS[found[2]])) < 1:
        raise typer.BadParameter(f"{text!r} is no size: write 4096, 512MiB or 1GB")
    return made


def log(verbose: bool) -> None:
    """Messages of the library to stderr."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


def emit(document: dict[str, Any]) -> None:
    """One line of JSON."""
    typer.echo(json.dumps(document))


@contextmanager
def meter(what: str, total: int | None, quiet: bool = False) -> Iterator[Callable[[str, int], None]]:
    """A progress bar on stderr with bytes, bytes/s and time left; gives what to call with a name and its bytes.

    Args:
        total: bytes in all, if that is known.
        quiet: show nothing; neither is anything shown where stderr is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda name, nbytes: None
        return
    from rich import progress
    from rich.console import Console
    from rich.markup import escape

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def step(name: str, nbytes: int) -> None:
            bar.update(task, advance=nbytes, description=f"{what} {escape(name[-40:])}")

        yield step


def stored(model_dir: Path) -> tuple[dict[str, int], Iterator[tuple[str, Any]]]:
    """(name -> bytes, the tensors one after another) of a checkpoint."""
    from kernbench.weight_sync.delta_apply import checkpoint_tensors

    found = checkpoint_tensors(model_dir)
    return {n: t.data.size for n, t in found.items()}, ((n, t.to("numpy")) for n, t in found.items())


def stepping(
    tensors: Iterator[tuple[str, Any]], sizes: dict[str, int], step: Callable[[str, int], None]
) -> Iterator[tuple[str, Any]]:
    """``tensors``, each counted by ``step`` once the next is asked for."""
    for name, tensor in tensors:
        yield name, tensor
        step(name, sizes[name])


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
