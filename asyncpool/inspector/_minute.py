"""The last minute of a pool: differences between two of its snapshots."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

from asyncpool import PoolStats, Times

SPAN = 60.0
"""Seconds that the numbers are of, once the feed has run as long."""
STEP = 5.0
"""Seconds from one kept snapshot to the next: a minute is at most this much too long."""
COUNTERS = (
    "requests",
    "requests_queued",
    "requests_shared",
    "requests_failed",
    "requests_timed_out",
    "requests_refused",
    "requests_cancelled",
    "connects",
    "connects_failed",
    "lost",
)


class Minute:
    """Some snapshots of the last minute, the oldest first."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, PoolStats]] = deque()

    def add(self, at: float, stats: PoolStats) -> None:
        """Keep a snapshot made at an instant, unless the last one kept is recent."""
        kept = self._kept
        if kept and stats.requests < kept[-1][1].requests:
            kept.clear()  # the pool was opened again on another event loop, and counts anew
        if not kept or at - kept[-1][0] >= STEP:
            kept.append((at, stats))
        while len(kept) > 1 and at - kept[1][0] >= SPAN:
            kept.popleft()

    def until(self, at: float, stats: PoolStats) -> dict[str, Any]:
        """Return what was counted and measured until a snapshot, as a dict of JSON types."""
        since, before = self._kept[0] if self._kept else (at, stats)
        counted = {name: max(0, getattr(stats, name) - getattr(before, name)) for name in COUNTERS}
        return {
            "seconds": at - since,
            **counted,
            "wait": between(before.wait, stats.wait),
            "hold": between(before.use, stats.use),
        }


def between(before: Times, now: Times) -> dict[str, Any]:
    """Return the distribution of the durations that came between two snapshots.

    Its buckets are those with durations: lower bound, upper bound and number. An upper bound is
    None if there is none.
    """
    counts = [
        (edge, (total - earlier))
        for (edge, total), (_, earlier) in zip(now.buckets, before.buckets, strict=True)
    ]
    edges = [0.0, *(edge for edge, _ in now.buckets)]
    single = [counts[0][1], *(after - upto for (_, upto), (_, after) in pairwise(counts))]
    buckets = [
        (lower, upper, number)
        for (lower, upper), number in zip(pairwise(edges), single, strict=True)
        if number > 0
    ]
    count = sum(number for *_, number in buckets)
    if not count:
        return {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None,
                "buckets": []}  # fmt: skip
    longest = min(buckets[-1][1], now.max)
    p50, p90, p99 = (_quantile(buckets, count, longest, q) for q in (0.5, 0.9, 0.99))
    return {
        "count": count,
        "mean": max(0.0, now.sum - before.sum) / count,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": longest,
        "buckets": [
            [lower, None if upper == float("inf") else upper, number]
            for lower, upper, number in buckets
        ],
    }


def _quantile(
    buckets: list[tuple[float, float, int]], count: int, longest: float, q: float
) -> float:
    rank, seen = q * count, 0
    for lower, upper, number in buckets:
        if seen + number >= rank:
            upto = min(upper, longest)
            return lower + max(0.0, upto - lower) * (rank - seen) / number
        seen += number
    return longest
