"""Prometheus with several processes: metrics that add up over all workers of an app.

In prometheus_client's multiprocess mode a scrape reads the files that its own gauges, counters and
histograms write, and no collector. So this module writes the pools' numbers into such objects every
few seconds. All processes' numbers are summed; but of times, of a host's state and of a whole
fleet's numbers, which each process sees for itself, the largest is reported.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache
from types import TracebackType
from typing import Self

from prometheus_client import Counter, Gauge, Histogram

from asyncpool import FleetStats, HostStatus, PoolStats

from ._durations import durations
from ._fleet import GAUGES as FLEET
from ._hosts import HOST_GAUGES, HOST_READS, HOST_SUMS, LAG, REACHABLE, ROLE, ROLES
from ._numbers import COUNTERS, GAUGES, LARGEST, REFUSED, STATES, TIMES, bounds, refused
from ._pools import Pools, Source

__all__ = ["MultiprocessMetrics"]

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class MultiprocessMetrics:
    """Write the metrics of this process's pools for a scrape of all processes.

    Use it as a context manager in the app's lifespan, in the pool's event loop. The block writes on
    entry, at each interval, and on exit, when the gauges become 0.

    Args:
        pools: pools, clusters, fleets, and callables that return the app's pool, its pools, or None
            while it has none.
        interval: seconds between two writes.
        prefix: the prefix of all names.
        histograms: whether the durations are written too, each at a value inside the pool's own
            bucket. This costs some microseconds for each request of the pool.

    Raises:
        TypeError: an argument is none of these.
        ValueError: two pools have the same name, or PROMETHEUS_MULTIPROC_DIR is not set.
    """

    def __init__(
        self,
        *pools: Source,
        interval: float = 5.0,
        prefix: str = "asyncpool",
        histograms: bool = True,
    ) -> None:
        if not os.environ.get(VARIABLE):
            msg = f"{VARIABLE} is not set, so there is one process: use PoolCollector"
            raise ValueError(msg)
        self._pools = Pools(pools)
        self._interval = interval
        self._metrics = _metrics(prefix)
        self._histograms = histograms
        self._written: dict[str, _Written] = {}
        """The state of the export of each open pool, by the pool's name."""
        self._hosts: dict[tuple[str, str], _Written] = {}
        """The state of the export of each host, by the names of the cluster and of the host."""
        self._fleets: set[str] = set()
        """The names of the fleets that were written."""
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._tick(asyncio.get_running_loop())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.write()
        for name in self._written:
            self._metrics.clear(name)
        for names in self._hosts:
            self._metrics.clear_host(*names)
        for name in self._fleets:
            self._metrics.clear_fleet(name)

    def write(self) -> None:
        """Write the current numbers of all open pools."""
        found = self._pools.stats()
        for name in self._written.keys() - found.keys():
            self._metrics.clear(name)
            del self._written[name]
        for name, stats in found.items():
            self._metrics.set_sizes(stats)
            written = self._written.setdefault(name, _Written())
            before = written.follow(stats)
            self._metrics.count(stats, written)
            if self._histograms:
                self._metrics.observe(stats, before)
        self._write_hosts()
        fleets = self._pools.fleets()
        for name in self._fleets - fleets.keys():
            self._metrics.clear_fleet(name)
            self._fleets.discard(name)
        for name, fleet in fleets.items():
            self._fleets.add(name)
            self._metrics.set_fleet(fleet)

    def _write_hosts(self) -> None:
        clusters = self._pools.hosts().items()
        found = {(cluster, host.name): host for cluster, hosts in clusters for host in hosts}
        for names in self._hosts.keys() - found.keys():
            self._metrics.clear_host(*names)
            del self._hosts[names]
        for names, host in found.items():
            written = self._hosts.setdefault(names, _Written())
            written.follow(host.stats)
            self._metrics.set_host(*names, host, written)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval, self._tick, loop)
        self.write()


class _Written:
    """The state of the export of one pool or one host: what the files have of it so far."""

    def __init__(self) -> None:
        self._stats: PoolStats | None = None
        """The last snapshot."""
        self._counted: dict[str, float] = {}
        """The highest value of each counter that was added to the files."""

    def follow(self, stats: PoolStats) -> PoolStats | None:
        """Take the next snapshot, and return the last one; None: it counts from 0."""
        before, self._stats = self._stats, stats
        if before is not None and (
            stats.connects < before.connects or stats.use.count < before.use.count
        ):
            before = None  # another pool of this name, or reopened on another event loop
        if before is None:
            self._counted.clear()
        return before

    def new(self, key: str, value: float) -> float:
        """Return by how much a counter exceeds what was written of it.

        A number may fall for a moment, as when a request has left the wait queue and has not ended.
        """
        counted = self._counted.get(key, 0)
        self._counted[key] = max(value, counted)
        return max(0, value - counted)


