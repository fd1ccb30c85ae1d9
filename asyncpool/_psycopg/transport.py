"""One connection's socket, watched for as long as the connection lives.

It advances psycopg's generators as the socket becomes ready, takes in what arrives when nobody has
asked, and sees the end of file when the server goes away. It knows the socket and libpq's record of
the connection, not the pool, and holds the connection itself weakly.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import sys
import threading
import weakref
from asyncio import get_running_loop
from contextlib import suppress
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, Protocol

import psycopg
from psycopg import waiting
from psycopg.pq import ConnStatus, TransactionStatus

from asyncpool._core.background import force_close
from asyncpool._psycopg.cancellation import insist, read_leftovers
from asyncpool._psycopg.socket_watcher import HUNG_UP, READY_R, SocketWatcher

logger = logging.getLogger("asyncpool")

WAIT_R, WAIT_W = int(waiting.WAIT_R), int(waiting.WAIT_W)
IDLE, ACTIVE = int(TransactionStatus.IDLE), int(TransactionStatus.ACTIVE)
COPY_OUT_END = getattr(getattr(psycopg.AsyncCopy, "_end_copy_out_gen", None), "__code__", object())
"""By which psycopg's reading to the end of a COPY is known; where it has none, nothing is."""
UNDER_WAY = {ACTIVE, int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
KNOWN = {IDLE, int(TransactionStatus.INTRANS), int(TransactionStatus.INERROR)}
BAD = int(ConnStatus.BAD)

BUSY_TIME = 0.005
"""Seconds for which work that never has to wait may keep the loop from its other tasks."""
INTERRUPTED, MAYBE_STANDBY = 1, 2
"""What may be amiss with a connection: a query was cancelled, or its server may be a standby."""
DRAIN_TIMEOUT = 5.0
"""Seconds for a cancelled query to come to its end; then its connection is closed."""


RETURNED = "the connection was returned to its pool, where statements of others run on it now"


def closed_error(result: str = "") -> psycopg.OperationalError:
    """psycopg's error for whatever is asked of a closed connection."""
    return psycopg.OperationalError(f"the connection is closed{result and ': '}{result}")


class Channel(Protocol):
    """What may have the connection in pipeline mode; see `_pipeline/channel.py`."""

    def readable(self) -> None:
        """There is something to read."""

    def writable(self) -> None:
        """There is room to write."""

    def lost(self) -> None:
        """There will be nothing more."""


class Transport(SocketWatcher):
    """The watch over one connection's socket, and the one operation that goes over it.

    Args:
        conn: an open connection, of which a weak reference is kept.

    Raises:
        OSError: there is no descriptor left for the duplicate.
        NotImplementedError: the event loop cannot watch descriptors.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(conn.pgconn.socket)
        self.pgconn = conn.pgconn
        self.keep_socket = False
        """Whether the socket is to outlive the closing of the connection, for the pool to end."""
        self.amiss = 0
        """`INTERRUPTED`, `MAYBE_STANDBY` or both, since the connection was last made clean."""
        self.has_leftovers = False
        """Whether a query may be left in its middle: one wait of several was cancelled."""
        self.was_open: bool | None = None
        """Whether a transaction was open when the connection ended; None: that is unknown."""
        self.ended_by: BaseException | None = None
        """Why the connection was given up."""
        self.channel: Channel | None = None
        """What shares the connection among many statements, in place of a generator."""
        self._conn = weakref.ref(conn)
        self._gen: Any = None
        self._want = WAIT_R
        self._future: asyncio.Future[Any] | None = None
        self._context: Context | None = None
        # At the interpreter's exit nobody is left to be told.
        weakref.finalize(conn, self.dispose).atexit = False

    def start(self, gen: Any) -> asyncio.Future[Any]:
        """Let a generator go on whenever the socket is ready for it; returns its outcome to be.

        Raises:
            StopIteration: it did not have to wait; the exception has its value.
            psycopg.ProgrammingError: the connection is not its caller's.
        """
        if self.channel is not None:
            gen.close()
            raise psycopg.ProgrammingError(RETURNED)
        want = next(gen)
        if get_running_loop() is not self.loop:
            self.move_to_running_loop()
        elif not self.reading:
            self.resume()
        self._gen = gen
        self._want = want
        self._context = copy_context()
        self._future = future = self.loop.create_future()
        if want & WAIT_W:
            self._advance(0)
        return future

    def abandon(self, gen: Any, conn: psycopg.AsyncConnection[Any]) -> None:
        """Nobody waits for a generator any longer, if it is under way still.

        What is left of a query is not its caller's to wait for.
        """
        active = self.pgconn.transaction_status == ACTIVE
        if self._gen is not gen:
            if (
                active
                and self._gen is None
                and self.draining is None
                and conn._pipeline is None
                and isinstance(sys.exception(), asyncio.CancelledError | GeneratorExit)
            ):
                # Cancelled together with its answer, which has begun a COPY or a stream().
                self.amiss |= INTERRUPTED
                self.has_leftovers = True
        elif active or conn._pipeline is not None:
            self._start_drain(conn)
        else:
            self._end()
            gen.close()

    def set_timer(
        self, interval: float | None, timeout: float | None
    ) -> asyncio.TimerHandle | None:
        """Let a generator's time be up after `timeout`, or else have it wake after `interval`."""
        if timeout is not None:
            return self.loop.call_later(timeout, self.time_out)
        if interval is not None:
            return self.loop.call_later(interval, self.wake)
        return None

    @property
    def is_unused(self) -> bool:
        """Whether nobody waits for anything of it."""
        return self._gen is None and self.draining is None

    def time_out(self) -> None:
        """The generator's time is up: have a last look, then end it with psycopg's own error."""
        if self._gen is not None and self._ready(WAIT_R):
            self._on_readable()
        future = self._future
        if future is not None and not future.done():
            self._end()
            future.set_exception(psycopg.errors._WaitTimeout("wait timeout expired"))

    def wake(self) -> None:
        """Tell the generator that nothing has come, as psycopg before 3.3 does for `notifies`."""
        if self._gen is not None:
            self._advance(0, tick=True)

    def raise_session_end_error(self) -> None:
        """Raise what the server has said, once; what is said to it now would have no answer."""
        error, self.session_end_error = self.session_end_error, None
        if error is not None:
            self.record_transaction()
            self.pgconn.finish()
            self.lose()
            raise error

    async def wait_drained(self) -> None:
        """Wait for the end of a cancelled query; not to be waited for by two at once."""
        while (task := self.draining) is not None:
            if task.done() or task.get_loop() is not get_running_loop():
                # It ended before it had begun, or its loop did.
                force_close(task)
                self.draining = None
                with suppress(RuntimeError):
                    self.close_connection()
                return
            await asyncio.wait({task})

    async def finish_leftovers(self, conn: Any) -> None:
        """Wait for the end of a cancelled query, and bring what was left in its middle to an end.

        That is a COPY, a stream() or a pipeline, and the end of a transaction block that was
        cancelled while it waited here. What cannot be ended, ends the connection.
        """
        await self.wait_drained()
        if conn._pipeline is not None:
            return  # its own end is to come
        left, self.has_leftovers = self.has_leftovers, False
        if left and self._is_in_query():
            gen = read_leftovers(self.pgconn)
            with suppress(StopIteration):
                self.start(gen)
                if self._gen is gen:
                    self._start_drain(conn)
                    await self.wait_drained()
            if self._is_in_query():
                self.close_connection()
        while conn._deferred:
            gen = conn._deferred.popleft()
            with suppress(StopIteration, psycopg.Error):
                future = self.start(gen)
                try:
                    await future
                except BaseException:
                    self.abandon(gen, conn)
                    raise

    def defer(self, gen: Any, conn: Any) -> None:
        """Let whoever uses the connection next first run this to its end."""
        conn._deferred.append(gen)
        self.has_leftovers = True

    def _is_in_query(self) -> bool:
        """Whether libpq awaits more of a query, or is in a pipeline."""
        return self.pgconn.transaction_status == ACTIVE or bool(self.pgconn.pipeline_status)

    def is_finished_copy_out(self, gen: Any) -> bool:
        """Whether a generator is to read a COPY to its end that is there already."""
        over = self.pgconn.transaction_status != ACTIVE
        return over and getattr(gen, "gi_code", None) is COPY_OUT_END

    def record_transaction(self) -> None:
        """Note whether a transaction is open: once the connection is closed nobody knows."""
        if (status := self.pgconn.transaction_status) in KNOWN:
            self.was_open = status != IDLE

    def interrupt(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """A query was cancelled between two of its waits: have the server end it."""
        if self.pgconn.transaction_status == ACTIVE and self.draining is None:
            self._start_drain(conn)

    def is_up(self) -> bool:
        """Whether the server is there, by all that has come from it by now."""
        seen = self.poll_events()
        if seen & HUNG_UP:
            return False
        if seen & select.POLLIN and self._gen is None:
            self.catch_up()
        return self.up and not self.session_ended

    def release(self) -> socket.socket:
        """Watch no longer; whoever still waits gets an error. Returns the socket, still open."""
        self.lose()
        ended = self.loop.is_closed()
        if self.draining is not None:
            force_close(self.draining) if ended else self.draining.cancel()
        future = self._future
        if self._gen is not None:
            self._end()
            if future is not None and not future.done() and not ended:
                future.set_exception(closed_error())
        if (channel := self.channel) is not None and not ended:
            channel.lost()
        return self.socket

    def dispose(self) -> None:
        """Leave no registration and no descriptor behind, from whichever thread."""
        with suppress(RuntimeError):
            if self.reading and threading.get_ident() != self._thread and self.loop.is_running():
                self.loop.call_soon_threadsafe(self.dispose)
                return
        self.notify = None
        try:
            self.release()
        finally:
            self.socket.close()

    # What follows runs in the loop's callbacks.

    def _on_readable(self) -> None:
        if self._gen is None:
            if self.channel is not None:
                self.channel.readable()
            else:
                self.catch_up()
        elif self._want & WAIT_R:
            self._advance(READY_R)
        else:
            self._stop_reading()

    def _on_writable(self) -> None:
        if self.channel is not None:
            self.channel.writable()
        else:
            self._advance(0)

    def _advance(self, ready: int, *, tick: bool = False) -> None:
        """Advance the generator with what is ready, and on as long as the socket takes more."""
        gen, future, want = self._gen, self._future, self._want
        assert self._context is not None, "bug: a generator with no context"
        assert future is not None, "bug: a generator with nobody to tell"
        send, since = self._context.run, 0.0
        try:
            if ready or tick:
                want = send(gen.send, ready)
                while ready & READY_R and want & WAIT_R and self.is_hung_up():
                    want = send(gen.send, READY_R)
            while want & WAIT_W:
                # A socket asked for writing is nearly always writable.
                now = monotonic()
                since = since or now
                if now - since > BUSY_TIME or not (ready := self._ready(want)):
                    self.write_on()
                    break
                want = send(gen.send, ready)
            else:
                if self._writing or not self.reading:
                    self._on_written()
            self._want = want
        except StopIteration as end:
            self._end()
            if not future.done():
                future.set_result(end.value)
        except BaseException as error:
            self._on_error(future, error)
            if not isinstance(error, Exception):
                raise
        finally:
            # The exception's traceback has this frame, which is not to have the exception.
            del future

    def _on_written(self) -> None:
        """All that was to be written is: what was not read meanwhile comes next."""
        self.write_no_more()
        self.resume()

    def _on_error(self, future: asyncio.Future[Any], error: BaseException) -> None:
        self._end()
        if not future.done():
            future.set_exception(error)
        self.report_error(error)
        if self.pgconn.status == BAD:
            self.lose()

    def catch_up(self) -> None:
        """Take in notices, notifications and the end of the connection, with no query under way."""
        conn, pgconn = self._conn(), self.pgconn
        backlog = getattr(conn, "_notifies_backlog", None)
        if (
            conn is None
            or pgconn.transaction_status in UNDER_WAY
            or (backlog is None and conn.lock.locked())
        ):
            # Rows that nobody asked for yet, or somebody is iterating over notifies(). Or the end
            # of an open transaction: of that its own next statement is to hear, and not libpq
            # before it, for on a connection that is closed psycopg leaves a block with no error.
            if self.is_hung_up():
                self._report_loss()
            self._stop_reading()
            return
        self.record_transaction()
        # The server's last words and the end of file are two reads.
        while True:
            with suppress(psycopg.Error):
                pgconn.consume_input()
                pgconn.is_busy()  # it passes notices to their handlers
            if pgconn.status == BAD:
                self.lose()
                return
            if not self.is_hung_up():
                break
        if conn._notify_handlers or backlog is not None:
            self.pass_on_notifications()

    def pass_on_notifications(self) -> None:
        """Hand the notifications that have come to their handlers."""
        pgconn = self.pgconn
        while (notify := pgconn.notifies()) is not None:
            if pgconn.notify_handler is not None:
                try:
                    pgconn.notify_handler(notify)
                except Exception:
                    # The others are not to wait for the next statement.
                    logger.exception("error in a handler of notifications")

    def _start_drain(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Have the query under way cancelled on the server and brought to its end."""
        self.settled = False
        self.amiss |= INTERRUPTED
        if self.loop.is_closed():
            self.close_connection()
            return
        future = None
        if self._gen is not None:
            self._future = future = self.loop.create_future()
        work = self._drain(conn, future)
        self.draining = self.loop.create_task(work, name="asyncpool: drain", context=Context())

    async def _drain(self, conn: Any, future: asyncio.Future[Any] | None) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await insist(conn, future)
                if future is not None and conn._pipeline is None and self._is_in_query():
                    await insist(conn, None)  # that was the end of one row
        except BaseException as error:
            # Also when the cancel request may be on its way still: it would hit the next query.
            self.ended_by = psycopg.OperationalError(
                f"a cancelled statement could not be ended within {DRAIN_TIMEOUT:g} s: {error!r}"
            )
            self.close_connection()
            if not isinstance(error, Exception):
                raise
        finally:
            if future is not None and future.done() and not future.cancelled():
                future.exception()  # it was expected
            self.draining = None
            self.has_leftovers = self._is_in_query() or bool(conn._deferred)
            self.settled = self.reading

    def close_connection(self) -> None:
        """Close the connection; whoever waits for it gets an error."""
        gen, future = self._gen, self._future
        if os.getpid() == self._pid:  # in a forked child the session is the parent's
            self.record_transaction()
            self.pgconn.finish()
        self.lose()
        if gen is not None:
            self._end()
            if future is not None:
                future.cancel()

    def _end(self) -> None:
        self._gen = self._future = self._context = None
        if self._writing:
            self.write_no_more()
