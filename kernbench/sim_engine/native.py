"""The compiled replay: the same result as :mod:`kernbench.sim_engine.reference`, in one call on whole arrays."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from kernbench import _native
from kernbench.sim_engine.bound import BoundLog
from kernbench.sim_engine.machine import Machine
from kernbench.sim_engine.state import Replay, ResourceState, check_finished

_FIELDS = (
    "ops:n queues:n queue pattern path duration release dep_ptr deps queue_depth queue_issue queue_engine "
    "set_ptr set_channel set_ps set_stack message_ptr slot bytes source destination "
    "hop_ptr hop_link hop_latency request slot_route first_slot source_channel destination_channel access "
    "links:n engines:n channels_per_cube:n link_ps_per_byte "
    "link_free link_last channel_free stack_last engine_free engine_last queue_issued queue_tail tail_width:n "
    "order ptr start finish moved waits_for events:n"
)


class _KbReplay(ctypes.Structure):
    """``struct KbReplay`` of replay.cpp: numbers are int64, the others pointers to arrays."""

    _fields_ = [
        (name.removesuffix(":n"), ctypes.c_int64 if name.endswith(":n") else ctypes.c_void_p)
        for name in _FIELDS.split()
    ]


def available() -> bool:
    """Whether the compiled core is there."""
    return _native.library() is not None


def replay(bound: BoundLog, machine: Machine, state: ResourceState) -> Replay:
    """Run every op of ``bound`` on the machine; ``state`` is carried on.

    Raises:
        CyclicWaitError: some ops can never start.
        OverflowError: more than 2^32 messages; replay in shorter pieces.
    """
    library = _native.library()
    if library is None:
        raise RuntimeError("the compiled core is missing: use kernbench.sim_engine.reference.replay")
    rows = state.queues(bound)
    count, queues = bound.count, len(bound.queue_key)
    start, finish = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    moved, waits_for = np.zeros(count, np.uint8), np.full(queues, -1, np.int64)
    order, ptr = np.empty(count, np.int64), np.empty(queues + 1, np.int64)
    tail = np.ascontiguousarray(state.queue_tail[rows])
    patterns, paths = bound.patterns, bound.paths
    arrays: dict[str, NDArray] = {
        **{
            name: getattr(bound, name)
            for name in ("queue", "pattern", "path", "duration", "release", "dep_ptr", "deps")
        },
        **{name: getattr(bound, name) for name in ("queue_depth", "queue_issue", "queue_engine")},
        **{name: getattr(patterns, name).view for name in ("set_ptr", "set_channel", "set_ps", "set_stack")},
        **{name: getattr(patterns, name).view for name in ("message_ptr", "slot", "bytes", "source", "destination")},
        **{name: getattr(paths, name).view for name in ("hop_ptr", "hop_link", "hop_latency", "request", "slot_route")},
        **{
            name: getattr(paths, name).view
            for name in ("first_slot", "source_channel", "destination_channel", "access")
        },
        **{name: getattr(state, name) for name in ("link_free", "link_last", "channel_free", "stack_last")},
        **{name: getattr(state, name) for name in ("engine_free", "engine_last")},
        "link_ps_per_byte": machine.link_ps_per_byte,
        "queue_issued": state.queue_issued[rows],
        "queue_tail": tail,
        "order": order,
        "ptr": ptr,
        "start": start,
        "finish": finish,
        "moved": moved,
        "waits_for": waits_for,
    }
    numbers = {
        "ops": count,
        "queues": queues,
        "links": len(machine.link_ps_per_byte),
        "engines": machine.engines,
        "channels_per_cube": machine.channels_per_cube,
        "tail_width": tail.shape[1],
        "events": 0,
    }
    kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    call = _KbReplay(**numbers, **{name: array.ctypes.data for name, array in kept.items()})
    if library.kb_replay(ctypes.byref(call)) != 0:
        raise OverflowError(
            "more than 2^32 messages in one replay: ask for times more often, so that it runs in pieces"
        )
    done = Replay(start, finish, moved.astype(np.bool_), call.events)
    check_finished(bound, finish, waits_for)
    state.advance(bound, rows, order, ptr, done)
    return done
