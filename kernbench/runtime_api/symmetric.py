"""``ctx.distributed.symmetric_memory``: tensors that every rank has at the same address, so that kernels reach those of
other ranks (:mod:`kernbench.language`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kernbench.kernels import team
from kernbench.memory import DType, dtype
from kernbench.memory.space import ALIGNMENT, AddressSpace, OutOfMemoryError
from kernbench.runtime_api import copies, layout
from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.errors import MismatchError
from kernbench.runtime_api.scheduler import Wait
from kernbench.runtime_api.storage import Storage
from kernbench.runtime_api.tensor import Tensor
from kernbench.runtime_api.where import Where, user_line

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.runtime_api.rank import World

_dtype = dtype


@dataclass(eq=False)
class _Meeting:
    """One call on every rank."""

    asked: dict[int, tuple[layout.Shape, DType, str, Where]] = field(default_factory=dict)
    over: bool = False
    tensors: dict[int, Tensor] = field(default_factory=dict)
    """Rank -> its tensor, until it takes it."""
    error: Exception | None = None


class SymmetricMemory:
    """All ranks call these functions in the same order, with the same sizes."""

    def __init__(self, ctx: RuntimeContext) -> None:
        self._ctx = ctx

    def empty(self, *shape: Any, dtype: Any = "f16", name: str = "symmetric") -> Tensor:
        """Memory that nothing has written, at the same address on every rank. It reads as zeros.

        Args:
            shape: a sequence, or sizes one by one.
            dtype: anything :func:`kernbench.memory.dtype` understands.
            name: what errors and memory summaries call it.

        Raises:
            ValueError: a size is negative.
            MismatchError: another rank asks for something else.
            OutOfMemoryError: no range is free on all ranks.
        """
        sizes, kind = layout.sizes(*shape), _dtype(dtype)
        layout.elements(sizes)  # a shape that is none is refused before anybody is waited for
        rank = ranks.current_in(self._ctx)
        rank.breathe()
        meetings: list[_Meeting] = rank.world.symmetric
        number = rank.local[_Meeting] = rank.local.get(_Meeting, -1) + 1
        if number == len(meetings):
            meetings.append(_Meeting())
        meeting, where = meetings[number], user_line()
        meeting.asked[rank.index] = (sizes, kind, name, where)
        if len(meeting.asked) == rank.world.size:
            _carry_out(meeting, rank.world)
            meeting.over = True
            for other in rank.world.ranks:
                other.wake()
        missing = Wait(f"symmetric_memory #{number}", where, lambda: set(range(rank.world.size)) - meeting.asked.keys())
        rank.park_until(lambda: meeting.over, missing)
        if meeting.error is not None:
            raise meeting.error
        return meeting.tensors.pop(rank.index)

    def zeros(self, *shape: Any, dtype: Any = "f16", name: str = "symmetric") -> Tensor:
        """:meth:`empty`, filled with zeros on every rank. A rank may run ahead of another's fill: meet in a barrier
        before the first remote write."""
        made = self.empty(*shape, dtype=dtype, name=name)
        copies.fill(made, 0)
        return made


def _carry_out(meeting: _Meeting, world: World) -> None:
    """Every rank has called: allocate on all of them."""
    first = meeting.asked[min(meeting.asked)]
    for index, asked in sorted(meeting.asked.items()):
        if asked[:2] != first[:2]:
            meeting.error = MismatchError(
                f"symmetric_memory: rank {min(meeting.asked)} asks for {list(first[0])} of {first[1]} at {first[3]}, "
                f"rank {index} for {list(asked[0])} of {asked[1]} at {asked[3]}. All ranks have to ask for the same, "
                "in the same order"
            )
            return
    sizes, kind = first[:2]
    nbytes = layout.elements(sizes) * kind.itemsize
    sips = [rank.sip for rank in sorted(world.ranks, key=lambda rank: rank.index)]
    streams = [sip.current.number for sip in sips]
    spaces = [sip.space for sip in sips]
    base = _common(spaces, streams, nbytes)
    if base is None:
        for space in spaces:
            space.reclaim()
        base = _common(spaces, streams, nbytes)
    if base is None:
        held = "\n".join(f"{space.name}:\n{space.summary(4)}" for space in spaces[:4])
        meeting.error = OutOfMemoryError(
            f"symmetric_memory: no {nbytes / 2**20:.2f} MiB are free at the same address on all {len(spaces)} ranks. "
            f"Held by\n{held}"
        )
        return
    for index, sip in enumerate(sips):
        name = meeting.asked[index][2]
        storage = Storage(sip, nbytes, name, at=base)
        team.symmetric.add(storage.allocation)
        meeting.tensors[index] = Tensor._on(storage, sizes, kind, name)


def _common(spaces: Sequence[AddressSpace], streams: Sequence[int], nbytes: int) -> int | None:
    """The highest address with room in every space; ordinary memory grows from the lowest."""
    size = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
    common = spaces[0].holes(streams[0])
    for space, stream in zip(spaces[1:], streams[1:], strict=True):
        common = [
            (max(a, b), min(a + n, b + m) - max(a, b))
            for a, n in common
            for b, m in space.holes(stream)
            if max(a, b) < min(a + n, b + m)
        ]
    fits = [at + length - size for at, length in common if length >= size]
    return max(fits) // ALIGNMENT * ALIGNMENT if fits else None
