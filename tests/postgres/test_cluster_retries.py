"""Reads of a cluster that may run again: when they do, how often, and that they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import PoolTimeout, PoolUnavailable

from ._cluster import cluster_on, name_of, status
from ._tools import eventually, in_time

if TYPE_CHECKING:
    from ._cluster import Servers

LONG = "SELECT count(*) FROM generate_series(1, 10000) a, generate_series(1, 30000) b"
"""A plain read of many seconds."""


async def test_a_long_read_that_may_run_again_stays_on_its_host(trio: Servers) -> None:
    """It holds the only connection of a host that is well, so the looks get none."""
    async with cluster_on(trio, max_size=1) as cluster:
        await eventually(lambda: sum(each.takes_reads for each in cluster.hosts()) == 2)
        task = asyncio.create_task(cluster.read.fetchval(LONG, retry_elsewhere=True))
        hosts = set[str]()
        for _ in range(35):
            await asyncio.sleep(0.1)
            hosts |= {each.name for each in cluster.hosts() if each.under_way}
        assert not task.done()
        assert len(hosts) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_read_fails_if_its_host_hangs_and_there_is_no_other(trio: Servers) -> None:
    """It does not wait for a host that it was already tried on."""
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        for each in (trio.primary, second):
            await cluster.drain(name_of(each))
        task = asyncio.create_task(cluster.read.fetchval(LONG, retry_elsewhere=True))
        await eventually(lambda: status(cluster, first).under_way == 1)
        await first.pause()
        went_down = f"{name_of(first)} went down while it ran a read: it is down: no answer within"
        with pytest.raises(psycopg.OperationalError, match=went_down) as caught:
            await in_time(task, 4.0)
        assert not isinstance(caught.value, PoolTimeout)
        assert status(cluster, first).under_way == 0


async def test_an_error_of_the_work_does_not_repeat_it(trio: Servers) -> None:
    """Such as `PoolUnavailable` of another pool, which the function of `run_transaction` uses."""
    calls = 0

    async def work(_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 50:
            raise KeyError
        raise PoolUnavailable("another pool")

    async with cluster_on(trio) as cluster:
        with pytest.raises(PoolUnavailable, match="another pool"):
            await in_time(cluster.read.run_transaction(work))
    assert calls == 1


async def test_reads_that_wait_for_a_host_are_served_in_order(trio: Servers) -> None:
    """In the order of their calls, as in a pool's line."""
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
    assert order == list(range(30))
