"""What Prometheus reads of a pool, a fleet and a cluster."""

from __future__ import annotations

from uuid import uuid4

from prometheus_client import CollectorRegistry, generate_latest

from asyncpool import AsyncConnectionPool, Cluster, Fleet
from asyncpool.metrics.prometheus import PoolCollector

from ._tools import eventually


async def scrape(dsn: str) -> str:
    """Return a scrape that has every metric there is."""
    registry, fleet = CollectorRegistry(), Fleet(f"f{uuid4().hex[:8]}")
    async with (
        AsyncConnectionPool(dsn, min_size=1, name="orders", budget=fleet) as pool,
        Cluster(dsn, min_size=1, name="shop") as cluster,
    ):
        await eventually(lambda: fleet.stats().last_look is not None)
        await eventually(lambda: any(each.reachable for each in cluster.hosts()))
        PoolCollector(pool, fleet, cluster, registry=registry)
        return generate_latest(registry).decode()
