"""``copy_`` and its relatives: between host and device, and within one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kernbench.runtime_api import generate, host_reads, layout
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.convert import cast, to_numpy
from kernbench.runtime_api.where import user_line
from kernbench.sim_engine.oplog import Copy

if TYPE_CHECKING:
    from kernbench.runtime_api.rank import Rank
    from kernbench.runtime_api.tensor import Tensor


def copy(target: Tensor, source: Tensor, blocking: bool) -> None:
    """Write ``source``, stretched and cast, into ``target``.

    Raises:
        RuntimeError: the shapes do not fit, or the tensors are on two different SIPs.
    """
    if not layout.stretches(source.shape, target.shape):
        raise RuntimeError(f"copy_ from shape {source.shape} into shape {target.shape}: sizes have to be equal, or 1")
    if source._storage is None:
        _from_host(target, source, blocking)
    elif target._storage is None:
        host_reads.barrier(source)
        target._set_host(fetch(source, blocking), source._has_values())
    elif target._storage.sip is source._storage.sip:
        _within(target, source)
    else:
        raise RuntimeError(
            f"copy_ from {source.device} to {target.device}: one rank cannot reach another's memory. Use "
            "ctx.distributed (send and recv, broadcast), or go through the host with .cpu()"
        )


def _from_host(target: Tensor, source: Tensor, blocking: bool) -> None:
    values = source._host_or_none()
    if target._storage is None:
        target._set_host(values, values is not None)
        return
    sip = driver(target).sip
    sip.touch(target, writes=True)
    store(target, values)
    placed = sip.placed([target._storage.allocation])
    sip.queue(Copy("h2d", target._access(), target.nbytes, sip.current.number, blocking, placements=placed))


def _within(target: Tensor, source: Tensor) -> None:
    assert target._storage is not None and source._storage is not None
    sip = driver(target).sip
    plain = target.shape == source.shape and target.is_contiguous() and source.is_contiguous()
    if not plain or target.dtype != source.dtype:
        from kernbench.kernels import builtin

        if target.is_contiguous() and not source._has_values():
            target._mark(valid=False)  # at once: tile by tile would take a map as large as the tensor
        builtin.copy(target, source.expand(target.shape))
        return
    sip.touch(target, writes=True)
    sip.touch(source)
    store(target, source._device_view() if source._has_values() else None)
    sip.queue(Copy("d2d", target._access(), target.nbytes, sip.current.number, blocking=False, source=source._access()))


def driver(tensor: Tensor) -> Rank:
    """The running rank, which must drive the SIP that holds ``tensor``.

    Raises:
        RuntimeError: it drives another one.
    """
    assert tensor._storage is not None
    rank = ranks.current_in(tensor._storage.sip.ctx)
    if rank.sip is not tensor._storage.sip:
        raise RuntimeError(
            f"tensor '{tensor.name}' is on {tensor.device}, but this rank's current device is ahbm:{rank.device}"
        )
    return rank


def store(target: Tensor, values: NDArray[Any] | None) -> None:
    """Put values into device memory, stretched and cast; None marks the bytes as not computed. Records nothing."""
    assert target._storage is not None
    if target.numel() == 0:
        return
    if values is not None:
        target._device_view()[...] = cast(values, target.dtype)
        target._written()
    else:
        target._mark(valid=False)
        target._storage.allocation.wrote()


def fetch(source: Tensor, blocking: bool = True) -> NDArray[Any] | None:
    """A copy of a device tensor's values on the host, recorded; None where a timing-only run has not computed them."""
    assert source._storage is not None
    rank = host_reads.reader(source._storage)
    if rank is not None:
        sip = source._storage.sip
        placed = sip.placed([source._storage.allocation])
        sip.queue(Copy("d2h", source._access(), source.nbytes, sip.current.number, blocking, placements=placed))
    return np.array(source._device_view()) if source._has_values() else None


def fill(target: Tensor, value: Any, name: str = "fill", op: str = "") -> None:
    """Write a number, or an array of the tensor's shape, or nothing that is known (None), as one kernel would."""
    if target._storage is None:
        target._set_host(None if value is None else np.asarray(value), value is not None)
        return
    rank = driver(target)
    sip = rank.sip
    if not target.is_contiguous():
        from kernbench.kernels import builtin

        builtin.fill(target, value)
        return
    sip.touch(target, writes=True)
    store(target, None if value is None else np.asarray(value))
    if target.nbytes:
        address, itemsize = target.data_ptr(), target.dtype.itemsize
        made = generate.record(name, address, target.nbytes, itemsize, rank.target.pes, user_line(), op)
        rank.submit(made)


def as_tensor(value: Any) -> Tensor:
    """``value`` if it is a tensor, else a host tensor of it."""
    from kernbench.runtime_api.tensor import Tensor

    return value if isinstance(value, Tensor) else Tensor._of_array(to_numpy(value))
