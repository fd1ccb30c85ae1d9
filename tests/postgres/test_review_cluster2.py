"""More faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest

from asyncpool import Cluster, within

from ._cluster import PORT, Servers, ask, port_of, servers
from ._tools import Proxy

SLOW = "SELECT count(*) FROM generate_series(1, 20000000) AS g WHERE g % 7 = 3"


async def test_first_writes_wait_for_a_host_that_answers_later() -> None:
    """An old primary is up, and the newer one takes 0.3 s to be connected to."""
    async with servers(1) as pair:
        (replica,) = pair.standbys
        await replica.promote()
        async with Proxy(replica.dsn) as proxy:
            proxy.delay = 0.3
            dsns = [pair.primary.dsn, proxy.dsn]
            async with Cluster(lambda: dsns, min_size=1, max_size=2) as cluster:
                await cluster.write.execute("CREATE TABLE first_write (x int)")
                assert ask(pair.primary, "SELECT to_regclass('first_write')::text") is None
                assert await cluster.write.fetchval(PORT) == port_of(replica)


async def test_looks_do_not_inherit_a_deadline(trio: Servers) -> None:
    async with Cluster(trio.dsn(), min_size=1, max_size=2) as _:
        pass
    cluster = Cluster(trio.dsn(), min_size=1, max_size=2)
    with within(2.0):
        await cluster.read.fetchval("SELECT 1")
    await asyncio.sleep(3.5)
    print([(each.reachable, each.reason) for each in cluster.hosts()])
    assert all(each.reachable for each in cluster.hosts())
    await cluster.write.fetchval("SELECT 1")
    await cluster.close()


async def test_a_block_keeps_a_dropped_cluster(trio: Servers) -> None:
    block = Cluster(trio.dsn(), min_size=1).read.connection()
    async with block as conn:
        gc.collect()
        await asyncio.sleep(0.3)
        gc.collect()
        await conn.execute("SELECT 1")


@pytest.mark.parametrize("kind", ["async", "error"])
async def test_secrets_of_a_callable(trio: Servers, kind: str, caplog: Any) -> None:
    async def source() -> list[str]:
        if kind == "error":
            raise RuntimeError("cannot use host=db1 password=hunter2 dbname=x")
        return ["host=db1 password='hunter2 frob=1", "postgresql://u:hunter2@db1:x/"]

    async with Cluster(source, min_size=1) as cluster:
        await asyncio.sleep(0.2)
        text = str(cluster.explain()) + repr(cluster) + caplog.text
        print(cluster.explain().events)
    assert "hunter2" not in text


async def test_a_source_that_hangs_does_not_hinder_close(trio: Servers) -> None:
    async def source() -> list[str]:
        await asyncio.sleep(100)
        return []

    before = asyncio.all_tasks()
    cluster = Cluster(source, min_size=1)
    await cluster.open()
    task = asyncio.create_task(cluster.write.fetchval("SELECT 1"))
    other = asyncio.create_task(cluster.read.fetchval("SELECT 1"))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await cluster.close()
    assert time.monotonic() - began < 1.0
    print(await asyncio.gather(task, other, return_exceptions=True))
    assert not asyncio.all_tasks() - before
