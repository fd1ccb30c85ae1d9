"""Keeps an event loop awake for the moment in which a single statement is about to be answered.

A loop that waits sleeps in the kernel. Where its CPU then sleeps too, the loop wakes up 50 us and
more after the answer has come, which is longer than the server takes for a short statement. So the
loop polls its sockets for a moment after a statement was sent, without sleeping.

It does so only while no other statement is under way on the loop, as there is other work otherwise,
and rarely on a connection whose answers take longer. Other callbacks run meanwhile as they would.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import Context
from time import monotonic

MOMENT = 0.0001
"""Seconds after which an answer is not waited for any more without sleeping."""
MAX_MISSES = 6
"""After so many late answers in succession, one in 64 statements is waited for so."""

_NO_VARIABLES = Context()


class Statements:
    """The number of statements that are under way on one event loop."""

    __slots__ = ("__weakref__", "active")

    def __init__(self) -> None:
        self.active = 0


_by_loop = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Statements]()


def statements_on(loop: asyncio.AbstractEventLoop) -> Statements:
    """Return the statements that are under way on an event loop."""
    return _by_loop.setdefault(loop, Statements())


class Awake:
    """Keeps the loop of one connection awake."""

    __slots__ = ("_loop", "_misses", "_skipped", "_until", "_waits", "statements")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.statements = statements_on(loop)
        """The statements on all connections of the loop, which their senders count."""
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
            self._waits = True
            self._loop.call_soon(self._turn, context=_NO_VARIABLES)

    def _turn(self) -> None:
        """Keep the loop awake for one more turn, if the only statement is still under way."""
        if self.statements.active != 1:
            self._waits, self._misses = False, 0
        elif monotonic() < self._until:
            self._loop.call_soon(self._turn, context=_NO_VARIABLES)
        else:
            self._waits = False
            self._misses = min(self._misses + 1, MAX_MISSES)
            self._skipped = 2**self._misses - 1
