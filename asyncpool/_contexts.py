"""What stands behind `async with pool...`: borrow, hand out, end the work, return.

Nothing here waits between taking a connection and its owner knowing it, nor between the end of the
work and its return. A block that fails is rolled back by the pool's own task, not by its borrower.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol

import anyio
import psycopg

from asyncpool._core import Core
from asyncpool._psycopg import ACT

Exc = type[BaseException] | None


class Lender(Protocol[ACT]):
    """What the blocks need of the pool."""

    _core: Core[ACT]

    async def getconn(self, timeout: float | None = None) -> ACT:
        """Borrow."""
        ...

    def _ensure_open(self) -> None: ...

    def _give_back(
        self, conn: ACT, *, failing: bool, first: Callable[[], Awaitable[object]] | None = None
    ) -> None: ...


class Lease(Generic[ACT]):
    """`pool.connection()`: a connection for a block, committed at its end, rolled back on error."""

    __slots__ = ("_conn", "_pool", "_timeout")

    def __init__(self, pool: Lender[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    async def __aenter__(self) -> ACT:
        pool = self._pool
        conn = pool._core.acquire_now()
        if conn is None:
            pool._ensure_open()
            conn = await pool._core.acquire(self._timeout)
        conn._pool = pool  # type: ignore[assignment]
        self._conn = conn
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pool, conn = self._pool, self._conn
        conn._pool = None
        if pool._core.release_now(conn):
            return
        if kind is None and not conn.closed:
            await self._commit()
        pool._give_back(conn, failing=kind is not None)

    async def _commit(self) -> None:
        conn = self._conn
        conn._pool = self._pool  # type: ignore[assignment]
        try:
            with anyio.CancelScope(shield=True):
                await conn.commit()
        except BaseException:
            self._pool._give_back(conn, failing=True)
            raise


class NumberedLease(Lease[ACT]):
    """The same where `conn.close()` returns it: another may have it by the end of the block."""

    __slots__ = ("_number",)

    async def __aenter__(self) -> ACT:
        conn = await super().__aenter__()
        self._number = self._pool._core.lease_number(conn)
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if _is_still_lent(self._pool, self._conn, self._number):
            await super().__aexit__(kind, error, tb)


class Transaction(Generic[ACT]):
    """`pool.transaction()`: a connection for a block that is one explicit transaction."""

    __slots__ = ("_conn", "_number", "_pool", "_timeout", "_transaction")

    def __init__(self, pool: Lender[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    async def __aenter__(self) -> ACT:
        conn = await self._pool.getconn(self._timeout)
        try:
            self._transaction = conn.transaction()
            await self._transaction.__aenter__()
        except BaseException:
            self._pool._give_back(conn, failing=True)
            raise
        self._conn = conn
        self._number = self._pool._core.lease_number(conn)
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        pool, conn, end = self._pool, self._conn, self._transaction.__aexit__
        if not _is_still_lent(pool, conn, self._number):
            return False
        if kind is not None and not isinstance(error, psycopg.Rollback):
            pool._give_back(conn, failing=True, first=partial(end, kind, error, None))
            return False
        try:
            with anyio.CancelScope(shield=True):
                handled = bool(await end(kind, error, tb))
        except BaseException:
            pool._give_back(conn, failing=True)
            raise
        pool._give_back(conn, failing=False)
        return handled


class Cursor(Generic[ACT]):
    """`pool.cursor()`: a cursor on a connection of its own, for a block."""

    __slots__ = ("_cursor", "_lease", "_make")

    def __init__(self, lease: Lease[ACT], make: Callable[[ACT], Any]) -> None:
        self._lease = lease
        self._make = make

    async def __aenter__(self) -> Any:
        conn = await self._lease.__aenter__()
        try:
            self._cursor = self._make(conn)
        except BaseException as error:
            await self._lease.__aexit__(type(error), error, None)
            raise
        return self._cursor

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with anyio.CancelScope(shield=True):
                    await self._cursor.close()
        except BaseException as failure:
            await self._lease.__aexit__(type(failure), failure, None)
            raise
        await self._lease.__aexit__(kind, error, tb)


class Acquisition(Coroutine[Any, Any, ACT]):
    """`pool.acquire()`: to be awaited, or entered with `async with`, which returns it at the end.

    It is a coroutine like any other, so that `asyncio.create_task` and `wait_for` take it.
    """

    __slots__ = ("_conn", "_coroutine", "_number", "_pool", "_timeout")

    def __init__(self, pool: Lender[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._coroutine: Coroutine[Any, Any, ACT] | None = None

    def _started(self) -> Coroutine[Any, Any, ACT]:
        if self._coroutine is None:
            self._coroutine = self._pool.getconn(self._timeout)
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, ACT]:
        if self._coroutine is None and (conn := self._pool._core.acquire_now()) is not None:
            conn._pool = self._pool  # type: ignore[assignment]
            return conn
        return (yield from self._started().__await__())

    def send(self, value: Any) -> Any:
        """See `Coroutine`."""
        return self._started().send(value)

    def throw(self, *args: Any) -> Any:
        """See `Coroutine`."""
        return self._started().throw(*args)

    def close(self) -> None:
        """See `Coroutine`."""
        if self._coroutine is not None:
            self._coroutine.close()

    async def __aenter__(self) -> ACT:
        self._conn = await self
        self._number = self._pool._core.lease_number(self._conn)
        return self._conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pool, conn = self._pool, self._conn
        if _is_still_lent(pool, conn, self._number):
            pool._give_back(conn, failing=kind is not None)


def _is_still_lent(pool: Lender[ACT], conn: ACT, number: int) -> bool:
    """Whether a block's connection is still in that lease, or was taken from it by `close()`.

    If not, the block itself has returned it, and another may have it by now.
    """
    owner: object = conn._pool
    return owner is pool and pool._core.lease_number(conn) in (number, 0)
