"""Misuse of a cluster: it is refused at the call, the message helps, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from asyncpool import Cluster, PoolTimeout, PoolWrongLoop, ReleaseError

from ._cluster import cluster_on, name_of
from ._tools import eventually, in_time

if TYPE_CHECKING:
    from ._cluster import Servers


async def test_a_block_entered_by_two_tasks_is_an_error_of_the_second(trio: Servers) -> None:
    """Also while the first one still waits; neither leaks a connection."""
    async with cluster_on(trio, max_size=2) as cluster:
        block = cluster.read.connection()

        async def use() -> None:
            async with block:
                await asyncio.sleep(0)

        held = [await cluster.read.acquire() for _ in range(4)]
        tasks = [asyncio.create_task(use()) for _ in range(2)]
        await eventually(lambda: cluster.read.stats().waiting)
        with pytest.raises(RuntimeError, match="this block is in use"):
            await in_time(tasks[1])
        for conn in held:
            await cluster.read.release(conn)
        await in_time(tasks[0])
        assert cluster.read.stats().leased == 0
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_block_that_could_not_be_entered_may_be_entered_later(trio: Servers) -> None:
    """And again after it has ended, as a pool's."""
    async with cluster_on(trio) as cluster:
        block = cluster.read.connection(0.05)
        for each in trio.all:
            await cluster.drain(name_of(each))
        with pytest.raises(PoolTimeout):
            await block.__aenter__()
        await cluster.resume(name_of(trio.standbys[0]))
        for _ in range(2):
            async with block as conn:
                await conn.execute("SELECT 1")


async def test_a_release_on_another_loop_loses_no_connection(trio: Servers) -> None:
    """It is refused there, and the connection can still be released on its own loop."""
    async with cluster_on(trio) as cluster:
        conn = await cluster.read.acquire()

        def elsewhere() -> None:
            for give_back in (cluster.read.release, cluster.read.putconn):
                with pytest.raises(PoolWrongLoop):
                    asyncio.run(give_back(conn))

        await asyncio.to_thread(elsewhere)
        await cluster.read.release(conn)
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_host_is_drained_on_the_loop_of_the_cluster(trio: Servers) -> None:
    """Another loop is refused, and changes nothing."""
    async with cluster_on(trio) as cluster:

        def elsewhere() -> None:
            for change in (cluster.drain, cluster.resume):
                with pytest.raises(PoolWrongLoop, match="another event loop"):
                    asyncio.run(change(name_of(trio.primary)))

        await asyncio.to_thread(elsewhere)
        assert not any(each.drained for each in cluster.hosts())


@pytest.mark.parametrize("given", [5, None, "conn", object()])
async def test_what_is_no_connection_cannot_be_released(trio: Servers, given: Any) -> None:
    """Whether or not it can have weak references."""
    async with cluster_on(trio) as cluster:
        for give_back in (cluster.read.release, cluster.read.putconn):
            with pytest.raises(ReleaseError, match="was not borrowed here"):
                await give_back(given)


async def test_a_callable_for_kwargs_may_not_choose_the_host(trio: Servers) -> None:
    """All pools would go to one server otherwise; its result is known at the connect only."""

    async def kwargs() -> dict[str, Any]:
        return {"host": "127.0.0.1"}

    async with Cluster(trio.dsn(), min_size=1, kwargs=kwargs) as cluster:
        with pytest.raises(PoolTimeout, match="kwargs must not have host: the cluster sets it"):
            await cluster.read.fetchval("SELECT 1", timeout=1.0)


async def test_a_callable_for_kwargs_is_used(trio: Servers) -> None:
    """A plain one too, for all that does not choose the host."""
    options = {"min_size": 1, "kwargs": lambda: {"application_name": "of-kwargs"}}
    async with Cluster(trio.dsn(), **options) as cluster:
        name = "SELECT current_setting('application_name')"
        assert await cluster.read.fetchval(name) == "of-kwargs"
        assert await cluster.write.fetchval(name) == "of-kwargs"
