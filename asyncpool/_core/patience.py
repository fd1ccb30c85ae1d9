"""How long callers wait for their work before they are cancelled, learnt from those that are.

A pool cannot see the deadline of an `asyncio.timeout` around its caller. When many requests that
had to wait end in a cancellation, at the same age, that age is such a deadline.
"""

from __future__ import annotations

import math
from collections import deque

ENOUGH = 16
"""The fewest cancellations from which something is learnt."""
SHARE = 4
"""They count if there were fewer than SHARE hand-overs for each of them: then they are no
accidents, as clients that disconnect are."""


class Patience:
    """The patience of the callers in one line; durations are seconds."""

    __slots__ = ("_ages", "_last", "_outlasted", "limit")

    def __init__(self) -> None:
        self.limit = math.inf
        """The age at which callers cancel their requests; infinite: they do not."""
        self._ages: deque[tuple[float, int]] = deque(maxlen=ENOUGH)
        """The age of each cancelled request, and the number of hand-overs until then."""
        self._last = -math.inf
        """The instant of the last cancellation."""
        self._outlasted = 0
        """Waits longer than `limit` since the last cancellation."""

    def begin(self, now: float) -> None:
        """Note that requests wait again; forget a limit that nothing has confirmed for long."""
        if self.limit != math.inf and now - self._last > ENOUGH * self.limit:
            self._forget()

    def note_cancelled(self, age: float, served: int, now: float) -> None:
        """Learn from a request that had waited and was cancelled, in the queue or in its use.

        Args:
            age: the time since it was made.
            served: the hand-overs of the line so far.
            now: the current instant.
        """
        ages = self._ages
        if ages and served < ages[-1][1]:
            ages.clear()  # the line has begun a new count
        ages.append((age, served))
        self._last, self._outlasted = now, 0
        if len(ages) == ENOUGH and served - ages[0][1] < SHARE * ENOUGH:
            self.limit = sorted(each for each, _ in ages)[ENOUGH // 4]

    def note_served(self) -> None:
        """Note a request that waited longer than `limit` and was not cancelled."""
        self._outlasted += 1
        if self._outlasted == ENOUGH:
            self._forget()

    def _forget(self) -> None:
        self.limit, self._outlasted = math.inf, 0
        self._ages.clear()
