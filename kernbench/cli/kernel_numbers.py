"""The numbers among a kernel's arguments: sizes, block sizes, flags, and the element types of its arrays.

What is known of a parameter (an autotuner's configuration, the host code that launches it, a default, its role in the
source) is used. Sizes that are made up differ, so that they can be told from one another in an address.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np

from kernbench.cli import kernel_descriptors as descriptors
from kernbench.cli.kernel_calls import HostCall, Unknown
from kernbench.cli.kernel_files import function_of
from kernbench.cli.kernel_roles import Roles, is_stride
from kernbench.cli.kernel_roles import of as roles_of
from kernbench.cli.kernel_trials import Trial
from kernbench.memory import DType, dtype

TORCH_TYPES = {f"float{n}": f"f{n}" for n in (16, 32, 64)} | {f"int{n}": f"i{n}" for n in (8, 16, 32, 64)}
TORCH_TYPES |= {"bfloat16": "bf16", "half": "f16", "float": "f32", "bool": "i1", "uint8": "u8"}
TORCH_TYPES |= {"float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2"}
SMALL = (64, 16)
"""The block that small sizes go by, and the smallest."""
WINDOW = {"kernel": 3, "filter": 3, "pad": 1, "dilation": 1, "groups": 1}
"""What names of a convolution's or a pooling's numbers begin with -> their values."""
IMAGE = {"height": 18, "width": 22}
"""Of an image, before and after such a window, which leaves it its size."""
FLAGS = ("causal", "transpose", "trans_a", "trans_b", "inplace", "reverse", "fp8", "fp16", "bf16", "tf32", "debug")
"""Constexprs that are off."""
UNBOUNDED = (64, 4, 2)
"""Programs along an axis whose programs all have work, however many there are."""
MODERATE = 256
"""Of an autotuner's configurations, the largest whose numbers are all at most this decides on sizes."""


