"""Inputs for a kernel of which nobody said more than its source.

What is known of a parameter (a default, an autotuner's configuration, its role in the source) is used; sizes are chosen
so that they are no multiples of the blocks; the kernel's addresses then say how large each array is, how its strides
are laid out, and how many programs there are (:mod:`kernbench.kernels.survey`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from kernbench.cli.kernel_files import KernelFileError, function_of
from kernbench.cli.kernel_roles import Roles, is_stride
from kernbench.cli.kernel_roles import of as roles_of
from kernbench.kernels import Kernel, bundle
from kernbench.kernels.errors import KernelError, KernelFault
from kernbench.kernels.survey import Reach, Survey, SurveyError, survey
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
FAR = 1 << 40
"""The stride in elements under which an axis can be told from everything else in an address."""
MANY = 1024
"""Programs along an axis among which the one that stores last is looked for."""
UNBOUNDED = (64, 4, 2)
"""Programs along an axis whose programs all have work, however many there are."""
MOST_ELEMENTS = 1 << 27
"""Of an array that is made up."""
MODERATE = 256
"""Of an autotuner's configurations, the largest whose numbers are all at most this decides on sizes."""
UNKNOWN_BYTES = 1 << 26
"""Zeros behind a pointer whose values the kernel's addresses depend on, until its size is known."""


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
    odd: bool = True
    """Sizes are no multiples of the blocks."""


