"""The fault injector itself, and thousands of faults against every way to transfer weights."""

import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import weight_faults
from weights_cases import weight

from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.disk import write_file
from kernbench.weight_sync.faults import (
    KINDS,
    TENSORS,
    Fault,
    FaultyProxy,
    Injector,
    Killed,
    LosingDisk,
    damage_file,
    damage_files,
    faulty_load,
    faulty_weights,
)

MESSAGES = [bytes([65 + i]) * 4 for i in range(5)]


def through(kind, step=1, seed=0, messages=MESSAGES):
    return list(Injector(Fault(kind, step, seed)).through(messages))


def test_each_kind_does_what_it_says():
    a, b, c, *rest = MESSAGES
    assert through("drop") == [a, c, *rest]
    assert through("duplicate") == [a, b, b, c, *rest]
    assert through("reorder") == [a, c, b, *rest]
    assert through("reorder", 4) == MESSAGES, "the last comes all the same"
    assert through("delay") == MESSAGES
    corrupt, cut = through("corrupt"), through("truncate")
    assert corrupt[::2] == MESSAGES[::2] and sum((x ^ y).bit_count() for x, y in zip(corrupt[1], b, strict=True)) == 1
    assert len(cut[1]) < 4 and b.startswith(cut[1]) and cut[2:] == MESSAGES[2:]
    with pytest.raises(Killed):
        through("kill")
    assert through("drop", 9) == MESSAGES


def test_the_same_fault_strikes_alike_and_seeds_differ():
    for kind in ("corrupt", "truncate"):
        assert through(kind, seed=3) == through(kind, seed=3)
        assert len({tuple(through(kind, seed=s)) for s in range(20)}) > 2
    with pytest.raises(ValueError, match="a fault is 'melt': expected one of drop"):
        Fault("melt", 0)
    with pytest.raises(ValueError, match="count from 0"):
        Fault("drop", -1)


@pytest.mark.parametrize("kind", ["bfloat16", "bool", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(), (3, 4), (0,)])
def test_tensors_are_damaged_too(kind, shape):
    pair = ("w", weight(kind, shape))
    ((_, flipped),) = faulty_weights([pair], Fault("corrupt", 0))
    assert (digest(flipped) == digest(pair[1])) == (0 in shape)
    ((_, cut),) = faulty_weights([pair], Fault("truncate", 0))
    assert cut.size < pair[1].size or not pair[1].size
    came = []
    injector = Injector(Fault("reorder", 0), TENSORS)
    faulty_load(came.extend, injector)([pair, ("v", pair[1])])
    assert [name for name, _ in came] == ["v", "w"] and injector.struck


def test_files_are_damaged(tmp_path):
    whole = bytes(np.random.default_rng(0).integers(0, 256, 1300, np.uint8))
    sizes = {"drop": 788, "duplicate": 1812, "reorder": 1300, "corrupt": 1300}
    paths = [tmp_path / name for name in "abc"]
    for kind, size in sizes.items():
        paths[0].write_bytes(whole)
        damage_file(paths[0], Fault(kind, 1))
        assert paths[0].read_bytes() != whole and paths[0].stat().st_size == size
    paths[0].write_bytes(whole)
    damage_file(paths[0], Fault("truncate", 1))
    assert whole.startswith(paths[0].read_bytes()) and 512 <= paths[0].stat().st_size < 1024
    for kind, expected in (("drop", "a c"), ("duplicate", "abb"), ("reorder", "acb")):
        for path in paths:
            path.write_text(path.name)
        damage_files(paths, Fault(kind, 1))
        assert "".join(p.read_text() if p.exists() else " " for p in paths) == expected
    with pytest.raises(ValueError, match="meets no 'kill' by itself"):
        damage_file(paths[0], Fault("kill", 0))


