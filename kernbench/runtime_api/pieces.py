"""Into how many pieces a message is cut on its way along a chain of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernbench.ccl import cost

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext

MOST = 64


def chain_pieces(ctx: RuntimeContext, ranks: int, nbytes: int) -> int:
    """Enough of them that filling the pipeline costs little on this machine's links between SIPs; one where the fabric
    has no single bandwidth."""
    fabric = ctx.spec.system.fabric
    bandwidth, latency = getattr(fabric, "bandwidth", None), getattr(fabric, "latency", None)
    if ranks <= 2 or not bandwidth or latency is None:
        return 1
    return min(MOST, cost.enough_pieces(ranks, nbytes, float(bandwidth), float(latency) * 1e-12))
