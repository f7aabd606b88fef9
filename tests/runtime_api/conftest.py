from functools import cache

import pytest

import kernbench.topology
from kernbench.runtime_api.context import RuntimeContext


@cache
def machine(sips):
    return kernbench.topology.load("tiny", sips=sips)


@pytest.fixture
def ctx():
    """A context on one tiny SIP."""
    with RuntimeContext.open(machine(1)) as opened:
        yield opened


@pytest.fixture
def run():
    """``run(ranks, fn, *args)``: spawn ``fn(rank, ctx, *args)`` with a process group; gives [what each rank returned]
    as ``.results`` of the context."""

    def run(ranks, fn, *args, group=True, **options):
        with RuntimeContext.open(machine(max(ranks, 1)), **options) as ctx:
            ctx.results = [None] * ranks

            def worker(rank):
                ctx.ahbm.set_device(rank)
                if group:
                    ctx.distributed.init_process_group(backend="ahbm")
                ctx.results[rank] = fn(rank, ctx, *args)

            ctx.multiprocessing.spawn(worker, nprocs=ranks)
        return ctx

    return run
