"""What the pool keeps of a psycopg connection besides the object, to clean it and part from it."""

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
from asyncpool._psycopg.transport import BAD, INTERRUPTED, MAYBE_STANDBY, Transport

ABORT_TIMEOUT = 0.1
"""Seconds for the statements of a pipeline to be cancelled one by one."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """How `configure` left a connection's own attributes; the named resets go back to it."""

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
        """What a connection has now."""
        handlers = {"notice_handlers", "notify_handlers"}
        own = {name: getattr(conn, name) for name in cls.__slots__ if name not in handlers}
        return cls(
            **own,
            notice_handlers=list(conn._notice_handlers),
            notify_handlers=list(conn._notify_handlers),
        )

    async def restore(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Put it back; there is no I/O in this, as no transaction is open."""
        if backlog := getattr(conn, "_notifies_backlog", None):
            backlog.clear()
        if missed := getattr(conn, "_unread_notifies", None):
            missed.clear()
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
        conn._notice_handlers[:] = self.notice_handlers
        conn._notify_handlers[:] = self.notify_handlers


class ConnectionHandle:
    """What a connection was like, and the means to end it properly.

    psycopg closes a connection by itself when it is interrupted again while it cancels a query. Its
    backend works on, then, and neither psycopg nor libpq can reach it any more.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.baseline = Baseline.of(conn)
        # Made now, since libpq makes none for a connection that is closed.
        self._cancel = prepare(conn.pgconn)
        self.transport: Transport | None = getattr(conn, "_transport", None)
        self._began_as_standby = conn.info.parameter_status("in_hot_standby") == "on"
        self._standby_error: BaseException | None = None
        self.must_discard = False
        """Whether something of a borrower's could not be put back."""
        self._notify: Notify | None = None
        # The socket once more: the only witness that outlives libpq's own descriptor.
        if self.transport is not None:
            self._socket = self.transport.socket
            self.transport.keep_socket = True
        else:
            self._socket = socket.socket(fileno=socket.dup(conn.pgconn.socket))
            self._socket.setblocking(False)
            weakref.finalize(conn, self._socket.close)

    async def cancel(self) -> None:
        """Cancel what the backend runs, be the connection closed on our side or not."""
        if self._cancel is not None:
            with suppress(psycopg.Error, TimeoutError):
                try:
                    await send_request(self._cancel)
                finally:
                    self._cancel.reset()

    async def abort(self) -> None:
        """Leave a server that may have many statements to run before it comes to the goodbye.

        They are cancelled one after the other. Where there are too many the connection is reset: a
        backend looks for its client only when it has something to tell, which it now cannot, and
        the next that is cancelled ends it. It is not known then when it has gone.
        """
        if self.transport is not None:
            self.transport.release()
        with anyio.move_on_after(ABORT_TIMEOUT):
            while not self.is_hung_up():
                await self.cancel()
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        for _ in range(3):
            await self.cancel()

    async def finish_leftovers(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Wait until a cancelled query has come to its end."""
        if self.transport is not None:
            await self.transport.finish_leftovers(conn)

    def watch(self, notify: Notify) -> bool:
        """Have `notify` called with what happens; False: psycopg's own cannot be watched."""
        if self.transport is None:
            return False
        self._notify = notify
        if self.transport.up:
            self.transport.notify = self._on_change
        else:
            notify()
        return True

    def _on_change(self, error: BaseException | None = None, *, lost: bool = True) -> None:
        assert self._notify is not None, "bug: a watch with nobody to tell"
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self.transport is not None:
            # It may be the user's own doing. Whether the server has become a standby is asked when
            # the connection comes back.
            if not self._began_as_standby:
                self._standby_error = error
                self.transport.amiss |= MAYBE_STANDBY
        else:
            self._notify(error, lost=lost)

    def take_interrupted(self) -> bool:
        """Whether a query was cancelled since this was last asked."""
        if self.transport is None:
            return False
        was = self.transport.amiss
        self.transport.amiss &= ~INTERRUPTED
        return bool(was & INTERRUPTED)

    def take_standby_error(self) -> BaseException | None:
        """The error for which its server may have become a standby, since this was last asked."""
        standby_error, self._standby_error = self._standby_error, None
        if self.transport is not None:
            self.transport.amiss &= ~MAYBE_STANDBY
        return standby_error

    def report_standby(self, standby_error: BaseException) -> None:
        """It has."""
        if self._notify is not None:
            self._notify(standby_error, lost=False)

    def resume_watching(self) -> None:
        """The connection is clean: its end is to be noticed again."""
        if self.transport is not None:
            self.transport.resume()

    async def hang_up(self) -> None:
        """Wait until the server has closed its end: then its backend is gone."""
        if self.transport is not None:
            self.transport.release()
        with suppress(OSError):
            while await get_running_loop().sock_recv(self._socket, 4096):
                pass

    def close(self) -> None:
        """Close the socket; nothing else here has a descriptor of its own."""
        if self.transport is not None:
            self.transport.release()
        self._socket.close()

    def shut_down(self, how: int) -> None:
        """Let nothing more go out, or in; what waits for that ends with an error."""
        with suppress(OSError):
            self._socket.shutdown(how)

    def is_up(self, conn: psycopg.AsyncConnection[Any]) -> bool:
        """Whether an idle connection that is not watched has its server, by what has come of it."""
        # The server's last words and the end of file are two reads.
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
        """Whether the server has; it takes in what it has said, so libpq must be done with it."""
        try:
            while self._socket.recv(4096):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


def _announces_session_end(pgconn: Any) -> bool:
    """Take in what has come with nothing under way; whether the server is about to hang up."""
    severities = []
    handle = pgconn.notice_handler

    def on_notice(notice: Any) -> None:
        severities.append(notice.error_field(DiagnosticField.SEVERITY_NONLOCALIZED))
        if handle is not None:
            handle(notice)

    pgconn.notice_handler = on_notice
    try:
        pgconn.consume_input()
        pgconn.is_busy()  # it passes notices to their handlers
    finally:
        pgconn.notice_handler = handle
    while (notify := pgconn.notifies()) is not None:
        if pgconn.notify_handler is not None:
            pgconn.notify_handler(notify)
    return b"FATAL" in severities or b"PANIC" in severities
