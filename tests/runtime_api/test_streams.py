import pytest

from kernbench.runtime_api.errors import InFlightError
from kernbench.sim_engine.oplog import Collective, EventRecord, EventWait, HostSync, Launch


def kinds(ctx, sip=0):
    return [type(c).__name__ for c in ctx.engine.log.commands[sip]]


def test_streams_run_side_by_side_and_events_order_them(ctx):
    big, small = (1024, 1024), (4,)
    side = ctx.ahbm.Stream()
    main = ctx.ahbm.current_stream()
    marks = {name: ctx.ahbm.Event(enable_timing=True) for name in ("begin", "main", "side", "ordered")}
    marks["begin"].record()
    ctx.zeros(big)
    marks["main"].record()
    with ctx.ahbm.stream(side):
        assert ctx.ahbm.current_stream() == side
        ctx.zeros(small)
        marks["side"].record()
        side.wait_stream(main)
        ctx.zeros(small)
        marks["ordered"].record()
    assert ctx.ahbm.current_stream() == main == ctx.ahbm.default_stream()
    at = {name: marks["begin"].elapsed_time(mark) for name, mark in marks.items()}
    assert 0 < at["side"] < at["main"] < at["ordered"]


def test_events_need_timing_and_recording(ctx):
    plain, timed = ctx.ahbm.Event(), ctx.ahbm.Event(enable_timing=True)
    with pytest.raises(ValueError, match="enable_timing=True"):
        plain.elapsed_time(timed)
    with pytest.raises(RuntimeError, match="must be recorded"):
        timed.elapsed_time(timed)
    timed.record()
    assert timed.elapsed_time(timed) == 0.0
    assert timed.query()
    assert ctx.ahbm.current_stream().query()


def test_recording_again_moves_the_mark(ctx):
    begin, end = ctx.ahbm.Event(enable_timing=True), ctx.ahbm.Event(enable_timing=True)
    begin.record()
    end.record()
    ctx.zeros(1000)
    end.record()
    assert begin.elapsed_time(end) > 0


def test_a_wait_that_orders_nothing_new_is_not_recorded(ctx):
    side, main = ctx.ahbm.Stream(), ctx.ahbm.current_stream()
    ctx.zeros(4)
    side.wait_stream(main)
    side.wait_stream(main)
    main.wait_stream(main)
    assert kinds(ctx) == ["Launch", "EventRecord", "EventWait"]


def test_synchronising(ctx):
    side = ctx.ahbm.Stream()
    event = side.record_event()
    event.synchronize()
    side.synchronize()
    ctx.ahbm.synchronize()
    syncs = [c for c in ctx.engine.log.commands[0] if isinstance(c, HostSync)]
    assert [(s.event is not None, s.stream) for s in syncs] == [(True, None), (False, side.stream_id), (False, None)]


def test_a_collective_runs_beside_the_stream_and_wait_joins_them(run):
    def worker(rank, ctx):
        tensor = ctx.ones(64)
        work = ctx.distributed.all_reduce(tensor, async_op=True)
        ctx.zeros(4)
        work.wait()
        ctx.zeros(4)

    ctx = run(2, worker)
    commands = ctx.engine.log.commands[1]
    assert [type(c) for c in commands] == [
        Launch,  # ones
        EventRecord,  # the collective comes after it
        EventWait,
        Collective,
        EventRecord,  # the end of the collective
        Launch,  # beside it
        EventWait,
        Launch,
    ]
    streams = [c.stream for c in commands]
    assert streams == [0, 0, 1, 1, 1, 0, 0, 0]


def test_waiting_for_one_collective_does_not_wait_for_the_next(run):
    def worker(rank, ctx):
        small, large = ctx.ones(64), ctx.ones(1 << 20)
        first, second = (ctx.ahbm.Event(enable_timing=True) for _ in range(2))
        works = [ctx.distributed.all_reduce(t, async_op=True) for t in (small, large)]
        works[0].wait()
        first.record()
        works[1].wait()
        second.record()
        return first.elapsed_time(second)

    (gap, _), link = run(2, worker).results, 16e9
    assert gap * 1e-3 > (1 << 21) / link * 0.9


def test_a_tensor_is_in_flight_for_streams_that_were_not_told(run):
    def worker(rank, ctx):
        tensor, side, main = ctx.ones(4), ctx.ahbm.Stream(), ctx.ahbm.current_stream()
        side.wait_stream(main)
        with ctx.ahbm.stream(side):
            ctx.distributed.all_reduce(tensor)
            tensor.add_(1)
        with pytest.raises(InFlightError, match="make this stream wait"):
            _ = tensor + 1
        main.wait_stream(side)
        tensor.add_(1)
        return tensor.tolist()

    assert run(2, worker).results == [[4.0] * 4] * 2


def test_an_event_carries_the_knowledge_of_its_stream(run):
    def worker(rank, ctx):
        tensor, side = ctx.ones(4), ctx.ahbm.Stream()
        side.wait_stream(ctx.ahbm.current_stream())
        with ctx.ahbm.stream(side):
            ctx.distributed.all_reduce(tensor)
            event = side.record_event()
        event.wait()
        return tensor.tolist()

    assert run(2, worker).results == [[2.0] * 4] * 2


def test_devices(run):
    def worker(rank, ctx):
        ahbm = ctx.ahbm
        ahbm.set_device(f"ahbm:{rank}")
        with pytest.raises(ValueError, match="this context has 2 SIPs, ahbm:0 to ahbm:1"):
            ahbm.set_device(2)
        with pytest.raises(ValueError, match="no device 'cpu'"):
            ahbm.set_device("cpu")
        return ahbm.current_device(), ahbm.device_count(), ahbm.get_device_name(), ahbm.is_available()

    assert run(2, worker).results == [(0, 2, "tiny SIP 0", True), (1, 2, "tiny SIP 1", True)]
