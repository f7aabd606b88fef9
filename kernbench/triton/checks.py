"""torch's own checks that compare the devices of tensors: all are in host memory here, whatever the program is told."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.utils.checkpoint
from torch.testing import _comparison

from kernbench.triton.patches import patched
from kernbench.triton.torch_mode import latest


def installed() -> AbstractContextManager[None]:
    """``torch.utils.checkpoint`` and ``torch.testing.assert_close`` under impersonation.

    Checkpointing notes devices where torch has taken the mode off and compares them where it is on. And a tensor whose
    device the program never said (``torch.tensor([1, 2])``) answers ``cuda``, but is as good as one on the CPU, which
    it would be beside a GPU: it may be compared with either.
    """
    modes = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    describe, compare = modes["default"], _comparison.TensorLikePair._compare_attributes

    def described(x: torch.Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return describe(x)

    def compared(self: Any, actual: torch.Tensor, expected: torch.Tensor) -> None:
        mode, asked = latest(), self.check_device
        if mode is not None and not (mode.is_placed(actual) and mode.is_placed(expected)):
            self.check_device = False
        try:
            compare(self, actual, expected)
        finally:
            self.check_device = asked

    return patched(
        [
            (torch.utils.checkpoint, "_allowed_determinism_checks_to_fns", {**modes, "default": described}),
            (_comparison.TensorLikePair, "_compare_attributes", compared),
        ]
    )
