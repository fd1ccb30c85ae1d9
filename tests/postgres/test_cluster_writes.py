"""`cluster.write`: it follows the primary through promotions, restarts and silence."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import Budget, Cluster, Gap, PoolTimeout

from ._cluster import PORT, Servers, ask, cluster_on, name_of, port_of, servers, status
from ._tools import LIMIT, SOON, Proxy, eventually, in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def pair() -> AsyncIterator[Servers]:
    """A primary and a standby of this test's own."""
    async with servers(1) as pair:
        yield pair


async def waiting_writes(cluster: Cluster[Any], number: int) -> list[asyncio.Task[Any]]:
    """Start writes that wait in the line."""
    tasks = [asyncio.create_task(cluster.write.fetchval(PORT)) for _ in range(number)]
    await eventually(lambda: cluster.write.stats().waiting == number)
    return tasks


@pytest.mark.exhaustive
async def test_writes_wait_for_a_promotion_and_none_is_lost(pair: Servers) -> None:
    """Those that waited are served by the new primary, soon after its promotion."""
    (replica,) = pair.standbys
    async with cluster_on(pair, min_size=2, max_size=4) as cluster:
        await cluster.write.fetchval(PORT)
        await pair.primary.stop()
        tasks = await waiting_writes(cluster, 20)
        assert not status(cluster, pair.primary).reachable
        await replica.promote()
        began = time.monotonic()
        assert await in_time(asyncio.gather(*tasks)) == [port_of(replica)] * 20
        assert time.monotonic() - began < SOON
        assert not await cluster.write.fetchval("SELECT pg_is_in_recovery()")
        assert cluster.explain().primary == name_of(replica)
        kinds = [each.kind for each in cluster.explain().events]
        assert "primary" in kinds
        assert "role" in kinds


@pytest.mark.exhaustive
async def test_a_primary_that_hangs_is_left_at_a_promotion(pair: Servers) -> None:
    """What is under way there fails at once; what waits is served by the new one."""
    (replica,) = pair.standbys
    async with cluster_on(pair, max_size=2) as cluster:
        async with cluster.write.connection() as conn:
            await conn.execute("SELECT 1")
        await pair.primary.pause()
        stuck = [asyncio.create_task(cluster.write.fetchval(PORT)) for _ in range(2)]
        await eventually(lambda: cluster.write.stats().leased >= 1)
        late = [asyncio.create_task(cluster.write.fetchval("SELECT 7, now()")) for _ in range(5)]
        await eventually(lambda: not status(cluster, pair.primary).reachable, 4.0)
        await replica.promote()
        began = time.monotonic()
        found = await in_time(asyncio.gather(*stuck, *late, return_exceptions=True))
        assert time.monotonic() - began < SOON
        failed = [each for each in found if isinstance(each, BaseException)]
        assert all(isinstance(each, psycopg.OperationalError) for each in failed)
        assert not any(isinstance(each, PoolTimeout) for each in failed)
        assert len(failed) <= 2
        assert found.count(7) >= 5
        assert await cluster.write.fetchval(PORT) == port_of(replica)
        await pair.primary.resume()


@pytest.mark.exhaustive
async def test_an_old_primary_that_comes_back_is_not_followed(pair: Servers) -> None:
    """It is on an older timeline; it takes neither writes nor reads."""
    (replica,) = pair.standbys
    async with cluster_on(pair) as cluster:
        await pair.primary.kill()
        await eventually(lambda: not status(cluster, pair.primary).reachable)
        await replica.promote()
        await eventually(lambda: cluster.explain().primary == name_of(replica))
        await pair.primary.start()
        await eventually(lambda: status(cluster, pair.primary).reachable)
        old = status(cluster, pair.primary)
        assert old.role == "primary"
        assert old.reason == "it is not the primary that the cluster follows"
        for _ in range(4):
            assert await cluster.write.fetchval(PORT) == port_of(replica)
            assert await cluster.read.fetchval(PORT) == port_of(replica)


@pytest.mark.exhaustive
async def test_a_new_cluster_does_not_write_to_an_old_primary(pair: Servers) -> None:
    """However late the other one is seen, it follows none before."""
    (replica,) = pair.standbys
    await pair.primary.kill()
    await replica.promote()
    await pair.primary.start()
    async with Proxy(replica.dsn) as proxy:
        proxy.delay = 0.3
        dsns = [pair.primary.dsn, proxy.dsn]
        async with Cluster(lambda: dsns, min_size=1, max_size=2) as cluster:
            assert await cluster.write.fetchval(PORT) == port_of(replica)
            (event,) = [each for each in cluster.explain().events if each.kind == "primary"]
            assert "on timeline 2" in event.text


@pytest.mark.exhaustive
async def test_work_on_a_primary_that_was_superseded_is_cut_off(pair: Servers) -> None:
    """Its commits would be lost; the connection is not used again."""
    (replica,) = pair.standbys
    async with cluster_on(pair) as cluster:

        async def work() -> None:
            async with cluster.write.connection() as conn:
                await conn.execute("CREATE TABLE lost (x int)")
                await replica.promote()
                await eventually(lambda: cluster.explain().primary == name_of(replica))
                await conn.execute("INSERT INTO lost VALUES (1)")

        with pytest.raises(psycopg.OperationalError):
            await work()
        assert await cluster.write.fetchval(PORT) == port_of(replica)
        assert ask(pair.primary, "SELECT to_regclass('lost')") is None


