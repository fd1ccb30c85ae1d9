"""A collector for prometheus_client: what pools have counted, read when somebody scrapes.

Between scrapes nothing is done, and pools are held weakly.
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
    "max_connections": ("The most there may be; 0: no bound.", lambda stats: stats.max_size),
    "requests_waiting": ("Requests that wait for a connection.", lambda stats: stats.waiting),
}
COUNTERS: dict[str, tuple[str, Callable[[PoolStats], int]]] = {
    "requests": (
        "Requests for a connection that were served, have failed or were cancelled.",
        lambda stats: stats.requests - stats.waiting,
    ),
    "requests_queued": ("Those that had to wait.", lambda stats: stats.requests_queued),
    "requests_shared": (
        "One-shot statements on a connection that they share.",
        lambda stats: stats.requests_shared,
    ),
    "requests_failed": ("Ended in an error of the pool.", lambda stats: stats.requests_failed),
    "requests_timed_out": ("Their time was up.", lambda stats: stats.requests_timed_out),
    "requests_cancelled": (
        "Their caller was cancelled while waiting.",
        lambda stats: stats.requests_cancelled,
    ),
    "connects": ("Attempts to open a connection.", lambda stats: stats.connects),
    "connects_failed": ("Those that failed.", lambda stats: stats.connects_failed),
    "connections_lost": ("Connections that broke while idle.", lambda stats: stats.lost),
    "returns_bad": ("Connections that came back broken.", lambda stats: stats.returns_bad),
    "leaks": ("Leases above leak_timeout, or taken back.", lambda stats: stats.leaks),
}
TIMES: dict[str, tuple[str, Callable[[PoolStats], Times]]] = {
    "wait_seconds": ("Waits of those who had to, also in vain.", lambda stats: stats.wait),
    "use_seconds": ("From borrowing to returning.", lambda stats: stats.use),
    "connect_seconds": ("Connects that succeeded.", lambda stats: stats.connect),
    "ping_seconds": ("Pings that were answered.", lambda stats: stats.ping),
}
EVERY = 4
"""Of four buckets to a doubling one is told: 22 series for each histogram, exact where they are."""


class PoolCollector(Collector):
    """The metrics of some pools, each labelled with its pool's name.

    A pool is among them while it is open; none is kept alive.

    Args:
        pools: some to begin with.
        registry: where it is registered; None: nowhere, it is for you to do.
        prefix: what all names begin with.

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
        """Take one more pool in.

        Raises:
            TypeError: it is none.
            ValueError: another one has its name.
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
        """Leave a pool out from now on."""
        self._pools = [each for each in self._pools if each() not in (pool, None)]

    def describe(self) -> list[Metric]:
        """The names alone, so that registering reads no pool."""
        return list(self._families({}))

    def collect(self) -> Iterator[Metric]:
        """All numbers of this moment; from any thread."""
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
