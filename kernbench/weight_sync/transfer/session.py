"""A worker's weights and their updates: start, load as often as it takes, finish; or everything stays as it was.

What arrives is staged in memory of its own. Only :meth:`ServedWeights.finish` touches the weights that are served, in
place (what holds their addresses goes on working), with readers kept out, and takes everything back if it fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernbench.runtime_api import rank as ranks
from kernbench.weight_sync.arrays import (
    Bytes,
    copy_into,
    describe,
    digest,
    framework_of,
    is_contiguous_on_host,
    to_bytes,
)
from kernbench.weight_sync.sharding import Box, Index, volume
from kernbench.weight_sync.transfer.base import Weights, WeightTransferEngine

Placed = tuple[str, Index, Any]
"""Parameter, where in it (() is all of it), and the values for there."""
Place = Callable[[str, Any], Iterable[Placed]]
_PIECE = 256 << 10


@dataclass
class _Session:
    version: int
    base_version: int | None
    staged: dict[str, Any] = field(default_factory=dict)
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    """Ranges of each staged parameter that have come."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of each tensor as it came."""


class ServedWeights:
    """The parameters that a worker computes with, and the version they are.

    Args:
        params: name -> torch tensor, numpy array or KernBench tensor; updates write into these. Where two are the
            same host memory (a head that is tied to the embedding), either brings new values, and both have to agree.
        version: the one they hold now.
        place: where a tensor of the checkpoint belongs: (parameter, index, values) for each part of it that is this
            worker's (its tensor-parallel shard, say); nothing for a tensor that is not. Without it, names are the same.
        on_finish: called with the new version while readers are kept out, before it is served: drop caches of keys and
            values, of prefixes, of processed weights here. If it raises, the old version stays.
        check: hash every tensor that comes, which reads it: of device tensors over the host link. Turn it off where a
            timing-only run has no values, or where the engine has compared hashes already.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        version: int = 0,
        *,
        place: Place | None = None,
        on_finish: Callable[[int], Any] | None = None,
        check: bool = True,
    ) -> None:
        self.params, self.place, self.on_finish, self.check = dict(params), place or _same_name, on_finish, check
        self._version = version
        self._tied = _tied(self.params)
        self._session: _Session | None = None
        self._loading = threading.Lock()
        self._readers = 0
        self._writing = False
        self._free = threading.Condition()

    @property
    def version(self) -> int:
        """Of the weights that are served."""
        return self._version

    @property
    def updating(self) -> int | None:
        """The version that is being loaded."""
        session = self._session
        return None if session is None else session.version

    @contextmanager
    def reading(self) -> Iterator[Mapping[str, Any]]:
        """The parameters, which no update changes within this block."""
        with self._free:
            self._free.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield self.params
        finally:
            with self._free:
                self._readers -= 1
                self._free.notify_all()

    def digests(self) -> dict[str, str]:
        """Hash of each parameter as it is served, the same for any layout, library or device."""
        with self.reading() as params:
            return {name: digest(weight) for name, weight in params.items()}

    def differing(self, expected: Mapping[str, str]) -> list[str]:
        """Names whose served values are not those with these hashes: what :meth:`digests` gave, or the trainer's hashes
        where names are the same. Finds what changed weights behind the back of updates, such as a reload from an old
        copy, and parameters that do not follow."""
        found = self.digests()
        return sorted(name for name, wanted in expected.items() if found.get(name) != wanted)

    def start(self, version: int | None = None, base_version: int | None = None) -> int:
        """Begin an update; gives its version.

        Args:
            version: by default the next.
            base_version: the update holds only what has changed since that version.

        Raises:
            RuntimeError: an update is already active.
            ValueError: the version does not rise, or the base is not the one that is served.
        """
        with self._loading:
            if self._session is not None:
                raise RuntimeError(
                    f"a weight update is already active, to version {self._session.version}: finish or abort it first"
                )
            version = self._version + 1 if version is None else version
            if type(version) is not int or version <= self._version:
                raise ValueError(f"version {version!r} does not rise above {self._version}, which is being served")
            if base_version is not None and base_version != self._version:
                raise ValueError(
                    f"the update changes version {base_version}, but {self._version} is being served: send all weights"
                )
            self._session = _Session(version, base_version)
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
        """Stage tensors; they are copied, so their memory may be reused. One that comes again unchanged is harmless
        where tensors are hashed (``check``), else an error.

        After an error the update is gone and the old version goes on serving.

        Args:
            version: of the update that they belong to; a late message must not get into the next.
            digests: hashes that the transport has compared with these very bytes, to spare another look at them.
            owned: their memory is given away, so that it may be staged as it is; nobody else may touch it any more.

        Raises:
            RuntimeError: no update is active, or another (which goes on).
            KeyError: no such parameter.
            TypeError, ValueError: "Type mismatch for", "Shape mismatch for"; a part of a parameter comes twice.
        """
        with self._loading:
            session = self._active()
            if version not in (None, session.version):
                raise RuntimeError(f"tensors of version {version} came while {session.version} is being loaded")
            try:
                place = self.place if is_checkpoint_format else _same_name
                for name, weight in weights:
                    found = (digests or {}).get(name) or digest(weight) if self.check else ""
                    self._stage(session, name, weight, found, place, owned)
            except BaseException:
                self._session = None
                raise

    def finish(self, digests: Mapping[str, str] | None = None, timeout: float | None = None) -> int:
        """Make the update visible, all at once; gives its version.

        Args:
            digests: of every tensor that the trainer has sent; compared with what has come.
            timeout: seconds to wait for readers.

        Raises:
            RuntimeError: no update is active.
            ValueError: tensors are missing or damaged. The update is gone then, and the old version goes on serving.
            TimeoutError: readers do not end; the same holds.
        """
        with self._loading:
            session = self._active()
            try:
                if digests is not None:
                    _compare(session.digests, digests, self.check)
                self._check_complete(session)
                with self._alone(timeout):
                    self._commit(session)
            finally:
                self._session = None
            return session.version

    def abort(self) -> None:
        """Drop what has been loaded; harmless if no update is active."""
        with self._loading:
            self._session = None

    def _active(self) -> _Session:
        if self._session is None:
            raise RuntimeError("No weight update is active: start one first; an update that failed is gone")
        return self._session

    def _stage(self, session: _Session, name: str, weight: Any, found: str, place: Place, owned: bool) -> None:
        if name in session.digests:
            if not found:
                raise ValueError(
                    f"'{name}' comes twice in one update, and without check nobody knows whether unchanged"
                )
            if found != session.digests[name]:
                raise ValueError(f"'{name}' comes twice in one update, with other values: two trainers send at once?")
            return
        placed = list(place(name, weight))
        owned = owned and len(placed) == 1
        for param, index, part in placed:
            target = self.params.get(param)
            if target is None:
                raise KeyError(f"'{name}' goes to the parameter '{param}', which this worker does not have")
            self._stage_part(session, param, target, index, part, owned and part is weight)
        session.digests[name] = found

    def _stage_part(self, session: _Session, param: str, target: Any, index: Index, part: Any, owned: bool) -> None:
        kind, shape = describe(target)
        box = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=False))
        box += tuple((0, n) for n in shape[len(box) :])
        there = tuple(stop - start for start, stop in box)
        sent_kind, sent_shape = describe(part)
        if sent_kind != kind:
            raise TypeError(f"Type mismatch for {param}: {sent_kind} was sent, the parameter is {kind}")
        if sent_shape != there:
            raise ValueError(f"Shape mismatch for {param}: {list(sent_shape)} was sent for a range of {list(there)}")
        boxes = session.boxes.setdefault(param, [])
        if any(_overlap(box, other) for other in boxes):
            raise ValueError(f"a part of the parameter '{param}' comes twice in one update: {box}")
        boxes.append(box)
        if owned and there == shape and _could_be(part, target):
            session.staged[param] = part
            return
        if param not in session.staged:
            session.staged[param] = _like(target, param)
        copy_into(session.staged[param][index] if index else session.staged[param], part)

    def _check_complete(self, session: _Session) -> None:
        came = {self._tied[param] for param in session.boxes}
        if session.base_version is None:
            missing = sorted(param for param in self.params if self._tied[param] not in came)
            if missing:
                raise ValueError(
                    f"the update to version {session.version} lacks {len(missing)} of {len(self.params)} parameters, "
                    f"the first is '{missing[0]}'; for a part of them, start with base_version"
                )
        firsts: dict[str, str] = {}
        for param, boxes in session.boxes.items():
            size = int(np.prod(describe(self.params[param])[1]))
            filled = sum(map(volume, boxes))
            if filled != size:
                raise ValueError(f"the parameter '{param}' is incomplete: {filled} of {size} elements have come")
            first = firsts.setdefault(self._tied[param], param)
            if first != param and self.check and digest(session.staged[first]) != digest(session.staged[param]):
                raise ValueError(f"'{param}' and '{first}' are the same memory, and came with different values")

    @contextmanager
    def _alone(self, timeout: float | None) -> Iterator[None]:
        with self._free:
            self._writing = True
            try:
                if not self._free.wait_for(lambda: self._readers == 0, timeout):
                    raise TimeoutError(f"{self._readers} readers still use the weights after {timeout} s")
                yield
            finally:
                self._writing = False
                self._free.notify_all()

    def _commit(self, session: _Session) -> None:
        """Exchange staged and served values, so that the old ones are there until everything has gone well."""
        done: list[str] = []
        try:
            for param in list(session.staged):  # whose tensors are let go of one by one
                session.staged[param] = _exchange(self.params[param], session.staged[param], param)
                done.append(param)
            if self.on_finish is not None:
                self.on_finish(session.version)
        except BaseException:
            for param in reversed(done):
                _exchange(self.params[param], session.staged[param], param)
            raise
        self._version = session.version


class WeightUpdater:
    """A worker's engine and weights together, behind the calls that serving engines offer their trainers."""

    def __init__(self, engine: WeightTransferEngine[Any, Any], served: ServedWeights) -> None:
        self.engine, self.served = engine, served

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Raises: ValueError "Invalid init_info for ..."."""
        self.engine.init_transfer_engine(self.engine.parse_init_info(dict(init_info)))

    def start_weight_update(self, version: int | None = None, base_version: int | None = None) -> int:
        """As :meth:`ServedWeights.start`."""
        return self.served.start(version, base_version)

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Receive one update of the session. After an error the session is gone and the old version goes on serving.

        Raises:
            RuntimeError: no update is active.
            ValueError: "Invalid update_info for ..."; or what the engine and the weights find wrong.
        """
        if self.served.updating is None:
            raise RuntimeError("No weight update is active: call start_weight_update first; one that failed is gone")
        try:
            info = self.engine.parse_update_info(dict(update_info))
            form = info.is_checkpoint_format
            owned = self.engine.gives_away
            self.engine.receive_weights(
                info, lambda weights: self.served.load(weights, is_checkpoint_format=form, owned=owned)
            )
        except BaseException:
            self.served.abort()
            raise

    def finish_weight_update(self, digests: Mapping[str, str] | None = None) -> int:
        """As :meth:`ServedWeights.finish`."""
        return self.served.finish(digests)

    def abort_weight_update(self) -> None:
        """As :meth:`ServedWeights.abort`."""
        self.served.abort()


