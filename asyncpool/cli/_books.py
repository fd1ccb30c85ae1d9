"""The demo's tables: made, audited and dropped, each over a connection outside the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import IsolationLevel, sql

from asyncpool.cli._bank import ACCOUNTS, TELLERS, Fate

Connection = psycopg.AsyncConnection[Any]

CREATE = """
CREATE SCHEMA asyncpool_demo;
CREATE TABLE asyncpool_demo.branches (
    id integer PRIMARY KEY, balance bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
CREATE TABLE asyncpool_demo.tellers (
    id integer PRIMARY KEY, balance bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
CREATE TABLE asyncpool_demo.accounts (
    id integer PRIMARY KEY, balance bigint NOT NULL DEFAULT 0) WITH (fillfactor = 90);
CREATE TABLE asyncpool_demo.history (
    id bigint PRIMARY KEY, account integer NOT NULL, teller integer NOT NULL,
    branch integer NOT NULL, delta bigint NOT NULL, booked_at timestamptz NOT NULL)
"""
SUMS = """
SELECT (SELECT coalesce(sum(balance), 0)::bigint FROM asyncpool_demo.accounts),
       (SELECT coalesce(sum(balance), 0)::bigint FROM asyncpool_demo.tellers),
       (SELECT coalesce(sum(balance), 0)::bigint FROM asyncpool_demo.branches),
       (SELECT coalesce(sum(delta), 0)::bigint FROM asyncpool_demo.history)
"""
OWNER = "SELECT obj_description(to_regnamespace('asyncpool_demo'), 'pg_namespace')"
KILL = """
SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = %s AND datname = current_database()
"""


@dataclass(frozen=True, slots=True)
class Audit:
    """What the server has, held against what the clerks know."""

    accounts: int
    """The sum of the balances; so are the next two."""
    tellers: int
    branches: int
    history: int
    """The sum of the deltas."""
    rows: int
    """In the history."""
    acknowledged: int
    missing: int
    """Acknowledged, and not in the history."""
    unasked: int
    """In the history, although no COMMIT was sent for them."""
    in_doubt: int
    resolved: int
    """Of those in doubt, the ones that are in the history."""

    @property
    def faults(self) -> list[str]:
        """What does not agree, in words; empty when the books balance."""
        found = []
        if len({self.accounts, self.tellers, self.branches, self.history}) > 1:
            found.append(
                f"the sums differ: accounts {self.accounts:,}, tellers {self.tellers:,},"
                f" branches {self.branches:,}, history {self.history:,}"
            )
        if self.missing:
            found.append(f"{self.missing:,} acknowledged transfers are missing from the history")
        if self.unasked:
            found.append(f"{self.unasked:,} transfers in the history were never committed")
        return found


@asynccontextmanager
async def office(dsn: str, name: str) -> AsyncIterator[Connection]:
    """A connection beside the pool, in autocommit mode, on which nothing takes for ever."""
    conn = await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name=f"{name}-office", connect_timeout=10
    )
    async with conn:
        await conn.execute("SET statement_timeout = '60s'; SET lock_timeout = '10s'")
        yield conn


async def create(conn: Connection, name: str, branches: int) -> None:
    """Make the schema and fill it, all or nothing; its comment says whose it is.

    Raises:
        psycopg.errors.DuplicateSchema: it is there already.
    """
    async with conn.transaction():
        await conn.execute(CREATE)
        await conn.execute(
            sql.SQL("COMMENT ON SCHEMA asyncpool_demo IS {}").format(sql.Literal(name))
        )
        for table, each in (("branches", 1), ("tellers", TELLERS), ("accounts", ACCOUNTS)):
            await conn.execute(
                sql.SQL(
                    "INSERT INTO asyncpool_demo.{} (id) SELECT generate_series(0, {} - 1)"
                ).format(sql.Identifier(table), sql.Literal(branches * each))
            )
    await conn.execute("ANALYZE asyncpool_demo.branches, asyncpool_demo.tellers")


async def drop(conn: Connection, name: str) -> None:
    """Drop the schema if it is the one that `create` made under this name."""
    cursor = await conn.execute(OWNER)
    if await cursor.fetchone() == (name,):
        await kill(conn, name)
        await conn.execute("SET client_min_messages = warning")
        await conn.execute("DROP SCHEMA asyncpool_demo CASCADE")


async def kill(conn: Connection, name: str) -> list[int]:
    """Terminate every backend whose application has this name; returns their process ids."""
    cursor = await conn.execute(KILL, [name])
    return [pid for pid, killed in await cursor.fetchall() if killed]


async def audit(conn: Connection, fates: bytearray) -> Audit:
    """Compare the four tables with one another, and the history with the transfers' fates."""
    await conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    booked = bytearray(len(fates))
    rows = strangers = 0
    async with conn.transaction():
        (sums,) = await (await conn.execute(SUMS)).fetchall()
        async with conn.cursor(name="history") as cursor:
            cursor.itersize = 10_000
            await cursor.execute("SELECT id FROM asyncpool_demo.history")
            async for (number,) in cursor:
                rows += 1
                if 0 <= number < len(fates):
                    booked[number] = 1
                else:
                    strangers += 1
    by_fate = [[0, 0] for _ in Fate]
    for fate, is_booked in zip(fates, booked, strict=True):
        by_fate[fate][is_booked] += 1
    return Audit(
        accounts=sums[0],
        tellers=sums[1],
        branches=sums[2],
        history=sums[3],
        rows=rows,
        acknowledged=sum(by_fate[Fate.ACKNOWLEDGED]),
        missing=by_fate[Fate.ACKNOWLEDGED][False],
        unasked=strangers + by_fate[Fate.UNBOOKED][True] + by_fate[Fate.FAILED][True],
        in_doubt=sum(by_fate[Fate.IN_DOUBT]),
        resolved=by_fate[Fate.IN_DOUBT][True],
    )
