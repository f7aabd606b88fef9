"""Loads the compiled core: one C++ library with a plain C interface, called through ctypes with whole arrays.

There is nothing here but finding and opening the file. Where the library was not built (no compiler at install), or was
built from other sources than those beside this file (an editable install that was not repeated), the pure-Python
implementations run instead, after one warning. ``KERNBENCH_NATIVE=0`` forces that.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

_FILE = {"darwin": "libkernbench_core.dylib", "win32": "kernbench_core.dll"}.get(sys.platform, "libkernbench_core.so")


class NoCompiledCoreWarning(RuntimeWarning):
    """The compiled core is missing or outdated: results are the same, replay is about thirty times slower."""


def _candidates() -> list[Path]:
    here = Path(__file__).parent / _FILE
    found = [here]
    if not here.exists():  # an editable install keeps sources here and the library in site-packages
        from importlib.metadata import PackageNotFoundError, distribution

        with suppress(PackageNotFoundError):
            found.append(Path(str(distribution("kernbench").locate_file(f"kernbench/_native/{_FILE}"))))
    return found


def _sources() -> str:
    """What ``CMakeLists.txt`` computes for the sources beside this file; empty where there are none."""
    files = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".cpp", ".h"))
    digests = "".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in files)
    return hashlib.sha256(digests.encode()).hexdigest() if files else ""


def _fits(found: ctypes.CDLL, sources: str) -> bool:
    """Whether a library was built from these sources: its functions take what this version passes."""
    if not hasattr(found, "kb_sources"):
        return False
    found.kb_sources.restype = ctypes.c_char_p
    return sources in ("", found.kb_sources().decode())


@cache
def library() -> ctypes.CDLL | None:
    """The compiled core, or None where it is missing or outdated (warns once) or switched off by
    ``KERNBENCH_NATIVE=0``."""
    if os.environ.get("KERNBENCH_NATIVE", "1") == "0":
        return None
    why, what = "without its compiled core", "Install a C++17 compiler and reinstall kernbench to build it."
    for path in _candidates():
        if path.exists():
            found = ctypes.CDLL(str(path))
            if _fits(found, _sources()):
                return found
            why = f"without its compiled core: {path} was built from other sources"
            what = "Install kernbench again to rebuild it: pip install -e ."
            break
    warnings.warn(
        f"KernBench runs {why}. Results are the same, replay is about thirty times slower. {what}",
        NoCompiledCoreWarning,
        stacklevel=3,
    )
    return None
