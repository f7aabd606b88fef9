"""One kernel from a file, run as its author would want it tried: inputs, values, time, faults."""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.cli import kernel_calls as calls
from kernbench.cli import kernel_configs as configs
from kernbench.cli import kernel_files as files
from kernbench.cli import kernel_machine as machines
from kernbench.cli import kernel_model as model
from kernbench.cli import kernel_progress as progress
from kernbench.cli import kernel_ranks as ranks
from kernbench.cli import kernel_trials as trials
from kernbench.cli import kernel_verify as verify
from kernbench.cli.kernel_descriptors import Described
from kernbench.cli.kernel_files import KernelFileError
from kernbench.cli.kernel_inputs import Guess, Inputs
from kernbench.cli.kernel_trials import Trial
from kernbench.kernels import device as devices
from kernbench.kernels import launch, sanitize
from kernbench.kernels.dumps import Dumped, dump
from kernbench.kernels.errors import KernelError, KernelFault
from kernbench.kernels.plan import record_dtype
from kernbench.kernels.ttir import Pointer, Type
from kernbench.memory import dtype

LARGEST = 64 * 2**20
"""Bytes of arguments up to which a launch of a script is kept, to compare its values."""
MOST_PROGRAMS = 4096
"""Programs up to which a launch of a script is repeated in the interpreter."""


@dataclass
class Options:
    """What the command line says."""

    kernel: str = ""
    arguments: dict[str, str] = field(default_factory=dict)
    grid: str = ""
    kind: str = "f32"
    seed: int = 0
    topology: str = "ahbm-1sip"
    overrides: list[str] = field(default_factory=list)
    impersonate: str = ""
    check: bool = True
    verify: bool = True
    seconds: float = 60.0
    dumps: list[str] = field(default_factory=list)
    programs: list[int] = field(default_factory=lambda: [0])
    iterations: list[int] = field(default_factory=list)

    @cached_property
    def machine(self) -> Any:
        """The machine to run on."""
        import kernbench.topology

        return kernbench.topology.load(self.topology, overrides=self.overrides)

    def dumping(self) -> Any:
        """Entered around a launch; gives what is dumped."""
        if not self.dumps:
            return contextlib.nullcontext([])
        return dump(*self.dumps, programs=self.programs, iterations=self.iterations or None)


@dataclass
class Launched:
    """One launch: what went in, what came out."""

    kernel: str
    grid: tuple[int, ...]
    before: dict[str, Any]
    """All arguments, constexprs included; arrays as they were."""
    after: dict[str, np.ndarray]
    inputs: Inputs | None = None
    verdict: verify.Verdict | None = None


@dataclass
class Ran:
    """All that is to be said of a run."""

    file: Path
    mode: str
    """``inputs``: one kernel on inputs; ``script``: the file itself."""
    machine: str
    launches: list[Launched] = field(default_factory=list)
    timeline: Any = None
    records: list[Any] = field(default_factory=list)
    tcm: Any = None
    tcm_capacity: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tunings: list[Any] = field(default_factory=list)
    dumped: list[Dumped] = field(default_factory=list)
    error: BaseException | None = None
    """What the script raised."""
    compared: list[verify.Compared] = field(default_factory=list)
    """What a model of the file returned, against its plain version."""
    one_of_several: bool = False
    """The file has other kernels, which are run too."""

    @property
    def passed(self) -> bool:
        """No fault, no error, no wrong value."""
        wrong = any(one.verdict is not None and one.verdict.passed is False for one in self.launches)
        wrong |= any(one.wrong for one in self.compared)
        return not (self.faults or self.error or wrong)


@dataclass
class Refused:
    """A kernel of several in a file that could not be run."""

    file: Path
    kernel: str
    why: str
    passed: bool = False


