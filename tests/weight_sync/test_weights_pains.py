"""What users of weight transfers are bitten by, one test a pain: each fails if its detection is taken away."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from weights_cases import weight
from weights_models import config, published

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.errors import DeadlockError
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.checkpoint_sync import checkpoint_sync, export_handles, vllm_to_hf_tensors
from kernbench.weight_sync.reshard import gather, shard
from kernbench.weight_sync.safetensors import write_safetensors
from kernbench.weight_sync.transfer import (
    ServedWeights,
    WeightTransferEngineFactory,
    WeightUpdater,
    changed_weights,
    describe_weights,
)
from kernbench.weight_sync.transfer.http_client import HttpTransferError
from kernbench.weight_sync.transfer.http_server import WeightServer
from kernbench.weight_sync.transfer.ipc import new_address


def new(seed, names="abc", kind="bfloat16", shape=(8, 4)):
    return {name: weight(kind, shape, seed=10 * seed + i) for i, name in enumerate(names)}


def digests(weights):
    return {name: digest(w) for name, w in weights.items()}


def served(weights, **options):
    return ServedWeights({name: np.array(w) for name, w in weights.items()}, **options)


def update(one, weights, **options):
    one.start(**options)
    one.load(weights.items())
    return one.finish(digests(weights))


def engine(name):
    return WeightTransferEngineFactory.engine_class(name)


# 1: stale caches of keys and values.


def test_stale_kv_cache_is_dropped_with_every_version_or_the_version_does_not_come():
    cache = {"prefix": 0}
    one = served(new(0), on_finish=lambda version: cache.clear())
    update(one, new(1))
    assert cache == {} and one.version == 1

    def stuck(version):
        raise OSError("the cache is in use")

    one.on_finish = stuck
    with pytest.raises(OSError, match="in use"):
        update(one, new(2))
    assert one.version == 1 and one.digests() == digests(new(1)), "new weights over an old cache"


def test_outputs_can_say_of_which_version_they_are():
    """Within one block of reading, version and weights belong together, whatever updates come meanwhile."""
    one = ServedWeights({"a": np.zeros(20_000), "b": np.zeros(20_000)})
    wrong, stop = [], threading.Event()

    def serve():
        while not stop.is_set():
            with one.reading() as weights:
                version = one.version
                values = {float(w[i]) for w in weights.values() for i in (0, -1)} | {float(one.version)}
                wrong.extend([values] if values != {float(version)} else [])

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(serve) for _ in range(2)]
        for version in range(1, 20):
            update(one, {name: np.full(20_000, float(version)) for name in "ab"})
        stop.set()
        for each in running:
            each.result()
    assert not wrong


# 2: stale weights.


def test_a_reload_from_an_old_copy_is_found():
    """As after sleep: somebody writes old values over the parameters, and the version still says new."""
    one = served(new(0))
    asleep = {name: w.copy() for name, w in one.params.items()}
    update(one, new(1))
    good = one.digests()
    assert one.differing(good) == []
    one.params["b"][:] = asleep["b"]
    assert one.version == 1 and one.differing(good) == ["b"]


def test_what_holds_the_addresses_of_weights_sees_new_values():
    one = served(new(0))
    captured = one.params["a"].view(np.uint16)  # as a captured graph does
    update(one, new(1))
    assert captured.tobytes() == new(1)["a"].tobytes()


# 3: torn fleets.


@pytest.fixture
def fleet():
    """Two replicas: (weights, server) of each."""
    members = [(one := served(new(0)), WeightServer(one)) for _ in range(2)]
    yield members
    for _, server in members:
        server.close()


def test_a_replica_that_fails_keeps_the_whole_fleet_on_the_old_version(fleet):
    fleet[1][0].params.pop("c")
    urls = [server.url for _, server in fleet]
    with pytest.raises(HttpTransferError, match="'c'") as failed:
        engine("http").trainer_send_weights(iter(new(1).items()), {"urls": urls, "timeout": 20})
    assert urls[1] in str(failed.value)
    assert [one.version for one, _ in fleet] == [0, 0] and fleet[0][0].digests() == digests(new(0))


def test_a_fleet_that_is_torn_by_a_failing_finish_is_named(fleet):
    """Past the first finish nothing takes back: the error has to say who serves what."""

    def fail(version):
        raise OSError("cache is stuck")

    fleet[1][0].on_finish = fail
    urls = [server.url for _, server in fleet]
    with pytest.raises(HttpTransferError, match=f"version 1 is served by {urls[0]} already, and not by the others"):
        engine("http").trainer_send_weights(iter(new(1).items()), {"urls": urls, "timeout": 20})
    assert [one.version for one, _ in fleet] == [1, 0]
    fleet[1][0].on_finish = None
    assert engine("http").trainer_send_weights(iter(new(2).items()), {"urls": urls, "timeout": 20}) == 2
    assert {one.version for one, _ in fleet} == {2}, "the next update mends the fleet"


def test_a_version_is_not_published_after_a_failed_chunk():
    one = served(new(0))
    one.start(1)
    one.load([("a", new(1)["a"])])
    with pytest.raises(ValueError, match="Shape mismatch"):
        one.load([("b", new(1)["b"][:3])])
    with pytest.raises(RuntimeError, match="No weight update is active"):
        one.load([("c", new(1)["c"])])
    with pytest.raises(RuntimeError, match="No weight update is active"):
        one.finish()
    assert one.version == 0 and one.digests() == digests(new(0))


def test_a_version_counter_that_falls_back_is_refused():
    one = served(new(0), version=57)
    with pytest.raises(ValueError, match="version 1 does not rise above 57"):
        one.start(1)


def test_the_first_reader_of_a_snapshot_leaves_it_for_the_others(tmp_path):
    sent = engine("disk").trainer_send_weights(iter(new(1).items()), {"path": str(tmp_path), "version": 1})
    for _ in range(3):
        updater = WeightUpdater(engine("disk")(), served(new(0)))
        updater.init_weight_transfer_engine({"framework": "numpy"})
        updater.start_weight_update()
        updater.update_weights(sent)
        assert updater.finish_weight_update(digests(new(1))) == 1


# 4: hangs.


def spawn(world, body):
    with RuntimeContext.open(kernbench.topology.load("tiny", sips=world)) as ctx:

        def rank_body(rank):
            ctx.ahbm.set_device(rank)
            ctx.distributed.init_process_group(backend="ahbm")
            body(rank, ctx)

        ctx.multiprocessing.spawn(rank_body, nprocs=world)


def receiver(info):
    one = engine("broadcast")()
    one.init_transfer_engine(one.parse_init_info({}))
    one.receive_weights(one.parse_update_info(info), lambda pairs: None)


def test_a_trainer_that_iterates_in_another_order_is_stopped_and_nobody_hangs():
    info = describe_weights(new(1).items())
    other = reversed(list(new(1).items()))

    def body(rank, ctx):
        if rank:
            receiver(info)
        else:
            engine("broadcast").trainer_send_weights(other, {"update_info": info})

    with pytest.raises(SpawnException, match=r"sends 'c' .* announced 'a'") as failed:
        spawn(2, body)
    assert list(failed.value.errors) == [0]


def test_a_trainer_that_stops_early_is_a_deadlock_with_names_not_a_hang():
    info = describe_weights(new(1).items())

    def body(rank, ctx):
        if rank:
            receiver(info)
        else:
            engine("broadcast").trainer_send_weights(iter([("a", new(1)["a"])]), {})

    with pytest.raises(SpawnException) as failed:
        spawn(2, body)
    assert isinstance(failed.value.errors[1], DeadlockError)


# 5: buckets.


def ipc(weights, params, **options):
    one, address = ServedWeights(params), new_address()
    updater = WeightUpdater(engine("ipc")(), one)
    updater.init_weight_transfer_engine({"framework": "numpy"})
    updater.start_weight_update()
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(updater.update_weights, {"address": address, "timeout": 20})
        engine("ipc").trainer_send_weights(iter(weights), {"address": address, "timeout": 20} | options)
        receiving.result()
    updater.finish_weight_update(digests(dict(weights)))
    return one


def test_a_tensor_larger_than_the_bucket_arrives():
    big = {"small": weight("bfloat16", (3,)), "embedding": weight("bfloat16", (500, 40)), "last": weight("int8", (5,))}
    one = ipc(big.items(), {n: np.zeros_like(w) for n, w in big.items()}, buffer_size_bytes=1000, num_buffers=2)
    assert one.digests() == digests(big)


# 6: buffers that are used again.


def test_a_buffer_that_is_used_again_does_not_change_what_was_loaded():
    """load_weights is given memory that the sender overwrites at once; what is staged must not follow."""
    one, buffer = served(new(0)), np.zeros_like(new(0)["a"])
    one.start()
    for name, w in new(1).items():
        buffer[:] = w
        one.load([(name, buffer)])
    buffer[:] = 0
    one.finish(digests(new(1)))
    assert one.digests() == digests(new(1))


# 7: quantised weights.


def test_a_quantised_parameter_takes_no_unquantised_bytes():
    params = {"w": weight("float8_e4m3fn", (4, 4)), "w_scale": weight("float32", (1,))}
    one = served(params)
    for bad in ({"w": weight("bfloat16", (4, 4))}, {"w": weight("uint8", (4, 4))}):
        one.start()
        with pytest.raises(TypeError, match="Type mismatch for w"):
            one.load(bad.items())
    one.start()
    one.load({"w": weight("float8_e4m3fn", (4, 4), seed=5)}.items())
    with pytest.raises(ValueError, match="lacks 1 of 2 parameters, the first is 'w_scale'"):
        one.finish()
    assert one.digests() == digests(params), "new values with an old scale"


# 8: names and fusion.


def test_names_are_matched_whole_not_by_parts():
    """``up_proj`` is in ``gate_up_proj``, and ``x.gate_up_proj`` ends like ``my_gate_up_proj``."""
    small = config("qwen3")
    rows = small["intermediate_size"]
    gate_up = weight("bfloat16", (2 * rows, small["hidden_size"]))
    layer = "model.layers.0.mlp."
    named = vllm_to_hf_tensors(
        {layer + "gate_up_proj.weight": gate_up, layer + "my_gate_up_proj.weight": np.zeros((4, 2))}, small
    )
    assert set(named) == {layer + n for n in ("gate_proj.weight", "up_proj.weight", "my_gate_up_proj.weight")}
    assert digest(named[layer + "up_proj.weight"]) == digest(gate_up[rows:])


def test_a_fused_parameter_is_not_loaded_by_one_of_its_parts():
    def place(name, part):
        yield "qkv", (slice("qkv".index(name) * 4, "qkv".index(name) * 4 + 4),), part

    one = ServedWeights({"qkv": np.zeros((12, 2), np.float32)}, place=place)
    one.start()
    one.load([("q", np.ones((4, 2), np.float32)), ("v", np.ones((4, 2), np.float32))])
    with pytest.raises(ValueError, match="'qkv' is incomplete: 16 of 24"):
        one.finish()
    assert not one.params["qkv"].any()


# 9: grouped attention with more ranks than heads of keys and values.


def test_more_ranks_than_kv_heads_and_a_rank_whose_copy_is_stale():
    model = published("qwen3")
    ranks = [shard(model, config("qwen3"), 4, rank) for rank in range(4)]  # which has 2 KV heads
    back = {name: one.tensor() for name, one in gather(ranks, config("qwen3")).items()}
    assert digests(back) == digests(model)
    name = next(n for n in ranks[0] if n.endswith("qkv_proj.weight"))
    ranks[1][name] = np.array(ranks[1][name])
    ranks[1][name].view(np.uint16)[-1] ^= 1
    with pytest.raises(ValueError, match="rank 1 holds other values"):
        for one in gather(ranks, config("qwen3")).values():
            one.tensor()


# 10: experts.


def test_experts_that_never_come_are_no_success():
    model = published("qwen3_moe")
    one = served(model)
    one.start()
    one.load((n, w) for n, w in model.items() if ".experts." not in n)
    lacking = sum(".experts." in n for n in model)
    with pytest.raises(ValueError, match=f"lacks {lacking} of {len(model)} parameters, the first is '.*experts"):
        one.finish()


def test_experts_that_two_ranks_send_have_to_agree():
    one = served(new(0))
    one.start()
    one.load(new(1).items())
    one.load([("a", new(1)["a"])])  # another rank, the same values
    with pytest.raises(ValueError, match="'a' comes twice in one update, with other values"):
        one.load([("a", new(2)["a"])])


# 11: types.


def test_a_router_in_float32_is_not_served_rounded():
    one = served({"router.bias": weight("float32", (8,))})
    one.start()
    with pytest.raises(TypeError, match=r"Type mismatch for router\.bias: bfloat16 was sent, the parameter is float32"):
        one.load([("router.bias", weight("bfloat16", (8,)))])


# 12: tied embeddings.


def test_a_tied_head_follows_its_embedding_and_cannot_contradict_it():
    memory = np.array(new(0)["a"])
    one = ServedWeights({"embed": memory, "head": memory.reshape(8, 4)})
    update(one, {"embed": new(1)["a"]})
    assert one.digests()["head"] == digest(new(1)["a"])
    update(one, {"embed": new(2)["a"], "head": new(2)["a"]})
    one.start()
    one.load([("embed", new(3)["a"]), ("head", new(4)["a"])])
    with pytest.raises(ValueError, match="'head' and 'embed' are the same memory, and came with different values"):
        one.finish()
    assert one.digests()["embed"] == digest(new(2)["a"])
    three = ServedWeights({"embed": memory, "head": memory.reshape(8, 4), "draft": memory.reshape(8, 4)})
    three.start()
    three.load([("draft", new(3)["a"]), ("head", new(4)["a"])])
    with pytest.raises(ValueError, match="'head' and 'draft' are the same memory"):
        three.finish()


def test_a_copy_of_a_tied_head_that_does_not_follow_is_named():
    one = served({"embed": new(0)["a"], "head": new(0)["a"]})
    with pytest.raises(ValueError, match="lacks 1 of 2 parameters, the first is 'head'"):
        update(one, {"embed": new(1)["a"]})
    assert one.version == 0


# 13: processing after loading that must not happen twice.


def test_processing_after_loading_always_starts_from_what_was_sent():
    one = ServedWeights({"D": np.ones(4)})
    one.on_finish = lambda version: np.negative(one.params["D"], out=one.params["D"])
    for _ in range(3):
        update(one, {"D": np.arange(4.0)})
        assert (one.params["D"] == -np.arange(4.0)).all()
    changed = dict(changed_weights([("D", np.arange(4.0))], one.digests()))
    assert list(changed) == ["D"], "a delta against processed weights sends them again"


# 14: asked for.


def test_served_weights_are_compared_bit_for_bit_and_the_first_difference_is_named():
    one = served(new(1))
    trainer = digests(new(1))
    assert one.differing(trainer) == []
    one.params["c"].view(np.uint16)[3, 3] ^= 1
    assert one.differing(trainer) == ["c"] and one.differing(trainer | {"d": "0"}) == ["c", "d"]


def test_what_was_rounded_on_the_way_is_not_what_the_trainer_sent():
    one = served(new(0))
    sent = {name: np.linspace(1, 2, 32, dtype=np.float32).reshape(8, 4) for name in "abc"}
    one.start()
    one.load((name, w.astype(new(0)["a"].dtype)) for name, w in sent.items())
    with pytest.raises(ValueError, match=r"'a' hashes to .* it was damaged"):
        one.finish(digests(sent))
    assert one.version == 0 and one.digests() == digests(new(0))


def test_a_delta_names_its_anchor():
    one = served(new(0), version=4)
    with pytest.raises(ValueError, match="changes version 3, but 4 is being served"):
        one.start(5, base_version=3)
    assert update(one, {"b": new(1)["b"]}, version=5, base_version=4) == 5
    assert one.digests() == digests(new(0) | {"b": new(1)["b"]})


def test_readers_go_on_while_an_update_is_staged():
    one = served(new(0))
    with one.reading() as weights:
        one.start()
        one.load(new(1).items())
        assert digests(weights) == digests(new(0))
        with pytest.raises(TimeoutError):
            one.finish(timeout=0.01)


def test_a_file_that_is_mapped_is_not_overwritten_in_place(tmp_path):
    old = {"w": np.arange(5000, dtype=np.float32)}
    write_safetensors(tmp_path / "model.safetensors", old)
    (tmp_path / "config.json").write_text(json.dumps(config("llama")))
    mapped = np.memmap(tmp_path / "model.safetensors", np.uint8, "r")
    before = bytes(mapped)
    with export_handles({"w": old["w"] + 1}, tmp_path / "handles.json", tmp_path):
        done = checkpoint_sync(tmp_path, tmp_path / "handles.json", publish=True)
    assert done["files_changed"] == 1 and bytes(mapped) == before
    assert (tmp_path / "model.safetensors").read_bytes() != before
