"""Questions that the page asks the server: whether the pools work, and how many sessions it has.

Both are asked for only while somebody looks at the page, and neither joins a wait queue.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from asyncpool import AsyncNullConnectionPool

from ._sources import Pool

HEALTH_INTERVAL = 1.0
"""Minimum seconds between two health checks of a pool; each pings an idle connection."""
NULL_POOL_INTERVAL = 10.0
"""Minimum seconds between two health checks of a null pool; each opens a connection."""
SERVER_TIMEOUT = 2.0
SESSIONS = """
SELECT current_database(), current_user, count(*), count(DISTINCT client_addr),
       count(*) FILTER (WHERE pid = ANY(%s::int[]))
FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user
"""
SHOWN = ("host", "hostaddr", "port", "dbname", "user")


class HealthChecks:
    """The latest health report of each pool; all readers share one round of checks."""

    def __init__(self, interval: float) -> None:
        self._interval = max(interval, HEALTH_INTERVAL)
        self._reports: dict[str, dict[str, Any]] = {}
        self._null_at: dict[str, float] = {}
        self._round: asyncio.Task[None] | None = None
        self._next_at = 0.0
        self.rounds = 0
        """How many rounds of checks have ended."""

    def report(self, name: str) -> dict[str, Any] | None:
        """Return the latest report of a pool; None: it was not checked yet."""
        return self._reports.get(name)

    async def refresh(self, pools: dict[str, Pool]) -> None:
        """Check all pools, unless that was done recently."""
        loop = asyncio.get_running_loop()
        task = self._round
        if task is None or task.get_loop() is not loop:
            due = True
        else:
            due = task.done() and loop.time() >= self._next_at
        if due:
            self._next_at = loop.time() + self._interval
            self._round = task = loop.create_task(self._check(pools), context=Context())
        if task is not None and not task.done():
            # The round goes on if this reader is cancelled, since others wait for it too.
            await asyncio.wait({task})

    async def _check(self, pools: dict[str, Pool]) -> None:
        now = asyncio.get_running_loop().time()
        due = {}
        for name, pool in pools.items():
            if isinstance(pool, AsyncNullConnectionPool):
                if now < self._null_at.get(name, 0.0):
                    continue
                self._null_at[name] = now + NULL_POOL_INTERVAL
            due[name] = pool
        reports = await asyncio.gather(*(_health(pool) for pool in due.values()))
        kept = {name: known for name, known in self._reports.items() if name in pools}
        self._reports = kept | dict(zip(due, reports, strict=True))
        self.rounds += 1


async def _health(pool: Pool) -> dict[str, Any]:
    if not pool.stats().connects and "not open yet" in pool.explain().doing:
        # health() would open a pool that opens on its first use.
        return {"status": "not open", "reason": "the pool is not open yet"}
    return (await pool.health(1.0)).as_dict()


def database(pool: Pool) -> dict[str, str] | None:
    """Return where a pool connects to, without the password; None: a callable decides that."""
    conninfo, kwargs = pool.conninfo, pool.kwargs
    if not isinstance(conninfo, str) or callable(kwargs):
        return None
    params = {
        each.keyword.decode(): each.val.decode()
        for each in Conninfo.get_defaults()
        if each.val is not None
    }
    try:
        given = {**conninfo_to_dict(conninfo), **(kwargs or {})}
    except psycopg.Error:
        return None
    params |= {key: str(value) for key, value in given.items() if value is not None}
    params.setdefault("dbname", params.get("user", ""))
    return {key: params[key] for key in SHOWN if params.get(key)}


async def sessions(pool: Pool) -> dict[str, Any] | None:
    """Return how many sessions of its role the server has; None: no idle connection can ask."""
    if not pool.stats().idle:
        return None
    pids = [each.pid for each in pool.explain().connections if each.pid is not None]
    try:
        async with asyncio.timeout(SERVER_TIMEOUT):
            row = await pool.fetchone(SESSIONS, [pids], row_factory=psycopg.rows.tuple_row)
    except (psycopg.Error, TimeoutError):
        return None
    if row is None:
        return None
    names = ("database", "role", "sessions", "addresses", "own")
    return dict(zip(names, row, strict=True))
