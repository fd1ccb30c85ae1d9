"""How the pool borrows and returns connections, for blocks and one-shots alike."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial

from asyncpool._blocks.lease import note
from asyncpool._blocks.supports import SupportsBorrowing
from asyncpool._core.stacks import capture
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import (
    PoolError,
    PoolWrongLoop,
    ReleaseError,
)


class Borrowing(SupportsBorrowing[ACT]):
    """Borrows and returns the connections of a pool."""

    _traces: bool
    """Whether the place where each connection is borrowed is recorded."""
    _cleanups: dict[ACT, Callable[[], Awaitable[object]]]
    """By connection: the work to do first when a subclass's method returns it."""

    async def _borrow(self, timeout: float | None) -> ACT:
        conn = self._acquire_now()
        if conn is None:
            self._ensure_open()
            conn = await self._core.acquire(timeout)
            self._mark_leased(conn)
        return conn

    def _acquire_now(self) -> ACT | None:
        entry = self._core.take_now()
        if entry is None:
            return None
        entry.manual_in = entry.uses
        # As `_mark_leased`, which is not called to save the time of a call.
        conn = entry.conn
        conn._pool = self  # type: ignore[assignment]
        if self._traces:
            note(entry, capture(sys._getframe(1)))
        return conn

    def _mark_leased(self, conn: ACT) -> None:
        conn._pool = self  # type: ignore[assignment]
        if self._traces:
            note(self._core.ledger.leased[conn], capture(sys._getframe(1)))

    def _not_leased(self, conn: object) -> ReleaseError:
        owner = getattr(conn, "_pool", None)
        what = "no pool has leased it" if owner is None else f"it is leased from {owner!r}"
        return ReleaseError(
            f"pool {self.name!r} cannot accept {conn!r}: {what}; was it released already?"
        )

    def _return(
        self,
        conn: ACT,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        *,
        discard: bool = False,
    ) -> None:
        if self._cleanups:
            cleanup = self._cleanups.pop(conn, None) or cleanup
        if self._autocommit_modes and (mode := self._autocommit_modes.pop(conn, None)) is not None:
            cleanup = partial(self._driver.restore_autocommit, conn, autocommit=mode)
        conn._pool = None
        try:
            if discard:
                self._core.discard(conn)
            else:
                self._core.release(conn, cleanup)
        except PoolWrongLoop:
            conn._pool = self  # type: ignore[assignment]
            raise

    def _release_lease(
        self, conn: ACT, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        try:
            if self._sessions and (session := self._sessions.get(conn)) is not None:
                session.end_use()
            else:
                self._return(conn, cleanup)
        except PoolError as error:
            if not failing:
                raise
            self._core.runtime.record("return failed", str(error))
