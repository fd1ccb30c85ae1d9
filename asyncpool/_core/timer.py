"""A timer of the pool: one call of a method at an instant."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable
from contextvars import Context


class Timer:
    """Calls a method once, at the instant that was set last.

    The event loop holds neither the timer nor the owner of the method, so that a dropped pool is
    collected. The call runs in an empty context, which keeps no context variables of a request
    alive.

    Args:
        method: the bound method to call; it gets the instant for which the timer was set.
    """

    __slots__ = ("__weakref__", "_handle", "_method", "at")

    def __init__(self, method: Callable[[float], None]) -> None:
        self._method = weakref.WeakMethod(method)
        self._handle: asyncio.TimerHandle | None = None
        self.at = math.inf
        """The instant of the call; `math.inf` if none is planned."""

    def set(self, at: float) -> None:
        """Call the method at that instant, and not at the one set before."""
        self.cancel()
        loop = asyncio.get_running_loop()
        self._handle = loop.call_at(at, _call, weakref.ref(self), context=Context())
        # Kept here, because uvloop's handle of a call that is due at once has no `when()`.
        self.at = at

    def cancel(self) -> None:
        """Do not call the method."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self.at = None, math.inf

    def _call(self) -> None:
        due, self._handle, self.at = self.at, None, math.inf
        if (method := self._method()) is not None:
            method(due)


def _call(timer: weakref.ref[Timer]) -> None:
    if (alive := timer()) is not None:
        alive._call()
