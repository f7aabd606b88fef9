"""The ``kernbench`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``kernbench`` command: errors are one clear message, and the exit code says what happened.

    0: done and all values match; 1: a check failed or something was wrong with the input; 2: wrong usage.
    """
    from kernbench.cli.app import app
    from kernbench.cli.errors import explain

    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(explain(error))
