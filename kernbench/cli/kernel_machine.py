"""What a kernel is tried on: the command line's arguments, the machine, the GPU that the file believes in."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernbench.cli import kernel_files as files
from kernbench.memory import DType, dtype

if TYPE_CHECKING:
    from kernbench.cli.kernel_run import Options


def arguments(options: Options) -> tuple[dict[str, Any], dict[str, str]]:
    """The ``--arg`` words as values (a dtype alone stays a :class:`DType`), and those that are a filling alone."""
    rng = np.random.default_rng(options.seed)
    found: dict[str, Any] = {}
    fills: dict[str, str] = {}
    for name, text in options.arguments.items():
        if text in files.FILLS:
            fills[name] = text
            continue
        try:
            found[name] = dtype(text)
        except (TypeError, KeyError, ValueError):
            found[name] = files.value(text, rng)
    return found, fills


def as_array(value: Any) -> Any:
    """A torch tensor as a numpy array over the same memory; everything else as it is."""
    if isinstance(value, np.ndarray | DType) or not hasattr(value, "untyped_storage"):
        return value
    import ml_dtypes
    import torch

    narrow = {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.int8, ml_dtypes.float8_e4m3fn),
        torch.float8_e5m2: (torch.int8, ml_dtypes.float8_e5m2),
    }
    with torch._C.DisableTorchFunction():
        value = value.detach()
        if value.dtype in narrow:
            carrier, kind = narrow[value.dtype]
            return value.view(carrier).numpy().view(kind)
        return value.numpy()


def target_of(path: Path, options: Options) -> str:
    """The GPU that a file is told it runs on: files that know torch tend to ask."""
    from kernbench.triton import target_of_environment

    asked = options.impersonate or target_of_environment() or ""
    if asked or importlib.util.find_spec("torch") is None:
        return asked
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return "cuda:90" if re.search(r"^\s*(import torch|from (torch|\.))", text, re.M) else ""


@contextmanager
def open_machine(options: Options, target: str) -> Iterator[Any]:
    """An open context, believed to be a GPU where a target is given."""
    from kernbench.runtime_api.context import RuntimeContext
    from kernbench.triton import impersonate

    with ExitStack() as stack:
        ctx = stack.enter_context(RuntimeContext.open(options.machine))
        if target:
            stack.enter_context(impersonate(target))
        yield ctx
