"""The commands and their options; what they do lives in the packages below."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from kernbench.cli.kernel_app import kernel_app
from kernbench.cli.options import Set, Sips
from kernbench.cli.weights_simulate import simulate
from kernbench.weight_sync.commands import app as weights_app

app = typer.Typer(
    help="Simulate multi-device AI accelerators: right values and simulated time at once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
topology_app = typer.Typer(help="Look at machines.", no_args_is_help=True)
app.add_typer(topology_app, name="topology")
app.add_typer(kernel_app, name="kernel")
app.add_typer(weights_app, name="weights")
weights_app.command()(simulate)


@app.command()
def run(
    bench: Annotated[Path, typer.Argument(help="Bench file with a bench(ctx, ...) function.")],
    topology: Annotated[str, typer.Option("--topology", "-t", help="Preset name or YAML file.")] = "ahbm-4sip",
    set_: Set = None,
    sips: Sips = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param", "-p", help="Set a parameter of the bench: -p tokens=256. Repeatable.", metavar="NAME=VALUE"
        ),
    ] = None,
    data: Annotated[bool, typer.Option("--data/--no-data", help="--no-data: same timeline, no values.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Look for races, uninitialised reads, wrapping offsets, NaNs in kernels.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that receives the run's folder.")] = Path("runs"),
) -> None:
    """Run a bench on a machine: values, simulated time, what bounds it, a trace and a picture."""
    from rich.console import Console

    from kernbench import bench as benches
    from kernbench.kernels import sanitize
    from kernbench.report import folder, terminal

    console = Console()
    params = dict(_pair(text, "-p") for text in param or [])
    with console.status("starting") as status, sanitize.enabled() if check else nullcontext():
        done = benches.run(
            bench, topology, overrides=set_ or [], sips=sips, params=params, enable_data=data, progress=status.update
        )
        status.update("writing the run folder")
        written = folder.write(done, out)
    console.print(terminal.summary(done))
    console.print(terminal.files(written))
    if not done.passed:
        raise typer.Exit(1)


@topology_app.command("show")
def topology_show(
    source: Annotated[str, typer.Argument(help="Preset name or YAML file.")],
    set_: Set = None,
    sips: Sips = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Also draw it to this PNG or SVG.")] = None,
) -> None:
    """Print a machine: its parts, what they add up to, and where each number comes from."""
    from rich.console import Console

    import kernbench.topology
    from kernbench.topology import describe

    graph = kernbench.topology.load(source, overrides=set_ or [], sips=sips)
    Console().print(describe.show(graph))
    if picture is not None:
        describe.draw(graph, picture)
        Console().print(f"drawn to {picture}")


@topology_app.command("check")
def topology_check(source: Annotated[str, typer.Argument(help="Preset name or YAML file.")], set_: Set = None) -> None:
    """Check a machine's file: mistakes are errors, imbalances are warnings."""
    from rich.console import Console

    from kernbench.topology import describe

    console = Console()
    problems = describe.check(source, overrides=set_ or [])
    for problem in problems:
        console.print(str(problem), soft_wrap=True, highlight=False, markup=False)
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(1)
    console.print(f"{source}: no errors" + (f", {len(problems)} warnings" if problems else ""))


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{option} {text}: expected NAME=VALUE")
    return name.strip(), value.strip()
