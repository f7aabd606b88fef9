import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernbench.kernels import builtin
from kernbench.runtime_api import footprint
from kernbench.sim_engine.oplog import Access, KernelRecord, Launch, Loop, OpKind, ProgramBlock, Row


def bytes_of(access, p, trips):
    """Every byte that program ``p`` touches, by the definition in the record's documentation."""
    touched = set()
    for t in range(trips):
        n = list(access.counts)
        if access.extent is not None:
            steps = access.extent_step or (0,) * len(n)
            n = [min(max(int(access.extent[p, d]) + t * steps[d], 0), n[d]) for d in range(len(n))]
        at = [int(access.base[p]) + t * access.base_step]
        for count, stride in zip(n, access.strides, strict=True):
            at = [a + i * stride for a in at for i in range(count)]
        touched |= set(at)
    return touched


@st.composite
def accesses(draw):
    programs = draw(st.integers(1, 3))
    counts = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    extent = draw(st.none() | st.just(0))
    if extent is not None:
        extent = np.array([[draw(st.integers(0, 5)) for _ in counts] for _ in range(programs)])
    return Access(
        np.array([draw(st.integers(0, 50)) for _ in range(programs)]),
        counts,
        (draw(st.integers(4, 9)), 1),
        extent,
        base_step=draw(st.integers(0, 12)),
        extent_step=draw(st.sampled_from([None, (0, -2), (-1, 0)])) if extent is not None else None,
    )


@given(accesses(), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_ranges_hold_every_byte(access, trips, active):
    programs = len(access.base)
    trips, active = np.array(trips[:programs]), np.array(active[:programs])
    row = Row(OpKind.WRITE, 0, active=active, loop=0, access=access)
    block = ProgramBlock(np.arange(programs), [row], [Loop(trips)])
    record = KernelRecord("k", (programs, 1, 1), [block], [("k.py", 3)])
    ((writes, start, end, line),) = footprint.of_kernel(record)
    assert writes
    assert line == ("k.py", 3)
    want = [bytes_of(access, p, int(trips[p])) for p in range(programs) if active[p]]
    covered = set().union(*(range(s, e) for s, e in zip(start.tolist(), end.tolist(), strict=True)))
    assert set().union(*want) <= covered
    if access.extent is None and active.all() and (trips == 1).all():
        assert [(min(w), max(w) + 1) for w in want] == list(zip(start.tolist(), end.tolist(), strict=True))


def test_irregular_accesses():
    access = Access(
        np.zeros(3, np.int64), (1,), (1,), None,
        run_ptr=np.array([0, 2, 2, 3]), run_addr=np.array([50, 10, 7]), run_bytes=np.array([4, 2, 1]),
    )  # fmt: skip
    record = KernelRecord(
        "k", (3, 1, 1), [ProgramBlock(np.arange(3), [Row(OpKind.READ, 0, access=access)])], [("k", 1)]
    )
    ((writes, start, end, _),) = footprint.of_kernel(record)
    assert not writes
    assert (start.tolist(), end.tolist()) == ([10, 7], [54, 8])


def test_of_a_real_kernel(ctx):
    a, b, out = ctx.ones((40, 30)), ctx.ones((30, 50)), ctx.empty((40, 50))
    builtin.matmul(out, a, b)
    read, written = [], []
    for command in ctx.engine.log.commands[0][2:]:
        assert isinstance(command, Launch)
        for writes, start, end, _ in footprint.of_kernel(command.kernel):
            (written if writes else read).append((start.min(), end.max()))
    inside = {t._range() for t in (a, b)}
    assert {(s, e) for s, e in read if s < out.data_ptr()} == inside
    assert out._range() in written
