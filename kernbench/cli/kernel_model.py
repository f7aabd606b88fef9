"""Files with a ``ModelNew`` that launches kernels, and ``get_inputs()`` for it: the form that KernelBench uses."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

NEW, OLD = "ModelNew", "Model"


def is_one(tree: ast.Module) -> bool:
    """Whether a file says how its model is to be called."""
    defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    return {NEW, "get_inputs"} <= defined


def run(names: Mapping[str, Any], seed: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Call the model once on ``get_inputs()``, and the plain ``Model`` of the file, if there is one, on the same.

    Both are built from the same seed, so that they have the same weights.

    Args:
        names: what the file defined when it was run.
        seed: of weights and inputs.

    Returns:
        (name, what ModelNew returned, what Model returned) for each result that can be compared.
    """
    import torch

    made = names.get("get_init_inputs", list)()
    torch.manual_seed(seed)
    given = names["get_inputs"]()

    def call(kind: str) -> list[Any]:
        torch.manual_seed(seed)
        positional, named = ((), made) if isinstance(made, Mapping) else (made, {})
        model = names[kind](*positional, **named).to("cuda")
        with torch.no_grad():
            got = model(*(v.to("cuda") if isinstance(v, torch.Tensor) else v for v in given))
        return list(got) if isinstance(got, tuple | list) else [got]

    got = call(NEW)
    if OLD not in names:
        return []
    want = call(OLD)
    pairs = [(a, b) for a, b in zip(got, want, strict=False) if isinstance(a, torch.Tensor)]
    one = len(pairs) == 1
    return [
        ("result" if one else f"result {i}", a.detach().float().cpu().numpy(), b.detach().float().cpu().numpy())
        for i, (a, b) in enumerate(pairs)
    ]
