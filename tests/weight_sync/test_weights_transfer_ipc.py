"""The ipc engine between real processes: right bits, a buffer used again, and the death of either side."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from weights_cases import NAMES, SHAPES, weight

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory, WeightUpdater, ipc
from kernbench.weight_sync.transfer.ipc import IpcError, new_address

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix sockets")
Engine = WeightTransferEngineFactory.engine_class("ipc")
HERE = Path(__file__).parent
EVERYTHING = [(f"{n}.{i}", weight(n, s, seed=i)) for n in NAMES for i, s in enumerate(SHAPES)]
BIG = ("big", weight("bfloat16", (500, 60)))

WORKER = """
import json, os, signal, sys
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.transfer import WeightTransferEngineFactory
address, die_after = sys.argv[1], int(sys.argv[2])
engine = WeightTransferEngineFactory.create_engine("ipc", None, None)
engine.init_transfer_engine(engine.parse_init_info({"framework": "numpy"}))
kept = []
def load(pairs):
    kept.extend(pairs)
    if die_after and len(kept) >= die_after:
        os.kill(os.getpid(), signal.SIGKILL)
engine.receive_weights(engine.parse_update_info({"address": address, "timeout": 20}), load)
print(json.dumps([(name, digest(tensor)) for name, tensor in kept]))
"""
TRAINER = """
import os, signal, sys
import numpy as np
from kernbench.weight_sync.transfer import WeightTransferEngineFactory
def weights():
    for i in range(100):
        if i == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        yield f"w{i}", np.full(1000, i)
WeightTransferEngineFactory.engine_class("ipc").trainer_send_weights(
    weights(), {"address": sys.argv[1], "buffer_size_bytes": 3000, "num_buffers": 2, "timeout": 20})
