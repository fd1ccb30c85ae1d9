"""`pool.cursor()`: a cursor on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic

from asyncpool._blocks.commit import (
    commit,
    restore_autocommit,
    run_shielded,
    set_autocommit,
)
from asyncpool._blocks.lease import Lease
from asyncpool._blocks.supports import Exc
from asyncpool._psycopg.driver import ACT


class Cursor(Generic[ACT]):
    """`pool.cursor()`: a cursor on a connection of its own, for a block.

    Args:
        lease: acquires and releases the connection.
        make: creates the cursor.
        autocommit: the autocommit mode during the block; None: the connection's own.
    """

    __slots__ = (
        "_autocommit",
        "_conn",
        "_cursor",
        "_lease",
        "_make",
        "_mode_changed",
        "_restores_mode",
    )

    def __init__(
        self, lease: Lease[ACT], make: Callable[[ACT], Any], autocommit: bool | None = None
    ) -> None:
        self._lease = lease
        self._make = make
        self._autocommit = autocommit

    async def __aenter__(self) -> Any:
        conn = self._conn = await self._lease.__aenter__()
        self._mode_changed = False
        try:
            if self._autocommit is not None:
                self._mode_changed = await set_autocommit(conn, autocommit=self._autocommit)
            if self._mode_changed:
                modes = self._lease.pool._autocommit_modes
                self._restores_mode = conn not in modes
                modes.setdefault(conn, not self._autocommit)
            self._cursor = self._make(conn)
        except BaseException as error:
            await self._end(type(error), error, None)
            raise
        return self._cursor

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await run_shielded(self._cursor.close)
                if self._mode_changed and self._lease.holds():
                    pool = self._lease.pool
                    await commit(pool._core, pool._driver, self._conn)
        except BaseException as failure:
            await self._end(type(failure), failure, None)
            raise
        await self._end(kind, error, tb)

    async def _end(self, kind: Exc, error: BaseException | None, tb: TracebackType | None) -> None:
        lease = self._lease
        if self._mode_changed and lease.holds() and not self._conn.closed:
            if self._restores_mode:  # else an outer block of the session restores the mode
                lease.pool._autocommit_modes.pop(self._conn, None)
            mode = not self._autocommit
            cleanup = await restore_autocommit(lease.pool._driver, self._conn, autocommit=mode)
            if cleanup is not None:
                await lease.abort(cleanup)
                return
        await lease.__aexit__(kind, error, tb)
