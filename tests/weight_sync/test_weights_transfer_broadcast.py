"""The broadcast engine between ranks of the simulator: right bits, buffers, errors, and layers that use the result."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weights_cases import KERNBENCH, SHAPES, weight

import kernbench.topology
from kernbench import tp
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.transfer import (
    ServedWeights,
    WeightTransferEngineFactory,
    WeightUpdater,
    describe_weights,
)
from kernbench.weight_sync.transfer.packed import cut, length

EVERYTHING = [(f"{n}.{i}", weight(n, s, seed=i)) for n in KERNBENCH for i, s in enumerate(SHAPES)]
BIG = ("big", weight("bfloat16", (50, 60)))
Engine = WeightTransferEngineFactory.engine_class("broadcast")


@cache
def machine(sips):
    return kernbench.topology.load("tiny", sips=sips)


def spawn(world, trainer, worker, **options):
    """What each worker returned; ``trainer(ctx)`` is rank 0, ``worker(rank, ctx)`` the others."""
    results = {}
    with RuntimeContext.open(machine(world), **options) as ctx:

        def body(rank):
            ctx.ahbm.set_device(rank)
            ctx.distributed.init_process_group(backend="ahbm")
            if rank == 0:
                trainer(ctx)
            else:
                results[rank] = worker(rank, ctx)

        ctx.multiprocessing.spawn(body, nprocs=world)
        results["time"] = ctx.timeline().makespan_ps if options else None
    return results


def engine():
    made = WeightTransferEngineFactory.create_engine("broadcast", None, None)
    made.init_transfer_engine(made.parse_init_info({}))
    return made


def digests(weights):
    return [(name, digest(tensor)) for name, tensor in weights]


@pytest.mark.parametrize(
    "packed, world, size, buffers",
    [
        (False, 2, 1, 2),
        (False, 3, 1, 2),
        (True, 2, 1000, 2),
        (True, 4, 333, 3),
        (True, 3, 1 << 20, 2),
        (True, 2, 77, 4),
    ],
)
def test_every_type_and_shape_arrives_bit_for_bit(packed, world, size, buffers):
    weights = [*EVERYTHING[::3], BIG, *EVERYTHING[1::3]] if packed else [*EVERYTHING[::5], BIG]
    info = describe_weights(weights) | {"packed": packed, "buffer_size_bytes": size, "num_buffers": buffers}

    def worker(rank, ctx):
        kept, calls = [], []
        one = engine()
        one.receive_weights(one.parse_update_info(info), lambda pairs: (kept.extend(pairs), calls.append(len(pairs))))
        assert size > 1000 or len(calls) > 3, "handed over as it arrives"
        return digests(kept)

    got = spawn(world, lambda ctx: Engine.trainer_send_weights(iter(weights), {"update_info": info}), worker)
    assert all(got[rank] == digests(weights) for rank in range(1, world))


@given(st.lists(st.integers(0, 50)), st.integers(1, 40))
def test_chunks_hold_every_byte_once_and_in_order(sizes, limit):
    chunks = list(cut(sizes, limit))
    assert [length(c) for c in chunks[:-1]] == [limit] * (len(chunks) - 1) and all(length(c) <= limit for c in chunks)
    covered = dict.fromkeys(range(len(sizes)), 0)
    for chunk in chunks:
        at = 0
        for segment in chunk:
            assert (segment.offset, segment.start) == (at, covered[segment.tensor])
            at += segment.nbytes
            covered[segment.tensor] += segment.nbytes
            assert segment.last == (covered[segment.tensor] == sizes[segment.tensor])
    assert list(covered.values()) == sizes
    assert sum(s.last for c in chunks for s in c) == len(sizes)


def test_a_chunk_is_cut_before_the_next_size_is_known():
    asked = []

    def sizes():
        for size in (4, 6, 9, 100):
            asked.append(size)
            yield size

    assert len(next(cut(sizes(), 10))) == 2 and asked == [4, 6]


@pytest.mark.parametrize("packed", [False, True])
def test_an_empty_update_needs_no_broadcast(packed):
    info = describe_weights([]) | {"packed": packed}

    def worker(rank, ctx):
        one = engine()
        one.receive_weights(one.parse_update_info(info), pytest.fail)

    spawn(2, lambda ctx: Engine.trainer_send_weights(iter([]), {"packed": packed}), worker)


def test_receiving_before_init_is_refused():
    one = Engine(None, None)
    with pytest.raises(RuntimeError, match="not initialized"):
        one.receive_weights(one.parse_update_info(describe_weights([])), print)
    one.shutdown()


def test_shutdown_ends_the_initialisation():
    def worker(rank, ctx):
        one = engine()
        one.shutdown()
        with pytest.raises(RuntimeError, match="not initialized"):
            one.receive_weights(one.parse_update_info(describe_weights([])), print)

    spawn(2, lambda ctx: None, worker)


def test_arguments_are_checked():
    one = Engine(None, None)
    with pytest.raises(ValueError, match="Invalid update_info for BroadcastWeightTransferEngine: num_buffers is 1"):
        one.parse_update_info(describe_weights([]) | {"num_buffers": 1})
    with pytest.raises(ValueError, match="Invalid trainer_args: buffer_size_bytes is 0"):
        Engine.trainer_send_weights(iter([]), {"buffer_size_bytes": 0})

    def trainer(ctx):
        with pytest.raises(ValueError, match="rank 0 is the trainer"):
            engine()

    spawn(1, trainer, None)


def test_a_sender_that_leaves_its_announcement_is_the_root_cause():
    info = describe_weights([BIG])

    def worker(rank, ctx):
        one = engine()
        one.receive_weights(one.parse_update_info(info), print)

    with pytest.raises(SpawnException) as failed:
        spawn(3, lambda ctx: Engine.trainer_send_weights(iter([("small", BIG[1])]), {"update_info": info}), worker)
    assert list(failed.value.errors) == [0] and "the trainer sends 'small'" in str(failed.value.errors[0])


def test_a_wrong_hash_is_found_by_the_worker():
    info = describe_weights([BIG])
    info["digests"] = ["0" * 32]

    def worker(rank, ctx):
        one = engine()
        with pytest.raises(ValueError, match="'big' arrived damaged"):
            one.receive_weights(one.parse_update_info(info), pytest.fail)

    spawn(2, lambda ctx: Engine.trainer_send_weights(iter([BIG]), {}), worker)


def test_a_group_leaves_the_others_alone():
    def members(ctx):
        return ctx.distributed.new_group([0, 2])

    def worker(rank, ctx):
        group = members(ctx)
        one = Engine(None, None)
        if rank != 2:
            with pytest.raises(ValueError, match=f"rank {rank} is not in the group"):
                one.init_transfer_engine(one.parse_init_info({"group": group}))
            return None
        one.init_transfer_engine(one.parse_init_info({"group": group}))
        kept = []
        one.receive_weights(one.parse_update_info(describe_weights([BIG])), kept.extend)
        return digests(kept)

    got = spawn(4, lambda ctx: Engine.trainer_send_weights(iter([BIG]), {"group": members(ctx)}), worker)
    assert got[2] == digests([BIG])


HIDDEN, OUT = 16, 24
WORKERS = 2


def layer_weights(version):
    rng = np.random.default_rng(version)
    return {"up": rng.standard_normal((HIDDEN, OUT)).astype(np.float16)}


@pytest.mark.parametrize("packed", [False, True])
def test_the_next_forward_of_sharded_layers_uses_the_new_weights(packed):
    x = np.random.default_rng(9).standard_normal((4, HIDDEN)).astype(np.float16)
    infos = [describe_weights(layer_weights(v).items()) | {"packed": packed, "buffer_size_bytes": 100} for v in (1, 2)]

    def trainer(ctx):
        tp.initialize_model_parallel(1)
        for version, info in enumerate(infos, 1):
            Engine.trainer_send_weights(iter(layer_weights(version).items()), {"update_info": info})

    def worker(rank, ctx):
        tp.initialize_model_parallel(1)
        layer = tp.ColumnParallelLinear(in_features=HIDDEN, out_features=OUT // WORKERS, torch=ctx)
        part = OUT // WORKERS
        mine = slice((rank - 1) * part, rank * part)

        def place(name, tensor):
            yield name, (), tensor.narrow(1, mine.start, part)

        served = ServedWeights({"up": layer.weight}, place=place)
        updater = WeightUpdater(WeightTransferEngineFactory.create_engine("broadcast", None, None), served)
        updater.init_weight_transfer_engine({})
        xd = ctx.empty(x.shape, dtype="f16")
        xd.copy_(x)
        for version, info in enumerate(infos, 1):
            before = layer.forward(xd).numpy()
            updater.start_weight_update(version)
            updater.update_weights(info)
            assert (layer.forward(xd).numpy() == before).all(), "visible before finish"
            updater.finish_weight_update()
            expected = x.astype(np.float32) @ layer_weights(version)["up"][:, mine].astype(np.float32)
            np.testing.assert_allclose(layer.forward(xd).numpy(), expected, rtol=1e-2, atol=1e-2)
        return served.version

    got = spawn(1 + WORKERS, trainer, worker)
    assert [got[1], got[2]] == [2, 2]


def test_a_timing_only_run_takes_the_same_time():
    info = describe_weights([BIG], digests=False) | {"packed": True, "buffer_size_bytes": 700}

    def worker(rank, ctx):
        served = ServedWeights({"big": ctx.zeros((50, 60), dtype="bf16")}, check=False)
        updater = WeightUpdater(Engine(None, None), served)
        updater.init_weight_transfer_engine({})
        updater.start_weight_update()
        updater.update_weights(info)
        return updater.finish_weight_update()

    def trainer(ctx):
        weights = {"big": ctx.zeros((50, 60), dtype="bf16")}
        Engine.trainer_send_weights(iter(weights.items()), {"update_info": info})

    times = [spawn(3, trainer, worker, enable_data=data)["time"] for data in (True, False)]
    assert times[0] == times[1] > 0