class Numbers:
    """The numbers and element types among a kernel's arguments: known, told by its host code, or made up.

    Args:
        kernel: the ``@triton.jit`` function, perhaps under ``autotune`` or ``heuristics``.
        given: arguments that are known: numbers, arrays, or a :class:`DType` for a pointer of that type.
        kind: element type of floating-point pointers.
        trial: what kind of sizes and indices to choose.
        call: a launch of it in the file's host code.
        told: what descriptors say of the arrays of ``given`` that the kernel gets descriptors of.
    """

    def __init__(
        self,
        kernel: Any,
        given: Mapping[str, Any],
        kind: str = "f32",
        trial: Trial | None = None,
        call: HostCall | None = None,
        told: Mapping[str, descriptors.Described] | None = None,
    ) -> None:
        self.told = dict(told or {})
        self.kernel, self.function = kernel, function_of(kernel)
        self.given, self.kind, self.trial = dict(given), dtype(kind), trial or Trial()
        self.call = call or HostCall.missing()
        self.roles: Roles = roles_of(self.function)
        self._listen()
        self.configs: list[Any] = []
        self.heuristics: list[tuple[str, Any]] = []
        outer = kernel
        while outer is not self.function:
            self.configs += getattr(outer, "configs", None) or []
            self.heuristics += list((getattr(outer, "values", None) or {}).items())
            outer = outer.fn
        tunable = [c.kwargs for c in self.configs]
        moderate = [t for t in tunable if all(not isinstance(v, int) or v <= MODERATE for v in t.values())]
        choose = min if self.trial.small else max
        self.tuned: dict[str, Any] = choose(moderate or tunable, key=_volume, default={})
        self.origin: dict[str, str] = {}

    def _listen(self) -> None:
        """Let the host code's launch correct what the kernel's source seemed to say."""
        roles = self.roles
        for name in [p.name for p in self.function.params if p.name not in (*roles.constexprs, *roles.descriptors)]:
            kind = self.call.kind(name)
            if kind == "pointer" and name in roles.floats:
                roles.floats.remove(name)
                roles.pointers.append(name)
            elif kind in ("integer", "stride") and name in roles.floats:
                roles.floats.remove(name)
                roles.integers.append(name)
        numbers = (*roles.integers, *(n for n in roles.constexprs if n not in roles.ranges))
        self.strides = {n for n in numbers if is_stride(n) or self.call.kind(n) == "stride"}
        self.strides -= {n for n in self.strides if self._of_window(n.lower()) is not None}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Constexprs that neither an autotuner nor a heuristic fills in."""
        filled = {*self.tuned, *(name for name, _ in self.heuristics)}
        blocks = [n for n in self.roles.constexprs if self._is_block(n) and n not in self.given]
        found = {}
        # What sizes are made of comes first, what is worked out from sizes last.
        order = sorted(self.roles.constexprs, key=lambda n: (self.call.is_compound(n), n not in self.roles.ranges))
        for name in order:
            if name in self.strides:
                continue
            if self.call.is_compound(name) and name not in self.given:
                _ = self.scalars
            if name in filled and name not in self.given:
                self.origin[name] = "filled in"
                continue
            found[name] = self._known(name, lambda n=name: self._constant(n, len(blocks)))
        return found

    def _known(self, name: str, otherwise: Any) -> Any:
        """A parameter's value as given, or as the host code has it, or its default, or made up."""
        if name in self.given:
            self.origin[name] = "given"
            self.call.choose(name, self.given[name])
            return self.given[name]
        with suppress(Unknown):
            value = self.call.value(name)
            if self._fits(name, value):
                self.origin[name] = "from its launch"
                return value
        param = next(p for p in self.function.params if p.name == name)
        if param.has_default:
            self.origin[name] = "default"
            return getattr(param.default, "value", param.default)
        self.origin[name] = "generated"
        made = otherwise()
        self.call.choose(name, made)
        return made

    def _fits(self, name: str, value: Any) -> bool:
        """Whether the host code's value can be that of a parameter, as far as is known."""
        if name in self.roles.constexprs:
            powers = not isinstance(value, int) or isinstance(value, bool) or value & (value - 1) == 0
            return powers or name not in self.roles.ranges
        return isinstance(value, int) if name in self.roles.integers else isinstance(value, int | float)

    def _is_block(self, name: str) -> bool:
        return name in self.roles.ranges or "block" in name.lower() or "tile" in name.lower()

    def _constant(self, name: str, blocks: int) -> Any:
        low = name.lower()
        if (number := self._of_window(low)) is not None:
            return number
        if "dim" in low or low in ("d", "dmodel", "d_model"):
            return 64
        if self._is_block(name):
            return 1024 if blocks + len(self._blocks_of_config) == 1 else 32 if low.endswith("k") else 64
        if low.startswith(
            ("is_", "has_", "use_", "apply_", "even_", "with_", "store_", "return_", "do_", "allow_")
        ) or (
            low
            in (
                "causal",
                "transpose",
                "trans_a",
                "trans_b",
                "inplace",
                "reverse",
                "fp8",
                "fp16",
                "bf16",
                "tf32",
                "debug",
            )
        ):
            return False
        if low in ("activation", "act"):
            return ""
        if low.endswith(("dtype", "type")):
            import triton.language as tl

            return tl.float32
        if _is_epsilon(low):
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
        if is_size(name) and not any(word in low for word in few):
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
            if n not in self.tuned and n not in self.given and not self.call.is_compound(n):
                with suppress(Unknown):
                    values[n] = self.call.value(n)
        unknown = 1024 if len(names) <= 1 else 64
        sizes = [v if isinstance(v, int) else unknown for v in values.values()]
        tiled = bool(self.roles.tiled & set(names)) or not names
        return max(sizes, default=256), len(names) > 1, tiled

    def _size(self, name: str) -> int:
        """The value of an integer parameter that is a size. Sizes differ, so that they can be told from one another."""
        low = name.lower()
        if _is_few(low):
            return 2 + self._small_so_far(low)
        if self._has_window and (side := next((n for word, n in IMAGE.items() if word in low), 0)):
            return side
        block, several, tiled = self._block
        step = 16
        if self.trial.small:
            block = min(block, SMALL[self.trial.small - 1])
            step = min(step, block // 4)
        number = self._sized.setdefault(name, len(self._sized))
        if several:
            return max(1, block * 5 // 2 - step * number + 8) if self.trial.odd else block * (3 + number)
        if tiled:
            return max(1, block * 8 - 24 - step * number) if self.trial.odd else block * max(1, 8 - number)
        return max(1, block - 24 - step * number) if self.trial.odd else block

    @cached_property
    def _has_window(self) -> bool:
        """Whether names tell of a convolution or a pooling."""
        names = [n.lower() for n in self.function.arg_names]
        moves = any(_begins(n, "pad") or _begins(n, "dilation") for n in names)
        return moves and any(_begins(n, "kernel") or _begins(n, "filter") or n in ("kh", "kw") for n in names)

    def _of_window(self, low: str) -> int | None:
        """The value of a number that says how a window moves over an image; None where a name says no such thing."""
        if not self._has_window:
            return None
        if low in ("kh", "kw"):
            return 3
        if low in ("stride", "stride_h", "stride_w", "stride_height", "stride_width", "conv_stride"):
            return 1
        return next((value for start, value in WINDOW.items() if _begins(low, start)), None)

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
        for name in sorted(self.roles.integers, key=self.call.is_compound):
            if name not in self.strides:
                found[name] = self._known(name, lambda n=name: self._integer(n))
        for name in self.roles.floats:
            found[name] = self._known(name, lambda n=name: 1e-5 if _is_epsilon(n.lower()) else 0.5)
        return found

    def _integer(self, name: str) -> int:
        low = name.lower()
        if (number := self._of_window(low)) is not None:
            return number
        if "seed" in low:
            return 7
        if "offset" in low or low.startswith(("start", "begin", "pid")):
            return 0
        if (same := self._block_of_same(name)) is not None:
            return same
        arrays = [v for v in self.given.values() if isinstance(v, np.ndarray)]
        sizes = {v.size for v in arrays}
        if len(sizes) == 1 and sum(n not in self.strides for n in self.roles.integers) == 1:
            return int(sizes.pop())
        return self._size(name) if name in self.roles.used or _is_few(low) else self.unbounded[0]

    def _block_of_same(self, name: str) -> int | None:
        """The block that the host code gives for the same expression, as it does for groups of a quantisation."""
        text = self.call.text(name)
        for other in self.roles.constexprs:
            if text and self._is_block(other) and self.call.text(other) == text and other not in self.tuned:
                value = self.given.get(other, self._constant(other, 2))
                return value if isinstance(value, int) else None
        return None

    @cached_property
    def pointers(self) -> dict[str, Any]:
        """Pointers -> an array, None, or the type of an array that is still to be made."""
        found: dict[str, Any] = {}
        for name in (*self.roles.pointers, *self.roles.descriptors):
            param = next(p for p in self.function.params if p.name == name)
            if name in self.given:
                self.origin[name] = "given" if not isinstance(self.given[name], DType) else "generated"
                found[name] = self.given[name]
            elif self._is_left_out(name, param):
                found[name] = None
            else:
                self.origin[name] = "generated"
                found[name] = self._type_of(name)
            if found[name] is not None:
                self.call.choose(name, "an array")
        return found

    def _is_left_out(self, name: str, param: Any) -> bool:
        """Whether a pointer is None, by its default or in the host code."""
        if param.has_default and param.default is None:
            self.origin[name] = "default"
            return True
        with suppress(Unknown):
            if self.call.value(name) is None:
                self.origin[name] = "from its launch"
                return True
        return False

    def _type_of(self, name: str) -> DType:
        """The element type of an array that is made up."""
        told = TORCH_TYPES.get(self.call.dtype(name) or descriptors.dtype_of(name, self.call), "")
        if told and not (self.kind.name != "f32" and dtype(told).is_floating_point):
            return dtype(told)
        return dtype("i32" if name in self.roles.counters else "i64" if name in self.roles.indices else self.kind)

    @property
    def unbounded(self) -> tuple[int, int, int]:
        return UNBOUNDED if not self.trial.small else (8, 2, 2) if self.trial.small == 1 else (2, 2, 2)


def _begins(low: str, word: str) -> bool:
    return low == word or low.startswith(f"{word}_") or (word == "pad" and low.startswith("padding"))


def _is_epsilon(name: str) -> bool:
    return "eps" in name and "step" not in name


def _volume(names: Mapping[str, Any]) -> int:
    return int(np.prod([v for v in names.values() if isinstance(v, int)], dtype=np.int64))


def _is_few(low: str) -> bool:
    """Whether a name says that there are few of something: batches, heads, groups."""
    return low in ("z", "b", "h", "bs", "nheads") or "batch" in low or "head" in low or "group" in low


def is_size(name: str) -> bool:
    """Whether a constexpr's name says that it is a size of an array, such as ``n_cols`` or ``N``."""
    low = name.lower()
    if "block" in low or "tile" in low or "group" in low:
        return False
    return len(name) == 1 or low.startswith(("n_", "num_")) or low.endswith(("_size", "len", "dim", "cols", "rows"))
