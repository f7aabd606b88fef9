"""Running TTIR text on a bare memory, and looking at what the record says byte by byte."""

import itertools

import numpy as np

from kernbench.kernels.executor import execute
from kernbench.kernels.kernel import Kernel
from kernbench.memory import AddressSpace, dtype


class Machine:
    """One memory, and kernels that run on it without a runtime."""

    def __init__(self):
        self.space = AddressSpace(1 << 30, "memory")
        self.kinds = {}

    def put(self, values, kind="f32", name="tensor"):
        """Copy values into memory as elements of a type; returns the address."""
        stored = np.ascontiguousarray(values).astype(dtype(kind).storage)
        made = self.space.alloc(stored.nbytes, name)
        made.bytes[:] = stored.reshape(-1).view(np.uint8)
        self.kinds[made.base] = (stored.dtype, stored.shape)
        return made.base

    def empty(self, shape, kind="f32", name="out"):
        return self.put(np.zeros(shape), kind, name)

    def get(self, address):
        """What is in memory now."""
        kind, shape = self.kinds[address]
        return self.space.find(address).bytes.view(kind).reshape(shape).copy()

    def set(self, address, values):
        kind, _ = self.kinds[address]
        found = self.space.find(address)
        found.bytes[:] = np.ascontiguousarray(values).astype(kind).reshape(-1).view(np.uint8)
        found.wrote()


def run(machine, text, grid, args, name="kernel", **options):
    """Execute a kernel; a kernel of the same text is compiled once."""
    if text not in _KERNELS:
        _KERNELS[text] = Kernel(name, text)
    grid = (*((grid,) if isinstance(grid, int) else grid), 1, 1)[:3]
    return execute(_KERNELS[text], grid, args, machine.space, **options)


_KERNELS = {}


def plain(record):
    """A record as nested tuples, arrays included, so that two can be compared with ``==``."""

    def flat(x):
        if isinstance(x, np.ndarray):
            return ("array", x.shape, x.tolist())
        if isinstance(x, list | tuple):
            return tuple(map(flat, x))
        if hasattr(x, "__slots__"):
            return (type(x).__name__, *((name, flat(getattr(x, name))) for name in x.__slots__))
        return x

    return flat(record)


def touched(access, p, t=0):
    """The bytes program ``p`` (by column) touches in iteration ``t``: a plain reading of the definition."""
    if access.run_ptr is not None:
        found = set()
        for i in range(access.run_ptr[p], access.run_ptr[p + 1]):
            found.update(range(access.run_addr[i], access.run_addr[i] + access.run_bytes[i]))
        return found
    counts = list(access.counts)
    if access.extent is not None:
        moves = access.extent_step or (0,) * len(counts)
        counts = [min(max(int(e) + t * m, 0), n) for e, m, n in zip(access.extent[p], moves, counts, strict=True)]
    base = int(access.base[p]) + t * access.base_step
    return {
        base + sum(i * s for i, s in zip(index, access.strides, strict=True))
        for index in itertools.product(*map(range, counts))
    }


def rows_of(record, program):
    """The rows of one program, and its column in them."""
    for block in record.blocks:
        at = np.flatnonzero(block.programs == program)
        if len(at):
            return block, int(at[0])
    raise AssertionError(f"program {program} is not in the record")
