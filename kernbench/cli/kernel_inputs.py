"""Inputs for a kernel of which nobody said more than its source.

What is known of a parameter (a default, an autotuner's configuration, its role in the source) is used; sizes are chosen
so that they are no multiples of the blocks; the kernel's addresses then say how large each array is, how its strides
are laid out, and how many programs there are (:mod:`kernbench.kernels.survey`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from kernbench.cli import kernel_contents as contents
from kernbench.cli import kernel_descriptors as descriptors
from kernbench.cli import kernel_repair as repairs
from kernbench.cli.kernel_descriptors import Described
from kernbench.cli.kernel_files import KernelFileError
from kernbench.cli.kernel_numbers import Numbers, is_size
from kernbench.cli.kernel_trials import SMALLEST, TooMuch
from kernbench.kernels import Kernel, bundle
from kernbench.kernels.endless import SurveyError
from kernbench.kernels.errors import KernelError, KernelFault
from kernbench.kernels.survey import Reach, Survey, TooLong, survey
from kernbench.memory import DType, dtype

TRITON_TYPES = {
    "f64": "fp64",
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f8e4m3": "fp8e4nv",
    "f8e5m2": "fp8e5",
    "i1": "i1",
    "u8": "u8",
} | {f"i{n}": f"i{n}" for n in (8, 16, 32, 64)}
FAR = contents.WRAP
"""The stride in elements under which an axis can be told from everything else in an address."""
FAR_IN_32_BITS = 1 << 17
"""The same for a stride that is a constexpr, with which offsets are multiplied in 32 bits."""
FAR_OFF = 64
"""How many times a contiguous tensor's stride another one has to be to be taken for a mistake of ours."""
MANY = (1024, 128)
"""Programs along an axis among which the one that stores last is looked for; the second where they do much."""
MUCH_TO_SURVEY = 1 << 25
"""Elements that many programs may load and store while they are looked at."""
MANY_ELEMENTS, MOST_ELEMENTS = 1 << 24, 1 << 27
"""Of an array that is made up: above the first, small sizes are tried."""
MUCH_WORK = 1 << 26
"""Elements loaded and stored by all configurations above which smaller sizes are tried."""
LOCK_BYTES = 1 << 26
"""Zeros behind a pointer that atomics wait on, until its size is known."""


@dataclass
class Inputs:
    """Arguments of a launch, and where each comes from."""

    values: dict[str, Any]
    """By parameter; numpy arrays for pointers. What an autotuner or a heuristic fills in is left out."""
    origin: dict[str, str] = field(default_factory=dict)
    """``given``, ``default``, ``generated``, ``output``, ``config``..."""
    unwritten: set[str] = field(default_factory=set)
    """Arrays that the kernel only writes: reading one of them would be reading what nobody wrote."""
    grid: Any = (1,)
    """Sizes, or a function of all arguments (constexprs included) that gives them."""
    indices: list[str] = field(default_factory=list)
    """Arrays of made-up integers that decide where the kernel reads and writes."""
    free: bool = False
    """Nothing told how many programs there are."""
    described: Callable[[Mapping[str, Any]], dict[str, Described]] = lambda meta: {}
    """From constexprs as tuned to the arrays of which the kernel gets descriptors."""


