"""`pool.transaction()`: a block that is one transaction."""

from __future__ import annotations

from asyncio import current_task
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Generic

import psycopg

from asyncpool._blocks.commit import (
    closed_error,
    failed_error,
    has_failed,
    run_shielded,
    wait_for_cancelled,
)
from asyncpool._blocks.connection_block import is_still_leased, reject_early_return
from asyncpool._blocks.session import Join
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.driver import ACT

PLAIN_TRANSACTIONS = {Connection.transaction, psycopg.AsyncConnection.transaction}
"""Those that a class has where it does not override the method."""


class Transaction(Generic[ACT]):
    """`pool.transaction()`: a connection for a block that is one explicit transaction."""

    __slots__ = ("_conn", "_join", "_lease", "_pool", "_timeout", "_transaction")

    def __init__(self, pool: SupportsBorrowing[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._join: Join[ACT] | None = None

    async def __aenter__(self) -> ACT:
        if (session := self._pool._sessions.get(current_task())) is not None:
            self._join = await session.join(self._timeout, begin=True)
            return session.conn
        self._join = None
        conn = await self._pool.getconn(self._timeout)
        self._lease = self._pool._core.bind(conn)
        try:
            self._transaction = transaction_on(conn)
            await self._transaction.__aenter__()
        except BaseException:
            self._pool._release_lease(conn, failing=True)
            raise
        self._conn = conn
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        if self._join is not None:
            return await self._join.leave(error)
        pool, conn, end = self._pool, self._conn, self._transaction.__aexit__
        if not is_still_leased(pool, conn, self._lease):
            reject_early_return(pool, conn, failing=kind is not None)
            return False
        if pool._core.lease_of(conn) is None:
            pool._release_lease(conn, failing=kind is not None)
            return False
        if kind is None:
            await self._wait_for_cancelled()
        broken = kind is None and (conn.closed or has_failed(conn))
        if broken or (kind is not None and not isinstance(error, psycopg.Rollback)):
            refusal = closed_error(conn) if conn.closed else failed_error(conn)
            # A new exception: the caller's would lose its traceback in the background task.
            undo = partial(end, psycopg.Rollback, psycopg.Rollback(), None)
            pool._release_lease(conn, failing=True, cleanup=undo)
            try:
                if broken:
                    raise refusal
            finally:
                del refusal  # its traceback has this frame
            return False
        try:
            handled = bool(await run_shielded(partial(end, kind, error, tb)))
        except BaseException:
            pool._release_lease(conn, failing=True)
            raise
        pool._release_lease(conn, failing=False)
        return handled

    async def _wait_for_cancelled(self) -> None:
        try:
            await wait_for_cancelled(self._pool._driver, self._conn)
        except BaseException:
            self._pool._release_lease(self._conn, failing=True)
            raise


def transaction_on(conn: ACT) -> AbstractAsyncContextManager[psycopg.AsyncTransaction]:
    """Return `conn.transaction()`, without its generator where the class does not override it.

    The event loop ends a generator that is dropped, with a ROLLBACK, when the connection may be
    another borrower's.
    """
    method = conn.transaction
    if getattr(method, "__func__", None) in PLAIN_TRANSACTIONS:
        return psycopg.AsyncTransaction(method.__self__)  # type: ignore[attr-defined]
    return method()
