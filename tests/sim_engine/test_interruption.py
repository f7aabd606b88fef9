"""A replay that Ctrl-C or a time limit stops leaves a run that goes on as if nothing had happened."""

import sys
from collections.abc import Callable

import pytest
from engine_runs import KERNELS, engine

from kernbench.sim_engine.engine import GraphEngine
from kernbench.sim_engine.oplog import EventRecord, HostSync, Launch


class Stop(BaseException):
    """Comes from outside, at any line."""


def interrupted(work: Callable[[], object], line: int) -> bool:
    """Run ``work`` and raise at the ``line``-th line of kernbench that it reaches; whether it got that far."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_globals.get("__name__", "").startswith(("kernbench.sim_engine", "kernbench.policy")):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


def record(run: GraphEngine, step: int) -> None:
    for command in (Launch(KERNELS[step]), EventRecord(step), HostSync()):
        run.log.add(0, command)


def test_an_interrupted_replay_can_be_repeated():
    whole, run, stopped = engine("tiny"), engine("tiny"), 0
    for step in range(len(KERNELS)):
        record(whole, step)
        whole.replay()
        record(run, step)
        line = 1
        while interrupted(run.replay, line):
            stopped, line = stopped + 1, line + 1 + line // 6
    assert run.replay().digest() == whole.replay().digest()
    assert run.replay().clamped == 0 and stopped > 100


def test_a_result_that_is_half_written_down_is_said_to_be(monkeypatch):
    def stop(*_):
        raise Stop

    run = engine("tiny")
    record(run, 0)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("kernbench.sim_engine.timeline.Timeline.append", stop)
        run.replay()
    with pytest.raises(RuntimeError, match="interrupted while its times were being written down"):
        run.replay()