class Guess(Numbers):
    """Works out what is missing of a kernel's arguments: beside the numbers, the grid, the strides and the arrays."""

    def __init__(self, *known: Any, **named: Any) -> None:
        super().__init__(*known, **named)
        self.work = 0
        """Elements that the launch loads and stores."""
        self._lowered: dict[Any, Kernel] = {}
        self._grids: dict[Any, tuple[int, ...]] = {}

    def compile(self) -> None:
        """Change what was made up, where the kernel does not compile with it."""
        self._compile()

    def arguments(self) -> dict[str, Any]:
        """All arguments, constexprs included, but for strides; arrays that do not exist yet are empty."""
        return self._meta(self.tuned, dict.fromkeys(self._stride_names, 1))

    def _meta(self, tuned: Mapping[str, Any], strides: Mapping[str, int]) -> dict[str, Any]:
        """All arguments, constexprs and heuristics included; arrays that do not exist yet are empty."""
        known = {n: v if isinstance(v, np.ndarray | None) else np.empty(0, v.storage) for n, v in self.pointers.items()}
        args = {**known, **self.scalars, **self.constants, **strides, **tuned}
        for name, rank in self._ranks.items():
            shape = self.told[name].shape if name in self.told else (descriptors.WHOLE,) * rank
            args |= zip(descriptors.shape_of(name, rank), shape, strict=True)
        for name, fn in self.heuristics:
            try:
                args[name] = fn(args)
            except KeyError as missing:  # it looks at what a launch gives under its own name
                if missing.args != (name,):
                    raise
                args[name] = self.constants[name] = self._known(name, lambda n=name: self._constant(n, 1))
                args[name] = fn(args)
        return args

    def lower(self, meta: Mapping[str, Any]) -> Kernel:
        """The kernel for arguments, constexprs included."""
        types, constants = {}, {}
        for name in self.function.arg_names:
            value = meta[name]
            if name in self._ranks:
                block = ",".join(map(str, self._blocks(meta)[name]))
                types[name] = f"tensordesc<{TRITON_TYPES[dtype(value.dtype).name]}[{block}]>"
            elif name in self.pointers and value is not None:
                types[name] = "*" + TRITON_TYPES[dtype(value.dtype).name]
            elif name in self.roles.constexprs or value is None:
                constants[name] = value
            elif isinstance(value, bool):
                types[name] = "i1"
            elif isinstance(value, int):
                types[name] = "i64" if name in self.strides else "i32"
            else:
                types[name] = "fp32"
        key = (tuple(types.items()), tuple((n, str(v)) for n, v in constants.items()))
        if key not in self._lowered:
            try:
                self._lowered[key] = bundle.lower(self.function, types, constants)
            except RuntimeError as error:
                if type(error) is not RuntimeError:
                    raise
                raise KernelFileError(self._cannot(f"Triton made no valid code for them: {error}")) from error
        return self._lowered[key]

    def _blocks(self, meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The block of each descriptor.

        Raises:
            KernelFileError: nothing tells one.
        """
        config = next((c for c in self.configs if all(meta.get(n) == v for n, v in c.kwargs.items())), None)
        found = descriptors.blocks(self.function, self.roles, self.call, config, meta)
        known: dict[str, tuple[int, ...]] = {}
        for name, block in {**found, **{n: d.block for n, d in self.told.items()}}.items():
            if block is None:
                raise KernelFileError(
                    f"{self.function.__name__}: '{name}' is a host tensor descriptor, and nothing in the file says "
                    "which blocks it moves: give the file a function inputs() that returns the arguments as a dict, "
                    f"with '{name}': TensorDescriptor.from_tensor(tensor, block_shape=[...])"
                )
            known[name] = block
        return known

    @cached_property
    def _ranks(self) -> dict[str, int]:
        """Axes of each descriptor."""
        missing = {n: self.tuned.get(n) for n, _ in self.heuristics}
        return {n: len(b) for n, b in self._blocks({**missing, **self.constants, **self.tuned}).items()}

    @property
    def _stride_names(self) -> list[str]:
        """Parameters that are strides, and the strides behind descriptors."""
        behind = [n for name, rank in self._ranks.items() for n in descriptors.strides_of(name, rank)]
        return [n for n in self.function.arg_names if n in self.strides] + behind

    @property
    def _told_strides(self) -> dict[str, int]:
        """Of descriptors that are given, their strides."""
        names = {n: descriptors.strides_of(n, len(told.shape)) for n, told in self.told.items()}
        return {s: v for n, told in self.told.items() for s, v in zip(names[n], told.strides, strict=True)}

    def _survey(self, meta: Mapping[str, Any], grid: tuple[int, ...], most: int | None = None) -> Survey:
        kernel = self.lower(meta)
        x, y, z = (*grid, 1, 1)[:3]
        while True:
            try:
                return survey(kernel, (x, y, z), meta, self._contents, most)
            except TooLong as long:
                raise TooMuch(self._cannot(str(long))) from None
            except SurveyError as missing:
                name = str(missing)
                if name not in self.pointers or name in self._contents:
                    raise KernelFileError(self._cannot(f"{missing}")) from None
                self.roles.indices.add(name)
                self._contents[name] = self._formula(name)

    def _cannot(self, reason: str) -> str:
        return (
            f"{self.function.__name__}: no inputs can be made up ({reason}): say them, as in --arg x_ptr=f32[1024], or "
            "give the file a function inputs() that returns the arguments as a dict"
        )

    @cached_property
    def _contents(self) -> dict[str, Any]:
        """Arrays or formulas behind pointers whose values addresses may depend on."""
        found: dict[str, Any] = {
            n: v for n, v in self.pointers.items() if isinstance(v, np.ndarray) and v.dtype.kind in "iub"
        }
        return found | {n: np.zeros(LOCK_BYTES, np.uint8) for n in self.roles.counters if n not in found}

    def _formula(self, name: str) -> Any:
        return contents.KINDS[self.trial.integers or contents.kind_of(name, self.roles)]

    def grid(self, tuned: Mapping[str, Any]) -> tuple[int, ...]:
        """Programs along each axis for a configuration."""
        strides = {n: self.given.get(n, 1 << 20) for n in self._stride_names} | self._told_strides
        meta = self._meta(tuned, strides)
        key = tuple((n, str(meta[n])) for n in self.roles.constexprs)
        if key not in self._grids:
            self._grids[key] = self._find_grid(meta)
        return self._grids[key]

    def _find_grid(self, meta: Mapping[str, Any]) -> tuple[int, ...]:
        sizes = [1] * (max(self.roles.axes, default=0) + 1)
        idle = [
            v for n, v in self.scalars.items() if n in self.roles.integers and n not in self.roles.used and v <= MANY[0]
        ]
        asked = self.call.grid(meta)[:3]
        sizes += [1] * (len(asked) - len(sizes))
        for axis in sorted({*self.roles.axes, *range(len(asked))}):
            if axis < len(asked) and (number := asked[axis]) is not None:
                sizes[axis] = number
                continue
            found, many = self._probe(meta, axis, len(sizes))
            if found > many - many // 16:  # all of them, or every so manieth
                found = (
                    1
                    if self.trial.narrow
                    else idle.pop()
                    if idle
                    else self._rows()
                    if axis == 0
                    else self.unbounded[axis]
                )
                self.free.add(found)
            elif self.roles.persistent:
                found = min(found, 8)
            sizes[axis] = max(1, found)
        return tuple(sizes)

    def _probe(self, meta: Mapping[str, Any], axis: int, axes: int) -> tuple[int, int]:
        """(programs along an axis that do anything, how many were tried)."""
        for many in MANY:
            try:
                grid = tuple(many if i == axis else 1 for i in range(axes))
                endless = many == MANY[-1] and self.trial.small == SMALLEST
                seen = self._survey(meta, grid, None if endless else MUCH_TO_SURVEY)
            except KernelFault:
                return many, many  # an array that is known ends before so many programs
            except TooMuch:
                if many == MANY[-1]:
                    raise
                continue
            last = seen.last_store if seen.last_load < 0 else min(seen.last_store, seen.last_load)
            return last + 1, many
        raise AssertionError("the last of them returned or raised")

    def _rows(self) -> int:
        """Programs along the first axis where each has a row of its own."""
        rows = {len(v) for v in self.given.values() if isinstance(v, np.ndarray) and v.ndim > 1}
        return rows.pop() if len(rows) == 1 else self.unbounded[0]

    @cached_property
    def free(self) -> set[int]:
        """Grid sizes that were chosen freely."""
        return set()

    def make(self, rng: np.random.Generator) -> Inputs:
        """The arguments."""
        try:
            return self._make(rng)
        except KernelFault as fault:
            raise KernelFileError(self._cannot(str(fault))) from fault
        except (KernelFileError, KernelError):
            raise
        except Exception as error:
            if type(error).__module__.startswith("triton.compiler"):
                if hint := repairs.explain(error):
                    raise KernelFileError(f"{self.function.__name__} does not compile: {hint}\n{error}") from error
                found = ", ".join(f"{n}={_short(v)}" for n, v in self._meta(self.tuned, {}).items() if n in self.origin)
                why = error if error.__cause__ is None else error.__cause__
                raise KernelFileError(
                    f"{self.function.__name__} does not compile with the inputs that were made up ({found}):\n"
                    f"{error}\n{why if why is not error else ''}\n"
                    "Say what it needs, as in --arg x_ptr=i32[1024] or --arg BLOCK=128"
                ) from error
            raise

    def _make(self, rng: np.random.Generator) -> Inputs:
        self._compile()
        strides = self._stride_names
        fixed = {n: self._known(n, int) for n in strides if n in self.given or self._has_default(n)}
        fixed |= self._told_strides
        grid = self.grid(self.tuned)
        seen, still, along = self._extents([n for n in strides if n not in fixed], fixed, grid)
        if self.trial.small < SMALLEST and self.work * max(1, len(self.configs)) > MUCH_WORK:
            raise TooMuch(self._cannot("its run would take too long"))
        chosen = self._strides([n for n in strides if n not in fixed], still, along)
        tables = {s for n in seen if callable(self._contents.get(n)) for s in along[n]}
        if tables:  # what lies in a table shows only once its own strides are right
            fixed |= {n: chosen[n] for n in tables}
            seen, still, along = self._extents([n for n in strides if n not in fixed], fixed, grid)
            chosen = {n: fixed[n] for n in tables} | self._strides([n for n in strides if n not in fixed], still, along)
        values = {**self.scalars, **self.constants, **fixed, **chosen}
        for name in chosen:
            self.origin[name] = "generated"
        made = Inputs(
            values, self.origin, indices=[n for n in seen if callable(self._contents.get(n))], free=bool(self.free)
        )
        behind: dict[str, tuple[list[int], DType]] = {}
        for name, kind in self.pointers.items():
            if not isinstance(kind, DType):
                values[name] = kind
                reach = seen.get(name)
            else:
                reach = seen.get(name, Reach())
                if name in self._ranks:
                    lengths = self._lengths(name, along.get(name, {}))
                    behind[name] = (lengths, kind)
                    whole = Described.of(lengths, kind, ()).allocated
                    values[name] = self._filled(name, reach, list(whole), rng)
                else:
                    values[name] = self._array(
                        name, reach, still.get(name, 1), along.get(name, {}), fixed | chosen, rng
                    )
            only_written = reach is not None and reach.writes and not reach.reads and not reach.atomics
            if only_written and self.origin[name] == "generated":
                made.unwritten.add(name)
                self.origin[name] = "output"
        self._grow(values, made.unwritten, grid, rng)
        made.values = {n: values[n] for n in self.function.arg_names if n in values}
        made.described = lambda meta: (
            {name: Described.of(lengths, kind, self._blocks(meta)[name]) for name, (lengths, kind) in behind.items()}
            | self.told
        )
        made.grid = grid if not (self.configs or self.heuristics) else self._grid_of
        return made

    def _compile(self) -> None:
        """Change what was made up, where the kernel does not compile with it."""
        ones = dict.fromkeys(self._stride_names, 1 << 20)
        names = self.pointers, self.scalars, self.constants
        made = [(where, n) for where in names for n in where if self.origin.get(n) == "generated"]
        floats = [(w, n) for w, n in made if isinstance(w[n], DType) and w[n].is_floating_point]
        wide = [(w, n) for w, n in made if isinstance(w[n], DType) and w[n].name == "i64"]
        told = {n for _, n in floats if self.call.dtype(n)}
        left_out = [n for n, v in self.pointers.items() if v is None and self.origin[n] != "given"]

        def changes() -> Iterator[list[repairs.Change]]:
            if self.kind.name == "f32":
                for kind in ("f16", "bf16"):
                    yield [(w, n, dtype(kind)) for w, n in floats if n not in told]
            yield [(self.pointers, n, self._type_of(n)) for n in left_out]
            yield [(w, n, dtype("i32")) for w, n in wide if not self.call.dtype(n)]
            yield [(w, n, 3) for w, n in made if isinstance(w[n], float)]
            for where, name in made:
                if where is self.constants:
                    yield from ([(where, name, other)] for other in repairs.others(where[name]))
                elif isinstance(where[name], float):
                    yield [(where, name, 3)]
                elif isinstance(where[name], DType):
                    yield from ([(where, name, dtype(kind))] for kind in ("f16", "i32", "i8", "bf16", "f8e4m3"))

        repairs.repair(lambda: self.lower(self._meta(self.tuned, ones)), changes)

    def _grow(
        self, values: dict[str, Any], unwritten: set[str], grid: tuple[int, ...], rng: np.random.Generator
    ) -> None:
        """Let arrays reach as far as the integers that were made up lead into them."""
        held = {n: values[n] for n in self._contents if isinstance(self.pointers[n], DType)}
        if not held:
            return
        formulas, self._contents = self._contents, self._contents | held
        try:
            reach = self._survey({**self._meta(self.tuned, {}), **values}, grid).reach
        except KernelFault:
            return  # the kernel leaves one of them, which its run will show
        finally:
            self._contents = formulas
        for name, kind in self.pointers.items():
            if not isinstance(kind, DType) or name in held or name not in reach:
                continue
            count = self._natural(max(1, reach[name].high // kind.itemsize))
            if count > values[name].size:
                values[name] = self._array(name, reach[name], count, {}, {}, rng)

    def _lengths(self, name: str, along: Mapping[str, int]) -> list[int]:
        """The shape of the array behind a descriptor, from how far its blocks reach along each stride."""
        found = [along.get(stride, 1) for stride in descriptors.strides_of(name, self._ranks[name])]
        told = [descriptors.length_of(name, axis, self.call) for axis in range(len(found))]
        return [known or reached for known, reached in zip(told, found, strict=True)]

    def _has_default(self, name: str) -> bool:
        return any(p.name == name and p.has_default for p in self.function.params)

    def _grid_of(self, meta: Mapping[str, Any]) -> tuple[int, ...]:
        return self.grid({n: meta[n] for n in self.tuned if n in meta})

    def _extents(
        self, strides: list[str], fixed: Mapping[str, int], grid: tuple[int, ...]
    ) -> tuple[dict[str, Reach], dict[str, int], dict[str, dict[str, int]]]:
        """What is touched; the elements of each pointer that no stride moves; and its extent along each stride."""
        none = dict.fromkeys(strides, 0)
        most = MUCH_WORK // max(1, len(self.configs)) if self.trial.small < SMALLEST else None
        first = self._survey(self._meta(self.tuned, {**fixed, **none}), grid, most)
        seen, self.work = first.reach, first.elements
        widths = {n: self._width(n) for n in seen}
        still = {n: self._natural(max(1, reach.high // widths[n])) for n, reach in seen.items()}
        along: dict[str, dict[str, int]] = {n: {} for n in seen}
        for stride in strides:
            step = FAR_IN_32_BITS if stride in self.roles.constexprs else FAR
            far = self._survey(self._meta(self.tuned, {**fixed, **none, stride: step}), grid).reach
            for name, reach in far.items():
                last = (reach.high // widths[name] - 1) // step
                if last > 0:
                    along[name][stride] = self._natural(last + 1)
        return seen, still, along

    def _width(self, name: str) -> int:
        kind = self.pointers[name]
        return kind.itemsize if isinstance(kind, DType) else int(kind.dtype.itemsize)

    def _natural(self, extent: int) -> int:
        """The size that an extent stands for: where a kernel reaches a little over a size or a product of sizes, its
        mask is missing or wrong, and an array of the right size brings that to light."""
        sizes = {v for n, v in self.scalars.items() if n in self.roles.integers and v > 1}
        compared = self.roles.compared
        sizes |= {v for n, v in self.constants.items() if is_size(n) and n in compared and isinstance(v, int) and v > 1}
        blocks = [self._block[0], *self._blocks_of_config]
        block = max(blocks)
        known = sorted(sizes if extent in blocks else sizes | self.free)  # one block is no table of the grid's rows
        if any(extent % size == 0 for size in known if size >= 16):
            return extent  # several rows side by side
        for count in (1, 2, 3):
            products = {int(np.prod(c)) for c in combinations(known, count)}
            if extent in products:
                return extent
        near = [p for p in sizes if 16 <= p < extent <= p + min(block, p)]
        for a, b in combinations(known, 2):
            for rows, width in ((a, b), (b, a)):  # the last row reaches over
                if width >= 16 and rows * width < extent <= rows * width + min(block, width):
                    near.append(rows * width)
        return max(near, default=extent)

    def _in_order(self, names: list[str]) -> list[str]:
        """Strides, the outermost first: by their axes where the host code tells these, else as the parameters stand."""
        told = {n: self.call.stride(n) for n in names}
        if not all(told.values()):
            return names
        ranks: dict[str, int] = {}
        for tensor, axis in filter(None, told.values()):
            ranks[tensor] = max(ranks.get(tensor, 0), axis + 1)
        depth = {n: self.call.host.ranks.get(at[0], ranks[at[0]]) - at[1] for n, at in told.items() if at is not None}
        return sorted(names, key=lambda n: -depth[n])

    def _strides(self, names: list[str], still: dict[str, int], along: dict[str, dict[str, int]]) -> dict[str, int]:
        """Row-major strides, in the order of the parameters."""
        chosen: dict[str, int] = {}
        names = self._in_order(names)
        for i in reversed(range(len(names))):
            name, need = names[i], 1
            for pointer, axes in along.items():
                if name not in axes:
                    continue
                inner = [chosen[later] * axes[later] for later in names[i + 1 :] if later in axes]
                need = max([need, still[pointer] if still[pointer] > 1 else 1, *inner])
            natural = self.call.inside(name)
            chosen[name] = natural if natural is not None and need > FAR_OFF * natural else need
        return chosen

    def _array(
        self,
        name: str,
        reach: Reach,
        still: int,
        axes: dict[str, int],
        strides: Mapping[str, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        shape = [*axes.values(), *([still] if still > 1 or not axes else [])]
        steps = [strides[n] for n in axes] + ([1] if still > 1 or not axes else [])
        order = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
        if steps != order:
            last = sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
            shape = [last + 1]
        if int(np.prod(shape, dtype=np.float64)) > (MOST_ELEMENTS if self.trial.small else MANY_ELEMENTS):
            raise TooMuch(self._cannot(f"'{name}' would have {int(np.prod(shape, dtype=np.float64)):,} elements"))
        return self._filled(name, reach, shape, rng)

    def _filled(self, name: str, reach: Reach, shape: list[int], rng: np.random.Generator) -> np.ndarray:
        kind: DType = self.pointers[name]
        if reach.atomics or (reach.writes and not reach.reads):
            return np.zeros(shape, kind.storage)
        if kind.is_floating_point:
            return rng.standard_normal(shape).astype(kind.storage)
        if name in self.roles.packed and name not in self._contents and kind.name != "i1":
            return contents.packed(int(np.prod(shape)), np.dtype(kind.storage), rng).reshape(shape)
        numbers = self._formula(name)(np.arange(int(np.prod(shape)), dtype=np.int64))
        return (numbers & 1 if kind.name == "i1" else numbers).astype(kind.storage).reshape(shape)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{dtype(value.dtype).name} array"
    return str(value)
