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

from asyncpool import FleetStats, PoolStats

from ._fleet import GAUGES as FLEET
from ._numbers import COUNTERS, GAUGES, REFUSED, STATES, TIMES, buckets, refused
from ._pools import Pools, Source

__all__ = ["PoolCollector"]


class PoolCollector(Collector):
    """The metrics of some pools and fleets, each labelled with its pool's or fleet's name.

    A pool's metrics are exported while it is open. The collector keeps no pool alive. As a context
    manager it is registered for the block, so that a lifespan can run several times.

    Args:
        pools: pools, fleets, and callables that are called at each scrape and return the app's
            pool, its pools, or None while it has none; `add` adds others.
        registry: the registry to register with; None: none, register it yourself.
        prefix: the prefix of all names.

    Raises:
        TypeError: an argument is neither a pool, a fleet nor a callable.
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
        """Add a pool, a fleet, or a callable.

        Raises:
            TypeError: the argument is neither.
            ValueError: another pool, or another fleet, has the same name.
        """
        self._pools.add(pool)

    def remove(self, pool: Source) -> None:
        """Remove a pool, a fleet, or a callable."""
        self._pools.remove(pool)

    def describe(self) -> list[Metric]:
        """Return the metrics without samples, so that registering reads no pool."""
        return [*self._families({}), *self._fleet_families({})]

    def collect(self) -> Iterator[Metric]:
        """Read the current numbers of all open pools; callable from any thread."""
        yield from self._families(self._pools.stats())
        yield from self._fleet_families(self._pools.fleets())

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

    def _fleet_families(self, fleets: dict[str, FleetStats]) -> Iterator[Metric]:
        for each in FLEET:
            gauge = GaugeMetricFamily(f"{self._prefix}_{each.name}", each.text, labels=["fleet"])
            for name, fleet in fleets.items():
                if (value := each.read(fleet)) is not None:
                    gauge.add_metric([name], value)
            yield gauge
