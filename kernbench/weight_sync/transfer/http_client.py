"""The trainer's end of the ``http`` engine: every replica gets everything, or none shows anything."""

from __future__ import annotations

import http.client
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from kernbench.weight_sync.arrays import Bytes, digest, to_bytes
from kernbench.weight_sync.frames import CONTENT_TYPE, encode_frames
from kernbench.weight_sync.serde import Encoding, choose_encoding, http_batches, stream_http

JSON_TYPE = "application/json"
JSON_BYTES = 7 << 20
"""Of a request in JSON, whose receivers hold it in memory: 10 MiB of base64 at most, as is the field's custom."""
Form = Literal["auto", "octet-stream", "json"]
Body = Callable[[], Iterable[Any]]
Response = tuple[int, Message, bytes]
"""Status, headers, body."""
_SMALL, _READ = 64 << 10, 1 << 20


@dataclass
class HttpTrainerArgs:
    """Attributes:
    urls: of every replica's server.
    token: that they ask for.
    version: by default one above the highest that a replica serves.
    base_version: the weights are only those that have changed since that version.
    is_checkpoint_format: names and shapes are the checkpoint's; else those of the workers' own parameters.
    form: ``"auto"`` sends octet-streams to servers that take them, JSON to those that know nothing else.
    batch_bytes: of one request; a larger tensor goes alone.
    concurrent: requests under way at once to a replica.
    timeout: seconds to wait for a server to do anything.
    retries: of a request, when a server is busy or the connection breaks.
    before_finish: called when every replica has everything and shows nothing of it yet.
    """

    urls: list[str]
    token: str | None = None
    version: int | None = None
    base_version: int | None = None
    is_checkpoint_format: bool = True
    form: Form = "auto"
    batch_bytes: int = 32 << 20
    concurrent: int = 2
    timeout: float = 120.0
    retries: int = 5
    before_finish: Callable[[], None] | None = None

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
            if args.before_finish is not None:
                args.before_finish()
        except BaseException:
            for replica in started:
                with suppress(HttpTransferError):
                    replica.control("abort_weight_update", {})
            raise
        _finish_all(replicas, version, digests)
        return version


def server_versions(args: HttpTrainerArgs) -> dict[str, int | None]:
    """URL -> the version that its server has; None for a server that does not say.

    Raises:
        HttpTransferError: one cannot be reached, or refuses.
    """
    with ExitStack() as stack:
        replicas = [_Replica(url, args, stack) for url in args.urls]
        return {replica.url: replica.about["version"] if replica.about else None for replica in replicas}


def send_delta(path: str | Path, args: HttpTrainerArgs) -> dict[str, int]:
    """Send a delta (:mod:`kernbench.weight_sync.delta`) to servers of checkpoints; gives URL -> its version afterwards.

    Every server applies it wholly or not at all, but each for itself.

    Raises:
        HttpTransferError: names the server that refuses, and those that have applied it before.
    """
    versions: dict[str, int] = {}
    with ExitStack() as stack:
        replicas = [_Replica(url, args, stack) for url in args.urls]
        for replica in replicas:
            try:
                versions[replica.url] = replica.apply_delta(Path(path))
            except HttpTransferError as error:
                done = f"; {', '.join(versions)} applied it before" if versions else ""
                raise HttpTransferError(f"{error}{done}", error.status) from None
    return versions


