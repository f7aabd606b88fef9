"""One SIP as the runtime sees it: its memory, its streams and events, and the record of what it was asked to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kernbench.kernels.team import symmetric
from kernbench.memory import INTERLEAVED, AddressSpace, Allocation
from kernbench.runtime_api import cooperation, footprint
from kernbench.runtime_api.stream import Clock, Flight, Flights, StreamState, merge
from kernbench.runtime_api.where import user_line
from kernbench.sim_engine.oplog import Command, EventRecord, EventWait, HostSync, Placed

if TYPE_CHECKING:
    from kernbench.runtime_api.call import Call
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.runtime_api.tensor import Tensor
    from kernbench.sim_engine.oplog import KernelRecord, OpLog


class Sip:
    """State that outlives the ranks that drive it, one after the other."""

    def __init__(self, ctx: RuntimeContext, number: int, index: int, capacity: int, log: OpLog) -> None:
        self.ctx = ctx
        self.number = number
        """Among the SIPs the context may use: ``ahbm:<number>``."""
        self.index = index
        """In the machine, and in the record."""
        self.log = log
        self.space = AddressSpace(capacity, f"ahbm:{number}", synchronize=self.synchronize)
        self.streams = [StreamState(0)]
        self.current = self.streams[0]
        self.host_clock: Clock = {}
        self.flights = Flights()
        self.range_path = ""
        self._carriers: dict[object, StreamState] = {}
        self._events = 0
        self.communicating = 0
        """Kernels launched whose programs communicate."""

    @staticmethod
    def placed(allocations: Iterable[Allocation]) -> tuple[Placed, ...]:
        """What a command that touches these has to say about where they lie."""
        return tuple(Placed(a.base, a.end, a.placement) for a in allocations if a.placement != INTERLEAVED)

    # Streams and events.

    def new_stream(self, internal: bool = False) -> StreamState:
        stream = StreamState(len(self.streams), internal)
        self.streams.append(stream)
        return stream

    def carrier(self, key: object) -> StreamState:
        """The internal stream that carries the collectives of one group, or the messages between one pair."""
        if key not in self._carriers:
            self._carriers[key] = self.new_stream(internal=True)
        return self._carriers[key]

    def add(self, command: Command) -> None:
        """Put a command into the record, marked with the current phase."""
        self.ctx.fence_if_due()
        command.range_id = self.log.range_id(self.range_path)
        self.log.add(self.index, command)

    def queue(self, command: Command, stream: StreamState | None = None) -> None:
        """Put a command on a stream (the current one)."""
        (stream or self.current).position += 1
        self.add(command)

    def record_event(self, stream: StreamState) -> tuple[int, Clock]:
        """Mark the end of what is on ``stream``: the event's number and all that comes before it."""
        self._events += 1
        self.add(EventRecord(self._events, stream.number))
        return self._events, stream.snapshot()

    def wait_event(self, stream: StreamState, event: int, before: Clock) -> None:
        """What is queued on ``stream`` from now on comes after the event."""
        if all(
            stream.clock.get(number, 0) >= position for number, position in before.items() if number != stream.number
        ):
            return
        self.add(EventWait(event, stream.number))
        merge(stream.clock, before)
        self._land()

    def order(self, earlier: StreamState, later: StreamState) -> None:
        """What is queued on ``later`` from now on comes after all that is on ``earlier``."""
        if earlier is later or later.clock.get(earlier.number, 0) >= earlier.position:
            return
        event, before = self.record_event(earlier)
        self.wait_event(later, event, before)

    def synchronize(self) -> None:
        """The host waits for everything."""
        self.add(HostSync())
        for stream in self.streams:
            merge(self.host_clock, stream.snapshot())
        self._land()

    def synchronize_with(self, before: Clock, event: int | None = None, stream: int | None = None) -> None:
        """The host waits for an event or a stream."""
        self.add(HostSync(event, stream))
        merge(self.host_clock, before)
        self._land()

    # Tensors in flight.

    def touch(self, tensor: Tensor, writes: bool = False) -> None:
        """Raise InFlightError if the current stream may not read, or write, a tensor of this SIP yet."""
        if self.flights:
            self.flights.check(*tensor._range(), writes, (self.current.clock, self.host_clock))
        if symmetric:
            cooperation.touch(self.ctx, tensor, writes)

    def touch_by_kernel(self, record: KernelRecord) -> None:
        """Raise InFlightError if the current stream may not yet touch what a kernel has touched."""
        if self.flights:
            where = user_line()
            for writes, start, end, (file, line) in footprint.of_kernel(record):
                by = f"kernel '{record.name}' launched at {where} ({file}:{line})"
                self.flights.check(start, end, writes, (self.current.clock, self.host_clock), by)

    def take_off(self, tensor: Tensor, writes: bool, call: Call, stream: StreamState) -> None:
        """``tensor`` is in flight until what is on ``stream`` now has run."""
        self.flights.all.append(Flight(tensor, writes, call, stream.number, stream.position))

    def _land(self) -> None:
        clocks = []
        for stream in self.streams:
            if not stream.internal:
                clock = dict(self.host_clock)
                merge(clock, stream.clock)
                clocks.append(clock)
        self.flights.land(clocks)

    # The end of a rank.

    def release(self) -> None:
        """The rank that drove this SIP has ended; the next one starts on the default stream."""
        self.current = self.streams[0]
        self.range_path = ""
        for stream in self.streams:
            merge(self.host_clock, stream.snapshot())
        self._land()