class Guess:
    """Works out what is missing of a kernel's arguments.

    Args:
        kernel: the ``@triton.jit`` function, perhaps under ``autotune`` or ``heuristics``.
        given: arguments that are known: numbers, arrays, or a :class:`DType` for a pointer of that type.
        kind: element type of floating-point pointers.
        odd: choose sizes that are no multiples of blocks.
    """

    def __init__(self, kernel: Any, given: Mapping[str, Any], kind: str = "f32", odd: bool = True) -> None:
        self.kernel, self.function = kernel, function_of(kernel)
        self.given, self.kind, self.odd = dict(given), dtype(kind), odd
        self.roles: Roles = roles_of(self.function)
        self.configs: list[Any] = []
        self.heuristics: list[tuple[str, Any]] = []
        outer = kernel
        while outer is not self.function:
            self.configs += getattr(outer, "configs", None) or []
            self.heuristics += list((getattr(outer, "values", None) or {}).items())
            outer = outer.fn
        tunable = [c.kwargs for c in self.configs]
        moderate = [t for t in tunable if all(not isinstance(v, int) or v <= MODERATE for v in t.values())]
        self.tuned: dict[str, Any] = max(moderate or tunable, key=_volume, default={})
        self.origin: dict[str, str] = {}
        self._lowered: dict[Any, Kernel] = {}
        self._grids: dict[Any, tuple[int, ...]] = {}
        if self.roles.descriptors:
            raise KernelFileError(
                f"{self.function.__name__}: '{self.roles.descriptors[0]}' is a host tensor descriptor, for which no "
                "input can be made up: give the file a function inputs() that returns the arguments as a dict"
            )

    # Numbers.

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Constexprs that neither an autotuner nor a heuristic fills in."""
        filled = {*self.tuned, *(name for name, _ in self.heuristics)}
        blocks = [n for n in self.roles.constexprs if self._is_block(n) and n not in self.given]
        found = {}
        for name in self.roles.constexprs:
            if name in filled and name not in self.given:
                self.origin[name] = "filled in"
                continue
            found[name] = self._known(name, lambda n=name: self._constant(n, len(blocks)))
        return found

    def _known(self, name: str, otherwise: Any) -> Any:
        """A parameter's value as given, or its default, or made up."""
        if name in self.given:
            self.origin[name] = "given"
            return self.given[name]
        param = next(p for p in self.function.params if p.name == name)
        if param.has_default:
            self.origin[name] = "default"
            return getattr(param.default, "value", param.default)
        self.origin[name] = "generated"
        return otherwise()

    def _is_block(self, name: str) -> bool:
        return name in self.roles.ranges or "block" in name.lower() or "tile" in name.lower()

    def _constant(self, name: str, blocks: int) -> Any:
        low = name.lower()
        if "dim" in low or low in ("d", "dmodel", "d_model"):
            return 64
        if self._is_block(name):
            return 1024 if blocks + len(self._blocks_of_config) == 1 else 32 if low.endswith("k") else 64
        if low.startswith(
            ("is_", "has_", "use_", "apply_", "even_", "with_", "store_", "return_", "do_", "allow_")
        ) or (low in ("causal", "transpose", "trans_a", "trans_b", "inplace", "reverse", "fp8", "debug")):
            return False
        if low in ("activation", "act"):
            return ""
        if low.endswith(("dtype", "type")):
            import triton.language as tl

            return tl.float32
        if "eps" in low:
            return 1e-5
        if low.startswith("group"):
            return 4
        if low == "stage":
            return 1
        if "stages" in low:
            return 2
        if "num_sms" in low or "num_prog" in low or "warps" in low:
            return 8
        few = ("bins", "experts", "classes", "buckets", "heads")
        if _is_size(name) and not any(word in low for word in few):
            return self._size(name)
        return 16

    @property
    def _blocks_of_config(self) -> list[int]:
        return [v for n, v in self.tuned.items() if self._is_block(n) and isinstance(v, int)]

    @cached_property
    def _block(self) -> tuple[int, bool, bool]:
        """(the largest block, whether there are several, whether programs step by it)."""
        names = [n for n in self.roles.constexprs if self._is_block(n)]
        values = {n: self.tuned.get(n, self.given.get(n)) for n in names}
        for n in names:
            if values[n] is None:
                param = next(p for p in self.function.params if p.name == n)
                values[n] = getattr(param.default, "value", param.default) if param.has_default else None
        unknown = 1024 if len(names) <= 1 else 64
        sizes = [v if isinstance(v, int) else unknown for v in values.values()]
        tiled = bool(self.roles.tiled & set(names)) or not names
        return max(sizes, default=256), len(names) > 1, tiled

    def _size(self, name: str) -> int:
        """The value of an integer parameter that is a size. Sizes differ, so that they can be told from one another."""
        low = name.lower()
        if low in ("z", "b", "h", "batch", "bs", "nheads") or "batch" in low or "head" in low or "group" in low:
            return 2 + self._small_so_far(low)
        block, several, tiled = self._block
        number = self._sized.setdefault(name, len(self._sized))
        if several:
            return (block * 5 // 2 - 16 * number + 8) if self.odd else block * (3 + number)
        if tiled:
            return block * 8 - 24 - 16 * number if self.odd else block * (8 - number)
        return max(1, block - 24 - 16 * number) if self.odd else block

    def _small_so_far(self, low: str) -> int:
        return self._small.setdefault(low, len(self._small)) % 3

    @cached_property
    def _sized(self) -> dict[str, int]:
        return {}

    @cached_property
    def _small(self) -> dict[str, int]:
        return {}

    @cached_property
    def scalars(self) -> dict[str, Any]:
        """Numbers that are no strides."""
        found: dict[str, Any] = {}
        for name in self.roles.integers:
            if not is_stride(name):
                found[name] = self._known(name, lambda n=name: self._integer(n))
        for name in self.roles.floats:
            found[name] = self._known(name, lambda n=name: 1e-5 if "eps" in n.lower() else 0.5)
        return found

    def _integer(self, name: str) -> int:
        low = name.lower()
        if "seed" in low:
            return 7
        if "offset" in low or low.startswith(("start", "begin", "pid")):
            return 0
        arrays = [v for v in self.given.values() if isinstance(v, np.ndarray)]
        sizes = {v.size for v in arrays}
        if len(sizes) == 1 and sum(not is_stride(n) for n in self.roles.integers) == 1:
            return int(sizes.pop())
        return self._size(name) if name in self.roles.used else UNBOUNDED[0]

    @cached_property
    def pointers(self) -> dict[str, Any]:
        """Pointers -> an array, None, or the type of an array that is still to be made."""
        found: dict[str, Any] = {}
        for name in self.roles.pointers:
            param = next(p for p in self.function.params if p.name == name)
            if name in self.given:
                self.origin[name] = "given" if not isinstance(self.given[name], DType) else "generated"
                found[name] = self.given[name]
            elif param.has_default and param.default is None:
                self.origin[name], found[name] = "default", None
            else:
                self.origin[name] = "generated"
                found[name] = dtype(
                    "i32" if name in self.roles.counters else "i64" if name in self.roles.indices else self.kind
                )
        return found

    # The kernel's addresses.

    def _meta(self, tuned: Mapping[str, Any], strides: Mapping[str, int]) -> dict[str, Any]:
        """All arguments, constexprs and heuristics included; arrays that do not exist yet are empty."""
        known = {n: v if isinstance(v, np.ndarray | None) else np.empty(0, v.storage) for n, v in self.pointers.items()}
        args = {**known, **self.scalars, **self.constants, **strides, **tuned}
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
            if name in self.pointers and value is not None:
                types[name] = "*" + TRITON_TYPES[dtype(value.dtype).name]
            elif name in self.roles.constexprs or value is None:
                constants[name] = value
            elif isinstance(value, bool):
                types[name] = "i1"
            elif isinstance(value, int):
                types[name] = "i64" if is_stride(name) else "i32"
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

    def _survey(self, meta: Mapping[str, Any], grid: tuple[int, ...]) -> Survey:
        kernel = self.lower(meta)
        x, y, z = (*grid, 1, 1)[:3]
        while True:
            try:
                return survey(kernel, (x, y, z), meta, self._contents)
            except SurveyError as missing:
                name = str(missing)
                if name not in self.pointers or name in self._contents:
                    raise KernelFileError(self._cannot(f"{missing}")) from None
                self.roles.indices.add(name)
                self._contents[name] = np.zeros(UNKNOWN_BYTES, np.uint8)

    def _cannot(self, reason: str) -> str:
        return (
            f"{self.function.__name__}: no inputs can be made up ({reason}): say them, as in --arg x_ptr=f32[1024], or "
            "give the file a function inputs() that returns the arguments as a dict"
        )

    @cached_property
    def _contents(self) -> dict[str, np.ndarray]:
        found = {n: v for n, v in self.pointers.items() if isinstance(v, np.ndarray) and v.dtype.kind in "iub"}
        for name in self.roles.indices:
            if isinstance(self.pointers.get(name), DType):
                found[name] = np.zeros(UNKNOWN_BYTES, np.uint8)
        return found

    def grid(self, tuned: Mapping[str, Any]) -> tuple[int, ...]:
        """Programs along each axis for a configuration."""
        strides = {n: self.given.get(n, 1 << 20) for n in self.roles.integers if is_stride(n)}
        meta = self._meta(tuned, strides)
        key = tuple((n, str(meta[n])) for n in self.roles.constexprs)
        if key not in self._grids:
            self._grids[key] = self._find_grid(meta)
        return self._grids[key]

    def _find_grid(self, meta: Mapping[str, Any]) -> tuple[int, ...]:
        sizes = [1] * (max(self.roles.axes, default=0) + 1)
        idle = [
            v for n, v in self.scalars.items() if n in self.roles.integers and n not in self.roles.used and v <= MANY
        ]
        for axis in sorted(self.roles.axes):
            probe = [MANY if i == axis else 1 for i in range(len(sizes))]
            try:
                seen = self._survey(meta, tuple(probe))
                found = (seen.last_store if seen.last_load < 0 else min(seen.last_store, seen.last_load)) + 1
            except KernelFault:
                found = MANY  # an array that is known ends before so many programs
            if found >= MANY:
                found = idle.pop() if idle else self._rows() if axis == 0 else UNBOUNDED[axis]
                self.free.add(found)
            elif self.roles.persistent:
                found = min(found, 8)
            sizes[axis] = max(1, found)
        return tuple(sizes)

    def _rows(self) -> int:
        """Programs along the first axis where each has a row of its own."""
        rows = {len(v) for v in self.given.values() if isinstance(v, np.ndarray) and v.ndim > 1}
        return rows.pop() if len(rows) == 1 else UNBOUNDED[0]

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
                found = ", ".join(f"{n}={_short(v)}" for n, v in self._meta(self.tuned, {}).items() if n in self.origin)
                why = error if error.__cause__ is None else error.__cause__
                raise KernelFileError(
                    f"{self.function.__name__} does not compile with the inputs that were made up ({found}):\n"
                    f"{error}\n{why if why is not error else ''}\n"
                    "Say what it needs, as in --arg x_ptr=i32[1024] or --arg BLOCK=128"
                ) from error
            raise

    def _make(self, rng: np.random.Generator) -> Inputs:
        strides = [n for n in self.roles.integers if is_stride(n)]
        fixed = {n: self._known(n, int) for n in strides if n in self.given or self._has_default(n)}
        grid = self.grid(self.tuned)
        seen, still, along = self._extents([n for n in strides if n not in fixed], fixed, grid)
        if any(n in self._contents and isinstance(self.pointers[n], DType) for n in seen):
            for name in [n for n in self._contents if isinstance(self.pointers[n], DType)]:
                count = self._natural(max(1, seen[name].high // self.pointers[name].itemsize))
                numbers = np.zeros(count, np.int64) if seen[name].writes else rng.integers(0, 8, count)
                self.pointers[name] = self._contents[name] = numbers.astype(self.pointers[name].storage)
            self._lowered.clear()
            seen, still, along = self._extents([n for n in strides if n not in fixed], fixed, grid)
        chosen = self._strides([n for n in strides if n not in fixed], still, along)
        values = {**self.scalars, **self.constants, **fixed, **chosen}
        for name in chosen:
            self.origin[name] = "generated"
        made = Inputs(values, self.origin, odd=self.odd)
        for name, kind in self.pointers.items():
            if not isinstance(kind, DType):
                values[name] = kind
                reach = seen.get(name)
            else:
                reach = seen.get(name, Reach())
                values[name] = self._array(kind, reach, still.get(name, 1), along.get(name, {}), fixed | chosen, rng)
            only_written = reach is not None and reach.writes and not reach.reads and not reach.atomics
            if only_written and self.origin[name] == "generated":
                made.unwritten.add(name)
                self.origin[name] = "output"
        made.values = {n: values[n] for n in self.function.arg_names if n in values}
        made.grid = grid if not (self.configs or self.heuristics) else self._grid_of
        return made

    def _has_default(self, name: str) -> bool:
        return any(p.name == name and p.has_default for p in self.function.params)

    def _grid_of(self, meta: Mapping[str, Any]) -> tuple[int, ...]:
        return self.grid({n: meta[n] for n in self.tuned if n in meta})

    def _extents(
        self, strides: list[str], fixed: Mapping[str, int], grid: tuple[int, ...]
    ) -> tuple[dict[str, Reach], dict[str, int], dict[str, dict[str, int]]]:
        """What is touched; the elements of each pointer that no stride moves; and its extent along each stride."""
        none = dict.fromkeys(strides, 0)
        seen = self._survey(self._meta(self.tuned, {**fixed, **none}), grid).reach
        widths = {n: self._width(n) for n in seen}
        still = {n: self._natural(max(1, reach.high // widths[n])) for n, reach in seen.items()}
        along: dict[str, dict[str, int]] = {n: {} for n in seen}
        for stride in strides:
            far = self._survey(self._meta(self.tuned, {**fixed, **none, stride: FAR}), grid).reach
            for name, reach in far.items():
                last = (reach.high // widths[name] - 1) // FAR
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
        sizes |= {v for n, v in self.constants.items() if _is_size(n) and isinstance(v, int) and v > 1}
        block = max([self._block[0], *self._blocks_of_config])
        known = sorted(sizes | self.free)
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

    def _strides(self, names: list[str], still: dict[str, int], along: dict[str, dict[str, int]]) -> dict[str, int]:
        """Row-major strides, in the order of the parameters."""
        chosen: dict[str, int] = {}
        for i in reversed(range(len(names))):
            name, need = names[i], 1
            for pointer, axes in along.items():
                if name not in axes:
                    continue
                inner = [chosen[later] * axes[later] for later in names[i + 1 :] if later in axes]
                need = max([need, still[pointer] if still[pointer] > 1 else 1, *inner])
            chosen[name] = need
        return chosen

    def _array(
        self,
        kind: DType,
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
        if int(np.prod(shape, dtype=np.float64)) > MOST_ELEMENTS:
            raise KernelFileError(
                self._cannot(f"an array would have {int(np.prod(shape, dtype=np.float64)):,} elements")
            )
        if reach.atomics or (reach.writes and not reach.reads):
            return np.zeros(shape, kind.storage)
        return (rng.standard_normal(shape) if kind.is_floating_point else rng.integers(0, 8, shape)).astype(
            kind.storage
        )


def _volume(names: Mapping[str, Any]) -> int:
    return int(np.prod([v for v in names.values() if isinstance(v, int)], dtype=np.int64))


def _is_size(name: str) -> bool:
    """Whether a constexpr's name says that it is a size of an array, such as ``n_cols`` or ``N``."""
    low = name.lower()
    if "block" in low or "tile" in low or "group" in low:
        return False
    return len(name) == 1 or low.startswith(("n_", "num_")) or low.endswith(("_size", "len", "dim", "cols", "rows"))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{dtype(value.dtype).name} array"
    return str(value)
