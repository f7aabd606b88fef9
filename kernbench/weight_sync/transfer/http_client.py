"""The trainer's end of the ``http`` engine: every replica gets everything, or none shows anything."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from kernbench.weight_sync.arrays import Bytes, digest, to_bytes
from kernbench.weight_sync.frames import CONTENT_TYPE, encode_frames
from kernbench.weight_sync.serde import Encoding, choose_encoding, http_batches, stream_http

JSON_TYPE = "application/json"
JSON_BYTES = 7 << 20
"""Of a request in JSON, whose receivers hold it in memory: 10 MiB of base64 at most, as is the field's custom."""
Form = Literal["auto", "octet-stream", "json"]


@dataclass
class HttpTrainerArgs:
    """Attributes:
    urls: of every replica's server.
    token: that they ask for.
    version: by default one above the highest that a replica serves.
    base_version: the weights are only those that have changed since that version.
    form: ``"auto"`` sends octet-streams to servers that take them, JSON to those that know nothing else.
    batch_bytes: of one request; a larger tensor goes alone.
    concurrent: requests under way at once to a replica.
    timeout: seconds to wait for a server to do anything.
    retries: of a request, when a server is busy or the connection breaks.
    """

    urls: list[str]
    token: str | None = None
    version: int | None = None
    base_version: int | None = None
    form: Form = "auto"
    batch_bytes: int = 32 << 20
    concurrent: int = 2
    timeout: float = 120.0
    retries: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.urls, str) or not self.urls:
            raise ValueError("urls: give a list of at least one")
        if self.form not in ("auto", "octet-stream", "json"):
            raise ValueError(f"form is {self.form!r}: expected 'auto', 'octet-stream' or 'json'")
        if self.batch_bytes < 1 or self.concurrent < 1:
            raise ValueError("batch_bytes and concurrent: give at least 1")


