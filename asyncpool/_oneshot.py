"""One-shot statements: each runs by itself, outside any transaction, at one round trip.

A single statement is a transaction of its own, so no BEGIN and COMMIT go around it. Those that
cannot change the session share connections; each of the others borrows one for as long as it runs.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import current_task, get_running_loop
from collections.abc import Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Generic, cast

import psycopg
from psycopg.abc import Params, Query
from psycopg.rows import tuple_row

from asyncpool._answer import all_rows, first_row, first_value, tag
from asyncpool._contexts import Exc, Lender
from asyncpool._ending import put_back, turn
from asyncpool._lane import Lane, Unfit
from asyncpool._psycopg import ACT, IDLE
from asyncpool._rider import Rider


class Ride(Generic[ACT]):
    """A cursor on a connection in autocommit mode, for one statement.

    In a session it is the session's, and a transaction that is open there has the statement.
    """

    __slots__ = ("_conn", "_limit", "_pool", "_session", "_timeout", "_turned")

    def __init__(self, pool: Lender[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    async def __aenter__(self) -> Any:
        started = get_running_loop().time()
        session = self._session = self._pool._sessions.get(current_task())
        if session is not None:
            await session.ready(self._timeout)
            conn = self._conn = session.conn
        else:
            conn = self._conn = await self._pool.getconn(self._timeout)
        self._limit: asyncio.Timeout | None = None
        self._turned = False
        try:
            if session is None or session.is_at_rest:
                self._turned = await turn(conn, autocommit=True)
            cur = conn.cursor()
            if self._timeout and self._timeout != math.inf:
                limit = asyncio.timeout_at(started + self._timeout)
                await limit.__aenter__()  # it does not suspend
                self._limit = limit
            return cur
        except BaseException:
            await self._end(failing=True)
            raise

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._limit is not None:
                await self._limit.__aexit__(kind, error, tb)  # nor does this
        except TimeoutError as late:
            kind = type(late)
            failure = self._pool._core.refusals.unanswered(cast("float", self._timeout))
            raise failure from failure.__cause__
        finally:
            await self._end(failing=kind is not None)

    async def _end(self, *, failing: bool) -> None:
        conn, turn_back = self._conn, None
        if self._turned and not conn.closed:
            turn_back = await put_back(self._pool._connector, conn, autocommit=False)
        if self._session is None:
            self._pool._give_back(conn, failing=failing, first=turn_back)
        elif turn_back is not None:
            await self._session.undo(turn_back)


class OneShots(Lender[ACT]):
    """The one-shot calls of the pool."""

    _lane: Lane
    """Where they share connections."""

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
    ) -> str:
        """Run one statement by itself; returns the server's command tag, such as "INSERT 0 1".

        Args:
            query: a str, bytes, `psycopg.sql.Composed` or template, with psycopg's placeholders.
            params: the values for the placeholders.
            timeout: seconds for all of it, the wait for a connection included; None: the pool's
                `timeout` for that wait alone. 0 takes a connection that is there or fails at once.
            prepare: as for a cursor's `execute`: True prepares the statement at once, False never.

        Raises:
            PoolTimeout: there was no connection in time, or no answer; then the statement may
                have run.
            psycopg.Error: the statement failed; nothing of it remains.
        """
        if (rider := self._rider(query, params, prepare=prepare)) is not None:
            try:
                return tag(await self._lane.ride(rider, timeout))
            except Unfit:
                pass
        async with Ride(self, timeout) as cur:
            await cur.execute(query, params, prepare=prepare)
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

    async def batch(
        self,
        statements: Iterable[Query | tuple[Query, Params | None]],
        *,
        timeout: float | None = None,
    ) -> list[list[Any] | str]:
        """Run several statements in one transaction, all or nothing, at one round trip.

        Args:
            statements: each a query, or a pair of a query and its values; none may depend on what
                another returns, or be a BEGIN, COMMIT or ROLLBACK.
            timeout: as for `execute`.

        Returns:
            For each its rows, or its command tag if it has none to give.

        Raises:
            TypeError: a pair is not one; nothing was sent.
            PoolTimeout: as for `execute`.
            psycopg.Error: one failed; nothing of any remains.
        """
        pairs = [_pair(statement) for statement in statements]
        if not pairs:
            return []
        async with Ride(self, timeout) as cur:
            conn = cur.connection
            alone = conn.autocommit and conn.pgconn.transaction_status == IDLE
            together = conn.pipeline() if psycopg.Pipeline.is_supported() else nullcontext()
            async with together:
                # What breaks off before the COMMIT leaves a block open, which is rolled back.
                if alone:
                    await conn.execute("BEGIN", prepare=False)
                curs = [await conn.execute(query, params) for query, params in pairs]
                if alone:
                    await conn.execute("COMMIT", prepare=False)
            return [
                await each.fetchall() if each.description is not None else each.statusmessage or ""
                for each in curs
            ]

    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> list[Any]:
        """All rows of one statement, made by the connection's row factory; else as `execute`.

        With `binary` they come in PostgreSQL's binary format.
        """
        if (rider := self._rider(query, params, prepare=prepare, binary=binary)) is not None:
            try:
                return all_rows(await self._lane.ride(rider, timeout))
            except Unfit:
                pass
        async with Ride(self, timeout) as cur:
            await cur.execute(query, params, prepare=prepare, binary=binary)
            return cast("list[Any]", await cur.fetchall())

    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Any | None:
        """The first row of one statement, or None; else as `fetchall`."""
        if (rider := self._rider(query, params, prepare=prepare, binary=binary)) is not None:
            try:
                return first_row(await self._lane.ride(rider, timeout))
            except Unfit:
                pass
        async with Ride(self, timeout) as cur:
            await cur.execute(query, params, prepare=prepare, binary=binary)
            return await cur.fetchone()

    async def fetchval(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Any | None:
        """The first column of the first row of one statement, or None when there is no row."""
        if (rider := self._rider(query, params, prepare=prepare, binary=binary)) is not None:
            try:
                return first_value(await self._lane.ride(rider, timeout))
            except Unfit:
                pass
        async with Ride(self, timeout) as cur:
            cur.row_factory = tuple_row
            await cur.execute(query, params, prepare=prepare, binary=binary)
            row = await cur.fetchone()
        return None if row is None else row[0]

    def _rider(
        self, query: Query, params: Params | None, *, prepare: bool | None, binary: bool = False
    ) -> Rider | None:
        """A statement that shares a connection; None: it has to have one of its own."""
        if self._sessions and current_task() in self._sessions:
            return None
        if self._core.home is not get_running_loop():
            self._ensure_open()
        lane = self._lane
        if lane.unfit:
            return None
        trait = lane.traits.look(query)
        if not trait.shares:
            return None
        return Rider(trait, query, params, prepare=prepare, binary=binary)


def _pair(statement: Query | tuple[Query, Params | None]) -> tuple[Query, Params | None]:
    if not isinstance(statement, tuple):
        return statement, None
    if len(statement) != 2:
        msg = f"a statement of a batch is a query or (query, params), not {statement!r}"
        raise TypeError(msg)
    return statement
