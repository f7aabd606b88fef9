"""``torch.autocast("cuda")``, whose casts torch's CPU operators are to do.

Which operators cast is torch's table for the CPU: its norms keep half precision where a GPU's return float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.amp.autocast_mode import autocast

from kernbench.triton.patches import patched


def installed() -> AbstractContextManager[None]:
    """Entering a CUDA autocast enters one for the CPU too, with the same type."""
    enter, leave = autocast.__enter__, autocast.__exit__
    inner: dict[int, list[Any]] = {}  # a context may be entered again inside itself

    def __enter__(self: Any) -> Any:
        if self.device == "cuda":
            on_cpu = autocast("cpu", self.fast_dtype, self._enabled, self._cache_enabled)
            enter(on_cpu)
            inner.setdefault(id(self), []).append(on_cpu)
        return enter(self)

    def __exit__(self: Any, *raised: Any) -> Any:
        try:
            return leave(self, *raised)
        finally:
            if self.device == "cuda":
                leave(inner[id(self)].pop(), *raised)

    return patched([(autocast, "__enter__", __enter__), (autocast, "__exit__", __exit__)])
