"""``kernbench weights simulate``: a sync on a simulated machine, engine by engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kernbench.cli.options import Set, Sips


def simulate(
    config: Annotated[
        Path | None, typer.Option("--config", help="A model's config.json; without it, Llama-3.1-8B's sizes.")
    ] = None,
    model_dir: Annotated[
        Path | None, typer.Option("--model-dir", help="A checkpoint instead, of which only headers are read.")
    ] = None,
    trainers: Annotated[str, typer.Option("--trainers", help="Tensor parallelism of the trainers: tp4.")] = "tp4",
    workers: Annotated[
        str, typer.Option("--workers", help="That of the workers, with how many groups of it: tp2x2, or tp4+tp2.")
    ] = "tp2x2",
    topology: Annotated[str, typer.Option("--topology", "-t", help="Preset name or YAML file.")] = "ahbm-8sip",
    set_: Set = None,
    sips: Sips = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="p2p, broadcast, packed, ipc, http or disk. Repeatable; all by default."),
    ] = None,
    buffer: Annotated[str, typer.Option("--buffer", help="Of packed broadcasts and of hosts.")] = "256 MiB",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it to this PNG, SVG or PDF.")] = None,
) -> None:
    """Simulate a weight sync from trainers to workers: its time, what bounds it, and whether every bit arrives.

    Exits with 1 if an engine got a value wrong.
    """
    import json

    from rich.console import Console

    import kernbench.topology
    from kernbench.report import weight_sync
    from kernbench.topology import units
    from kernbench.weight_sync.simulate import ENGINES, LLAMA_3_1_8B, Model, Roles, Settings, trial

    if config is not None and model_dir is not None:
        raise typer.BadParameter("give --config or --model-dir, not both")
    unknown = [name for name in engine or () if name not in ENGINES]
    if unknown:
        raise typer.BadParameter(f"--engine {unknown[0]}: expected one of {', '.join(ENGINES)}")
    if model_dir is not None:
        model = Model.of_checkpoint(model_dir)
    else:
        model = Model.of_config(LLAMA_3_1_8B if config is None else json.loads(config.read_bytes()))
    roles = Roles(_sizes(trainers, "--trainers", 1)[0], _sizes(workers, "--workers"))
    graph = kernbench.topology.load(topology, overrides=set_ or [], sips=sips)
    settings = Settings(buffer_bytes=int(units.parse(buffer, units.BYTES)))
    console = Console()
    trials = []
    for name in engine or ENGINES:
        with console.status(f"simulating {name}"):
            trials.append(trial(name, model, graph, roles, settings))
    console.print(weight_sync.compared(trials, model, graph, roles))
    if json_file is not None:
        weight_sync.write_json(trials, model, graph, roles, json_file)
        console.print(f"written to {json_file}")
    if plot is not None:
        weight_sync.draw(trials, plot)
        console.print(f"drawn to {plot}")
    if any(one.values is not None and not one.values.correct for one in trials):
        raise typer.Exit(1)


def _sizes(text: str, option: str, most: int | None = None) -> tuple[int, ...]:
    """Tensor-parallel sizes of groups: (2, 2, 4) of ``tp2x2+tp4``."""
    made: list[int] = []
    for part in text.split("+"):
        found = re.fullmatch(r"tp([1-9]\d*)(?:x([1-9]\d*))?", part.strip())
        if found is None:
            raise typer.BadParameter(f"{option} {text}: expected tp<ranks>, or several groups of them like tp2x2+tp4")
        made += [int(found[1])] * int(found[2] or 1)
    if most is not None and len(made) > most:
        raise typer.BadParameter(f"{option} {text}: give one group")
    return tuple(made)
