"""Learns after how long callers are cancelled, from those that are.

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
APART = 256
"""Requests that came or went together, within their age / APART, are counted once: they may be the
tasks of one group."""
OUTLIVED = 1.25
"""The multiple of their age that no request which still waits may have reached."""


class Patience:
    """The patience of the callers in one line; durations are seconds."""

    __slots__ = ("_ages", "_cancelled", "_joined_at", "_last", "_outlasted", "_trusted_at", "limit")

    def __init__(self) -> None:
        self.limit = math.inf
        """The age at which callers cancel their requests; infinite: they do not."""
        self._ages: deque[tuple[float, int, int]] = deque(maxlen=ENOUGH)
        """The age of each counted cancellation; the hand-overs and all cancellations until then."""
        self._cancelled = 0
        """The number of all cancellations."""
        self._last = -math.inf
        """The instant of the last counted cancellation."""
        self._joined_at = -math.inf
        """When the request of the last counted cancellation was made."""
        self._outlasted = 0
        """Waits longer than `limit` since the last cancellation."""
        self._trusted_at = -math.inf
        """The instant from which the limit holds: its last confirmation or extension."""

    def is_doubtful(self, now: float) -> bool:
        """Whether no cancellation has confirmed the limit for long."""
        return self.limit != math.inf and now - self._trusted_at > ENOUGH * self.limit

    def expire(self, now: float) -> None:
        """Forget a doubtful limit, as requests begin to wait."""
        if self.is_doubtful(now):
            self._forget()

    def extend(self, now: float, oldest: float) -> None:
        """Double a doubtful limit while requests wait: it may be what prevents cancellations.

        Were it forgotten, the queue would grow until callers are cancelled again.

        Args:
            now: the current instant.
            oldest: the age of the oldest request that waits.
        """
        if oldest > OUTLIVED * self.limit:
            self._forget()
        else:
            self.limit *= 2.0
            self._trusted_at = now

    def note_cancelled(self, joined_at: float, now: float, *, served: int, oldest: float) -> None:
        """Learn from a request that had waited and was cancelled, in the queue or in its use.

        Args:
            joined_at: when it was made.
            now: the current instant.
            served: the hand-overs of the queue so far.
            oldest: the age of the oldest request that waits.
        """
        ages, age = self._ages, now - joined_at
        self._outlasted = 0
        self._cancelled += 1
        if min(now - self._last, abs(joined_at - self._joined_at)) <= age / APART:
            return
        if ages and served < ages[-1][1]:
            ages.clear()  # the queue has begun a new count
        self._last = self._trusted_at = now
        self._joined_at = joined_at
        ages.append((age, served, self._cancelled))
        _, served_before, cancelled_before = ages[0]
        often = served - served_before < SHARE * (self._cancelled - cancelled_before + 1)
        if len(ages) == ENOUGH and often:
            limit = sorted(each for each, _, _ in ages)[ENOUGH // 4]
            if oldest <= OUTLIVED * limit:
                self.limit = limit

    def note_served(self) -> None:
        """Note a request that waited longer than `limit` and was not cancelled."""
        self._outlasted += 1
        if self._outlasted == ENOUGH:
            self._forget()

    def _forget(self) -> None:
        self.limit, self._outlasted = math.inf, 0
        self._ages.clear()