def interpret(where: str, options: Options) -> int:
    """The same kernel in Triton's interpreter, in a process that has the terminal, so that ``breakpoint()`` and
    ``print`` in the kernel work; the exit code.

    Raises:
        KernelFileError: as :func:`run`; or a stored kernel, which has no Python to interpret.
    """
    from kernbench.cli import kernel_interpret

    path, name = files.split(where)
    name = options.kernel or name
    if path.suffix != ".py":
        raise KernelFileError(f"{path}: is a stored kernel, which has no Python source to interpret")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    if not name and not options.arguments and not options.grid and files.launches_itself(path):
        command = [sys.executable, "-W", "ignore", "-m", "kernbench.triton", str(path)]
        return subprocess.run(command, env=environment | {"MPLBACKEND": "Agg"}).returncode
    target = machines.target_of(path, options)
    with machines.open_machine(options, target), tempfile.TemporaryDirectory(prefix="kernbench-") as made:
        module = files.definitions(path)
        kernel = files.choose(path, module, name)
        inputs, meta_of, _ = _prepare(path, kernel, module, options, Trial())
        meta = meta_of(next((c.kwargs for c in getattr(kernel, "configs", None) or []), {}))
        grid = inputs.grid(meta) if callable(inputs.grid) else inputs.grid
        function = files.function_of(kernel)
        args = {n: meta[n] for n in function.arg_names if n in meta}
        try:
            kernel_interpret.write_job(Path(made), path, function.__name__, grid, args, target, inputs.described(meta))
        except kernel_interpret.CannotInterpret as no:
            raise KernelFileError(f"{path}: Triton's interpreter cannot be given this launch: {no}") from None
        command = [sys.executable, "-m", "kernbench.cli.kernel_interpret", made, "--show"]
        return subprocess.run(command, env=environment | {"KERNBENCH_IMPERSONATE": ""}).returncode


def run_all(where: str, options: Options) -> Iterator[Ran | Refused]:
    """:func:`run`, of every kernel of a file that has several where nothing asks for one of them.

    Raises:
        KernelFileError: as :func:`run`. Where there are several kernels, one that cannot be run is a :class:`Refused`.
    """
    path, name = files.split(where)
    name = options.kernel or name
    if path.suffix == ".py" and not (name or options.arguments or options.grid or files.launches_itself(path)):
        target = machines.target_of(path, options)
        with machines.open_machine(options, target):
            names = files.entries(path, files.definitions(path))
        if len(names) > 1:
            for one in names:
                try:
                    ran = run(f"{where}:{one}", options)
                    ran.one_of_several = True
                    yield ran
                except (KernelFileError, KernelError) as error:
                    yield Refused(path, one, str(error))
            return
    yield run(where, options)


def run(where: str, options: Options) -> Ran:
    """Run what ``where`` names; see :class:`Ran`.

    Raises:
        KernelFileError: the file, an argument or the grid cannot be used.
        KernelError: the kernel uses an operation that KernBench does not run.
    """
    path, name = files.split(where)
    name = options.kernel or name
    if path.suffix != ".py":
        ran = _stored(path, options)
    elif not name and not options.arguments and not options.grid and files.launches_itself(path):
        ran = _script(path, options)
    else:
        ran = _kernel(path, name, options)
    if options.dumps and not ran.dumped and not ran.faults:
        ran.notes.append("nothing was dumped: no program that was asked for came there, or not as often")
    return ran


# One kernel.


def _stored(path: Path, options: Options) -> Ran:
    """A ``.ttir`` file: its arguments are given, all of them."""
    from kernbench.kernels import bundle

    kernel = bundle.read(path)
    values = machines.arguments(options)[0]
    unknown = [n for n in values if n not in kernel.arg_names]
    missing = [n for n in kernel.arg_names if n not in values]
    if unknown:
        raise KernelFileError(f"{kernel.name} has no argument '{unknown[0]}'; it takes {', '.join(kernel.arg_names)}")
    if missing:
        types = dict(zip(kernel.arg_names, (arg.type for arg in kernel.function.args), strict=True))
        example = " ".join(f"--arg {n}={_example(types[n])}" for n in missing)
        raise KernelFileError(
            f"{kernel.name} needs {', '.join(missing)}: say what to generate (dtype and shape) or a number, such as\n"
            f"  kernbench kernel run {path} {example}"
        )
    sizes = files.grid(options.grid or "1", kernel.constexprs | values)
    inputs = Inputs(values, dict.fromkeys(values, "given"), grid=sizes)

    def start(args: Mapping[str, Any]) -> None:
        launch(kernel, sizes, [args[n] for n in kernel.arg_names])

    ran = Ran(path, "inputs", options.topology, tcm=kernel.tcm)
    _attempt(ran, kernel.name, inputs, start, options, "")
    if ran.launches:
        ran.launches[0].grid = sizes
        ran.launches[0].verdict = verify.Verdict("", "a stored kernel has no source to interpret")
    return ran


