"""The numbers of a pool that Prometheus gets: their names, their texts, and where they are read."""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncpool import PoolStats, Times

STATES = ("opening", "idle", "leased", "cleaning", "closing")
GAUGES: dict[str, tuple[str, Callable[[PoolStats], int]]] = {
    "min_connections": ("Connections that are kept open.", lambda stats: stats.min_size),
    "max_connections": (
        "Maximum number of connections; 0: unlimited.",
        lambda stats: stats.max_size,
    ),
    "requests_waiting": ("Requests that wait for a connection.", lambda stats: stats.waiting),
}
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


def buckets(times: Times) -> list[tuple[str, float]]:
    """Return the exported buckets: the label of each bound, and the durations up to it."""
    *bounded, last = times.buckets
    return [(_edge(edge), upto) for edge, upto in [*bounded[::EVERY], last]]


def bounds() -> list[float]:
    """Return the bounds of the exported buckets as numbers, without the infinite one."""
    return [float(edge) for edge, _ in buckets(Times())[:-1]]


def _edge(edge: float) -> str:
    return "+Inf" if edge == math.inf else f"{edge:.6g}"
