"""The numbers of a pool that Prometheus gets: their names, their texts, and where they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from asyncpool import PoolStats, Times

STATES = ("opening", "idle", "leased", "cleaning", "closing")
RULES = ("full", "deadline", "patience", "standing")
"""The rules by which requests are refused."""
REFUSED = "requests_refused", "Requests refused at once with TooManyRequests, by rule."
"""The counter of these: its name and its text."""
GAUGES: dict[str, tuple[str, Callable[[PoolStats], float]]] = {
    "min_connections": ("Connections that are kept open.", lambda stats: stats.min_size),
    "max_connections": (
        "Maximum number of connections; 0: unlimited.",
        lambda stats: stats.max_size,
    ),
    "requests_waiting": ("Requests that wait for a connection.", lambda stats: stats.waiting),
    "service_rate": (
        "Requests that get a connection each second while others wait; 0: not known, or none wait.",
        lambda stats: stats.service_rate,
    ),
    "expected_wait_seconds": (
        "Mean wait of a request that would come now; 0: not known, or none wait.",
        lambda stats: stats.expected_wait,
    ),
    "standing_seconds": (
        "Time for which the wait queue has not been empty.",
        lambda stats: stats.standing,
    ),
    "patience_seconds": (
        "Time after which callers were found to cancel their requests; 0: not known.",
        lambda stats: 0.0 if stats.patience == math.inf else stats.patience,
    ),
}
LARGEST = {"expected_wait_seconds", "standing_seconds", "patience_seconds"}
"""The gauges of which several processes together report the largest, and not the sum."""
COUNTERS: dict[str, tuple[str, Callable[[PoolStats], int]]] = {
    "requests": (
        "Requests for a connection that were served, have failed or were cancelled.",
        lambda stats: stats.requests - stats.waiting,
    ),
    "requests_queued": ("Requests that had to wait.", lambda stats: stats.requests_queued),
    "requests_shared": (
        "One-shot statements that shared a connection.",
        lambda stats: stats.requests_shared,
    ),
    "requests_failed": (
        "Requests that ended in an error of the pool.",
        lambda stats: stats.requests_failed,
    ),
    "requests_timed_out": ("Requests that timed out.", lambda stats: stats.requests_timed_out),
    "requests_cancelled": (
        "Requests whose caller was cancelled while waiting.",
        lambda stats: stats.requests_cancelled,
    ),
    "connects": ("Attempts to open a connection.", lambda stats: stats.connects),
    "connects_failed": (
        "Failed attempts to open a connection.",
        lambda stats: stats.connects_failed,
    ),
    "connections_lost": ("Connections that broke while idle.", lambda stats: stats.lost),
    "returns_bad": ("Connections that came back broken.", lambda stats: stats.returns_bad),
    "leaks": ("Leases longer than leak_timeout, or taken back.", lambda stats: stats.leaks),
}
TIMES: dict[str, tuple[str, Callable[[PoolStats], Times]]] = {
    "wait_seconds": (
        "Waits of requests that had to wait, also of failed ones.",
        lambda stats: stats.wait,
    ),
    "use_seconds": ("Time from acquire to release.", lambda stats: stats.use),
    "connect_seconds": ("Duration of successful connects.", lambda stats: stats.connect),
    "ping_seconds": ("Duration of answered pings.", lambda stats: stats.ping),
}
EVERY = 4
"""Export every fourth bucket, one a doubling: 22 series for each histogram, with exact counts."""


def refused(stats: PoolStats) -> Iterator[tuple[str, int]]:
    """Yield each rule, and the number of requests that it has refused."""
    return ((rule, getattr(stats, f"refused_{rule}")) for rule in RULES)


def buckets(times: Times) -> list[tuple[str, float]]:
    """Return the exported buckets: the label of each bound, and the durations up to it."""
    *bounded, last = times.buckets
    return [(_edge(edge), upto) for edge, upto in [*bounded[::EVERY], last]]


def bounds() -> list[float]:
    """Return the bounds of the exported buckets as numbers, without the infinite one."""
    return [float(edge) for edge, _ in buckets(Times())[:-1]]


def _edge(edge: float) -> str:
    return "+Inf" if edge == math.inf else f"{edge:.6g}"
