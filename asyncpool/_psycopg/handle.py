"""The pool's means to reset a psycopg connection and to end its session."""

from __future__ import annotations

import socket
import struct
import weakref
from asyncio import get_running_loop
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import psycopg
from psycopg.pq import DiagnosticField

from asyncpool._core.driver import Notify
from asyncpool._psycopg.cancellation import prepare, send_request
from asyncpool._psycopg.operation import BAD
from asyncpool._psycopg.socket_watcher import LOST
from asyncpool._psycopg.transport import INTERRUPTED, MAYBE_STANDBY, transport_of

ABORT_TIMEOUT = 0.1
ABORT_PAUSE = 0.001
"""Seconds in which the statements of a pipeline are cancelled one by one, and between two."""


@dataclass(repr=False, slots=True)
class Baseline:
    """A connection's attributes as `configure` left them; the named resets restore them."""

    autocommit: bool
    isolation_level: psycopg.IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    row_factory: Any
    cursor_factory: Any
    server_cursor_factory: Any
    prepare_threshold: int | None
    notice_handlers: list[Any]
    notify_handlers: list[Any]

    @classmethod
    def of(cls, conn: psycopg.AsyncConnection[Any]) -> Baseline:
        """Return the present attributes of a connection."""
        return cls(
            conn.autocommit,
            conn.isolation_level,
            conn.read_only,
            conn.deferrable,
            conn.row_factory,
            conn.cursor_factory,
            conn.server_cursor_factory,
            conn.prepare_threshold,
            notice_handlers(conn)[:],
            notify_handlers(conn)[:],
        )

    async def restore(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Restore the attributes; no transaction may be open, so this does no I/O."""
        forget_notifications(conn)
        if self == Baseline.of(conn):
            return
        await conn.set_autocommit(self.autocommit)
        await conn.set_isolation_level(self.isolation_level)
        await conn.set_read_only(self.read_only)
        await conn.set_deferrable(self.deferrable)
        conn.row_factory = self.row_factory
        conn.cursor_factory = self.cursor_factory
        conn.server_cursor_factory = self.server_cursor_factory
        conn.prepare_threshold = self.prepare_threshold
        notice_handlers(conn)[:] = self.notice_handlers
        notify_handlers(conn)[:] = self.notify_handlers


def forget_notifications(conn: psycopg.AsyncConnection[Any]) -> None:
    """Drop the notifications that are kept for the next `notifies()`."""
    if backlog := getattr(conn, "_notifies_backlog", None):
        backlog.clear()
    if missed := getattr(conn, "_unread_notifies", None):
        missed.clear()


def notice_handlers(conn: psycopg.AsyncConnection[Any]) -> list[Any]:
    """Return the connection's own list of notice handlers; an empty one if it is not known."""
    return getattr(conn, "_notice_handlers", [])


def notify_handlers(conn: psycopg.AsyncConnection[Any]) -> list[Any]:
    """Return the connection's own list of notification handlers, or an empty one."""
    return getattr(conn, "_notify_handlers", [])


class ConnectionHandle:
    """A connection's baseline and its socket, with which its session is ended.

    psycopg closes a connection when it is interrupted again while it cancels a query. The backend
    then works on, and neither psycopg nor libpq can reach it.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.baseline = Baseline.of(conn)
        # Made in advance: libpq makes none for a closed connection.
        self._cancel = prepare(conn.pgconn)
        self.transport = transport_of(conn)
        self._began_as_standby = conn.info.parameter_status("in_hot_standby") == "on"
        self._standby_error: BaseException | None = None
        self.must_discard = False
        """Whether what a borrower has changed could not be undone; a reset then fails."""
        self._notify: Notify | None = None
        # A duplicate of the socket, which stays open after libpq has closed its own descriptor.
        if self.transport is not None:
            self._socket = self.transport.socket
            self.transport.keep_socket = True
        else:
            self._socket = socket.socket(fileno=socket.dup(conn.pgconn.socket))
            self._socket.setblocking(False)
            weakref.finalize(conn, self._socket.close)

    async def cancel(self) -> None:
        """Cancel what the backend runs, also where the connection is closed on this side."""
        if self._cancel is not None:
            with suppress(psycopg.Error, TimeoutError):
                try:
                    await send_request(self._cancel)
                finally:
                    self._cancel.reset()

    async def abort(self) -> None:
        """End a session whose server may have many statements to run before it sees its end.

        The statements are cancelled one after the other. If that takes too long, the socket
        is reset. A backend notices this only when it sends something, so the next statement that is
        cancelled ends it. In that case the pool does not know when the backend is gone.
        """
        if self.transport is not None:
            self.transport.release()
        with anyio.move_on_after(ABORT_TIMEOUT):
            while not self.is_hung_up():
                await self.cancel()  # without a wait, where it cannot be sent
                await anyio.sleep(ABORT_PAUSE)
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        for _ in range(3):
            await self.cancel()

    async def finish_leftovers(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Wait until a cancelled operation is finished; see `Transport.finish_leftovers`."""
        if self.transport is not None:
            await self.transport.finish_leftovers(conn)

    def watch(self, notify: Notify) -> bool:
        """Call `notify` on errors and on a loss; False for psycopg's own, which are not watched."""
        if self.transport is None:
            return False
        self._notify = notify
        if self.transport.phase is not LOST:
            self.transport.notify = self._on_change
        else:
            notify()
        return True

    def _on_change(self, error: BaseException | None = None, *, lost: bool = True) -> None:
        assert self._notify is not None, "bug: a watched connection without a callback"
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self.transport is not None:
            # The user may have made the transaction read-only. The server is asked whether it has
            # become a standby when the connection is reset.
            if not self._began_as_standby:
                self._standby_error = error
                self.transport.reset_reasons |= MAYBE_STANDBY
        else:
            self._notify(error, lost=lost)

    def take_interrupted(self) -> bool:
        """Return whether a query was cancelled since the last call."""
        if self.transport is None:
            return False
        was = self.transport.reset_reasons
        self.transport.reset_reasons &= ~INTERRUPTED
        return bool(was & INTERRUPTED)

    def take_standby_error(self) -> BaseException | None:
        """Return an error since the last call for which the server may have become a standby."""
        standby_error, self._standby_error = self._standby_error, None
        if self.transport is not None:
            self.transport.reset_reasons &= ~MAYBE_STANDBY
        return standby_error

    def report_standby(self, standby_error: BaseException) -> None:
        """Report the error of `take_standby_error`, as the server has become a standby."""
        if self._notify is not None:
            self._notify(standby_error, lost=False)

    def resume_watching(self) -> None:
        """Watch the connection again after a reset."""
        if self.transport is not None:
            self.transport.resume()

    async def hang_up(self) -> None:
        """Wait until the server has closed its end; the backend is gone then."""
        if self.transport is not None:
            self.transport.release()
        with suppress(OSError):
            while await get_running_loop().sock_recv(self._socket, 4096):
                pass

    def close(self) -> None:
        """Close the socket, the only descriptor of a handle."""
        if self.transport is not None:
            self.transport.release()
        self._socket.close()

    def shut_down(self, how: int) -> None:
        """Shut one or both directions of the socket down; waits for them end with an error."""
        with suppress(OSError):
            self._socket.shutdown(how)

    def is_up(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """Whether the unwatched socket of an idle connection shows no end of the session."""
        # The server's last message and the end of file take two reads.
        for _ in range(2):
            try:
                if not self._socket.recv(1, socket.MSG_PEEK) or _announces_session_end(conn.pgconn):
                    return False
            except BlockingIOError:
                return True
            except (OSError, psycopg.Error):
                return False
        return conn.pgconn.status != BAD

    def is_hung_up(self) -> bool:
        """Whether the server has hung up; drops unread input, which libpq must not need."""
        try:
            while self._socket.recv(4096):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def _announces_session_end(pgconn: Any) -> bool:
    """Read what has come with no query under way; return whether the server ends the session."""
    severities = []
    handler = pgconn.notice_handler

    def on_notice(notice: Any) -> None:
        severities.append(notice.error_field(DiagnosticField.SEVERITY_NONLOCALIZED))
        if handler is not None:
            handler(notice)

    pgconn.notice_handler = on_notice
    try:
        pgconn.consume_input()
        pgconn.is_busy()  # passes notices to their handlers
    finally:
        pgconn.notice_handler = handler
    while (notify := pgconn.notifies()) is not None:
        if pgconn.notify_handler is not None:
            pgconn.notify_handler(notify)
    return b"FATAL" in severities or b"PANIC" in severities
