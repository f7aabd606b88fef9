"""Other versions of Triton to test kernels with: each in a folder of its own that goes in front of the installed one.

``python tests/kernels/triton_versions.py`` installs those that are missing (350 MB of downloads, 1.3 GB on disk).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = ("3.4.0", "3.7.1")
HOME = Path(sys.prefix) / "triton-versions"
"""Beside what they are used with: the wheels are for one Python, and go when the environment goes."""


def folder(version: str) -> Path:
    return HOME / version


def environment(version: str) -> dict[str, str]:
    """Environment variables under which a new Python has that Triton, with everything else as installed."""
    path = [str(folder(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
    cache = HOME / f"{version}-cache"
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "TRITON_CACHE_DIR": str(cache)}


def install(version: str) -> str | None:
    """Make a version's folder unless it is there; gives pip's reason where it cannot be had.

    The folder appears all at once, so that a run that is cut off leaves none, and of two runs one makes it.
    """
    if folder(version).is_dir():
        return None
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME, prefix=f".{version}-") as aside:
        made = Path(aside) / "made"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=1"]
        done = subprocess.run([*pip, f"--target={made}", f"triton=={version}"], capture_output=True, text=True)
        if done.returncode != 0:
            errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return "; ".join(errors) or f"pip ended with {done.returncode}: {done.stderr.strip()[-500:]}"
        try:
            made.rename(folder(version))
        except OSError:
            if not folder(version).is_dir():
                raise
    return None


if __name__ == "__main__":
    for version in VERSIONS:
        reason = install(version)
        if reason is not None:
            print(f"Triton {version} cannot be had here, and is not tested: {reason}")