def _example(kind: Type) -> str:
    """Something that an argument of a type can be."""
    if isinstance(kind, Pointer):
        return f"{record_dtype(kind.pointee)}[1024]"
    return "1024" if record_dtype(kind).startswith("i") else "0.5"


def _kernel(path: Path, name: str, options: Options) -> Ran:
    target = machines.target_of(path, options)
    with machines.open_machine(options, target):
        module = files.definitions(path)
        kernel = files.choose(path, module, name)
    function = files.function_of(kernel)
    known = list(function.arg_names)
    unknown = [n for n in options.arguments if n not in known]
    if unknown:
        raise KernelFileError(f"{function.__name__} has no argument '{unknown[0]}'; it takes {', '.join(known)}")
    if ranks.communicates(function):
        call = calls.find(files.parse(path), function.__name__, function.arg_names, vars(module))
        ran = Ran(path, "inputs", options.topology)
        given = machines.arguments(options)[0]
        return ranks.run(ran, kernel, given, call, options, lambda: machines.open_machine(options, target))
    with configs.fewer(kernel) as told:
        ran = trials.run(lambda trial: _on_inputs(path, kernel, module, options, target, trial))
    ran.notes += [told] if told else []
    return ran


def _on_inputs(path: Path, kernel: Any, module: Any, options: Options, target: str, trial: Trial) -> tuple[Ran, Inputs]:
    """Make inputs and run the kernel on them."""
    function = files.function_of(kernel)
    ran = Ran(path, "inputs", options.topology)
    progress.step(f"{function.__name__}: making up inputs{trial}")
    with machines.open_machine(options, target):
        inputs, meta_of, lower = _prepare(path, kernel, module, options, trial)

    def start(args: Mapping[str, Any]) -> None:
        described = inputs.described(meta_of({}))
        kernel[inputs.grid](**{n: described[n].around(v) if n in described else v for n, v in args.items()})

    progress.step(f"{function.__name__}: running{trial}")
    _attempt(ran, function.__name__, inputs, start, options, target)
    progress.step(f"{function.__name__}: computing the values once more, to compare them")
    return _finish(ran, kernel, function, module, meta_of, lower, target, options), inputs


def _prepare(path: Path, kernel: Any, module: Any, options: Options, trial: Trial) -> tuple[Inputs, Any, Any]:
    """The inputs; a function from constexprs as tuned to all arguments; a function from those to the lowered kernel."""
    given, fills = machines.arguments(options)
    origin, told = "given", dict[str, Described]()
    makers = (
        ("inputs", "make_inputs") if hasattr(module, "get_init_inputs") else ("inputs", "make_inputs", "get_inputs")
    )
    make = next((getattr(module, n) for n in makers if hasattr(module, n)), None)
    if make is not None and not given:
        made = make()
        function = files.function_of(kernel)
        given = dict(made) if isinstance(made, Mapping) else dict(zip(function.arg_names, made, strict=False))
        told = {n: Described.given(v) for n, v in given.items() if hasattr(v, "block_shape")}
        given = {n: machines.as_array(v.base if n in told else v) for n, v in given.items()}
        origin = f"{make.__name__}()"
    function = files.function_of(kernel)
    call = calls.find(files.parse(path), function.__name__, function.arg_names, vars(module))
    guess = Guess(kernel, given, options.kind, trial, call, told)
    inputs = guess.make(np.random.default_rng(options.seed))
    inputs.origin.update({n: origin for n in given if inputs.origin.get(n) == "given"})
    for name, fill in fills.items():
        if isinstance(inputs.values.get(name), np.ndarray):
            old = inputs.values[name]
            shape = ",".join(map(str, old.shape))
            inputs.values[name] = files.value(f"{dtype(old.dtype).name}[{shape}]:{fill}", np.random.default_rng(0))
            inputs.origin[name] = fill
    inputs.unwritten |= {n for n, text in options.arguments.items() if text.rpartition(":")[2] == "empty"}
    own = getattr(module, "grid", None)
    if options.grid:
        inputs.grid = lambda meta: files.grid(options.grid, meta)
    elif callable(own) or isinstance(own, tuple):
        inputs.grid = own

    def meta_of(tuned: Mapping[str, Any]) -> dict[str, Any]:
        args = {**guess.tuned, **inputs.values, **tuned}
        for name, fn in guess.heuristics:
            args[name] = fn(args)
        return args

    return inputs, meta_of, guess.lower


