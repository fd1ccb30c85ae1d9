"""One-shot statements: each runs by itself, outside any transaction, in one round trip.

A single statement is its own transaction, without BEGIN and COMMIT. The dispatcher runs those that
need no cursor; each of the others acquires a connection for as long as it runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import current_task, get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, cast, overload

import psycopg
from psycopg.abc import Params, Query
from psycopg.rows import AsyncRowFactory, Row

from asyncpool._blocks.commit import commit, restore_autocommit
from asyncpool._blocks.hints import explain_placeholders
from asyncpool._blocks.supports import SupportsBorrowing
from asyncpool._core.settings import duration
from asyncpool._pipeline.dispatcher import Dispatcher
from asyncpool._pipeline.request import Request
from asyncpool._pipeline.results import ALL_ROWS, FIRST_ROW, FIRST_VALUE, TAG, Answer
from asyncpool._psycopg.cursor import Cursor
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.many import execute_many
from asyncpool._psycopg.own_statements import run
from asyncpool._psycopg.riding import in_transaction
from asyncpool._psycopg.sharing import has_transaction_characteristics
from asyncpool._psycopg.wrapped import execute
from asyncpool._sql.kinds import Kind

YIELD_EVERY = 64
"""Statements of a batch after which it yields to other tasks."""


@asynccontextmanager
async def borrowed(
    pool: SupportsBorrowing[ACT], timeout: float | None, request: Request | None = None
) -> AsyncIterator[Any]:
    """Acquire a connection for as long as one-shot statements run on it.

    The connection is in autocommit mode meanwhile. If its transactions have characteristics, such
    as read only, its mode stays and the transaction is committed at the end. In a session it is
    the session's connection, and the statements join a transaction that is open there.

    Args:
        pool: the pool.
        timeout: seconds for all of it; None: the pool's, for the wait for a connection alone.
        request: a request that has its connection already; its start counts for the timeout.

    Raises:
        PoolTimeout: the time is up; a statement that was sent may have run.
    """
    timeout = None if timeout is None else duration("timeout", timeout)
    started, session = get_running_loop().time(), pool._sessions.get(current_task())
    if request is not None:
        started, conn = request.started_at, request.entry.conn
        conn._pool = pool
    elif session is not None:
        await session.wait_ready(timeout)
        conn = session.conn
    else:
        conn = await pool._borrow_conn(timeout)
    outside_transaction = not in_transaction(conn) and (session is None or session.is_idle)
    mode, failing = conn.autocommit, True
    limit = asyncio.timeout_at(started + timeout if timeout and timeout != math.inf else None)
    try:
        commits = outside_transaction and has_transaction_characteristics(conn)
        if outside_transaction and not (commits or mode):
            await conn.set_autocommit(True)
        async with limit:
            yield conn
            if commits:
                await commit(pool._core, pool._driver, conn)
        failing = False
    except TimeoutError:
        if not limit.expired():
            raise
        # In no variable: this frame would keep it, and it this frame.
        raise pool._core.errors.unanswered(cast("float", timeout))  # noqa: B904 - it has its cause
    finally:
        restore: Callable[[], Awaitable[object]] | None = None
        # The attribute tells it also where the change was cancelled.
        if conn.autocommit != mode and not conn.closed:
            restore = restore_autocommit(pool._driver, conn, autocommit=mode)
        elif failing and outside_transaction and not (conn.closed or pool._driver.is_idle(conn)):
            restore = partial(pool._driver.roll_back, conn)
        if session is None:
            await pool._return_conn(conn, failing=failing, cleanup=restore)
        elif restore is not None:
            await session.undo(restore)


@asynccontextmanager
async def _one_transaction(conn: Any) -> AsyncIterator[None]:
    """Run several statements as one transaction, in one round trip.

    In an open transaction they are a savepoint. An error or cancellation inside leaves the
    transaction open; it is rolled back when the connection is released.
    """
    if in_transaction(conn):
        async with conn.transaction():
            yield
        return
    async with conn.pipeline() if psycopg.Pipeline.is_supported() else nullcontext():
        if conn.autocommit:
            await run(conn, b"BEGIN")
        yield
        if conn.autocommit:
            await run(conn, b"COMMIT")


class OneShots(SupportsBorrowing[ACT]):
    """The one-shot methods of the pool."""

    _dispatcher: Dispatcher
    """Runs single statements that need no cursor."""

    async def execute(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
    ) -> str:
        """Run one statement by itself; return the server's command tag, such as "INSERT 0 1".

        Args:
            query: a str, bytes, `psycopg.sql.Composed` or template, with psycopg's placeholders.
            params: the values for the placeholders.
            timeout: seconds for all of it, the wait for a connection included; None: the pool's
                `timeout` for that wait alone; 0: use an idle connection or fail at once.
            prepare: as for a cursor's `execute`: True prepares the statement at once, False never.

        Raises:
            PoolTimeout: no connection was available in time, or the server did not answer in time;
                then the statement may have run.
            psycopg.Error: the statement failed and has no effect.
        """
        tag: str = await self._run_one(TAG, query, params, timeout, prepare)
        return tag

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, timeout: float | None = None
    ) -> int:
        """Run one statement with each of several sets of values, all or nothing.

        Returns:
            The total number of affected rows.
        """
        async with borrowed(self, timeout) as conn:
            cur = conn.cursor()
            done = type(cur) is Cursor and await execute_many(cur, query, params_seq, commits=True)
            if not done:
                async with _one_transaction(conn):
                    await cur.executemany(query, params_seq)
            return int(cur.rowcount)

    async def batch(
        self,
        statements: Iterable[Query | tuple[Query, Params | None]],
        *,
        timeout: float | None = None,
    ) -> list[list[Any] | str]:
        """Run several statements in one transaction, all or nothing, in one round trip.

        Args:
            statements: each a query, or a pair of a query and its values; none may depend on the
                result of another, or be a BEGIN, COMMIT or ROLLBACK.
            timeout: as for `execute`.

        Returns:
            For each statement its rows, or its command tag if it returns no rows.

        Raises:
            TypeError: a tuple is not a pair; nothing was sent.
            PoolTimeout: as for `execute`.
            psycopg.Error: one statement failed; none has an effect.
        """
        pairs = [_as_pair(statement) for statement in statements]
        if not pairs:
            return []
        async with borrowed(self, timeout) as conn:
            curs = []
            async with _one_transaction(conn):
                for number, (query, params) in enumerate(pairs, 1):
                    curs.append(await execute(conn, query, params))
                    if not number % YIELD_EVERY:
                        await asyncio.sleep(0)
            answers: list[list[Any] | str] = []
            for number, each in enumerate(curs, 1):
                rows = each.description is not None
                answers.append(await each.fetchall() if rows else each.statusmessage or "")
                if not number % YIELD_EVERY:
                    await asyncio.sleep(0)
            return answers

    @overload
    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Row],
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> list[Row]: ...

    @overload
    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> list[Any]: ...

    async def fetchall(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> list[Any]:
        """Return all rows of one statement.

        Other arguments and errors are those of `execute`.

        Args:
            row_factory: makes the rows, such as `class_row(Order)`; None: the connection's own.
            binary: whether they are transferred in PostgreSQL's binary format.
        """
        rows: list[Any] = await self._run_one(
            ALL_ROWS, query, params, timeout, prepare, binary=binary, row_factory=row_factory
        )
        return rows

    @overload
    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Row],
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Row | None: ...

    @overload
    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Any | None: ...

    async def fetchone(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: AsyncRowFactory[Any] | None = None,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Any | None:
        """Return the first row of one statement, or None; otherwise like `fetchall`."""
        return await self._run_one(
            FIRST_ROW, query, params, timeout, prepare, binary=binary, row_factory=row_factory
        )

    async def fetchval(
        self,
        query: Query,
        params: Params | None = None,
        *,
        timeout: float | None = None,
        prepare: bool | None = None,
        binary: bool = False,
    ) -> Any:
        """Return the first column of the first row of one statement, or None if there is no row."""
        return await self._run_one(FIRST_VALUE, query, params, timeout, prepare, binary=binary)

    async def _run_one(
        self,
        answer: Answer,
        query: Query,
        params: Params | None,
        timeout: float | None,
        prepare: bool | None,
        *,
        binary: bool = False,
        row_factory: AsyncRowFactory[Any] | None = None,
    ) -> Any:
        """Run one statement, through the dispatcher if it needs no cursor; return its answer."""
        read, fetch = answer
        request = None
        try:
            if not (self._sessions and current_task() in self._sessions):
                if self._core.home is not get_running_loop():
                    self._ensure_open()
                dispatcher = self._dispatcher
                profile = dispatcher.profiles.get(query)
                if profile.advice is not None:
                    advice, profile.advice = profile.advice, None
                    self._core.runtime.record("one-shot", advice, logging.WARNING)
                if profile.kind is not Kind.OTHER and dispatcher.enabled:
                    request = Request(profile, query, params, prepare=prepare, binary=binary)
                    if await dispatcher.run(request, timeout):
                        if row_factory is not None:
                            request.row_factory = row_factory
                        return read(request)
            async with borrowed(self, timeout, request) as conn:
                cur = await execute(conn, query, params, prepare=prepare, binary=binary)
                if row_factory is not None:
                    cur.row_factory = row_factory
                return await fetch(cur)
        except (psycopg.ProgrammingError, TypeError) as error:
            explain_placeholders(error, query, params)
            raise


def _as_pair(statement: Query | tuple[Query, Params | None]) -> tuple[Query, Params | None]:
    if not isinstance(statement, tuple):
        return statement, None
    if len(statement) != 2:
        msg = f"a statement of a batch is a query or (query, params), not {statement!r}"
        raise TypeError(msg)
    return statement
