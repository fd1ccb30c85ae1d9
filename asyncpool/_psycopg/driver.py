"""The driver for psycopg 3: opens, pings, resets and closes its async connections.

The driver decides how a connection is reset and closed, never when. It keeps psycopg's contract
with a pool: `conn._pool` is the pool while user code has the connection, else None.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import weakref
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from typing import Any, Generic, get_origin

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from asyncpool._core.driver import Notify
from asyncpool._core.redact import conceal
from asyncpool._psycopg.callbacks import call, resolve
from asyncpool._psycopg.closing import close, end_session
from asyncpool._psycopg.handle import Baseline, ConnectionHandle, notify_handlers
from asyncpool._psycopg.internals import SUPPORTED, UNSUPPORTED_REASON
from asyncpool._psycopg.listening import Subscription
from asyncpool._psycopg.marks import SupportsMarks, renew_mark, reset_statements
from asyncpool._psycopg.open_work import (
    can_reset,
    forget_prepared,
    is_busy,
    is_idle,
    nothing_else_open,
    require_idle,
    roll_back,
    roll_back_to,
    wait_for_lock,
)
from asyncpool._psycopg.operation import BAD
from asyncpool._psycopg.own_statements import RESETS, ResetLevel, is_standby, ping, run
from asyncpool._psycopg.pacing import Paced, turn
from asyncpool._psycopg.preparing import RunCounts, share_runs
from asyncpool._psycopg.socket_watcher import READY
from asyncpool._psycopg.sources import Checked, Conninfo, Kwargs, check_sources, connect
from asyncpool._psycopg.transport import Transport, transport_of

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

logger = logging.getLogger("asyncpool")

ACT = TypeVar(
    "ACT",
    bound=psycopg.AsyncConnection[Any],
    default=psycopg.AsyncConnection[TupleRow],
)

CLOSE_TIMEOUT = 2.0
"""Seconds to close a connection that could not be configured."""

IDLE = int(TransactionStatus.IDLE)
INTRANS = int(TransactionStatus.INTRANS)
INERROR = int(TransactionStatus.INERROR)


class PsycopgDriver(Generic[ACT]):
    """A `Driver[ACT]` on top of `connection_class.connect`.

    Connections of `asyncpool.Connection` are watched. psycopg's own cannot be, because their wait
    owns the descriptor's only reader. A loss of these is found by `is_alive`, pings and resets.
    """

    def __init__(
        self,
        conninfo: Conninfo,
        kwargs: Kwargs | None,
        connection_class: type[ACT],
        configure: Callable[[ACT], Awaitable[None]] | None,
        reset: ResetLevel | Callable[[ACT], Awaitable[None]] | None,
        *,
        runs: RunCounts | None = None,
        marks: SupportsMarks | None = None,
    ) -> None:
        if not (reset is None or callable(reset) or reset in RESETS):
            msg = f"reset must be None, a callable or one of {', '.join(RESETS)}, not {reset!r}"
            raise ValueError(msg)
        # An alias such as AsyncConnection[DictRow] stands for its class.
        given, connection_class = connection_class, get_origin(connection_class) or connection_class
        if not (
            isinstance(connection_class, type)
            and hasattr(connection_class, "connect")
            and issubclass(connection_class, psycopg.AsyncConnection)
        ):
            msg = f"connection_class must be a psycopg.AsyncConnection class, not {given!r}"
            raise TypeError(msg)
        check_sources(conninfo, kwargs, connection_class)
        self.owner: Callable[[], object | None] = lambda: None
        """A weak reference to the pool; returns None without one."""
        self.marks = marks
        """Marks each session at its start; None: the sessions have no mark."""
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.connection_class = connection_class
        self.resolvers: tuple[Callable[[], Any], Callable[[], Any]] | None = None
        """Callables used in place of `conninfo` and `kwargs`, if the pool resolves these itself."""
        self._configure, self._checked = configure, Checked()
        self._runs = runs
        """The counts that the connections share; None: each counts for itself."""
        self._reset = reset
        self._any_watched = False
        """Whether any connection is watched; `connect` may return another class than its own."""
        self.resets = not (reset is None or reset == "rollback")
        """Whether each connection is reset on its return; if so, none is clean before its reset."""
        self._clean_status = -1 if self.resets else IDLE
        self._handles = weakref.WeakKeyDictionary[ACT, ConnectionHandle]()
        self._pid = os.getpid()
        if UNSUPPORTED_REASON is not None:
            logger.info("%s: the pool uses psycopg's own connections", UNSUPPORTED_REASON)

    async def open(self) -> ACT:
        """Connect and configure."""
        self._pid = os.getpid()
        secrets: set[str] = set()
        await turn()
        try:
            return await Paced(self._open(secrets))
        except Exception as error:
            message = conceal(error, secrets)
            if message is None:
                raise
        # Raised outside of `except`, so that the error with the secrets is not its context.
        raise psycopg.OperationalError(message)

    async def _open(self, secrets: set[str]) -> ACT:
        conninfo, kwargs = self.resolvers or (self.conninfo, self.kwargs)
        given = conninfo, kwargs, self.connection_class, self._checked
        conn = await connect(*given, secrets, marks=self.marks)
        try:
            share_runs(conn, self._runs)
            # Made first, since it reaches the backend whatever `configure` does to the connection.
            self._handles[conn] = handle = ConnectionHandle(conn)
            if self._configure is not None:
                await call("configure", partial(self.call_with, self._configure, conn))
                require_idle(conn, "configure")
                handle.baseline = Baseline.of(conn)
        except BaseException as error:
            # A cancel scope raises an error of its own in place of a GeneratorExit.
            if GeneratorExit not in (type(error), type(error.__context__)):
                with suppress(Exception):
                    async with asyncio.timeout(CLOSE_TIMEOUT):
                        await (self.close(conn) if conn in self._handles else close(conn))
            elif os.getpid() == self._pid:
                self.drop(conn)  # nothing can be awaited any more
            raise
        self._any_watched |= handle.transport is not None
        conn._pool = None
        return conn

    async def close(self, conn: ACT) -> None:
        """Cancel what still runs, close, and wait until the server has hung up.

        The backend is gone only then, so there are never more backends than entries. The socket is
        closed however this ends.
        """
        if os.getpid() != self._pid:
            return  # a forked child leaves the session to its parent
        with closing(self._handles.pop(conn)) as handle:
            await end_session(conn, handle)

    def is_busy(self, conn: ACT) -> bool:
        """Whether the connection's backend may be running a query."""
        return is_busy(conn)

    def drop(self, conn: ACT) -> None:
        """Close a connection whose event loop is closed, without waiting for the server."""
        conn.pgconn.finish()
        if (handle := self._handles.pop(conn, None)) is not None:
            handle.close()

    async def ping(self, conn: ACT) -> None:
        """Run an empty query outside of any transaction."""
        await ping(conn)

    async def reset(self, conn: ACT) -> None:
        """Roll back and do the pool's `reset`; without a callable, usually in one round trip.

        Raises:
            psycopg.Error: the connection cannot be reset; for example, a statement is under way.
        """
        handle = self._handles[conn]
        conn._pool = None
        await handle.finish_leftovers(conn)
        await wait_for_lock(conn)
        interrupted = handle.take_interrupted()
        if handle.must_discard:
            msg = f"what an earlier borrower has changed could not be undone: {conn!r}"
            raise psycopg.OperationalError(msg)
        in_use = conn.lock.locked() or is_busy(conn)
        if in_use or not await can_reset(conn, interrupted=interrupted):
            msg = f"connection returned in the middle of an operation: {conn!r}"
            raise psycopg.OperationalError(msg)
        statements = reset_statements(self._reset, conn, self.marks)
        if conn.pgconn.transaction_status != IDLE:
            # Not conn.rollback(), which fails inside of a transaction() block that was left open.
            # psycopg sends no BEGIN first while a transaction is open.
            await run(conn, f"ROLLBACK; {statements}".encode())
        elif statements:
            await conn.set_autocommit(True)
            await run(conn, statements.encode())
        if self._reset == "discard":
            # Not every version of psycopg notices that its prepared statements are gone.
            await forget_prepared(conn)
        if (standby_error := handle.take_standby_error()) is not None and await is_standby(conn):
            handle.report_standby(standby_error)
        if statements:
            await handle.baseline.restore(conn)
        elif callable(self._reset):
            await self.call_with(self._reset, conn)
        if not statements:
            await renew_mark(conn, self.marks)
        require_idle(conn, "reset")
        handle.resume_watching()

    async def roll_back(self, conn: ACT) -> None:
        """Roll back the open transaction of a borrower that keeps the connection.

        The connection's lock is held throughout, so no other task's statement comes between.

        Raises:
            psycopg.Error: the transaction cannot be ended; for example, a statement is under way.
        """
        await roll_back(conn, self._handles[conn])

    async def roll_back_to(self, conn: ACT, block: psycopg.AsyncTransaction) -> None:
        """Roll back a transaction block and those inside of it; otherwise as `roll_back`."""
        await roll_back_to(conn, self._handles[conn], block)

    def has_leftovers(self, conn: ACT) -> bool:
        """Whether a cancelled operation is not finished yet."""
        transport = transport_of(conn)
        return transport is not None and transport.has_leftovers

    async def finish_cancelled(self, conn: ACT) -> None:
        """Finish a cancelled operation, for a borrower that keeps the connection."""
        async with conn.lock:
            await self._handles[conn].finish_leftovers(conn)

    async def restore_autocommit(self, conn: ACT, *, autocommit: bool) -> None:
        """Roll back and change the mode; if that fails, the next reset discards the connection."""
        try:
            await self.roll_back(conn)
            await conn.set_autocommit(autocommit)
        except Exception:
            self._handles[conn].must_discard = True
            raise

    async def stop_listening(self, subscription: Subscription[ACT]) -> None:
        """Undo a subscription; if that fails, the next reset discards the connection."""
        try:
            await self.roll_back(subscription.conn)
            await subscription.stop()
        except Exception:
            self._handles[subscription.conn].must_discard = True
            raise

    def is_idle(self, conn: ACT) -> bool:
        """Whether no transaction or operation is open, so that setting attributes needs no wait."""
        return is_idle(conn)

    if SUPPORTED:

        def is_clean(self, conn: ACT) -> bool:
            """Whether the connection is idle and needs no reset before the next lease."""
            pgconn = conn.pgconn
            if (
                pgconn.transaction_status != self._clean_status
                or conn._pipeline is not None
                or pgconn.pipeline_status
                or conn._num_transactions
                or conn._tpc is not None
                or conn.lock._locked  # type: ignore[attr-defined]
            ):
                return False
            if not self._any_watched:
                return True
            try:
                transport: Transport | None = conn._transport  # type: ignore[attr-defined]
            except AttributeError:
                return True  # psycopg's own
            # `Transport.is_clean`, inlined to save a call.
            return transport is None or (
                transport.phase is READY and transport.reading and not transport.reset_reasons
            )

    else:

        def is_clean(self, conn: ACT) -> bool:
            """Whether the connection is idle and needs no reset before the next lease."""
            return (
                conn.pgconn.transaction_status == self._clean_status
                and not conn.lock.locked()
                and nothing_else_open(conn)
            )

    def is_alive(self, conn: ACT) -> bool:
        """Whether libpq and the socket show no end of the session, without waiting."""
        if conn.pgconn.status == BAD:
            return False
        transport = transport_of(conn)
        if transport is not None:
            return transport.is_up()
        handle = self._handles.get(conn)
        return handle is None or conn.pgconn.transaction_status != IDLE or handle.is_up(conn)

    def is_listening(self, conn: ACT) -> bool:
        """Whether the notification handlers differ from those that `configure` has added."""
        handle = self._handles.get(conn)
        return handle is not None and notify_handlers(conn) != handle.baseline.notify_handlers

    def watch(self, conn: ACT, notify: Notify) -> bool:
        """Call `notify` on errors and on a loss; False for psycopg's own, which are not watched."""
        return self._handles[conn].watch(notify)

    async def run_check(self, check: Callable[[ACT], Awaitable[None] | None], conn: ACT) -> None:
        """Call the user's check, and roll back the transaction that it may have started."""
        await self.call_with(check, conn)
        if conn.pgconn.transaction_status in (INTRANS, INERROR):
            await conn.rollback()

    async def call_with(self, callback: Callable[[ACT], Awaitable[None] | None], conn: ACT) -> None:
        """Call the user's callback, with the connection's `_pool` set meanwhile."""
        conn._pool = self.owner()  # type: ignore[assignment]
        try:
            await resolve(lambda: callback(conn))
        finally:
            conn._pool = None
