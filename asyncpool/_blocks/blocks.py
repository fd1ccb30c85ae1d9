"""The context managers of the pool: acquire a connection, end the work, release the connection.

Nothing here suspends between the acquisition of a connection and its assignment to a block, or
between the end of the work and the release. A failed block is rolled back by a background task of
the pool, not by its caller.
"""

from __future__ import annotations

import logging
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Generic, Protocol

import psycopg

from asyncpool._blocks.commit import (
    closed_error,
    commit,
    failed_error,
    has_failed,
    require_no_lost_work,
    restore_autocommit,
    run_shielded,
    set_autocommit,
    wait_for_cancelled,
    warn_of_open_work,
)
from asyncpool._blocks.generators import enclosing
from asyncpool._blocks.session import Join, Session
from asyncpool._core.entry import Entry
from asyncpool._core.pool import Core
from asyncpool._core.stacks import Trace, capture_three
from asyncpool._psycopg.connection import Connection
from asyncpool._psycopg.driver import ACT, PsycopgDriver
from asyncpool.errors import PoolError, ReleaseError

Exc = type[BaseException] | None

PLAIN_TRANSACTIONS = {Connection.transaction, psycopg.AsyncConnection.transaction}
"""Those that a class has where it does not override the method."""

JOINED = 0
"""The lease number of a block inside a session; a real lease number is never 0."""


class SupportsBorrowing(Protocol[ACT]):
    """The part of the pool that blocks use."""

    close_returns: bool
    _core: Core[ACT]
    _driver: PsycopgDriver[ACT]
    _autocommit_modes: dict[ACT, bool]
    """The autocommit mode to restore when a leased connection is released in the other mode."""
    _sessions: dict[object, Session[ACT]]
    """The active sessions, each under its task and under its connection."""

    async def getconn(self, timeout: float | None = None) -> ACT:
        """Acquire a connection."""
        ...

    async def _borrow_conn(self, timeout: float | None) -> ACT:
        """Acquire a connection for a block or a one-shot, through overridden methods if any."""
        ...

    async def _return_conn(
        self,
        conn: ACT,
        *,
        failing: bool,
        cleanup: Callable[[], Awaitable[object]] | None = None,
        as_is: bool = False,
    ) -> None:
        """Release such a connection; a background task runs `cleanup` before the reset."""
        ...

    def _acquire_now(self) -> ACT | None:
        """Acquire an idle connection, if there is one."""
        ...

    def _ensure_open(self) -> None: ...

    def _release_lease(
        self, conn: ACT, *, failing: bool, cleanup: Callable[[], Awaitable[object]] | None = None
    ) -> None: ...


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
        leased: Any = entry.conn
        leased._pool = pool
        leased._traced, leased._last_query = True, None
        self._entry = entry
        self._number = entry.traced_in = entry.uses
        entry.trace = capture_three(sys._getframe(1))
        return entry.conn


def note(entry: Entry[ACT], trace: Trace) -> None:
    """Record where a connection was acquired."""
    entry.trace, entry.traced_in = trace, entry.uses
    conn: Any = entry.conn
    conn._traced, conn._last_query = True, None


class Transaction(Generic[ACT]):
    """`pool.transaction()`: a connection for a block that is one explicit transaction."""

    __slots__ = ("_conn", "_join", "_number", "_pool", "_timeout", "_transaction")

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
        self._number = self._pool._core.bind(conn)
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
        if not is_still_leased(pool, conn, self._number):
            reject_early_return(pool, conn, failing=kind is not None)
            return False
        if not pool._core.lease_number(conn):
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


