"""What a pool knows of connects that fail, and when it may try again: pure numbers, no sleeping.

Delays double from `FIRST` up to a cap, each shortened by up to half at random ("equal jitter"), so
that many processes do not knock in step on a server that has just come back. They are shorter while
somebody waits, and longer where the server has refused: each attempt is work for it, and may count
against the account.
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from random import Random

from asyncpool.faults import Fault

FIRST = 0.05
CAP = 0.5
"""While somebody waits."""
IDLE_CAP = 1.0
"""While nobody does, and where the server has refused."""
REFUSED_CAP = 30.0
"""Where it has refused access, and nobody waits."""
LAPSE = 5.0
"""Seconds without a connect that was due, after which an outage is no longer believed in."""
GRACE = 15.0
"""Seconds for which refused access is believed to be a mistake, where it was given before."""


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
        self.idle_retry_at = 0.0
        """When it may for nobody."""
        self.error: Exception | None = None
        self.fault: Fault | None = None
        """Of the last failure."""
        self.reported = False
        """Whether the user was told that it lasts."""
        self.ever_worked = False
        """Whether connecting has worked before it."""

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
        if not self.failures or self.has_lapsed(began):
            self.failures, self.since, self.reported = 0, now, False
        self.failures += 1
        if fault is Fault.ACCESS and not self._may_be_temporary(now):
            self.retry_at = now + delay(1, self._random, first=IDLE_CAP, cap=IDLE_CAP)
            rest = delay(self.failures, self._random, first=IDLE_CAP, cap=REFUSED_CAP)
            self.idle_retry_at = now + rest
        else:
            self.idle_retry_at = now + delay(self.failures, self._random, cap=IDLE_CAP)
            soon = now + delay(self.failures, self._random)
            self.retry_at = self.idle_retry_at if fault is Fault.CAPACITY else soon

    def is_unavailable(self, now: float, limit: float) -> bool:
        """Whether there is no use in waiting: access is refused, or it has lasted that long."""
        if not self.failures or self.has_lapsed(now):
            return False
        refused = self.fault is Fault.ACCESS and not self._may_be_temporary(now)
        lasting = now - self.since >= limit and self.fault is not Fault.CAPACITY
        return refused or lasting

    def has_lapsed(self, now: float) -> bool:
        """Whether nobody has tried for so long that nothing is known of it: nobody had to."""
        return self.failures > 0 and now > self.idle_retry_at + LAPSE

    def _may_be_temporary(self, now: float) -> bool:
        """Whether access may be given again in a moment, as in a change of passwords."""
        return self.ever_worked and now - self.since < GRACE

    def end(self) -> None:
        """A connect has succeeded, or nothing is known of it any more."""
        self.failures = 0
        self.error = self.fault = None
        self.reported = False
