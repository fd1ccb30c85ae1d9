"""OpenTelemetry: the semantic conventions' metrics of database client connections.

Source: https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools

What they do not know, such as refused requests, hosts and fleets, has names that begin with
`asyncpool.`.

All numbers are read when a reader collects; an acquire or release does no work for them. The three
histograms are synchronous instruments, so each collection records the durations since the one
before, each at a value inside the pool's own bucket: counts and sums are exact.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation

from asyncpool import AsyncConnectionPool, Cluster, Fleet, FleetStats, PoolStats

from ._durations import durations
from ._fleet import GAUGES
from ._hosts import HOSTS, ReadHost
from ._numbers import refused
from ._pools import Given, pools_of

__all__ = ["Instrumentation", "instrument"]

BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds, as the conventions advise for durations of databases."""
POOL, STATE = "db.client.connection.pool.name", "db.client.connection.state"
RULE, FLEET = "asyncpool.rule", "asyncpool.fleet.name"
CLUSTER, HOST, PORT = "asyncpool.cluster", "server.address", "server.port"
ROLE = "asyncpool.role"
MAX_AGE = 0.05
"""Seconds for which a snapshot is reused, since a collection asks once for each instrument."""

Pool = AsyncConnectionPool[Any]
Read = Callable[[PoolStats], float | None]


def instrument(
    *pools: Given,
    meter_provider: MeterProvider | None = None,
    slow_wait: float | None = None,
    histograms: bool = True,
) -> Instrumentation:
    """Start collecting the metrics of pools, clusters and fleets.

    Args:
        pools: one or more; held weakly, and left out while not open. A cluster has the metrics of
            its pools, and some of each host.
        meter_provider: the provider; None: OpenTelemetry's global one.
        slow_wait: seconds above which a wait for a connection becomes an event of the current
            span, by a callback that replaces the pool's `on_slow_wait`; None: no events.
        histograms: whether create_time, wait_time and use_time are recorded. This costs the
            collecting thread some microseconds for each request of the pool.

    Raises:
        TypeError: an argument is none of these, or there are none.
    """
    kinds = AsyncConnectionPool, Cluster, Fleet
    if not pools or not all(isinstance(each, kinds) for each in pools):
        msg = f"instrument() takes one or more pools, clusters and fleets: got {pools!r}"
        raise TypeError(msg)
    meters = _meters_of(meter_provider or metrics.get_meter_provider())
    for each in pools:
        meters.add(each, histograms=histograms, slow_wait=slow_wait)
    return Instrumentation(meters, pools, slow_waits=slow_wait is not None)


class Instrumentation:
    """Pools whose metrics are collected until `uninstrument` is called."""

    def __init__(self, meters: _Meters, pools: Iterable[Given], *, slow_waits: bool) -> None:
        self._meters = meters
        self._pools = [weakref.ref(pool) for pool in pools]
        self._slow_waits = slow_waits

    def uninstrument(self) -> None:
        """Stop collecting; a second call does nothing."""
        for each in self._pools:
            if (given := each()) is not None:
                self._meters.remove(given)
                for pool in pools_of(given) if self._slow_waits else ():
                    pool.on_slow_wait(0, None)
        self._pools.clear()


class _Watched:
    """One pool, and its snapshot at the last recording."""

    def __init__(self, pool: Pool, *, histograms: bool) -> None:
        self.pool = weakref.ref(pool)
        self._histograms = histograms
        self._stats = pool.stats()
        self._read_at = time.monotonic()
        self._recorded = self._stats

    def stats(self) -> PoolStats | None:
        """Return a current snapshot; None: the pool is not open, or was collected."""
        if (pool := self.pool()) is None or pool.closed:
            return None
        if (now := time.monotonic()) - self._read_at > MAX_AGE:
            self._stats, self._read_at = pool.stats(), now
        return self._stats

    def record(self, instruments: dict[str, Histogram]) -> None:
        """Record the durations since the last recording, also for a pool closed meanwhile."""
        pool = self.pool()
        if not self._histograms or pool is None:
            return
        before, now = self._recorded, pool.stats()
        self._recorded, self._stats, self._read_at = now, now, time.monotonic()
        attributes = {POOL: now.name}
        for name, values in (
            ("create_time", durations(now.connect, before.connect)),
            ("use_time", durations(now.use, before.use)),
            ("wait_time", durations(now.wait, before.wait) + [0.0] * _unqueued(now, before)),
        ):
            for value in values:
                instruments[name].record(value, attributes)


