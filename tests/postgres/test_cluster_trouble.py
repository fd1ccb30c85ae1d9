"""What goes wrong around a cluster: work fails, little room, cancellation, misuse."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from typing import TYPE_CHECKING, Any

import anyio
import psycopg
import pytest

from asyncpool import (
    Budget,
    Cluster,
    PoolUnavailable,
    PoolWrongLoop,
    ReleaseError,
    TooManyRequests,
    within,
)

from ._cluster import PORT, cluster_on, name_of, port_of, status
from ._tools import SOON, eventually, in_time

if TYPE_CHECKING:
    from ._cluster import Servers


async def test_one_block_in_two_tasks_is_an_error(trio: Servers) -> None:
    """Of the second task, also while the first one waits; nothing is left."""
    async with cluster_on(trio, max_size=1) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        block = cluster.read.connection()

        async def use() -> None:
            async with block:
                await asyncio.sleep(0)

        held = [await cluster.read.acquire() for _ in range(2)]
        tasks = [asyncio.create_task(use()) for _ in range(2)]
        await eventually(lambda: sum(each.stats.waiting for each in cluster.hosts()))
        for conn in held:
            await cluster.read.release(conn)
        first, second = await in_time(asyncio.gather(*tasks, return_exceptions=True))
        assert (first, type(second)) == (None, RuntimeError)
        await use()
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_what_is_no_connection_is_refused(trio: Servers) -> None:
    """With the error for foreign ones."""
    async with cluster_on(trio) as cluster:
        others: list[Any] = [5, [], None]
        for each in others:
            with pytest.raises(ReleaseError, match="was not borrowed here"):
                await cluster.read.release(each)


@pytest.mark.exhaustive
async def test_a_block_on_a_host_that_left_the_list_ends_in_peace(trio: Servers) -> None:
    """Its pool is closed after it, and with the cluster at the latest."""
    full = [each.dsn for each in trio.all]
    listed = full[:2]
    async with Cluster(lambda: list(listed), min_size=1, max_size=2) as cluster:
        await cluster.wait()
        await eventually(lambda: status(cluster, trio.standbys[0]).takes_reads)
        leaving = cluster.pools[2]
        async with cluster.read.connection() as conn:
            listed.remove(full[1])
            await eventually(lambda: len(cluster.hosts()) == 1, 3.0)
            await eventually(lambda: leaving.stats().min_size == 0)
            await conn.execute("SELECT 1")
        await eventually(lambda: leaving.closed, 3.0)


async def test_reads_that_wait_for_a_host_are_served_in_order(trio: Servers) -> None:
    """As those that wait for a connection."""
    order: list[int] = []
    async with cluster_on(trio, max_size=1) as cluster:
        for each in trio.all:
            await cluster.drain(name_of(each))

        async def read(number: int) -> None:
            async with cluster.read.connection():
                order.append(number)

        tasks = [asyncio.create_task(read(each)) for each in range(30)]
        await asyncio.sleep(0)
        await cluster.resume(name_of(trio.standbys[0]))
        await in_time(asyncio.gather(*tasks))
    assert order == sorted(order)


async def test_an_error_of_the_work_does_not_repeat_it(trio: Servers) -> None:
    """Even if it is another pool's of the same class."""
    calls = 0

    async def work(_: Any) -> None:
        nonlocal calls
        calls += 1
        raise PoolUnavailable("another pool")

    async with cluster_on(trio) as cluster:
        with pytest.raises(PoolUnavailable):
            await in_time(cluster.read.run_transaction(work))
    assert calls == 1


@pytest.mark.exhaustive
async def test_a_long_read_that_may_be_run_elsewhere_is_run_once(trio: Servers) -> None:
    """Its host has one connection and answers, though no look gets through."""
    slow = "SELECT count(*) FROM generate_series(1, 30000000) AS g WHERE g % 7 = 3"
    async with cluster_on(trio, max_size=1) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        task = asyncio.create_task(cluster.read.fetchval(slow, retry_elsewhere=True))
        await eventually(lambda: sum(each.under_way for each in cluster.hosts()))
        (busy,) = [each.name for each in cluster.hosts() if each.under_way]
        while not task.done():
            await asyncio.wait({task}, timeout=0.05)
            assert [each.name for each in cluster.hosts() if each.under_way] in ([busy], [])
        assert task.result() == 4285714


async def test_a_release_on_another_loop_loses_nothing(trio: Servers) -> None:
    """It is an error there, and works on the cluster's loop."""
    async with cluster_on(trio) as cluster:
        conn = await cluster.read.acquire()

        def elsewhere() -> None:
            with pytest.raises(PoolWrongLoop):
                asyncio.run(cluster.read.release(conn))

        await asyncio.to_thread(elsewhere)
        await cluster.read.release(conn)


@pytest.mark.parametrize("places", [2, 3, 4])
async def test_a_budget_with_less_places_than_pools_serves_all(trio: Servers, places: int) -> None:
    """Looks and requests take turns."""
    async with Cluster(trio.dsn(), min_size=1, max_size=4, budget=Budget(places)) as cluster:
        for _ in range(10):
            assert await cluster.write.fetchval(PORT, timeout=3.0) == port_of(trio.primary)
            assert await cluster.read.fetchval(PORT, timeout=3.0)


