"""Faults at one end of a transport: between the ``ipc`` engine's processes, and between ranks of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.tensor import Tensor
from kernbench.weight_sync.arrays import Bytes
from kernbench.weight_sync.faults.injector import Damage, Fault, Injector, Killed


class FaultyConnection:
    """A connection of the ``ipc`` engine that meets a fault; give a function that makes one as ``wrap``.

    A step is a message, whichever way it goes. A kill closes the connection without a word.

    Args:
        buffer: the shared memory; a corrupted message then stands for corrupted memory: a bit of it is flipped after
            the trainer has filled it.
    """

    def __init__(self, connection: Any, injector: Injector[bytes], buffer: Bytes | None = None) -> None:
        self._connection, self._injector, self._buffer = connection, injector, buffer
        self._came: list[bytes] = []
        injector._kill = self._die

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def send_bytes(self, data: bytes) -> None:
        for message in self._pass_on(data):
            self._connection.send_bytes(message)

    def recv_bytes(self, limit: int | None = None) -> bytes:
        while not self._came:
            self._came += self._pass_on(self._connection.recv_bytes(limit))
        return self._came.pop(0)

    def poll(self, timeout: float | None = 0.0) -> bool:
        return bool(self._came) or self._connection.poll(timeout)

    def _pass_on(self, data: bytes) -> list[bytes]:
        fault, buffer = self._injector.fault, self._buffer
        if fault is None or fault.kind != "corrupt" or buffer is None or self._injector.steps != fault.step:
            return self._injector.pass_on(data)
        rng = np.random.default_rng(fault.seed)
        buffer[rng.integers(buffer.size)] ^= 1 << int(rng.integers(8))
        self._injector.steps += 1
        self._injector.struck = True
        return [data]

    def _die(self) -> NoReturn:
        self._connection.close()
        raise Killed("killed by a fault")


@contextmanager
def faulty_rank(ctx: RuntimeContext, rank: int, fault: Fault | None) -> Iterator[Injector[Tensor]]:
    """What ``rank`` of a spawn sends with ``broadcast``, ``send`` and ``isend`` meets a fault.

    A step is a tensor that it sends. A dropped one is never sent, a truncated one comes with zeros at its end, as
    receivers know its size, and a kill raises :class:`Killed` in the rank.
    """
    injector: Injector[Tensor] = Injector(fault, Damage(_flip, _blank))
    distributed = ctx.distributed

    def faulty(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def send(tensor: Tensor, *args: Any, **options: Any) -> Any:
            src = options.get("src", args[0] if args and name == "broadcast" else rank)
            if distributed.get_rank() != rank or src != rank:
                return real(tensor, *args, **options)
            work = None
            for one in injector.pass_on(tensor):
                work = real(one, *args, **options)
            return work

        return send

    names = ("broadcast", "send", "isend")
    for name in names:
        setattr(distributed, name, faulty(name, getattr(distributed, name)))
    try:
        yield injector
    finally:
        for name in names:
            delattr(distributed, name)


def _flip(tensor: Tensor, rng: np.random.Generator) -> Tensor:
    made, data = _bytes_of_copy(tensor)
    if data.numel():
        values = data.numpy()
        values[rng.integers(values.size)] ^= 1 << int(rng.integers(8))
        data.copy_(values)
    return made


def _blank(tensor: Tensor, rng: np.random.Generator) -> Tensor:
    made, data = _bytes_of_copy(tensor)
    if data.numel():
        values = data.numpy()
        values[rng.integers(values.size) :] = 0
        data.copy_(values)
    return made


def _bytes_of_copy(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of a device tensor, and its memory as uint8[n]."""
    made = tensor.clone()
    return made, made.view(-1).view("uint8")
