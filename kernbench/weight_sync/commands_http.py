"""``serve`` and ``push``: a checkpoint over HTTP."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from kernbench.weight_sync.console import AsJson, DryRun, Publish, Verbose, emit, log, meter, size, stepping, stored

TOKEN_VARIABLE = "KERNBENCH_WEIGHTS_TOKEN"
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help=f"File with the token; else the variable {TOKEN_VARIABLE} has it.")
]


def serve(
    model_dir: Annotated[Path, typer.Argument(help="Folder of the checkpoint that pushed weights go into.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535)] = 0,
    token_file: TokenFile = None,
    publish: Publish = False,
    once: Annotated[bool, typer.Option("--once", help="End after one update.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Take weights over HTTP into a checkpoint: every update wholly or not at all. Ends on Ctrl-C."""
    from kernbench.weight_sync.transfer.checkpoint_target import CheckpointTarget
    from kernbench.weight_sync.transfer.http_server import WeightServer

    log(verbose)
    token = _token(token_file)
    ended = threading.Event()

    def finished(version: int) -> None:
        if as_json:
            emit({"event": "updated", "version": version})
        else:
            typer.echo(f"{model_dir} is version {version}")
        if once:
            threading.Timer(0.2, ended.set).start()  # after the answer has gone out

    target = CheckpointTarget(model_dir, publish=publish, on_finish=finished)
    with WeightServer(target, host, port, token=token) as server:
        if as_json:
            emit({"event": "serving", "url": server.url, "model_dir": str(model_dir), "version": target.version})
        else:
            typer.echo(f"serving {model_dir}, version {target.version}, at {server.url}")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
        while not ended.wait(0.5):
            pass
        target.abort()


def push(
    source: Annotated[Path, typer.Argument(help="Folder of a checkpoint, or the file of a delta.")],
    url: Annotated[list[str], typer.Option("--url", help="Of a server; repeat it for several.", show_default=False)],
    token_file: TokenFile = None,
    as_version: Annotated[
        int | None, typer.Option("--version", help="Of the weights; by default one above the servers'.")
    ] = None,
    form: Annotated[str, typer.Option("--form", help="auto, octet-stream or json.")] = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Send a checkpoint to servers: all get everything, or none shows anything. Or a delta, to each for itself."""
    from kernbench.weight_sync.transfer.http_client import HttpTrainerArgs, send_delta, send_weights, server_versions

    log(verbose)
    if source.is_file() and as_version is not None:
        raise typer.BadParameter("--version: a delta says itself to which version it leads")
    args = HttpTrainerArgs(url, token=_token(token_file), version=as_version, form=form)  # type: ignore[arg-type]
    sizes, weights = ({}, iter(())) if source.is_file() else stored(source)
    nbytes = source.stat().st_size if source.is_file() else sum(sizes.values())
    what = "delta" if source.is_file() else f"{len(sizes)} tensors"
    if dry_run:
        versions = server_versions(args)
    elif source.is_file():
        versions = dict(send_delta(source, args))
    else:
        with meter("sending", nbytes, as_json) as step:
            version = send_weights(stepping(weights, sizes, step), args)
        versions = dict.fromkeys(args.urls, version)
    if as_json:
        document = {"source": str(source), "delta": source.is_file(), "tensors": len(sizes), "bytes": nbytes}
        emit(document | {"versions": versions, "dry_run": dry_run})
        return
    typer.echo(f"{'would send' if dry_run else 'sent'} {what}, {size(nbytes)}, to {len(args.urls)} servers")
    for address, served in versions.items():
        typer.echo(f"  {address}: version {served}")


def _token(path: Path | None) -> str:
    """The token; in no command line, which others can read."""
    token = path.read_text().strip() if path is not None else os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        where = f"{path} is empty" if path is not None else f"neither --token-file nor {TOKEN_VARIABLE} is given"
        raise ValueError(f"no token: {where}; any text will do that servers and clients share and others do not know")
    return token
