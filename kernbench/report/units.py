"""Numbers with units, for people."""

from __future__ import annotations

_TIME = ((1e12, "s"), (1e9, "ms"), (1e6, "us"), (1e3, "ns"))


def time(ps: float) -> str:
    """Picoseconds with a fitting unit and three significant digits: ``1.41 ms``."""
    for size, unit in _TIME:
        if ps >= size:
            return f"{_three(ps / size)} {unit}"
    return f"{ps:.0f} ps"


def size(nbytes: float) -> str:
    """Bytes with a binary prefix: ``58.7 MiB``."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            return f"{_three(nbytes / 1024**power)} {unit}"
    return f"{nbytes:.0f} B"


def rate(per_second: float, unit: str) -> str:
    """A rate with a decimal prefix: ``2.97 TB/s``."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if per_second >= 10**power:
            return f"{_three(per_second / 10**power)} {prefix}{unit}"
    return f"{_three(per_second)} {unit}"


def percent(part: float) -> str:
    """A fraction as percent; less than half a percent but not nothing is ``<1 %``."""
    return "<1 %" if 0 < part < 0.005 else f"{part * 100:.0f} %"


def _three(x: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"
