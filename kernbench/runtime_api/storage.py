"""Device memory that lives as long as the tensors on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernbench.kernels import sanitize
from kernbench.memory import INTERLEAVED, Placement

if TYPE_CHECKING:
    from kernbench.runtime_api.sip import Sip


class Storage:
    """One allocation on a SIP, at a given address or anywhere. When the last tensor on it dies, its range goes back to
    the stream it was made on.

    Raises:
        OutOfMemoryError: the SIP's memory is full; the message says who holds what.
    """

    def __init__(
        self, sip: Sip, nbytes: int, name: str, placement: Placement = INTERLEAVED, at: int | None = None
    ) -> None:
        self.sip = sip
        if at is None:
            self.allocation = sip.space.alloc(nbytes, name, placement, sip.current.number)
        else:
            self.allocation = sip.space.alloc_at(at, nbytes, name, sip.current.number)
        if sip.ctx.enable_data and sanitize.tracks_writes():
            self.allocation.forget()

    def __del__(self) -> None:
        allocation = getattr(self, "allocation", None)  # absent where the allocation itself failed
        if allocation is not None:
            self.sip.space.free(allocation)
