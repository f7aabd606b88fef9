"""Which stored kernel and grid to use, by an explicit estimate of its time on the target.

The estimate is coarse on purpose: how long the busiest PE computes, how long the HBM needs for the bytes, and a fixed
latency. It only ranks the menu; what a launch costs, the engine says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

from kernbench.kernels.builtin import menu, store
from kernbench.kernels.device import Target
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.tcm import programs_in_flight
from kernbench.memory import dtype

Tile = tuple[int, int, int, int]
"""BLOCK_M, BLOCK_N, BLOCK_K, num_stages."""

_TILE_OVERHEAD = 512
"""Elements that a vector engine could process in what one more program costs. It processes masked elements too."""
_PIECES = range(1, 33)
_AS_GOOD = 1.25
"""An estimate this much longer is accepted for a more even load: whatever runs beside a product then finds every PE
equally busy, and a faster memory helps at once."""
_ALIGN = 16
"""Elements of which the width of a tile is a multiple, so that its rows start on 32 bytes."""
_HIDDEN = 0.85
"""How much of the shorter of computing and moving the longer one hides; measured with the engine on ahbm-1sip."""
_SHORT_RUNS = 1.3
"""How much more reading b costs when a tile's rows are shorter than an HBM granule; measured likewise."""


@dataclass(frozen=True)
class Choice:
    """A stored kernel and how to launch it."""

    kernel: Kernel
    grid: tuple[int, int, int]
    constexprs: dict[str, Any]
    width: int = 0
    """matmul: columns of a tile, at most its BLOCK_N."""
    k_split: int = 0
    """matmul: length of one piece of K; K is in ``grid[1]`` pieces."""


def pick(name: str, shapes: Sequence[int], dtypes: Sequence[Any], target: Target, op: str | None = None) -> Choice:
    """Choose a kernel from the store.

    Args:
        name: ``matmul`` (shapes M, N, K; dtypes of a and out, optionally of a bias), ``sum_pieces``, ``silu_mul``,
            ``binary``, ``unary``, ``fill``, ``softmax``, ``layer_norm``, ``rms_norm`` (shapes R, C; dtype) or ``copy``
            (shapes R, C; dtypes of source and destination).
        op: which operation, for ``binary`` (``add`` ...) and ``unary`` (``silu`` ...).

    Raises:
        StoreError: no kernel is stored for these dtypes.
        OutOfResources: no kernel of the menu fits the scratchpad.
    """
    kinds = tuple(dtype(d).name for d in dtypes)
    if name == "matmul":
        m, n, k = shapes
        bias = len(kinds) > 2
        return matmul(m, n, k, kinds[0], kinds[1], bias, target)
    r, c = shapes
    if name == "binary":
        types: dict[str, str | None] = {"out_ptr": kinds[0], "a_ptr": kinds[0], "b_ptr": kinds[0]}
        return tiled("binary", r, c, types, {"OP": op or "add"}, menu.FLAT_TILES, target)
    if name == "unary":
        types = {"out_ptr": kinds[0], "x_ptr": kinds[0]}
        return tiled("unary", r, c, types, {"OP": op or "silu"}, menu.FLAT_TILES, target)
    if name == "silu_mul":
        types = {"out_ptr": kinds[0], "gate_ptr": kinds[0], "up_ptr": kinds[0]}
        return tiled("silu_mul", r, c, types, {}, menu.FLAT_TILES, target)
    if name == "copy":
        types = {"out_ptr": kinds[1], "src_ptr": kinds[0]}
        return tiled("copy", r, c, types, {}, menu.COPY_TILES, target)
    if name == "fill":
        types = {"out_ptr": menu.BITS[dtype(kinds[0]).itemsize], "value": "i64"}
        return tiled("fill", r, c, types, {}, menu.FLAT_TILES, target)
    if name in ("softmax", "layer_norm", "rms_norm"):
        types = {"out_ptr": kinds[0], "x_ptr": kinds[0]}
        if name == "softmax":
            return rows("softmax", r, c, types, {}, target)
        types |= {"weight_ptr": None, "bias_ptr": None, "eps": "f32"}
        return rows("norm", r, c, types, {"CENTRE": name == "layer_norm"}, target)
    raise store.StoreError(
        f"there is no built-in kernel '{name}': expected matmul, silu_mul, binary, unary, copy, fill, softmax, "
        "layer_norm or rms_norm"
    )


