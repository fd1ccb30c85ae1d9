"""The connections of the server, as its statistics show them."""

from __future__ import annotations

import asyncio

import psycopg

from benchmarks._pools import APPLICATION


async def free_connections(watcher: psycopg.AsyncConnection) -> int:
    """Return how many more connections the server accepts."""
    query = """
        SELECT current_setting('max_connections')::int
             - current_setting('superuser_reserved_connections')::int - count(*)
        FROM pg_stat_activity WHERE backend_type = 'client backend'
    """
    cur = await watcher.execute(query)
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def wait_until_closed(watcher: psycopg.AsyncConnection) -> None:
    """Wait until the server has ended the pool's backends, which would disturb the next pool."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name = %s AND pid <> pg_backend_pid()
    """
    for _ in range(250):
        cur = await watcher.execute(query, (APPLICATION,))
        if await cur.fetchone() == (0,):
            return
        await asyncio.sleep(0.02)
