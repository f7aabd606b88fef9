"""Triton's IR as data: a parser of TTIR text, which is the interface between Triton and KernBench.

The text says everything a kernel is: typed operations in SSA form, loops and branches as nested regions, and the source
line of each operation. :func:`parse` reads it into small objects; any operation parses, known to the executor or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Loc = tuple[str, int]
"""(file, line); ``("", 0)`` where the text does not say."""
NOWHERE: Loc = ("", 0)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number: ``f16 bf16 f32 f64 f8E4M3FN f8E5M2 i1 i8 i16 i32 i64 index``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of a :class:`Scalar`, or of a block (``make_tensor_ptr``) when ``pointee`` is a tensor."""

    pointee: Type

    def __str__(self) -> str:
        return f"!tt.ptr<{self.pointee}>"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A block of values of one element type, which may be a pointer."""

    shape: tuple[int, ...]
    elem: Scalar | Pointer

    def __str__(self) -> str:
        return f"tensor<{''.join(f'{n}x' for n in self.shape)}{self.elem}>"


@dataclass(frozen=True, slots=True)
class TensorDesc:
    """A tensor descriptor: reads and writes blocks of the given shape."""

    block: Tensor
    unsigned: bool = False
    """Whether the elements are unsigned integers, of which a reduction takes another minimum and maximum."""

    def __str__(self) -> str:
        text = f"!tt.tensordesc<{self.block}>"
        return text.replace("xi", "xui") if self.unsigned else text


@dataclass(frozen=True, slots=True)
class Opaque:
    """A type the executor knows nothing of, kept as written."""

    text: str

    def __str__(self) -> str:
        return self.text


Type = Scalar | Pointer | Tensor | TensorDesc | Opaque


@dataclass(eq=False, slots=True)
class Value:
    """One SSA value. Identity is the object; ``name`` comes from the kernel's Python variable where Triton kept it."""

    name: str
    type: Type

    def __repr__(self) -> str:
        return f"{self.name}: {self.type}"


@dataclass(eq=False, slots=True)
class Block:
    """A run of operations; ``args`` are what predecessors (or the enclosing loop or function) hand in."""

    args: tuple[Value, ...]
    ops: list[Op] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Region:
    """The blocks of a body; one block, unless the kernel returns early."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def entry(self) -> Block:
        return self.blocks[0]


@dataclass(eq=False, slots=True)
class Op:
    """One operation.

    ``attrs`` holds attributes and properties by name; bare words of the short form (a predicate, an axis, an atomic's
    kind) are in ``attrs["words"]``, a called function in ``attrs["callee"]``, strings in ``attrs["strings"]`` and a
    constant in ``attrs["value"]``.
    """

    name: str
    results: tuple[Value, ...]
    operands: tuple[Value, ...]
    attrs: dict[str, Any]
    regions: tuple[Region, ...] = ()
    successors: tuple[tuple[Block, tuple[Value, ...]], ...] = ()
    """Where a ``cf`` branch may go, with what it hands to the block's arguments."""
    loc: Loc = NOWHERE

    @property
    def result_types(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.results)

    @property
    def operand_types(self) -> tuple[Type, ...]:
        return tuple(v.type for v in self.operands)

    def walk(self) -> Iterator[Op]:
        """This operation and all nested in it, in order."""
        yield self
        for region in self.regions:
            for block in region.blocks:
                for op in block.ops:
                    yield from op.walk()


@dataclass(frozen=True, slots=True)
class Arg:
    """A parameter: its name in the kernel's source, type, and attributes such as ``tt.divisibility``."""

    name: str
    type: Type
    attrs: dict[str, Any]


@dataclass(eq=False, slots=True)
class Function:
    """``body.entry.args`` are the values of ``args``, in order."""

    name: str
    args: tuple[Arg, ...]
    body: Region
    results: tuple[Type, ...] = ()
    public: bool = True
    loc: Loc = NOWHERE

    def walk(self) -> Iterator[Op]:
        """All operations, in order, nested ones after the one that holds them."""
        for block in self.body.blocks:
            for op in block.ops:
                yield from op.walk()


@dataclass(eq=False)
class Module:
    functions: dict[str, Function]

    @property
    def kernel(self) -> Function:
        """The function that a launch runs: the public one."""
        return next(f for f in self.functions.values() if f.public)


def parse(text: str) -> Module:
    """Read the text of a TTIR module (``str(module)`` with or without locations).

    Raises:
        KernelError: the text is not TTIR; the message names the line.
    """
    from kernbench.kernels.ttir_parser import Parser

    return Parser(text).module()


def check(module: Module) -> None:
    """See that KernBench can run every operation of a module, before anything runs.

    Raises:
        KernelError: it cannot; the message names the operation, its source line, and what to do.
    """
    from kernbench.kernels import comm, descriptors, executor, polls

    executor.check(comm.lower(polls.lower(descriptors.lower(module))))


@lru_cache(maxsize=4096)
def parse_type(text: str) -> Type:
    """The type written ``text``: ``f32``, ``!tt.ptr<f16>``, ``tensor<128x64x!tt.ptr<f16>>``, ``<32x64xf16>`` ..."""
    text = text.strip()
    head, _, inner = text.partition("<")
    inner = inner[: inner.rfind(">")] if inner else ""
    if head == "tensor":
        inner = inner.split(",")[0] if not inner.rstrip().endswith(">") else inner
        shape = []
        while (m := re.match(r"(\d+)x", inner)) is not None:
            shape.append(int(m.group(1)))
            inner = inner[m.end() :]
        elem = parse_type(inner)
        return Tensor(tuple(shape), elem) if isinstance(elem, Scalar | Pointer) else Opaque(text)
    if head == "!tt.ptr":
        depth = inner.rfind(">")
        pointee = inner if "," not in inner[depth + 1 :] else inner[: inner.index(",", depth + 1)]
        return Pointer(parse_type(pointee))
    if head in ("!tt.tensordesc", "!tt.ptrdesc"):
        block = parse_type(inner if inner.startswith("tensor") else f"tensor<{inner}>")
        unsigned = re.search(r"xui\d+", inner) is not None
        return TensorDesc(block, unsigned) if isinstance(block, Tensor) else Opaque(text)
    if signed := re.fullmatch(r"[su]i(\d+)", text):  # of descriptors; arithmetic does not tell them apart
        return Scalar(f"i{signed[1]}")
    if re.fullmatch(r"(?:b?f\d+\w*|tf32|u?i\d+|index)", text):
        return Scalar(text)
    return Opaque(text)
