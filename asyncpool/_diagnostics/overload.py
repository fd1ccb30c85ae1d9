"""Whether a pool is overloaded, in sentences for `explain()`: it gets more requests than it serves.

It is if a request was refused within the last ten seconds, or if the wait queue has not been empty
for longer than the pool's `timeout`, although connections are returned and no more may be opened.
"""

from __future__ import annotations

import math
from typing import Any

from asyncpool._core.pool import Core
from asyncpool._core.waiting import CALM
from asyncpool.stats import PoolStats

REASONS = {
    "refused_deadline": "could not have been served within their time limit",
    "refused_patience": "could not have been served before their callers would have been cancelled",
    "refused_standing": 'found a wait queue that did not drain (overload="refuse")',
    "refused_full": "found max_waiting requests waiting",
}
"""The counters of refused requests, and what is said of the requests."""

MORE = (
    "the pool gets more requests than it serves: use each connection for a shorter time, or raise"
    " max_size if the server has idle cores and room for more connections"
)


def overload(core: Core[Any], stats: PoolStats, now: float) -> list[str]:
    """Return what is to be said of an overload; nothing if there is none."""
    if not _is_overloaded(core, stats, now):
        return []
    found = []
    if stats.requests_refused:
        reasons = ", ".join(
            f"{number} {reason}"
            for name, reason in REASONS.items()
            if (number := getattr(stats, name))
        )
        age = now - core.refused_at  # infinite, if only turns were refused
        last = f", the last one {age:.1f} s ago" if age < math.inf else ""
        found.append(
            f"{stats.requests_refused} of {stats.requests} requests were refused since the pool"
            f" was made{last}: {reasons}"
        )
    if stats.standing:
        pace = ""
        if stats.service_rate:
            pace = (
                f": {stats.service_rate:.3g} requests a second are served, and a new one would wait"
                f" for {stats.expected_wait:.3g} s"
            )
        found.append(f"the wait queue has not been empty for {stats.standing:.1f} s{pace}")
    if stats.patience != math.inf:
        found.append(f"callers cancel their requests after about {stats.patience:.3g} s")
    return found


def overload_advice(core: Core[Any], stats: PoolStats, now: float) -> list[str]:
    """Return what the application can do about an overload."""
    if not _is_overloaded(core, stats, now):
        return []
    found = [MORE]
    if core.settings.overload == "wait":
        found.append(
            'if the server is the limit, set overload="refuse": while the wait queue does not'
            " drain, further requests are refused at once, and the others are served in time"
        )
    found.append("answer a refused request with 503, and with the error's retry_after")
    return found


def _is_overloaded(core: Core[Any], stats: PoolStats, now: float) -> bool:
    if core.closed:
        return False
    if now - core.refused_at <= CALM:
        return True
    # Requests of a pool that may grow wait for connects.
    stands = stats.standing > core.settings.timeout and core.ledger.is_full()
    return stands and stats.service_rate > 0