def _finish(
    ran: Ran, kernel: Any, function: Any, module: Any, meta_of: Any, lower: Any, target: str, options: Options
) -> Ran:
    """What is worked out after the launch: constexprs as tuned, scratchpad, are the values right."""
    (done,) = ran.launches
    tuned: dict[str, Any] = {}
    outer = kernel
    while outer is not function:
        best = getattr(outer, "best_config", None)
        tuned.update(best.kwargs if best is not None else {})
        outer = outer.fn
    with machines.open_machine(options, target):  # heuristics and grids may ask for the GPU
        meta = meta_of(tuned)
        before = {**{n: meta[n] for n in function.arg_names if n in meta}, **done.before}
        grid = done.inputs.grid if done.inputs is not None else (1,)
        done.grid = tuple(grid(meta)) if callable(grid) else tuple(grid)
        lowered = lower(meta)
    ran.tcm = lowered.tcm
    inside = verify.types_in(lowered.text)
    described = done.inputs.described(meta) if done.inputs is not None else {}
    done.before = before
    if not options.verify or not done.after:
        return ran
    if any("race" in fault for fault in ran.faults):
        done.verdict = verify.Verdict("", "programs race, so there is no right value")
        return ran
    reference = getattr(module, "reference", None)
    if callable(reference):
        done.verdict = verify.against_reference(reference, before, done.after, inside)
    else:
        done.verdict = verify.against_interpreter(
            ran.file, function.__name__, done.grid, before, done.after, inside, target, options.seconds, described
        )
    return ran


def _attempt(
    ran: Ran, name: str, inputs: Inputs, start: Callable[[Mapping[str, Any]], None], options: Options, target: str
) -> None:
    """Launch with the checks on; where a check finds something, again without, for values and time."""
    before = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in inputs.values.items()}
    for checked in (True, False) if options.check else (False,):
        args = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in before.items()}
        with ExitStack() as stack:
            ctx = stack.enter_context(machines.open_machine(options, target))
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            known = len(_tunings())
            if checked:
                stack.enter_context(sanitize.enabled())
                _forget(args, inputs.unwritten)
            try:
                with options.dumping() as dumped:
                    start(args)
            except KernelFault as fault:
                if str(fault) not in ran.faults:  # one that is found with and without the checks
                    ran.faults.append(str(fault))
                if not checked or "out of bounds" in str(fault):
                    ran.launches = [Launched(name, (), before, {}, inputs)]
                    return
                continue
            finally:
                ran.notes += [str(w.message) for w in caught if issubclass(w.category, sanitize.NumericWarning)]
            ran.timeline = ctx.timeline()
            ran.tunings = _tunings()[known:]
            ran.dumped = [d for d in dumped if d.launch is dumped[-1].launch]  # not those of autotuning
            ran.tcm_capacity = ctx.target.tcm_capacity
            ran.records = _records(ctx)
        arrays = {n: v for n, v in args.items() if isinstance(v, np.ndarray)}
        ran.launches = [Launched(name, (), before, arrays, inputs)]
        return


def _forget(args: Mapping[str, Any], unwritten: set[str]) -> None:
    """Let the checks know which arrays hold nothing yet."""
    from kernbench.kernels import foreign

    device = devices.current()
    names = [n for n in sorted(unwritten) if isinstance(args.get(n), np.ndarray)]
    for address in foreign.place([args[n] for n in names], names, [], device, ""):
        found = device.space.find(address)
        if found is not None:
            found.forget()


def _tunings() -> list[Any]:
    """All tunings so far; Triton may not have been imported at all."""
    tuning = sys.modules.get("kernbench.kernels.triton_backend.tuning")
    return [] if tuning is None else list(tuning.tunings)


