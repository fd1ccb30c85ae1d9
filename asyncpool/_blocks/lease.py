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
from typing import Generic

import psycopg

from asyncpool._blocks.commit import (
    commit,
)
from asyncpool._blocks.supports import Exc, SupportsBorrowing
from asyncpool._core.entry import Entry
from asyncpool._core.stacks import Trace, capture_three
from asyncpool._psycopg.connection import trace_statements
from asyncpool._psycopg.driver import ACT
from asyncpool.errors import ReleaseError

JOINED = 0
"""The lease number of a block inside a session; a real lease number is never 0."""


class Lease(Generic[ACT]):
    """`pool.connection()`: a connection for a block, committed at its end, rolled back on error.

    There is no `__init__`, which would take 4 % of the time of an acquire and release: the code
    that constructs a lease sets `_pool` and `_timeout`.
    """

    __slots__ = ("_entry", "_join", "_number", "_pool", "_timeout")

    _pool: SupportsBorrowing[ACT]
    _timeout: float | None

    async def __aenter__(self) -> ACT:
        pool = self._pool
        if pool._sessions and (session := pool._sessions.get(current_task())) is not None:
            self._join = await session.join(self._timeout)
            self._entry, self._number = session.entry, JOINED
            return session.conn
        core = pool._core
        entry = core.take_now()
        if entry is None:
            if not core.usable:
                pool._ensure_open()
                core = pool._core
            entry = await core.acquire_entry(self._timeout)
        conn = entry.conn
        conn._pool = pool  # type: ignore[assignment]
        self._entry = entry
        self._number = entry.uses
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pool, entry = self._pool, self._entry
        conn = entry.conn
        if entry.uses == self._number and pool._core.release_now(conn):
            conn._pool = None
            return
        if self._number == JOINED:
            await self._join.leave(error)
            return
        if not is_still_leased(pool, conn, self._number):
            reject_early_return(pool, conn, failing=kind is not None)
            return
        # If close() has taken the connection, _release_lease() raises.
        if kind is None and pool._core.lease_number(conn):
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
        return self._number == JOINED

    def make_strict(self) -> None:
        """Make the end of a joined block raise, not warn, if its transaction has failed."""
        self._join.strict = True

    def holds(self) -> bool:
        """Whether the block still has to release the connection."""
        if self.joined:
            return self._join.is_open()
        return is_still_leased(self._pool, self._entry.conn, self._number)

    async def abort(self, cleanup: Callable[[], Awaitable[object]]) -> None:
        """End a failed block; a background task runs `cleanup`."""
        if self.joined:
            await self._join.leave(psycopg.Rollback(), cleanup=cleanup)
        elif self.holds():
            self._pool._release_lease(self._entry.conn, failing=True, cleanup=cleanup)


class TracedLease(Lease[ACT]):
    """A lease that records where it was acquired, for a pool with a `leak_timeout`."""

    __slots__ = ()

    async def __aenter__(self) -> ACT:
        # The fast path of Lease.__aenter__ and note(), inlined to save two calls.
        pool = self._pool
        core = pool._core
        entry = None if pool._sessions else core.take_now()
        if entry is None:
            conn = await super().__aenter__()
            if not self.joined:
                note(self._entry, capture_three(sys._getframe(1)))
            return conn
        conn = entry.conn
        conn._pool = pool  # type: ignore[assignment]
        trace_statements(conn)
        self._entry = entry
        self._number = entry.traced_in = entry.uses
        entry.trace = capture_three(sys._getframe(1))
        return conn


def note(entry: Entry[ACT], trace: Trace) -> None:
    """Record where a connection was acquired."""
    entry.trace, entry.traced_in = trace, entry.uses
    trace_statements(entry.conn)


def is_still_leased(pool: SupportsBorrowing[ACT], conn: ACT, number: int) -> bool:
    """Whether a block's lease still lasts, or `close()` or the end of its event loop ended it.

    If neither is so, the block itself has released the connection, and another may have it now.
    """
    owner: object = conn._pool
    lease = pool._core.lease_number(conn)
    taken = pool._core.closed or conn in pool._core.orphaned
    return owner is pool and (lease == number or (not lease and taken))


def reject_early_return(pool: SupportsBorrowing[ACT], conn: ACT, *, failing: bool) -> None:
    """Raise for a block that has released its connection, unless `conn.close()` may do so."""
    if not pool.close_returns and not failing:
        msg = f"{conn!r} was returned inside the block that had leased it"
        raise ReleaseError(msg)
