"""Reading a tensor on the host, and the closed list of everything that does.

A host read is a barrier for what the tensor depends on: it comes after everything queued on the current stream, the
host waits for it, and what a collective is still to write must not be read by the rank that started it.
Reading another rank's tensor shows what its memory holds and waits for nothing, since waiting for that rank's
collectives could need the very rank that reads.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from kernbench.kernels.errors import ValuesNeeded
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.errors import ContextError
from kernbench.runtime_api.where import user_line

if TYPE_CHECKING:
    from kernbench.runtime_api.rank import Rank
    from kernbench.runtime_api.storage import Storage
    from kernbench.runtime_api.tensor import Tensor

HOST_READS = (
    "numpy",
    "item",
    "tolist",
    "cpu",
    "data",
    "__getitem__",  # of one element; a slice is a view, and reading the view is the read
    "__repr__",
    "__array__",
    "__dlpack__",
    "__bool__",
    "__float__",
    "__int__",
    "__iter__",
    "__format__",
)
"""Every way to read. The source of ``copy_`` is one more (it goes through :func:`barrier`); its target is none."""


def install(cls: type[Tensor]) -> None:
    """Put the barrier in front of every method and property in the list."""
    for name in HOST_READS:
        member = vars(cls)[name]
        if name == "__getitem__":
            cls.__getitem__ = _guarded_element(member)  # type: ignore[method-assign]
        elif isinstance(member, property):
            assert member.fget is not None
            setattr(cls, name, property(_guarded(member.fget), doc=member.__doc__))
        else:
            setattr(cls, name, _guarded(member))


def _guarded(read: Any) -> Any:
    @functools.wraps(read)
    def after_barrier(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        barrier(self)
        return read(self, *args, **kwargs)

    return after_barrier


def _guarded_element(index: Any) -> Any:
    @functools.wraps(index)
    def before_barrier(self: Tensor, key: Any) -> Tensor:
        view: Tensor = index(self, key)
        if view.ndim == 0:
            barrier(view)
        return view

    return before_barrier


def barrier(tensor: Tensor) -> None:
    """Raise InFlightError where a collective of the running rank itself is still to write ``tensor``."""
    storage = tensor._storage
    if storage is None:
        return
    rank = reader(storage)
    if rank is not None:
        rank.breathe()
        storage.sip.touch(tensor)


def reader(storage: Storage) -> Rank | None:
    """The running rank if it drives the SIP that holds ``storage``; the main program drives all that no rank does."""
    try:
        rank = ranks.current_in(storage.sip.ctx)
    except ContextError:
        return None
    if rank.task is None:
        return rank
    return rank if rank.ctx.sips[rank.device] is storage.sip and rank.sip is storage.sip else None


def need_values(tensor: Tensor) -> None:
    """Raise ValuesNeeded where a timing-only run has skipped some of the tensor's values."""
    if not tensor._has_values():
        raise ValuesNeeded(
            f"{user_line()}: reads the values of tensor '{tensor.name}', which a timing-only run does not compute. "
            "Run with data (enable_data=True, or without --no-data), or do not read it."
        )
