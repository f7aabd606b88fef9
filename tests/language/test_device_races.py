"""Races between ranks: what a peer puts against what others read and write, and what orders them."""

import inspect
import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("triton")
import racing_kernels as kernels

import kernbench.topology
from kernbench import bench
from kernbench.kernels.errors import KernelFault
from kernbench.kernels.sanitize.clocks import NOTHING, Line, joined
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.multiprocessing import SpawnException

ROOT = Path(__file__).parents[2]
MACHINE = kernbench.topology.load("tiny", sips=2)


def line(kernel, text):
    source, start = inspect.getsourcelines(kernel.fn)
    (at,) = [i for i, row in enumerate(source) if text in row]
    return f"racing_kernels.py:{start + at}"


def run(worker, ranks=2, **options):
    """What ``worker(ctx, rank, memory)`` fails with under the race check, as text; '' for nothing."""
    machine = MACHINE if ranks == 2 else kernbench.topology.load("tiny", sips=ranks)

    def body(rank):
        ctx.distributed.init_process_group()
        worker(ctx, rank, ctx.distributed.symmetric_memory)

    with RuntimeContext.open(machine, check=["race"], **options) as ctx:
        try:
            ctx.multiprocessing.spawn(body, nprocs=ranks)
        except SpawnException as error:
            assert all(isinstance(e, KernelFault) for e in error.errors.values())
            return "\n".join(map(str, error.errors.values()))
    return ""


def tensors(ctx, memory, size=64, flags=2):
    made = memory.empty(size, dtype="f32", name="box"), memory.zeros(flags, dtype="i32", name="gate")
    made = *made, ctx.empty(16, dtype="f32")
    ctx.kept = [*getattr(ctx, "kept", []), made]  # until all ranks have ended
    ctx.distributed.barrier()
    return made


@pytest.mark.parametrize("how", ["put", "copy", "atomic"])
def test_a_put_and_the_read_of_who_did_not_wait(how):
    def worker(ctx, rank, memory, wait):
        box, gate, out = tensors(ctx, memory)
        kernels.mailbox[(1,)](box, gate, out, WAIT=wait, HOW=how)

    assert run(lambda *a: worker(*a, True)) == ""
    said = run(lambda *a: worker(*a, False))
    read = line(kernels.mailbox, "tl.load(inbox + 16")
    put = line(kernels.mailbox, {"put": "kl.put", "copy": "kl.copy", "atomic": "atomic_add"}[how])
    # Rank 0 reads before rank 1 has its turn.
    does = "changes" if how == "atomic" else "writes"
    assert re.search(
        rf"{put}.*: kernel 'mailbox': race on 'inbox': rank 1, program \(0, 0, 0\) {does} element 16 of 'box' of rank "
        rf"0 \(bytes 64..67\), which rank 0, program \(0, 0, 0\) read through 'inbox' at \S*{read}, and nothing",
        said,
    ), said


def test_two_puts_of_two_ranks():
    def worker(ctx, rank, memory, apart):
        kernels.everybody_to_rank_0[(1,)](tensors(ctx, memory)[0], APART=apart)

    assert run(lambda *a: worker(*a, 16)) == ""
    said = run(lambda *a: worker(*a, 8))
    assert "rank 1, program (0, 0, 0) writes element 8 of 'box' of rank 0" in said
    assert "which rank 0, program (0, 0, 0) wrote through 'inbox'" in said


def test_a_wait_knows_what_it_waited_for_and_no_more():
    """All have signalled by the time the wait looks, in the order in which programs take their turns; but it asks for
    one signal only."""

    def worker(ctx, rank, memory, enough):
        box, gate, out = tensors(ctx, memory)
        kernels.gather_to_rank_0[(1,)](box, gate, out, ENOUGH=enough)

    assert run(lambda *a: worker(*a, 2), ranks=3) == ""
    said = run(lambda *a: worker(*a, 1), ranks=3)
    assert re.search(r"rank 0, program \(0, 0, 0\) reads element 32 of 'box' of rank 0 .* which rank 2, program", said)


def test_a_buffer_that_is_written_again_before_it_has_been_read():
    def worker(ctx, rank, memory, credit):
        box, gate, _ = tensors(ctx, memory)
        free = memory.zeros(1, dtype="i32")
        ctx.distributed.barrier()
        kernels.reuse[(1,)](box, gate, free, 3, CREDIT=credit)

    assert run(lambda *a: worker(*a, True)) == ""
    assert "race on 'inbox': rank" in run(lambda *a: worker(*a, False))


def test_order_that_goes_by_way_of_another_rank():
    def worker(ctx, rank, memory, last):
        box, gate, out = tensors(ctx, memory)
        kernels.round_about[(2,)](box, gate, out, LAST=last)

    assert run(lambda *a: worker(*a, True)) == ""
    assert "rank 0, program (1, 0, 0) reads element 0 of 'box' of rank 0" in run(lambda *a: worker(*a, False))


@pytest.mark.parametrize("by", ["message", "barrier", ""])
def test_messages_and_barriers_order_ranks(by):
    def worker(ctx, rank, memory):
        box, _, out = tensors(ctx, memory)
        kernels.told_by_message[(1,)](box, out, BY=by)

    said = run(worker)
    assert ("race on 'x'" in said) == (by == ""), said


