"""Names of devices, as a user writes and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEVICE_TYPE = "ahbm"


@dataclass(frozen=True)
class Device:
    """Where a tensor lives: ``cpu``, or a SIP such as ``ahbm:0``. Equal to its text, too."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device(type='{self.type}'" + ("" if self.index is None else f", index={self.index}") + ")"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str(self) == other
        return isinstance(other, Device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def parse(cls, spec: Any, current: int) -> Device:
        """``"cpu"``, ``"ahbm"`` (the current one), ``"ahbm:2"``, ``2``, a :class:`Device`, or torch's CPU device.

        Raises:
            ValueError: anything else.
        """
        if isinstance(spec, Device):
            return spec
        if isinstance(spec, int):
            return cls(DEVICE_TYPE, spec)
        kind, colon, index = str(spec).partition(":")
        if kind == "cpu":
            return CPU
        if kind == DEVICE_TYPE and (not colon or index.isdigit()):
            return cls(DEVICE_TYPE, int(index) if colon else current)
        raise ValueError(
            f"unknown device {spec!r}: expected 'cpu', '{DEVICE_TYPE}' or '{DEVICE_TYPE}:<number of a SIP>'"
        )


CPU = Device("cpu")


@dataclass(frozen=True)
class DeviceSelector:
    """Which SIPs of a machine a context may use: ``"all"``, one number, a list, or text such as ``"0,2"``."""

    which: str | int | Sequence[int] = "all"

    def indices(self, count: int) -> tuple[int, ...]:
        """The chosen SIPs of a machine that has ``count``, ascending.

        Raises:
            ValueError: a number that the machine does not have, or text that is no list of numbers.
        """
        if self.which == "all":
            return tuple(range(count))
        given = self.which.split(",") if isinstance(self.which, str) else self.which
        try:
            chosen = sorted({int(i) for i in given}) if not isinstance(given, int) else [given]
        except ValueError:
            raise ValueError(
                f"DeviceSelector({self.which!r}): expected 'all' or numbers of SIPs such as '0,2'"
            ) from None
        wrong = [i for i in chosen if not 0 <= i < count]
        if wrong or not chosen:
            raise ValueError(f"DeviceSelector({self.which!r}): the machine has the SIPs 0 to {count - 1}")
        return tuple(chosen)
