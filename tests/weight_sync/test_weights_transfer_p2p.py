"""The p2p engine: plans that move the lower bound of bytes, and shards that arrive bit for bit."""

from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_cases import KERNBENCH, weight
from weights_models import config as model_config
from weights_models import published

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.reshard import shard
from kernbench.weight_sync.sharding import Sharding
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory, WeightUpdater, describe_weights
from kernbench.weight_sync.transfer.p2p import P2PUpdateInfo, digests_of_moves, reshard
from kernbench.weight_sync.transfer.plan import Division, lower_bound, moved_bytes, reshard_plan, tensor_parallel

Engine = WeightTransferEngineFactory.engine_class("p2p")


@cache
def machine(sips):
    return kernbench.topology.load("tiny", sips=sips)


def index(box):
    return tuple(slice(*one) for one in box)


@st.composite
def divisions(draw):
    """Any division of a small tensor, before (all of it is somewhere) and after."""
    shape = tuple(draw(st.lists(st.sampled_from([0, 4, 8, 12]), max_size=3)))

    def division(first):
        groups, start = [], first
        for _ in range(draw(st.integers(1, 2))):
            size = draw(st.sampled_from([1, 2, 4]))
            groups.append(list(range(start, start + size)))
            start += size
        axes = [None, *range(len(shape))]
        return tensor_parallel(shape, draw(st.sampled_from(axes)), groups)

    return shape, Division("w", 2, division(0), division(draw(st.integers(0, 3))))


@given(divisions())
@settings(deadline=None)
def test_a_plan_moves_every_element_once_and_no_byte_more_than_needed(case):
    shape, division = case
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    plan = reshard_plan([division])
    made = {rank: np.full([b - a for a, b in box], -1) for rank, box in division.dst.items()}
    for move in plan:
        piece = whole[index(division.src[move.src])][move.src_slice]
        assert move.nbytes == piece.size * 2 and (made[move.dst][move.dst_slice] == -1).all(), "twice"
        made[move.dst][move.dst_slice] = piece
    needed = 0
    for rank, box in division.dst.items():
        assert (made[rank] == whole[index(box)]).all()
        before = set(whole[index(division.src[rank])].flat) if rank in division.src else set()
        needed += 2 * len(set(whole[index(box)].flat) - before)
    assert moved_bytes(plan) == needed == lower_bound([division])


