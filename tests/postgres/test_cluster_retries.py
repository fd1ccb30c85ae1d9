"""Reads of a cluster that may run again: when they do, how often, and that they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import pytest

from asyncpool import PoolTimeout

from ._cluster import cluster_on, name_of, status
from ._tools import eventually, in_time

if TYPE_CHECKING:
    from ._cluster import Servers

LONG = "SELECT count(*) FROM generate_series(1, 10000) a, generate_series(1, 30000) b"
"""A plain read of many seconds."""


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
