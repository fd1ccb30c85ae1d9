"""One-shot statements: each runs by itself, outside any transaction, at one round trip.

A single statement is a transaction of its own, so no BEGIN and COMMIT go around it. Here each one
borrows a connection for as long as it runs.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic

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
        conn = self._conn
        try:
            if self._turned and conn.pgconn.transaction_status == IDLE:
                await conn.set_autocommit(False)
        finally:
            self._pool._give_back(conn, failing=kind is not None)
