"""``python -m kernbench.triton script.py [arguments]``: run a script that expects a GPU."""

from __future__ import annotations

import runpy
import sys

from kernbench.triton import impersonate


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m kernbench.triton SCRIPT.py [arguments of the script]")
    del sys.argv[0]
    with impersonate():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
