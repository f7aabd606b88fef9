"""Every specialisation of the built-in kernels that the store holds: element types times a fixed menu of constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, product

Constant = int | str | bool

MATMUL_TILES: tuple[tuple[int, int, int, int], ...] = (
    (16, 128, 128, 3),
    (32, 32, 32, 2),
    (64, 64, 64, 3),
    (64, 128, 64, 3),
    (128, 64, 64, 3),
    (128, 128, 64, 3),
    (128, 256, 64, 3),
    (256, 128, 64, 3),
    (256, 256, 64, 3),
    (512, 256, 64, 3),
)
"""(BLOCK_M, BLOCK_N, BLOCK_K, num_stages)."""
MATMUL_TYPES = (("f16", "f16"), ("f16", "f32"), ("bf16", "bf16"), ("bf16", "f32"), ("f32", "f32"))
"""(type of a, b and bias; type of out)."""
GROUP_M = 8
FLAT_TILES = ((1, 1024), (1, 8192), (16, 512), (64, 64))
"""(BLOCK_R, BLOCK_C) of elementwise kernels."""
COPY_TILES = ((1, 4096), (64, 64))
SUM_TILES = ((1, 1024), (8, 512))
ROW_TILES = ((16, 256), (1, 1024), (1, 2048), (1, 4096), (1, 8192), (1, 16384))
LONG_TILE = 4096
"""BLOCK_C for rows too long for any of ROW_TILES."""

FLOATS = ("f16", "bf16", "f32")
OPS = ("add", "sub", "mul", "div", "max", "min")
WHOLE_OPS = ("add", "sub", "mul", "max", "min")
OP_TYPES = {**dict.fromkeys((*FLOATS, "f64"), OPS), **dict.fromkeys(("i8", "u8", "i32", "i64"), WHOLE_OPS)}
"""Operations of ``binary`` by element type."""
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh", "exp", "neg")
BITS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}
"""Types that stand for any type of as many bytes, where bits only move."""
_ALL_FLOATS = (*FLOATS, "f64", "f8e4m3", "f8e5m2")
_WHOLE = ("i1", "i8", "u8", "i16", "i32", "i64")

_TRITON = {"f16": "fp16", "f32": "fp32", "f64": "fp64", "f8e4m3": "fp8e4nv", "f8e5m2": "fp8e5"}


def cast_types() -> Iterator[tuple[str, str]]:
    """(source, destination) of every stored cast."""
    types = (*_ALL_FLOATS, *_WHOLE)
    for source, to in product(types, types):
        narrow = (source.startswith("f8") and to in _WHOLE) or (to.startswith("f8") and source in _WHOLE)
        if source != to and not narrow:
            yield source, to


def number_type(element: str) -> str:
    """The type in which a Python number reaches ``binary_number`` for tensors of type ``element``."""
    if element == "f64":
        return "f64"
    return "f32" if element.startswith(("f", "bf")) else ("i64" if element == "i64" else "i32")


@dataclass(frozen=True)
class Variant:
    """One specialisation: types of the parameters that vary (None: the parameter is None) and constants."""

    source: str
    """File in ``sources``, without ``.py``."""
    kernel: str
    types: tuple[tuple[str, str | None], ...]
    constants: tuple[tuple[str, Constant], ...]
    num_stages: int = 1

    @property
    def key(self) -> str:
        """Its name in the store."""
        return key(self.kernel, dict(self.types), dict(self.constants))

    def signature(self, parameters: list[str]) -> dict[str, str]:
        """Triton's signature: what is not said to vary is a 32-bit integer."""
        varying, constants = dict(self.types), dict(self.constants)
        return {name: _signature_type(name, varying, constants) for name in parameters}


def _signature_type(name: str, types: Mapping[str, str | None], constants: Mapping[str, Constant]) -> str:
    if name in constants:
        return "constexpr"
    if name not in types:
        return "i32"
    kind = types[name]
    if kind is None:
        return "constexpr"
    return ("*" if name.endswith("_ptr") else "") + _TRITON.get(kind, kind)


