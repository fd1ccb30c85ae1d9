"""Faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from asyncpool import Budget, Cluster, PoolUnavailable

from ._cluster import PORT, Servers, cluster_on, name_of, port_of, servers, status
from ._tools import eventually, in_time


async def test_first_writes_do_not_go_to_an_old_primary() -> None:
    """A process that starts while an old primary is still up: B is on the higher timeline."""
    async with servers(1) as pair:
        (replica,) = pair.standbys
        await replica.promote()  # pair.primary stays up: an old primary
        found = []
        for _ in range(20):
            async with Cluster(pair.dsn(), min_size=1, max_size=2) as cluster:
                found.append(await cluster.write.fetchval(PORT))
        print(found)
        assert set(found) == {port_of(replica)}


async def test_reads_that_wait_for_a_host_are_served_in_order(trio: Servers) -> None:
    order: list[int] = []
    async with cluster_on(trio, max_size=1) as cluster:
        for each in trio.all:
            await cluster.drain(name_of(each))

        async def read(number: int) -> None:
            async with cluster.read.connection():
                order.append(number)

        tasks = [asyncio.create_task(read(each)) for each in range(30)]
        await asyncio.sleep(0.05)
        await cluster.resume(name_of(trio.standbys[0]))
        await in_time(asyncio.gather(*tasks))
    assert order == sorted(order), order


async def test_an_error_of_the_work_does_not_repeat_it(trio: Servers) -> None:
    """`PoolUnavailable` of another pool, raised in the function."""
    calls = 0

    async def work(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 50:
            raise KeyError
        raise PoolUnavailable("another pool")

    async with cluster_on(trio) as cluster:
        with pytest.raises(PoolUnavailable):
            await in_time(cluster.read.run_transaction(work))
    assert calls == 1


async def test_a_block_on_a_removed_host_is_not_cut(trio: Servers) -> None:
    full = [each.dsn for each in trio.all]
    listed = full[:2]
    async with Cluster(lambda: list(listed), min_size=1, max_size=2) as cluster:
        await cluster.wait()
        await eventually(lambda: status(cluster, trio.standbys[0]).takes_reads)
        async with cluster.read.connection() as conn:
            listed.remove(full[1])
            await eventually(lambda: len(cluster.hosts()) == 1, 3.0)
            await asyncio.sleep(6.0)
            await conn.execute("SELECT 1")


async def test_release_on_another_loop_is_no_loss(trio: Servers) -> None:
    from asyncpool import PoolWrongLoop

    async with cluster_on(trio) as cluster:
        conn = await cluster.read.acquire()

        def elsewhere() -> None:
            with pytest.raises(PoolWrongLoop):
                asyncio.run(cluster.read.release(conn))

        await asyncio.to_thread(elsewhere)
        await cluster.read.release(conn)


@pytest.mark.parametrize("places", [2, 3, 4])
async def test_a_small_budget_serves_all(trio: Servers, places: int) -> None:
    """Fewer places than pools."""
    async with Cluster(trio.dsn(), min_size=1, max_size=4, budget=Budget(places)) as cluster:
        began = time.monotonic()
        for _ in range(10):
            assert await cluster.write.fetchval(PORT, timeout=3.0) == port_of(trio.primary)
            await cluster.read.fetchval(PORT, timeout=3.0)
        assert time.monotonic() - began < 3.0
        print(cluster.hosts())


async def test_looks_go_on_under_saturation(trio: Servers) -> None:
    async with cluster_on(trio, max_size=1, overload="refuse") as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        ended = False

        async def reader() -> None:
            while not ended:
                try:
                    async with cluster.read.connection() as conn:
                        await conn.execute("SELECT pg_sleep(0.05)")
                except psycopg.OperationalError as error:
                    errors.append(type(error).__name__)
                    await asyncio.sleep(0.01)

        errors: list[str] = []
        tasks = [asyncio.create_task(reader()) for _ in range(60)]
        await asyncio.sleep(1.0)
        hosts = list(cluster._members.hosts.values())
        ages = []
        for _ in range(30):
            await asyncio.sleep(0.1)
            ages.append(max(time.monotonic() - h.sight.at for h in hosts))
        ended = True
        await asyncio.gather(*tasks)
        print(max(ages), len(errors), set(errors))
        assert max(ages) < 2.5


async def test_a_session_whose_host_is_down_does_not_spin(trio: Servers) -> None:
    first, second = trio.standbys
    async with cluster_on(trio, max_size=2, fail_fast_after=0.5) as cluster:
        await cluster.drain(name_of(second))
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012
            async with cluster.read.session() as conn:
                assert conn.info.port == port_of(first)
                await first.kill()
                await asyncio.sleep(1.5)
                began = time.process_time()
                try:
                    await in_time(cluster.read.fetchval(PORT, timeout=2.0))
                finally:
                    print("cpu", time.process_time() - began)
