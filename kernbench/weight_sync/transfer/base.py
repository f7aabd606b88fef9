"""What every transfer engine is: two kinds of information, and five methods around them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from kernbench.weight_sync.arrays import describe, digest
from kernbench.weight_sync.dtypes import WireType, wire_type

Weights = Iterable[tuple[str, Any]]
LoadWeights = Callable[[list[tuple[str, Any]]], Any]
"""Takes (name, tensor) pairs as they arrive, several times an update; it copies what it keeps."""


@dataclass
class WeightTransferInitInfo:
    """What a worker has to know once, to take part. Engines add their own fields."""


@dataclass
class WeightTransferUpdateInfo:
    """What a worker has to know of one update. Engines add their own fields.

    Attributes:
        is_checkpoint_format: names and shapes are the checkpoint's, so that the worker still has to find its part of
            them; else they are the worker's own parameters.
    """

    _: KW_ONLY
    is_checkpoint_format: bool = True


@dataclass
class WeightTransferInitRequest:
    """``init_info`` as it comes over a wire, for :meth:`WeightTransferEngine.parse_init_info`."""

    init_info: dict[str, Any] = field(default_factory=dict)


@dataclass
class WeightTransferUpdateRequest:
    """``update_info`` as it comes over a wire, for :meth:`WeightTransferEngine.parse_update_info`."""

    update_info: dict[str, Any] = field(default_factory=dict)


@dataclass
class TensorListInfo(WeightTransferUpdateInfo):
    """An update whose tensors are known before they come; :func:`describe_weights` makes it.

    Attributes:
        names: in the order in which they are sent.
        dtype_names: of each, ``"bfloat16"``.
        shapes: of each.
        digests: of each, :func:`kernbench.weight_sync.arrays.digest`; None checks nothing.

    Raises:
        ValueError: the lists differ in length, or a name is there twice.
        TypeError: an element type that is not known.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    _: KW_ONLY
    digests: list[str] | None = None

    def __post_init__(self) -> None:
        for key in ("dtype_names", "shapes", "digests"):
            value = getattr(self, key)
            if value is not None and len(value) != len(self.names):
                raise ValueError(
                    f"`{key}` should be of the same size as `names`: got {len(value)} and {len(self.names)}"
                )
        if len(set(self.names)) != len(self.names):
            twice = next(name for i, name in enumerate(self.names) if name in self.names[:i])
            raise ValueError(f"`names` has '{twice}' twice")
        self._kinds = [wire_type(name) for name in self.dtype_names]

    @property
    def metadata(self) -> list[tuple[str, WireType, tuple[int, ...]]]:
        """Name, element type and shape of each tensor."""
        return [
            (name, kind, tuple(shape)) for name, kind, shape in zip(self.names, self._kinds, self.shapes, strict=True)
        ]

    def checked(self, load_weights: LoadWeights) -> LoadWeights:
        """``load_weights`` behind a check of each tensor's digest.

        Raises (when called):
            ValueError: a tensor is not the one that was announced.
        """
        if self.digests is None:
            return load_weights
        expected = dict(zip(self.names, self.digests, strict=True))

        def load(weights: list[tuple[str, Any]]) -> None:
            for name, weight in weights:
                if (found := digest(weight)) != expected[name]:
                    raise ValueError(
                        f"'{name}' arrived damaged: it hashes to {found}, the trainer's to {expected[name]}"
                    )
            load_weights(weights)

        return load

    def check_sent(self, weights: Weights) -> Iterator[tuple[str, Any]]:
        """``weights``, each compared with what was announced, so that a sender stops before workers read garbage.

        Raises (while iterating):
            ValueError: names the first tensor that differs.
        """
        announced = iter(self.metadata)
        for name, weight in weights:
            found = (name, *describe(weight))
            expected = next(announced, None)
            if found != expected:
                raise ValueError(
                    f"the trainer sends {_text(found)} where its update_info announced "
                    f"{_text(expected) if expected else 'nothing more'}: describe the same weights, in the same order"
                )
            yield name, weight
        if (left := next(announced, None)) is not None:
            raise ValueError(f"the trainer's weights end before {_text(left)}, which its update_info announced")


