"""Health of a pool while its connections are cleaned, closed, opened or replaced."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from asyncpool import AsyncConnectionPool

from ._tools import BOTH_LOOPS, Proxy, at_rest, eventually, in_time

if TYPE_CHECKING:
    from asyncpool.testing import Server

LOOPS = BOTH_LOOPS


@pytest.mark.parametrize("min_size", [1, 3])
async def test_a_pool_that_is_drained_is_not_down(dsn: str, min_size: int) -> None:
    """From the first moment on, until all are replaced."""
    async with AsyncConnectionPool(dsn, min_size=min_size) as pool:
        await pool.wait()
        await at_rest(pool)
        await pool.drain()
        seen = set()
        while (report := await pool.health()).idle < min_size:
            seen.add(report.status)
            await asyncio.sleep(0.001)
        assert (report.status, report.reason) == ("ok", "")
        assert seen <= {"ok", "degraded"}
        assert "degraded" in seen


async def test_a_drained_pool_says_why_it_is_degraded(dsn: str) -> None:
    """The reason names what takes long: the close, or the connect after it."""
    async with Proxy(dsn) as proxy, AsyncConnectionPool(proxy.dsn, min_size=2) as pool:
        await pool.wait()
        await at_rest(pool)
        proxy.delay = 0.2
        await pool.drain()
        report = await pool.health()
        assert (report.status, report.reason) == ("degraded", "connections are being replaced")
        await eventually(lambda: pool.stats().opening)
        report = await pool.health()
        assert (report.status, report.reason) == ("degraded", "connections are being opened")
        await at_rest(pool)


async def test_a_pool_whose_connections_cannot_be_replaced_is_down(
    server: Server, dsn: str
) -> None:
    """The pool is down from the first failed connect on."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        await server.stop()
        await pool.drain()
        await eventually(lambda: pool.stats().connects_failed)
        assert (await pool.health()).status == "down"
        await server.start()
        await at_rest(pool)


async def test_wait_after_drain_waits_for_the_new_connections(dsn: str) -> None:
    """`wait()` waits for them as for the first ones."""
    async with AsyncConnectionPool(dsn, min_size=2) as pool:
        await pool.wait()
        await at_rest(pool)
        await pool.drain()
        waits = [asyncio.create_task(pool.wait()) for _ in range(3)]
        await in_time(asyncio.gather(*waits))
        stats = pool.stats()
        assert (stats.idle, stats.connects) == (2, 4)
        await in_time(pool.wait())
        async with pool.connection():
            await pool.drain()
            await in_time(pool.wait())
            assert pool.stats().idle == 1
        await at_rest(pool)


async def test_close_ends_a_wait_after_drain(dsn: str) -> None:
    """The closed pool never becomes full again."""
    async with Proxy(dsn) as proxy:
        pool = AsyncConnectionPool(proxy.dsn, min_size=1)
        await pool.open(wait=True)
        proxy.delay = 60
        await pool.drain()
        waiting = asyncio.create_task(pool.wait())
        await asyncio.sleep(0)
        await pool.close()
        with suppress(Exception):
            await in_time(waiting)
        assert waiting.done()


async def test_what_is_being_cleaned_is_said_to_be(dsn: str) -> None:
    """Right after a cancelled block: it is not lent, not lost, and counted as one request."""
    async with AsyncConnectionPool(dsn, min_size=1) as pool:
        await pool.wait()
        pool.pop_stats()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05), pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(60)")
        stats, report = pool.stats(), await pool.health()
        assert (stats.cleaning, stats.leased, stats.requests, stats.returns_bad) == (1, 0, 1, 0)
        assert report.status == "ok"
        assert report.reason == "no connection is idle (0 in use, 1 being cleaned): none was pinged"
        await in_time(pool.wait())
        popped = pool.pop_stats()
        assert (popped["requests_num"], popped["pool_size"], popped["requests_errors"]) == (1, 1, 0)
        assert popped["usage_ms"] >= 40
        await at_rest(pool)
        rest = pool.get_stats()
        assert (rest["requests_num"], rest["usage_ms"], rest["pool_available"]) == (0, 0, 1)