def test_a_disk_loses_what_was_not_synced(tmp_path):
    for lying, outcomes in ((False, {b"new"}), (True, {b"old", b"new", b"", None})):
        seen = set()
        for seed in range(20):
            path = tmp_path / "file"
            path.write_bytes(b"old")
            disk = LosingDisk(tmp_path / f"{lying}{seed}", lying=lying)
            write_file(disk, path, b"new")
            disk.power_loss(seed)
            seen.add(path.read_bytes() if path.exists() else None)
        assert seen <= outcomes | ({b"\0\0\0"} if lying else set()) and (len(seen) > 1) == lying


def everything(connection):
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.fixture
def echo():
    """Address of a server that sends back what it has got, once its client says that this is all."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(everything(connection))

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("towards", ["server", "client"])
def test_a_proxy_strikes_the_block_it_is_told_to(echo, kind, towards):
    sent = bytes(np.random.default_rng(1).integers(0, 256, 1000, np.uint8))
    before = threading.active_count()
    with FaultyProxy(echo, kind and Fault(kind, 3, seed=2), towards=towards, block=100) as proxy:
        with socket.create_connection(proxy.address, timeout=20) as connection:
            connection.sendall(sent)
            try:
                connection.shutdown(socket.SHUT_WR)
                came = everything(connection)
            except ConnectionError:
                came = None
        if kind == "kill":
            assert came is None or len(came) < 1000
            with pytest.raises(OSError), socket.create_connection(proxy.address, timeout=1) as connection:
                connection.sendall(b"x")
                assert connection.recv(1), "somebody is let in"
                raise AssertionError
    blocks = [sent[i : i + 100] for i in range(0, 1000, 100)]
    if kind in ("corrupt", "truncate"):
        assert came[:300] == sent[:300] and came != sent and came.endswith(sent[400:])
    elif kind != "kill":
        assert came == b"".join(Injector(kind and Fault(kind, 3)).through(blocks))
    assert threading.active_count() == before


# Campaigns.


def test_faults_are_detected_or_harmless():
    tallies = weight_faults.run(600)
    assert [text for one in tallies.values() for text in one.silent] == []
    assert set(tallies) == {(case.name, kind) for case in weight_faults.CASES for kind in case.kinds}
    assert sum(one.faults for one in tallies.values()) >= 550
    assert sum(one.detected.total() for one in tallies.values()) > 250
    for case in weight_faults.CASES:
        assert any(tallies[case.name, kind].detected for kind in case.kinds), f"{case.name}: nothing was ever detected"
        assert "delay" not in case.kinds or tallies[case.name, "delay"].harmless


class Trusting(weight_faults.Trainer):
    """Without a hash of what the trainer meant to send."""

    name = "trusting"
    kinds = ("corrupt",)

    def update(self, weights, version, kind, step, seed):
        real = weight_faults.hashes
        weight_faults.hashes = lambda weights: None
        try:
            return super().update(weights, version, kind, step, seed)
        finally:
            weight_faults.hashes = real


class Eager(weight_faults.Trainer):
    """Whose updates are visible as they come."""

    name = "eager"
    kinds = ("drop",)

    def given(self, weights, kind, step, seed):
        for name, one in super().given(weights, kind, step, seed):
            if kind:
                self.params[name][...] = one
            yield name, one


class Leaking(weight_faults.Trainer):
    name = "leaking"

    def update(self, *args):
        self.kept = [*getattr(self, "kept", []), os.open(os.devnull, os.O_RDONLY)]
        return super().update(*args)


def test_a_campaign_notices_silent_corruption_early_sight_and_leaks():
    assert weight_faults.run(12, cases=(Trusting,))["trusting", "corrupt"].silent
    assert weight_faults.run(4, cases=(Eager,))["eager", "drop"].silent
    with pytest.raises(RuntimeError, match="leaking leaves something behind"):
        weight_faults.run(2, cases=(Leaking,))


def test_the_page_shows_what_its_programs_print(capsys):
    page = (Path(__file__).parents[2] / "docs" / "weight-transfer.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(programs[0], names)
    shown = re.search(r"```\n\n((?:    .*\n)+)", page)[1]
    assert capsys.readouterr().out.split() == shown.split()
    exec(programs[1], names)
    assert capsys.readouterr().out.split() == ["found:", "HttpTransferError", "0", "0.0"]
