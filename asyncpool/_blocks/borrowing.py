"""How the pool borrows and returns connections, for blocks and one-shots alike."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial

from asyncpool._blocks.keys import Keys
from asyncpool._blocks.overrides import Overrides
from asyncpool._blocks.session import Session
from asyncpool._blocks.supports import SupportsBorrowing
from asyncpool._core.label import current_note
from asyncpool._core.lease import Lease, ManualLease
from asyncpool._core.stacks import capture
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.last_statement import trace_statements
from asyncpool.errors import (
    PoolError,
    PoolWrongLoop,
    ReleaseError,
)


class Borrowing(SupportsBorrowing[ACT]):
    """Borrows and returns the connections of a pool."""

    _traces: bool
    """Whether the place where each connection is borrowed is recorded."""
    _keys: Keys[ACT]
    _overridden: Overrides[ACT] | None
    """The methods of the pool's class that a subclass overrides, if any."""

    async def _borrow(self, timeout: float | None) -> ACT:
        lease = ManualLease.new()
        conn = self._acquire_now(lease)
        if conn is None:
            self._ensure_open()
            conn = (await self._core.acquire_entry(timeout, lease)).conn
            conn._pool = self  # type: ignore[assignment]
            if self._traces:
                lease.trace = capture(sys._getframe(0))
                lease.label_note = current_note()
                trace_statements(conn)
        return conn

    def _acquire_now(self, lease: Lease) -> ACT | None:
        entry = self._core.take_now(lease)
        if entry is None:
            return None
        conn = entry.conn
        conn._pool = self  # type: ignore[assignment]
        if self._traces:
            lease.trace = capture(sys._getframe(1))
            lease.label_note = current_note()
            trace_statements(conn)
        return conn

    def _session_of(self, conn: ACT) -> Session[ACT] | None:
        """Return the session that has leased a connection."""
        lease = self._core.lease_of(conn)
        return None if lease is None or lease.notes is None else lease.notes.session

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
        if self._overridden is not None:
            cleanup = self._overridden.cleanups.pop(conn, None) or cleanup
        lease = self._core.lease_of(conn)
        notes = None if lease is None else lease.notes
        if notes is not None and notes.autocommit is not None:
            restore = self._driver.restore_autocommit
            cleanup = partial(restore, conn, autocommit=notes.autocommit)
        conn._pool = None
        try:
            if discard:
                self._core.discard(conn)
            else:
                self._core.release(conn, cleanup)
        except PoolWrongLoop:
            conn._pool = self  # type: ignore[assignment]
            raise
        self._keys.forget(lease)

    def _release_lease(
        self, conn: ACT, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        try:
            if self._sessions and (session := self._session_of(conn)) is not None:
                session.end_use()
            else:
                self._return(conn, cleanup)
        except PoolError as error:
            if not failing:
                raise
            self._core.runtime.record("return failed", str(error))
