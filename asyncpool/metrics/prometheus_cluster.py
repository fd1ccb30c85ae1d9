"""A collector for prometheus_client: the hosts of clusters, by their roles.

The numbers of a cluster's pools come from `PoolCollector(lambda: cluster.pools)`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncpool import Cluster, HostStatus

__all__ = ["ClusterCollector"]

LABELS = ("cluster", "host", "role")
GAUGES: dict[str, tuple[str, Callable[[HostStatus], float]]] = {
    "host_up": ("Whether the host answers.", lambda host: host.reachable),
    "host_takes_reads": ("Whether the host takes reads.", lambda host: host.takes_reads),
    "host_drained": ("Whether the host was taken out of service.", lambda host: host.drained),
    "host_lag_seconds": ("Time that the host lags; absent: not known.", lambda host: host.lag),
    "host_reads": ("Reads that wait or run there.", lambda host: host.under_way),
}
"""By name: the text, and where the number is read."""


class ClusterCollector(Collector):
    """The metrics of the hosts of some clusters, by cluster, host and role.

    The role is "primary", "standby" or, before the first answer of a host, "unknown". The hosts of
    a cluster are exported while it is open. The collector keeps no cluster alive. As a context
    manager it is registered for the block.

    Args:
        clusters: the clusters, each with a name of its own.
        registry: the registry to register with; None: none, register it yourself.
        prefix: the prefix of all names.

    Raises:
        TypeError: an argument is no cluster.
        ValueError: the registry has metrics of these names.
    """

    def __init__(
        self,
        *clusters: Cluster[Any],
        registry: CollectorRegistry | None = REGISTRY,
        prefix: str = "asyncpool",
    ) -> None:
        for each in clusters:
            if not isinstance(each, Cluster):
                msg = f"only a Cluster has these metrics: got {each!r}"
                raise TypeError(msg)
        self._clusters = [weakref.ref(each) for each in clusters]
        self._prefix = prefix
        self._registry = registry
        if registry is not None:
            registry.register(self)

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

    def describe(self) -> list[Metric]:
        """Return the metrics without samples, so that registering reads no cluster."""
        return list(self._families([]))

    def collect(self) -> Iterator[Metric]:
        """Read the hosts of all open clusters; callable from any thread."""
        clusters = [each() for each in self._clusters]
        return self._families(
            [
                ([each.name, host.name, host.role or "unknown"], host)
                for each in clusters
                if each is not None and not each.closed
                for host in each.hosts()
            ]
        )

    def _families(self, found: list[tuple[list[str], HostStatus]]) -> Iterator[Metric]:
        for name, (text, read) in GAUGES.items():
            gauge = GaugeMetricFamily(f"{self._prefix}_{name}", text, labels=LABELS)
            for labels, host in found:
                if (value := float(read(host))) != math.inf:
                    gauge.add_metric(labels, value)
            yield gauge
