"""``torch.cuda``'s streams, events and graphs on the simulated machine."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from kernbench.kernels import device as devices
from kernbench.runtime_api import ahbm


def rank() -> Any:
    """The rank that runs now.

    Raises:
        NotImplementedError: kernels go to a StandaloneDevice, which has no streams.
    """
    device = devices.current()
    if not hasattr(device, "ctx"):
        raise NotImplementedError(
            "streams and events need a RuntimeContext: open one (RuntimeContext.open) instead of a StandaloneDevice"
        )
    return device


class Stream(ahbm.Stream):
    """A new stream of the current device, also a context in which it is the current one."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        sip = rank().sip
        super().__init__(sip, sip.new_stream())
        self._before: list[Any] = []  # what was current, for each time it was entered

    @classmethod
    def of(cls, stream: ahbm.Stream) -> Stream:
        """A stream that is there, under torch's name."""
        made = cls.__new__(cls)
        ahbm.Stream.__init__(made, stream._sip, stream._state)
        made._before = []
        return made

    @property
    def cuda_stream(self) -> int:
        return self.stream_id

    device_index = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)

    def is_capturing(self) -> bool:
        return False

    def priority_range(self) -> tuple[int, int]:
        """Streams have no priorities."""
        return 0, 0

    def record_event(self, event: ahbm.Event | None = None) -> ahbm.Event:
        return super().record_event(event or Event())

    def __enter__(self) -> Stream:
        self._before.append(self._sip.current)
        self._sip.current = self._state
        return self

    def __exit__(self, *_: object) -> None:
        self._sip.current = self._before.pop()


class ExternalStream(Stream):
    """The stream whose number (``cuda_stream``) is given.

    Raises:
        RuntimeError: there is none.
    """

    def __init__(self, stream_ptr: int, device: Any = None, **_: Any) -> None:
        sip = rank().sip
        if not 0 <= stream_ptr < len(sip.streams):
            raise RuntimeError(
                f"ExternalStream: no stream has the number {stream_ptr}: only streams of torch.cuda can be given"
            )
        ahbm.Stream.__init__(self, sip, sip.streams[stream_ptr])
        self._before = []


class Event(ahbm.Event):
    """A mark in a stream; ``elapsed_time`` gives simulated milliseconds."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **_: Any
    ) -> None:
        super().__init__(rank().sip, enable_timing)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


class DeviceEvent(Event):
    """``torch.Event``, whose first argument is a device."""

    def __init__(self, device: Any = None, enable_timing: bool = False, **_: Any) -> None:
        super().__init__(enable_timing)


class StreamContext:
    """``with torch.cuda.stream(s):``; of None, nothing happens."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *raised: Any) -> None:
        if self.stream is not None:
            self.stream.__exit__(*raised)


def _refused(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(
        "CUDA graphs are not supported: torch's own operators would not be in them. Launch the kernels in a loop"
    )


class CUDAGraph:
    """Classes, since programs name them in annotations and derive from them."""

    __init__ = _refused


class graph:
    __init__ = _refused


REPLACED = {
    "Stream": Stream,
    "ExternalStream": ExternalStream,
    "Event": Event,
    "StreamContext": StreamContext,
    "CUDAGraph": CUDAGraph,
    "graph": graph,
    "make_graphed_callables": _refused,
    "graph_pool_handle": _refused,
}
"""By their names in ``torch.cuda``."""


class Shim:
    """Each public method replaces the function of that name in ``torch.cuda``."""

    def synchronize(self, device: Any = None) -> None:
        current = devices.current()
        if hasattr(current, "ctx"):
            current.ctx.ahbm.synchronize()

    def current_stream(self, device: Any = None) -> Stream:
        return Stream.of(rank().ctx.ahbm.current_stream())

    def default_stream(self, device: Any = None) -> Stream:
        return Stream.of(rank().ctx.ahbm.default_stream())

    def set_stream(self, stream: Any) -> None:
        if stream is not None:
            rank().ctx.ahbm.set_stream(stream)

    def stream(self, stream: Any) -> StreamContext:
        return StreamContext(stream)

    def get_stream_from_external(self, data_ptr: int, device: Any = None) -> ExternalStream:
        return ExternalStream(data_ptr, device)

    def is_current_stream_capturing(self) -> bool:
        return False


def raw_stream(device: Any = None) -> int:
    """What torch's compiled code and many launchers ask for: the number of the current stream."""
    current = devices.current()
    return current.ctx.ahbm.current_stream().stream_id if hasattr(current, "ctx") else 0
