"""Keeps an event loop awake for the moment in which a single statement is about to be answered.

A loop that waits sleeps in the kernel. Where its CPU then sleeps too, the loop wakes up 50 us and
more after the answer has come, which is longer than the server takes for a short statement. So the
loop polls its sockets for a moment after a statement was sent, without sleeping.

It does so only while no other statement is under way on the loop, as there is other work otherwise,
and rarely where the answers take longer. Other callbacks run meanwhile as they would.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import Context
from time import monotonic

MOMENT = 0.0001
"""Seconds after which an answer is not waited for any more without sleeping."""
MAX_MISSES = 6
"""After so many late answers in succession, one in 65 statements is waited for so."""

_NO_VARIABLES = Context()


class Awake:
    """Keeps one event loop awake."""

    __slots__ = ("__weakref__", "_loop", "_misses", "_skipped", "_until", "_waits", "active")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.active = 0
        """The number of statements that are under way on the loop; their senders count them."""
        self._loop = weakref.ref(loop)
        self._until = 0.0
        """The instant at which the loop may sleep, by `time.monotonic`."""
        self._waits = False
        """Whether `_turn` is scheduled."""
        self._misses = 0
        """The number of late answers since the last one that came in time."""
        self._skipped = 0
        """The number of statements that are not to keep the loop awake, before one may again."""

    def sent_alone(self) -> None:
        """Keep the loop awake for a statement that was sent, if it is the only one under way."""
        if self._skipped:
            self._skipped -= 1
            return
        self._until = monotonic() + MOMENT
        if self._waits:
            self._misses = 0  # the statement before this one was answered in time
        else:
            self._schedule()

    def _turn(self) -> None:
        """Keep the loop awake for one more turn, if the only statement is still under way."""
        self._waits = False
        if self.active != 1:
            self._misses = 0
        elif monotonic() < self._until:
            self._schedule()
        else:
            self._misses = min(self._misses + 1, MAX_MISSES)
            self._skipped = 2**self._misses

    def _schedule(self) -> None:
        if (loop := self._loop()) is not None:
            loop.call_soon(self._turn, context=_NO_VARIABLES)
            self._waits = True


_by_loop = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Awake]()


def awake_of(loop: asyncio.AbstractEventLoop) -> Awake:
    """Return what keeps an event loop awake."""
    found = _by_loop.get(loop)
    if found is None:
        found = _by_loop[loop] = Awake(loop)
    return found
