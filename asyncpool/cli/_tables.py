"""Create, audit and drop the demo's tables, over connections outside the pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import IsolationLevel, sql

from asyncpool.cli._workload import ACCOUNTS, TELLERS, Outcome

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
    """The server's data, compared with the recorded outcomes."""

    accounts: int
    """The sum of this table's balances; the next two fields likewise."""
    tellers: int
    branches: int
    history: int
    """The sum of the deltas in the history."""
    rows: int
    """The rows of the history."""
    acknowledged: int
    missing: int
    """Acknowledged transfers that are not in the history."""
    unexpected: int
    """Transfers in the history for which no COMMIT was sent."""
    in_doubt: int
    resolved: int
    """Transfers in doubt that are in the history."""

    @property
    def faults(self) -> list[str]:
        """A message for each mismatch; empty if everything agrees."""
        found = []
        if len({self.accounts, self.tellers, self.branches, self.history}) > 1:
            found.append(
                f"the sums differ: accounts {self.accounts:,}, tellers {self.tellers:,},"
                f" branches {self.branches:,}, history {self.history:,}"
            )
        if self.missing:
            found.append(f"{self.missing:,} acknowledged transfers are missing from the history")
        if self.unexpected:
            found.append(f"{self.unexpected:,} transfers are in the history without a COMMIT")
        return found


@asynccontextmanager
async def control_connection(dsn: str, name: str) -> AsyncIterator[Connection]:
    """A connection outside the pool, in autocommit mode, with time limits for its statements."""
    conn = await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name=f"{name}-control", connect_timeout=10
    )
    async with conn:
        await conn.execute("SET statement_timeout = '60s'; SET lock_timeout = '10s'")
        yield conn


async def create(conn: Connection, name: str, branches: int) -> None:
    """Create and fill the schema in one transaction; its comment is the owner's name.

    Raises:
        psycopg.errors.DuplicateSchema: the schema exists already.
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
    """Drop the schema if `create` made it under this name."""
    cursor = await conn.execute(OWNER)
    if await cursor.fetchone() == (name,):
        await kill(conn, name)
        await conn.execute("SET client_min_messages = warning")
        await conn.execute("DROP SCHEMA asyncpool_demo CASCADE")


async def kill(conn: Connection, name: str) -> list[int]:
    """Terminate every backend with this application name; return their process ids."""
    cursor = await conn.execute(KILL, [name])
    return [pid for pid, killed in await cursor.fetchall() if killed]


async def audit(conn: Connection, outcomes: bytearray) -> Audit:
    """Compare the four tables with one another, and the history with the outcomes."""
    await conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    present = bytearray(len(outcomes))
    rows = unknown = 0
    async with conn.transaction():
        (sums,) = await (await conn.execute(SUMS)).fetchall()
        async with conn.cursor(name="history") as cursor:
            cursor.itersize = 10_000
            await cursor.execute("SELECT id FROM asyncpool_demo.history")
            async for (number,) in cursor:
                rows += 1
                if 0 <= number < len(outcomes):
                    present[number] = 1
                else:
                    unknown += 1
    by_outcome = [[0, 0] for _ in Outcome]
    for outcome, in_history in zip(outcomes, present, strict=True):
        by_outcome[outcome][in_history] += 1
    return Audit(
        accounts=sums[0],
        tellers=sums[1],
        branches=sums[2],
        history=sums[3],
        rows=rows,
        acknowledged=sum(by_outcome[Outcome.ACKNOWLEDGED]),
        missing=by_outcome[Outcome.ACKNOWLEDGED][False],
        unexpected=unknown + by_outcome[Outcome.UNSENT][True] + by_outcome[Outcome.FAILED][True],
        in_doubt=sum(by_outcome[Outcome.IN_DOUBT]),
        resolved=by_outcome[Outcome.IN_DOUBT][True],
    )
