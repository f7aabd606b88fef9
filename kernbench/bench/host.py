"""What benches do on the host, with values and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.runtime_api.tensor import Tensor


def upload(ctx: RuntimeContext, tensor: Tensor, values: Any) -> None:
    """Copy an array to a tensor of the device. Timing-only runs move the same bytes without making them up: there
    ``values`` may be None."""
    if ctx.enable_data:
        tensor.copy_(ctx.from_numpy(np.ascontiguousarray(values)))
    else:
        tensor.copy_(ctx.host_empty(tensor.shape, dtype=tensor.dtype))


def meet(ctx: RuntimeContext) -> None:
    """Wait until every rank has done what it has begun."""
    ctx.ahbm.synchronize()
    ctx.distributed.barrier()
    ctx.ahbm.synchronize()
