"""What a pool knows of connects that fail, and when it may try again: pure numbers, no sleeping.

Delays double from `FIRST` up to `CAP`, each shortened by up to half at random ("equal jitter"), so
that many processes do not knock in step on a server that has just come back. Where access is
refused that takes much longer, unless somebody waits: each attempt may count against the account.
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from random import Random

from asyncpool.faults import Fault

FIRST = 0.05
CAP = 1.0
REFUSED_CAP = 30.0
"""Where access is refused, and nobody waits."""


def delay(failures: int, random: Random, first: float = FIRST, cap: float = CAP) -> float:
    """The pause in seconds after so many failures in a row, the first being 1."""
    longest = min(cap, first * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1.0)


class Outage:
    """A run of failed connects; false while connecting works. Instants are `loop.time()`."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.failures = 0
        self.since = 0.0
        self.retry_at = 0.0
        """When the next connect may start for somebody who waits."""
        self.rest_until = 0.0
        """When it may for nobody."""
        self.error: Exception | None = None
        self.fault: Fault | None = None
        """Of the last failure."""
        self.told = False
        """Whether the user was told that it lasts."""

    def __bool__(self) -> bool:
        return self.failures > 0

    def failed(
        self, now: float, error: Exception, began: float, fault: Fault | None = None
    ) -> None:
        """One more connect has failed; the next may start at `retry_at`.

        Those that began before the outage fail with it, and do not prolong the pause.
        """
        self.error, self.fault = error, fault
        if self.failures and began <= self.since:
            return
        if not self.failures:
            self.since = now
        self.failures += 1
        if fault is Fault.ACCESS:
            self.retry_at = now + delay(1, self._random, CAP)
            self.rest_until = now + delay(self.failures, self._random, CAP, REFUSED_CAP)
        else:
            self.retry_at = self.rest_until = now + delay(self.failures, self._random)

    def is_hopeless(self, now: float, patience: float) -> bool:
        """Whether there is no use in waiting: access is refused, or it has lasted that long."""
        return self.failures > 0 and (self.fault is Fault.ACCESS or now - self.since >= patience)

    def end(self) -> None:
        """A connect has succeeded."""
        self.failures = 0
        self.error = self.fault = None
        self.told = False
