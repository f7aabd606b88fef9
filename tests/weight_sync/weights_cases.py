"""Tensors of every element type and of awkward shapes, for the tests of weight_sync."""

import numpy as np

from kernbench.weight_sync.arrays import from_bytes
from kernbench.weight_sync.dtypes import wire_type

NAMES = [
    "bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32", "complex64", "float64", "int64", "uint64",
    "complex128",
]  # fmt: skip
KERNBENCH = [
    n for n in NAMES if n not in ("float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz") and "complex" not in n
]
SHAPES = [(), (0,), (1,), (128,), (4, 32), (2, 3, 16), (2, 2, 2, 8), (3, 0, 2)]


def random_bytes(name, shape, seed=0):
    """Any bits that the type allows, NaN payloads and infinities among them."""
    top = 2 if name == "bool" else 256
    return np.random.default_rng(seed).integers(0, top, wire_type(name).nbytes(shape), dtype=np.uint8)


def weight(name, shape, framework="numpy", seed=0):
    return from_bytes(name, shape, random_bytes(name, shape, seed), framework)


def strided(framework, name="bfloat16", seed=0):
    """Views of one kind or another that are not contiguous, of shape (3, 5)."""
    whole = weight(name, (12, 10), framework, seed)
    yield whole[:3, ::2]
    yield whole[::4, 5:]
    yield whole.reshape(6, 20)[:5, 3:6].T if framework == "numpy" else whole.reshape(6, 20)[:5, 3:6].t()
    row = whole[0, :5]
    yield np.broadcast_to(row, (3, 5)) if framework == "numpy" else row.expand(3, 5)
