"""More faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from typing import Any

import anyio
import pytest

from asyncpool import Cluster, TooManyRequests, within

from ._cluster import PORT, Servers, ask, cluster_on, name_of, port_of, servers
from ._tools import Proxy, eventually, in_time

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


async def test_a_long_read_that_may_be_retried_ends(trio: Servers) -> None:
    """It is the only one; its host has one connection and is healthy."""
    async with cluster_on(trio, max_size=1) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        began = time.monotonic()
        await cluster.read.fetchval(SLOW)
        alone = time.monotonic() - began
        began = time.monotonic()
        task = asyncio.create_task(cluster.read.fetchval(SLOW, retry_elsewhere=True))
        hosts: list[list[str]] = []
        while not task.done() and time.monotonic() - began < 20:
            await asyncio.sleep(0.05)
            busy = [each.name for each in cluster.hosts() if each.under_way]
            if busy and (not hosts or hosts[-1] != busy):
                hosts.append(busy)
        done = task.done()
        task.cancel()
        print("alone", alone, "retried", time.monotonic() - began, hosts)
        await asyncio.gather(task, return_exceptions=True)
        assert done
        assert len(hosts) == 1


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


async def test_cancellation_anywhere_leaves_nothing(trio: Servers) -> None:  # noqa: PLR0915
    rng = random.Random(5)
    async with cluster_on(trio, max_size=2) as cluster:
        first, second = map(name_of, trio.standbys)
        ended = False

        async def one() -> None:
            kind = rng.randrange(6)
            read = cluster.read
            if kind == 0:
                async with read.connection() as conn:
                    await conn.execute("SELECT pg_sleep(0.002)")
            elif kind == 1:
                async with read.session():
                    await read.fetchval("SELECT 1")
            elif kind == 2:
                conn = await read.acquire()
                try:
                    await conn.execute("SELECT 1")
                finally:
                    await read.release(conn)
            elif kind == 3:
                await read.fetchval("SELECT 1, pg_sleep(0.002)", retry_elsewhere=True)
            elif kind == 4:
                async with read.transaction() as conn:
                    await conn.execute("SELECT 1")
            else:
                async with read.cursor() as cur:
                    await cur.execute("SELECT 1")

        async def anyio_one() -> None:
            with anyio.move_on_after(rng.random() * 0.02):
                await one()

        async def toggles() -> None:
            while not ended:
                await cluster.drain(rng.choice([first, second]))
                await asyncio.sleep(rng.random() * 0.02)
                await cluster.resume(first)
                await cluster.resume(second)

        toggler = asyncio.create_task(toggles())
        stop = time.monotonic() + 8
        errors: list[Any] = []
        while time.monotonic() < stop:
            tasks = [asyncio.create_task(rng.choice([one, anyio_one])()) for _ in range(20)]
            await asyncio.sleep(rng.random() * 0.02)
            for task in tasks:
                if rng.random() < 0.5:
                    task.cancel()
                    if rng.random() < 0.5:
                        asyncio.get_running_loop().call_later(rng.random() * 0.002, task.cancel)
            errors += [
                e for e in await in_time(asyncio.gather(*tasks, return_exceptions=True)) if e
            ]
        ended = True
        await toggler
        others = {
            repr(e) for e in errors if not isinstance(e, asyncio.CancelledError | TooManyRequests)
        }
        print(len(errors), others)
        await eventually(lambda: not any(each.stats.leased for each in cluster.hosts()), 3.0)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]
        assert not cluster.read._router.sessions
        assert not others


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
