"""The line of the user's program that led to where we are."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

_PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep


class Where(NamedTuple):
    """A line of source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def is_internal(file: str) -> bool:
    """Whether a source file is KernBench's own."""
    return file.startswith(_PACKAGE)


def user_line() -> Where:
    """The innermost calling line outside KernBench, and outside Triton, which calls it where a program launches."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (is_internal(frame.f_code.co_filename) or _launches(frame)):
        frame = frame.f_back
    return Where(frame.f_code.co_filename, frame.f_lineno)


def _launches(frame: FrameType) -> bool:
    """Whether a frame runs Triton's own code."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "triton"
