"""Which HBM channel a byte lives on.

A :class:`Placement` is a page map over one flat allocation: the byte offset picks a cube (and, where asked, a PE's
share of its channels) by sharding, then the address's granule is hashed over the channels that remain. It decides what
an access costs and never what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One level of spreading (over cubes, or over the PEs of a cube).

    The shard of byte offset ``o`` is ``(o % period) // segment``, at most ``parts - 1``. ``replicate`` keeps a copy in
    every part instead: reads go to the nearest copy, writes to all of them.
    """

    parts: int
    replicate: bool = False
    period: int = 1
    segment: int = 1


@dataclass(frozen=True)
class Placement:
    """Where the bytes of one allocation lie. ``cubes`` None: hashed over every channel of the SIP (the default)."""

    cubes: Axis | None = None
    pes: Axis | None = None

    @property
    def copies(self) -> int:
        """How many copies of the bytes exist, which capacity has to pay for."""
        copies = 1
        for axis in (self.cubes, self.pes):
            if axis is not None and axis.replicate:
                copies *= axis.parts
        return copies


INTERLEAVED = Placement()
