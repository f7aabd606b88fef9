"""The ``ipc`` engine: between processes of one machine, through one buffer in shared memory that is used again.

::

    trainer   fills a slot of the buffer     says what is in it     waits for every worker before it fills it again
    worker    hears of it                    copies it out          says so, then hands the tensors over

They talk over a Unix socket in a folder that only their user can enter. The buffer has no name: its file is removed at
once and workers get its descriptor, so nothing is left behind however a process dies. The death of one ends the
update of the other with an error.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import KW_ONLY, dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any

import numpy as np

from kernbench.weight_sync.arrays import Bytes, Framework, describe, from_bytes, iter_bytes, start_digest
from kernbench.weight_sync.dtypes import wire_type
from kernbench.weight_sync.processes import is_alive
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    trainer_arguments,
)
from kernbench.weight_sync.transfer.packed import check_buffers

BUFFER_BYTES = 8 << 20
SLOTS = 4
TIMEOUT = 120.0
_MESSAGE_BYTES = 64 << 20
_FOLDER = "kernbench-transfer-"


@dataclass
class IpcInitInfo(WeightTransferInitInfo):
    """Attributes:
    framework: of the tensors that are handed over; torch if the process has imported it, else numpy.
    """

    framework: Framework | None = None


@dataclass
class IpcUpdateInfo(WeightTransferUpdateInfo):
    """Attributes:
    address: path of the trainer's socket.
    timeout: seconds to wait for the trainer's next word.
    """

    address: str
    _: KW_ONLY
    timeout: float = TIMEOUT


@dataclass
class IpcTrainerArgs:
    """Attributes:
    address: path of the socket, as :func:`new_address` makes it.
    workers: how many there are; the update begins when all have come.
    buffer_size_bytes, num_buffers: of the slots of the buffer: those of the default fit into a cache.
    timeout: seconds to wait for a worker, to come or to copy a slot.
    wrap: called with every connection and the shared memory, uint8[n]; what it gives is used as the connection. For
        tests: see :class:`kernbench.weight_sync.faults.FaultyConnection`.
    """

    address: str
    workers: int = 1
    buffer_size_bytes: int = BUFFER_BYTES // SLOTS
    num_buffers: int = SLOTS
    timeout: float = TIMEOUT
    wrap: Callable[[Any, Bytes], Any] | None = None

    def __post_init__(self) -> None:
        check_buffers(self.buffer_size_bytes, self.num_buffers)
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: give at least 1")


class IpcError(RuntimeError):
    """The other side has died, is silent, or reports an error."""


class PeerDiedError(IpcError):
    """The other side has died."""


def new_address() -> str:
    """A path for the trainer's socket, in a new folder that is this user's alone.

    Folders that trainers which have died left behind are removed.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError, ValueError):  # links and other names are somebody else's
            mine = not old.is_symlink() and old.lstat().st_uid == os.getuid()
            if mine and not is_alive(int(old.name.split("-")[2])):
                _remove(old / "socket")
    return str(Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")) / "socket")


class IpcWeightTransferEngine(WeightTransferEngine[IpcInitInfo, IpcUpdateInfo]):
    """Bit exact for every type. Received tensors have memory of their own, and their hashes are compared."""

    init_info_cls = IpcInitInfo
    update_info_cls = IpcUpdateInfo

    def receive_weights(self, update_info: IpcUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over the tensors that a slot completes.

        Raises:
            RuntimeError: "not initialized"; or IpcError.
            ValueError: a tensor came damaged. The trainer hears of every error here.
        """
        framework = self.info.framework
        with ExitStack() as stack:
            peer = _connect(update_info, stack)
            try:
                buffer = _map(peer.receive_descriptor())
                _Receiver(peer, buffer, framework).run(load_weights)
            except PeerDiedError:
                _remove(Path(update_info.address))
                raise
            except BaseException as error:
                with suppress(OSError, IpcError):
                    peer.send({"error": f"{type(error).__name__}: {error}"})
                raise

    @staticmethod
    def trainer_send_weights(
        iterator: Iterator[tuple[str, Any]], trainer_args: dict[str, Any] | IpcTrainerArgs
    ) -> None:
        """Send to all workers, whose ``update_info`` is ``{"address": address}``; returns when all have loaded it.

        Raises:
            IpcError: a worker has died, is silent, or failed. The others get an error too.
        """
        args = trainer_arguments(IpcTrainerArgs, trainer_args)
        with ExitStack() as stack:
            with ExitStack() as until_all_are_here:
                listener = _listen(args, until_all_are_here)
                peers = [_accept(listener, n, args, stack) for n in range(args.workers)]
            number, buffer = _create(args.buffer_size_bytes * args.num_buffers)
            stack.callback(os.close, number)
            for peer in peers:
                send_handle(peer.connection, number, None)
                if args.wrap is not None:
                    peer.connection = args.wrap(peer.connection, buffer)
                peer.send({"slots": args.num_buffers, "nbytes": args.buffer_size_bytes})
            sender = _Sender(peers, buffer, args.buffer_size_bytes, args.num_buffers)
            try:
                sender.run(iterator)
            except BaseException as error:
                for peer in peers:
                    with suppress(OSError, IpcError):
                        peer.send({"error": f"the trainer failed: {type(error).__name__}: {error}"})
                raise


class _Peer:
    """The other end of a socket: one JSON object a message."""

    def __init__(self, name: str, connection: Connection, timeout: float) -> None:
        self.name, self.timeout = name, timeout
        self.connection: Any = connection

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            while True:  # what it has said before it left, which ends with why, or with its end
                self.receive()

    def receive(self) -> dict[str, Any]:
        self._wait()
        try:
            message: dict[str, Any] = json.loads(self._read())
        except (EOFError, ConnectionResetError):
            raise PeerDiedError(f"{self.name} has died") from None
        if "error" in message:
            raise IpcError(f"{self.name}: {message['error']}")
        return message

    def _read(self) -> bytes:
        try:
            return self.connection.recv_bytes(_MESSAGE_BYTES)
        except ConnectionResetError:  # said once, before what the other side had sent until then
            return self.connection.recv_bytes(_MESSAGE_BYTES)

    def receive_descriptor(self) -> int:
        self._wait()
        try:
            return recv_handle(self.connection)
        except (EOFError, OSError, RuntimeError):
            raise PeerDiedError(f"{self.name} has died, or waits for other workers in vain") from None

    def _wait(self) -> None:
        if not self.connection.poll(self.timeout):
            raise IpcError(f"{self.name} has said nothing for {self.timeout} s")


class _Sender:
    """Fills slots in turn, each after every worker has copied what was in it."""

    def __init__(self, peers: list[_Peer], buffer: Bytes, size: int, slots: int) -> None:
        self.peers, self.buffer, self.size, self.slots = peers, buffer, size, slots
        self.turn = 0
        self.used = 0
        self.entries: list[dict[str, Any]] = []

    def run(self, weights: Iterator[tuple[str, Any]]) -> None:
        count = 0
        for name, weight in weights:
            count += 1
            kind, shape = describe(weight)
            state = start_digest(kind, shape)
            self.entries.append({"name": name, "dtype": kind.name, "shape": list(shape)})
            for piece in iter_bytes(weight, min(self.size, 4 << 20)):
                state.update(piece)
                self._put(piece)
            self.entries.append({"digest": state.hexdigest()})
        self._flush()
        for peer in self.peers:
            peer.send({"end": count})
        for _ in range(min(self.turn, self.slots)):
            self._wait()
        for peer in self.peers:
            if peer.receive() != {"loaded": count}:
                raise IpcError(f"{peer.name} does not confirm that it has loaded {count} tensors")

    def _put(self, piece: Bytes) -> None:
        while piece.size:
            if self.used == self.size:
                self._flush()
            if not self.used and self.turn >= self.slots:
                self._wait()
            take = min(piece.size, self.size - self.used)
            at = self.turn % self.slots * self.size + self.used
            self.buffer[at : at + take] = piece[:take]
            self.used += take
            if self.entries and "nbytes" in self.entries[-1]:
                self.entries[-1]["nbytes"] += take
            else:
                self.entries.append({"nbytes": take})
            piece = piece[take:]

    def _flush(self) -> None:
        """Tell of the slot, and go on to the next."""
        if not self.entries:
            return
        if not self.used and self.turn >= self.slots:  # nothing was put into it, so nobody has waited for it
            self._wait()
        for peer in self.peers:
            peer.send({"turn": self.turn, "entries": self.entries})
        self.entries, self.used = [], 0
        self.turn += 1

    def _wait(self) -> None:
        """Until every worker has copied the oldest slot."""
        for peer in self.peers:
            peer.receive()


class _Receiver:
    """Copies slots out as they are told of."""

    def __init__(self, peer: _Peer, buffer: Bytes, framework: Framework | None) -> None:
        self.peer, self.buffer, self.framework = peer, buffer, framework
        self.count = 0
        self.about: dict[str, Any] = {}
        self.data: Bytes = np.empty(0, np.uint8)
        self.filled = 0

    def run(self, load_weights: LoadWeights) -> None:
        shape = self.peer.receive()
        slots, size = shape["slots"], shape["nbytes"]
        turn = 0
        while "end" not in (message := self.peer.receive()):
            start = turn % slots * size
            ready = self._take(self.buffer[start : start + size], message["entries"])
            self.peer.send({"copied": turn})
            turn += 1
            if ready:
                load_weights(ready)
        if message["end"] != self.count:
            raise IpcError(f"{self.count} tensors have come, the trainer has sent {message['end']}")
        self.peer.send({"loaded": self.count})

    def _take(self, slot: Bytes, entries: list[dict[str, Any]]) -> list[tuple[str, Any]]:
        ready = []
        at = 0
        for entry in entries:
            if "name" in entry:
                self.about = entry | {"kind": wire_type(entry["dtype"])}
                self.data, self.filled = np.empty(self.about["kind"].nbytes(entry["shape"]), np.uint8), 0
                self.state = start_digest(self.about["kind"], entry["shape"])
            elif "nbytes" in entry:
                end = self.filled + entry["nbytes"]
                self.data[self.filled : end] = slot[at : at + entry["nbytes"]]
                self.state.update(self.data[self.filled : end])
                at += entry["nbytes"]
                self.filled = end
            else:
                ready.append(self._complete(entry["digest"]))
        return ready

    def _complete(self, expected: str) -> tuple[str, Any]:
        name, found = self.about["name"], self.state.hexdigest()
        if found != expected or self.filled != self.data.size:
            raise ValueError(f"'{name}' arrived damaged: it hashes to {found}, the trainer's to {expected}")
        self.count += 1
        return name, from_bytes(self.about["kind"], self.about["shape"], self.data, self.framework, name)


def _remove(address: Path) -> None:
    """A socket that nobody listens to any more, and its folder if it is one of :func:`new_address`."""
    with suppress(OSError):
        address.unlink(missing_ok=True)
        if address.parent.name.startswith(_FOLDER):
            address.parent.rmdir()


def _listen(args: IpcTrainerArgs, stack: ExitStack) -> socket.socket:
    listener = stack.enter_context(_socket())
    path = Path(args.address)
    try:
        listener.bind(args.address)
    except OSError as error:
        raise IpcError(f"{path}: {error.strerror}; make a new address for every update with new_address()") from None
    stack.callback(_remove, path)
    listener.listen(args.workers)
    return listener


def _accept(listener: socket.socket, number: int, args: IpcTrainerArgs, stack: ExitStack) -> _Peer:
    listener.settimeout(args.timeout)
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        raise IpcError(f"{number} of {args.workers} workers have come within {args.timeout} s") from None
    return _peer(f"worker {number}", accepted, args.timeout, stack)


def _connect(info: IpcUpdateInfo, stack: ExitStack) -> _Peer:
    """The trainer may begin to listen after its workers were told to come."""
    deadline = time.monotonic() + info.timeout
    while True:
        made = _socket()
        try:
            made.connect(info.address)
            return _peer("the trainer", made, info.timeout, stack)
        except (FileNotFoundError, ConnectionRefusedError):
            made.close()
            if time.monotonic() > deadline:
                raise IpcError(f"no trainer has come to {info.address} within {info.timeout} s") from None
            time.sleep(0.005)


def _peer(name: str, connected: socket.socket, timeout: float, stack: ExitStack) -> _Peer:
    connected.settimeout(None)
    return _Peer(name, stack.enter_context(Connection(connected.detach())), timeout)


def _socket() -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise NotImplementedError("this system has no Unix sockets: use the 'http' or the 'disk' engine")
    return socket.socket(socket.AF_UNIX)


def _create(size: int) -> tuple[int, Bytes]:
    """Shared memory without a name: (file descriptor, bytes)."""
    with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        number = os.dup(file.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(number, 0, size)  # a full shared memory is an error here, not a SIGBUS later
        else:
            os.ftruncate(number, size)
        return number, np.frombuffer(mmap.mmap(number, size), np.uint8)
    except BaseException:
        os.close(number)
        raise


def _map(number: int) -> Bytes:
    try:
        return np.frombuffer(mmap.mmap(number, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(number)
