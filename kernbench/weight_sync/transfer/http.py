"""The ``http`` engine: the worker serves, the trainer posts to it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernbench.weight_sync.arrays import Framework, digest
from kernbench.weight_sync.transfer.base import (
    LoadWeights,
    Weights,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    not_initialized,
    trainer_arguments,
)

if TYPE_CHECKING:
    from kernbench.weight_sync.transfer.http_client import HttpTrainerArgs
    from kernbench.weight_sync.transfer.http_server import WeightServer

QUEUE = 8
TIMEOUT = 120.0


@dataclass
class HttpInitInfo(WeightTransferInitInfo):
    """Attributes:
    host, port: where to serve; port 0 takes a free one, see :attr:`HttpWeightTransferEngine.url`.
    token: that trainers have to bear; needed where ``host`` is not this machine alone.
    framework: of the tensors that are handed over; torch if the process has imported it, else numpy.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    framework: Framework | None = None


@dataclass
class HttpUpdateInfo(WeightTransferUpdateInfo):
    """Attributes:
    version: of the update that the trainer will post; None takes any.
    timeout: seconds to wait for the trainer's next word.
    """

    version: int | None = None
    timeout: float = TIMEOUT


class HttpWeightTransferEngine(WeightTransferEngine[HttpInitInfo, HttpUpdateInfo]):
    """Serves from its initialisation on, and turns trainers away while nobody receives.

    What comes goes through a short queue to the receiver, which so holds the trainer back. A worker without an engine
    gives its weights to a :class:`~kernbench.weight_sync.transfer.http_server.WeightServer` instead.
    """

    init_info_cls = HttpInitInfo
    update_info_cls = HttpUpdateInfo
    _server: WeightServer | None = None

    def init_transfer_engine(self, init_info: HttpInitInfo) -> None:
        """Raises:
        ValueError: a host that others can reach, without a token.
        """
        from kernbench.weight_sync.transfer.http_server import WeightServer

        self.shutdown()
        self._handover = _Handover()
        self._server = WeightServer(
            self._handover, init_info.host, init_info.port, token=init_info.token, framework=init_info.framework
        )

    @property
    def url(self) -> str:
        """For the trainer's ``urls``. Raises: RuntimeError "not initialized"."""
        if self._server is None:
            raise not_initialized(self)
        return self._server.url

    def receive_weights(self, update_info: HttpUpdateInfo, load_weights: LoadWeights) -> None:
        """Hand over what a trainer posts between its start and its finish, whose answer waits for this to return.

        Raises:
            RuntimeError: "not initialized"; or the trainer has given up.
            TimeoutError: the trainer says nothing.
            ValueError: not everything has come.
        """
        if self._server is None:
            raise not_initialized(self)
        self._handover.run(update_info, load_weights)

    def shutdown(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    @staticmethod
    def trainer_send_weights(
        iterator: Iterator[tuple[str, Any]], trainer_args: dict[str, Any] | HttpTrainerArgs
    ) -> int:
        """Post to the servers of all workers; gives the version. Raises: HttpTransferError."""
        from kernbench.weight_sync.transfer.http_client import HttpTrainerArgs, send_weights

        return send_weights(iterator, trainer_arguments(HttpTrainerArgs, trainer_args))


class _Handover:
    """What the server takes for the weights: it passes them on to the thread that receives."""

    def __init__(self) -> None:
        self.version = 0
        self.updating: int | None = None
        self._lock = threading.Lock()
        self._info: HttpUpdateInfo | None = None
        self._items: queue.Queue[Any] = queue.Queue(QUEUE)
        self._digests: dict[str, str] = {}
        """Of each tensor that has come."""
        self._error: BaseException | None = None

    # Of the receiver.

    def run(self, info: HttpUpdateInfo, load_weights: LoadWeights) -> None:
        with self._lock:
            if self._info is not None:
                raise RuntimeError("this engine receives already")
            self._items, self._digests, self._error = queue.Queue(QUEUE), {}, None
            self._info = info
        answer: queue.Queue[BaseException | None] | None = None
        error: BaseException | None = None
        try:
            while answer is None:
                try:
                    item = self._items.get(timeout=info.timeout)
                except queue.Empty:
                    raise TimeoutError(f"the trainer has said nothing for {info.timeout} s") from None
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, queue.Queue):
                    answer = item
                else:
                    load_weights(item)
            self.version = self.updating or self.version
        except BaseException as raised:
            error = raised
            raise
        finally:
            with self._lock:
                self._info, self.updating, self._error = None, None, error
                if answer is not None:
                    answer.put(error)

    # Of the server.

    def start(self, version: int | None = None, base_version: int | None = None) -> int:
        with self._lock:
            if self._info is None:
                raise RuntimeError("the worker does not receive at present: call update_weights there first")
            if self.updating is not None:
                raise RuntimeError(f"a weight update is already active, to version {self.updating}")
            version = self.version + 1 if version is None else version
            if self._info.version not in (None, version):
                raise ValueError(f"version {version} was sent, the worker waits for {self._info.version}")
            if type(version) is not int or version <= self.version:
                raise ValueError(f"version {version!r} does not rise above {self.version}")
            self.updating = version
            return version

    def load(
        self,
        weights: Weights,
        *,
        is_checkpoint_format: bool = True,
        version: int | None = None,
        digests: Mapping[str, str] | None = None,
        owned: bool = False,
    ) -> None:
        with self._lock:
            if version is not None and self.updating not in (None, version):
                raise RuntimeError(f"tensors of version {version} came while {self.updating} is being loaded")
            if self._info is not None and is_checkpoint_format != self._info.is_checkpoint_format:
                raise ValueError(
                    f"the trainer sends with is_checkpoint_format={is_checkpoint_format}, the worker's update_info "
                    f"says {self._info.is_checkpoint_format}"
                )
            fresh = []
            for name, weight in weights:
                found = (digests or {}).get(name) or digest(weight)
                if name not in self._digests:
                    self._digests[name] = found
                    fresh.append((name, weight))
                elif self._digests[name] != found:
                    raise ValueError(
                        f"'{name}' comes twice in one update, with other values: two trainers send at once?"
                    )
        self._put(fresh)

    def finish(self, digests: Mapping[str, str] | None = None) -> int:
        """Frames have been compared with their hashes; here, that all have come."""
        version = self.updating
        missing = sorted((digests or {}).keys() - self._digests.keys())
        if missing:
            error = ValueError(f"'{missing[0]}' has not arrived, though the trainer says that it has sent it")
            self._put(error)
            raise error
        if (failed := self._outcome()) is not None:
            raise RuntimeError(f"the worker failed: {type(failed).__name__}: {failed}")
        return version or self.version

    def abort(self) -> None:
        if self.updating is not None:
            self._put(RuntimeError("the trainer has given the update up"))

    def _outcome(self) -> BaseException | None:
        """What the receiver says of the whole update; it may fail before it comes to being asked."""
        items = self._items
        answer: queue.Queue[BaseException | None] = queue.Queue()
        self._put(answer)
        while True:
            with self._lock:
                ended = self.updating is None or self._items is not items
            try:
                return answer.get(timeout=0.05)
            except queue.Empty:
                if ended:
                    return self._error or RuntimeError("it has stopped receiving")

    def _put(self, item: Any) -> None:
        """Wait for room as long as somebody receives."""
        items = self._items
        while self.updating is not None:
            try:
                items.put(item, timeout=0.05)
                return
            except queue.Full:
                continue
        why = f": {type(self._error).__name__}: {self._error}" if self._error is not None else ""
        raise RuntimeError(f"No weight update is active{why}")
