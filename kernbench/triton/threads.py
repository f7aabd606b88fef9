"""The mode of :mod:`kernbench.triton.torch_mode` in threads: torch has one for each thread."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

from kernbench.triton.patches import patched
from kernbench.triton.torch_mode import InThread


def installed() -> AbstractContextManager[None]:
    """Threads that are started meanwhile are under the mode; those that live on are, in later impersonations too."""
    start = threading.Thread.start

    def under_mode(self: threading.Thread) -> None:
        run = self.run

        def body() -> None:
            vars(self).pop("run", None)  # or the thread would hold itself
            with nullcontext() if InThread.is_on() else InThread():
                run()

        self.run = body  # type: ignore[method-assign]
        start(self)

    return patched([(threading.Thread, "start", under_mode)])
