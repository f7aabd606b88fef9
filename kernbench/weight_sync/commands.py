"""The commands of checkpoint sync: ``python -m kernbench.weight_sync``, and ``kernbench weights``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Keep a checkpoint's files in step with live weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ModelDir = Annotated[Path, typer.Option("--model-dir", help="Folder of the checkpoint.", show_default=False)]
HandlesFile = Annotated[Path, typer.Option("--handles", help="File that export_handles wrote.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read a pickled file of CUDA handles. It can run code: trust its writer.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def sync(
    model_dir: ModelDir,
    handles: HandlesFile,
    block_size: Annotated[int, typer.Option("--block-size", help="Bytes that are compared as one.", min=1)] = 4096,
    publish: Annotated[
        bool, typer.Option("--publish", help="Patch copies and rename them: for files that readers have mapped.")
    ] = False,
    paranoid: Annotated[bool, typer.Option("--paranoid", help="Read every byte, whatever stored hashes say.")] = False,
    expert_parallel: Annotated[bool, typer.Option("--expert-parallel", help="Ranks hold whole experts.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare only.")] = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write what changed in live weights into the checkpoint's files. Exits with 1 if not one tensor matches."""
    from rich.console import Console
    from rich.markup import escape

    from kernbench.weight_sync.checkpoint_sync import sync_checkpoint

    _log(verbose)
    with Console(stderr=True).status("comparing") as status:
        report = sync_checkpoint(
            model_dir,
            handles,
            block_size,
            publish=publish,
            allow_pickle=allow_pickle,
            expert_parallel=expert_parallel,
            use_hashes=not paranoid,
            dry_run=dry_run,
            progress=lambda name: status.update(escape(name)),
        )
    totals = report.summary()
    if as_json:
        typer.echo(json.dumps(totals | {"version": report.version}))
    else:
        did = "would change" if dry_run else "changed"
        typer.echo(
            f"{totals['tensors_synced']} tensors, {_size(totals['total_compared'])} compared; "
            f"{did} {_size(totals['total_changed'])} in {totals['files_changed']} files; version {report.version}"
        )
        if report.missing:
            typer.echo(f"{len(report.missing)} live tensors are not in the checkpoint; diagnose lists them")
        for file in report.files if verbose else []:
            typer.echo(f"  {file.file}: {_size(file.changed)} of {_size(file.compared)}, {_size(file.skipped)} by hash")
            for name in file.differing:
                typer.echo(f"    {name}")
    if not totals["tensors_synced"]:
        typer.echo("error: not one live tensor is in the checkpoint", err=True)
        raise typer.Exit(1)


@app.command()
def diagnose(
    model_dir: ModelDir, handles: HandlesFile, allow_pickle: AllowPickle = False, verbose: Verbose = False
) -> None:
    """List the tensors that match, that are live only, and that are on the disk only."""
    from kernbench.weight_sync.checkpoint_sync import diagnose as run

    _log(verbose)
    run(model_dir, handles, allow_pickle=allow_pickle)


@app.command()
def verify(
    model_dir: ModelDir,
    handles: Annotated[Path | None, typer.Option("--handles", help="Compare with live weights too.")] = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check every tensor's bytes against the manifest's hashes. Exits with 1 if anything is wrong."""
    from kernbench.weight_sync.checkpoint_sync import sync_checkpoint
    from kernbench.weight_sync.checkpoint_sync import verify as run

    _log(verbose)
    found = run(model_dir)
    stale = []
    if handles is not None and not found.pending:
        report = sync_checkpoint(model_dir, handles, dry_run=True, use_hashes=False, allow_pickle=allow_pickle)
        stale = [f"{f.file}: {name}" for f in report.files for name in f.differing]
    if as_json:
        typer.echo(json.dumps(vars(found) | {"stale": stale}))
    else:
        typer.echo(f"version {found.version}: {found.tensors} tensors as they should be")
        if found.pending:
            typer.echo("a change is half done: recover first")
        for title, names in (("damaged", found.damaged), ("not in the manifest", found.unknown), ("stale", stale)):
            for name in names:
                typer.echo(f"{title}: {name}")
    if not found.ok or stale:
        raise typer.Exit(1)


@app.command()
def recover(model_dir: ModelDir, verbose: Verbose = False) -> None:
    """Finish a change that a crash interrupted, or drop it if it had not been committed."""
    from kernbench.weight_sync.checkpoint_sync import recover as run

    _log(verbose)
    typer.echo(run(model_dir))


def _log(verbose: bool) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


def _size(nbytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def main() -> int:
    """Run a command; errors go to stderr in one line and give 1."""
    try:
        app()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    return 0
