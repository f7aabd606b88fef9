"""A server that takes weights over HTTP: sessions, octet-streams of frames, and the JSON form of the field's trainers.

========================  ==============================================================================================
GET weight_info           version, the update under way, formats and encodings
POST start_weight_update  {"version", "base_version"}, both optional
POST update_weights       a stream of frames, or JSON {"params": [entry, ..]}; ``?version=`` names the update it is for
POST finish_weight_update {"digests": {name: hash}}, optional
POST abort_weight_update
POST http_update_weights/ JSON for trainers that know no sessions: outside of one, each request is an update of its own
========================  ==============================================================================================

Requests of one update may come at once. Errors are JSON {"error": text}: 400 wrong weights, 401 wrong token, 409 no
such update, 413 too large, 415 unknown format, 503 too many requests (ask again after Retry-After).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kernbench.weight_sync.arrays import Framework
from kernbench.weight_sync.frames import CONTENT_TYPE, FrameDecoder
from kernbench.weight_sync.serde import CAPABILITIES, decode_from_http
from kernbench.weight_sync.transfer.base import Weights

JSON_TYPE = "application/json"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BATCH = 1 << 20
_CONTROL_BYTES = 16 << 20


class Target(Protocol):
    """Where the weights go: :class:`kernbench.weight_sync.transfer.session.ServedWeights` is one."""

    @property
    def version(self) -> int: ...
    @property
    def updating(self) -> int | None: ...
    def start(self, version: int | None = None, base_version: int | None = None) -> int: ...
    def load(self, weights: Weights, *, version: int | None = None) -> None: ...
    def finish(self, digests: Mapping[str, str] | None = None) -> int: ...
    def abort(self) -> None: ...


@dataclass(frozen=True)
class Limits:
    """What one server takes on, in bytes and requests."""

    request_bytes: int = 64 << 30
    tensor_bytes: int = 16 << 30
    json_bytes: int = 64 << 20
    """A request in JSON is in memory as a whole."""
    concurrent: int = 4
    """Requests with weights that are worked on at once; others wait unread."""
    waiting: int = 32
    """Requests that may wait; further ones get 503."""
    queued_batches: int = 4
    """Batches of 1 MiB that a request may be ahead of its decoding; then its sender is held back."""


def create_app(
    target: Target, token: str | None = None, limits: Limits | None = None, framework: Framework | None = "numpy"
) -> ASGIApp:
    """The application, for any ASGI server.

    Args:
        token: every request has to bear it as ``Authorization: Bearer <token>``.
        framework: of the tensors that are loaded.
    """
    app = _Endpoints(target, limits or Limits(), framework)
    routes = [
        Route("/weight_info", app.weight_info),
        Route("/start_weight_update", app.start, methods=["POST"]),
        Route("/update_weights", app.update, methods=["POST"]),
        Route("/finish_weight_update", app.finish, methods=["POST"]),
        Route("/abort_weight_update", app.abort, methods=["POST"]),
        Route("/http_update_weights/", app.update_without_session, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, ClientDisconnect: _gone}
    made = Starlette(routes=routes, exception_handlers=handlers)
    return made if token is None else _Authentication(made, token)


class WeightServer:
    """The application in a thread of its own, from its making until it is closed.

    Args:
        host, port: where; port 0 takes a free one.
        token, limits, framework: as :func:`create_app`.

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
        if token is None and host not in _LOOPBACK:
            raise ValueError(f"anybody who reaches {host} could replace the weights: give a token, or use 127.0.0.1")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else answers wait 40 ms
        port = self._socket.getsockname()[1]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        app = create_app(target, token, limits, framework)
        config = uvicorn.Config(app, ws="none", lifespan="off", log_level="warning", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError(f"the server at {self.url} did not start")
            time.sleep(0.001)

    def close(self) -> None:
        """Stop; what is under way is cut off."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> WeightServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Authentication:
    """Turns away who does not bear the token, before anything of the request is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                headers = {"www-authenticate": "Bearer", "connection": "close"}
                refusal = JSONResponse({"error": "the request bears no token, or a wrong one"}, 401, headers)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Endpoints:
    def __init__(self, target: Target, limits: Limits, framework: Framework | None) -> None:
        self.target, self.limits, self.framework = target, limits, framework
        self._turns = asyncio.Semaphore(limits.concurrent)
        self._waiting = 0
        self._alone = threading.Lock()

    async def weight_info(self, request: Request) -> Response:
        formats = [CONTENT_TYPE, JSON_TYPE]
        about = {"version": self.target.version, "updating": self.target.updating, "formats": formats}
        return JSONResponse(about | CAPABILITIES)

    async def start(self, request: Request) -> Response:
        about = await _control(request)
        version = await _guarded(self.target.start, about.get("version"), about.get("base_version"))
        return JSONResponse({"version": version})

    async def finish(self, request: Request) -> Response:
        about = await _control(request)
        self._check_version(about.get("version"))
        return JSONResponse({"version": await _guarded(self.target.finish, about.get("digests"))})

    async def abort(self, request: Request) -> Response:
        await run_in_threadpool(self.target.abort)
        return JSONResponse({"version": self.target.version})

    async def update(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (CONTENT_TYPE, JSON_TYPE):
            raise HTTPException(415, f"content-type is {kind!r}: expected {CONTENT_TYPE} or {JSON_TYPE}")
        self._check_length(request, self.limits.json_bytes if kind == JSON_TYPE else self.limits.request_bytes)
        async with self._turn():
            self._check_version(request.query_params.get("version"))
            if (version := self.target.updating) is None:
                await _guarded(self.target.load, [])  # says that no update is active, and why if one has failed
            load = self._frames if kind == CONTENT_TYPE else self._entries
            return JSONResponse({"tensors": await load(request, version)})

    async def update_without_session(self, request: Request) -> Response:
        self._check_length(request, self.limits.json_bytes)
        async with self._turn():
            params = await self._read_entries(request)
            return JSONResponse({"tensors": await _guarded(self._load_alone, params), "version": self.target.version})

    def _load_alone(self, params: list[Any]) -> int:
        """In the update that a trainer has started, or one after another in updates of their own."""
        with self._alone:
            if (version := self.target.updating) is not None:
                return self._load_entries(params, version)
            version = self.target.start(base_version=self.target.version)
            try:
                count = self._load_entries(params, version)
                self.target.finish()
                return count
            except BaseException:
                self.target.abort()
                raise

    async def _entries(self, request: Request, version: int | None) -> int:
        return await _guarded(self._load_entries, await self._read_entries(request), version)

    def _load_entries(self, params: list[Any], version: int | None) -> int:
        self.target.load([decode_from_http(entry, framework=self.framework) for entry in params], version=version)
        return len(params)

    async def _read_entries(self, request: Request) -> list[Any]:
        message = await _guarded(_parse, await _body(request, self.limits.json_bytes))
        params = message.get("params")
        if not isinstance(params, list):
            raise HTTPException(400, 'expected {"params": [entry, ..]}')
        return params

    async def _frames(self, request: Request, version: int | None) -> int:
        """Read into a bounded queue, from which a thread decodes and loads."""
        largest = self.limits.tensor_bytes
        if (length := request.headers.get("content-length")) is not None:
            largest = min(largest, int(length))
        decoder = FrameDecoder(self.framework, max_bytes=largest)
        batches: asyncio.Queue[list[bytes] | None] = asyncio.Queue(self.limits.queued_batches)

        def feed(pieces: list[bytes]) -> None:
            ready = [pair for piece in pieces for pair in decoder.feed(piece)]
            if ready:
                self.target.load(ready, version=version)

        async def work() -> None:
            while (pieces := await batches.get()) is not None:
                await run_in_threadpool(feed, pieces)
            decoder.finish()

        worker = asyncio.create_task(work())
        try:
            async for pieces in _batches(request, self.limits.request_bytes):
                await _put(batches, pieces, worker)
            await _put(batches, None, worker)
            await _translated(worker)
        finally:
            worker.cancel()
            with suppress(BaseException):
                await worker
        return decoder.count

    def _check_length(self, request: Request, limit: int) -> None:
        length = request.headers.get("content-length")
        if length is not None and (not length.isdecimal() or int(length) > limit):
            raise _too_large(limit)

    def _check_version(self, given: Any) -> None:
        """A request that is late must not go into the next update."""
        now = self.target.updating
        if None not in (given, now) and str(given) != str(now):
            raise HTTPException(409, f"the request is for version {given}, the update under way is to {now}")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._turns.locked() and self._waiting >= self.limits.waiting:
            raise HTTPException(
                503, f"{self._waiting} requests wait already", {"retry-after": "1", "connection": "close"}
            )
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()


async def _batches(request: Request, limit: int) -> AsyncIterator[list[bytes]]:
    """The body in lists of pieces, so that a thread gets enough to do at a time."""
    pieces: list[bytes] = []
    size = total = 0
    async for piece in request.stream():
        size += len(piece)
        total += len(piece)
        if total > limit:
            raise _too_large(limit)
        pieces.append(piece)
        if size >= _BATCH:
            yield pieces
            pieces, size = [], 0
    if pieces:
        yield pieces


async def _body(request: Request, limit: int) -> bytes:
    return b"".join([piece async for pieces in _batches(request, limit) for piece in pieces])


async def _control(request: Request) -> dict[str, Any]:
    body = await _body(request, _CONTROL_BYTES)
    return await _guarded(_parse, body) if body else {}


def _parse(body: bytes) -> dict[str, Any]:
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("expected a JSON object")
    return message


async def _put(batches: asyncio.Queue[Any], item: Any, worker: asyncio.Task[None]) -> None:
    """Wait for room; a worker that fails meanwhile will never make any."""
    put = asyncio.ensure_future(batches.put(item))
    await asyncio.wait([put, worker], return_when=asyncio.FIRST_COMPLETED)
    if not put.done():
        put.cancel()
        await _translated(worker)


async def _guarded(fn: Any, *args: Any) -> Any:
    return await _translated(run_in_threadpool(fn, *args))


async def _translated(work: Any) -> Any:
    """What is wrong with a request, as a response's status."""
    try:
        return await work
    except (ValueError, TypeError, KeyError, RecursionError) as wrong:
        raise HTTPException(400, f"{type(wrong).__name__}: {wrong}") from wrong
    except (RuntimeError, TimeoutError) as wrong:
        raise HTTPException(409, f"{type(wrong).__name__}: {wrong}") from wrong


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request is larger than the {limit} bytes allowed here", {"connection": "close"})


async def _refused(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)
