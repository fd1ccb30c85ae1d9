"""Snapshots of a pool: frozen, made on request, true at the instant when they were made."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

from asyncpool._core.counters import COUNTED, TIMES, Counters
from asyncpool._core.histogram import BOUNDS, Histogram

__all__ = ["PoolStats", "Times", "psycopg_keys"]

EDGES = (*BOUNDS, math.inf)
AT_MOST = ("standing", "expected_wait", "patience")
"""What is no sum over several pools, but the longest of theirs."""


@dataclass(frozen=True, slots=True)
class Times:
    """The distribution of a duration since the pool was made, in seconds.

    The quantiles are exact to a bucket, a factor of 1.19. If more than 1,024 durations arrive
    before the pool adds them to the buckets, the last ones represent the others; `count` and `sum`
    stay exact.
    """

    count: int = 0
    sum: float = 0.0
    max: float = 0.0
    """0.0 if `count` is 0."""
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    buckets: tuple[tuple[float, int], ...] = tuple((edge, 0) for edge in EDGES)
    """Upper bounds, each with the number of durations up to it; the last bound is infinite."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The sizes of a pool now, and its counters since it was made.

    `opening + idle + leased + cleaning + closing == size`. Times are exact sums in seconds.
    """

    name: str
    min_size: int
    max_size: int
    """0: no limit."""
    size: int
    opening: int
    idle: int
    leased: int
    cleaning: int
    """Connections that are rolled back, reset or pinged."""
    closing: int
    waiting: int
    """Requests in the wait queue."""
    standing: float
    """Seconds for which the wait queue has not been empty. This and the next three numbers are of
    the requests without a priority."""
    service_rate: float
    """Requests that get a connection each second while others wait; 0.0: not known, or no request
    waits."""
    expected_wait: float
    """Seconds that a new request would wait, on average; 0.0: not known, or no request waits."""
    patience: float
    """Seconds after which callers cancel their requests, as learnt from those that were cancelled;
    infinite: they do not."""
    requests: int
    """Requests that were served, failed, were cancelled, or wait."""
    requests_queued: int
    """Requests that had to wait; in a null pool, those for which no connection could be opened."""
    requests_shared: int
    """Requests that were one-shot statements on a shared connection."""
    requests_failed: int
    """Requests that ended in an error of the pool: a timeout, a refusal, a deadlock, or the pool
    closed."""
    requests_timed_out: int
    """The failed requests that ended in `PoolTimeout`."""
    requests_cancelled: int
    """Requests whose caller was cancelled while waiting; they do not count as failed."""
    refused_full: int
    """The failed requests that got `TooManyRequests` because `max_waiting` requests waited."""
    refused_deadline: int
    """Those that could not have been served within their time limit."""
    refused_patience: int
    """Those that could not have been served before their caller's cancellation, as learnt from
    other callers."""
    refused_standing: int
    """Those that `overload="refuse"` refused because the wait queue had stood for too long."""
    wait_time: float
    use_time: float
    returns_bad: int
    """Connections that were broken on their return."""
    connects: int
    """Attempts to open a connection."""
    connects_failed: int
    connect_time: float
    """Time of the connects that succeeded."""
    lost: int
    """Connections that broke while idle, found by a ping, a check or the socket watcher."""
    leaks: int
    """Leases that lasted longer than `leak_timeout`, or that the pool ended because no code could
    return the connection any more."""
    wait: Times
    """Waits of the requests that had to wait, including those that then failed."""
    use: Times
    """Leases, except those that one-shots share."""
    connect: Times
    """Connects that succeeded."""
    ping: Times
    """Pings that were answered."""

    @property
    def requests_refused(self) -> int:
        """The failed requests that got `TooManyRequests`, by whatever rule."""
        return (
            self.refused_full
            + self.refused_deadline
            + self.refused_patience
            + self.refused_standing
        )


def distributions(counters: Counters) -> dict[str, Times]:
    """Return the distributions of the durations; unchanged ones are not computed again."""
    found = {name: times(getattr(counters, name), counters.snapshots.get(name)) for name in TIMES}
    counters.snapshots = found
    return found


def times(histogram: Histogram, before: Times | None = None) -> Times:
    """Return the distribution of a histogram, or `before` if the histogram has not changed."""
    if before is not None and before.count == histogram.count:
        return before
    totals = list(accumulate(histogram.counts()))
    return _times(totals, histogram.sum, histogram.max)


def since(now: PoolStats, before: PoolStats) -> PoolStats:
    """Return the sizes of `now`, and what was counted between the two snapshots."""
    counted: dict[str, Any] = {name: getattr(now, name) - getattr(before, name) for name in COUNTED}
    distributions: dict[str, Any] = {
        name: _between(getattr(now, name), getattr(before, name)) for name in TIMES
    }
    return replace(now, requests=now.requests - before.requests, **counted, **distributions)


def together(name: str, parts: Sequence[PoolStats]) -> PoolStats:
    """Return the statistics of several pools as those of one.

    Args:
        name: the name for all.
        parts: the pools' statistics.
    """
    summed: dict[str, Any] = {
        each.name: sum(getattr(part, each.name) for part in parts)
        for each in fields(PoolStats)
        if each.name not in ("name", *AT_MOST, *TIMES)
    }
    longest: dict[str, Any] = {
        each: max((getattr(part, each) for part in parts), default=0.0) for each in AT_MOST
    }
    distributions: dict[str, Any] = {
        each: _summed([getattr(part, each) for part in parts]) for each in TIMES
    }
    return PoolStats(name=name, **summed, **longest, **distributions)


def psycopg_keys(stats: PoolStats, *, available: int | None = None) -> dict[str, int]:
    """Return the numbers under the keys of psycopg_pool's `get_stats`, times in whole ms.

    Args:
        stats: the numbers.
        available: the value of "pool_available"; None: the idle connections.
    """
    return {
        "pool_min": stats.min_size,
        "pool_max": stats.max_size,
        "pool_size": stats.size,
        "pool_available": stats.idle if available is None else available,
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
    """Return the distribution between two; its `max` is exact only if it is a new maximum."""
    pairs = zip(now.buckets, before.buckets, strict=True)
    totals = [after - earlier for (_, after), (_, earlier) in pairs]
    longest = now.max
    if longest == before.max:
        longest = min(EDGES[bisect_left(totals, totals[-1])], longest) if totals[-1] else 0.0
    return _times(totals, now.sum - before.sum, longest)


def _summed(parts: Sequence[Times]) -> Times:
    if not parts:
        return Times()
    columns = zip(*([number for _, number in part.buckets] for part in parts), strict=True)
    total, longest = sum(part.sum for part in parts), max(part.max for part in parts)
    return _times([sum(column) for column in columns], total, longest)


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
