"""Servers whose history is not the primary's, or that have stopped to follow it."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from asyncpool import Cluster

from ._cluster import PORT, Servers, ask, cluster_on, name_of, port_of, servers, status
from ._tools import Proxy, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OLDER = "it follows a primary on the older timeline 1"


@pytest.fixture
async def pair() -> AsyncIterator[Servers]:
    """A primary and a standby of this test's own."""
    async with servers(1) as pair:
        yield pair


@pytest.mark.exhaustive
async def test_a_standby_of_an_old_primary_takes_no_reads() -> None:
    """It is current with a server whose timeline has ended; also when that server has gone."""
    async with servers(2) as trio:
        first, second = trio.standbys
        async with cluster_on(trio) as cluster:
            await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
            await first.promote()  # the old primary stays up, and `second` follows it
            await eventually(lambda: status(cluster, second).reason == OLDER, 3.0)
            ask(trio.primary, "CREATE TABLE elsewhere AS SELECT generate_series(1, 10000)")
            await cluster.write.execute("CREATE TABLE fresh (x int)")
            for _ in range(4):
                assert await cluster.read.fetchval("SELECT to_regclass('fresh')::text") == "fresh"
            await trio.primary.kill()
            is_alone = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"
            await eventually(lambda: ask(second, is_alone))
            looks = status(cluster, second).stats.requests
            await eventually(lambda: status(cluster, second).stats.requests > looks + 1)
            assert status(cluster, second).reason == OLDER


@pytest.mark.exhaustive
async def test_a_standby_whose_receiver_hangs_lags(trio: Servers) -> None:
    """It has replayed all that it received, but the primary has written more."""
    first, _ = trio.standbys
    ask(trio.primary, "CREATE TABLE IF NOT EXISTS hung (x int)")
    await trio.heal()
    async with cluster_on(trio, max_lag=0.5) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        pid = ask(first, "SELECT pid FROM pg_stat_wal_receiver")
        os.kill(pid, signal.SIGSTOP)
        try:
            await cluster.write.execute("INSERT INTO hung VALUES (1)")
            await eventually(lambda: status(cluster, first).reason.startswith("it lags"), 5.0)
            assert not ask(first, "SELECT count(*) FROM hung")
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: status(cluster, first).takes_reads, 5.0)


@pytest.mark.exhaustive
async def test_one_slow_look_moves_no_write_to_a_copy_of_the_primary(pair: Servers) -> None:
    """It was started as a primary by mistake, on the same timeline, which is a warning."""
    (replica,) = pair.standbys
    folder = pathlib.Path(ask(replica, "SHOW data_directory"))
    await replica.stop()
    (folder / "standby.signal").unlink()
    await replica.start()
    async with Proxy(pair.primary.dsn) as proxy:
        dsns = [proxy.dsn, replica.dsn]
        async with Cluster(lambda: dsns, min_size=1, max_size=2) as cluster:
            await cluster.wait()
            assert await cluster.write.fetchval(PORT) == port_of(pair.primary)
            proxy.open_way.clear()
            await eventually(lambda: not cluster.hosts()[0].reachable, 4.0)
            proxy.open_way.set()
            await eventually(lambda: cluster.hosts()[0].reachable, 4.0)
            assert await cluster.write.fetchval(PORT) == port_of(pair.primary)
            events = [each for each in cluster.explain().events if each.kind == "two primaries"]
            assert len(events) == 1
            assert name_of(replica) in events[0].text


@pytest.mark.exhaustive
async def test_no_write_is_lost_after_a_promotion_was_seen(pair: Servers) -> None:
    """What the old primary has acknowledged before that is lost, as it is still up."""
    (replica,) = pair.standbys
    ask(pair.primary, "CREATE TABLE ledger (x int)")
    async with cluster_on(pair, max_size=4) as cluster:
        early: list[int] = []
        late: list[int] = []
        ended = asyncio.Event()

        async def write(number: int) -> None:
            while not ended.is_set():
                number += 1
                acknowledged = late if cluster.explain().primary == name_of(replica) else early
                try:
                    await cluster.write.execute("INSERT INTO ledger VALUES (%s)", [number])
                except psycopg.OperationalError:
                    await asyncio.sleep(0.01)  # its connection was closed
                else:
                    acknowledged.append(number)

        async with asyncio.TaskGroup() as group:
            for each in range(4):
                group.create_task(write(each * 1_000_000))
            await eventually(lambda: len(early) > 100)
            await replica.promote()
            await eventually(lambda: cluster.explain().primary == name_of(replica), 3.0)
            await eventually(lambda: len(late) > 100)
            ended.set()
        rows = {row[0] for row in await cluster.write.fetchall("SELECT x FROM ledger")}
    assert set(late) <= rows