def key(kernel: str, types: Mapping[str, str | None], constants: Mapping[str, Constant]) -> str:
    """The name in the store of a kernel for these types and constants."""
    parts = [f"{name}={kind or 'none'}" for name, kind in types.items()]
    return f"{kernel}({','.join(parts + [f'{name}={value}' for name, value in constants.items()])})"


def _variant(
    source: str, kernel: str, types: Mapping[str, str | None], num_stages: int, **constants: Constant
) -> Variant:
    return Variant(source, kernel, tuple(types.items()), tuple(constants.items()), num_stages)


def variants() -> list[Variant]:
    """All of them, each once, in a fixed order."""
    return list(dict.fromkeys(chain(_matmuls(), _elementwise(), _copies(), _rows())))


def _matmuls() -> Iterator[Variant]:
    for (kind, out), bias in product(MATMUL_TYPES, (False, True)):
        types = {"out_ptr": out, "a_ptr": kind, "b_ptr": kind, "bias_ptr": kind if bias else None}
        for m, n, k, stages in MATMUL_TILES:
            yield _variant("matmul", "matmul", types, stages, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, GROUP_M=GROUP_M)
        types = {"out_ptr": out, "pieces_ptr": "f32", "bias_ptr": kind if bias else None}
        for m, n in SUM_TILES:
            yield _variant("matmul", "sum_pieces", types, 3, BLOCK_R=m, BLOCK_C=n)


def _elementwise() -> Iterator[Variant]:
    for kind, ops in OP_TYPES.items():
        for op, (r, c) in product(ops, FLAT_TILES):
            two = {"out_ptr": kind, "a_ptr": kind, "b_ptr": kind}
            yield _variant("elementwise", "binary", two, 1, OP=op, BLOCK_R=r, BLOCK_C=c)
            one = {"out_ptr": kind, "a_ptr": kind, "b": number_type(kind)}
            yield _variant("elementwise", "binary_number", one, 1, OP=op, BLOCK_R=r, BLOCK_C=c)
    for kind, (r, c) in product(FLOATS, FLAT_TILES):
        for op in ACTIVATIONS:
            yield _variant("elementwise", "unary", {"out_ptr": kind, "x_ptr": kind}, 1, OP=op, BLOCK_R=r, BLOCK_C=c)
        types = {"out_ptr": kind, "gate_ptr": kind, "up_ptr": kind}
        yield _variant("elementwise", "silu_mul", types, 1, BLOCK_R=r, BLOCK_C=c)
    for kind, (r, c) in product(BITS.values(), FLAT_TILES):
        yield _variant("elementwise", "fill", {"out_ptr": kind, "value": "i64"}, 1, BLOCK_R=r, BLOCK_C=c)


def _copies() -> Iterator[Variant]:
    moved = [(kind, kind) for kind in BITS.values()]
    for (source, to), (r, c) in product([*moved, *cast_types()], COPY_TILES):
        yield _variant("elementwise", "copy", {"out_ptr": to, "src_ptr": source}, 1, BLOCK_R=r, BLOCK_C=c)


def _rows() -> Iterator[Variant]:
    for kind in FLOATS:
        plain = {"out_ptr": kind, "x_ptr": kind}
        for r, c in ROW_TILES:
            yield _variant("rows", "softmax", plain, 1, BLOCK_R=r, BLOCK_C=c)
        yield _variant("rows", "softmax_long", plain, 3, BLOCK_C=LONG_TILE)
        for centre, weight, bias in product((True, False), (False, True), (False, True)):
            if bias and not (weight and centre):
                continue
            types = plain | {"weight_ptr": kind if weight else None, "bias_ptr": kind if bias else None, "eps": "f32"}
            for r, c in ROW_TILES:
                yield _variant("rows", "norm", types, 1, CENTRE=centre, BLOCK_R=r, BLOCK_C=c)
            yield _variant("rows", "norm_long", types, 3, CENTRE=centre, BLOCK_C=LONG_TILE)
