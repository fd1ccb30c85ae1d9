"""A collector for prometheus_client: it reads the pools' counters at each scrape.

It does no work between scrapes, and holds the pools weakly. In the multiprocess mode of
prometheus_client no collector is read: see `asyncpool.metrics.prometheus_multiprocess`.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from asyncpool import FleetStats, HostStatus, PoolStats

from ._fleet import GAUGES as FLEET
from ._hosts import HOST_GAUGES, HOST_READS, ROLE, ROLES
from ._numbers import COUNTERS, GAUGES, REFUSED, STATES, TIMES, buckets, refused
from ._pools import Pools, Source

__all__ = ["PoolCollector"]


class PoolCollector(Collector):
    """The metrics of some pools, each labelled with its pool's name.

    A cluster has those of its pools, and metrics of its hosts with the labels `cluster` and `host`;
    a fleet has metrics with the label `fleet`.
    A pool's metrics are exported while it is open. The collector keeps no pool alive. As a context
    manager it is registered for the block, so that a lifespan can run several times.

    Args:
        pools: pools, clusters and fleets, and callables that are called at each scrape and return
            the app's pool, its pools, or None while it has none; `add` adds others.
        registry: the registry to register with; None: none, register it yourself.
        prefix: the prefix of all names.

    Raises:
        TypeError: an argument is none of these.
        ValueError: two pools have the same name, or the registry has metrics of these names.
    """

    def __init__(
        self,
        *pools: Source,
        registry: CollectorRegistry | None = REGISTRY,
        prefix: str = "asyncpool",
    ) -> None:
        self._pools = Pools(pools)
        self._prefix = prefix
        self._registry = registry
        """The registry that has this collector."""
        if registry is None:
            return
        try:
            registry.register(self)
        except ValueError as error:
            msg = (
                f"the registry has metrics named {prefix}_... already ({error}): add() the pool to"
                " their PoolCollector, or unregister() that one first, as its `with` block does"
            )
            raise ValueError(msg) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.unregister()

    def unregister(self) -> None:
        """Remove this collector from the registry that it was made with; once is enough."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.unregister(self)

    def add(self, pool: Source) -> None:
        """Add a pool, a cluster, a fleet, or a callable.

        Raises:
            TypeError: the argument is none of these.
            ValueError: another one of its kind has the same name.
        """
        self._pools.add(pool)

    def remove(self, pool: Source) -> None:
        """Remove a pool, a cluster, a fleet, or a callable."""
        self._pools.remove(pool)

    def describe(self) -> list[Metric]:
        """Return the metrics without samples, so that registering reads no pool."""
        return [*self._families({}), *self._host_families({}), *self._fleet_families({})]

    def collect(self) -> Iterator[Metric]:
        """Read the current numbers of all open pools; callable from any thread."""
        yield from self._families(self._pools.stats())
        if clusters := self._pools.hosts():
            yield from self._host_families(clusters)
        yield from self._fleet_families(self._pools.fleets())

    def _named(self, name: str) -> str:
        return f"{self._prefix}_{name}"

    def _host_families(self, clusters: dict[str, tuple[HostStatus, ...]]) -> Iterator[Metric]:
        labels = ["cluster", "host"]
        hosts = [(name, host) for name, found in clusters.items() for host in found]
        key, text = ROLE
        roles = GaugeMetricFamily(self._named(key), text, labels=[*labels, "role"])
        for name, host in hosts:
            for role in ROLES:
                roles.add_metric([name, host.name, role], host.role == role)
        yield roles
        for key, (text, read) in HOST_GAUGES.items():
            gauge = GaugeMetricFamily(self._named(key), text, labels=labels)
            for name, host in hosts:
                gauge.add_metric([name, host.name], read(host))
            yield gauge
        key, text = HOST_READS
        reads = CounterMetricFamily(self._named(key), text, labels=labels)
        for name, host in hosts:
            reads.add_metric([name, host.name], host.reads)
        yield reads

    def _fleet_families(self, fleets: dict[str, FleetStats]) -> Iterator[Metric]:
        for each in FLEET:
            gauge = GaugeMetricFamily(self._named(each.name), each.text, labels=["fleet"])
            for name, fleet in fleets.items():
                if (value := each.read(fleet)) is not None:
                    gauge.add_metric([name], value)
            yield gauge

    def _families(self, found: dict[str, PoolStats]) -> Iterator[Metric]:
        named = self._named
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
        key, text = REFUSED
        refusals = CounterMetricFamily(named(key), text, labels=["pool", "rule"])
        for name, stats in found.items():
            for rule, number in refused(stats):
                refusals.add_metric([name, rule], number)
        yield refusals
        for key, (text, read_times) in TIMES.items():
            histogram = HistogramMetricFamily(named(key), text, labels=["pool"])
            for name, stats in found.items():
                times = read_times(stats)
                histogram.add_metric([name], buckets(times), times.sum)
            yield histogram
