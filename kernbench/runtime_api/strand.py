"""A flow of control that runs until it gives way: a greenlet.

The scheduler needs nothing else from it, so ranks on operating-system threads would be a second class with these four
methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class _Greenlet(greenlet):
    strand: Strand


class Strand:
    """Runs ``fn()``; what it raised is in :attr:`error` once it has ended."""

    def __init__(self, fn: Callable[[], Any]) -> None:
        self._fn = fn
        self._greenlet = _Greenlet(self._body)
        self._greenlet.strand = self
        self.ended = False
        self.error: BaseException | None = None
        self.local: dict[str, Any] = {}
        """What belongs to this flow of control, by whom it is for."""

    def resume(self) -> None:
        """Run it, from whoever calls, until it gives way or ends."""
        self._greenlet.parent = getcurrent()
        self._greenlet.switch()

    def give_way(self) -> None:
        """Called within it: back to whoever resumed it."""
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch()

    def _body(self) -> None:
        try:
            self._fn()
        except GreenletExit:
            raise  # nobody will ever resume it again, and it is being thrown away
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True

    @staticmethod
    def current() -> Strand | None:
        """The strand that is running now; None in the main program."""
        now: Any = getcurrent()
        while now is not None:
            if isinstance(now, _Greenlet):
                return now.strand
            now = now.parent
        return None
