"""What can go wrong between ranks."""

from __future__ import annotations


class DeadlockError(RuntimeError):
    """No rank can go on. The message says who waits for whom, in which call and at which line."""


class MismatchError(RuntimeError):
    """Ranks entered one collective with different calls. The message lists each rank's call and line."""


class InFlightError(RuntimeError):
    """A tensor was touched while an asynchronous collective still works on it."""


class ContextError(RuntimeError):
    """A context was used outside its ``with`` block, or by a flow of control that has no part in it."""
