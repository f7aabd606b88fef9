"""A server that takes weights over HTTP: sessions, octet-streams of frames, and the JSON form of the field's trainers.

========================  ==============================================================================================
GET weight_info           version, the update under way, formats and encodings
POST start_weight_update  {"version", "base_version"}, both optional
POST update_weights       a stream of frames, or JSON {"params": [entry, ..]}; ``?version=`` names the update it is for,
                          ``&is_checkpoint_format=false`` says that names and shapes are the worker's own
POST finish_weight_update {"digests": {name: hash}}, optional
POST abort_weight_update
POST apply_delta          a delta (:mod:`kernbench.weight_sync.delta`), where the weights are a checkpoint's files
POST http_update_weights/ JSON for trainers that know no sessions: outside of one, each request is an update of its own
========================  ==============================================================================================

Requests of one update may come at once. Errors are JSON {"error": text}: 400 wrong weights, 401 wrong token, 403 from
a web page without a token, 409 no such update, 413 too large, 415 unknown format, 503 too many requests (ask again
after Retry-After).

A thread a connection reads bodies straight into the memory of their tensors and hashes them on the way; one that is
slow at loading so holds its sender back.
"""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from kernbench.weight_sync.arrays import Framework
from kernbench.weight_sync.frames import CONTENT_TYPE, FrameDecoder
from kernbench.weight_sync.serde import CAPABILITIES, decode_from_http
from kernbench.weight_sync.serde_stream import EntryDecoder
from kernbench.weight_sync.transfer.base import Weights
from kernbench.weight_sync.transfer.http_body import Body, BodyTooLargeError

JSON_TYPE = "application/json"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONTROL_BYTES = 16 << 20
_LINGER_BYTES, _LINGER_SECONDS = 64 << 20, 1.0
_CLOSING_SECONDS = 5.0


class Target(Protocol):
    """Where the weights go: :class:`kernbench.weight_sync.transfer.session.ServedWeights` is one."""

    @property
    def version(self) -> int: ...
    @property
    def updating(self) -> int | None: ...
    def start(self, version: int | None = None, base_version: int | None = None) -> int: ...
    def load(
        self,
        weights: Weights,
        *,
        is_checkpoint_format: bool = True,
        version: int | None = None,
        digests: Mapping[str, str] | None = None,
        owned: bool = False,
    ) -> None: ...
    def finish(self, digests: Mapping[str, str] | None = None) -> int: ...
    def abort(self) -> None: ...


@dataclass(frozen=True)
class Limits:
    """What one server takes on, in bytes, requests and seconds."""

    request_bytes: int = 64 << 30
    tensor_bytes: int = 16 << 30
    json_bytes: int = 64 << 20
    """A request in JSON outside of an update is in memory as a whole, so that all of it counts or nothing."""
    concurrent: int = 4
    """Requests with weights that are worked on at once; others wait unread."""
    waiting: int = 32
    """Requests that may wait; further ones get 503."""
    connections: int = 256
    """Further ones are closed at once."""
    silence: float = 120.0
    """How long a connection may say nothing before it is closed."""
    abandoned: float = 120.0
    """How long a trainer may say nothing before its update gives way to the next that is started."""


class WeightServer:
    """Serves in threads of its own, from its making until it is closed.

    Args:
        host, port: where; port 0 takes a free one.
        token: every request has to bear it as ``Authorization: Bearer <token>``.
        framework: of the tensors that are loaded.

    Raises:
        ValueError: a host that others can reach, without a token.
    """

    def __init__(
        self,
        target: Target,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        limits: Limits | None = None,
        framework: Framework | None = "numpy",
    ) -> None:
        if not token and host not in _LOOPBACK:
            raise ValueError(f"anybody who reaches {host} could replace the weights: give a token, or use 127.0.0.1")
        endpoints = _Endpoints(target, token, limits or Limits(), framework)
        self._server = (_Server6 if ":" in host else _Server)((host, port), endpoints)
        port = self._server.server_address[1]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; what is under way is cut off. Waits for its threads, though not for ever where a target keeps one."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> WeightServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], endpoints: _Endpoints) -> None:
        self.endpoints = endpoints
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, _Connection)

    def server_bind(self) -> None:
        """Without the look-up of the host's name that HTTPServer would make."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) < self.endpoints.limits.connections:
                thread = threading.Thread(target=self._work, args=(request, client_address), daemon=True)
                self._open[request] = thread
                thread.start()
                return
        self.shutdown_request(request)

    def _work(self, request: socket.socket, client_address: Any) -> None:
        try:
            with suppress(ConnectionError):
                self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)
            self.shutdown_request(request)

    def server_close(self) -> None:
        self.socket.close()
        with self._lock:
            left = dict(self._open)
        for request in left:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for thread in left.values():
            thread.join(_CLOSING_SECONDS)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Refusal(Exception):
    """A response other than 200."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers or {}


