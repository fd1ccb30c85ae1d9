"""Snapshots of a pool: frozen, made on request, true for the instant in which they were made."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from asyncpool._core.counters import COUNTED, TIMES, Counters
from asyncpool._core.histogram import BOUNDS, Histogram

__all__ = ["PoolStats", "Times", "psycopg_keys"]

EDGES = (*BOUNDS, math.inf)


@dataclass(frozen=True, slots=True)
class Times:
    """How long something has taken, each time since the pool was made; in seconds.

    The quantiles are exact to a bucket, a factor of 1.19. Where more than 1,024 have come between
    two looks of the pool, the last of them stand for the others: `count` and `sum` stay exact.
    """

    count: int = 0
    sum: float = 0.0
    max: float = 0.0
    """0 where there were none."""
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    buckets: tuple[tuple[float, int], ...] = tuple((edge, 0) for edge in EDGES)
    """Upper bounds, and how many were not above each; the last bound is infinite."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The state of a pool, and what it has counted since it was made.

    `opening + idle + leased + cleaning + closing == size`. Times are seconds, summed over all
    requests and exact; nothing is rounded to milliseconds first.
    """

    name: str
    min_size: int
    max_size: int
    """0: there is no bound."""
    size: int
    opening: int
    idle: int
    leased: int
    cleaning: int
    """Being rolled back, reset or pinged."""
    closing: int
    waiting: int
    """Requests in the line."""
    requests: int
    """All that were served, have failed or were cancelled, or wait."""
    requests_queued: int
    """Those that had to wait."""
    requests_shared: int
    """Those that were one-shot statements on a connection that they share."""
    requests_failed: int
    """Those that ended in an error of the pool: no time or no room left, or the pool closed."""
    requests_timed_out: int
    """The part of them that ended in `PoolTimeout`."""
    requests_cancelled: int
    """Those whose caller was cancelled while waiting; they are not failures of the pool."""
    wait_time: float
    use_time: float
    returns_bad: int
    """Connections that came back broken."""
    connects: int
    """Attempts to open a connection."""
    connects_failed: int
    connect_time: float
    """Spent in those that succeeded."""
    lost: int
    """Connections that broke while idle: found by a ping, a check, or the watch."""
    leaks: int
    """Leases that lasted longer than `leak_timeout`, or were taken back as nobody could return
    them."""
    wait: Times
    """Of the requests that had to wait, also in vain."""
    use: Times
    """Of the leases, but for those that one-shots share."""
    connect: Times
    """Of the connects that succeeded."""
    ping: Times
    """Of the pings that were answered."""


def spread(counters: Counters) -> dict[str, Times]:
    """Return the durations that were counted; what has not changed is not computed again."""
    found = {name: times(getattr(counters, name), counters.snapshots.get(name)) for name in TIMES}
    counters.snapshots = found
    return found


def times(histogram: Histogram, before: Times | None = None) -> Times:
    """What a histogram has; nothing is computed where that is what it had before."""
    if before is not None and before.count == histogram.count:
        return before
    totals = list(accumulate(histogram.counts()))
    return _times(totals, histogram.sum, histogram.max)


def since(now: PoolStats, before: PoolStats) -> PoolStats:
    """The same sizes, and what was counted between the two."""
    counted: dict[str, Any] = {name: getattr(now, name) - getattr(before, name) for name in COUNTED}
    spread: dict[str, Any] = {
        name: _between(getattr(now, name), getattr(before, name)) for name in TIMES
    }
    return replace(now, requests=now.requests - before.requests, **counted, **spread)


def psycopg_keys(stats: PoolStats) -> dict[str, int]:
    """The same under the keys of psycopg_pool's `get_stats`, times in whole milliseconds."""
    return {
        "pool_min": stats.min_size,
        "pool_max": stats.max_size,
        "pool_size": stats.size,
        "pool_available": stats.idle,
        "requests_waiting": stats.waiting,
        "requests_num": stats.requests,
        "requests_queued": stats.requests_queued,
        "requests_wait_ms": round(stats.wait_time * 1000),
        "requests_errors": stats.requests_failed,
        "usage_ms": round(stats.use_time * 1000),
        "returns_bad": stats.returns_bad,
        "connections_num": stats.connects,
        "connections_ms": round(stats.connect_time * 1000),
        "connections_errors": stats.connects_failed,
        "connections_lost": stats.lost,
    }


def _between(now: Times, before: Times) -> Times:
    """The longest of it is not known to more than its bucket, but where it is one of all time."""
    pairs = zip(now.buckets, before.buckets, strict=True)
    totals = [after - earlier for (_, after), (_, earlier) in pairs]
    longest = now.max
    if longest == before.max:
        longest = min(EDGES[bisect_left(totals, totals[-1])], longest) if totals[-1] else 0.0
    return _times(totals, now.sum - before.sum, longest)


def _times(totals: list[int], total: float, longest: float) -> Times:
    p50, p90, p99 = (_quantile(totals, longest, q) for q in (0.5, 0.9, 0.99))
    return Times(totals[-1], total, longest, p50, p90, p99, tuple(zip(EDGES, totals, strict=True)))


def _quantile(totals: list[int], longest: float, q: float) -> float:
    if totals[-1] <= 0:
        return 0.0
    rank = q * totals[-1]
    place = bisect_left(totals, rank)
    lower, before = (EDGES[place - 1], totals[place - 1]) if place else (0.0, 0)
    upper = min(EDGES[place], longest)
    return lower + (upper - lower) * (rank - before) / (totals[place] - before)
