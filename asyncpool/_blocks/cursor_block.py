"""`pool.cursor()`: a cursor on a connection of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, cast

import psycopg
from psycopg.rows import Row

from asyncpool._blocks.commit import (
    commit,
    restore_autocommit,
    run_shielded,
)
from asyncpool._blocks.connection_block import ConnectionBlock
from asyncpool._blocks.supports import Exc
from asyncpool._core.lease import Notes
from asyncpool._psycopg.driver import ACT


def check_mode(autocommit: object) -> None:
    """Raise TypeError if this is no autocommit mode."""
    if autocommit is not None and not isinstance(autocommit, bool):
        msg = f"autocommit must be True, False or None, not {autocommit!r}"
        raise TypeError(msg)


class CursorBlock(Generic[ACT, Row]):
    """`pool.cursor()`: a cursor on a connection of its own, for a block.

    Args:
        block: acquires and releases the connection.
        make: creates the cursor.
        autocommit: the autocommit mode during the block; None: the connection's own.
    """

    __slots__ = (
        "_autocommit",
        "_block",
        "_conn",
        "_cursor",
        "_make",
        "_mode",
        "_notes",
    )

    def __init__(
        self,
        block: ConnectionBlock[ACT],
        make: Callable[[ACT], Any],
        autocommit: bool | None = None,
    ) -> None:
        self._block = block
        self._make = make
        self._autocommit = autocommit

    async def __aenter__(self) -> psycopg.AsyncCursor[Row]:
        conn = self._conn = await self._block.__aenter__()
        self._mode = conn.autocommit
        self._notes: Notes | None = None
        """Those in which this block has noted the mode to restore."""
        try:
            if self._autocommit not in (None, self._mode):
                await conn.set_autocommit(self._autocommit)
            lease = self._block.pool._core.lease_of(conn)
            if self._mode_changed and lease is not None:
                notes = lease.annotate()
                if notes.autocommit is None:  # else an outer block of the session restores it
                    self._notes, notes.autocommit = notes, self._mode
            self._cursor = self._make(conn)
        except BaseException as error:
            await self._end(type(error), error, None)
            raise
        return cast("psycopg.AsyncCursor[Row]", self._cursor)

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await run_shielded(self._cursor.close)
                if self._mode_changed and self._block.holds():
                    pool = self._block.pool
                    await commit(pool._core, pool._driver, self._conn)
        except BaseException as failure:
            await self._end(type(failure), failure, None)
            raise
        await self._end(kind, error, tb)

    @property
    def _mode_changed(self) -> bool:
        """Whether the mode differs from that at the start, also where the change was cancelled."""
        return self._conn.autocommit != self._mode

    async def _end(self, kind: Exc, error: BaseException | None, tb: TracebackType | None) -> None:
        block = self._block
        if self._mode_changed and block.holds() and not self._conn.closed:
            if self._notes is not None:
                self._notes.autocommit = None
            driver = block.pool._driver
            cleanup = restore_autocommit(driver, self._conn, autocommit=self._mode)
            if cleanup is not None:
                await block.abort(cleanup)
                return
        await block.__aexit__(kind, error, tb)
