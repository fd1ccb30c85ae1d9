"""`pool.transaction()`: a block that is one transaction."""

from __future__ import annotations

from asyncio import current_task
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
from asyncpool._blocks.connection_block import in_use_error, is_still_leased, reject_early_return
from asyncpool._blocks.session import Join
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._blocks.transaction_options import TransactionOptions, prepare
from asyncpool._psycopg import committing
from asyncpool._psycopg.begin import enter, enter_unsent, leave_for_commit, leave_unsent
from asyncpool._psycopg.driver import ACT


class Transaction(Generic[ACT]):
    """`pool.transaction()`: a connection for a block that is one explicit transaction."""

    __slots__ = (
        "_block",
        "_conn",
        "_is_in_use",
        "_join",
        "_lease",
        "_options",
        "_pool",
        "_timeout",
    )

    def __init__(
        self,
        pool: SupportsBorrowing[ACT],
        timeout: float | None,
        options: TransactionOptions | None = None,
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._options = options
        self._join: Join[ACT] | None = None
        self._is_in_use = False

    async def __aenter__(self) -> ACT:
        if self._is_in_use:
            raise in_use_error()
        self._is_in_use = True
        try:
            return await self._enter()
        except BaseException:
            self._is_in_use = False
            raise

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        try:
            return await self._exit(kind, error, tb)
        finally:
            self._is_in_use = False

    async def _enter(self) -> ACT:
        if (session := self._pool._sessions.get(current_task())) is not None:
            self._join = await session.join(self._timeout, begin=True, options=self._options)
            return session.conn
        self._join = None
        conn = await self._pool.getconn(self._timeout)
        self._lease = self._pool._core.bind(conn)
        try:
            self._block, statements = prepare(conn, self._options)
            if not enter_unsent(self._block, statements):
                await enter(self._block, conn, statements)
        except BaseException:
            self._pool._release_lease(conn, failing=True)
            raise
        self._conn = conn
        return conn

    async def _exit(self, kind: Exc, error: BaseException | None, tb: TracebackType | None) -> bool:
        if self._join is not None:
            return await self._join.leave(error)
        pool, conn, end = self._pool, self._conn, self._block.__aexit__
        if not is_still_leased(pool, conn, self._lease):
            reject_early_return(pool, conn, failing=kind is not None)
            return False
        if pool._core.lease_of(conn) is None:
            pool._release_lease(conn, failing=kind is not None)
            return False
        if kind is None:
            await self._wait_for_cancelled()
        broken = kind is None and (conn.closed or has_failed(conn))
        if not broken and leave_unsent(self._block):
            pool._release_lease(conn, failing=kind is not None)
            return isinstance(error, psycopg.Rollback) and error.transaction in (None, self._block)
        if broken or (kind is not None and not isinstance(error, psycopg.Rollback)):
            # A new exception: the caller's would lose its traceback in the background task.
            undo = partial(end, psycopg.Rollback, psycopg.Rollback(), None)
            refusal = None
            if broken:
                refusal = closed_error(conn) if conn.closed else failed_error(conn)
            pool._release_lease(conn, failing=True, cleanup=undo)
            try:
                if refusal is not None:
                    raise refusal
            finally:
                del refusal  # its traceback has this frame
            return False
        try:
            if kind is None and leave_for_commit(self._block):
                await committing.commit(conn)
                handled = False
            else:
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
