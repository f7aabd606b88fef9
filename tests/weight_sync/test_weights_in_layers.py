"""Trainers on some SIPs, workers of tensor-parallel layers on others: the next forward is that of the new weights, and
stale, torn or exchanged weights show both in the forward and in the session's own checks."""

import re
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

import kernbench.topology
from kernbench import tp
from kernbench.kernels import builtin
from kernbench.runtime_api.context import RuntimeContext
from kernbench.runtime_api.multiprocessing import SpawnException
from kernbench.weight_sync.arrays import digest
from kernbench.weight_sync.simulate.sync import sending
from kernbench.weight_sync.transfer import ServedWeights, WeightTransferEngineFactory, describe_weights
from kernbench.weight_sync.transfer.p2p import P2PUpdateInfo, digests_of_moves, reshard, resharded

LAYERS, HIDDEN, INNER, TOKENS = 2, 16, 32, 5
TRAINERS, WORKERS = [0, 1], [[2, 3], [4, 5]]
WORLD = 6
TOLERANCE = 0.02
"""Of the output's root mean square: rounding to f16 stays below a tenth of it, other weights are ten times above."""
DEVICE_ENGINES = ["broadcast", "packed", "p2p"]
HOST_ENGINES = ["disk", "ipc", "http"]


@cache
def machine():
    return kernbench.topology.load("tiny", sips=WORLD)


@cache
def weights(version):
    """Published weights, (out, in) each."""
    rng = np.random.default_rng(version)
    made = {}
    for i in range(LAYERS):
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            scale = 1.5 / np.sqrt(shape[1])
            made[f"layers.{i}.mlp.{name}_proj.weight"] = (rng.standard_normal(shape) * scale).astype(np.float16)
    return made


def axis(name):
    return 1 if "down" in name else 0


