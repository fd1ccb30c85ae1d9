"""A collector for prometheus_client: it reads the pools' counters at each scrape.

It does no work between scrapes, and holds the pools weakly.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from asyncpool import AsyncConnectionPool, PoolStats, Times

__all__ = ["PoolCollector"]

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


class PoolCollector(Collector):
    """The metrics of some pools, each labelled with its pool's name.

    A pool's metrics are exported while it is open. The collector keeps no pool alive.

    Args:
        pools: the first pools; `add` adds others.
        registry: the registry to register with; None: none, register it yourself.
        prefix: the prefix of all names.

    Raises:
        ValueError: two pools have the same name.
    """

    def __init__(
        self,
        *pools: AsyncConnectionPool[Any],
        registry: CollectorRegistry | None = REGISTRY,
        prefix: str = "asyncpool",
    ) -> None:
        self._pools: list[weakref.ref[AsyncConnectionPool[Any]]] = []
        self._prefix = prefix
        for pool in pools:
            self.add(pool)
        if registry is not None:
            registry.register(self)

    def add(self, pool: AsyncConnectionPool[Any]) -> None:
        """Add a pool.

        Raises:
            TypeError: the argument is no pool.
            ValueError: another pool has the same name.
        """
        if not isinstance(pool, AsyncConnectionPool):
            msg = f"only an AsyncConnectionPool has these metrics: got {pool!r}"
            raise TypeError(msg)
        others = (each() for each in self._pools)
        if any(each.name == pool.name for each in others if each not in (pool, None)):
            msg = f"two pools are named {pool.name!r}: give each a name= of its own"
            raise ValueError(msg)
        self.remove(pool)
        self._pools.append(weakref.ref(pool))

    def remove(self, pool: AsyncConnectionPool[Any]) -> None:
        """Remove a pool."""
        self._pools = [each for each in self._pools if each() not in (pool, None)]

    def describe(self) -> list[Metric]:
        """Return the metrics without samples, so that registering reads no pool."""
        return list(self._families({}))

    def collect(self) -> Iterator[Metric]:
        """Read the current numbers of all open pools; callable from any thread."""
        pools = (each() for each in self._pools)
        open_ones = (pool for pool in pools if pool is not None and not pool.closed)
        yield from self._families({pool.name: pool.stats() for pool in open_ones})

    def _families(self, found: dict[str, PoolStats]) -> Iterator[Metric]:
        def named(name: str) -> str:
            return f"{self._prefix}_{name}"

        sizes = GaugeMetricFamily(
            named("connections"), "Connections by state.", labels=["pool", "state"]
        )
        for name, stats in found.items():
            for state in STATES:
                sizes.add_metric([name, state], getattr(stats, state))
        yield sizes
        for key, (text, read) in GAUGES.items():
            gauge = GaugeMetricFamily(named(key), text, labels=["pool"])
            for name, stats in found.items():
                gauge.add_metric([name], read(stats))
            yield gauge
        for key, (text, read) in COUNTERS.items():
            counter = CounterMetricFamily(named(key), text, labels=["pool"])
            for name, stats in found.items():
                counter.add_metric([name], read(stats))
            yield counter
        for key, (text, read_times) in TIMES.items():
            histogram = HistogramMetricFamily(named(key), text, labels=["pool"])
            for name, stats in found.items():
                times = read_times(stats)
                histogram.add_metric([name], _buckets(times), times.sum)
            yield histogram


def _buckets(times: Times) -> list[tuple[str, float]]:
    *bounded, last = times.buckets
    return [(_edge(edge), upto) for edge, upto in [*bounded[::EVERY], last]]


def _edge(edge: float) -> str:
    return "+Inf" if edge == math.inf else f"{edge:.6g}"
