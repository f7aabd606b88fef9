"""Operators that a program registers with ``torch.library`` for CUDA.

To torch's dispatcher the tensors of a program that believes in a GPU are the CPU's: what is registered for CUDA is
registered for the CPU. And torch takes function modes off before it calls the dispatcher, so an operator written in
Python would meet ``device="cuda"`` bare: it gets the mode back while it runs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch.library import Library, fallthrough_kernel

from kernbench.triton.patches import patched
from kernbench.triton.torch_mode import latest

_AS_CPU = {"CUDA": "CPU", "AutogradCUDA": "AutogradCPU"}


@contextmanager
def installed() -> Iterator[None]:
    """``Library.impl``, which every way of registering an operator ends in, does the above.

    Operators registered meanwhile stay afterwards. Then they run as torch runs them, until the next impersonation.
    """
    init, impl = Library.__init__, Library.impl
    for_gpu: set[tuple[str, str, str]] = set()

    def made(self: Library, ns: str, kind: str, dispatch_key: str = "") -> None:
        init(self, ns, kind, _AS_CPU.get(dispatch_key, dispatch_key))
        self.for_gpu = dispatch_key in _AS_CPU  # type: ignore[attr-defined]

    def registered(
        self: Library, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", *args: Any, **kwargs: Any
    ) -> None:
        key = _AS_CPU.get(dispatch_key, dispatch_key or self.dispatch_key)
        operator = (self.ns, str(op_name), key)
        if dispatch_key in _AS_CPU or (not dispatch_key and getattr(self, "for_gpu", False)):
            for_gpu.add(operator)
        elif operator in for_gpu:
            return  # the program's version for the CPU, where none of its tensors are
        with warnings.catch_warnings():
            if operator in for_gpu:  # what torch or the program has for the CPU gives way on purpose
                warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
            impl(self, op_name, fn if fn is fallthrough_kernel else _under_mode(fn), key, *args, **kwargs)

    with patched([(Library, "__init__", made), (Library, "impl", registered)]):
        yield


def _under_mode(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` under the mode, where there is one."""

    @functools.wraps(fn)
    def under_mode(*args: Any, **kwargs: Any) -> Any:
        mode = latest()
        with nullcontext() if mode is None else mode.once():
            return fn(*args, **kwargs)

    return under_mode
