"""How a tensor spreads over a SIP's cubes and PEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kernbench.memory import INTERLEAVED, Axis, Placement

Spread = Literal["replicate", "row_wise", "column_wise"]


@dataclass(frozen=True)
class DPPolicy:
    """Spread over ``num_cubes`` cubes, and within each over the memory shares of ``num_pes`` PEs.

    ``replicate`` keeps a copy in every part (reads go to the nearest, writes to all), ``row_wise`` gives each part
    consecutive rows, ``column_wise`` consecutive columns. Rows are the product of all dimensions but the last. A level
    of one part does nothing, so the default is memory interleaved over all channels of the SIP.
    """

    cube: Spread = "replicate"
    pe: Spread = "replicate"
    num_cubes: int = 1
    num_pes: int = 1

    def __post_init__(self) -> None:
        for name, value in (("cube", self.cube), ("pe", self.pe)):
            if value not in get_args(Spread):
                raise ValueError(f"DPPolicy({name}={value!r}): expected one of {', '.join(get_args(Spread))}")
        for name, count in (("num_cubes", self.num_cubes), ("num_pes", self.num_pes)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"DPPolicy({name}={count!r}): expected a whole number of at least 1")

    def placement(
        self, shape: Sequence[int], itemsize: int, *, cubes: int, pes_per_cube: int, granule: int = 256
    ) -> Placement:
        """The page map of a row-major tensor.

        Args:
            shape: of the tensor.
            itemsize: bytes of an element.
            cubes, pes_per_cube: what the SIP has.
            granule: bytes of the memory's interleaving; no shard boundary may cut one.

        Raises:
            ValueError: the policy asks for more cubes or PEs than there are, or a shard is no multiple of the granule.
        """
        if self.num_cubes > cubes:
            raise ValueError(f"DPPolicy(num_cubes={self.num_cubes}): the SIP has {cubes} cubes")
        if self.num_pes > pes_per_cube:
            raise ValueError(f"DPPolicy(num_pes={self.num_pes}): a cube has {pes_per_cube} PEs")
        columns = shape[-1] if shape else 1
        rows = 1
        for extent in shape[:-1]:
            rows *= extent
        if rows * columns == 0 or self.num_cubes == self.num_pes == 1:
            return INTERLEAVED
        pitch = columns * itemsize
        outer, rows_left, row_bytes = _axis("cube", self.cube, self.num_cubes, rows, pitch, pitch, granule)
        inner, _, _ = _axis("pe", self.pe, self.num_pes, rows_left, pitch, row_bytes, granule)
        return Placement(outer, inner)


def _axis(
    level: str, spread: Spread, parts: int, rows: int, pitch: int, row_bytes: int, granule: int
) -> tuple[Axis | None, int, int]:
    """One level, for a part of ``rows`` rows with ``row_bytes`` bytes each, ``pitch`` bytes apart; also the rows and
    the bytes a row that are left in each of its parts."""
    if parts == 1:
        return None, rows, row_bytes
    if spread == "replicate":
        return Axis(parts, replicate=True), rows, row_bytes
    if spread == "row_wise":
        height = -(-rows // parts)
        axis, left = Axis(parts, period=rows * pitch, segment=height * pitch), (height, row_bytes)
    else:
        width = -(-row_bytes // parts)
        axis, left = Axis(parts, period=row_bytes, segment=width), (rows, width)
    cut = axis.segment if spread == "row_wise" or axis.segment % granule else axis.period
    if cut % granule:
        what = "part" if cut == axis.segment else "row"
        raise ValueError(
            f"DPPolicy({level}={spread!r}, num_{level}s={parts}): a {what} would be {cut} bytes long, which is no "
            f"multiple of the memory's granule of {granule} bytes: choose another number of parts, a padded shape, or "
            f"{level}='replicate'"
        )
    return axis, *left
