"""How a tensor spreads over a SIP's cubes and PEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from kernbench.memory import INTERLEAVED, Axis, Placement

Spread = Literal["replicate", "row_wise", "column_wise"]


@dataclass(frozen=True)
class DPPolicy:
    """Spread over ``num_cubes`` cubes, and within each over the memory shares of ``num_pes`` PEs.

    ``replicate`` keeps a copy in every part (reads go to the nearest, writes to all), ``row_wise`` gives each part
    consecutive rows, ``column_wise`` consecutive columns. Rows are the product of all dimensions but the last. A level
    of one part does nothing, so the default is memory interleaved over all channels of the SIP.

    No boundary cuts a granule of the memory's interleaving (256 bytes or more): parts of rows are rounded up to whole
    granules, so that the last may be smaller or empty, and columns that are no whole granules cannot be kept apart; the
    tensor's granules are then dealt to the parts in turn.
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
            granule: bytes of the memory's interleaving.

        Raises:
            ValueError: the policy asks for more cubes or PEs than there are.
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
        whole = _Part(rows, pitch, pitch, _up(rows * pitch, granule), granule)
        outer, part = whole.divide(self.cube, self.num_cubes, granule)
        inner, _ = part.divide(self.pe, self.num_pes, granule)
        return Placement(outer, inner)


class _Part(NamedTuple):
    """What one level divides: the tensor, or a part of it."""

    rows: int
    pitch: int
    """Bytes from row to row."""
    row_bytes: int
    """Bytes of each row that belong to the part."""
    region: int
    """Bytes from the first row's begin to the last one's end, in whole granules."""
    grain: int
    """What is dealt in turn where columns cannot be kept apart."""

    def divide(self, spread: Spread, parts: int, granule: int) -> tuple[Axis | None, _Part]:
        """The level, and one of its parts."""
        if parts == 1:
            return None, self
        if spread == "replicate":
            return Axis(parts, replicate=True), self
        if spread == "row_wise":
            height = -(-self.rows // parts)
            segment = _up(height * self.pitch, granule)
            return Axis(parts, period=self.region, segment=segment), self._replace(rows=height, region=segment)
        width, rest = divmod(self.row_bytes, parts)
        if rest or width % granule:
            dealt = Axis(parts, period=parts * self.grain, segment=self.grain)
            return dealt, self._replace(grain=parts * self.grain)
        return Axis(parts, period=self.row_bytes, segment=width), self._replace(row_bytes=width)


def _up(nbytes: int, granule: int) -> int:
    return -(-nbytes // granule) * granule
