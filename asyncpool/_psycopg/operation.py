"""The operation that runs on a connection's socket: one of psycopg's generators, or a channel.

The runner advances a generator as the socket becomes ready, and reads what arrives while no
operation runs. It knows the socket and libpq's connection but not the pool.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from asyncio import get_running_loop
from contextlib import suppress
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, Protocol

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from asyncpool._psycopg.awake import awake_of
from asyncpool._psycopg.direct_future import DirectFuture
from asyncpool._psycopg.internals import READY_R, WAIT_R, WAIT_W
from asyncpool._psycopg.socket_watcher import SocketWatcher

logger = logging.getLogger("asyncpool")

IDLE, ACTIVE = int(TransactionStatus.IDLE), int(TransactionStatus.ACTIVE)
UNDER_WAY = {ACTIVE, int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
KNOWN = {IDLE, int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
BAD = int(ConnStatus.BAD)

BUSY_TIME = 0.005
"""Seconds that work which never waits may occupy the event loop."""

RETURNED = (
    "the connection was returned to its pool, where it runs the statements of others:"
    " use a connection inside its block only"
)


def closed_error(result: str = "") -> psycopg.OperationalError:
    """Return the error for an operation on a closed connection, with what that means for it."""
    return psycopg.OperationalError(f"the connection is closed{result and ': '}{result}")


class Channel(Protocol):
    """The user of a connection in pipeline mode; see `_pipeline/channel.py`."""

    def readable(self) -> None:
        """Called when there is something to read."""

    def writable(self) -> None:
        """Called when there is room to write."""

    def lost(self) -> None:
        """Called when the connection has ended."""


class OperationRunner(SocketWatcher):
    """The one operation that runs on a connection's socket.

    Args:
        conn: an open connection; the runner keeps a weak reference.

    Raises:
        OSError: no descriptor is left for the duplicate.
        NotImplementedError: the event loop cannot watch descriptors.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(conn.pgconn.socket)
        self.pgconn = conn.pgconn
        """libpq's connection; it is finished when the connection is closed on this side."""
        self.was_open: bool | None = None
        """Whether a transaction was open when the connection ended; None if unknown."""
        self.channel: Channel | None = None
        """The channel that runs pipelined statements on the connection, in place of a generator."""
        self._conn = weakref.ref(conn)
        """psycopg's connection; weak, as the loop refers to the runner."""
        self._gen: Any = None
        """The generator of the operation that waits for the socket, if any."""
        self._want = WAIT_R
        """The states of the socket for which the generator waits."""
        self._future: DirectFuture | None = None
        """Done with the generator's result; None without a generator."""
        self._context: Context | None = None
        """A copy of the caller's context, in which the generator runs; None without a generator."""
        self._awake = awake_of(self.loop)
        """Keeps the loop awake while a statement that runs alone is about to be answered."""
        self._is_sent = False
        """Whether `_awake` counts the generator's statement."""

    def start(self, gen: Any) -> DirectFuture:
        """Start a generator, to be advanced as the socket becomes ready; return its future.

        Raises:
            StopIteration: the generator ended without waiting; the exception has its value.
            psycopg.ProgrammingError: a channel runs on the connection, as it was returned.
        """
        if self.channel is not None:
            gen.close()
            raise psycopg.ProgrammingError(RETURNED)
        if (status := self.pgconn.transaction_status) != ACTIVE:  # else it is a further step
            self.was_open = True if status in UNDER_WAY else None
        want = next(gen)
        if get_running_loop() is not self.loop:
            self.move_to_running_loop()
            self._awake = awake_of(self.loop)
        elif not self.reading:
            self.resume()
        self._gen = gen
        self._want = want
        self._context = copy_context()
        self._future = future = DirectFuture(loop=self.loop)
        if want & WAIT_W:
            self._advance(0)
        if self._gen is gen and self.pgconn.transaction_status == ACTIVE:
            self._is_sent = True
            awake = self._awake
            awake.active += 1
            if awake.active == 1:
                awake.sent_alone()
        return future

    def rejoin(self, gen: Any) -> DirectFuture | None:
        """Return a new future of a generator whose future was cancelled; None: it has ended."""
        if self._gen is not gen:
            return None
        self._future = future = DirectFuture(loop=self.loop)
        return future

    def set_timer(
        self, interval: float | None, timeout: float | None
    ) -> asyncio.TimerHandle | None:
        """Set a timer that ends the generator after `timeout`, or wakes it after `interval`."""
        if timeout is not None:
            return self.loop.call_later(timeout, self.time_out)
        if interval is not None:
            return self.loop.call_later(interval, self.wake)
        return None

    def time_out(self) -> None:
        """End the generator with psycopg's timeout error, unless its result is there to be read."""
        future = self._future
        if self._gen is not None and self._ready(WAIT_R):
            self._on_readable()  # the task may go on in it, with another operation
        if future is not None and future is self._future and not future.done():
            self._end()
            future.set_exception(psycopg.errors._WaitTimeout("wait timeout expired"))

    def wake(self) -> None:
        """Advance the generator with nothing ready, as psycopg before 3.3 does in `notifies`."""
        if self._gen is not None and not self._fail_if_finished():
            self._advance(0, woken=True)

    def drop(self, *, but: object) -> None:
        """End a generator that nobody waits for before its next step, but for one of this code."""
        gen, future = self._gen, self._future
        if gen is None or getattr(gen, "gi_code", None) is but:
            return
        self._end()
        gen.close()
        if future is not None and not future.done():
            future.set_result(None)

    def record_transaction(self) -> None:
        """Record whether a transaction is open, which libpq forgets when it closes."""
        if (status := self.pgconn.transaction_status) in KNOWN:
            self.was_open = status != IDLE

    # The following methods run in callbacks of the event loop.

    def _on_readable(self) -> None:
        if self._gen is None:
            if self.channel is not None:
                self.channel.readable()
            else:
                self.read_unsolicited()
        elif self.pgconn.status != BAD or not self._fail_if_finished():
            if self._want & WAIT_R:
                self._advance(READY_R)
            else:
                self._stop_reading()

    def _on_writable(self) -> None:
        if self.channel is not None:
            self.channel.writable()
        elif not self._fail_if_finished():
            self._advance(0)

    def _advance(self, ready: int, *, woken: bool = False) -> None:
        """Advance the generator with the flags in `ready`, and on while the socket is writable."""
        gen, future, want = self._gen, self._future, self._want
        assert self._context is not None, "bug: a generator without a context"
        assert future is not None, "bug: a generator without a future"
        send, since, completed = self._context.run, 0.0, None
        try:
            if ready or woken:
                want = send(gen.send, ready)
                while ready & READY_R and want & WAIT_R and self.is_hung_up():
                    want = send(gen.send, READY_R)
            while want & WAIT_W:
                # The socket is nearly always writable, so a poll saves a registration.
                now = monotonic()
                since = since or now
                if now - since > BUSY_TIME or not (ready := self._ready(want)):
                    self.watch_writable()
                    break
                want = send(gen.send, ready)
            else:
                if self._writing or not self.reading:
                    self._on_written()
            self._want = want
        except StopIteration as end:
            self._end()
            if not future.done():
                future.complete(end.value)
                completed = future
        except BaseException as error:
            self._on_error(future, error)
            if not isinstance(error, Exception):
                raise
        finally:
            del future  # break the cycle: the exception's traceback refers to this frame
        if completed is not None:
            completed.step()  # a task that calls this itself does not wait yet

    def _fail_if_finished(self) -> bool:
        """Fail the operation if somebody has called `pgconn.finish()`; return whether it failed.

        Its generator must not go on: it has libpq's pointer to the connection, which is freed.
        """
        if getattr(self.pgconn, "pgconn_ptr", 0) is None and self._future is not None:
            self._on_error(self._future, closed_error())
            return True
        return False

    def _on_written(self) -> None:
        """Stop waiting to write, and read again, which may have been stopped meanwhile."""
        self.unwatch_writable()
        self.resume()

    def _on_error(self, future: DirectFuture, error: BaseException) -> None:
        self._end()
        if not future.done():
            future.set_exception(error)
        self.report_error(error)
        if self.pgconn.status == BAD:
            self.mark_lost()

    def _end(self) -> None:
        self._gen = self._future = self._context = None
        if self._is_sent:
            self._is_sent = False
            self._awake.active -= 1
        if self._writing:
            self.unwatch_writable()

    def read_unsolicited(self) -> None:
        """Read notices, notifications and the end of the session while no operation runs."""
        conn, pgconn = self._conn(), self.pgconn
        backlog = getattr(conn, "_notifies_backlog", None)
        if (
            conn is None
            or pgconn.transaction_status in UNDER_WAY
            or (backlog is None and conn.lock.locked())
        ):
            # These are rows for a later wait, or notifications for an iteration over notifies(). Or
            # the session has ended in an open transaction. The next statement must get that error:
            # on a connection that libpq knows to be closed, psycopg ends a block silently.
            if self.is_hung_up():
                self._report_loss()
            self._stop_reading()
            return
        self.record_transaction()
        # The server's last message and the end of file take two reads.
        while True:
            with suppress(psycopg.Error):
                pgconn.consume_input()
                pgconn.is_busy()  # passes notices to their handlers
            if pgconn.status == BAD:
                self.mark_lost()
                return
            if not self.is_hung_up():
                break
        if conn._notify_handlers or backlog is not None:
            self.pass_on_notifications()

    def pass_on_notifications(self) -> None:
        """Pass the notifications that have come to their handlers."""
        pgconn = self.pgconn
        while (notify := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                try:
                    pgconn.notify_handler(notify)
                except Exception:
                    # An error must not delay the other notifications until the next statement.
                    logger.exception("error in a notification handler")
