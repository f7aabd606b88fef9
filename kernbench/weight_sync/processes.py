"""What is known of other processes."""

from __future__ import annotations

import os


def is_alive(pid: int) -> bool:
    """Whether a process of that number exists. Where that cannot be asked harmlessly (Windows), it is taken to."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
