"""One-shot statements: each runs by itself, outside any transaction, at one round trip.

A single statement is a transaction of its own, so no BEGIN and COMMIT go around it. Here each one
borrows a connection for as long as it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, cast

import psycopg
from psycopg.abc import Params, Query

from asyncpool._contexts import Exc, Lender
from asyncpool._psycopg import ACT, IDLE


class Ride(Generic[ACT]):
    """A cursor on a connection in autocommit mode, for one statement."""

    __slots__ = ("_conn", "_pool", "_timeout", "_turned")

    def __init__(self, pool: Lender[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    async def __aenter__(self) -> Any:
        conn = self._conn = await self._pool.getconn(self._timeout)
        try:
            # No I/O: psycopg only notes the mode, and refuses inside a transaction.
            self._turned = not conn.autocommit
            if self._turned:
                await conn.set_autocommit(True)
            return conn.cursor()
        except BaseException:
            self._pool._give_back(conn, failing=True)
            raise

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        conn, turn_back = self._conn, None
        try:
            if self._turned:
                if conn.pgconn.transaction_status == IDLE:
                    with suppress(psycopg.ProgrammingError):  # closed in the meantime
                        await conn.set_autocommit(False)  # no I/O
                else:
                    turn_back = partial(_turn_back, conn)
        finally:
            self._pool._give_back(conn, failing=kind is not None, first=turn_back)


async def _turn_back(conn: ACT) -> None:
    # The one shot was a BEGIN, or was cancelled and has not come to its end yet: psycopg changes
    # the mode outside of transactions only.
    await conn.rollback()
    await conn.set_autocommit(False)


class OneShots(Lender[ACT]):
    """The one-shot calls of the pool."""

    async def execute(
        self, query: Query, params: Params | None = None, *, timeout: float | None = None
    ) -> str:
        """Run one statement by itself; returns the server's command tag, such as "INSERT 0 1".

        Args:
            query: a str, bytes, `psycopg.sql.Composed` or template, with psycopg's placeholders.
            params: the values for the placeholders.
            timeout: seconds to wait for a connection.

        Raises:
            psycopg.Error: the statement failed; nothing of it remains.
        """
        async with Ride(self, timeout) as cur:
            await cur.execute(query, params)
            return cur.statusmessage or ""

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, timeout: float | None = None
    ) -> int:
        """Run one statement with each of several sets of values, all or nothing.

        Returns:
            The number of rows that all of them touched.
        """
        async with Ride(self, timeout) as cur:
            await cur.executemany(query, params_seq)
            return int(cur.rowcount)

    async def fetchall(
        self, query: Query, params: Params | None = None, *, timeout: float | None = None
    ) -> list[Any]:
        """All rows of one statement, made by the connection's row factory; else as `execute`."""
        async with Ride(self, timeout) as cur:
            await cur.execute(query, params)
            return cast("list[Any]", await cur.fetchall())

    async def fetchone(
        self, query: Query, params: Params | None = None, *, timeout: float | None = None
    ) -> Any | None:
        """The first row of one statement, or None; else as `execute`."""
        async with Ride(self, timeout) as cur:
            await cur.execute(query, params)
            return await cur.fetchone()

    async def fetchval(
        self, query: Query, params: Params | None = None, *, timeout: float | None = None
    ) -> Any | None:
        """The first column of the first row of one statement, or None when there is no row."""
        async with Ride(self, timeout) as cur:
            cur.row_factory = psycopg.rows.tuple_row
            await cur.execute(query, params)
            row = await cur.fetchone()
            return None if row is None else row[0]
