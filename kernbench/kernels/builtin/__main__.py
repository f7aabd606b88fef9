"""``python -m kernbench.kernels.builtin [--check]``: lower the sources anew; write the store, or compare with it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from kernbench.kernels.builtin import menu, store


def lower(variant: menu.Variant) -> dict[str, Any]:
    """What the store holds of one specialisation. Needs Triton."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernbench.kernels.triton_backend import NAME

    function = getattr(importlib.import_module(f"kernbench.kernels.builtin.sources.{variant.source}"), variant.kernel)
    signature = variant.signature(function.arg_names)
    constants: dict[str, Any] = dict(variant.constants) | {n: None for n, kind in variant.types if kind is None}
    source = ASTSource(function, signature, constants)
    made = triton.compile(source, target=GPUTarget(NAME, "ttir", 1), options={"num_stages": variant.num_stages})
    return {
        "signature": signature,
        "constexprs": dict(variant.constants),
        "num_stages": variant.num_stages,
        "text": portable(made.asm[NAME].decode()),
    }


def portable(text: str) -> str:
    """TTIR whose locations name files relative to their package, so that it is the same wherever it is made."""
    text = re.sub(r'loc\("[^"]*?/(triton/language/[^"]*)":', r'loc("/\1":', text)
    return re.sub(r'loc\("[^"]*?/(kernbench/kernels/builtin/sources/[^"]*)":', r'loc("\1":', text)


def lower_all() -> Iterator[tuple[str, dict[str, Any]]]:
    """(source, content for the store) of every source file."""
    import triton

    from kernbench.kernels.triton_backend import driver

    driver.register()
    for source in store.SOURCES:
        kernels = {v.key: lower(v) for v in menu.variants() if v.source == source}
        yield source, {"source_hash": store.source_hash(source), "triton": triton.__version__, "kernels": kernels}


def differences(source: str, content: dict[str, Any]) -> list[str]:
    """How the stored file differs from ``content``, a line each; the Triton version that made it does not count."""
    if not store.path(source).exists():
        return [f"{source}: nothing is stored"]
    stored = store.read(source)
    found = [] if stored["source_hash"] == content["source_hash"] else [f"{source}: the source changed"]
    names = sorted(stored["kernels"].keys() | content["kernels"].keys())
    return found + [f"{source}: {n}" for n in names if stored["kernels"].get(n) != content["kernels"].get(n)]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m kernbench.kernels.builtin [--check]", file=sys.stderr)
        return 2
    different: list[str] = []
    for source, content in lower_all():
        if arguments:
            different += differences(source, content)
        else:
            store.write(source, content)
            print(f"{store.path(source)}: {len(content['kernels'])} kernels, {store.path(source).stat().st_size} bytes")
    if different:
        print("The store does not match its sources; run `python -m kernbench.kernels.builtin`:", file=sys.stderr)
        print("\n".join(different[:20]), file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