class _Connection(BaseHTTPRequestHandler):
    """One client's connection, request after request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else answers wait 40 ms
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.endpoints.limits.silence)

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the trainer gets every error."""

    def _respond(self) -> None:
        endpoints, body, status = self.server.endpoints, None, 200
        headers: Mapping[str, str] = {}
        try:
            endpoints.check_sender(self.headers)
            body = Body(self.headers, self.rfile)  # type: ignore[arg-type]
            answer = endpoints.answer(self.command, self.path, self.headers.get("content-type", ""), body)
        except ConnectionError:
            self.close_connection = True
            return
        except _Refusal as refusal:
            status, headers, answer = refusal.status, refusal.headers, {"error": str(refusal)}
        except Exception as wrong:
            status, answer = _status(wrong), {"error": f"{type(wrong).__name__}: {wrong}"}
        self._send(status, answer, headers, body)

    def _send(self, status: int, answer: Any, headers: Mapping[str, str], body: Body | None) -> None:
        """Send the answer; where the request has not been read to its end, the connection is of no use afterwards."""
        data = json.dumps(answer).encode()
        unread = body is None or not body.done
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", JSON_TYPE)
        self.send_header("content-length", str(len(data)))
        if unread:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)
        if unread:
            self._linger()

    def _linger(self) -> None:
        """Let the sender get to reading the answer: closing on what it still sends would throw the answer away."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_SECONDS)
            left = _LINGER_BYTES
            while left > 0 and (found := len(self.connection.recv(min(left, 1 << 20)))):
                left -= found


class _Endpoints:
    def __init__(self, target: Target, token: str | None, limits: Limits, framework: Framework | None) -> None:
        self.target, self.limits, self.framework = target, limits, framework
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._alone = threading.Lock()
        self._turns = threading.Condition()
        self._working = self._waiting = 0
        self._heard = time.monotonic()
        self._paths = {
            ("GET", "/weight_info"): self.weight_info,
            ("POST", "/start_weight_update"): self.start,
            ("POST", "/update_weights"): self.update,
            ("POST", "/finish_weight_update"): self.finish,
            ("POST", "/abort_weight_update"): self.abort,
            ("POST", "/apply_delta"): self.apply_delta,
            ("POST", "/http_update_weights/"): self.update_without_session,
        }

    def check_sender(self, headers: Message) -> None:
        given = headers.get("authorization", "")
        if self._expected is None:
            if headers.get("origin") is not None:  # which browsers send: any page may post to loopback
                raise _Refusal(403, "web pages may not send weights to a server without a token")
        elif not hmac.compare_digest(given.encode(), self._expected):
            raise _Refusal(401, "the request bears no token, or a wrong one", {"www-authenticate": "Bearer"})

    def answer(self, method: str, url: str, content_type: str, body: Body) -> dict[str, Any]:
        path, query = urlsplit(url).path, {key: values[-1] for key, values in parse_qs(urlsplit(url).query).items()}
        endpoint = self._paths.get((method, path))
        if endpoint is None:
            known = any(path == other for _, other in self._paths)
            raise _Refusal(405 if known else 404, f"{method} {path} is nothing that this server does")
        return endpoint(body, query, content_type.partition(";")[0].strip().lower())

    def weight_info(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        formats = [CONTENT_TYPE, JSON_TYPE]
        return {"version": self.target.version, "updating": self.target.updating, "formats": formats} | CAPABILITIES

    def start(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        about = _control(body)
        if (
            self.target.updating is not None
            and not self._working
            and time.monotonic() - self._heard > self.limits.abandoned
        ):
            self.target.abort()
        self._heard = time.monotonic()
        return {"version": self.target.start(about.get("version"), about.get("base_version"))}

    def finish(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        about = _control(body)
        self._check_version(about.get("version"))
        return {"version": self.target.finish(about.get("digests"))}

    def abort(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        self.target.abort()
        return {"version": self.target.version}

    def update(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        if content_type not in (CONTENT_TYPE, JSON_TYPE):
            raise _Refusal(415, f"content-type is {content_type!r}: expected {CONTENT_TYPE} or {JSON_TYPE}")
        body.allow(self.limits.request_bytes)
        with self._turn():
            version = self._check_version(query.get("version"))
            if version is None:
                self.target.load([])  # says that no update is active, and why if one has failed
                raise _Refusal(409, "No weight update was active when the request came")
            load = self._load_frames if content_type == CONTENT_TYPE else self._load_json
            checkpoint = query.get("is_checkpoint_format", "true").lower() != "false"
            return {"tensors": load(body, version=version, is_checkpoint_format=checkpoint)}

    def apply_delta(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        apply = getattr(self.target, "apply_delta", None)
        if apply is None:
            raise _Refusal(404, "these weights take no deltas: only the files of a checkpoint do")
        body.allow(self.limits.request_bytes)
        with self._turn():
            return {"version": apply(_Stream(body))}

    def update_without_session(self, body: Body, query: Mapping[str, str], content_type: str) -> dict[str, Any]:
        """In the update that a trainer has started, or one after another in updates of their own."""
        body.allow(self.limits.json_bytes)
        with self._turn():
            params = self._read_entries(body)
            with self._alone:
                if (version := self.target.updating) is not None:
                    return {"tensors": self._load_entries(params, version=version), "version": self.target.version}
                version = self.target.start(base_version=self.target.version)
                try:
                    count = self._load_entries(params, version=version)
                    return {"tensors": count, "version": self.target.finish()}
                except BaseException:
                    self.target.abort()
                    raise

    def _load_json(self, body: Body, **options: Any) -> int:
        decoder = EntryDecoder(self.framework, max_bytes=self.limits.tensor_bytes)
        for pair in decoder.read(body.readinto):
            self.target.load([pair], owned=True, **options)
        return decoder.count

    def _load_entries(self, params: list[Any], **options: Any) -> int:
        self.target.load([decode_from_http(entry, framework=self.framework) for entry in params], **options)
        return len(params)

    def _read_entries(self, body: Body) -> list[Any]:
        params = _json(body.read(self.limits.json_bytes)).get("params")
        if not isinstance(params, list):
            raise ValueError('expected {"params": [entry, ..]}')
        return params

    def _load_frames(self, body: Body, **options: Any) -> int:
        largest = min(self.limits.tensor_bytes, body.length or self.limits.tensor_bytes)
        decoder = FrameDecoder(self.framework, max_bytes=largest)
        for pair in decoder.read(body.readinto):
            self.target.load([pair], digests=decoder.digests, owned=True, **options)
        return decoder.count

    def _check_version(self, given: Any) -> int | None:
        """The update under way; a request that is late must not go into the next."""
        now = self.target.updating
        if None not in (given, now) and str(given) != str(now):
            raise _Refusal(409, f"the request is for version {given}, the update under way is to {now}")
        return now

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._turns:
            if self._working >= self.limits.concurrent:
                if self._waiting >= self.limits.waiting:
                    raise _Refusal(503, f"{self._waiting} requests wait already", {"retry-after": "1"})
                self._waiting += 1
                try:
                    self._turns.wait_for(lambda: self._working < self.limits.concurrent)
                finally:
                    self._waiting -= 1
            self._working += 1
        try:
            yield
        finally:
            with self._turns:
                self._heard = time.monotonic()
                self._working -= 1
                self._turns.notify()


class _Stream:
    """A body as a file to read from."""

    name = "the request"

    def __init__(self, body: Body) -> None:
        self._body = body

    def read(self, size: int) -> bytearray:
        data = bytearray(size)
        found = self._body.readinto(memoryview(data))
        return data[:found] if found < size else data


def _status(wrong: Exception) -> int:
    """What an error says of the request: 400 that it is wrong, 409 that it comes at the wrong time."""
    if isinstance(wrong, BodyTooLargeError):
        return 413
    if isinstance(wrong, ValueError | TypeError | KeyError | RecursionError):
        return 400
    return 409 if isinstance(wrong, RuntimeError | TimeoutError) else 500


def _control(body: Body) -> dict[str, Any]:
    text = body.read(_CONTROL_BYTES)
    return _json(text) if text else {}


def _json(text: bytes | bytearray) -> dict[str, Any]:
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError("expected a JSON object")
    return message
