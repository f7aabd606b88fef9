"""``kernbench kernel``: try one kernel, store it as TTIR, look at what is stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

kernel_app = typer.Typer(help="Run, store and look at single kernels.", no_args_is_help=True)

File = Annotated[str, typer.Argument(help="FILE.py:kernel, FILE.py with one kernel in it, or FILE.ttir.")]
Args = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        "-a",
        metavar="NAME=VALUE",
        help="An argument: x_ptr=f32[1024,64] makes a random array (also :zeros :ones :range :2.5), n=1024 a number or "
        "a constexpr. Repeatable.",
    ),
]


@kernel_app.command("run")
def run(
    file: File,
    kernel: Annotated[str, typer.Option("--kernel", "-k", help="Which kernel of the file.")] = "",
    arg: Args = None,
    grid: Annotated[str, typer.Option("--grid", "-g", help='Sizes: 64, or "cdiv(n, BLOCK), 4".')] = "",
    kind: Annotated[str, typer.Option("--dtype", help="Element type of generated floating-point arrays.")] = "f32",
    topology: Annotated[str, typer.Option("--topology", "-t", help="Preset name or YAML file.")] = "ahbm-1sip",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the machine.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the generated arrays.")] = 0,
    impersonate: Annotated[
        str,
        typer.Option(
            "--impersonate", help="The GPU that the file believes in: cuda:90, which files get that use torch."
        ),
    ] = "",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look for races, uninitialised reads, NaNs ...")
    ] = True,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Compare with the file's reference(), or with Triton's interpreter."),
    ] = True,
    trace: Annotated[Path | None, typer.Option("--trace", help="Also write a Perfetto trace to this file.")] = None,
    dump: Annotated[
        list[str] | None,
        typer.Option("--dump", metavar="LINE:NAME", help="Print the block a variable holds at a line. Repeatable."),
    ] = None,
    dump_dir: Annotated[
        Path | None, typer.Option("--dump-dir", help="Also save what is dumped, as .npy files.")
    ] = None,
    program: Annotated[
        list[int] | None, typer.Option("--program", help="Programs whose values are dumped; 0. Repeatable.")
    ] = None,
    iteration: Annotated[
        list[int] | None, typer.Option("--iteration", help="In loops, iterations that are dumped; all. Repeatable.")
    ] = None,
    interpret: Annotated[
        bool, typer.Option("--interpret", help="Run it in Triton's interpreter, where breakpoint() and print work.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run a kernel: are its values right, how long does it take, which lines are slow, what is wrong with it.

    Inputs that are not given with --arg are made up from what the source says, and from how the file's host code
    launches the kernel. Of a file with several kernels each is run. A file that launches kernels itself, at its top
    level or under `if __name__ == "__main__"`, is run as it is, unless --kernel or --arg ask for one kernel. A file may
    offer inputs(), grid and reference(); see docs/kernels.md.

    Exits with 0, or with 1 where a value is wrong, a check found a fault, or the file is of no use; with 130 after
    Ctrl-C.
    """
    import json
    import os
    import sys
    from contextlib import redirect_stdout

    from rich.console import Console

    from kernbench.cli import kernel_files, kernel_progress, kernel_report
    from kernbench.cli.kernel_run import Options, Ran, Refused, run_all
    from kernbench.cli.kernel_run import interpret as interpret_kernel

    options = Options(
        kernel=kernel,
        arguments=kernel_files.pairs(arg or [], "--arg"),
        grid=grid,
        kind=kind,
        seed=seed,
        topology=topology,
        overrides=set_ or [],
        impersonate=impersonate,
        check=check,
        verify=verify,
        dumps=dump or [],
        programs=program or [0],
        iterations=iteration or [],
    )
    if os.environ.pop("TRITON_INTERPRET", "0") not in ("", "0") or interpret:
        raise typer.Exit(interpret_kernel(file, options))
    console, seen = Console(highlight=False), list[Ran | Refused]()
    found = run_all(file, options)
    while True:
        with redirect_stdout(sys.stderr if json_ else sys.stdout), kernel_progress.shown():
            ran = next(found, None)
        if ran is None:
            break
        if isinstance(ran, Ran):
            if dump_dir is not None:
                kernel_report.save(ran.dumped, dump_dir)
            if trace is not None and ran.timeline is not None:
                from kernbench.sim_engine.trace import write_trace

                named = trace.with_stem(f"{trace.stem}-{ran.launches[0].kernel}") if ran.one_of_several else trace
                write_trace(ran.timeline, named)
        if not json_:
            if seen:
                console.rule(style="dim")
            console.print(kernel_report.as_text(ran), soft_wrap=False)
        seen.append(ran)
    if json_:
        print(json.dumps(kernel_report.all_as_json(seen), indent=1))
    elif len(seen) > 1:
        console.print(kernel_report.summary(seen))
    if not all(ran.passed for ran in seen):
        raise typer.Exit(1)


