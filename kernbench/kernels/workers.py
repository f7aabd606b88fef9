"""Matrix products of many programs on all cores, each on one thread of BLAS.

BLAS libraries wait for each other's threads by spinning, which on a busy machine makes the small products of tiles ten
times slower. Programs are independent, so it is they that are spread over threads. What a program computes does not
depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController

SMALL = 1 << 22
"""Multiply-adds below which handing work to a thread costs more than it saves."""


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="kernbench")


@cache
def _cores() -> int:
    """Cores this process may use; ``KERNBENCH_THREADS`` or, as for BLAS itself, ``OMP_NUM_THREADS`` lowers it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("KERNBENCH_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, min(available, int(os.environ[name])))
    return available


def useful(work: int) -> int:
    """How many threads ``work`` multiply-adds are worth."""
    return max(1, min(_cores(), work // SMALL))


class _OneThread:
    """Holds BLAS libraries to one thread. threadpoolctl's own context asks every library of the process for all it
    knows, which takes longer than the products of a small launch."""

    def __enter__(self) -> None:
        self._before = [(library, library.get_num_threads()) for library in _blas().lib_controllers]
        for library, threads in self._before:
            if threads != 1:
                library.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        for library, threads in self._before:
            if threads != 1:
                library.set_num_threads(threads)


def single_threaded_blas() -> AbstractContextManager[object]:
    """A context in which a call of BLAS stays on its thread."""
    return _OneThread()


def run(tasks: Sequence[Callable[[], None]], work: int) -> None:
    """Run tasks that together make ``work`` multiply-adds and do not depend on each other. Call it within
    :func:`single_threaded_blas`.

    Raises what one of them raised.
    """
    threads = min(useful(work), len(tasks))
    if threads < 2:
        for task in tasks:
            task()
        return

    def share(first: int) -> None:
        for task in tasks[first::threads]:
            task()

    for done in [_pool().submit(share, first) for first in range(threads)]:
        done.result()
