"""One leased connection in libpq's pipeline mode, on which one-shot statements run.

Each statement is followed by a Sync, so that it is a transaction of its own and its error touches
no other. The server runs them one after the other, in the order in which they were sent. A channel
is either shared, and then carries plain reads alone, or it is one statement's. What goes where is
decided in `_pipeline/dispatcher.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg._preparing import Prepare
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus

from asyncpool._core.entry import Entry
from asyncpool._pipeline.profiles import OWN, SLOW, StatementProfiles
from asyncpool._pipeline.request import AGAIN, LARGE, Request
from asyncpool._pipeline.statement_cache import cache_of
from asyncpool._psycopg.cancellation import insist
from asyncpool._psycopg.transport import DRAIN_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from psycopg.pq.abc import PGresult

    from asyncpool._psycopg.transport import Transport

logger = logging.getLogger("asyncpool")

SYNC, FATAL = int(ExecStatus.PIPELINE_SYNC), int(ExecStatus.FATAL_ERROR)
ABORTED = int(ExecStatus.PIPELINE_ABORTED)
OK, BAD = int(ConnStatus.OK), int(ConnStatus.BAD)

DEPTH = 256
"""The most statements that are under way on one connection."""
BYTES = 1 << 20
"""The most bytes of statements under way."""
BATCH = 64
"""The most statements that go out together: a packet for each would cost more than they do."""
HELD_UP = 0.03
"""Seconds for which a read may hold up others behind it; then they are sent elsewhere."""
PAUSE = 0.01
"""Seconds between two looks at a channel."""

NO_SUCH_STATEMENT, CANCELLED = b"26000", b"57014"


class SupportsChannels(Protocol):
    """The one that opens channels and gets their connections back."""

    profiles: StatementProfiles
    spawn: Callable[[Coroutine[Any, Any, None], str], object]
    """Starts a task of the pool's."""

    def moved(self, channel: Channel) -> None:
        """Note that a statement has ended on a channel."""

    def slowed(self) -> None:
        """Note that a text was seen to be slow."""