class Cut(NamedTuple):
    """How the work of a matrix product is cut into programs."""

    tile: Tile
    width: int
    """Columns of a tile, at most its BLOCK_N."""
    split: int
    """Length of one piece of K, a multiple of BLOCK_K."""

    def grid(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        """(tiles, pieces of K, 1)."""
        return -(-m // self.tile[0]) * -(-n // self.width), max(1, -(-k // self.split)), 1


@lru_cache(maxsize=1024)
def matmul(m: int, n: int, k: int, kind: str, out: str, bias: bool, target: Target) -> Choice:
    """Of the cuts whose :func:`matmul_time` comes within ``_AS_GOOD`` of the least, the fastest of those that load the
    PEs most evenly.

    With more than one piece the launch writes f32 pieces ``[pieces, M, N]`` that ``sum_pieces`` then adds up.
    """
    tiles = _fitting(menu.MATMUL_TILES, lambda tile: _matmul_kernel(tile, kind, out, bias), target)
    cuts = [cut for _, tile in tiles for cut in _cuts(m, n, k, tile, target.pes)]
    times = {cut: matmul_time(m, n, k, kind, out, cut, target) for cut in cuts}
    limit = _AS_GOOD * min(times.values())

    def rounds_per_program(cut: Cut) -> float:
        tiles, pieces, _ = cut.grid(m, n, k)
        return -(-tiles * pieces // target.pes) / (tiles * pieces)

    cut = min((c for c in cuts if times[c] <= limit), key=lambda c: (rounds_per_program(c), times[c]))
    grid = cut.grid(m, n, k)
    kernel = _matmul_kernel(cut.tile, kind, "f32" if grid[1] > 1 else out, bias and grid[1] == 1)
    return Choice(kernel, grid, kernel.constexprs, cut.width, cut.split)


def _cuts(m: int, n: int, k: int, tile: Tile, pes: int) -> Iterator[Cut]:
    """Those worth considering with a tile: for each number of pieces of K, tiles as wide as the block, and the widest
    that make the number of programs a multiple of the PEs."""
    for pieces in _PIECES[: max(1, k // tile[2])]:
        whole = Cut(tile, tile[1], max(1, -(-k // (pieces * tile[2]))) * tile[2])
        yield whole
        a_column_of_tiles = prod(whole.grid(m, tile[1], k))
        multiple = pes // gcd(pes, a_column_of_tiles)
        across = -(-n // (tile[1] * multiple)) * multiple
        yield whole._replace(width=-(-n // (across * _ALIGN)) * _ALIGN)


def _matmul_kernel(tile: Tile, kind: str, out: str, bias: bool) -> Kernel:
    constants: dict[str, menu.Constant] = dict(
        zip(("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M"), (*tile[:3], menu.GROUP_M), strict=True)
    )
    types = {"out_ptr": out, "a_ptr": kind, "b_ptr": kind, "bias_ptr": kind if bias else None}
    return store.kernel("matmul", types, constants)


def matmul_time(m: int, n: int, k: int, kind: str, out: str, cut: Cut, target: Target) -> float:
    """Estimated seconds of a matrix product cut in a given way.

    The longer of the busiest PE's array time and ``bytes / HBM bandwidth``, plus what of the shorter it does not hide,
    plus latencies. An array of R x C cells takes ``ceil(BM/R) * ceil(BN/C) * k + R + C`` cycles for a tile, and every
    program reads its rows of a and columns of b. Within 10 % of the engine on ahbm-1sip where it matters.
    """
    block_m, block_n, block_k, _ = cut.tile
    itemsize = dtype(kind).itemsize
    tiles, pieces, _ = cut.grid(m, n, k)
    steps = -(-k // (pieces * block_k))
    passes = -(-block_m // target.gemm_rows) * -(-block_n // target.gemm_cols)
    cycles = passes * steps * block_k + target.gemm_rows + target.gemm_cols
    rates = dict(target.gemm_rate)
    rate = rates.get(kind, rates.get("default", 1.0))
    compute = -(-tiles * pieces // target.pes) * cycles / (target.gemm_clock * rate)
    short = _SHORT_RUNS if cut.width * itemsize < target.hbm_granule else 1.0
    read = (-(-n // cut.width) * m + short * -(-m // block_m) * n) * k * itemsize
    written = m * n * (dtype(out).itemsize if pieces == 1 else 4 * pieces)
    move = (read + written) / target.hbm_bandwidth
    seconds = max(compute, move) + (1 - _HIDDEN) * min(compute, move) + 2 * target.hbm_latency
    if pieces > 1:
        summed = m * n * (4 * pieces + dtype(out).itemsize)
        seconds += summed / target.hbm_bandwidth + 4 * target.hbm_latency
    return seconds


def tiled(
    name: str,
    r: int,
    c: int,
    types: Mapping[str, str | None],
    constants: Mapping[str, menu.Constant],
    tiles: Sequence[tuple[int, int]],
    target: Target,
) -> Choice:
    """An elementwise kernel over [r, c]: the tile with which the busiest PE has least to do."""

    def kernel(tile: tuple[int, int]) -> Kernel:
        return store.kernel(name, types, {**constants, "BLOCK_R": tile[0], "BLOCK_C": tile[1]})

    def busiest(tile: tuple[int, int]) -> int:
        programs = -(-r // tile[0]) * -(-c // tile[1])
        return -(-programs // target.pes) * (tile[0] * tile[1] + _TILE_OVERHEAD)

    _, tile = min(_fitting(tiles, kernel, target), key=lambda fit: (busiest(fit[1]), fit[0]))
    chosen = kernel(tile)
    return Choice(chosen, (-(-c // tile[1]), -(-r // tile[0]), 1), chosen.constexprs)


def rows(
    name: str, r: int, c: int, types: Mapping[str, str | None], constants: Mapping[str, menu.Constant], target: Target
) -> Choice:
    """A kernel that reduces over columns: the smallest tile that holds a whole row, else the one that goes block by
    block."""

    def kernel(tile: tuple[int, int]) -> Kernel:
        return store.kernel(name, types, {**constants, "BLOCK_R": tile[0], "BLOCK_C": tile[1]})

    whole = [tile for tile in menu.ROW_TILES if tile[1] >= c]
    for tile in whole[:1]:
        if kernel(tile).tcm.nbytes <= target.tcm_capacity:
            chosen = kernel(tile)
            return Choice(chosen, (-(-r // tile[0]), 1, 1), chosen.constexprs)
    chosen = store.kernel(f"{name}_long", types, {**constants, "BLOCK_C": menu.LONG_TILE})
    return Choice(chosen, (r, 1, 1), chosen.constexprs)


def _fitting(tiles: Sequence[Any], kernel: Callable[[Any], Kernel], target: Target) -> Iterable[tuple[int, Any]]:
    """(position, tile) of the tiles whose kernel fits the scratchpad, those that let programs overlap if there are any.

    Raises:
        OutOfResources: none fits.
    """
    needs = [(at, tile, kernel(tile).tcm.nbytes) for at, tile in enumerate(tiles)]
    for programs in (min(2, target.programs_in_flight), 1):
        fits = [(at, tile) for at, tile, need in needs if need * programs <= target.tcm_capacity]
        if fits:
            return fits
    smallest = kernel(min(needs, key=lambda need: need[2])[1])
    programs_in_flight(smallest.name, smallest.tcm, target.tcm_capacity, 1)
    raise AssertionError("unreachable: the line above raises")
