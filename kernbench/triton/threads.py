"""The mode of :mod:`kernbench.triton.torch_mode` in threads, which torch gives each thread of its own."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from kernbench.triton.patches import patched
from kernbench.triton.torch_mode import CudaOnCpu


def installed(mode: CudaOnCpu) -> AbstractContextManager[None]:
    """Threads that are started meanwhile run under the mode; it does nothing any more once impersonation has ended."""
    start = threading.Thread.start

    def under_mode(self: threading.Thread) -> None:
        run = self.run

        def body() -> None:
            vars(self).pop("run", None)  # or the thread would hold itself
            with mode.once():
                run()

        self.run = body  # type: ignore[method-assign]
        start(self)

    return patched([(threading.Thread, "start", under_mode)])
