"""``diff`` and ``apply``: the difference between two checkpoints, as numbers and as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kernbench.weight_sync.console import AsJson, DryRun, ModelDir, Publish, Verbose, emit, log, meter, size

if TYPE_CHECKING:
    from kernbench.weight_sync.delta import Costs

_ORDER = ("full", "block", "sparse", "xor")


def diff(
    old: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    new: Annotated[Path, typer.Argument(help="Folder of another version of it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the delta to this file.")] = None,
    encoding: Annotated[
        str, typer.Option("--encoding", help="Of the delta: auto, full, block, sparse or xor.")
    ] = "auto",
    block_size: Annotated[int, typer.Option("--block-size", help="Bytes that count as one block.", min=1)] = 4096,
    as_version: Annotated[
        int | None,
        typer.Option("--version", help="That the delta leads to; by default the newer folder's, or one on."),
    ] = None,
    all_tensors: Annotated[bool, typer.Option("--all", help="List tensors that have not changed too.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Say what changed between two versions of a checkpoint, and what each encoding of it takes.

    In every encoding the sizes are foretold from counts and samples, and measured by making it.
    """
    from kernbench.weight_sync.delta import write_delta
    from kernbench.weight_sync.delta_apply import checkpoint_tensors, version_of
    from kernbench.weight_sync.encodings import has_zstd
    from kernbench.weight_sync.files import write_atomically

    log(verbose)
    before, after = checkpoint_tensors(old), checkpoint_tensors(new)
    base = version_of(old)
    to = as_version if as_version is not None else max(version_of(new), base + 1)
    per_tensor: dict[str, Costs] = {}

    def write(file: Any) -> Costs:
        with meter("comparing", sum(t.data.size for t in before.values()), as_json) as step:
            return write_delta(
                file,
                before,
                after,
                base,
                to,
                encoding=encoding,
                block=block_size,
                every=True,
                progress=step,
                per_tensor=lambda name, costs: per_tensor.update({name: costs}),
            )

    if output is None or dry_run:
        total, written = write(None), None
    else:
        with write_atomically(output) as file:
            total = write(file)
        written = output.stat().st_size
    shown = {name: costs for name, costs in per_tensor.items() if costs.changed_tensors or all_tensors}
    if as_json:
        tensors = {name: _document(costs) for name, costs in shown.items()}
        versions = {"base_version": base, "new_version": to, "delta_bytes": written}
        emit(_document(total) | versions | {"tensor_costs": tensors, "has_zstd": has_zstd()})
        return
    _print_table(shown, total)
    if not has_zstd():
        typer.echo("xor is left out: it needs zstandard (pip install 'kernbench[weights]')")
    if written is not None:
        typer.echo(f"{output}: {size(written)}, from version {base} to {to}")


def apply(
    delta: Annotated[Path, typer.Argument(help="File that diff or sync --delta wrote; - reads standard input.")],
    model_dir: ModelDir,
    encoding: Annotated[str, typer.Option("--encoding", help="Of the journal: auto, full, block or sparse.")] = "auto",
    publish: Publish = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Take a checkpoint to a delta's new version: all of it or nothing. Another base is refused."""
    from kernbench.weight_sync.delta_apply import apply_delta

    log(verbose)
    source = sys.stdin.buffer if str(delta) == "-" else delta
    with meter("applying", None, as_json) as step:
        done = apply_delta(model_dir, source, encoding=encoding, publish=publish, dry_run=dry_run, progress=step)
    totals = done.summary()
    if as_json:
        emit(totals | {"dry_run": dry_run})
        return
    did = "would change" if dry_run else "changed"
    typer.echo(
        f"{did} {totals['tensors_changed']} tensors, {size(totals['total_changed'])} in {totals['files_changed']} "
        f"files; version {done.version}"
    )


def _document(costs: Costs) -> dict[str, Any]:
    return vars(costs) | {"changed_fraction": costs.changed_elements / max(costs.elements, 1)}


def _print_table(tensors: dict[str, Costs], total: Costs) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("tensor", box=None, pad_edge=False)
    for title in ("bytes", "changed", "dirty blocks", *_ORDER, "auto"):
        table.add_column(title, justify="right")
    for name, costs in tensors.items():
        table.add_row(name, *_cells(costs))
    table.add_section()
    table.add_row(f"{total.changed_tensors} of {total.tensors} tensors", *_cells(total))
    foretold = (_size(total.predicted, label) for label in _ORDER)
    table.add_row("foretold", "", "", "", *foretold, "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cells(costs: Costs) -> list[str]:
    changed = f"{100 * costs.changed_elements / max(costs.elements, 1):.2f} %"
    dirty = f"{100 * costs.dirty_blocks / max(costs.blocks, 1):.1f} %"
    return [size(costs.nbytes), changed, dirty, *(_size(costs.actual, e) for e in _ORDER), size(costs.written)]


def _size(sizes: dict[str, int], label: str) -> str:
    return size(sizes[label]) if label in sizes else "-"
