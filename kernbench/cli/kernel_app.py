"""``kernbench kernel``: try one kernel, store it as TTIR, look at what is stored."""

from __future__ import annotations

import linecache
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

kernel_app = typer.Typer(help="Run, store and look at single kernels.", no_args_is_help=True)
HOTTEST = 8
"""Source lines that ``run`` prints."""

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
    arg: Args = None,
    grid: Annotated[str, typer.Option("--grid", "-g", help='Sizes: 64, or "cdiv(n, BLOCK), 4".')] = "1",
    topology: Annotated[str, typer.Option("--topology", "-t", help="Preset name or YAML file.")] = "ahbm-1sip",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the machine.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the generated arrays.")] = 0,
    impersonate: Annotated[
        str | None, typer.Option("--impersonate", help="Load and run the file as on a GPU: cuda:90.")
    ] = None,
) -> None:
    """Run a kernel on generated inputs: what it wrote, its simulated time, and its slowest lines."""
    import numpy as np
    from rich.console import Console

    from kernbench.cli import kernel_files as files
    from kernbench.kernels import Kernel, launch
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.triton import impersonate as impersonated
    from kernbench.triton import target_of_environment

    console = Console(highlight=False)
    rng = np.random.default_rng(seed)
    with ExitStack() as stack:
        ctx = stack.enter_context(RuntimeContext.open(topology, overrides=set_ or []))
        if target := impersonate or target_of_environment():
            stack.enter_context(impersonated(target))
        kernel = files.load(file)
        values = {name: files.value(text, rng) for name, text in files.pairs(arg or [], "--arg").items()}
        before = {name: v.copy() for name, v in values.items() if isinstance(v, np.ndarray)}
        if isinstance(kernel, Kernel):
            _check_names(file, kernel.name, kernel.arg_names, kernel.arg_names, values)
            sizes = files.grid(grid, kernel.constexprs | values)
            launch(kernel, sizes, [values[name] for name in kernel.arg_names])
        else:
            function = files.function_of(kernel)
            _check_names(file, function.__name__, function.arg_names, _required(kernel), values)
            kernel[lambda meta: files.grid(grid, meta)](**values)
        timeline = ctx.timeline()
    console.print(_values(before, values))
    console.print(_times(timeline, file.rpartition(":")[0] if file.rfind(".py:") > 0 else file))


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


def _required(kernel: Any) -> list[str]:
    """Arguments without a default that no decorator fills in."""
    from kernbench.cli.kernel_files import function_of

    filled: set[str] = set()
    outer = kernel
    while hasattr(outer.fn, "arg_names"):
        filled.update(getattr(outer, "values", None) or {})
        filled.update(n for config in getattr(outer, "configs", None) or [] for n in config.kwargs)
        outer = outer.fn
    return [p.name for p in function_of(kernel).params if not p.has_default and p.name not in filled]


def _check_names(file: str, name: str, known: Any, required: Any, values: dict[str, Any]) -> None:
    from kernbench.cli.kernel_files import KernelFileError

    unknown = [n for n in values if n not in known]
    missing = [n for n in required if n not in values]
    if unknown:
        raise KernelFileError(f"{name} has no argument '{unknown[0]}'; it takes {', '.join(known)}")
    if missing:
        example = " ".join(f"--arg {n}={'f32[1024]' if 'ptr' in n.lower() else '1024'}" for n in missing)
        raise KernelFileError(
            f"{name} needs {', '.join(missing)}: say what to generate (dtype and shape) or a number, for example\n"
            f"  kernbench kernel run {file} --grid 8 {example}"
        )


def _values(before: dict[str, Any], after: dict[str, Any]) -> Any:
    """A table of arrays: which were written, and what they hold now."""
    import numpy as np
    import xxhash
    from rich.table import Table
    from rich.text import Text

    from kernbench.memory import dtype

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("array", "", "min", "mean", "max"):
        table.add_column(column, justify="right" if column in ("min", "mean", "max") else "left", no_wrap=True)
    for name, was in before.items():
        now = np.ascontiguousarray(after[name])
        changed = now.tobytes() != was.tobytes()
        numbers = now.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        stats = [f"{f(finite):.4g}" if finite.size else "" for f in (np.min, np.mean, np.max)]
        kind = f"{name}: {dtype(now.dtype).name}[{','.join(map(str, now.shape))}]"
        lost = numbers.size - finite.size
        written = f"written {xxhash.xxh64_hexdigest(now.tobytes())}" if changed else ""
        row = [kind, written, *stats, *([f"{lost} not finite"] if lost else [])]
        if lost and len(table.columns) == 5:
            table.add_column("")
        table.add_row(*map(Text, row), style="bold" if changed else "")
    return table


def _times(timeline: Any, file: str) -> Any:
    """Simulated time of the kernel and its slowest lines; ``file`` is where its source lies now."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from kernbench.report import units
    from kernbench.sim_engine.profile import kernel_totals, line_profile

    parts: list[Any] = [Text()]
    for name, total in kernel_totals(timeline).items():
        text = Text.assemble((name, "bold"), "  ", (units.time(total["time_ps"]), "bold"), " simulated")
        text.append(f" ({units.time(timeline.makespan_ps)} with its launch)   {units.size(total['bytes'])} moved")
        if total["flops"]:
            text.append(f", {total['flops'] / 1e9:.3g} GFLOP on the GEMM engines")
        parts.append(text)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("line", no_wrap=True)
    for column in ("share", "ops", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True, overflow="ellipsis", max_width=48)
    lines = line_profile(timeline)
    everything = sum(entry.busy_ps for entry in lines) or 1
    for entry in lines[:HOTTEST]:
        # Triton's cache remembers where a kernel lay when it was first compiled.
        path = entry.file if Path(entry.file).is_file() or Path(entry.file).name != Path(file).name else file
        source = linecache.getline(path, entry.line).strip()
        table.add_row(
            f"{Path(entry.file).name}:{entry.line}",
            units.percent(entry.busy_ps / everything),
            f"{entry.ops:,}",
            units.size(entry.bytes) if entry.bytes else "",
            Text(source),
        )
    return Group(*parts, Text(), table)
