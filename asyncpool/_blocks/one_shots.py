"""One-shot statements: each runs by itself, outside any transaction, at one round trip.

A single statement is a transaction of its own, so no BEGIN and COMMIT go around it. Those that need
no cursor are the dispatcher's; each of the others borrows a connection for as long as it runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import current_task, get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, cast

import psycopg
from psycopg.abc import Params, Query

from asyncpool._blocks.blocks import SupportsBorrowing
from asyncpool._blocks.commit import commit, put_back, turn
from asyncpool._blocks.hints import explain_placeholders
from asyncpool._pipeline.dispatcher import Dispatcher
from asyncpool._pipeline.request import Request
from asyncpool._pipeline.results import ALL_ROWS, FIRST_ROW, FIRST_VALUE, TAG, Answer
from asyncpool._psycopg.driver import ACT, IDLE, INERROR, INTRANS, begins_specially
from asyncpool._sql.kinds import Kind

logger = logging.getLogger("asyncpool")

AT_ONCE = 64
"""Statements of a batch after which other tasks have a turn."""


@asynccontextmanager
async def borrowed(
    pool: SupportsBorrowing[ACT], timeout: float | None, request: Request | None = None
) -> AsyncIterator[Any]:
    """Borrow a connection for as long as one-shot statements run on it.

    It is in autocommit mode meanwhile; where its transactions have characteristics,
    such as read only, it stays as it is, and the transaction is committed at the end. In a session
    the connection is the session's, and a transaction that is open there has the statement.

    Args:
        pool: the pool.
        timeout: seconds for all of it; None: the pool's, for the wait for a connection alone.
        request: the one that has a connection already, and came before it had.

    Raises:
        PoolTimeout: the time was up; a statement that was sent may have run.
    """
    started, session = get_running_loop().time(), pool._sessions.get(current_task())
    if request is not None:
        started, conn = request.began, request.entry.conn
        conn._pool = pool
    elif session is not None:
        await session.ready(timeout)
        conn = session.conn
    else:
        conn = await pool._borrow_conn(timeout)
    idle = conn.pgconn.transaction_status == IDLE
    resting = idle and (session is None or session.is_at_rest)
    turned, failing = False, True
    limit = asyncio.timeout_at(started + timeout if timeout and timeout != math.inf else None)
    try:
        commits = resting and begins_specially(conn)
        if resting and not commits:
            turned = await turn(conn, autocommit=True)
        async with limit:
            yield conn
            if commits:
                await commit(pool._core, pool._driver, conn)
        failing = False
    except TimeoutError:
        if not limit.expired():
            raise
        failure = pool._core.errors.unanswered(cast("float", timeout))
        raise failure from failure.__cause__
    finally:
        turn_back: Callable[[], Awaitable[object]] | None = None
        if turned and not conn.closed:
            turn_back = await put_back(pool._driver, conn, autocommit=False)
        elif failing and resting and conn.pgconn.transaction_status in (INTRANS, INERROR):
            turn_back = partial(pool._driver.roll_back, conn)
        if session is None:
            await pool._return_conn(conn, failing=failing, first=turn_back)
        elif turn_back is not None:
            await session.undo(turn_back)


@asynccontextmanager
async def _as_one(conn: Any) -> AsyncIterator[None]:
    """Run several statements as one transaction, at one round trip.

    In a transaction that is open already they are a savepoint. What breaks off before its end
    leaves a transaction open, which is rolled back when the connection is returned.
    """
    if conn.pgconn.transaction_status != IDLE:
        async with conn.transaction():
            yield
        return
    async with conn.pipeline() if psycopg.Pipeline.is_supported() else nullcontext():
        if conn.autocommit:
            await conn.execute("BEGIN", prepare=False)
        yield
        if conn.autocommit:
            await conn.execute("COMMIT", prepare=False)


class OneShots(SupportsBorrowing[ACT]):
    """The one-shot calls of the pool."""

    _dispatcher: Dispatcher
    """The way of single statements to their connections."""

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
        return cast("str", await self._one(TAG, query, params, timeout, prepare))

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, timeout: float | None = None
    ) -> int:
        """Run one statement with each of several sets of values, all or nothing.

        Returns:
            The number of rows that all of them touched.
        """
        async with borrowed(self, timeout) as conn:
            cur = conn.cursor()
            async with _as_one(conn):
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
        async with borrowed(self, timeout) as conn:
            curs = []
            async with _as_one(conn):
                for number, (query, params) in enumerate(pairs):
                    curs.append(await conn.execute(query, params))
                    if not number % AT_ONCE:
                        await asyncio.sleep(0)
            answers: list[list[Any] | str] = []
            for number, each in enumerate(curs):
                rows = each.description is not None
                answers.append(await each.fetchall() if rows else each.statusmessage or "")
                if not number % AT_ONCE:
                    await asyncio.sleep(0)
            return answers

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
        return cast(
            "list[Any]", await self._one(ALL_ROWS, query, params, timeout, prepare, binary=binary)
        )

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
        return await self._one(FIRST_ROW, query, params, timeout, prepare, binary=binary)

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
        return await self._one(FIRST_VALUE, query, params, timeout, prepare, binary=binary)

    async def _one(
        self,
        answer: Answer,
        query: Query,
        params: Params | None,
        timeout: float | None,
        prepare: bool | None,
        *,
        binary: bool = False,
    ) -> Any:
        """Run one statement, through the dispatcher if it needs no cursor; return its answer."""
        read, fetch = answer
        request = None
        try:
            if not (self._sessions and current_task() in self._sessions):
                if self._core.home is not get_running_loop():
                    self._ensure_open()
                dispatcher = self._dispatcher
                profile = dispatcher.profiles.look(query)
                if profile.advice is not None:
                    advice, profile.advice = profile.advice, None
                    logger.warning("pool %r: %s", self._core.settings.name, advice)
                if profile.kind is not Kind.OTHER and dispatcher.enabled:
                    request = Request(profile, query, params, prepare=prepare, binary=binary)
                    if await dispatcher.run(request, timeout):
                        return read(request)
            async with borrowed(self, timeout, request) as conn:
                return await fetch(
                    await conn.execute(query, params, prepare=prepare, binary=binary)
                )
        except (psycopg.ProgrammingError, TypeError) as error:
            explain_placeholders(error, query, params)
            raise


def _pair(statement: Query | tuple[Query, Params | None]) -> tuple[Query, Params | None]:
    if not isinstance(statement, tuple):
        return statement, None
    if len(statement) != 2:
        msg = f"a statement of a batch is a query or (query, params), not {statement!r}"
        raise TypeError(msg)
    return statement