class HttpTransferError(RuntimeError):
    """A server refuses, or cannot be reached."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def send_weights(weights: Iterator[tuple[str, Any]], args: HttpTrainerArgs) -> int:
    """Send to all replicas and finish when all have everything; gives the version.

    Raises:
        HttpTransferError: names the replica. No replica shows anything of the update then, unless the message says
            which have finished it before.
    """
    with ExitStack() as stack:
        replicas = [_Replica(url, args, stack) for url in args.urls]
        versions = [replica.about["version"] for replica in replicas if replica.about is not None]
        version = args.version if args.version is not None else max(versions, default=0) + 1
        started: list[_Replica] = []
        try:
            for replica in replicas:
                replica.start(version)
                started.append(replica)
            digests = _send_all(replicas, weights, args)
        except BaseException:
            for replica in started:
                with suppress(HttpTransferError):
                    replica.control("abort_weight_update", {})
            raise
        _finish_all(replicas, version, digests)
        return version


def _send_all(replicas: list[_Replica], weights: Iterator[tuple[str, Any]], args: HttpTrainerArgs) -> dict[str, str]:
    """The hash of everything that was sent. ``args.concurrent`` batches are in memory."""
    digests: dict[str, str] = {}
    pending: deque[list[Future[None]]] = deque()
    with ThreadPoolExecutor(args.concurrent * len(replicas)) as pool:
        in_json = any(replica.form == "json" for replica in replicas)
        for batch in _batches(weights, min(args.batch_bytes, JSON_BYTES) if in_json else args.batch_bytes):
            digests |= {name: digest(weight) for name, weight in batch}
            if len(pending) == args.concurrent:
                _wait(pending)
            pending.append([pool.submit(replica.update, batch) for replica in replicas])
        while pending:
            _wait(pending)
    return digests


def _wait(pending: deque[list[Future[None]]]) -> None:
    for future in pending.popleft():
        future.result()


def _finish_all(replicas: list[_Replica], version: int, digests: dict[str, str]) -> None:
    done: list[str] = []
    for i, replica in enumerate(replicas):
        try:
            replica.finish(version, digests)
            done.append(replica.url)
        except HttpTransferError as error:
            for other in replicas[i:]:
                with suppress(HttpTransferError):
                    other.control("abort_weight_update", {})
            served = (
                f"; version {version} is served by {', '.join(done)} already, and not by the others" if done else ""
            )
            raise HttpTransferError(f"{error}{served}", error.status) from None


def _batches(weights: Iterator[tuple[str, Any]], limit: int) -> Iterator[list[tuple[str, Any]]]:
    batch: list[tuple[str, Any]] = []
    size = 0
    for name, weight in weights:
        data = to_bytes(weight)
        if batch and size + data.data.size > limit:
            yield batch
            batch, size = [], 0
        batch.append((name, data.to("numpy")))
        size += data.data.size
    if batch:
        yield batch


class _Replica:
    """One server."""

    def __init__(self, url: str, args: HttpTrainerArgs, stack: ExitStack) -> None:
        self.url, self.args = url.rstrip("/"), args
        headers = {} if args.token is None else {"authorization": f"Bearer {args.token}"}
        self.http = stack.enter_context(httpx.Client(headers=headers, timeout=args.timeout, trust_env=False))
        self.version: int | None = None
        self.about = self._about()
        """What the server says of itself; None for one of the field's, which says nothing."""
        self.encoding: Encoding = choose_encoding(self.about)
        takes_frames = self.about is not None and CONTENT_TYPE in self.about["formats"]
        if args.form == "octet-stream" and not takes_frames:
            raise HttpTransferError(f"{self.url} takes no octet-streams: send with form='json'")
        self.form = "octet-stream" if takes_frames and args.form != "json" else "json"

    def start(self, version: int) -> None:
        """Not tried again: who cannot tell whether it has begun the update must not go on with another's."""
        if self.about is not None:
            self.control("start_weight_update", {"version": version, "base_version": self.args.base_version})
            self.version = version

    def update(self, batch: list[tuple[str, Any]]) -> None:
        if self.about is None:
            for message in http_batches(batch):
                self._post_json("http_update_weights/", message, self.args.retries)
        elif self.form == "json":
            self._post(self._path(), lambda: stream_http(batch, encoding=self.encoding), JSON_TYPE, self.args.retries)
        else:
            self._post(self._path(), lambda: map(_buffer, encode_frames(batch)), CONTENT_TYPE, self.args.retries)

    def finish(self, version: int, digests: dict[str, str]) -> None:
        if self.about is None:
            return
        if self.form == "json" and self.encoding == "compatible":
            digests = {}  # bfloat16 arrives rounded
        message = {"version": version} | ({"digests": digests} if digests else {})
        try:
            self.control("finish_weight_update", message)
        except HttpTransferError as error:
            about = None if error.status is not None else self._about()
            if about is None or about["version"] != version:  # else only the answer was lost
                raise

    def control(self, path: str, message: dict[str, Any]) -> None:
        self._post_json(path, message, 0)

    def _post_json(self, path: str, message: dict[str, Any], retries: int) -> None:
        body = json.dumps(message).encode()
        self._post(path, lambda: [body], JSON_TYPE, retries)

    def _path(self) -> str:
        return f"update_weights?version={self.version}"

    def _about(self) -> dict[str, Any] | None:
        response = self._tried(lambda: self.http.get(f"{self.url}/weight_info"), self.args.retries)
        if response.status_code in (404, 405):
            return None
        about: dict[str, Any] = self._checked(response).json()
        return about

    def _post(self, path: str, body: Callable[[], Iterable[Any]], kind: str, retries: int) -> None:
        headers = {"content-type": kind}
        self._checked(
            self._tried(lambda: self.http.post(f"{self.url}/{path}", content=iter(body()), headers=headers), retries)
        )

    def _tried(self, request: Callable[[], httpx.Response], retries: int) -> httpx.Response:
        for left in range(retries, -1, -1):
            try:
                response = request()
                if response.status_code != 503 or not left:
                    return response
                time.sleep(min(float(response.headers.get("retry-after", 1)), 10))
            except httpx.TransportError as error:
                if not left:
                    raise HttpTransferError(f"{self.url}: {type(error).__name__}: {error}") from error
                time.sleep(0.05)
        raise AssertionError("the last try returns or raises")

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            try:
                text = response.json()["error"]
            except (ValueError, KeyError, TypeError):
                text = response.text[:500]
            code = response.status_code
            raise HttpTransferError(f"{self.url}: Request failed: {code}, {text}", code)
        return response


def _buffer(piece: bytes | Bytes) -> Any:
    return piece if isinstance(piece, bytes) else piece.data
