"""KernBench as a Triton backend: Triton lowers a kernel to TTIR, and KernBench runs and records it.

Triton finds this package through its entry point ``triton.backends``. It never takes another driver's place on its own:
while a KernBench context is open it is Triton's active driver, and when the context closes, the driver that was there
before is put back. That is done with ``set_active``, which every supported Triton has (``TRITON_DEFAULT_BACKEND`` only
came with 3.7), leaves no trace in the environment, and works on machines with a GPU.

This module must not import Triton, nor anything that does: Triton imports it while it is itself half imported, and
``import kernbench`` must stay quick.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

NAME = "kernbench"
impersonated: list[tuple[str, int]] = []
"""The targets (``("cuda", 90)``) that Triton is told it compiles for, the innermost last; none: KernBench's own."""
_following = False


def follow_context(active: bool) -> None:
    """Take Triton over (``active``) or give it back. Where Triton is not imported yet, wait until it is."""
    global _following
    _following = active
    if active:
        if _triton_is_ready():
            _take_over()
        elif _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
    else:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        if f"{__name__}.driver" in sys.modules:
            sys.modules[f"{__name__}.driver"].give_back()


def _triton_is_ready() -> bool:
    return "triton.runtime.driver" in sys.modules


def _take_over() -> None:
    from kernbench.kernels.triton_backend import driver

    driver.take_over()


class _AfterTriton:
    """Lets ``import triton`` inside a context find KernBench in place, as it would had it been imported before."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "triton":
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec("triton")
        finally:
            sys.meta_path.insert(0, self)  # whoever only asks for the spec does not import
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            execute(module)
            if _following:
                _take_over()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_finder = _AfterTriton()
