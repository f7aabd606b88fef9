"""``snapshot`` and ``load``: weights in parts with a manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from kernbench.weight_sync.console import (
    AllowPickle,
    AsJson,
    DryRun,
    Verbose,
    emit,
    log,
    meter,
    parse_size,
    peak_memory,
    size,
    stepping,
    stored,
)

Rank = Annotated[int, typer.Option("--rank", help="Whose weights they are.", min=0)]
Id = Annotated[str, typer.Option("--id", help="Names the snapshot in its folder.")]


def snapshot(
    folder: Annotated[Path, typer.Argument(help="Where the snapshot goes.")],
    model_dir: Annotated[Path | None, typer.Option("--model-dir", help="Folder of a checkpoint to take.")] = None,
    handles: Annotated[
        Path | None, typer.Option("--handles", help="Live weights to take; with --model-dir, under published names.")
    ] = None,
    rank: Rank = 0,
    id: Id = "weights",
    part_size: Annotated[str, typer.Option("--part-size", help="Largest size of a file's tensors.")] = "1GB",
    as_version: Annotated[int | None, typer.Option("--version", help="Recorded in the manifest.")] = None,
    allow_pickle: AllowPickle = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a snapshot in parts, from a checkpoint or from live weights; it appears all at once."""
    from kernbench.weight_sync.snapshot import write_snapshot
    from kernbench.weight_sync.snapshot_write import plan_snapshot

    log(verbose)
    limit = parse_size(part_size)
    sizes, tensors = _source(model_dir, handles, rank, allow_pickle)
    parts = plan_snapshot(rank, id, sizes.values(), limit)
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        with meter("writing", sum(sizes.values()), as_json) as step:
            write_snapshot(folder, rank, id, stepping(tensors, sizes, step), part_bytes=limit, version=as_version)
    total = sum(sizes.values())
    if as_json:
        files = [{"file": part.file, "tensors": part.tensors, "bytes": part.nbytes} for part in parts]
        document = {"folder": str(folder), "version": as_version, "parts": files, "tensors": len(sizes), "bytes": total}
        emit(document | {"dry_run": dry_run})
        return
    for part in parts:
        typer.echo(f"  {part.file}: {part.tensors} tensors, {size(part.nbytes)}")
    did = "would write" if dry_run else "wrote"
    typer.echo(f"{did} {len(sizes)} tensors, {size(total)}, in {len(parts)} parts to {folder}")


def load(
    folder: Annotated[Path, typer.Argument(help="Folder of the snapshot.")],
    rank: Rank = 0,
    id: Id = "weights",
    shared_dir: Annotated[Path, typer.Option("--shared-dir", help="Looked at last.")] = Path("/shared_ipc_meta"),
    prefetch: Annotated[bool, typer.Option("--prefetch", help="Read ahead: two parts in memory.")] = False,
    allow_pickle: AllowPickle = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check names and headers only.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Load a snapshot part by part and compare every tensor with its hash. Says how much memory that took at most."""
    from kernbench.weight_sync.arrays import to_bytes
    from kernbench.weight_sync.snapshot import load_snapshot, open_snapshot

    log(verbose)
    found, headers = open_snapshot(folder, rank, id, shared_dir)
    sizes = [sum(t.nbytes for t in header.tensors.values()) for header in headers or []]
    parts: list[dict[str, Any]] = []
    started, before = time.perf_counter(), peak_memory()
    if dry_run:
        for file, nbytes, header in zip(found.files, sizes, headers or [], strict=False):
            parts.append({"label": file.label, "tensors": len(header.tensors), "bytes": nbytes})
    else:
        with meter("loading", sum(sizes), as_json) as step:

            def note(state: dict[str, Any], label: str) -> None:
                nbytes = sum(to_bytes(tensor).data.size for tensor in state.values())
                parts.append({"label": label, "tensors": len(state), "bytes": nbytes})
                step(label, nbytes)

            load_snapshot(
                folder, rank, id, note, shared_dir, framework="numpy", allow_pickle=allow_pickle, prefetch=prefetch
            )
    seconds, peak = time.perf_counter() - started, peak_memory() - before
    total, largest = sum(p["bytes"] for p in parts), max((p["bytes"] for p in parts), default=0)
    checked = not dry_run and all(file.digests is not None for file in found.files)
    if as_json:
        document = {"version": found.version, "parts": parts, "bytes": total, "seconds": seconds, "verified": checked}
        emit(document | {"peak_memory": peak, "largest_part": largest, "dry_run": dry_run})
        return
    for part in parts:
        typer.echo(f"  {part['label']}: {part['tensors']} tensors, {size(part['bytes'])}")
    tensors = sum(p["tensors"] for p in parts)
    if dry_run:
        typer.echo(f"would load {tensors} tensors, {size(total)}, in {len(parts)} parts; version {found.version}")
        return
    typer.echo(
        f"{tensors} tensors, {size(total)} in {seconds:.2f} s ({size(total / max(seconds, 1e-9))}/s), "
        f"{'every hash as it should be' if checked else 'no hashes to compare with'}; version {found.version}"
    )
    typer.echo(f"peak memory {size(peak)} above the start, {peak / max(largest, 1):.2f} times the largest part")


def _source(
    model_dir: Path | None, handles: Path | None, rank: int, allow_pickle: bool
) -> tuple[dict[str, int], Iterator[tuple[str, Any]]]:
    """(name -> bytes, the tensors one after another)."""
    from kernbench.weight_sync.arrays import describe
    from kernbench.weight_sync.handles import load_handles
    from kernbench.weight_sync.modelconfig import ModelConfig
    from kernbench.weight_sync.reshard import gather

    if handles is None:
        if model_dir is None:
            raise typer.BadParameter("give --model-dir, --handles or both")
        return stored(model_dir)
    live = load_handles(handles, allow_pickle)
    began = live.version()
    live.check_unchanged(began)
    if model_dir is None:
        if rank >= len(live.ranks):
            raise ValueError(f"{handles} has the weights of ranks 0 to {len(live.ranks) - 1}, not of {rank}")
        mine = live.ranks[rank]
        sizes = {name: (about := describe(t))[0].nbytes(about[1]) for name, t in mine.items()}
        tensors = iter(mine.items())
    else:
        published = gather(live.ranks, ModelConfig.of_folder(model_dir))
        sizes = {name: one.kind.nbytes(one.shape) for name, one in published.items()}
        tensors = ((name, one.tensor()) for name, one in published.items())

    def checked() -> Iterator[tuple[str, Any]]:
        yield from tensors
        live.check_unchanged(began)  # raised before the snapshot is published

    return sizes, checked()
