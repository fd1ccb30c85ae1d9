"""The state of an outage: how often connecting has failed, and when to try again. It never sleeps.

Delays double from `FIRST` up to a cap; each is shortened at random by up to half ("equal jitter"),
so that many processes do not reconnect to a recovered server at the same moment. Delays are shorter
while a request waits. They are longer where the server refuses access, because each attempt costs
the server work and may count against the account.
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from random import Random

from asyncpool.faults import Fault

FIRST = 0.05
CAP = 0.5
"""The longest delay while a request waits."""
IDLE_CAP = 1.0
"""The longest delay while none waits, or while the server refuses connections."""
REFUSED_CAP = 30.0
"""The longest delay while the server refuses access and no request waits."""
LAPSE = 5.0
"""Seconds without a connect, after `idle_retry_at`, until the outage lapses."""
GRACE = 15.0
"""Seconds for which refused access counts as temporary, if connecting has worked before."""


def delay(failures: int, random: Random, first: float = FIRST, cap: float = CAP) -> float:
    """Return the delay in seconds after that many consecutive failures, the first being 1."""
    longest = min(cap, first * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1.0)


class Outage:
    """A series of failed connects; falsy while connecting works. Instants are `loop.time()`."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.failures = 0
        self.since = 0.0
        self.retry_at = 0.0
        """When the next connect may start if a request waits."""
        self.idle_retry_at = 0.0
        """When the next connect may start if none waits."""
        self.error: Exception | None = None
        self.fault: Fault | None = None
        """The fault of the last failure."""
        self.reported = False
        """Whether `reconnect_failed` was called for this outage."""
        self.ever_worked = False
        """Whether a connect has ever succeeded."""

    def __bool__(self) -> bool:
        return self.failures > 0

    def failed(
        self,
        now: float,
        error: Exception,
        began: float,
        fault: Fault | None = None,
        full_cap: float = IDLE_CAP,
    ) -> None:
        """Record a failed connect and set the next `retry_at`.

        A connect that began before the outage did not test the server again, so it does not extend
        the delay.

        Args:
            now: the current instant.
            error: the failure.
            began: when the connect started.
            fault: what the error means, if known.
            full_cap: the longest delay while the server refuses connections because it is full.
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
            cap = full_cap if fault is Fault.CAPACITY else CAP
            soon = now + delay(self.failures, self._random, cap=cap)
            self.retry_at = self.idle_retry_at if cap == IDLE_CAP else soon

    def is_unavailable(self, now: float, limit: float) -> bool:
        """Whether waiting is useless: access is refused, or it has lasted `limit` seconds.

        A server that is only full may have room at any time.
        """
        if not self.failures or self.has_lapsed(now):
            return False
        refused = self.fault is Fault.ACCESS and not self._may_be_temporary(now)
        lasting = now - self.since >= limit and self.fault is not Fault.CAPACITY
        return refused or lasting

    def has_lapsed(self, now: float) -> bool:
        """Whether no connect was needed for so long that the state of the server is unknown."""
        return self.failures > 0 and now > self.idle_retry_at + LAPSE

    def _may_be_temporary(self, now: float) -> bool:
        """Whether refused access may be temporary, as during a change of passwords."""
        return self.ever_worked and now - self.since < GRACE

    def end(self) -> None:
        """End the outage: a connect has succeeded, or the outage has lapsed."""
        self.failures = 0
        self.error = self.fault = None
        self.reported = False