@pytest.mark.parametrize("between", ["barrier", "all_reduce", "broadcast", "broadcast back", ""])
def test_launches_and_what_ranks_say_to_each_other_between_them(between):
    """Rank 0 puts to rank 1, whose next launch, of a kernel that does not communicate, reads that."""

    def worker(ctx, rank, memory):
        box, _, out = tensors(ctx, memory)
        if rank == 0:
            kernels.put_to_the_right[(1,)](box)
        token = ctx.zeros(1)
        if between == "barrier":
            ctx.distributed.barrier()
        elif between == "all_reduce":
            ctx.distributed.all_reduce(token)
        elif between:
            ctx.distributed.broadcast(token, src=int("back" in between))
        if rank == 1:
            for _ in range(2):  # repeated launches are cheaper, and looked at all the same
                kernels.plain_read[(1,)](out, box)

    runs = {run(worker, shuffle=seed) for seed in (None, 1, 2)}
    if between in ("barrier", "all_reduce", "broadcast"):
        assert runs == {""}
    else:
        where = "element 0 of 'box' of rank 1 (bytes 0..3), which rank"
        late = (
            f"1, program (0, 0, 0) reads {where} 0, program (0, 0, 0) of kernel 'put_to_the_right' wrote through 'x' at"
        )
        early = f"0, program (0, 0, 0) writes {where} 1, program (0, 0, 0) of kernel 'plain_read' "
        assert all("race on 'x'" in said and (late in said or early + "read" in said) for said in runs), runs


@pytest.mark.parametrize("meet", [True, False])
def test_a_host_that_reads_what_others_put(meet):
    def worker(ctx, rank, memory):
        box, _, _ = tensors(ctx, memory)
        kernels.put_to_the_right[(1,)](box)
        if meet:
            ctx.distributed.barrier()
        box.numpy()

    said = run(worker)
    assert bool(said) != meet and (meet or "the host reads byte 0 of 'box' of rank" in said)


def test_flags_that_are_zeroed_while_others_signal_already():
    def worker(ctx, rank, memory, meet):
        box, gate = memory.empty(64, dtype="f32"), memory.zeros(1, dtype="i32", name="gate")
        if meet:
            ctx.distributed.barrier()
        kernels.mailbox[(1,)](box, gate, ctx.empty(16, dtype="f32"), WAIT=True, HOW="put")

    assert run(lambda *a: worker(*a, True)) == ""
    said = run(lambda *a: worker(*a, False))
    assert re.search(
        r"rank 0, program .* changes element 0 of 'gate' of rank 1 .* rank 1, the host wrote at .*:\d+, and", said
    )


@pytest.mark.parametrize("sem", ["release", "relaxed"])
def test_locks_by_hand_between_ranks(sem):
    def worker(ctx, rank, memory):
        box, gate, out = tensors(ctx, memory)
        kernels.spin_for_a_peer[(1,)](box, gate, out, SEM=sem)

    assert ("race on 'x': rank 1" in run(worker)) == (sem == "relaxed")


def test_loops_of_launches_keep_no_more_than_they_need():
    found = []

    def worker(ctx, rank, memory):
        box, gate, out = tensors(ctx, memory)
        for _ in range(40):
            kernels.mailbox[(1,)](box, gate, out, WAIT=True, HOW="put")
            gate.zero_()
            ctx.distributed.barrier()
        history = ctx.distributed._me().world.team.history
        found.append((len(history._launches), len(history.sites)))

    assert run(worker) == ""
    assert max(found)[0] < 10 and max(found)[1] < 20


@pytest.mark.parametrize("name", ["device_all_reduce", "ag_gemm", "gemm_rs"])
def test_the_benches_are_right(name):
    params = {"elements": "2048", "programs": "4", "block": "64"} if "all_reduce" in name else None
    params = params or {"m": "256", "n": "512", "k": "128"}
    with RuntimeContext.open(MACHINE, check=True):
        checked = bench.run(ROOT / "benches" / f"{name}.py", "ahbm-4sip", params=params)
    assert checked.passed and checked.checks


def test_the_example_of_the_documentation_is_right(tmp_path, capsys, monkeypatch):
    text = (ROOT / "docs" / "device-communication.md").read_text()
    program = tmp_path / "example.py"
    program.write_text(re.search(r"```python\n(.*?)```", text, re.S)[1])
    monkeypatch.setenv("KERNBENCH_CHECK", "1")
    with RuntimeContext.open(MACHINE, check=True):
        runpy.run_path(str(program))
    assert capsys.readouterr().out.splitlines() == ["rank 0: {3.0}", "rank 1: {3.0}"]


def test_clocks():
    """Knowledge of a later launch stands for all of the ones before it; of one launch it is joined program by
    program."""
    a, b = (Line({0: (3, NOTHING), 1: (0, NOTHING)}, 0, p, 2) for p in (0, 1))
    first, second = a.tell(), b.tell()
    both = joined([first, None, second])
    assert both[0][0] == 3 and both[0][1].tolist() == [1, 1] and both[1][0] == 0
    assert joined([both, {0: (4, NOTHING)}])[0] == (4, NOTHING)
    a.learn([second])
    assert a.table(2, 2)[1].tolist() == [[2, 1], [0, 0]]
