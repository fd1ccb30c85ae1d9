"""Reads of a cluster that may run again: when they do, how often, and that they end."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from asyncpool import PoolTimeout

from ._cluster import PORT, cluster_on, name_of, port_of, status
from ._tools import eventually, in_time

if TYPE_CHECKING:
    from asyncpool.testing import Server

    from ._cluster import Servers

LONG = "SELECT count(*) FROM generate_series(1, 10000) a, generate_series(1, 30000) b"
"""A plain read of many seconds."""


@pytest.mark.exhaustive
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


async def read_after_a_crash(cluster: Any, server: Server) -> None:
    """Read in a session whose server has crashed meanwhile."""
    async with cluster.read.session() as conn:
        assert conn.info.port == port_of(server)
        await server.kill()
        await eventually(lambda: not status(cluster, server).reachable, 3.0)
        await cluster.read.fetchval(PORT, timeout=1.0)


async def test_a_read_in_a_session_on_a_host_that_is_down_does_not_spin(trio: Servers) -> None:
    """It fails, as in a pool's session, and is not tried over and over until its time is over."""
    first, second = trio.standbys
    async with cluster_on(trio, fail_fast_after=0.2) as cluster:
        await cluster.drain(name_of(second))
        began = time.process_time()
        with pytest.raises(psycopg.OperationalError):
            await in_time(read_after_a_crash(cluster, first))
        assert time.process_time() - began < 0.6
        assert [each.under_way for each in cluster.hosts()] == [0, 0, 0]


async def test_a_read_on_the_only_standby_is_run_on_the_primary_if_it_crashes(
    trio: Servers,
) -> None:
    """The primary takes no reads before the standby is known to be down, so that is waited for."""
    first, second = trio.standbys
    async with cluster_on(trio) as cluster:
        await cluster.drain(name_of(second))
        await eventually(lambda: not status(cluster, trio.primary).takes_reads)
        task = asyncio.create_task(cluster.read.fetchval(LONG, retry_elsewhere=True))
        await eventually(lambda: status(cluster, first).under_way == 1)
        await asyncio.sleep(0.1)
        await first.kill()
        await eventually(lambda: status(cluster, trio.primary).under_way == 1)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
