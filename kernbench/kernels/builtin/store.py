"""The stored TTIR of built-in kernels: one compressed file per source, read on first use."""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kernbench.kernels.builtin.menu import Constant, key
from kernbench.kernels.kernel import Kernel

HERE = Path(__file__).parent
SOURCES = ("matmul", "elementwise", "rows")


class StoreError(RuntimeError):
    """The store lacks a kernel, or does not match its source."""


def source_hash(source: str) -> str:
    """Of a source file's text, whatever its line endings."""
    text = (HERE / "sources" / f"{source}.py").read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def path(source: str) -> Path:
    """Where the TTIR of a source file lies."""
    return HERE / "store" / f"{source}.json.xz"


def write(source: str, content: dict[str, Any]) -> None:
    """Store ``content`` (see :func:`read`), byte for byte the same on every run."""
    path(source).parent.mkdir(exist_ok=True)
    text = json.dumps(content, indent=0, sort_keys=True)
    path(source).write_bytes(lzma.compress(text.encode(), preset=9))


def read(source: str) -> dict[str, Any]:
    """``{"source_hash", "triton", "kernels": {key: {"signature", "constexprs", "num_stages", "text"}}}``."""
    return json.loads(lzma.decompress(path(source).read_bytes()))


@cache
def _stored(source: str) -> dict[str, Any]:
    return read(source)


@cache
def _kernel(name: str) -> Kernel:
    for source in SOURCES:
        content = _stored(source)
        found = content["kernels"].get(name)
        if found is not None:
            kernel = name.partition("(")[0]
            return Kernel(kernel, found["text"], found["num_stages"], found["constexprs"], content["source_hash"])
    raise StoreError(f"the store of built-in kernels holds no {name}")


def kernel(name: str, types: Mapping[str, str | None], constants: Mapping[str, Constant]) -> Kernel:
    """A stored kernel, parsed once per process.

    Raises:
        StoreError: nobody stored that combination.
    """
    return _kernel(key(name, types, constants))