@pytest.mark.exhaustive
async def test_looks_go_on_in_an_overload(trio: Servers) -> None:
    """They are never refused, and wait for less than all others."""
    ended = asyncio.Event()
    async with cluster_on(trio, max_size=1, overload="refuse") as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)

        async def read() -> None:
            while not ended.is_set():
                try:
                    async with cluster.read.connection() as conn:
                        await conn.execute("SELECT pg_sleep(0.05)")
                except psycopg.OperationalError:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                group.create_task(read())
            hosts, ages = cluster._members.all(), []
            for _ in range(30):
                await asyncio.sleep(0.1)
                ages.append(max(time.monotonic() - each.sight.at for each in hosts))
            ended.set()
        assert max(ages[10:]) < 3.0


@pytest.mark.exhaustive
async def test_looks_do_not_inherit_a_deadline(trio: Servers) -> None:
    """That of the request which opened the cluster."""
    cluster = Cluster(trio.dsn(), min_size=1, max_size=2)
    with within(0.5):
        await cluster.read.fetchval("SELECT 1")
    await eventually(lambda: all(each.role for each in cluster.hosts()))
    before = [each.stats.requests for each in cluster.hosts()]
    await eventually(
        lambda: all(
            each.stats.requests > old + 1 and each.reachable
            for each, old in zip(cluster.hosts(), before, strict=True)
        )
    )
    await cluster.write.fetchval("SELECT 1")
    await cluster.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_block_keeps_a_dropped_cluster(trio: Servers) -> None:
    """Until it has ended."""
    async with Cluster(trio.dsn(), min_size=1).read.connection() as conn:
        gc.collect()
        await asyncio.sleep(0)
        gc.collect()
        await conn.execute("SELECT 1")
    await eventually(lambda: gc.collect() >= 0 and len(asyncio.all_tasks()) == 1)


async def test_a_source_that_hangs_does_not_hinder_close() -> None:
    """Nor do those that wait for a host."""

    async def source() -> list[str]:
        await asyncio.Event().wait()
        return []

    before = asyncio.all_tasks()
    cluster = Cluster(source, min_size=1)
    await cluster.open()
    tasks = [
        asyncio.create_task(pool.fetchval("SELECT 1")) for pool in (cluster.write, cluster.read)
    ]
    await asyncio.sleep(0)
    began = time.monotonic()
    await cluster.close()
    assert time.monotonic() - began < SOON
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not asyncio.all_tasks() - before


async def test_no_secret_of_a_callable_shows() -> None:
    """Of a connection string that cannot be read."""
    given = ["host=db1 password='hunter2 frob=1"]
    async with Cluster(lambda: given, min_size=1) as cluster:
        await eventually(lambda: cluster.explain().events)
        assert "hunter2" not in str(cluster.explain()) + repr(cluster)


@pytest.mark.exhaustive
async def test_cancellations_while_hosts_come_and_go_leave_nothing(trio: Servers) -> None:
    """Neither `task.cancel()`, once or twice, nor anyio's scopes."""
    rng = random.Random(5)
    async with cluster_on(trio, max_size=2) as cluster:
        read, names = cluster.read, [name_of(each) for each in trio.standbys]
        ended = asyncio.Event()

        async def acquired() -> None:
            conn = await read.acquire()
            try:
                await conn.execute("SELECT 1")
            finally:
                await read.release(conn)

        async def one() -> None:
            match rng.randrange(5):
                case 0:
                    async with read.connection() as conn:
                        await conn.execute("SELECT pg_sleep(0.002)")
                case 1:
                    async with read.session():
                        await read.fetchval("SELECT 1")
                case 2:
                    await acquired()
                case 3:
                    await read.fetchval("SELECT 1, now()", retry_elsewhere=True)
                case _:
                    async with read.cursor() as cur:
                        await cur.execute("SELECT 1")

        async def in_scope() -> None:
            with anyio.move_on_after(rng.random() * 0.02):
                await one()

        async def toggle() -> None:
            while not ended.is_set():
                await cluster.drain(rng.choice(names))
                await asyncio.sleep(rng.random() * 0.02)
                for name in names:
                    await cluster.resume(name)

        toggles = asyncio.create_task(toggle())
        errors: list[Any] = []
        for _ in range(150):
            tasks = [asyncio.create_task(rng.choice([one, in_scope])()) for _ in range(20)]
            await asyncio.sleep(rng.random() * 0.02)
            for task in rng.sample(tasks, 10):
                task.cancel()
            errors += await in_time(asyncio.gather(*tasks, return_exceptions=True))
        ended.set()
        await toggles
        expected = asyncio.CancelledError | TooManyRequests | None
        assert [each for each in errors if not isinstance(each, expected)] == []
        await eventually(lambda: not any(each.stats.leased for each in cluster.hosts()))
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]
        assert not read._router.sessions
