"""`pool.connection()`: acquire a connection, end the work, release the connection.

Nothing here suspends between the acquisition of a connection and its assignment to a block, or
between the end of the work and the release. A failed block is rolled back by a background task of
the pool, not by its caller.
"""

from __future__ import annotations

import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic

import psycopg

from asyncpool._blocks.commit import (
    commit,
)
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._core.entry import Entry
from asyncpool._core.label import current_note
from asyncpool._core.lease import Lease
from asyncpool._core.stacks import capture_three
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.last_statement import trace_statements
from asyncpool.errors import ReleaseError

JOINED: Entry[Any] = Entry(0.0)
"""The entry of a block inside a session, which has no lease of its own."""
PENDING: Entry[Any] = Entry(0.0)
"""The entry of a block that waits for its connection."""


class ConnectionBlock(Lease, Generic[ACT]):
    """`pool.connection()`: a connection for a block, committed at its end, rolled back on error.

    It is its own lease. The code that constructs it sets `_pool`, `_timeout` and `_entry`.
    """

    __slots__ = ("_entry", "_join", "_pool", "_timeout")

    _pool: SupportsBorrowing[ACT]
    _timeout: float | None
    _entry: Any
    """The entry of the last connection, JOINED or PENDING; None: it was never entered."""

    async def __aenter__(self) -> ACT:
        if self._entry is not None:
            self._require_ended()
        pool = self._pool
        if pool._sessions and (session := pool._sessions.get(current_task())) is not None:
            self._entry = PENDING
            try:
                self._join = await session.join(self._timeout)
            except BaseException:
                self._entry = None
                raise
            self._entry = JOINED
            return session.conn
        self.notes = None
        core = pool._core
        entry = core.take_now(self)
        if entry is None:
            self._entry = PENDING
            try:
                if not core.usable:
                    pool._ensure_open()
                    core = pool._core
                entry = await core.acquire_entry(self._timeout, self)
            except BaseException:
                self._entry = None
                raise
        conn = entry.conn
        conn._pool = pool  # type: ignore[assignment]
        self._entry = entry
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pool, entry = self._pool, self._entry
        if entry.lease is self and pool._core.release_now(entry):
            entry.conn._pool = None
            return
        if entry is JOINED:
            await self._join.leave(error)
            return
        conn = entry.conn
        if not is_still_leased(pool, conn, self):
            reject_early_return(pool, conn, failing=kind is not None)
            return
        # If close() has taken the connection, _release_lease() raises.
        if kind is None and entry.lease is self:
            try:
                await commit(pool._core, pool._driver, conn)
            except BaseException:
                pool._release_lease(conn, failing=True)
                raise
        pool._release_lease(conn, failing=kind is not None)

    @property
    def pool(self) -> SupportsBorrowing[ACT]:
        """The pool of the connection."""
        return self._pool

    @property
    def joined(self) -> bool:
        """Whether the block is inside a session and uses its connection."""
        return self._entry is JOINED

    def make_strict(self) -> None:
        """Make the end of a joined block raise, not warn, if its transaction has failed."""
        self._join.strict = True

    def holds(self) -> bool:
        """Whether the block still has to release the connection."""
        if self.joined:
            return self._join.is_open()
        return is_still_leased(self._pool, self._entry.conn, self)

    def _require_ended(self) -> None:
        """Raise RuntimeError if the block is entered while it has a connection already."""
        entry = self._entry
        joined = entry is JOINED and self._join.lasts
        if joined or entry is PENDING or entry.lease is self:
            raise in_use_error()

    async def abort(self, cleanup: Callable[[], Awaitable[object]]) -> None:
        """End a failed block; a background task runs `cleanup`."""
        if self.joined:
            await self._join.leave(psycopg.Rollback(), cleanup=cleanup)
        elif self.holds():
            self._pool._release_lease(self._entry.conn, failing=True, cleanup=cleanup)


class TracedBlock(ConnectionBlock[ACT]):
    """A block that records where it was entered, for a pool with a `leak_timeout`."""

    __slots__ = ()

    async def __aenter__(self) -> ACT:
        # The fast path of ConnectionBlock.__aenter__, inlined to save a call.
        if self._entry is not None:
            self._require_ended()
        pool = self._pool
        self.notes = None
        entry = None if pool._sessions else pool._core.take_now(self)
        if entry is None:
            conn = await super().__aenter__()
        else:
            conn = entry.conn
            conn._pool = pool  # type: ignore[assignment]
            self._entry = entry
        self.trace = capture_three(sys._getframe(1))
        self.label_note = current_note()
        trace_statements(conn)
        return conn


def in_use_error() -> RuntimeError:
    """Return the error for a block that is entered before it has ended, or awaited twice."""
    return RuntimeError("this block is in use, or was awaited before: call the pool's method again")


def is_still_leased(pool: SupportsBorrowing[ACT], conn: ACT, lease: Lease) -> bool:
    """Whether a block's lease still lasts, or `close()` or the end of its event loop ended it.

    If neither is so, the block itself has released the connection, and another may have it now.
    """
    owner: object = conn._pool
    current = pool._core.lease_of(conn)
    taken = pool._core.closed or conn in pool._core.orphaned
    return owner is pool and (current is lease or (current is None and taken))


def reject_early_return(pool: SupportsBorrowing[ACT], conn: ACT, *, failing: bool) -> None:
    """Raise for a block that has released its connection, unless `conn.close()` may do so."""
    if not pool.close_returns and not failing:
        msg = f"{conn!r} was returned inside the block that had leased it"
        raise ReleaseError(msg)
