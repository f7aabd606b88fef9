"""Quantities with units: ``819 GB/s``, ``64 GiB``, ``1.5 us``, ``1 GHz``.

Base units are bytes (int), bytes per second (float), picoseconds (int) and hertz (float). Arithmetic is decimal, so
what is written is what is meant: ``0.1 us`` is exactly 100,000 ps. SI prefixes are powers of ten, binary ones powers of
two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from numbers import Integral
from typing import Any

_SI = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
_BYTES = {f"{p}B": Decimal(10) ** e for p, e in _SI.items()} | {
    f"{p}iB": Decimal(2) ** (10 * (i + 1)) for i, p in enumerate("KMGTP")
}
_BITS = {f"{p}bit/s": Decimal(10) ** e / 8 for p, e in _SI.items()}


@dataclass(frozen=True, eq=False)
class Dimension:
    """A kind of quantity: its units as multiples of the base unit, and an example for messages."""

    name: str
    example: str
    units: dict[str, Decimal]
    whole: str = ""
    """Name of the base unit where only whole numbers of it exist."""
    printed: tuple[str, ...] = ()
    """Units that :func:`format_quantity` chooses from, largest first."""


BYTES = Dimension(
    "size",
    "64 GiB",
    _BYTES,
    whole="bytes",
    printed=("PiB", "TiB", "GiB", "MiB", "KiB", "PB", "TB", "GB", "MB", "kB", "B"),
)
BANDWIDTH = Dimension(
    "bandwidth",
    "819 GB/s",
    {f"{u}/s": f for u, f in _BYTES.items()} | _BITS,
    printed=("PB/s", "TB/s", "GB/s", "MB/s", "kB/s", "B/s"),
)
DURATION = Dimension(
    "duration",
    "90 ns",
    {"ps": Decimal(1), "ns": Decimal(10**3), "us": Decimal(10**6), "µs": Decimal(10**6)}
    | {"ms": Decimal(10**9), "s": Decimal(10**12)},
    whole="picoseconds",
    printed=("s", "ms", "us", "ns", "ps"),
)
FREQUENCY = Dimension(
    "frequency",
    "1 GHz",
    {f"{p}Hz": Decimal(10) ** e for p, e in _SI.items()},
    printed=("THz", "GHz", "MHz", "kHz", "Hz"),
)
DIMENSIONS = (BYTES, BANDWIDTH, DURATION, FREQUENCY)

_QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*?)?\s*")


def parse(text: Any, dimension: Dimension) -> int | float:
    """The value of ``text`` in the dimension's base unit: int for bytes and picoseconds, float for the others.

    Raises:
        ValueError: no number, no unit, an unknown or ambiguous unit, a unit of another dimension, a negative value, or
            a fraction of a byte or picosecond. The message says what was found and gives an example.
    """
    expected = f"expected a {dimension.name} such as `{dimension.example}`"
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError(f"found `{text}` without a unit, {expected}")
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"found {_shown(text)}, {expected}")
    number, unit = Decimal(match[1].replace("_", "")), match[2]
    if unit is None:
        raise ValueError(f"found {_shown(text)} without a unit, {expected}")
    factor = dimension.units.get(unit)
    if factor is None:
        raise ValueError(f"found {_shown(text)}{_about_unit(unit, dimension)}, {expected}")
    value = number * factor
    if value < 0:
        raise ValueError(f"found {_shown(text)}, which is negative, {expected}")
    if not dimension.whole:
        if float(value) == inf:
            raise ValueError(f"found {_shown(text)}, which is too large, {expected}")
        return float(value)
    if value != int(value):
        raise ValueError(f"found {_shown(text)}, which is no whole number of {dimension.whole}, {expected}")
    return int(value)


def format_quantity(value: int | float, dimension: Dimension, digits: int | None = None) -> str:
    """``value`` (in the base unit) as text in the largest unit that leaves at least 1.

    Without ``digits`` the text is exact: :func:`parse` gives back the same value. With it, that many significant
    digits. A binary prefix is only used where it gives at most two decimals.
    """
    exact = Decimal(int(value)) if isinstance(value, Integral) else Decimal(repr(float(value)))
    for unit in dimension.printed:
        scaled = exact / dimension.units[unit]
        if scaled < 1 and unit != dimension.printed[-1]:
            continue
        if "iB" in unit and scaled * 100 != int(scaled * 100):
            continue
        if digits is not None:
            text = f"{float(scaled):.{digits}g}"
            return f"{float(scaled):.0f} {unit}" if "e" in text else f"{text} {unit}"
        return f"{_plain(scaled)} {unit}"
    raise AssertionError("the last unit always fits")


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _shown(text: Any) -> str:
    return "nothing" if text is None else f"`{text}`"


def _about_unit(unit: str, dimension: Dimension) -> str:
    """What is wrong with a unit, as a clause."""
    for other in DIMENSIONS:
        if unit in other.units:
            return f", which is a {other.name}"
    bare = unit.removesuffix("/s")
    if re.fullmatch("[kKMGTP]?b", bare):
        prefix = bare[:-1].replace("K", "k")
        return f", where `{bare}` could be bits or bytes (write `{prefix}B` or `{prefix}bit`)"
    if bare == "KB":
        return ", where `KB` could be 1000 or 1024 bytes (write `kB` or `KiB`)"
    folded = [u for u in dimension.units if u.lower() == unit.lower()]
    if folded:
        return f" (did you mean `{folded[0]}`?)"
    return f" with the unknown unit `{unit}`"
