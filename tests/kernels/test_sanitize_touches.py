"""How races are looked for: by intervals, by elements, and by rows give the same verdict."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.magnitude import beyond, makes
from kernbench.kernels.ops_memory import Access
from kernbench.kernels.sanitize import touches
from kernbench.kernels.sanitize.races import Races
from kernbench.kernels.sanitize.touches import Touch, Touches, apart
from kernbench.kernels.ttir import Op
from kernbench.kernels.window import Window
from kernbench.memory import AddressSpace

NAMES = {"load": "tt.load", "store": "tt.store", "atomic": "tt.atomic_rmw"}
SPACE = AddressSpace(1 << 20, "memory")
MEMORY = SPACE.alloc(4096, "memory")
COUNTER = SPACE.alloc(8, "counter")
ACCESSES = {
    kind: Access(
        Op(name, (), (), {"words": ("add", "acq_rel")}, loc=(f"{kind}.py", 1)),
        (1,), False, "f32", 4, np.dtype(np.float32), np.dtype(np.float32), "x", 0, -1,
    )
    for kind, name in NAMES.items()
}  # fmt: skip


def rows(starts, counts, size=8):
    """A row of consecutive elements for each program."""
    hi = np.array(counts)[:, None]
    return Window((size,), 4, MEMORY.base + 4 * np.array(starts), (4,), np.zeros_like(hi), hi)


def random_window(rng):
    """A window of two axes, of any kind: strides, offsets, a box and a mask that is no box."""
    programs, dims = int(rng.integers(1, 5)), (int(rng.integers(1, 4)), int(rng.integers(1, 5)))
    terms = tuple(
        int(rng.choice((0, 4, 16, 32)))
        if rng.random() < 0.6
        else 4 * rng.integers(0, 10, (rng.choice((1, programs)), n))
        for n in dims
    )
    lo, hi = rng.integers(0, 2, (programs, 2)), np.minimum(rng.integers(1, 6, (programs, 2)), dims)
    rest = rng.random((programs, *dims)) < 0.7 if rng.random() < 0.3 else None
    return Window(dims, 4, MEMORY.base + 4 * rng.integers(0, 60, programs), terms, lo, hi, rest)


def elements(t):
    """(element, program) pairs, one by one."""
    address, keep = t.w.lanes()
    owners = t.programs if t.w.programs > 1 else None
    for p, *at in np.argwhere(keep):
        for program in t.programs if owners is None else [owners[p]]:
            yield int(address[(p, *at)] - MEMORY.base) // 4, int(program)


def by_elements(accesses):
    """Whether no two programs meet, the slow way."""
    seen = {}
    for t in accesses:
        kind = "atomic" if t.is_atomic else "store" if t.stores else "load"
        for element, program in elements(t):
            seen.setdefault(element, set()).add((program, kind))
    return all(
        p == q or {k, m} <= {"load"} or {k, m} <= {"atomic"}
        for found in seen.values()
        for p, k in found
        for q, m in found
    )


def touch(kind, w, programs):
    return Touch(ACCESSES[kind], w, MEMORY, np.asarray(programs), kind != "store", kind != "load")


@pytest.mark.parametrize("kinds", [("load", "store"), ("load", "store", "atomic")])
def test_intervals_never_acquit_the_guilty(kinds):
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(400):
        accesses = []
        for _ in range(rng.integers(1, 4)):
            w, first = random_window(rng), int(rng.integers(0, 3))
            programs = np.arange(first, first + w.programs) if w.programs > 1 else np.arange(first, 3)
            accesses.append(touch(str(rng.choice(kinds)), w, programs))
        innocent = by_elements(accesses)
        assert innocent or not apart(accesses)
        launch, found = Touches("kernel", (8, 1, 1), ordered=False), None
        for t in accesses:
            launch.touch(t.a, t.w, t.allocation, t.programs, t.loads, t.stores)
        try:
            launch.end()
        except KernelFault as fault:
            found = str(fault)
        verdicts.add((innocent, found is None))
        assert found is None if innocent else found is not None or "atomic" in kinds
        assert found is None or "race on 'x'" in found
    assert verdicts >= {(True, True), (False, False)}


def test_intervals_acquit_tiles_of_a_matrix():
    """8 programs, each with a tile of 4 by 8 elements that others' rows lie between."""
    tile = np.arange(8)
    w = Window((4, 8), 4, MEMORY.base + 4 * (tile // 4 * 4 * 32 + tile % 4 * 8), (4 * 32, 4), *bounds(8, (4, 8)))
    assert apart([touch("load", w, tile), touch("store", w, tile)])
    moved = Window((4, 8), 4, w.base + 4, (4 * 32, 4), *bounds(8, (4, 8)))
    assert apart([touch("load", w, tile), touch("load", moved, tile)])
    assert not apart([touch("load", w, tile), touch("store", moved, tile)])
    assert apart([touch("atomic", w, tile), touch("atomic", moved, tile)])
    assert not apart([touch("atomic", w, tile), touch("load", moved, tile)])


def bounds(programs, dims):
    return np.zeros((programs, len(dims)), np.int64), np.tile(np.array(dims), (programs, 1))


def test_too_much_to_keep_is_looked_at_at_once(monkeypatch):
    monkeypatch.setattr(touches, "MOST_BYTES", 100)
    launch = Touches("kernel", (8, 1, 1), ordered=False)
    for first in (0, 16, 32):
        launch.touch(ACCESSES["store"], rows([first, first + 8], [8, 8]), MEMORY, np.arange(2), False, True)
    with pytest.raises(KernelFault, match=r"program \(2, 0, 0\) writes element 39 .* program \(0, 0, 0\) wrote"):
        launch.touch(ACCESSES["store"], rows([39], [1]), MEMORY, np.array([2]), False, True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(NAMES)), st.integers(0, 6), st.integers(0, 4))))