def changed_weights(weights: Weights, digests: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Those whose hash is not in ``digests``, for an update with a ``base_version``."""
    return ((name, weight) for name, weight in weights if digests.get(name) != digest(weight))


def _same_name(name: str, weight: Any) -> Iterator[Placed]:
    yield name, (), weight


def _exchange(served: Any, staged: Any, name: str) -> Any:
    """Write ``staged`` into ``served``; gives what holds the old values then, which may be ``staged``. Where that
    fails, both are as they were."""
    if is_contiguous_on_host(served) and is_contiguous_on_host(staged):
        _swap(to_bytes(served).data, to_bytes(staged).data)
        return staged
    old = _like(served, name)
    copy_into(old, served)
    try:
        copy_into(served, staged)
    except BaseException:
        copy_into(served, old)
        raise
    return old


def _swap(one: Bytes, other: Bytes) -> None:
    """In pieces that stay in the cache; a signal's exception in the middle takes back what was done."""
    under_way = None
    try:
        for start in range(0, one.size, _PIECE):
            part = slice(start, start + _PIECE)
            under_way = part, one[part].copy(), other[part].copy()
            one[part] = under_way[2]
            other[part] = under_way[1]
    except BaseException:
        if under_way is not None:
            part, mine, theirs = under_way
            one[part], other[part] = mine, theirs
            _swap(one[: part.start], other[: part.start])
        raise


def _could_be(part: Any, target: Any) -> bool:
    """Whether ``part`` may stand for new memory like that of ``target``."""
    if is_contiguous_on_host(part):
        return _is_on_host(target)
    if framework_of(part) != "kernbench" or framework_of(target) != "kernbench":
        return False
    return bool(part.device == target.device and part.is_contiguous())


def _tied(params: Mapping[str, Any]) -> dict[str, str]:
    """Each parameter's first name: itself, or the one before it that is the very same host memory."""
    first: dict[Any, str] = {}
    made = {}
    for name, weight in params.items():
        kind, shape = describe(weight)
        key: Any = name
        if kind.nbytes(shape) and _is_on_host(weight) and is_contiguous_on_host(weight):
            key = to_bytes(weight).data.ctypes.data, kind, shape
        made[name] = first.setdefault(key, name)
    return made


def _is_on_host(weight: Any) -> bool:
    framework = framework_of(weight)
    return framework == "numpy" or (weight.device.type == "cpu" if framework == "torch" else weight.is_cpu)


def _like(weight: Any, name: str) -> Any:
    """New memory of the same library, type and shape, where the weight is."""
    kind, shape = describe(weight)
    framework = framework_of(weight)
    if framework == "torch":
        import torch

        return torch.empty_like(weight, requires_grad=False, memory_format=torch.contiguous_format)
    if framework == "kernbench" and not weight.is_cpu:
        return ranks.current().ctx.empty(shape, dtype=weight.dtype, name=f"{name} of an update")
    if framework == "kernbench":
        return type(weight)(shape, weight.dtype, name)
    return np.empty(shape, kind.storage)


def _compare(found: Mapping[str, str], expected: Mapping[str, str], check: bool) -> None:
    for name in expected:
        if name not in found:
            raise ValueError(f"'{name}' has not arrived, though the trainer says that it has sent it")
        if check and found[name] != expected[name]:
            raise ValueError(f"'{name}' hashes to {found[name]}, the trainer's to {expected[name]}: it was damaged")
    extra = sorted(found.keys() - expected.keys())
    if extra:
        raise ValueError(f"'{extra[0]}' has arrived, though the trainer says nothing of it")


def _overlap(one: Box, other: Box) -> bool:
    return all(a < d and c < b for (a, b), (c, d) in zip(one, other, strict=True))