class Channel:
    """A leased connection in pipeline mode, from its construction until `close`.

    Args:
        entry: the pool's record of an idle `asyncpool.Connection`, which is leased for this.
        owner: the dispatcher.
    """

    shared = False
    """Whether statements may be sent behind others: then all of them are plain reads."""

    since = 0.0
    """The instant at which the first of the requests began to run."""
    pace = 0.0
    """Seconds that a statement has taken recently, on average."""
    load = 0
    """Bytes of the statements under way."""
    detached = False
    """Whether it is left to the statement that runs, as that holds up others."""
    blocked = False
    """Whether nothing may be sent: a cancel request is on its way."""
    _held = 0
    """Statements that wait for the packet's departure, or 0 where each departs at once."""
    _single = False
    """Whether the statement that runs was sent with none before it."""
    _target: Request | None = None
    """The statement that is being cancelled."""
    _ended: asyncio.Future[None] | None = None
    """Done when that has come to its end."""
    closed = False
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, entry: Entry[Any], owner: SupportsChannels) -> None:
        self.entry = entry
        self.conn = conn = entry.conn
        self.pgconn = conn.pgconn
        self.requests: deque[Request] = deque()
        """Those under way, in the order in which they were sent; the first one is running."""
        self._cache = cache_of(entry)
        self._to_flush = conn._prepared._to_flush
        self._owner = owner
        self.transport: Transport = conn._transport
        self.pgconn.enter_pipeline_mode()
        self.transport.resume()
        self.transport.channel = self

    @property
    def room(self) -> bool:
        """Whether a plain read may be sent here now."""
        return (
            not (self.blocked or self.detached)
            and len(self.requests) < DEPTH
            and self.load < BYTES
            and self.pgconn.status == OK
        )

    @property
    def is_done(self) -> bool:
        """Whether nothing is under way here."""
        return not (self.requests or self.blocked)

    @property
    def is_clean(self) -> bool:
        """Whether the connection may be used again, as far as its socket knows."""
        transport = self.transport
        return (
            transport.settled and not transport.amiss and transport.up and self.pgconn.status == OK
        )

    @property
    def is_late(self) -> bool:
        """Whether the statement that runs has taken so long that nobody should wait behind it."""
        return self._overdue() > SLOW and bool(self.requests) and not self.transport.is_readable()

    def send(self, request: Request) -> bool:
        """Send a statement; return False where it is too large to be sent with others.

        If this raises, nothing of it was sent.

        Raises:
            psycopg.Error, TypeError, ...: its parameters cannot be converted.
        """
        if self._to_flush:
            for _ in self._cache.evict():
                self._sent(Request(OWN, b""))
        self._cache.convert(request)
        try:
            if request.size > LARGE and self.shared:
                return False
            self._cache.send(request)
        except BaseException:
            with suppress(psycopg.Error):  # the connection is lost with it
                self._sent(Request(OWN, b""))  # after what may have gone out
            raise
        finally:
            request.statement.pgq.params = None  # the statement is kept, its values are not
        self._sent(request)
        return True

    def abandon(self, request: Request) -> None:
        """End a request whose caller has left: on the server too, if it runs."""
        if not self.shared:
            self.entry.holder = None  # the task may wait for another one
            self._cancel_first()
        elif self.requests[0] is request:
            self._look_later()

    def close(self) -> None:
        """Leave the connection as it was; nothing may be under way."""
        assert not self.requests, "bug: a channel closed with requests under way"
        self.closed = True
        self._stop()
        if self.pgconn.status == OK:
            with suppress(psycopg.Error):  # it is busy, at the exit of the interpreter
                self.pgconn.exit_pipeline_mode()
            if self.conn._notify_handlers:
                self.transport.catch_up()

    # What follows runs in the loop's callbacks.

    def readable(self) -> None:
        """Take in what has come, and hand it out."""
        pgconn, done = self.pgconn, 0
        with suppress(psycopg.Error):
            while True:
                pgconn.consume_input()
                done += self._take_in()
                # The server's last words and the end of file are two reads.
                if pgconn.status == BAD or not self.transport.is_hung_up():
                    break
        if self.conn._notify_handlers:
            self.transport.pass_on_notifications()
        if done:
            if not self.shared:
                self._cache.refresh()  # a plain read changes no setting
            now = monotonic()
            spent = now - self.since
            self.pace += (spent / done - self.pace) / 8
            self.since, self._single = now, False
        if pgconn.status == BAD:
            if (said := self._farewell()) is not None:
                self.transport.report_error(said)
            self.transport.lose()
            self.lost()
        elif done:
            if self.requests and self.requests[0].abandoned:
                self._look_later()
            self._owner.moved(self)

    def writable(self) -> None:
        """Send on."""
        try:
            if self.pgconn.flush() == 0:
                self.transport.write_no_more()
        except psycopg.Error:
            self.readable()

    def lost(self) -> None:
        """Fail the statement that ran, for the connection is gone; those behind it go elsewhere."""
        self._stop()
        if self.requests:
            said = self._farewell()
            if said is None:
                why = self.pgconn.get_error_message() or "the connection was lost"
                said = psycopg.OperationalError(why)
            self._ended_first().end(said)
        self._send_elsewhere()

    def _send_elsewhere(self) -> None:
        """Have all that are under way sent again: as reads they may run twice."""
        while self.requests:
            self._ended_first().end(AGAIN)
        self._owner.moved(self)

    def _ended_first(self) -> Request:
        request = self.requests.popleft()
        request.channel = None
        self.load -= request.size
        if request is self._target and self._ended is not None:
            self._target = None
            self._ended.set_result(None)
        return request

    def _stop(self) -> None:
        self.transport.channel = None
        self._look_no_more()

    def _look_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_in(self) -> int:
        """Hand out the results that are complete; return how many."""
        pgconn, requests, done = self.pgconn, self.requests, 0
        while requests and not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == BAD:
                    break  # it would be None for ever
            elif result.status == SYNC:
                done += 1
                self._arrived(self._ended_first())
            else:
                requests[0].results.append(result)
        return done

    def _sent(self, request: Request) -> None:
        pgconn = self.pgconn
        request.results, request.exposed = [], False
        if not self.requests:
            self.since, self._single = monotonic(), True
        else:
            self._gather()
            if self._timer is None:
                self._look_later()
        pgconn.pipeline_sync()
        request.channel, request.shared = self, self.shared
        self.load += request.size
        self.requests.append(request)
        if pgconn.flush():
            self.transport.write_on()

    def _gather(self) -> None:
        """While the server is busy, let what is sent in one turn of the loop go out together."""
        if not self._held:
            self.transport.hold(True)
            self.transport.loop.call_soon(self._let_go)
        elif self._held % BATCH == 0:
            self.transport.hold(False)
            self.transport.hold(True)
        self._held += 1

    def _let_go(self) -> None:
        self._held = 0
        self.transport.hold(False)

    def _arrived(self, request: Request) -> None:
        if request.future is None:
            return
        self._cache.arrived(request)
        failure = request.results[-1] if request.results else None
        if failure is not None and failure.status == ABORTED:
            failure = request.results[0]  # it was its PREPARE that failed
        if failure is None or failure.status != FATAL:
            profile = request.profile
            if profile.credit and not request.slow:
                profile.was_quick()
            if self._single:
                self._owner.profiles.timed(monotonic() - self.since, rises=not profile.credit)
            if not request.future.done():
                request.future.set_result(None)
        elif request.wanted and self._may_run_again(request, failure):
            request.end(AGAIN)
        else:
            request.end()
            self.transport.report_error(self._error(failure))

    def _may_run_again(self, request: Request, error: PGresult) -> bool:
        """Whether a failed statement has certainly not run, or is a read that we cancelled."""
        state = error.error_field(DiagnosticField.SQLSTATE)
        if state == CANCELLED:
            return request.exposed
        if request.again or request.state is Prepare.NO:
            return False
        # The context is that of a function: there the server has run the statement.
        if error.error_field(DiagnosticField.CONTEXT) is not None:
            return False
        where = error.error_field(DiagnosticField.SOURCE_FUNCTION)
        if where == b"RevalidateCachedQuery":
            pass  # its plan is of before a change to the tables
        elif where != b"FetchPreparedStatement" or state != NO_SUCH_STATEMENT:
            return False
        self._cache.forget(request)
        request.prepare, request.again = False, True
        return True

    def _farewell(self) -> psycopg.Error | None:
        """Return the server's last words to the statement that runs, if there were any."""
        results = self.requests[0].results if self.requests else None
        return self._error(results[-1]) if results and _is_farewell(results[-1]) else None

    def _error(self, result: PGresult) -> psycopg.Error:
        return psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)

    def _overdue(self) -> float:
        """Return the seconds of work of the statement that runs, less those of the round trip."""
        return monotonic() - self.since - (self._owner.profiles.round_trip or 0.0)

    def watch(self) -> None:
        """Look at the statement that runs once it has taken so long that it is slow."""
        self._look_no_more()  # that was for the one before it
        self._look_later(SLOW + (self._owner.profiles.round_trip or 0.0))

    def _look_later(self, pause: float = PAUSE) -> None:
        if self._timer is None:
            self._timer = self.transport.loop.call_later(pause, self._look)

    def _look(self) -> None:
        """Note that the statement that runs is slow; see that nobody waits for it in vain."""
        self._timer = None
        if self.requests and self.transport.is_readable():
            self.readable()  # it was this event loop that was slow
        if not self.requests or self.transport.channel is not self:
            return
        first, overdue = self.requests[0], self._overdue()
        if overdue > SLOW and not first.slow and self._owner.profiles.round_trip is not None:
            first.slow = True
            first.profile.was_slow()
            self._owner.slowed()
        if not self.shared:
            if overdue <= SLOW:  # uvloop's timers may ring early
                self._look_later(SLOW)
            return
        if first.abandoned and overdue > SLOW:
            self._cancel_first()
        elif first.abandoned or (len(self.requests) > 1 and not self.detached):
            if overdue > HELD_UP and not first.abandoned:
                self._detach()
            else:
                self._look_later()

    def _detach(self) -> None:
        """Leave the connection to the statement that runs; those behind it are sent elsewhere.

        They are reads: it does not matter that the server comes to them here as well.
        """
        self.detached = True
        for place in range(1, len(self.requests)):
            request = self.requests[place]
            if request.wanted:
                self.requests[place] = request.left_behind()
                request.channel = None
                request.end(AGAIN)

    def _cancel_first(self) -> None:
        """Have the server end the statement that runs; nothing is sent meanwhile."""
        if not self.blocked:
            self.blocked = True
            self._owner.spawn(self._cancel(), "cancel")

    async def _cancel(self) -> None:
        self._target = next((each for each in self.requests if each.future is not None), None)
        self._ended = ended = self.transport.loop.create_future()
        if self._target is None:
            ended.set_result(None)
        for request in self.requests:
            request.exposed = self.shared
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await insist(self.conn, ended)
        except (psycopg.Error, OSError, TimeoutError) as error:
            logger.info("a statement could not be cancelled, its connection is closed: %r", error)
            self.pgconn.finish()
            self.transport.lose()
        finally:
            self.blocked, self._target = False, None
            if self.transport.loop.is_closed():
                pass  # nothing is to follow on it
            elif self.pgconn.status != OK:
                self._stop()
                self._send_elsewhere()
            else:
                self._owner.moved(self)
                if self.requests and not self.closed:
                    self._look_later()


def _is_farewell(result: PGresult) -> bool:
    severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
    return severity in (b"FATAL", b"PANIC")
