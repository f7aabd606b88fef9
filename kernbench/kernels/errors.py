"""What can go wrong with a kernel, each with the source line it happened on."""

from __future__ import annotations


class KernelError(RuntimeError):
    """The kernel cannot run: its IR is malformed, or uses an operation KernBench does not support."""


class KernelFault(KernelError):
    """The kernel did something no machine allows, such as reading outside its tensors."""


class ValuesNeeded(KernelError):
    """A timing-only run needs a value that an earlier timing-only store did not compute."""
