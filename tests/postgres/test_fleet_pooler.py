"""PgBouncer between a fleet and the server, with the settings that the page on PgBouncer shows."""

from __future__ import annotations

import asyncio
import configparser
import logging
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from asyncpool import AsyncConnectionPool, Fleet

from ._cli import bouncer
from ._tools import Backends, eventually, in_time

PAGE = Path(__file__).parents[2] / "docs" / "pgbouncer.md"


def documented() -> dict[str, Any]:
    """The settings of PgBouncer on the page."""
    (block,) = re.findall(r"```ini\n(.*?)```", PAGE.read_text(), re.DOTALL)
    parser = configparser.ConfigParser()
    parser.read_string(block)
    return dict(parser["pgbouncer"])


SETTINGS = documented()
SESSIONS = int(SETTINGS["default_pool_size"]) + int(SETTINGS["reserve_pool_size"])
"""The most sessions of PgBouncer on the server."""


@pytest.fixture
def pooled(dsn: str) -> Iterator[str]:
    """A connection string through PgBouncer."""
    with bouncer(dsn, **SETTINGS) as through:
        yield through


async def test_behind_a_pooler_a_fleet_stays_at_its_configured_size(
    pooled: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says once that it cannot see the others, and `max_size` alone limits the pool."""
    fleet = Fleet("shop")
    async with AsyncConnectionPool(
        pooled, min_size=1, max_size=12, kwargs={"prepare_threshold": None}, budget=fleet
    ) as pool:
        conns = [await in_time(pool.acquire()) for _ in range(pool.max_size)]
        await eventually(lambda: not fleet.stats().sees)
        assert fleet.stats().limit is None
        assert pool.stats().size == fleet.size == 12
        assert "cannot be seen" in (pool.explain().budget or "")
        for conn in conns:
            await pool.release(conn)
        assert await pool.fetchval("SELECT 1") == 1
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert sum("cannot be seen" in each.getMessage() for each in warned) == 1


async def test_many_members_share_the_sessions_of_a_pooler(pooled: str, backends: Backends) -> None:
    """Twice as many pools as sessions: each request is answered, PgBouncer limits the server."""
    asked, most = 10, 0

    async def work(pool: AsyncConnectionPool) -> None:
        for _ in range(asked):
            async with pool.connection() as conn:
                await conn.execute("SELECT pg_sleep(0.005)")

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(backends.pids()))
            await asyncio.sleep(0.02)

    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(
                AsyncConnectionPool(
                    pooled,
                    min_size=1,
                    max_size=4,
                    kwargs={"prepare_threshold": None},
                    budget=Fleet("shop"),
                )
            )
            for _ in range(2 * SESSIONS)
        ]
        watching = asyncio.create_task(watch())
        await in_time(asyncio.gather(*(work(pool) for pool in pools for _ in range(4))), 60.0)
        watching.cancel()
        await asyncio.wait({watching})
        served = sum(pool.stats().requests for pool in pools)
        assert served >= 4 * asked * len(pools)
        assert sum(pool.stats().requests_failed for pool in pools) == 0
    assert 0 < most <= SESSIONS
