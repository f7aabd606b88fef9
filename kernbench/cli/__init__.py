"""The ``kernbench`` command."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def main() -> None:
    """Entry point of the ``kernbench`` command: errors are one clear message, and the exit code says what happened.

    0: done and all values match; 1: a check failed or something was wrong with the input; 2: wrong usage; 130: Ctrl-C.
    """
    try:
        from kernbench.cli.app import app
        from kernbench.cli.errors import explain

        try:
            app()
        except Exception as error:
            sys.exit(explain(error))
        except SystemExit as end:
            if end.code == INTERRUPTED:  # so Typer turns Ctrl-C into it, without a word
                print("interrupted", file=sys.stderr)
            raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