class SessionBlock(Generic[ACT]):
    """`pool.session()`: one connection for a block and for everything its task acquires inside."""

    __slots__ = ("_lease", "_pool", "_session")

    def __init__(self, pool: SupportsBorrowing[ACT], lease: Lease[ACT]) -> None:
        self._pool = pool
        self._lease = lease
        self._session: Session[ACT] | None = None

    async def __aenter__(self) -> ACT:
        if (task := current_task()) is None:
            msg = "a session needs a running asyncio task: there is none here"
            raise PoolError(msg)
        pool, lease = self._pool, self._lease
        conn = await lease.__aenter__()
        self._session = None
        if lease.joined:
            lease.make_strict()
            return conn
        try:
            self._session = session = Session(pool._core, pool._driver, conn, task)
        except KeyError as error:
            msg = f"a session needs a connection leased from the pool: {conn!r} is not"
            await lease.__aexit__(KeyError, error, None)
            raise PoolError(msg) from None
        pool._sessions[task] = pool._sessions[conn] = session
        for generator in enclosing(sys._getframe(1), task.get_loop()):
            session.watch(generator, partial(_unregister, pool, session, task))
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        lease, session = self._lease, self._session
        if session is None:
            await lease.__aexit__(kind, error, tb)
            return
        pool, conn = self._pool, session.conn
        _unregister(pool, session, session.task)
        _unregister(pool, session, conn)
        if session.is_clean and conn not in pool._autocommit_modes:
            await lease.__aexit__(kind, error, tb)
            return
        undo_all: Callable[[], Awaitable[object]] = session.undo_all
        if (mode := pool._autocommit_modes.pop(conn, None)) is not None:
            restore = partial(pool._driver.restore_autocommit, conn, autocommit=mode)
            undo_all = partial(session.undo_all, restore)
        try:
            if kind is None and (session.undo_error or (session.busy and session.holds())):
                await session.wait_ready(None)
            elif kind is None and session.holds():
                await wait_for_cancelled(pool._driver, conn)
        except BaseException:
            await lease.abort(undo_all)
            raise
        undone = session.undone_outside_error() if kind is GeneratorExit else None
        unfinished: psycopg.Error | None = session.unfinished_error(mode_changed=mode is not None)
        if unfinished is None and kind is None and session.holds() and has_failed(conn):
            unfinished = failed_error(conn)
        try:
            if unfinished is None and mode is None and not (session.busy and session.holds()):
                await lease.__aexit__(kind, error, tb)
            else:
                await lease.abort(undo_all)
                if unfinished is not None and kind is None:
                    raise unfinished
            if undone is not None:
                # The caller that counts on this work may be in another task than this one.
                pool._core.runtime.record("work undone", str(undone), logging.ERROR)
                raise undone
        finally:
            del unfinished, undone  # their tracebacks have this frame


def _unregister(
    pool: SupportsBorrowing[ACT], session: Session[ACT], key: object, *_: object
) -> None:
    """Remove a session from the pool's map under its task or its connection."""
    if pool._sessions.get(key) is session:
        del pool._sessions[key]


class Acquisition(Coroutine[Any, Any, ACT]):
    """`pool.acquire()`: await it, or use `async with`, which releases the connection at the end.

    It is a `Coroutine`, so that `asyncio.create_task` and `wait_for` accept it.
    """

    __slots__ = ("_conn", "_coroutine", "_get", "_number", "_pool", "_timeout")

    def __init__(
        self,
        pool: SupportsBorrowing[ACT],
        timeout: float | None,
        get: Callable[[float | None], Coroutine[Any, Any, ACT]] | None = None,
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._get = get
        """The function that acquires, if a subclass of the pool overrides it."""
        self._coroutine: Coroutine[Any, Any, ACT] | None = None

    def _started(self) -> Coroutine[Any, Any, ACT]:
        if self._coroutine is None:
            self._coroutine = (self._get or self._pool.getconn)(self._timeout)
        return self._coroutine

    def __await__(self) -> Generator[Any, Any, ACT]:
        pool = self._pool
        if self._coroutine is None and self._get is None and not pool._sessions:
            conn = pool._acquire_now()
            if conn is not None:
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
        conn = self._conn = await self
        core = self._pool._core
        self._number = core.bind(conn) if core.lease_number(conn) else 0
        return conn

    async def __aexit__(
        self, kind: Exc, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        pool, conn = self._pool, self._conn
        if not self._number or is_still_leased(pool, conn, self._number):
            await self._end(conn, failing=kind is not None)
        else:
            reject_early_return(pool, conn, failing=kind is not None)

    async def _end(self, conn: ACT, *, failing: bool) -> None:
        pool = self._pool
        plain = self._get is None and not (pool._sessions or pool._autocommit_modes)
        if plain and pool._core.release_now(conn):
            conn._pool = None
            return
        if not failing and pool._core.lease_number(conn) and conn not in pool._sessions:
            warn_of_open_work(pool._core, conn)
            try:
                require_no_lost_work(conn)
            except BaseException:
                await pool._return_conn(conn, failing=True)
                raise
        await pool._return_conn(conn, failing=failing, as_is=True)


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
