"""A cluster in the metrics and in the inspector: its pools, and each host with its role."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from asyncpool import Cluster
from asyncpool.inspector._feed import Feed
from asyncpool.metrics.otel import instrument
from asyncpool.metrics.prometheus import PoolCollector
from asyncpool.metrics.prometheus_multiprocess import VARIABLE

from ._cluster import PORT, Servers, cluster_on, name_of, status
from ._tools import eventually, in_time

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, ...], float]


def scraped(registry: CollectorRegistry) -> dict[str, Samples]:
    """Return each sample by its metric's name and the values of its labels."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def reads_of(cluster: Cluster[Any], count: int) -> None:
    for _ in range(count):
        await cluster.read.fetchval(PORT)


async def test_a_scrape_has_the_hosts_of_a_cluster(trio: Servers) -> None:
    """With role, lag, and the reads that went to each: looks do not count as reads."""
    registry = CollectorRegistry()
    collector = PoolCollector(registry=registry, prefix="p")
    async with cluster_on(trio, name="shop") as cluster:
        collector.add(cluster)
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        await reads_of(cluster, 20)
        found = scraped(registry)
        names = [name_of(each) for each in trio.all]
        primary, *standbys = [("shop", name) for name in names]
        assert found["p_host_role"][*primary, "primary"] == 1
        assert found["p_host_role"][*primary, "standby"] == 0
        assert [found["p_host_role"][*each, "standby"] for each in standbys] == [1, 1]
        assert [found["p_host_takes_reads"][each] for each in (primary, *standbys)] == [0, 1, 1]
        assert found["p_host_lag_seconds"][primary] == 0
        assert [found["p_host_reads_total"][each] for each in (primary, *standbys)] == [0, 10, 10]
        pools = {pool for (pool,) in found["p_max_connections"]}
        assert pools == {"shop: write", *(f"shop: {name}" for name in names)}
        await trio.standbys[0].kill()
        await eventually(lambda: not status(cluster, trio.standbys[0]).reachable)
        assert scraped(registry)["p_host_reachable"][standbys[0]] == 0
        assert scraped(registry)["p_host_takes_reads"][standbys[0]] == 0
    assert "p_host_role" not in scraped(registry)


SERVE = """
import asyncio, sys
from asyncpool import Cluster
from asyncpool.metrics.prometheus_multiprocess import MultiprocessMetrics

async def main():
    for _ in range(2):  # a lifespan that runs twice
        async with Cluster(sys.argv[1], min_size=1, name="shop") as cluster:
            await cluster.wait()
            while sum(each.takes_reads for each in cluster.hosts()) < 2:
                await asyncio.sleep(0.01)
            with MultiprocessMetrics(lambda: cluster, interval=0.01) as metrics:
                for _ in range(10):
                    await cluster.read.fetchval("SELECT 1")
                metrics.write()
                print("written", flush=True)
                await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


async def test_the_hosts_of_two_processes_add_up(trio: Servers, tmp_path: Path) -> None:
    """Reads are sums; what each process sees of a host is the largest."""
    environment = os.environ | {VARIABLE: str(tmp_path), "PYTHONPATH": str(ROOT)}
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SERVE, trio.dsn()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        for _ in range(2)
    ]
    names = [("shop", name_of(each)) for each in trio.all]

    async def scrape() -> dict[str, dict[Any, float]]:
        for each in workers:
            assert each.stdout is not None
            assert await in_time(each.stdout.readline(), 60.0) == b"written\n"
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
        return scraped(registry)

    async def go_on() -> None:
        for each in workers:
            assert each.stdin is not None
            each.stdin.write(b"\n")
            await each.stdin.drain()

    for times in (1, 2):
        found = await scrape()
        assert found["asyncpool_host_role"][*names[0], "primary"] == 1
        assert found["asyncpool_host_role"][*names[1], "primary"] == 0
        assert [found["asyncpool_host_reachable"][each] for each in names] == [1, 1, 1]
        assert [found["asyncpool_host_takes_reads"][each] for each in names] == [0, 1, 1]
        reads = [found["asyncpool_host_reads_total"][each] for each in names]
        assert reads == [0, 10 * times, 10 * times]
        await go_on()
    for each in workers:
        assert await in_time(each.wait(), 60.0) == 0
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))  # type: ignore[no-untyped-call]
    assert set(scraped(registry)["asyncpool_host_role"].values()) == {0}


async def test_clusters_of_one_name_are_refused(trio: Servers) -> None:
    """A pool may have the name of a cluster, as its own are longer."""
    first, second = (Cluster(trio.dsn(), name="shop", open=False) for _ in range(2))
    with pytest.raises(ValueError, match="two clusters are named 'shop'"):
        PoolCollector(first, second, registry=None)
    with pytest.raises(TypeError, match="a Cluster or a Fleet"):
        PoolCollector("shop", registry=None)  # type: ignore[arg-type]
    PoolCollector(lambda: [first, second], registry=None)


def points(reader: InMemoryMetricReader) -> dict[str, dict[tuple[object, ...], float]]:
    """Return the value of each point of a host by its metric's name and its attributes."""
    found: dict[str, dict[tuple[object, ...], float]] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data is not None else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name.startswith("asyncpool.host."):
                    found[metric.name] = {
                        tuple((point.attributes or {}).values()): point.value  # type: ignore[union-attr]
                        for point in metric.data.data_points
                    }
    return found


async def test_opentelemetry_gets_the_hosts_of_a_cluster(trio: Servers) -> None:
    """A counter has no role among its attributes, since the role may change."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with cluster_on(trio, name="shop") as cluster:
        instrumentation = instrument(cluster, meter_provider=provider, slow_wait=10.0)
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        await reads_of(cluster, 20)
        found = points(reader)
        ports = [int(name_of(each).partition(":")[2]) for each in trio.all]
        primary, *standbys = [("shop", "127.0.0.1", port) for port in ports]
        takes_reads = found["asyncpool.host.takes_reads"]
        assert takes_reads[*primary, "primary"] == 0
        assert [takes_reads[*each, "standby"] for each in standbys] == [1, 1]
        assert found["asyncpool.host.lag"][*primary, "primary"] == 0
        reads = found["asyncpool.host.reads"]
        assert [reads[each] for each in (primary, *standbys)] == [0, 10, 10]
        pools = reader.get_metrics_data().to_json()  # type: ignore[union-attr]
        assert f"shop: {name_of(trio.primary)}" in pools
        instrumentation.uninstrument()
        assert points(reader) == {}
    provider.shutdown()


async def test_the_inspector_shows_each_pool_with_its_host(trio: Servers) -> None:
    """A host's role, its lag and why it takes no reads; the pool for writes has no host."""
    async with cluster_on(trio, name="shop") as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        for feed in (Feed(cluster), Feed(lambda: cluster)):
            pools = {each["name"]: each for each in json.loads(await feed.snapshot())["pools"]}
            names = [f"shop: {name_of(each)}" for each in trio.all]
            assert list(pools) == ["shop: write", *names]
            assert pools["shop: write"]["host"] is None
            primary, *standbys = [pools[name]["host"] for name in names]
            assert (primary["cluster"], primary["role"]) == ("shop", "primary")
            assert (primary["takes_reads"], primary["reason"]) == (False, "it is the primary")
            assert [each["role"] for each in standbys] == ["standby", "standby"]
            assert all(each["takes_reads"] and each["lag"] < math.inf for each in standbys)
            assert all(each["health"]["status"] == "ok" for each in pools.values())
    secret = str(trio.primary.dsn).split(":")[2].split("@")[0]
    assert secret not in json.dumps(pools)
