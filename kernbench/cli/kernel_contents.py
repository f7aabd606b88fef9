"""What made-up integers hold: indices, offsets into a packed array, lengths, packed weights.

Integers that decide addresses have to make sense: block tables and permutations name each place once, ``cu_seqlens``
rises, lengths are small. What a parameter is called, and what the kernel does with what it loads, tells them apart.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from kernbench.cli.kernel_roles import Roles

Ints = NDArray[np.int64]
WRAP = 1 << 40
"""Numbers of elements count from 0 again here, so that rows which lie this far apart hold the same."""
STEP = 40
"""By how much offsets rise: less than a block, and no multiple of one."""

_RISING = re.compile(r"cu_?seq|cu_?len|indptr|cum|offset|starts?(_|$)|begin|splits|seg_|ends?(_|$)|bound", re.I)
_LENGTHS = re.compile(r"len|count|sizes?$|num_|_num|n_tok", re.I)
_PLACES = re.compile(r"table|slot|dest|perm|sort|block_offsets|req_to|mapping", re.I)


def few(i: Ints) -> Ints:
    """0 to 7, in no order."""
    return ((i % WRAP) * 2654435761 >> 13) & 7


def distinct(i: Ints) -> Ints:
    """Every number once."""
    return i % WRAP


def rising(i: Ints) -> Ints:
    """Where pieces of a packed array start."""
    return (i % WRAP) * STEP


def places(i: Ints) -> Ints:
    """0 to 63, each once before any comes again."""
    return (i % WRAP) * 37 % 64


def lengths(i: Ints) -> Ints:
    """7 to 40: no more than lies between two offsets that :func:`rising` gives."""
    return 7 + (i % WRAP) * 11 % (STEP - 6)


def zeros(i: Ints) -> Ints:
    """Nothing but zeros: the first of everything, or no lock taken."""
    return np.zeros_like(i)


KINDS = {"few": few, "distinct": distinct, "places": places, "rising": rising, "lengths": lengths, "zeros": zeros}


def kind_of(name: str, roles: Roles) -> str:
    """The kind of integers that a pointer is taken to point to, of :data:`KINDS`."""
    if name in roles.counters:
        return "zeros"
    if _PLACES.search(name):
        return "distinct" if name in roles.scattered else "places"
    if _RISING.search(name):
        return "rising"
    if name in roles.scattered:
        return "distinct"
    return "lengths" if _LENGTHS.search(name) else "few"


def packed(count: int, dtype: np.dtype, rng: np.random.Generator) -> NDArray:
    """Integers of all bits, as packed weights are."""
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, count, dtype, endpoint=True)
