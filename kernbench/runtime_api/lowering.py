"""Turns a schedule and the ranks' tensors into values, and into the record's commands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kernbench.ccl import Schedule, chunk_bounds, execute
from kernbench.memory import DType
from kernbench.runtime_api import copies
from kernbench.runtime_api.call import Call
from kernbench.runtime_api.reductions import combiner, finish
from kernbench.sim_engine.oplog import Access, Reduce, Transfer

BLOCK = 2**23
"""Elements worked on at a time, all slots of all ranks together."""


def carry_out(calls: list[Call]) -> None:
    """Compute what the collective leaves in every rank's memory and fill in the record. Calls are in group order."""
    compute(calls)
    record(calls)


# Values.


def compute(calls: list[Call]) -> None:
    """Every combination is rounded to the element type, in the schedule's order: all ranks get the same bits. What is
    only moved keeps its bits, NaN payloads included."""
    schedule, kind = calls[0].schedule, calls[0].dtype
    written = _written(calls)
    if not all(tensor._has_values() for call in calls for tensor in call.inputs):
        for tensors in written:
            for tensor in tensors:
                copies.store(tensor, None)
        return
    per = chunks_per_tensor(calls)
    first = schedule.slots.inputs if schedule.slots.outputs else 0
    moves_only = not calls[0].op
    carrier = np.dtype(f"u{kind.itemsize}") if moves_only else kind.carrier
    combine = combiner(calls[0].op or "sum", kind)
    sources = [[_chunks(tensor, per, moves_only) for tensor in call.inputs] for call in calls]
    targets = [[_chunks(tensor, per, moves_only) for tensor in tensors] for tensors in written]
    with np.errstate(all="ignore"):
        for columns, memory in _blocks(schedule, calls[0].elements, per, carrier):
            for rank, tensors in enumerate(sources):
                for i, chunks in enumerate(tensors):
                    for at, part in chunks:
                        piece = part[:, columns]
                        memory[rank, i * per + at : i * per + at + len(piece), : piece.shape[1]] = piece
            execute(schedule, memory, combine)
            for rank, tensors in enumerate(targets):
                for i, chunks in enumerate(tensors):
                    for at, part in chunks:
                        piece = part[:, columns]
                        row = first + i * per + at
                        done = memory[rank, row : row + len(piece), : piece.shape[1]]
                        piece[...] = finish(calls[0].op, done, len(calls), kind).astype(piece.dtype, copy=False)
    for tensors in written:
        for tensor in tensors:
            tensor._written()


def _written(calls: list[Call]) -> list[list]:
    """The tensors that each rank's part changes."""
    schedule = calls[0].schedule
    if schedule.slots.outputs:
        return [call.outputs for call in calls]
    steps = schedule.steps
    owner = np.where(steps["peer"] >= 0, steps["peer"], steps["rank"])
    changed = set(owner[steps["out"] < schedule.slots.inputs].tolist())
    return [call.inputs if rank in changed else [] for rank, call in enumerate(calls)]


def chunks_per_tensor(calls: list[Call]) -> int:
    """In how many chunks each input tensor is cut."""
    return calls[0].schedule.slots.inputs // max(len(call.inputs) for call in calls)


def _chunks(tensor, per: int, as_bits: bool) -> list[tuple[int, NDArray]]:
    """A tensor cut as :func:`chunk_bounds` does, as (number of the first chunk, array [chunks, elements]).

    Args:
        as_bits: elements are unsigned integers of their size.
    """
    flat = tensor._device_view().reshape(-1)
    if as_bits:
        flat = flat.view(f"u{flat.itemsize}")
    size, longer = divmod(len(flat), per)
    cut = longer * (size + 1)
    return [(0, flat[:cut].reshape(longer, size + 1)), (longer, flat[cut:].reshape(per - longer, size))]


def _blocks(schedule: Schedule, elements: int, per: int, carrier: np.dtype) -> Iterator[tuple[slice, NDArray]]:
    """Memory for all slots of all ranks, a block of columns at a time."""
    length = -(-elements // per)
    slots = schedule.ranks * schedule.slots.total
    width = max(1024, BLOCK // slots)
    for start in range(0, length, width):
        stop = min(length, start + width)
        yield slice(start, stop), np.zeros((schedule.ranks, schedule.slots.total, stop - start), carrier)


# Record.


def record(calls: list[Call]) -> None:
    """Write every step into the commands that the ranks have put into the record when they called."""
    schedule, kind = calls[0].schedule, calls[0].dtype
    sips = [call.sip.index for call in calls]
    per = chunks_per_tensor(calls)
    sizes = np.tile(np.diff(chunk_bounds(calls[0].elements, per)), schedule.chunks // per).tolist()
    address = _addresses(calls, per)
    steps: list[list[Transfer | Reduce]] = [[] for _ in calls]
    arriving: list[list[tuple[int, int]]] = [[] for _ in calls]
    name: list[tuple[tuple[int, int], ...]] = []
    """Step -> what a step that depends on it waits for: itself, or, where it moves nothing, what it waits for."""
    scratch = schedule.slots.inputs + schedule.slots.outputs
    for number, (_, rank, peer, a, b, out, chunk) in enumerate(schedule.steps.tolist()):
        deps = tuple(dict.fromkeys(pair for step in schedule.deps(number) for pair in name[step]))
        nbytes = sizes[chunk] * kind.itemsize
        if nbytes == 0:
            name.append(deps)
            continue
        name.append(((sips[rank], len(steps[rank])),))
        read = Access.contiguous(address[rank][a], nbytes)
        if peer >= 0:
            write = Access.contiguous(address[peer][out], nbytes)
            steps[rank].append(Transfer(sips[peer], read, write, nbytes, deps))
            if out < scratch:
                arriving[peer].extend(name[-1])
        else:
            reads = (read,) if b < 0 else (read, Access.contiguous(address[rank][b], nbytes))
            write = Access.contiguous(address[rank][out], nbytes)
            steps[rank].append(Reduce(reads, write, sizes[chunk], kind.name, nbytes, deps))
    for call, mine, done in zip(calls, steps, arriving, strict=True):
        if call.command is not None:
            call.command.steps[:] = mine
            call.command.done = tuple(done)


def _addresses(calls: list[Call], per: int) -> list[list[int]]:
    """Byte address of every slot of every rank; 0 for slots that a rank does not have."""
    slots, kind = calls[0].schedule.slots, calls[0].dtype
    starts = chunk_bounds(calls[0].elements, per)[:-1] * kind.itemsize
    found = []
    for call in calls:
        row = np.zeros(slots.total, np.int64)
        for first, tensors in ((0, call.inputs), (slots.inputs, call.outputs)):
            for i, tensor in enumerate(tensors):
                row[first + i * per : first + (i + 1) * per] = tensor._address() + starts
        if call.scratch is not None:
            longest = -(-calls[0].elements // per) * kind.itemsize
            row[slots.inputs + slots.outputs :] = call.scratch.allocation.base + np.arange(slots.scratch) * longest
        found.append(row.tolist())
    return found


def scratch_bytes(schedule: Schedule, elements: int, tensors: int, kind: DType) -> int:
    """Bytes of scratch one rank needs for a schedule over ``tensors`` inputs of ``elements`` elements each."""
    per = schedule.slots.inputs // tensors
    return schedule.slots.scratch * -(-elements // per) * kind.itemsize
