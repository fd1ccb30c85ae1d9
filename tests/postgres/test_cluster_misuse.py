"""Misuse of a cluster: it is refused at the call, the message helps, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from asyncpool import Cluster, PoolTimeout, PoolWrongLoop

from ._cluster import cluster_on, name_of

if TYPE_CHECKING:
    from ._cluster import Servers


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


async def test_a_host_is_drained_on_the_loop_of_the_cluster(trio: Servers) -> None:
    """Another loop is refused, and changes nothing."""
    async with cluster_on(trio) as cluster:

        def elsewhere() -> None:
            for change in (cluster.drain, cluster.resume):
                with pytest.raises(PoolWrongLoop, match="another event loop"):
                    asyncio.run(change(name_of(trio.primary)))

        await asyncio.to_thread(elsewhere)
        assert not any(each.drained for each in cluster.hosts())


async def test_a_callable_for_kwargs_may_not_choose_the_host(trio: Servers) -> None:
    """All pools would go to one server otherwise; its result is known at the connect only."""

    async def kwargs() -> dict[str, Any]:
        return {"host": "127.0.0.1"}

    async with Cluster(trio.dsn(), min_size=1, kwargs=kwargs) as cluster:
        with pytest.raises(PoolTimeout, match="kwargs must not have host: the cluster sets it"):
            await cluster.read.fetchval("SELECT 1", timeout=1.0)


async def test_a_callable_for_kwargs_is_used(trio: Servers) -> None:
    """A plain one too, for all that does not choose the host."""

    def kwargs() -> dict[str, Any]:
        return {"application_name": "of-kwargs"}

    async with Cluster(trio.dsn(), min_size=1, kwargs=kwargs) as cluster:
        name = "SELECT current_setting('application_name')"
        assert await cluster.read.fetchval(name) == "of-kwargs"
        assert await cluster.write.fetchval(name) == "of-kwargs"