@kernel_app.command("export")
def export(
    file: File,
    signature: Annotated[
        str,
        typer.Option(
            "--signature",
            "-s",
            help='One entry an argument, as triton.tools.compile takes it: "*fp32:16, *fp32, i32, 1024" (types of '
            "arguments, values of constexprs).",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; <kernel>.ttir without.")] = None,
    num_stages: Annotated[int, typer.Option("--num-stages", help="Buffer slots of pipelined loads.", min=1)] = 3,
) -> None:
    """Store a kernel as TTIR, which runs without Triton."""
    import ast

    from rich.console import Console

    from kernbench.cli import kernel_files as files
    from kernbench.kernels import Kernel, bundle, ttir

    found = files.load(file)
    if isinstance(found, Kernel):
        raise files.KernelFileError(f"{file}: is stored already; export takes FILE.py:kernel")
    import triton

    function = files.function_of(found)
    entries = [entry.strip() for entry in signature.split(",")]
    if len(entries) != len(function.arg_names):
        raise files.KernelFileError(
            f"--signature has {len(entries)} entries, but {function.__name__} takes {len(function.arg_names)}: "
            f"{', '.join(function.arg_names)}"
        )
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for name, entry in zip(function.arg_names, entries, strict=True):
        try:
            constants[name] = ast.literal_eval(entry)
        except (ValueError, SyntaxError):
            types[name] = entry
    kernel = bundle.lower(function, types, constants, num_stages)
    ttir.check(kernel.module)
    path = out or Path(f"{kernel.name}{bundle.SUFFIX}")
    bundle.write(path, kernel, f"triton {triton.__version__}")
    Console().print(
        f"{kernel.name} stored in {path}; try: kernbench kernel run {path} --grid ... --arg ...", soft_wrap=True
    )


@kernel_app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="FILE.ttir.")],
    text: Annotated[bool, typer.Option("--text", help="Print the TTIR too.")] = False,
) -> None:
    """Print what a stored kernel takes, does and needs. Does not need Triton."""
    from rich.console import Console
    from rich.table import Table

    from kernbench.kernels import bundle, ttir
    from kernbench.kernels.errors import KernelError

    console = Console(highlight=False)
    kernel = bundle.read(file)
    constants = "  ".join(f"{name}={value}" for name, value in kernel.constexprs.items())
    console.print(f"[bold]{kernel.name}[/]  num_stages={kernel.num_stages}  {constants}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("argument")
    table.add_column("type")
    for name, given in zip(kernel.arg_names, kernel.function.args, strict=True):
        table.add_row(name, str(given.type))
    console.print(table)
    counts = Counter(op.name for function in kernel.module.functions.values() for op in function.walk())
    console.print("\n[bold]operations[/]  " + "  ".join(f"{name} {n}" for name, n in counts.most_common()))
    console.print(f"\n[bold]scratchpad[/]  {kernel.tcm.nbytes:,} B a program")
    if kernel.tcm.tiles:
        console.print(kernel.tcm.memory_map(), markup=False)
    if text:
        console.print(kernel.text, markup=False, soft_wrap=True)
    try:
        ttir.check(kernel.module)
    except KernelError as error:
        console.print(f"[bold red]does not run:[/] {error}")
        raise typer.Exit(1) from None
