"""What a wait waits for, against a walk through all that was ever signalled."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kernbench.kernels import signals
from kernbench.kernels.comm import COMPARE
from kernbench.kernels.signals import Write, satisfied_by, signalled
from kernbench.memory import AddressSpace


def new_word():
    return AddressSpace(1 << 20, "memory").alloc(8)


def walked(start, writes, holds):
    """The same from the definition: back to since when it has held, then back through what was added to."""
    at = len(writes) - 1
    while at and holds(writes[at - 1].value):
        at -= 1
    if at == 0 and holds(start):
        return []
    latest, chosen = {}, {}
    for write in writes[at::-1]:
        sip, number, program, _ = write.token
        if latest.setdefault((sip, write.stream), number) == number:
            chosen.setdefault((sip, number, program), write.token)
        if not write.adds:
            break
    return sorted(chosen.values())


signal = st.tuples(st.integers(-2, 3), st.booleans(), st.integers(0, 1), st.booleans(), st.integers(0, 2))


def play(word, start, moves):
    """What ``signal`` draws, as signals: (value, adds, SIP, a new launch begins, program)."""
    writes, launches, value = [], {0: 0, 1: 0}, start
    for row, (x, adds, sip, begins, program) in enumerate(moves):
        launches[sip] += begins
        before, value = value, value + x if adds else x
        writes.append(Write(value, adds, (sip, launches[sip], program, row), 0))
        signalled(word, 0, writes[-1], before)
    return writes


@settings(max_examples=150, deadline=None)
@given(st.integers(-1, 1), st.lists(signal, min_size=1, max_size=30))
def test_the_short_ways_lead_where_the_long_one_does(start, moves):
    word = new_word()
    writes = play(word, start, moves)
    found = writes[-1].value
    for name, compare in COMPARE.items():
        for bound in range(found - 3, found + 4):
            if compare(found, bound):
                want = walked(start, writes, lambda x: compare(x, bound))  # noqa: B023
                assert [write.token for write in satisfied_by(word, 0, found, name, bound)] == want


@settings(max_examples=12, deadline=None)
@given(st.lists(signal, min_size=150, max_size=300))
def test_what_is_forgotten_is_taken_to_be_later_never_earlier(moves):
    """Every signal that the whole history names is behind one of those that the shortened one names: of its own
    program's or of a later launch of its stream."""
    word, kept = new_word(), signals.SHORTEST
    writes = play(word, 0, moves)
    found = writes[-1].value
    for name, compare in COMPARE.items():
        for bound in range(found - 2, found + 3):
            if compare(found, bound):
                got = [write.token for write in satisfied_by(word, 0, found, name, bound)]
                for sip, launch, program, row in walked(0, writes, lambda x: compare(x, bound)):  # noqa: B023
                    after = [t for t in got if t[0] == sip and t[3] >= row and (t[1] > launch or t[2] == program)]
                    assert after, (name, bound, kept)


def test_a_counter_of_many_launches_stays_small_and_quick():
    word, total = new_word(), 0
    for launch in range(400):
        for program in range(16):
            total += 1
            signalled(word, 0, Write(total, True, (0, launch, program, 0), 0), total - 1)
            got = satisfied_by(word, 0, total, "ge", total - program)
            assert [write.token[1:3] for write in got] == [(launch, 0)]
    history = signals._words[word][0]
    assert len(history.writes) <= 2 * signals.SHORTEST + 2 * 16
    assert sum(map(len, history.dropped.values())) == 16


def test_a_hundred_thousand_signals_to_one_flag():
    """Waits for each of them afterwards look at a few places each, not at all."""
    word, n = new_word(), 100_000
    for i in range(n):
        signalled(word, 0, Write(i + 1, True, (0, 0, i % 4, i), 0), i)
    looked = 0

    class Places(list):
        def __getitem__(self, at):
            nonlocal looked
            looked += 1
            return super().__getitem__(at)

    history = signals._words[word][0]
    history.writes = Places(history.writes)
    for i in range(0, n, 100):
        assert [write.token[3] for write in satisfied_by(word, 0, n, "gt", i)] == sorted(
            range(max(0, i - 3), i + 1), key=lambda j: j % 4
        )
    assert looked < 40 * n // 100