"""


@pytest.fixture
def address():
    made = Path(new_address())
    yield str(made)
    assert not made.exists(), "the socket is left behind"
    if made.parent.exists():
        made.parent.rmdir()


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def digests(weights):
    return [[name, digest(tensor)] for name, tensor in weights]


def shared_memory():
    return set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()


@pytest.mark.parametrize("size, slots, count", [(1000, 2, 1), (77, 3, 2), (1 << 20, 2, 1)])
def test_every_type_and_shape_arrives_in_other_processes(address, size, slots, count):
    weights = [*EVERYTHING, BIG, *EVERYTHING[:3]]
    weights[-3:] = [(f"again.{name}", tensor) for name, tensor in weights[-3:]]
    before = shared_memory()
    workers = [start(WORKER, address, 0) for _ in range(count)]
    args = {"address": address, "workers": count, "buffer_size_bytes": size, "num_buffers": slots, "timeout": 20}
    Engine.trainer_send_weights(iter(weights), args)
    for worker in workers:
        output, errors = worker.communicate(timeout=20)
        assert worker.returncode == 0, errors
        assert json.loads(output) == digests(weights)
    assert shared_memory() <= before


def receive(address, load, results=None, **options):
    """In a thread of this process: (thread, what was raised)."""
    raised = []

    def body():
        engine = Engine(None, None)
        engine.init_transfer_engine(engine.parse_init_info({"framework": "numpy"}))
        try:
            engine.receive_weights(engine.parse_update_info({"address": address, "timeout": 20} | options), load)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, raised


def test_what_was_handed_over_survives_the_reuse_of_the_buffer(address):
    kept = []
    thread, raised = receive(address, kept.extend)
    weights = [(f"w{i}", np.full(100, i, np.int32)) for i in range(50)]
    Engine.trainer_send_weights(iter(weights), {"address": address, "buffer_size_bytes": 401, "num_buffers": 2})
    thread.join(20)
    assert not raised and digests(kept) == digests(weights)


def test_a_slow_worker_holds_the_trainer_back(address):
    """With two slots of one tensor each, the trainer is never more than two tensors ahead of what was copied."""
    taken, gate = [], threading.Semaphore(0)
    ahead = []

    def load(pairs):
        gate.acquire(timeout=20)
        taken.extend(pairs)

    def weights():
        for i in range(12):
            ahead.append(i - len(taken))
            gate.release()
            yield f"w{i}", np.full(100, i, np.int32)

    thread, raised = receive(address, load)
    Engine.trainer_send_weights(weights(), {"address": address, "buffer_size_bytes": 400, "num_buffers": 2})
    thread.join(20)
    assert not raised and len(taken) == 12 and max(ahead) <= 4


def test_a_worker_that_dies_is_named(address):
    workers = [start(WORKER, address, n) for n in (0, 3)]
    weights = ((f"w{i}", np.full(1000, i)) for i in range(100))
    with pytest.raises(IpcError, match=r"worker [01] has died"):
        Engine.trainer_send_weights(
            weights, {"address": address, "workers": 2, "buffer_size_bytes": 3000, "num_buffers": 2, "timeout": 20}
        )
    codes = []
    for worker in workers:
        _, errors = worker.communicate(timeout=20)
        codes.append(worker.returncode)
        assert worker.returncode == -signal.SIGKILL or "the trainer failed: PeerDiedError: worker" in errors
    assert codes == [1, -signal.SIGKILL]


def test_a_trainer_that_dies_leaves_the_old_version_and_no_memory(tmp_path):
    before = shared_memory()
    address = str(tmp_path / "socket")
    params = {f"w{i}": np.zeros(1000, np.int64) for i in range(100)}
    updater = WeightUpdater(Engine(None, None), ServedWeights(params))
    updater.init_weight_transfer_engine({"framework": "numpy"})
    updater.start_weight_update()
    trainer = start(TRAINER, address)
    with pytest.raises(IpcError, match="the trainer has died"):
        updater.update_weights({"address": address, "timeout": 20})
    assert trainer.wait(20) == -signal.SIGKILL
    trainer.communicate()
    assert updater.served.version == 0 and not any(w.any() for w in params.values())
    assert shared_memory() <= before


def in_a_child_that_dies(body, at):
    """Run it in a child, which is killed at its ``at``-th message; gives a function that waits for its exit code."""
    child = os.fork()
    if child:
        return lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        left = [at]

        def dying(real):
            def call(self, *args):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(self, *args)

            return call

        for name in ("send", "receive", "receive_descriptor"):
            setattr(ipc._Peer, name, dying(getattr(ipc._Peer, name)))
        body()
        os._exit(0)
    finally:
        os._exit(3)


def new_updater():
    updater = WeightUpdater(Engine(None, None), ServedWeights({f"w{i}": np.zeros(100, np.int32) for i in range(6)}))
    updater.init_weight_transfer_engine({"framework": "numpy"})
    updater.start_weight_update()
    return updater


SMALL = {f"w{i}": np.full(100, i + 1, np.int32) for i in range(6)}
ARGS = {"buffer_size_bytes": 300, "num_buffers": 2, "timeout": 20}


def test_either_side_may_be_killed_at_any_message():
    """The other side raises at once, well within its timeout; the old version stays, and nothing is left behind."""
    before, deaths = shared_memory(), {"trainer": 0, "worker": 0}
    for dying in deaths:
        for at in range(200):
            address, updater, start = new_address(), new_updater(), time.monotonic()

            def train(address=address):
                Engine.trainer_send_weights(iter(SMALL.items()), {"address": address} | ARGS)

            def serve(address=address, updater=updater):
                updater.update_weights({"address": address, "timeout": 20})

            code = in_a_child_that_dies(train if dying == "trainer" else serve, at)
            try:
                (serve if dying == "trainer" else train)()
                failed = False
            except IpcError as error:
                failed = True
                assert "has died" in str(error)
            died = code() == -signal.SIGKILL
            assert died or not failed
            if failed and dying == "trainer":
                assert updater.served.updating is None and not any(w.any() for w in updater.served.params.values())
            assert time.monotonic() - start < 15 and shared_memory() <= before
            Path(new_address()).parent.rmdir()  # sweeps up after the dead
            assert not Path(address).exists()
            if not died:
                break
            deaths[dying] += failed
    assert min(deaths.values()) > 8


def test_a_slot_is_mapped_once_however_many_chunks_it_carries(address, monkeypatch):
    mapped = []
    real = ipc._map
    monkeypatch.setattr(ipc, "_map", lambda number: mapped.append(1) or real(number))
    kept = []
    thread, raised = receive(address, kept.extend)
    Engine.trainer_send_weights(iter(SMALL.items()), {"address": address} | ARGS)
    thread.join(20)
    assert not raised and len(kept) == 6 and mapped == [1]


def test_an_error_of_a_worker_reaches_the_trainer(address):
    def load(pairs):
        raise KeyError("no such parameter")

    thread, raised = receive(address, load)
    with pytest.raises(IpcError, match="worker 0: KeyError: 'no such parameter'"):
        Engine.trainer_send_weights(iter([BIG]), {"address": address})
    thread.join(20)
    assert isinstance(raised[0], KeyError)


def test_an_error_of_the_trainer_reaches_the_worker(address):
    def weights():
        yield BIG
        raise OSError("disk is gone")

    thread, raised = receive(address, lambda pairs: None)
    with pytest.raises(OSError, match="disk is gone"):
        Engine.trainer_send_weights(weights(), {"address": address})
    thread.join(20)
    assert isinstance(raised[0], IpcError) and "the trainer failed: OSError: disk is gone" in str(raised[0])


def test_nobody_waits_for_ever(address):
    with pytest.raises(IpcError, match=r"0 of 1 workers have come within 0.05 s"):
        Engine.trainer_send_weights(iter([BIG]), {"address": address, "timeout": 0.05})
    thread, raised = receive(address, print, timeout=0.05)
    thread.join(20)
    assert "no trainer has come" in str(raised[0])


def test_arguments_and_order_are_checked(address):
    engine = Engine(None, None)
    with pytest.raises(RuntimeError, match="not initialized"):
        engine.receive_weights(engine.parse_update_info({"address": address}), print)
    engine.shutdown()
    with pytest.raises(ValueError, match="Invalid trainer_args: num_buffers is 1"):
        Engine.trainer_send_weights(iter([]), {"address": address, "num_buffers": 1})
    with pytest.raises(ValueError, match="Invalid trainer_args: workers is 0"):
        Engine.trainer_send_weights(iter([]), {"address": address, "workers": 0})


def test_folders_of_dead_trainers_are_removed():
    child = start("from kernbench.weight_sync.transfer.ipc import new_address; print(new_address())")
    left = Path(child.communicate(timeout=20)[0].strip())
    assert left.parent.is_dir() and left.parent.stat().st_mode & 0o077 == 0
    mine = Path(new_address())
    assert not left.parent.exists() and mine.parent.is_dir()
    mine.parent.rmdir()


def test_what_only_looks_like_a_trainers_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "kernbench-transfer-notes").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "socket").touch()
    (tmp_path / "kernbench-transfer-999999999-link").symlink_to(tmp_path / "home")
    new_address()
    assert (tmp_path / "kernbench-transfer-notes").is_dir() and (tmp_path / "home" / "socket").exists()