def _records(ctx: Any) -> list[Any]:
    return [c.kernel for commands in ctx.engine.log.commands for c in commands if hasattr(c, "kernel")]


# The file itself.


def _script(path: Path, options: Options) -> Ran:
    """Run a file as ``python FILE`` would, with its kernels in KernBench."""
    ran = Ran(path, "script", options.topology)
    target = options.impersonate or "cuda:90"
    progress.step(f"running {path.name}")
    taken: dict[str, Launched] = {}
    with ExitStack() as stack:
        ctx = stack.enter_context(machines.open_machine(options, target))
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        if options.check:
            stack.enter_context(sanitize.enabled())
        stack.enter_context(_taking(taken))
        ran.dumped = stack.enter_context(options.dumping())
        stack.enter_context(_arguments_of(path))
        known = len(_tunings())
        try:
            names = runpy.run_path(str(path), run_name="__main__")
            if model.is_one(files.parse(path)):
                ran.compared = [verify.compare(*found) for found in model.run(names, options.seed)]
        except KernelFault as fault:
            ran.faults.append(str(fault))
        except SystemExit as end:
            if end.code:
                ran.error = end
        except Exception as error:
            ran.error = error
        ran.notes += [str(w.message) for w in caught if issubclass(w.category, sanitize.NumericWarning)]
        ran.tunings = _tunings()[known:]
        ran.tcm_capacity = ctx.target.tcm_capacity
        ran.records = _records(ctx)
        if ran.records:
            ran.timeline = ctx.timeline()
    ran.launches = list(taken.values())
    if not ran.launches and not ran.faults and ran.error is None:
        raise KernelFileError(
            f"{path}: ran to its end and launched no kernel: --kernel NAME runs one on inputs that are made up"
        )
    inside = verify.types_in(path.read_text(encoding="utf-8"))
    for one in ran.launches if options.verify else []:
        if one.after:
            progress.step(f"{one.kernel}: computing the values once more, to compare them")
            one.verdict = verify.against_interpreter(
                path, one.kernel, one.grid, one.before, one.after, inside, target, options.seconds
            )
    return ran


@contextmanager
def _arguments_of(path: Path) -> Iterator[None]:
    """``sys.argv`` and ``sys.path`` as for a script, and no window for its plots."""
    import os

    argv, search, backend = sys.argv, list(sys.path), os.environ.get("MPLBACKEND")
    sys.argv, sys.path[:] = [str(path)], [str(path.parent.resolve()), *search]
    os.environ["MPLBACKEND"] = "Agg"
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, search
        os.environ.pop("MPLBACKEND") if backend is None else os.environ.__setitem__("MPLBACKEND", backend)


@contextmanager
def _taking(taken: dict[str, Launched]) -> Iterator[None]:
    """Keep the arguments of the first launch of each kernel that does not try a configuration, before and after."""
    import triton

    from kernbench.kernels.triton_backend import tuning

    run = triton.runtime.JITFunction.run

    def watched(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        name = self.fn.__name__
        if warmup or name in taken or tuning.is_trial():
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)
        bound = {p.name: p.default for p in self.params if p.has_default}
        bound |= dict(zip(self.arg_names, args, strict=False)) | {
            n: v for n, v in kwargs.items() if n in self.arg_names
        }
        sizes = tuple(int(n) for n in (grid(bound) if callable(grid) else grid))
        arrays = {n: machines.as_array(v) for n, v in bound.items()}
        arrays = {n: v for n, v in arrays.items() if isinstance(v, np.ndarray)}
        small = sum(v.nbytes for v in arrays.values()) <= LARGEST and int(np.prod(sizes)) <= MOST_PROGRAMS
        before = {n: arrays[n].copy() if n in arrays else _plain(v) for n, v in bound.items()} if small else {}
        made = run(self, *args, grid=grid, warmup=warmup, **kwargs)
        if name not in taken:
            taken[name] = Launched(name, sizes, before, {n: v.copy() for n, v in arrays.items()} if small else {})
        return made

    triton.runtime.JITFunction.run = watched
    try:
        yield
    finally:
        triton.runtime.JITFunction.run = run


def _plain(value: Any) -> Any:
    return getattr(value, "value", value) if type(value).__name__ == "constexpr" else value
