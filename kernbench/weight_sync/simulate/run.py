"""Runs one engine's sync and gathers what it came to."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kernbench.runtime_api.context import RuntimeContext
from kernbench.topology import SystemGraph
from kernbench.weight_sync.simulate.bounds import device_bound, host_bound
from kernbench.weight_sync.simulate.model import Model
from kernbench.weight_sync.simulate.outcome import Outcome, busiest, spans
from kernbench.weight_sync.simulate.sync import BROADCASTS, HOST, Roles, Settings, Sync

ENGINES = ("p2p", *BROADCASTS, *HOST)
VALUES_BYTES = 64 << 20
"""Of the model whose values are moved, where another is too large for that."""


@dataclass(frozen=True)
class Trial:
    """An engine's sync of a whole model in time, and its values: of the same model, or of a small one with its
    proportions; None where there is no such."""

    time: Outcome
    values: Outcome | None


def trial(engine: str, model: Model, graph: SystemGraph, roles: Roles, settings: Settings | None = None) -> Trial:
    """Time at full size without values, and values at a size that a laptop holds. Raises: as :func:`simulate`."""
    settings = settings or Settings()
    time_only = simulate(engine, model, graph, roles, settings)
    small = model.within(VALUES_BYTES)
    if small is None:
        return Trial(time_only, None)
    scaled = settings.scaled(model.nbytes / small.nbytes)
    return Trial(time_only, simulate(engine, small, graph, roles, scaled, enable_data=True))


def simulate(
    engine: str,
    model: Model,
    graph: SystemGraph,
    roles: Roles,
    settings: Settings,
    *,
    enable_data: bool = False,
    seed: int = 0,
) -> Outcome:
    """Sync ``model`` from trainers to workers by one of :data:`ENGINES`.

    Host engines copy every trainer's shards to the host and every worker's from there, bucket by bucket, over simulated
    links; with values, each bucket goes through the engine's real transport in between, which takes no simulated time.

    Args:
        enable_data: move random values and compare every parameter at the end; the simulated time is the same without.

    Raises:
        ValueError: no such engine, fewer SIPs than ranks, or a model that cannot be shared out among them.
    """
    if engine not in ENGINES:
        raise ValueError(f"there is no engine '{engine}': choose among {', '.join(ENGINES)}")
    if graph.n_sips < roles.world:
        raise ValueError(f"{roles} needs {roles.world} SIPs, the machine has {graph.n_sips}: take more with --sips")
    started = time.perf_counter()
    values = model.values(seed) if enable_data else None
    with (
        tempfile.TemporaryDirectory(prefix="kernbench-sync-") as folder,
        RuntimeContext.open(graph, enable_data=enable_data) as ctx,
    ):
        sync = Sync(ctx, engine, model, roles, settings, values, Path(folder))
        sync.run()
        timeline = ctx.timeline()
    found = spans(timeline)
    start, finish = found[""]
    divisions = sync.to_workers.divisions
    trainers, workers = range(roles.trainers), range(roles.trainers, roles.world)
    needed = [sum(one.nbytes_of(rank) for one in divisions) for rank in workers]
    return Outcome(
        engine=engine,
        worker_bytes=max(needed),
        time_ps=finish - start,
        transfer_ps=found["transfer"][1] - start,
        commit_ps=found["commit"][1] - found["commit"][0],
        bound=(host_bound if engine in HOST else device_bound)(divisions, graph),
        busiest=busiest(timeline, start, found["transfer"][1]),
        trainer_held=max(sync.memory[rank][0] for rank in trainers),
        trainer_peak=max(sync.memory[rank][1] for rank in trainers),
        worker_held=max(sync.memory[rank][0] for rank in workers),
        worker_peak=max(sync.memory[rank][1] for rank in workers),
        correct=all(sync.correct[rank] for rank in workers) if enable_data else None,
        digest=timeline.digest(),
        seconds=time.perf_counter() - started,
        host_bytes=sync.host_bytes,
        host_seconds=sync.host_seconds,
    )