TInit = TypeVar("TInit", bound=WeightTransferInitInfo)
TUpdate = TypeVar("TUpdate", bound=WeightTransferUpdateInfo)


class WeightTransferEngine(ABC, Generic[TInit, TUpdate]):
    """A worker's end of one way to transfer weights; the trainer's end is :meth:`trainer_send_weights`.

    Args:
        config: the engine's own settings, whatever the caller has.
        parallel_config: the worker's place among the workers, whatever the caller has.
    """

    init_info_cls: type[TInit]
    update_info_cls: type[TUpdate]
    _info: TInit | None = None
    gives_away: ClassVar[bool] = False
    """Whether what is handed over has memory of its own, which the engine never touches again: it may be kept."""

    def __init__(self, config: Any = None, parallel_config: Any = None) -> None:
        self.config, self.parallel_config = config, parallel_config

    def parse_init_info(self, init_dict: dict[str, Any]) -> TInit:
        """``init_info_cls`` of a dictionary.

        Raises:
            ValueError: "Invalid init_info for <Class>: ...".
        """
        return _parse(self.init_info_cls, init_dict, f"Invalid init_info for {type(self).__name__}")

    def parse_update_info(self, update_dict: dict[str, Any]) -> TUpdate:
        """``update_info_cls`` of a dictionary.

        Raises:
            ValueError: "Invalid update_info for <Class>: ...".
        """
        return _parse(self.update_info_cls, update_dict, f"Invalid update_info for {type(self).__name__}")

    def init_transfer_engine(self, init_info: TInit) -> None:
        """Get ready to receive, once."""
        self._info = init_info

    @property
    def info(self) -> TInit:
        """Of the initialisation.

        Raises:
            RuntimeError: "not initialized".
        """
        if self._info is None:
            raise not_initialized(self)
        return self._info

    @abstractmethod
    def receive_weights(self, update_info: TUpdate, load_weights: LoadWeights) -> None:
        """Receive one update and hand it over as it comes; returns when all of it has been.

        Raises:
            RuntimeError: "not initialized".
        """

    def shutdown(self) -> None:
        """Let go of everything; harmless if nothing is held."""
        self._info = None

    @staticmethod
    @abstractmethod
    def trainer_send_weights(iterator: Iterator[tuple[str, Any]], trainer_args: dict[str, Any] | Any) -> Any:
        """Send (name, tensor) pairs to the workers, from the trainer's side."""


def not_initialized(engine: WeightTransferEngine[Any, Any]) -> RuntimeError:
    """The error of receiving too early."""
    return RuntimeError(f"{type(engine).__name__} is not initialized: call init_transfer_engine first")


def describe_weights(weights: Weights, digests: bool = True) -> dict[str, Any]:
    """``names``, ``dtype_names``, ``shapes`` and ``digests`` of an update, for its update information.

    Args:
        digests: hash the values, which reads them: of device tensors over the host link, and not in a timing-only run.
    """
    made: dict[str, Any] = {"names": [], "dtype_names": [], "shapes": []}
    if digests:
        made["digests"] = []
    for name, weight in weights:
        kind, shape = describe(weight)
        made["names"].append(name)
        made["dtype_names"].append(kind.name)
        made["shapes"].append(list(shape))
        if digests:
            made["digests"].append(digest(weight))
    return made


T = TypeVar("T")


def trainer_arguments(cls: type[T], given: dict[str, Any] | T) -> T:
    """The trainer's arguments as a ``cls``.

    Raises:
        ValueError: "Invalid trainer_args: ...".
    """
    return given if isinstance(given, cls) else _parse(cls, given, "Invalid trainer_args")  # type: ignore[arg-type]


def _parse(cls: type[T], given: dict[str, Any], what: str) -> T:
    try:
        return cls(**given)
    except (TypeError, ValueError) as wrong:
        raise ValueError(f"{what}: {wrong}") from wrong


def _text(about: tuple[str, WireType, tuple[int, ...]]) -> str:
    return f"'{about[0]}' ({about[1]} {list(about[2])})"
