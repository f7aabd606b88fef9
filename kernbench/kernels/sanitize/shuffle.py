"""Does the order of programs matter? The launch runs again on the bytes it began with, one program after the other in a
drawn order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kernbench.kernels.errors import KernelFault
from kernbench.kernels.numerics import NARROW
from kernbench.kernels.plan import where
from kernbench.kernels.sanitize.watch import Watch, target
from kernbench.memory import AddressSpace, Allocation

TOLERANCE = {"f64": 1e-9, "f32": 1e-3}
"""Part of the largest value that sums in another order may differ by; narrower types 0.03. Integers are exact."""


class Shuffle:
    """Made before a launch; :meth:`compare` after it.

    Args:
        space: where the launch runs.
        written: bases of the allocations it may write.
    """

    def __init__(self, space: AddressSpace, written: frozenset[int]) -> None:
        found = [space.find(base) for base in sorted(written)]
        self._before: list[tuple[Allocation, NDArray[np.uint8]]] = [(a, a.bytes.copy()) for a in found if a is not None]

    def compare(self, watch: Watch, total: int, seed: int, run: Callable[[NDArray[np.int64]], None]) -> None:
        """Run again in the order that ``seed`` draws, compare, and put back what the first run left.

        Raises:
            KernelFault: an element differs; the message names it, the argument and both values.
        """
        order = np.random.default_rng(seed).permutation(total).astype(np.int64)
        first = [a.bytes.copy() for a, _ in self._before]
        again = []
        try:
            for allocation, start in self._before:
                allocation.bytes[:] = start
                allocation.wrote()
            run(order)
            again = [a.bytes.copy() for a, _ in self._before]
        finally:
            for (allocation, _), left in zip(self._before, first, strict=True):
                allocation.bytes[:] = left
                allocation.wrote()
        for (allocation, _), left, right in zip(self._before, first, again, strict=True):
            if allocation.base in watch.stores and (left != right).any():
                self._elements(watch, allocation, left, right, seed)

    def _elements(
        self, watch: Watch, allocation: Allocation, left: NDArray[np.uint8], right: NDArray[np.uint8], seed: int
    ) -> None:
        a, _ = watch.stores[allocation.base]
        usable = len(left) // a.itemsize * a.itemsize
        storage = NARROW[a.name][1] if a.name in NARROW else a.storage
        x, y = (v[:usable].view(storage).astype(a.carrier) for v in (left, right))
        if a.name[0] in "fb":
            with np.errstate(all="ignore"):
                largest = np.abs(x[np.isfinite(x)]).max(initial=0)
                near = np.abs(x - y) <= TOLERANCE.get(a.name, 0.03) * largest
                bad = ~(near | (x == y) | (np.isnan(x) & np.isnan(y)))
        else:
            bad = x != y
        if not bad.any():
            return
        at = int(bad.argmax())
        raise KernelFault(
            f"{where(a.op.loc)}: kernel '{watch.name}' depends on the order of its programs: element {at} of "
            f"{target(a)} ('{allocation.name}') is {x[at]} in program order and {y[at]} in the order of seed {seed}. "
            "Programs may run in any order: let none read what another one writes, and accumulate with atomics."
        )