class _WatchedCluster:
    """One cluster, and how its pools are watched, also those of hosts that it finds later."""

    def __init__(self, cluster: Cluster[Any], histograms: bool, slow_wait: float | None) -> None:
        self.cluster = weakref.ref(cluster)
        self.histograms = histograms
        self.slow_wait = slow_wait


class _Meters:
    """The instruments of one provider, and the pools, clusters and fleets that they read."""

    def __init__(self, provider: MeterProvider) -> None:
        self._watched: list[_Watched] = []
        self._clusters: list[_WatchedCluster] = []
        self._fleets: list[weakref.ref[Fleet]] = []
        meter = metrics.get_meter("asyncpool", meter_provider=provider)
        unit = "{connection}"
        prefix = "db.client.connection."
        self._histograms = {
            name: meter.create_histogram(
                prefix + name, "s", text, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for name, text in (
                ("create_time", "The time it took to create a new connection."),
                ("wait_time", "The time it took to obtain an open connection from the pool."),
                (
                    "use_time",
                    "The time between borrowing a connection and returning it to the pool.",
                ),
            )
        }
        count = prefix + "count"
        meter.create_observable_up_down_counter(
            count, [self._count], unit, "The number of connections in each state."
        )
        sizes: dict[str, tuple[str, str, Read]] = {
            "idle.min": (unit, "The minimum number of idle connections.", _min_size),
            "idle.max": (unit, "The maximum number of idle connections allowed.", _max_size),
            "max": (unit, "The maximum number of open connections allowed.", _max_size),
            "pending_requests": (
                "{request}",
                "The number of requests that wait for a connection.",
                lambda stats: stats.waiting,
            ),
        }
        for name, (its_unit, text, read) in sizes.items():
            observe = partial(self._observe, read)
            meter.create_observable_up_down_counter(prefix + name, [observe], its_unit, text)
        meter.create_observable_counter(
            prefix + "timeouts",
            [partial(self._observe, lambda stats: stats.requests_timed_out)],
            "{timeout}",
            "The number of requests that timed out before they got a connection.",
        )
        meter.create_observable_counter(
            "asyncpool.refused_requests",
            [self._refused],
            "{request}",
            "The number of requests that were refused at once, by rule.",
        )
        gauges: dict[str, tuple[str, str, Read]] = {
            "service_rate": (
                "{request}/s",
                "The requests that get a connection each second while others wait.",
                lambda stats: stats.service_rate,
            ),
            "expected_wait": (
                "s",
                "The mean wait of a request that would come now.",
                lambda stats: stats.expected_wait,
            ),
            "standing": (
                "s",
                "The time for which the wait queue has not been empty.",
                lambda stats: stats.standing,
            ),
            "patience": (
                "s",
                "The time after which callers were found to cancel their requests.",
                lambda stats: None if stats.patience == math.inf else stats.patience,
            ),
        }
        for name, (its_unit, text, read) in gauges.items():
            observe = partial(self._observe, read)
            meter.create_observable_gauge(f"asyncpool.{name}", [observe], its_unit, text)
        for each in GAUGES:
            name, seen = f"asyncpool.fleet.{each.key}", partial(self._observe_fleets, each.read)
            meter.create_observable_gauge(name, [seen], each.unit, each.text)
        for name, (its_unit, text, read_host) in HOSTS.items():
            observe_host = partial(self._observe_hosts, read_host, role=True)
            meter.create_observable_gauge(f"asyncpool.host.{name}", [observe_host], its_unit, text)
        meter.create_observable_counter(
            "asyncpool.host.reads",
            [partial(self._observe_hosts, lambda host: host.reads, role=False)],
            "{request}",
            "The number of reads that went to the host.",
        )

    def add(self, given: Given, *, histograms: bool, slow_wait: float | None = None) -> None:
        """Add one of these; recording restarts for a pool that was added before."""
        self.remove(given)
        if isinstance(given, Fleet):
            self._fleets.append(weakref.ref(given))
        elif isinstance(given, Cluster):
            self._clusters.append(_WatchedCluster(given, histograms, slow_wait))
            self._find_pools()
        else:
            self._add_pool(given, histograms, slow_wait)

    def remove(self, given: Given) -> None:
        """Remove one of these."""
        self._fleets = [each for each in self._fleets if each() not in (given, None)]
        self._clusters = [each for each in self._clusters if each.cluster() not in (given, None)]
        gone = {None, given, *pools_of(given)}
        self._watched = [each for each in self._watched if each.pool() not in gone]

    def _add_pool(self, pool: Pool, histograms: bool, slow_wait: float | None) -> None:
        self._watched.append(_Watched(pool, histograms=histograms))
        if slow_wait is not None:
            pool.on_slow_wait(slow_wait, partial(_record_wait, weakref.ref(pool)))

    def _find_pools(self) -> None:
        """Add the pools of hosts that clusters have found meanwhile."""
        known = {each.pool() for each in self._watched}
        for each in self._clusters:
            if (cluster := each.cluster()) is not None:
                for pool in cluster.pools:
                    if pool not in known:
                        self._add_pool(pool, each.histograms, each.slow_wait)

    def _count(self, options: CallbackOptions) -> Sequence[Observation]:
        # This is a collection's first callback, so the collection includes what it records.
        self._find_pools()
        for each in self._watched:
            each.record(self._histograms)
        found = []
        for stats in self._all():
            used = stats.leased + stats.cleaning
            for state, number in (("idle", stats.idle), ("used", used)):
                found.append(Observation(number, {POOL: stats.name, STATE: state}))
        return found

    def _refused(self, options: CallbackOptions) -> Sequence[Observation]:
        return [
            Observation(number, {POOL: stats.name, RULE: rule})
            for stats in self._all()
            for rule, number in refused(stats)
        ]

    def _observe(self, read: Read, options: CallbackOptions) -> Sequence[Observation]:
        found = ((stats, read(stats)) for stats in self._all())
        return [Observation(n, {POOL: stats.name}) for stats, n in found if n is not None]

    def _observe_hosts(
        self, read: ReadHost, options: CallbackOptions, *, role: bool
    ) -> Sequence[Observation]:
        """Return an observation for each host; a counter has no role, since that may change."""
        found = []
        for each in self._clusters:
            cluster = each.cluster()
            if cluster is None or cluster.closed:
                continue
            for host in cluster.hosts():
                attributes: dict[str, str | int] = {CLUSTER: cluster.name, HOST: host.host}
                attributes[PORT] = host.port
                if role:
                    attributes[ROLE] = host.role or "unknown"
                if (number := read(host)) is not None:
                    found.append(Observation(float(number), attributes))
        return found

    def _observe_fleets(
        self, read: Callable[[FleetStats], float | None], options: CallbackOptions
    ) -> Sequence[Observation]:
        alive = [fleet.stats() for each in self._fleets if (fleet := each()) is not None]
        found = ((stats, read(stats)) for stats in alive)
        return [Observation(n, {FLEET: stats.name}) for stats, n in found if n is not None]

    def _all(self) -> list[PoolStats]:
        return [stats for each in self._watched if (stats := each.stats()) is not None]


_meters_by_provider: weakref.WeakKeyDictionary[MeterProvider, _Meters] = weakref.WeakKeyDictionary()


def _meters_of(provider: MeterProvider) -> _Meters:
    # Each provider gets one set: a second instrument of the same name would not be collected.
    if provider not in _meters_by_provider:
        _meters_by_provider[provider] = _Meters(provider)
    return _meters_by_provider[provider]


def _min_size(stats: PoolStats) -> int:
    return stats.min_size


def _max_size(stats: PoolStats) -> int | None:
    return stats.max_size or None


def _unqueued(now: PoolStats, before: PoolStats) -> int:
    """Count the requests that ended since `before` without waiting."""

    def total(stats: PoolStats) -> int:
        return stats.requests - stats.waiting - stats.wait.count

    restarted = now.requests < before.requests
    return max(0, total(now) - (0 if restarted else total(before)))


def _record_wait(pool: weakref.ref[Pool], waited: float) -> None:
    """Add an event to the span of the request that waited."""
    span = trace.get_current_span()
    alive = pool()
    if alive is not None and span.is_recording():
        span.add_event(
            "db.client.connection.wait",
            {POOL: alive.name, "db.client.connection.wait_time": waited},
        )
