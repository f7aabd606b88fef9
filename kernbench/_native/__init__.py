"""Loads the compiled core: one C++ library with a plain C interface, called through ctypes with whole arrays.

There is nothing here but finding and opening the file. Where the library was not built (no compiler at install), the
pure-Python implementations run instead, after one warning. ``KERNBENCH_NATIVE=0`` forces that.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

_FILE = {"darwin": "libkernbench_core.dylib", "win32": "kernbench_core.dll"}.get(sys.platform, "libkernbench_core.so")


class NoCompiledCoreWarning(RuntimeWarning):
    """The compiled core is missing: results are the same, replay is about thirty times slower."""


def _candidates() -> list[Path]:
    here = Path(__file__).parent / _FILE
    found = [here]
    if not here.exists():  # an editable install keeps sources here and the library in site-packages
        from importlib.metadata import PackageNotFoundError, distribution

        with suppress(PackageNotFoundError):
            found.append(Path(str(distribution("kernbench").locate_file(f"kernbench/_native/{_FILE}"))))
    return found


@cache
def library() -> ctypes.CDLL | None:
    """The compiled core, or None where it is missing (warns once) or switched off by ``KERNBENCH_NATIVE=0``."""
    if os.environ.get("KERNBENCH_NATIVE", "1") == "0":
        return None
    for path in _candidates():
        if path.exists():
            return ctypes.CDLL(str(path))
    warnings.warn(
        "KernBench runs without its compiled core: results are the same, replay is about thirty times slower. "
        "Install a C++17 compiler and reinstall kernbench to build it.",
        NoCompiledCoreWarning,
        stacklevel=3,
    )
    return None