class _Metrics:
    """The objects of prometheus_client for one prefix."""

    def __init__(self, prefix: str) -> None:
        # In the multiprocess mode no registry is read; a scrape makes one of its own.
        def gauge(key: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"{prefix}_{key}",
                text,
                ["pool", *labels],
                registry=None,
                multiprocess_mode="livemax" if key in LARGEST else "livesum",
            )

        self._connections = gauge("connections", "Connections by state.", "state")
        self._gauges = {key: gauge(key, text) for key, (text, _) in GAUGES.items()}

        def host_gauge(key: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"{prefix}_{key}",
                text,
                ["cluster", "host", *labels],
                registry=None,
                multiprocess_mode="livesum" if key in HOST_SUMS else "livemax",
            )

        self._role = host_gauge(*ROLE, "role")
        self._host = {key: host_gauge(key, text) for key, (text, _) in HOST_GAUGES.items()}
        key, text = HOST_READS
        self._reads = Counter(f"{prefix}_{key}", text, ["cluster", "host"], registry=None)
        self._fleet = {
            each: Gauge(
                f"{prefix}_{each.name}",
                each.text,
                ["fleet"],
                registry=None,
                multiprocess_mode="livesum" if each.own else "livemax",
            )
            for each in FLEET
        }
        self._counters = {
            key: Counter(f"{prefix}_{key}", text, ["pool"], registry=None)
            for key, (text, _) in COUNTERS.items()
        }
        key, text = REFUSED
        self._refused = Counter(f"{prefix}_{key}", text, ["pool", "rule"], registry=None)
        self._histograms = {
            key: Histogram(f"{prefix}_{key}", text, ["pool"], registry=None, buckets=bounds())
            for key, (text, _) in TIMES.items()
        }

    def set_sizes(self, stats: PoolStats) -> None:
        """Set the gauges of a pool."""
        for state in STATES:
            self._connections.labels(stats.name, state).set(getattr(stats, state))
        for key, (_, read) in GAUGES.items():
            self._gauges[key].labels(stats.name).set(read(stats))

    def set_host(self, cluster: str, name: str, host: HostStatus, written: _Written) -> None:
        """Set the gauges of a host, and count its reads since the last time.

        The lag is that of the processes which reach the host.
        """
        for role in ROLES:
            self._role.labels(cluster, name, role).set(host.role == role)
        for key, (_, read) in HOST_GAUGES.items():
            value = 0 if key == LAG and not host.reachable else read(host)
            self._host[key].labels(cluster, name).set(value)
        self._reads.labels(cluster, name).inc(written.new(HOST_READS[0], host.reads))

    def clear_host(self, cluster: str, name: str) -> None:
        """Set the gauges of a host to 0 that is not in an open cluster any more.

        Whether it answers becomes -1: prometheus_client cannot remove it.
        """
        for role in ROLES:
            self._role.labels(cluster, name, role).set(0)
        for key, gauge in self._host.items():
            gauge.labels(cluster, name).set(-1 if key == REACHABLE else 0)

    def set_fleet(self, stats: FleetStats) -> None:
        """Set the gauges of a fleet."""
        for each, gauge in self._fleet.items():
            gauge.labels(stats.name).set(each.read(stats) or 0)

    def clear_fleet(self, name: str) -> None:
        """Set the gauges of a fleet to 0 that this process has left."""
        for gauge in self._fleet.values():
            gauge.labels(name).set(0)

    def clear(self, name: str) -> None:
        """Set the gauges of a pool that is not open any more to 0."""
        for state in STATES:
            self._connections.labels(name, state).set(0)
        for gauge in self._gauges.values():
            gauge.labels(name).set(0)

    def count(self, stats: PoolStats, written: _Written) -> None:
        """Add to the counters what was counted since the last time."""
        for key, (_, read) in COUNTERS.items():
            self._counters[key].labels(stats.name).inc(written.new(key, read(stats)))
        for rule, number in refused(stats):
            new = written.new(f"{REFUSED[0]} {rule}", number)
            self._refused.labels(stats.name, rule).inc(new)

    def observe(self, stats: PoolStats, before: PoolStats | None) -> None:
        """Add to the histograms the durations since a snapshot, or since the pool was made."""
        for key, (_, read) in TIMES.items():
            histogram = self._histograms[key].labels(stats.name)
            known = read(before) if before is not None else None
            for value in durations(read(stats), known):
                histogram.observe(value)


@cache
def _metrics(prefix: str) -> _Metrics:
    # Made once for a process: a second object of the same name would not see the first one's sum.
    return _Metrics(prefix)
