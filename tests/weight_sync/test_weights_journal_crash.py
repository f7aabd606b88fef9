"""A sync that stops at any of its steps leaves, after recovery, every file wholly old or every file wholly new."""

import os
import shutil
import signal

import numpy as np
import pytest
from weights_disks import LosingDisk, Stop, StoppingDisk, killing_disk

from kernbench.weight_sync import blocksync, sidecar
from kernbench.weight_sync.checkpoint_sync import recover, sync_file, verify
from kernbench.weight_sync.journal import CorruptJournalError
from kernbench.weight_sync.safetensors import index_text, read_tensors, write_safetensors
from kernbench.weight_sync.store import CheckpointBusyError, Store

FILES = ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Losses are simulated and a killed process has none, so the real disk is spared."""
    monkeypatch.setattr(sidecar, "_TICK_NS", 0)
    monkeypatch.setattr(os, "fsync", lambda number: None)


def weights(file, new=False):
    """Four tensors; in the new ones a stretch, every element, every 50th element, and nothing differ."""
    rng = np.random.default_rng(FILES.index(file))
    tensors = {
        f"{file}.a": rng.standard_normal(4000).astype(np.float32),
        f"{file}.b": rng.standard_normal((7, 90)).astype(np.float16),
        f"{file}.c": rng.integers(0, 100, 3000, np.int16),
        f"{file}.same": np.arange(100),
    }
    if new:
        tensors[f"{file}.a"][1500:2500] += 1
        tensors[f"{file}.b"] *= 2
        tensors[f"{file}.c"][::50] += 1
    return tensors


OLD = {file: weights(file) for file in FILES}
NEW = {file: weights(file, True) for file in FILES}


@pytest.fixture
def start(tmp_path):
    """Makes a checkpoint of old weights in a folder of its own, with a manifest."""
    made = []

    def make():
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(folder)
        for file in FILES:
            write_safetensors(folder / file, OLD[file])
        names = {name: file for file in FILES for name in OLD[file]}
        (folder / "model.safetensors.index.json").write_bytes(index_text(names, 0))
        blocksync.sync_files(folder, OLD, 512)
        return folder

    return make


def content(folder):
    return [{n: t.tobytes() for n, t in read_tensors(folder / file, framework="numpy").items()} for file in FILES]


OLD_BYTES = [{n: t.tobytes() for n, t in OLD[f].items()} for f in FILES]
NEW_BYTES = [{n: t.tobytes() for n, t in NEW[f].items()} for f in FILES]


def check_after(folder):
    """Recover, and check that all is old or all is new, that the manifest agrees and that the next sync works."""
    said = recover(folder)
    found = content(folder)
    assert found in (OLD_BYTES, NEW_BYTES), said
    checked = verify(folder)
    assert checked.ok and checked.version == (found == NEW_BYTES)
    assert not Store(folder).pending and not list((folder / ".kernbench").glob("*.tmp"))
    done = blocksync.sync_files(folder, NEW, 512)
    assert content(folder) == NEW_BYTES and verify(folder).ok
    assert any(f.changed for f in done) == (found == OLD_BYTES)
    return found == NEW_BYTES


def steps(folder, publish):
    disk = StoppingDisk()
    done = blocksync.sync_files(folder, NEW, 512, publish=publish, disk=disk)
    assert content(folder) == NEW_BYTES
    assert 0 < sum(f.journaled for f in done) < 0.6 * sum(f.changed for f in done)  # blocks and elements
    return disk.done


@pytest.mark.parametrize("publish", [False, True], ids=["in place", "publish"])
def test_an_exception_at_every_step(start, publish):
    outcomes = []
    for at in range(steps(start(), publish)):
        for when in ("before", "middle"):
            folder = start()
            with pytest.raises(Stop):
                blocksync.sync_files(folder, NEW, 512, publish=publish, disk=StoppingDisk(at, when))
            outcomes.append(check_after(folder))
    assert True in outcomes and False in outcomes


@pytest.mark.parametrize("publish", [False, True], ids=["in place", "publish"])
def test_power_loss_at_every_step(start, tmp_path, publish):
    outcomes = []
    for at in range(steps(start(), publish)):
        for seed in range(2):
            folder = start()
            disk = LosingDisk(tmp_path / f"shadow-{at}-{seed}", at, "middle" if seed else "before")
            with pytest.raises(Stop):
                blocksync.sync_files(folder, NEW, 512, publish=publish, disk=disk)
            disk.power_loss(seed)
            outcomes.append(check_after(folder))
    assert True in outcomes and False in outcomes


@pytest.mark.parametrize("publish", [False, True], ids=["in place", "publish"])
def test_the_first_sync_of_a_checkpoint_stops_at_every_step(start, tmp_path, publish):
    outcomes = []
    for at in range(200):
        folder = start()
        shutil.rmtree(folder / ".kernbench")
        disk = LosingDisk(tmp_path / f"shadow-{at}", at, "middle")
        try:
            blocksync.sync_files(folder, NEW, 512, publish=publish, disk=disk)
            break
        except Stop:
            disk.power_loss(at)
        recover(folder)
        assert content(folder) in (OLD_BYTES, NEW_BYTES)
        outcomes.append(content(folder) == NEW_BYTES)
    assert True in outcomes and False in outcomes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("publish", [False, True], ids=["in place", "publish"])
def test_kill_9_at_every_step(start, publish):
    points = [(at, when) for at in range(steps(start(), publish)) for when in ("middle", "after")]
    outcomes = []
    for at, when in points:
        folder = start()
        child = os.fork()
        if child == 0:
            try:
                blocksync.sync_files(folder, NEW, 512, publish=publish, disk=killing_disk(at, when))
            finally:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        outcomes.append(check_after(folder))
    assert len(points) >= 100 and True in outcomes and False in outcomes  # 200 over both ways


def test_a_disk_that_never_syncs_is_noticed_by_this_test(start, tmp_path, monkeypatch):
    """The losing disk does lose: without fsync, power loss leaves mixtures or damaged journals."""
    wrong = 0
    for seed in range(20):
        folder = start()
        disk = LosingDisk(tmp_path / f"shadow-{seed}", 10**9)
        disk._do_sync = disk._do_sync_folder = lambda what: None
        blocksync.sync_files(folder, NEW, 512, disk=disk)
        disk.power_loss(seed)
        try:
            recover(folder)
            wrong += content(folder) not in (OLD_BYTES, NEW_BYTES)
        except ValueError:
            wrong += 1
    assert wrong


def stopped_after_commit(start):
    """A folder with a committed journal and untouched files."""
    folder = start()
    for at in range(100):
        try:
            blocksync.sync_files(folder, NEW, 512, disk=StoppingDisk(at))
        except Stop:
            if Store(folder).pending:
                return folder
    raise AssertionError("no commit found")


def test_a_crash_during_recovery(start):
    folder = stopped_after_commit(start)
    stops = 0
    for at in range(200):
        try:
            with Store(folder, StoppingDisk(at)).locked():
                Store(folder, StoppingDisk(at)).recover()
            break
        except Stop:
            stops += 1
    assert stops > 5 and check_after(folder)


def test_the_next_sync_recovers_by_itself(start):
    folder = stopped_after_commit(start)
    assert verify(folder).pending and not verify(folder).ok
    with pytest.raises(ValueError, match="recover first"):
        blocksync.sync_files(folder, OLD, 512, dry_run=True)
    assert sync_file(folder / FILES[0], OLD[FILES[0]], 512)[1] > 0
    assert content(folder) == [OLD_BYTES[0], *NEW_BYTES[1:]] and verify(folder).version == 2


def test_a_damaged_journal_changes_nothing(start):
    folder = stopped_after_commit(start)
    before = content(folder)
    journal = folder / ".kernbench" / "journal"
    whole = journal.read_bytes()
    damaged = [whole[:0], whole[:-1], b"x" + whole[1:]]
    damaged += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(8, len(whole), 997)]
    for text in damaged:
        journal.write_bytes(text)
        with pytest.raises(CorruptJournalError):
            recover(folder)
        assert content(folder) == before
    journal.write_bytes(whole)
    assert recover(folder) == "rolled forward to version 1" and content(folder) == NEW_BYTES


def test_a_journal_is_not_applied_to_another_file(start):
    folder = stopped_after_commit(start)
    write_safetensors(folder / FILES[1], {"other": np.zeros(3)})
    with pytest.raises(ValueError, match="not the file that the journal was written for"):
        recover(folder)
    other = {**OLD[FILES[1]], f"{FILES[1]}.same": np.zeros(100, np.int64)}
    write_safetensors(folder / FILES[1], other)
    with pytest.raises(ValueError, match=r"model-2\.safetensors\.same still do not match"):
        recover(folder)


def test_one_at_a_time(start):
    folder = start()
    with Store(folder).locked(), pytest.raises(CheckpointBusyError, match="another process"):
        blocksync.sync_files(folder, NEW, 512)


def test_nothing_to_recover(start, tmp_path):
    assert recover(start()) == "nothing to recover"
    assert recover(tmp_path) == "nothing to recover" and not (tmp_path / ".kernbench").exists()
