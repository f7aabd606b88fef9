"""A proxy for TCP connections that meets a fault: between any client and any server, HTTP or not."""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from kernbench.weight_sync.faults.injector import Fault, Injector, Killed

BLOCK = 256
_IDLE = 0.002


class FaultyProxy:
    """Passes bytes on in both directions, and what goes in one of them through a fault. Threads end with the proxy.

    A step is a block of bytes, counted over all connections in the order in which they come; with more than one
    connection at a time that order is theirs. A kill breaks the connection and lets nobody in any more.

    Args:
        address: (host, port) of the server.
        fault: None lets everything through.
        towards: whose incoming bytes meet it.
        block: bytes of a step. The one that is struck is taken as it is if nothing follows that would fill it.
        patience: seconds of silence after the fault until the proxy breaks the connection, as TCP does in the end
            with a connection over which nothing arrives; else both sides would wait for their own timeouts.
    """

    def __init__(
        self,
        address: tuple[str, int],
        fault: Fault | None = None,
        *,
        towards: Literal["server", "client"] = "server",
        block: int = BLOCK,
        patience: float = 0.02,
    ) -> None:
        self._injector: Injector[bytes] = Injector(fault and replace(fault, step=0))
        self._start = fault.step * block if fault else 0
        self._count = 0
        self._address, self._towards, self._block, self._patience = address, towards, block, patience
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def steps(self) -> int:
        """Blocks that have come so far."""
        return -(-self._count // self._block)

    @property
    def url(self) -> str:
        """Of an HTTP server behind it."""
        return f"http://{self.address[0]}:{self.address[1]}"

    def close(self) -> None:
        """Break all connections; returns when no thread is left."""
        self._stop()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stop(self) -> None:
        self._closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._address)
            except OSError:
                _break(client)
                return
            with server:
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    self._pass_on(client, server)
                except (Killed, OSError) as error:
                    if isinstance(error, Killed):
                        self._stop()
                    _break(client)
                    _break(server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """Until one side has ended and all has gone through, or both are silent after the fault."""
        other = {client: server, server: client}
        source = client if self._towards == "server" else server
        waiting = bytearray()
        open_ = [client, server]
        silence = 0.0
        while open_ and not self._closing.is_set():
            ready, _, _ = select.select(open_, [], [], _IDLE)
            silence = 0.0 if ready else silence + _IDLE
            if not ready:
                self._send(other[source], waiting, whole=True)
                if self._injector.struck and silence > self._patience:
                    raise ConnectionError("nothing arrives any more")
            for one in ready:
                data = one.recv(1 << 16)
                if not data:
                    open_.remove(one)
                if one is source:
                    waiting += data
                    self._send(other[one], waiting, whole=not data)
                elif data:
                    other[one].sendall(data)
                if not data:
                    other[one].shutdown(socket.SHUT_WR)

    def _send(self, target: socket.socket, waiting: bytearray, whole: bool) -> None:
        """Pass on what waits; of the block that is struck, and the one after it, all at once or with ``whole``."""
        with self._lock:
            came = self._through(waiting, whole)
        if came:
            target.sendall(came)

    def _through(self, waiting: bytearray, whole: bool) -> bytes:
        injector, came = self._injector, bytearray()
        while waiting:
            before = self._start - self._count if injector.fault and not injector.struck else 0
            if before > 0 or injector.fault is None or (injector.struck and not injector.holds):
                size = min(before or len(waiting), len(waiting))
                came += waiting[:size]
            elif len(waiting) < self._block and not whole:
                break
            else:
                size = min(self._block, len(waiting))
                came += b"".join(injector.pass_on(bytes(waiting[:size])))
            self._count += size
            del waiting[:size]
        if whole:
            came += b"".join(injector.rest())
        return bytes(came)


def _break(connection: socket.socket) -> None:
    """So that the other side gets an error rather than an end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
