"""Measures how fast waiters are served, only while some wait.

Without waiters the rate says how many requests arrive; with waiters it says what the pool can do.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque

STEP = 16
"""Hand-overs between two marks, and the fewest that make a rate: its error is then a quarter."""
MARKS = 256
"""The most marks that are kept."""


class ServiceRate:
    """The rate of hand-overs in a queue, a line or a flow, on the queue's clock."""

    __slots__ = ("_busy", "_ended_at", "_marks", "count", "since")

    def __init__(self) -> None:
        self.count = 0
        """The hand-overs so far."""
        self.since = math.inf
        """The instant from which there have been waiters without a break."""
        self._busy = 0.0
        """The time in which there were waiters, before `since`."""
        self._ended_at = -math.inf
        """The instant at which the last waiter left."""
        self._marks: deque[float] = deque(maxlen=MARKS)
        """The value of the busy time at each STEP-th hand-over; the count begins with the first."""

    def begin(self, now: float) -> bool:
        """Note that requests wait again; forget what is older than the pause was long.

        Returns:
            Whether nothing is known of the time before.
        """
        marks, now = self._marks, max(now, self._ended_at)  # one that rejoins came earlier
        is_new = not marks or now - self._ended_at > self._busy - marks[0]
        if is_new:
            marks.clear()
            marks.append(self._busy)
            self.count = 0
        self.since = now
        return is_new

    def end(self, now: float) -> None:
        """Note that the last waiter has left."""
        self._busy += max(now - self.since, 0.0)
        self.since, self._ended_at = math.inf, now

    def note(self, now: float) -> None:
        """Count a hand-over. The wait queue does it itself, to save a call."""
        self.count += 1
        if not self.count % STEP:
            self.mark(now)

    def mark(self, now: float) -> None:
        """Note the instant of a hand-over whose number is a multiple of STEP."""
        self._marks.append(self._busy + now - self.since)

    def measure_or_bound(self, window: float, patience: float, now: float) -> float:
        """Return the rate, or an upper bound if it is not known after `patience` seconds.

        In that time there were fewer than STEP hand-overs. Before it, return 0.0.
        """
        rate, stands = self.measure(window, now), now - self.since
        return rate or (STEP / stands if stands > patience else 0.0)

    def measure(self, window: float, now: float) -> float:
        """Return the hand-overs a second in the last `window` seconds in which the line waited.

        Where these were fewer than STEP, the window is longer. 0.0: there were fewer altogether.
        """
        marks, busy = self._marks, self._busy
        if now > self.since:
            busy += now - self.since
        last = len(marks) - 1
        if last < 1:
            return 0.0
        first = bisect_left(marks, busy - window, 0, last - 1)
        served = (last - first) * STEP + self.count % STEP
        return served / max(busy - marks[first], 1e-9)