def test_rows_one_program_after_the_other(drawn):
    """With atomics that order programs, a row at a time finds what looking at each element finds; and so does a launch
    whose programs ran together."""

    def verdict(look):
        try:
            for program in range(4):
                for by, kind, start, count in drawn:
                    if by == program:
                        look(program, kind, start, 1 if kind == "atomic" else count)
                races.ended(program)
        except KernelFault as fault:
            return str(fault)
        return None

    def element_by_element(program, kind, start, count):
        w = rows([start], [count])
        w.rest = np.ones((1, 8), np.bool_)  # takes the general way
        races.touch(ACCESSES[kind], w, MEMORY, np.array([program]), kind != "store", kind != "load")

    def by_row(program, kind, start, count):
        w = rows([start], [count])
        if start == 3:  # a row that is given element by element
            w.terms = (4 * np.arange(8)[None],)
        races.touch(ACCESSES[kind], w, MEMORY, np.array([program]), kind != "store", kind != "load")

    races = Races("kernel", (4, 1, 1), ordered=True)
    wanted = verdict(element_by_element)
    races = Races("kernel", (4, 1, 1), ordered=True)
    assert verdict(by_row) == wanted
    launch = Touches("kernel", (4, 1, 1), ordered=True)
    for by, kind, start, count in drawn:
        w = rows([start], [1 if kind == "atomic" else count])
        launch.touch(ACCESSES[kind], w, MEMORY, np.array([by]), kind != "store", kind != "load")
    if wanted is None:
        launch.end()
    else:
        with pytest.raises(KernelFault) as found:
            launch.end()
        assert str(found.value) == wanted


@pytest.mark.parametrize("writer", range(3))
def test_whoever_writes_what_several_read_at_once(writer):
    """Of three programs that read the same four elements, one writes the third."""
    races = Races("kernel", (3, 1, 1), ordered=False)
    races.touch(ACCESSES["load"], rows([0, 0, 0], [4, 4, 4]), MEMORY, np.arange(3), True, False)
    with pytest.raises(KernelFault, match=rf"program \({writer}, 0, 0\) writes element 2 of .* read at"):
        races.touch(ACCESSES["store"], rows([2], [1]), MEMORY, np.array([writer]), False, True)


@pytest.mark.parametrize("fault", [None, "no atomic", "too early", "another element", "a second writer"])
def test_a_last_program_needs_no_clocks(monkeypatch, fault):
    """100 programs write a row each and count up; the last reads all. Where one does otherwise, that is found."""
    everybody, counter = np.arange(100), np.full(100, (COUNTER.base - MEMORY.base) // 4)
    starts, counts, atomics = 8 * everybody, np.full(100, 8), np.ones(100, np.int64)
    if fault == "no atomic":
        atomics[40] = 0
    if fault == "another element":
        counter[40] += 1
    if fault == "a second writer":
        counts[40] = 9
    seen = [
        ("store", rows(starts, counts, 9), everybody),
        ("atomic", rows(counter, atomics, 1), everybody),
        ("load", rows([0], [800], 800), everybody[-1:]),
    ]
    if fault == "too early":
        seen.append(("store", rows([320], [1]), everybody[40:41]))

    def ended():
        launch = Touches("kernel", (100, 1, 1), ordered=True)
        for kind, w, programs in seen:
            memory = COUNTER if kind == "atomic" else MEMORY
            launch.touch(ACCESSES[kind], w, memory, programs, kind != "store", kind != "load")
        launch.end()

    if fault:
        with pytest.raises(KernelFault, match=r"race on 'x': program \((99|41), 0, 0\) .* program \(40, 0, 0\) wrote"):
            ended()
    else:
        monkeypatch.setattr(touches, "Races", None)
        ended()


VALUES = st.sampled_from([0.0, 1.0, -2.5, 3e38, np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_an_operation_makes(native, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))

    def array(dims):
        n = int(np.prod(dims))
        made = np.array(data.draw(st.lists(VALUES, min_size=n, max_size=n)), np.float32).reshape(dims)
        return made[::-1, ...] if dims and data.draw(st.booleans()) else made

    x = array(shape)
    operands = [
        array([data.draw(st.sampled_from((1, n))) for n in shape] if data.draw(st.booleans()) else ())
        for _ in range(data.draw(st.integers(0, 3)))
    ]
    nan = np.isnan(x) & ~sum([np.isnan(o) for o in operands], np.zeros((), np.bool_))
    inf = np.isinf(x) & ~sum([~np.isfinite(o) for o in operands], np.zeros((), np.bool_))
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr("kernbench.kernels.magnitude._core", lambda: None)
        assert makes(x, operands) == (nan.any(), inf.any())
        assert beyond(x) == (not np.isfinite(x).all())
        assert beyond(x.astype(np.float64), 2.0) == (not (np.abs(x) <= 2).all())
        assert beyond(x[0, ..., None].T, 1e38) == (not (np.abs(x[0]) <= 1e38).all())
