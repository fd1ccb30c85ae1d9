"""More faults that a review of the cluster found; each test fails while its fault is there."""

from __future__ import annotations

import asyncio

import pytest

from asyncpool import ReleaseError

from ._cluster import Servers, cluster_on


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
