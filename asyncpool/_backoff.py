"""What a pool knows of connects that fail, and when it may try again: pure numbers, no sleeping.

Delays double from `FIRST` up to `CAP`, each shortened by up to half at random ("equal jitter"), so
that many processes do not knock in step on a server that has just come back.
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from random import Random

FIRST = 0.05
CAP = 1.0


def delay(failures: int, random: Random) -> float:
    """The pause in seconds after so many failures in a row, the first being 1."""
    longest = min(CAP, FIRST * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1.0)


class Outage:
    """A run of failed connects; false while connecting works. Instants are `loop.time()`."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.failures = 0
        self.since = 0.0
        self.retry_at = 0.0
        self.error: Exception | None = None
        self.told = False
        """Whether the user was told that it lasts."""

    def __bool__(self) -> bool:
        return self.failures > 0

    def failed(self, now: float, error: Exception, began: float) -> None:
        """One more connect has failed; the next may start at `retry_at`.

        Those that began before the outage fail with it, and do not prolong the pause.
        """
        self.error = error
        if self.failures and began <= self.since:
            return
        if not self.failures:
            self.since = now
        self.failures += 1
        self.retry_at = now + delay(self.failures, self._random)

    def end(self) -> None:
        """A connect has succeeded."""
        self.failures = 0
        self.error = None
        self.told = False
