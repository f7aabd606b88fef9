"""``ctx.ahbm``: the calling rank's device, its streams, events and memory, with torch.cuda's names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kernbench.runtime_api import rank as ranks
from kernbench.runtime_api.sip import Sip
from kernbench.runtime_api.stream import Clock, StreamState
from kernbench.runtime_api.types import CPU, Device

if TYPE_CHECKING:
    from kernbench.runtime_api.context import RuntimeContext


class Stream:
    """An in-order queue of one SIP."""

    def __init__(self, sip: Sip, state: StreamState) -> None:
        self._sip, self._state = sip, state

    @property
    def stream_id(self) -> int:
        return self._state.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other._state is self._state

    def __hash__(self) -> int:
        return id(self._state)

    def __repr__(self) -> str:
        return f"<ahbm.Stream device=ahbm:{self._sip.number} stream_id={self.stream_id}>"

    def wait_stream(self, other: Stream) -> None:
        """What is queued here from now on comes after all that is queued on ``other`` by now."""
        self._sip.order(other._state, self._state)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._sip)
        event.record(self)
        return event

    def query(self) -> bool:
        """True: what has been queued has been carried out, as far as values go."""
        return True

    def synchronize(self) -> None:
        """The host waits for all that is queued here."""
        self._sip.synchronize_with(self._state.snapshot(), stream=self._state.number)


class Event:
    """A mark in a stream. ``elapsed_time`` measures between two in simulated time."""

    def __init__(self, sip: Sip, enable_timing: bool = False) -> None:
        self._sip, self._timed = sip, enable_timing
        self._number: int | None = None
        self._before: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        """Mark the end of what is queued on ``stream`` (the current one). Recording again moves the mark."""
        state = self._sip.current if stream is None else stream._state
        self._number, self._before = self._sip.record_event(state)

    def wait(self, stream: Stream | None = None) -> None:
        """What is queued on ``stream`` (the current one) from now on comes after the mark."""
        if self._number is not None:
            state = self._sip.current if stream is None else stream._state
            self._sip.wait_event(state, self._number, self._before)

    def query(self) -> bool:
        """True: what comes before the mark has been carried out, as far as values go."""
        return True

    def synchronize(self) -> None:
        """The host waits for the mark."""
        if self._number is not None:
            self._sip.synchronize_with(self._before, event=self._number)

    def elapsed_time(self, end_event: Event) -> float:
        """Simulated milliseconds from this mark to ``end_event``. Replays what has been recorded so far.

        Raises:
            ValueError: an event was made without ``enable_timing=True``.
            RuntimeError: an event has not been recorded.
        """
        if not (self._timed and end_event._timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._number is None or end_event._number is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        timeline = self._sip.ctx.timeline()
        start = timeline.event_ps(self._sip.index, self._number)
        end = timeline.event_ps(end_event._sip.index, end_event._number)
        return (end - start) * 1e-9


class Ahbm:
    """Devices are numbered among those the context may use. ``device=None`` is the calling rank's current one."""

    def __init__(self, ctx: RuntimeContext) -> None:
        self._ctx = ctx
        self.Stream, self.Event = self._stream, self._event

    # Devices.

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self._ctx.sips)

    def current_device(self) -> int:
        return ranks.current_in(self._ctx).device

    def set_device(self, device: int | str | Device) -> None:
        """Use another SIP from now on. In a spawn, rank r begins with SIP r.

        Raises:
            ValueError: the context has no such SIP.
        """
        rank = ranks.current_in(self._ctx)
        rank.device = self._number(device)

    def get_device_name(self, device: Any = None) -> str:
        return f"{self._ctx.spec.name} SIP {self._sip(device).index}"

    def synchronize(self, device: Any = None) -> None:
        """The host waits for everything that is queued; collectives that other ranks still have to join included."""
        sip = self._sip(device)
        for call in dict.fromkeys(flight.call for flight in sip.flights.all):
            call.complete()
        sip.synchronize()

    # Streams and events.

    def current_stream(self, device: Any = None) -> Stream:
        sip = self._sip(device)
        return Stream(sip, sip.current)

    def default_stream(self, device: Any = None) -> Stream:
        sip = self._sip(device)
        return Stream(sip, sip.streams[0])

    def set_stream(self, stream: Stream) -> None:
        stream._sip.current = stream._state

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[Stream | None]:
        """Queue on ``stream`` inside the block; None changes nothing."""
        if stream is None:
            yield None
            return
        before = stream._sip.current
        stream._sip.current = stream._state
        try:
            yield stream
        finally:
            stream._sip.current = before

    # Memory, in bytes.

    def memory_allocated(self, device: Any = None) -> int:
        return self._sip(device).space.allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return self._sip(device).space.peak

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        space = self._sip(device).space
        space.peak = space.allocated

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """(free, total)."""
        space = self._sip(device).space
        return space.capacity - space.allocated, space.capacity

    def memory_summary(self, device: Any = None, most: int = 20) -> str:
        """Who holds what, the largest first."""
        space = self._sip(device).space
        used = f"{space.name}: {space.allocated / 2**20:.2f} of {space.capacity / 2**20:.2f} MiB in use"
        return f"{used}, at most {space.peak / 2**20:.2f} MiB so far\n{space.summary(most)}"

    def empty_cache(self) -> None:
        """Nothing is cached: memory returns when its last tensor dies."""

    # Inside.

    def _stream(self, device: Any = None, priority: int = 0) -> Stream:
        """A new stream."""
        sip = self._sip(device)
        return Stream(sip, sip.new_stream())

    def _event(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Event:
        """A new event."""
        return Event(self._sip(None), enable_timing)

    def _number(self, device: int | str | Device) -> int:
        parsed = Device.parse(device, ranks.current_in(self._ctx).device)
        count = len(self._ctx.sips)
        if parsed == CPU or parsed.index is None or not 0 <= parsed.index < count:
            raise ValueError(
                f"there is no device {device!r}: this context has {count} SIP{'s' if count > 1 else ''}, "
                f"ahbm:0 to ahbm:{count - 1}. Ask for a machine with more (--sips, or sips=...)."
            )
        return parsed.index

    def _sip(self, device: Any) -> Sip:
        rank = ranks.current_in(self._ctx)
        if device is None or self._number(device) == rank.device:
            return rank.sip
        return self._ctx.sips[self._number(device)]