def _send_all(replicas: list[_Replica], weights: Iterator[tuple[str, Any]], args: HttpTrainerArgs) -> dict[str, str]:
    """The hash of everything that was sent. ``args.concurrent`` batches are in memory."""
    digests: dict[str, str] = {}
    pending: deque[list[Future[None]]] = deque()
    with ThreadPoolExecutor(args.concurrent * len(replicas)) as pool:
        in_json = any(replica.form == "json" for replica in replicas)
        for batch in _batches(weights, min(args.batch_bytes, JSON_BYTES) if in_json else args.batch_bytes):
            found = {name: digest(weight) for name, weight in batch}
            digests |= found
            if len(pending) == args.concurrent:
                _wait(pending)
            pending.append([pool.submit(replica.update, batch, found) for replica in replicas])
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
        self._at = urlsplit(self.url)
        if self._at.scheme not in ("http", "https") or not self._at.hostname:
            raise HttpTransferError(f"{url!r} is no address of a server: expected http://host:port")
        self._idle: list[http.client.HTTPConnection] = []
        stack.callback(self._close)
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

    def update(self, batch: list[tuple[str, Any]], digests: Mapping[str, str]) -> None:
        retries = self.args.retries
        if self.about is None:
            for message in http_batches(batch):
                self._post_json("http_update_weights/", message, retries)
        elif self.form == "json":
            self._post(self._path(), lambda: stream_http(batch, encoding=self.encoding), JSON_TYPE, retries)
        else:
            pieces = list(_joined(encode_frames(batch, digests=digests)))
            self._post(self._path(), lambda: pieces, CONTENT_TYPE, retries, sum(map(len, pieces)))

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

    def apply_delta(self, path: Path) -> int:
        """Not tried again: a server that has applied it refuses it the second time."""

        def pieces() -> Iterator[bytes]:
            with open(path, "rb") as file:
                while piece := file.read(_READ):
                    yield piece

        headers = {"content-type": CONTENT_TYPE, "content-length": str(path.stat().st_size)}
        status, _, text = self._tried("POST", "apply_delta", pieces, headers, 0)
        return int(json.loads(self._checked(status, text))["version"])

    def control(self, path: str, message: dict[str, Any]) -> None:
        self._post_json(path, message, 0)

    def _post_json(self, path: str, message: dict[str, Any], retries: int) -> None:
        body = json.dumps(message).encode()
        self._post(path, lambda: [body], JSON_TYPE, retries, len(body))

    def _path(self) -> str:
        own = "" if self.args.is_checkpoint_format else "&is_checkpoint_format=false"
        return f"update_weights?version={self.version}{own}"

    def _about(self) -> dict[str, Any] | None:
        status, _, text = self._tried("GET", "weight_info", tuple, {}, self.args.retries)
        if status in (404, 405):
            return None
        try:
            about: dict[str, Any] = json.loads(self._checked(status, text))
            if type(about["version"]) is int and isinstance(about["formats"], list):
                return about
        except (ValueError, KeyError, TypeError):
            pass
        raise HttpTransferError(f"{self.url}: weight_info answers {text[:200]!r}, which makes no sense")

    def _post(self, path: str, body: Body, kind: str, retries: int, length: int | None = None) -> None:
        headers = {"content-type": kind} | ({} if length is None else {"content-length": str(length)})
        status, _, text = self._tried("POST", path, body, headers, retries)
        self._checked(status, text)

    def _tried(self, method: str, path: str, body: Body, headers: dict[str, str], retries: int) -> Response:
        for left in range(retries, -1, -1):
            try:
                response = self._request(method, path, body(), headers, fresh=not retries)
                if response[0] != 503 or not left:
                    return response
                time.sleep(_pause(response[1].get("retry-after", "1")))
            except (OSError, http.client.HTTPException) as error:
                if not left:
                    raise HttpTransferError(f"{self.url}: {type(error).__name__}: {error}") from error
                time.sleep(0.05)
        raise AssertionError("the last try returns or raises")

    def _request(self, method: str, path: str, body: Iterable[Any], headers: dict[str, str], fresh: bool) -> Response:
        """One request, over a connection that is free, or a ``fresh`` one, which the server cannot have closed."""
        connection = self._connect() if fresh or not self._idle else self._idle.pop()
        if self.args.token is not None:
            headers = headers | {"authorization": f"Bearer {self.args.token}"}
        keep = False
        try:
            try:
                path = f"{self._at.path}/{path}"
                connection.request(method, path, body or None, headers, encode_chunked="content-length" not in headers)
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
            response = connection.getresponse()  # which may say why the server has stopped reading
            text = response.read()
            keep = not response.will_close
            return response.status, response.headers, text
        finally:
            if keep:
                self._idle.append(connection)
            else:
                connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._at.scheme == "https" else http.client.HTTPConnection
        return kind(self._at.hostname or "", self._at.port, timeout=self.args.timeout)

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _checked(self, status: int, text: bytes) -> bytes:
        if status != 200:
            try:
                said = json.loads(text)["error"]
            except (ValueError, KeyError, TypeError):
                said = text[:500].decode("utf-8", "replace")
            raise HttpTransferError(f"{self.url}: Request failed: {status}, {said}", status)
        return text


def _pause(retry_after: str) -> float:
    """Seconds to wait, 10 at most; a proxy may name a time of day instead, for which one will do."""
    try:
        return max(0.0, min(float(retry_after), 10.0))
    except ValueError:
        return 1.0


def _joined(pieces: Iterable[bytes | Bytes]) -> Iterator[bytes | memoryview]:
    """Small pieces joined, so that each is worth a call of the system; large ones as they are, without a copy."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < _SMALL:
            small.append(bytes(piece))
            continue
        if small:
            yield b"".join(small)
            small = []
        yield piece if isinstance(piece, bytes) else piece.data
    if small:
        yield b"".join(small)