@pytest.mark.exhaustive
async def test_a_restart_of_the_primary_is_waited_for(pair: Servers) -> None:
    """Writes wait in the line; reads go on."""
    async with cluster_on(pair) as cluster:
        await pair.primary.stop()
        tasks = await waiting_writes(cluster, 3)
        assert await cluster.read.fetchval(PORT) == port_of(pair.standbys[0])
        await pair.primary.start()
        assert await in_time(asyncio.gather(*tasks)) == [port_of(pair.primary)] * 3


@pytest.mark.exhaustive
async def test_without_a_primary_the_error_says_why(pair: Servers) -> None:
    """What each host is; reads do not need one."""
    (replica,) = pair.standbys
    await pair.primary.stop()
    async with cluster_on(pair, ready=False, timeout=3.0) as cluster:
        assert await cluster.read.fetchval(PORT) == port_of(replica)
        with pytest.raises(PoolTimeout) as caught:
            await cluster.write.fetchval(PORT)
        said = str(caught.value)
        assert f"{name_of(pair.primary)}: it is down: " in said
        assert f"{name_of(replica)}: it is a standby" in said
        health = await cluster.health()
        assert health.status == "degraded"
        assert health.reason.startswith("no primary is known")
        await replica.promote()
        began = time.monotonic()
        assert await cluster.write.fetchval(PORT) == port_of(replica)
        assert time.monotonic() - began < SOON
        assert await cluster.read.fetchval(PORT) == port_of(replica)
        health = await cluster.health()
        assert health.status == "degraded"
        assert f"{name_of(pair.primary)} takes no reads: it is down" in health.reason


@pytest.mark.exhaustive
async def test_acknowledged_writes_are_there_after_a_switchover_under_load(pair: Servers) -> None:
    """Each once. A write whose outcome is not known may be there or not."""
    (replica,) = pair.standbys
    ask(pair.primary, "CREATE TABLE ledger (x int)")
    acknowledged: list[int] = []
    unknown: list[int] = []
    ended = asyncio.Event()

    async def write(cluster: Cluster[Any], first: int) -> None:
        number = first
        while not ended.is_set():
            try:
                await cluster.write.execute("INSERT INTO ledger VALUES (%s)", [number])
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                unknown.append(number)
            else:
                acknowledged.append(number)
            number += 1
            await asyncio.sleep(0.001)

    async with cluster_on(pair, min_size=2, max_size=4) as cluster:
        async with asyncio.TaskGroup() as group:
            for each in range(8):
                group.create_task(write(cluster, each * 1_000_000))
            await eventually(lambda: len(acknowledged) > 100)
            await pair.primary.stop()  # in order: the standby has all that was committed
            await replica.promote()
            after = len(acknowledged)
            await eventually(lambda: len(acknowledged) > after + 100)
            ended.set()
        rows = [row[0] for row in await cluster.write.fetchall("SELECT x FROM ledger")]
    assert len(rows) == len(set(rows))
    assert set(acknowledged) <= set(rows)
    assert set(rows) <= set(acknowledged) | set(unknown)
    assert len(unknown) <= 16


@pytest.mark.exhaustive
async def test_a_listener_follows_the_primary(pair: Servers) -> None:
    """After a gap, as at any loss."""
    (replica,) = pair.standbys
    async with (
        cluster_on(pair, min_size=2) as cluster,
        cluster.write.listen("a", gaps=True) as notifications,
    ):
        await cluster.write.execute("SELECT pg_notify('a', 'before')")
        assert (await in_time(anext(notifications))).payload == "before"
        await pair.primary.stop()
        await replica.promote()
        found = await in_time(anext(notifications))
        assert isinstance(found, Gap)
        while isinstance(found, Gap):  # a connection made in the middle of it may be lost too
            await cluster.write.execute("SELECT pg_notify('a', 'after')")
            found = await in_time(anext(notifications))
        assert found.payload == "after"


@pytest.mark.exhaustive
async def test_writes_move_although_reads_use_up_the_budget() -> None:
    """All pools share three places, and thirty tasks read: a promotion is still followed."""
    async with servers(2) as trio:
        promoted, _ = trio.standbys
        ended = False
        async with cluster_on(trio, max_size=4, budget=Budget(3), timeout=LIMIT) as cluster:

            async def read() -> None:
                while not ended:
                    with suppress(psycopg.OperationalError):
                        async with cluster.read.connection() as conn:
                            await conn.execute("SELECT pg_sleep(0.02)")
                    await asyncio.sleep(0)

            tasks = [asyncio.create_task(read()) for _ in range(30)]
            assert await cluster.write.fetchval(PORT) == port_of(trio.primary)
            await trio.primary.kill()
            await promoted.promote()
            assert await cluster.write.fetchval(PORT, timeout=LIMIT) == port_of(promoted)
            ended = True
            await asyncio.gather(*tasks)
