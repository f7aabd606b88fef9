"""The commands on weights: ``python -m kernbench.weight_sync``, and ``kernbench weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kernbench.weight_sync.commands_delta import apply, diff
from kernbench.weight_sync.commands_http import push, serve
from kernbench.weight_sync.commands_snapshot import load, snapshot
from kernbench.weight_sync.console import (
    AllowPickle,
    AsJson,
    DryRun,
    HandlesFile,
    ModelDir,
    Publish,
    Verbose,
    emit,
    log,
    meter,
    size,
)

app = typer.Typer(
    help="Keep a checkpoint's files in step with live weights, and move weights between folders and machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
ENCODING_HELP = "How changes are written down: auto, full, block, sparse or xor."


@app.command()
def sync(
    model_dir: ModelDir,
    handles: HandlesFile,
    block_size: Annotated[int, typer.Option("--block-size", help="Bytes that are compared as one.", min=1)] = 4096,
    encoding: Annotated[str, typer.Option("--encoding", help=ENCODING_HELP)] = "auto",
    delta: Annotated[
        Path | None, typer.Option("--delta", help="Also write the change to this file, for other copies (apply).")
    ] = None,
    publish: Publish = False,
    paranoid: Annotated[bool, typer.Option("--paranoid", help="Read every byte, whatever stored hashes say.")] = False,
    expert_parallel: Annotated[bool, typer.Option("--expert-parallel", help="Ranks hold whole experts.")] = False,
    dry_run: DryRun = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write what changed in live weights into the checkpoint's files. Exits with 1 if not one tensor matches."""
    from kernbench.weight_sync.checkpoint_sync import sync_checkpoint
    from kernbench.weight_sync.delta_apply import checkpoint_tensors

    log(verbose)
    total = sum(t.data.size for t in checkpoint_tensors(model_dir).values()) if handles.exists() else 0
    with meter("comparing", total, as_json) as step:
        report = sync_checkpoint(
            model_dir,
            handles,
            block_size,
            publish=publish,
            allow_pickle=allow_pickle,
            expert_parallel=expert_parallel,
            use_hashes=not paranoid,
            encoding=encoding,
            delta=delta,
            dry_run=dry_run,
            progress=step,
        )
    totals = report.summary()
    journaled = sum(file.journaled for file in report.files)
    if as_json:
        emit(totals | {"version": report.version, "journaled": journaled, "dry_run": dry_run})
    else:
        did = "would change" if dry_run else "changed"
        typer.echo(
            f"{totals['tensors_synced']} tensors, {size(totals['total_compared'])} compared; "
            f"{did} {size(totals['total_changed'])} in {totals['files_changed']} files; version {report.version}"
        )
        if delta is not None and totals["total_changed"] and not dry_run:
            typer.echo(f"{delta}: {size(delta.stat().st_size)}")
        if report.missing:
            typer.echo(f"{len(report.missing)} live tensors are not in the checkpoint; diagnose lists them")
        for file in report.files if verbose else []:
            typer.echo(
                f"  {file.file}: {size(file.changed)} of {size(file.compared)}, {size(file.skipped)} by hash, "
                f"{size(file.journaled)} in the journal"
            )
            for name in file.differing:
                typer.echo(f"    {name}")
    if not totals["tensors_synced"]:
        typer.echo("error: not one live tensor is in the checkpoint", err=True)
        raise typer.Exit(1)


@app.command()
def diagnose(
    model_dir: ModelDir,
    handles: HandlesFile,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List the tensors that match, that are live only, and that are on the disk only."""
    from kernbench.weight_sync.checkpoint_sync import compare_names
    from kernbench.weight_sync.checkpoint_sync import diagnose as run

    log(verbose)
    if as_json:
        emit(dict(compare_names(model_dir, handles, allow_pickle=allow_pickle)))
    else:
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

    log(verbose)
    with meter("reading", None, as_json) as step:
        found = run(model_dir, step)
    stale = []
    if handles is not None and not found.pending:
        report = sync_checkpoint(model_dir, handles, dry_run=True, use_hashes=False, allow_pickle=allow_pickle)
        stale = [f"{f.file}: {name}" for f in report.files for name in f.differing]
    if as_json:
        emit(vars(found) | {"stale": stale})
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
def recover(model_dir: ModelDir, dry_run: DryRun = False, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Finish a change that a crash interrupted, or drop it if it had not been committed."""
    from kernbench.weight_sync.checkpoint_sync import recover as run
    from kernbench.weight_sync.store import Store

    log(verbose)
    said = Store(model_dir).what_to_recover() if dry_run else run(model_dir)
    if as_json:
        emit({"did": said, "version": Store(model_dir).manifest().version, "dry_run": dry_run})
    else:
        typer.echo(said)


for command in (diff, apply, snapshot, load, serve, push):
    app.command()(command)


def main() -> int:
    """Run a command; errors go to stderr in one line and give 1, wrong usage gives 2."""
    try:
        app()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        typer.echo(f"error: {error.args[0] if isinstance(error, KeyError) and error.args else error}", err=True)
        return 1
    return 0
