"""Kernels: Triton's dialect of Python lowered to TTIR text, run for its values, and recorded for its time.

Nothing here imports Triton. Where Triton is installed, ``kernel[grid](...)`` inside an open context comes here through
:mod:`kernbench.kernels.triton_backend`; stored kernels come through :mod:`kernbench.kernels.builtin`.
"""

from kernbench.kernels.builtin import pick
from kernbench.kernels.device import Device, NoDeviceError, Target, current, is_active, set_provider
from kernbench.kernels.kernel import Kernel
from kernbench.kernels.launch import LaunchError, launch
from kernbench.kernels.tcm import OutOfResources

__all__ = [
    "Device",
    "Kernel",
    "LaunchError",
    "NoDeviceError",
    "OutOfResources",
    "Target",
    "current",
    "is_active",
    "launch",
    "pick",
    "set_provider",
]