def expected(held):
    """The model in float64."""
    x = activations().astype(np.float64)
    for i in range(LAYERS):
        gate, up, down = (held[f"layers.{i}.mlp.{n}_proj.weight"].astype(np.float64) for n in ("gate", "up", "down"))
        g = x @ gate.T
        x = x + (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T
    return x


def activations():
    return np.random.default_rng(99).standard_normal((TOKENS, HIDDEN)).astype(np.float16)


def part(array, name, number, count):
    return np.ascontiguousarray(np.split(array, count, axis(name))[number])


class Model:
    """A worker's layers and their forward."""

    def __init__(self, ctx):
        self.ctx, self.params = ctx, {}
        self.layers = []
        for i in range(LAYERS):
            column = {n: tp.ColumnParallelLinear(HIDDEN, INNER, torch=ctx) for n in ("gate", "up")}
            self.layers.append(layer := column | {"down": tp.RowParallelLinear(INNER, HIDDEN, torch=ctx)})
            self.params |= {f"layers.{i}.mlp.{n}_proj.weight": one.weight for n, one in layer.items()}
        self.x = ctx.tensor(activations())

    def forward(self):
        x = self.x
        for layer in self.layers:
            g, u = layer["gate"](x), layer["up"](x)
            h = self.ctx.empty(g.shape)
            builtin.silu_mul(h, g, u)
            x = x + layer["down"](h)
        return x.numpy()


@dataclass
class Sync:
    """One update of the workers from version 1 to 2, with what goes wrong in it."""

    engine: str
    folder: object = None
    checked: bool = True
    """Trainers announce hashes of the right weights, and workers compare."""
    exchanges: dict = field(default_factory=dict)
    """Trainers mix names up: the name -> whose tensor they send."""
    leaves_out: tuple = ()
    exchanges_ranks: bool = False
    """The two trainers hold each other's part of every down projection."""
    finishes: bool = True
    results: dict = field(default_factory=dict)

    def run(self):
        """(forward before, forward after, version, hashes of the parameters) of every worker."""
        with RuntimeContext.open(machine()) as ctx:

            def rank_body(rank):
                ctx.ahbm.set_device(rank)
                ctx.distributed.init_process_group(backend="ahbm")
                tp.initialize_model_parallel(2)
                self.readers = ctx.distributed.new_group([0, *WORKERS[0], *WORKERS[1]])
                self.folder.mkdir(exist_ok=True)
                self.results[rank] = self.train(ctx, rank) if rank in TRAINERS else self.serve(ctx, rank)

            ctx.multiprocessing.spawn(rank_body, nprocs=WORLD)
        return [self.results[rank] for group in WORKERS for rank in group]

    def names(self):
        return [name for name in weights(2) if name not in self.leaves_out]

    def announced(self, dst_groups=None):
        """The update information of the broadcast engine, or of p2p to these workers."""
        right = {name: weights(2)[name] for name in self.names()}
        if dst_groups is None:
            return describe_weights(right.items(), self.checked) | {
                "packed": self.engine == "packed",
                "buffer_size_bytes": 700,
            }
        axes = [axis(name) for name in right]
        about = describe_weights(right.items(), digests=False) | {"src_axes": axes, "dst_axes": axes}
        about |= {"src_groups": [TRAINERS], "dst_groups": dst_groups}
        if self.checked and dst_groups == WORKERS:
            about["move_digests"] = {}
            for number, rank in enumerate(TRAINERS):
                parts = {name: part(array, name, number, len(TRAINERS)) for name, array in right.items()}
                about["move_digests"] |= digests_of_moves(P2PUpdateInfo(**about), parts, rank)
        return about

    def train(self, ctx, rank):
        held = {}
        for name in self.names():
            number = 1 - rank if self.exchanges_ranks and "down" in name else rank
            held[name] = ctx.tensor(part(weights(2)[self.exchanges.get(name, name)], name, number, len(TRAINERS)))
        if self.engine == "p2p":
            reshard(P2PUpdateInfo(**self.announced(WORKERS)), iter(held.items()), None)
            return
        whole = resharded(P2PUpdateInfo(**self.announced([[0]])), iter(held.items()))
        if rank == 0 and self.engine in ("broadcast", "packed"):
            args = {"update_info": self.announced(), "group": self.readers}
            WeightTransferEngineFactory.engine_class("broadcast").trainer_send_weights(whole, args)
            return
        on_host = {name: tensor.numpy() for name, tensor in whole}  # nothing but on rank 0
        if rank == 0:
            self.on_host = on_host
            ctx.distributed.barrier(self.readers)

    def serve(self, ctx, rank):
        model, number = Model(ctx), next(group.index(rank) for group in WORKERS if rank in group)
        for name, param in model.params.items():
            param.copy_(part(weights(1)[name], name, number, 2).T.copy())

        def place(name, tensor):
            if tensor.shape[axis(name)] == INNER:
                tensor = tensor[(slice(None),) * axis(name) + (slice(number * INNER // 2, (number + 1) * INNER // 2),)]
            yield name, (), tensor.T

        served = ServedWeights(model.params, version=1, place=place, check=self.checked)
        before = model.forward()
        served.start(2, base_version=None if self.checked else 1)
        self.receive(ctx, served)
        assert (model.forward() == before).all(), "visible before it is finished"
        whole = self.checked and self.engine != "p2p"  # a p2p worker gets parts, whose hashes the engine has compared
        if self.finishes:
            served.finish({name: digest(array) for name, array in weights(2).items()} if whole else None)
        return before, model.forward(), served.version, served.digests()

    def receive(self, ctx, served):
        name = "broadcast" if self.engine == "packed" else self.engine
        engine = WeightTransferEngineFactory.create_engine(name, None, None)
        if name in DEVICE_ENGINES:
            init, info = ({}, self.announced(WORKERS)) if name == "p2p" else ({"group": self.readers}, self.announced())
            engine.init_transfer_engine(engine.parse_init_info(init))
            engine.receive_weights(engine.parse_update_info(info), served.load)
            return
        ctx.distributed.barrier(self.readers)
        engine.init_transfer_engine(engine.parse_init_info({"framework": "numpy"}))
        try:
            with sending(engine, name, self.on_host, self.folder) as info:
                engine.receive_weights(engine.parse_update_info(info), served.load)
        finally:
            engine.shutdown()


def off(found, held):
    """The error of a forward against the model in float64, in root mean squares of its output."""
    want = expected(held)
    return float(np.abs(found - want).max() / np.sqrt(np.mean(want**2)))


def parameter_digests(held, number):
    return {name: digest(part(array, name, number, 2).T.copy()) for name, array in held.items()}


@pytest.mark.parametrize("engine", [*DEVICE_ENGINES, *HOST_ENGINES])
def test_the_next_forward_is_that_of_the_new_weights(engine, tmp_path):
    for number, (before, after, version, digests) in enumerate(Sync(engine, tmp_path / "snapshot").run()):
        assert version == 2 and digests == parameter_digests(weights(2), number % 2)
        assert off(before, weights(1)) < TOLERANCE and off(after, weights(2)) < TOLERANCE


GATES = ["layers.0.mlp.gate_proj.weight", "layers.1.mlp.gate_proj.weight"]
HALF = tuple(weights(2))[::2]
FAULTS = {
    "stale": {"finishes": False},
    "torn": {"leaves_out": HALF},
    "layers exchanged": {"exchanges": dict(zip(GATES, GATES[::-1], strict=True))},
    "ranks exchanged": {"exchanges_ranks": True},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("engine", ["packed", "p2p", "disk"])
def test_a_fault_that_nothing_checks_shows_in_the_forward(engine, fault, tmp_path):
    workers = Sync(engine, tmp_path / "snapshot", checked=False, **FAULTS[fault]).run()
    for number, (_, after, version, digests) in enumerate(workers):
        assert version == (1 if fault == "stale" else 2)
        assert off(after, weights(2)) > 10 * TOLERANCE
        assert digests != parameter_digests(weights(2), number % 2), "so do the hashes of what is served"


@pytest.mark.parametrize("fault", ["torn", "layers exchanged", "ranks exchanged"])
@pytest.mark.parametrize("engine", [*DEVICE_ENGINES, *HOST_ENGINES])
def test_a_session_refuses_a_fault(engine, fault, tmp_path):
    with pytest.raises(SpawnException) as failed:
        Sync(engine, tmp_path / "snapshot", **FAULTS[fault]).run()
    says = "lacks 3 of 6 parameters|has not arrived" if fault == "torn" else "hashes to"
    assert failed.value.errors.keys() <= {*WORKERS[0], *WORKERS[1]}
    assert all(re.search(says, str(error)) for error in failed.value.errors.values())
