"""Atomics leave, and return, what lane after lane in the order of programs would."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernbench.kernels.atomics import apply_cas, apply_rmw
from kernbench.kernels.executor import prepare
from kernbench.kernels.standalone import StandaloneDevice

ONE_BY_ONE = {
    "fadd": lambda old, x: old + x,
    "add": lambda old, x: old + x,
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "max": max,
    "min": min,
    "exch": lambda old, x: x,
}
FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
KINDS = [("fadd", t) for t in FLOATS] + [
    (kind, t) for kind in (*list(ONE_BY_ONE)[1:], "umax", "umin") for t in (np.int32, np.int64)
]


@given(st.sampled_from(KINDS), st.integers(0, 300), st.integers(1, 400), st.integers(0, 9), st.booleans())
@example(("fadd", np.float16), 300, 1, 0, True)  # more lanes on one element than take turns together
@example(("umin", np.int64), 300, 2, 0, True)
def test_read_modify_write(kind_and_type, lanes, elements, seed, used):
    kind, storage = kind_and_type
    rng = np.random.default_rng(seed)
    at = rng.integers(0, elements, lanes)
    carrier = storage if np.dtype(storage).itemsize > 2 else np.float32
    if kind == "fadd":
        x, memory = rng.standard_normal(lanes).astype(carrier), rng.standard_normal(elements).astype(storage)
    else:
        x, memory = (rng.integers(-(2**31), 2**31, n).astype(storage) for n in (lanes, elements))
    expected, found = memory.copy(), np.empty(lanes, storage)
    seen, given_ = expected, x.astype(storage)
    if kind.startswith("u"):
        unsigned = f"u{np.dtype(storage).itemsize}"
        seen, given_ = expected.view(unsigned), given_.view(unsigned)
    with np.errstate(over="ignore"):
        for lane, place in enumerate(at):
            found[lane] = expected[place]
            seen[place] = ONE_BY_ONE[kind.removeprefix("u")](seen[place], given_[lane])
    returned = apply_rmw(kind, memory, at, x, used, "any")
    assert memory.tobytes() == expected.tobytes()
    if used:
        assert returned.dtype == carrier
        assert returned.astype(storage).tobytes() == found.tobytes()


@given(st.integers(0, 200), st.integers(1, 100), st.sampled_from([np.int32, np.int64, np.float32]), st.integers(0, 9))
@example(200, 1, np.float32, 0)  # more lanes on one element than take turns together
@example(200, 2, np.int64, 0)
@example(2000, 1, np.int32, 1)  # and more that swap than rounds
def test_compare_and_swap(lanes, elements, storage, seed):
    rng = np.random.default_rng(seed)
    at = rng.integers(0, elements, lanes)
    expected, new = (rng.integers(0, 3, lanes).astype(storage) for _ in range(2))
    memory = rng.integers(0, 3, elements).astype(storage)
    left, found = memory.copy(), np.empty(lanes, storage)
    for lane, place in enumerate(at):
        found[lane] = left[place]
        left[place] = new[lane] if left[place] == expected[lane] else left[place]
    assert apply_cas(memory, at, expected, new, "any").tobytes() == found.tobytes()
    assert memory.tobytes() == left.tobytes()


# In kernels.


@pytest.fixture
def kernels():
    pytest.importorskip("triton")
    import atomic_kernels

    return atomic_kernels


@pytest.fixture
def serial(monkeypatch):
    """Whether the programs of each launch took turns."""
    from kernbench.kernels import executor

    found, real = [], executor._run

    def spy(prepared, *args):
        found.append(prepared.serial)
        return real(prepared, *args)

    monkeypatch.setattr(executor, "_run", spy)
    return found


def test_slots_are_claimed_in_order_by_all_programs_together(kernels, serial):
    n, size = 500, 64
    keys = np.random.default_rng(0).integers(0, 1000, n).astype(np.int32)
    with StandaloneDevice() as device:
        table, found = device.empty((size,), "i32"), device.empty((n,), "i32")
        kernels.claim[(-(-n // 32),)](device.array(keys), table, found, n, SIZE=size, B=32)
    left, seen = np.zeros(size, np.int32), []
    for key in [*keys, *[0] * (-n % 32)]:
        seen.append(left[key * 31 % size])
        left[key * 31 % size] = left[key * 31 % size] or key + 1
    assert (table.numpy() == left).all()
    assert (found.numpy() == seen[:n]).all()
    assert serial == [False]


def test_programs_take_turns_where_one_decides_what_the_next_does(kernels, serial):
    with StandaloneDevice() as device:
        flag, winner, seen = (device.empty((8,), "i32") for _ in range(3))
        kernels.claim_once[(8,)](flag, winner, B=8)
        kernels.claim_and_look[(8,)](flag, seen)
    assert serial == [True, True]
    assert winner.numpy()[0] == 0
    assert (seen.numpy() == np.arange(8) + np.arange(1, 9) + (np.arange(8) == 0)).all()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("add", np.float32), ("add", np.int32), ("max", np.int32), ("xchg", np.float32), ("xchg", np.int32)],
)
@pytest.mark.parametrize("size", [1, 40])
def test_many_lanes_on_few_elements(kernels, serial, kind, dtype, size):
    n, block = 1024, 128
    x = (np.random.default_rng(0).standard_normal(n) * 100).astype(dtype)
    with StandaloneDevice() as device:
        out, old = device.empty((size,), dtype), device.empty((n,), dtype)
        kernels.meet[(n // block,)](device.array(x), out, old, SIZE=size, B=block, KIND=kind)
    left, seen = np.zeros(size, dtype), np.empty(n, dtype)
    for i in range(n):
        at = i * 7 % size
        seen[i] = left[at]
        left[at] = {"add": left[at] + x[i], "max": max(left[at], x[i]), "xchg": x[i]}[kind]
    assert out.numpy().tobytes() == left.tobytes()
    assert old.numpy().tobytes() == seen.tobytes()
    assert serial == [False]


def test_a_mixture_of_experts(kernels):
    """Rows and matrices that memory names, against numpy; and nothing of it is taken for a launch that repeats."""
    tokens, number, top, n, k, block = 50, 4, 2, 48, 40, 16
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((tokens, k)).astype(np.float16), rng.standard_normal((number, n, k)).astype(np.float16)
    weights = rng.standard_normal(tokens * top).astype(np.float32)
    with StandaloneDevice() as device:
        left, right, scale = device.array(a), device.array(b), device.array(weights)
        places, owners = device.empty((256,), "i32"), device.empty((16,), "i32")
        count = device.empty((1,), "i32")
        for _ in range(3):
            chosen = rng.integers(0, number, tokens * top)
            order, expert_of = [], []
            for expert in range(number):
                mine = np.flatnonzero(chosen == expert)
                pad = -len(mine) % block
                order += [*mine, *[tokens * top] * pad]
                expert_of += [expert] * ((len(mine) + pad) // block)
            places.copy_(np.array(order + [0] * (256 - len(order)), np.int32))
            owners.copy_(np.array(expert_of + [0] * (16 - len(expert_of)), np.int32))
            count.copy_(np.array([len(order)], np.int32))
            out = device.empty((tokens * top, n), "f32")
            kernels.experts[(16, 2)](
                left, right, out, scale, places, owners, count, tokens * top, n, k, TOP=top, BM=block, BN=32, BK=16
            )
            rows = np.repeat(a, top, 0).astype(np.float64)
            want = np.einsum("tk,tnk->tn", rows, b[chosen].astype(np.float64)) * weights[:, None]
            np.testing.assert_allclose(out.numpy(), want, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_claims_nothing_takes_no_turns(kernels):
    from ttir_kernels import locked, ticket

    from kernbench.kernels.kernel import Kernel

    assert prepare(Kernel("locked", locked()).module, 1).serial
    assert not prepare(Kernel("ticket", ticket()).module, 1).serial