def test_ranks_that_hold_the_same_share_the_work():
    shape = (8, 8)
    divided = [
        Division(f"w{i}", 2, tensor_parallel(shape, None, [[0, 1, 2, 3]]), tensor_parallel(shape, 0, [[4, 5], [6, 7]]))
        for i in range(4)
    ]
    sent = {rank: sum(m.nbytes for m in reshard_plan(divided) if m.src == rank) for rank in range(4)}
    assert set(sent.values()) == {4 * 2 * 128 // 4}


def test_what_no_rank_holds_is_an_error():
    with pytest.raises(ValueError, match=r"no rank holds 'w' \[\(4, 8\)\], which rank 2 needs"):
        reshard_plan([Division("w", 2, {0: ((0, 4),)}, {2: ((0, 8),)})])
    with pytest.raises(ValueError, match=r"axis 0 of the shape \[6\] cannot be divided into 4 parts"):
        tensor_parallel([6], 0, [[0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"rank 1 is in the groups .* twice"):
        tensor_parallel([6], 0, [[0, 1], [1, 2]])


def test_ranks_beyond_the_kv_heads_repeat_them():
    heads, hidden, head = 2, 6, 4
    k = np.arange(heads * head * hidden).reshape(heads * head, hidden)
    held = tensor_parallel(k.shape, 0, [[0, 1, 2, 3], [4, 5, 6, 7]], units=heads)
    rows = {rank: box[0] for rank, box in held.items()}
    assert rows == {r: (0, 4) if r % 4 < 2 else (4, 8) for r in range(8)}
    assert tensor_parallel(k.shape, 0, [[0]], units=heads)[0][0] == (0, 8)
    division = Division("k", 2, tensor_parallel(k.shape, 0, [[8, 9]], heads), held)
    plan = reshard_plan([division])
    assert moved_bytes(plan) == lower_bound([division]) == 8 * 4 * hidden * 2
    for units, ranks in ((3, 4), (4, 3)):
        with pytest.raises(ValueError, match=f"{units} units over the {ranks} ranks"):
            tensor_parallel((12,), 0, [range(ranks)], units)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_configuration_says_who_holds_what(family):
    """Trainers TP 2 to workers TP 4 of a model with 2 KV heads and an odd vocabulary, into fused serving tensors."""
    config, weights = model_config(family), published(family)
    src, dst = [[0, 1]], [[2, 3, 4, 5]]
    about = describe_weights(weights.items(), digests=False) | {"src_groups": src, "dst_groups": dst, "config": config}
    info = P2PUpdateInfo(**about)
    sharding = Sharding(config, {n: w.shape for n, w in weights.items()}, 4)

    def body(rank, ctx):
        if rank < 2:
            held = on_device(ctx, shards(info, weights, "src", rank))
            return Engine.trainer_send_weights(iter(held.items()), {"update_info": about})
        number = rank - 2
        params = {n: ctx.zeros(s, dtype="bf16") for n, s in sharding.params(number).items()}
        served = ServedWeights(params, place=partial(sharding.place_shard, number), check=False)
        updater = WeightUpdater(Engine(None, None), served)
        updater.init_weight_transfer_engine({})
        updater.start_weight_update()
        updater.update_weights(about)
        updater.finish_weight_update()
        want = shard(weights, config, 4, number)
        assert want.keys() - params.keys() == (
            {"model.embed_tokens.weight", "lm_head.weight"} if number == 3 else set()
        )
        for name, param in params.items():
            here = want[name][tuple(slice(0, n) for n in param.shape)]
            assert digest(param) == digest(here), name
        return True

    assert spawn(6, body)[2:] == [True] * 4
    assert moved_bytes(reshard_plan(info.divisions)) == lower_bound(info.divisions)


def test_a_tied_head_and_half_a_description_are_refused():
    config, weights = model_config("qwen2"), published("qwen2")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    about = describe_weights(weights.items(), digests=False) | {"src_groups": [[0]], "dst_groups": [[1]]}
    with pytest.raises(ValueError, match=r"'lm_head\.weight' is the embedding"):
        P2PUpdateInfo(**about, config=config)
    with pytest.raises(ValueError, match="either config or src_axes"):
        P2PUpdateInfo(**about)


def whole_weights(seed=0, kinds=("bfloat16", "float8_e4m3fn", "float32", "int8")):
    made = {f"{k}.{i}": weight(k, s, seed=seed + i) for k in kinds for i, s in enumerate([(8, 16), (16, 8), (8,), ()])}
    return made | {"none": weight("float16", (0, 8)), "replicated": weight("bfloat16", (4, 3), seed=seed)}


def axis_of(name, shape, side):
    if name == "replicated" or not shape:
        return None
    return (1 if side == "src" else 0) if len(shape) == 2 else 0


def update(weights, src_groups, dst_groups, **more):
    about = describe_weights(weights.items(), digests=False)
    shapes = dict(zip(about["names"], about["shapes"], strict=True))
    axes = {f"{side}_axes": [axis_of(n, s, side) for n, s in shapes.items()] for side in ("src", "dst")}
    return about | axes | {"src_groups": src_groups, "dst_groups": dst_groups} | more


def shards(info, weights, side, rank):
    boxes = {d.name: getattr(d, side)[rank] for d in info.divisions}
    return {name: w[index(boxes[name])] if w.ndim else w for name, w in weights.items()}


def spawn(world, body):
    results = [None] * world
    with RuntimeContext.open(machine(world)) as ctx:

        def rank_body(rank):
            ctx.ahbm.set_device(rank)
            ctx.distributed.init_process_group(backend="ahbm")
            results[rank] = body(rank, ctx)

        ctx.multiprocessing.spawn(rank_body, nprocs=world)
    return results


def on_device(ctx, shard):
    """Shard tensors of a trainer, bit for bit."""
    made = {}
    for name, array in shard.items():
        made[name] = ctx.empty(array.shape, dtype=array.dtype.name, name=name)
        made[name].copy_(array)
    return made


@pytest.mark.parametrize("src, dst", [([[0]], [[1]]), ([[0, 1]], [[2, 3, 4, 5]]), ([[0, 1, 2, 3]], [[4, 5], [6, 7]])])
@pytest.mark.parametrize("checked", [False, True])
def test_trainers_shards_become_workers_shards(src, dst, checked):
    weights = whole_weights()
    about = update(weights, src, dst, is_checkpoint_format=False)
    info = P2PUpdateInfo(**about)
    trainers, world = sum(map(len, src)), sum(map(len, src + dst))
    if checked:
        about["move_digests"] = {}
        for rank in range(trainers):
            about["move_digests"] |= digests_of_moves(info, shards(info, weights, "src", rank), rank)

    def body(rank, ctx):
        if rank < trainers:
            held = on_device(ctx, shards(info, weights, "src", rank))
            return Engine.trainer_send_weights(iter(held.items()), {"update_info": about})
        mine = shards(info, weights, "dst", rank)
        params = {n: ctx.zeros(a.shape, dtype=a.dtype.name) for n, a in mine.items()}
        updater = WeightUpdater(WeightTransferEngineFactory.create_engine("p2p", None, None), ServedWeights(params))
        updater.init_weight_transfer_engine({})
        updater.start_weight_update(3)
        updater.update_weights(about)
        updater.finish_weight_update()
        return updater.served.digests() == {n: digest(a) for n, a in mine.items()}

    assert spawn(world, body) == [None] * trainers + [True] * (world - trainers)


@pytest.mark.parametrize("kind", KERNBENCH)
def test_every_type_arrives_bit_for_bit(kind):
    weights = {"w": weight(kind, (8, 8), seed=5)}
    about = update(weights, [[0, 1]], [[2, 3]])
    info = P2PUpdateInfo(**about)

    def body(rank, ctx):
        if rank < 2:
            held = on_device(ctx, shards(info, weights, "src", rank))
            return Engine.trainer_send_weights(iter(held.items()), {"update_info": about})
        kept = []
        reshard(info, None, kept.extend)
        return digest(kept[0][1]) == digest(shards(info, weights, "dst", rank)["w"])

    assert spawn(4, body) == [None, None, True, True]


def test_ranks_that_train_and_serve_keep_what_they_have():
    weights = whole_weights()
    info = P2PUpdateInfo(**update(weights, [[0, 1, 2, 3]], [[0, 1], [2, 3]]))

    def body(rank, ctx):
        held, kept = on_device(ctx, shards(info, weights, "src", rank)), []
        reshard(info, iter(held.items()), kept.extend)
        for tensor in held.values():
            tensor.zero_()
        return [(n, digest(t)) for n, t in kept] == [
            (n, digest(a)) for n, a in shards(info, weights, "dst", rank).items()
        ]

    assert spawn(4, body) == [True] * 4


def test_a_wrong_hash_is_found():
    weights = {"w": weight("bfloat16", (8, 8))}
    about = update(weights, [[0]], [[1]])
    info = P2PUpdateInfo(**about)
    about["move_digests"] = dict.fromkeys(digests_of_moves(info, weights, 0), "0" * 32)

    def body(rank, ctx):
        if rank == 0:
            return Engine.trainer_send_weights(iter(on_device(ctx, weights).items()), {"update_info": about})
        with pytest.raises(ValueError, match=r"0>1 w\[0:8, 0:8\] arrived damaged"):
            reshard(P2PUpdateInfo(**about), None, pytest.fail)

    spawn(2, body)


@pytest.mark.parametrize(
    "sent, says",
    [
        ({"v": weight("bfloat16", (8, 8))}, r"sends 'v' .*announced 'w' \(bfloat16 \[8, 8\]\)"),
        ({"w": weight("float16", (8, 8))}, r"sends 'w' \(float16"),
        ({}, "ends before 'w'"),
        ({"w": weight("bfloat16", (8, 8)), "x": weight("bfloat16", (8, 8))}, "sends 'x', of which"),
    ],
)
def test_a_trainer_that_leaves_its_announcement_is_the_root_cause(sent, says):
    about = update({"w": weight("bfloat16", (8, 8))}, [[0]], [[1]])

    def body(rank, ctx):
        if rank == 0:
            Engine.trainer_send_weights(iter(on_device(ctx, sent).items()), {"update_info": about})
        else:
            reshard(P2PUpdateInfo(**about), None, lambda pairs: None)

    with pytest.raises(SpawnException, match=says) as failed:
        spawn(2, body)
    assert list(failed.value.errors) == [0]


def test_arguments_and_places_are_checked():
    about = update({"w": weight("bfloat16", (8, 8))}, [[0]], [[1]])
    engine = Engine(None, None)
    for wrong, says in (
        ({"src_axes": []}, "`src_axes` should be of the same size as `names`: got 0 and 1"),
        ({"digests": ["0"]}, "move_digests instead"),
        ({"dst_axes": [2]}, "axis 2 of the shape"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
    ):
        with pytest.raises(ValueError, match=f"Invalid update_info for P2PWeightTransferEngine: .*{says}"):
            engine.parse_update_info(about | wrong)
    with pytest.raises(RuntimeError, match="not initialized"):
        engine.receive_weights(engine.parse_update_info(about), print)
    engine.shutdown()

    def body(rank, ctx):
        with pytest.raises(ValueError, match="rank 0 is in src_groups"):
            reshard(P2PUpdateInfo(**about), None, print)
        with pytest.raises(TypeError, match="on the host"):
            Engine.trainer_send_weights(iter([("w", weight("bfloat16", (8, 8)))]), {"update_info": about})

    spawn(1, body)
