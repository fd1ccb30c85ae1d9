"""More faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import psycopg
import pytest

from asyncpool import Cluster, ReleaseError

from ._cluster import PORT, Servers, ask, cluster_on, name_of, port_of, servers, status
from ._tools import Proxy, eventually, in_time


async def test_one_block_in_two_tasks_is_an_error(trio: Servers) -> None:
    """Of the second task; nothing is leaked."""
    async with cluster_on(trio, max_size=2) as cluster:
        block = cluster.read.connection()

        async def use() -> None:
            async with block:
                await asyncio.sleep(0.1)

        held = [await cluster.read.acquire() for _ in range(4)]
        tasks = [asyncio.create_task(use()) for _ in range(2)]
        await asyncio.sleep(0.1)
        for conn in held:
            await cluster.read.release(conn)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert sum(each.stats.leased for each in cluster.hosts()) == 0
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]
        assert sum(isinstance(each, RuntimeError) for each in found) == 1


async def test_what_is_no_connection_is_refused_by_name(trio: Servers) -> None:
    async with cluster_on(trio) as cluster:
        with pytest.raises(ReleaseError):
            await cluster.read.release(5)


async def test_a_moment_without_the_newer_primary_in_the_list_moves_no_write() -> None:
    """The old primary is up; the list of hosts lacks the new one for one answer."""
    async with servers(1) as pair:
        (replica,) = pair.standbys
        await replica.promote()
        full = [each.dsn for each in pair.all]
        listed = list(full)
        async with Cluster(lambda: list(listed), min_size=1, max_size=2) as cluster:
            await cluster.wait()
            assert await cluster.write.fetchval(PORT) == port_of(replica)
            listed.remove(replica.dsn)
            await asyncio.sleep(1.3)
            listed[:] = full
            ports = set()
            for _ in range(20):
                ports.add(await cluster.write.fetchval(PORT))
                await asyncio.sleep(0.1)
            assert ports == {port_of(replica)}


async def test_one_slow_look_moves_no_write_to_another_primary() -> None:
    """Two servers claim to be the primary on one timeline: a standby that was started as one."""
    async with servers(1) as pair:
        (replica,) = pair.standbys
        folder = pathlib.Path(ask(replica, "SHOW data_directory"))
        await replica.stop()
        # As by a mistake: without its standby.signal it is a primary on timeline 1.
        (folder / "standby.signal").unlink()
        await replica.start()
        async with Proxy(pair.primary.dsn) as proxy:
            dsns = [proxy.dsn, replica.dsn]
            async with Cluster(lambda: dsns, min_size=1, max_size=2) as cluster:
                await cluster.wait()
                before = await cluster.write.fetchval(PORT)
                proxy.open_way.clear()
                await asyncio.sleep(2.2)
                proxy.open_way.set()
                await asyncio.sleep(0.5)
                assert await cluster.write.fetchval(PORT) == before


async def test_writes_that_an_old_primary_acknowledges_after_a_promotion() -> None:
    """How many are lost while both are up: for the page, no fault by itself."""
    async with servers(1) as pair:
        (replica,) = pair.standbys
        ask(pair.primary, "CREATE TABLE ledger (x int)")
        async with cluster_on(pair, max_size=4) as cluster:
            acknowledged: list[int] = []
            ended = False

            async def write(first: int) -> None:
                number = first
                while not ended:
                    number += 1
                    try:
                        await cluster.write.execute("INSERT INTO ledger VALUES (%s)", [number])
                        acknowledged.append(number)
                    except psycopg.OperationalError:
                        await asyncio.sleep(0.01)

            tasks = [asyncio.create_task(write(each * 1_000_000)) for each in range(4)]
            await asyncio.sleep(1.0)
            await replica.promote()
            await eventually(lambda: cluster.explain().primary == name_of(replica), 3.0)
            await asyncio.sleep(0.5)
            ended = True
            await asyncio.gather(*tasks)
            rows = {row[0] for row in await cluster.write.fetchall("SELECT x FROM ledger")}
            print("acknowledged", len(acknowledged), "lost", len(set(acknowledged) - rows))
