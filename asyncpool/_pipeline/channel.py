"""A channel: one leased connection in libpq's pipeline mode, on which one-shot statements run.

A channel is either shared and carries only plain reads, or it belongs to one statement. The
dispatcher decides which channel a statement uses. The channel finds a read that delays others, and
cancels what nobody waits for.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg.pq import ConnStatus

from asyncpool._pipeline.exchange import BAD, Exchange
from asyncpool._pipeline.profiles import SLOW, StatementProfiles
from asyncpool._pipeline.request import AGAIN
from asyncpool._psycopg.cancellation import cancel_until_ended
from asyncpool._psycopg.direct_future import step_all
from asyncpool._psycopg.transport import DRAIN_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncpool._core.entry import Entry
    from asyncpool._pipeline.request import Request

logger = logging.getLogger("asyncpool")

OK = int(ConnStatus.OK)

MAX_REQUESTS = 256
"""Maximum number of requests in flight on one connection."""
MAX_BYTES = 1 << 20
"""Maximum bytes of requests in flight."""
MAX_HOLD_UP = 0.03
"""Seconds for which a read may delay the reads behind it; then these are sent elsewhere."""
CHECK_INTERVAL = 0.01
"""Seconds between two checks of a channel."""


class SupportsChannels(Protocol):
    """The owner of channels, which opens them and releases their connections."""

    profiles: StatementProfiles
    spawn: Callable[[Coroutine[Any, Any, None], str], object]
    """Starts a background task of the pool."""

    def on_progress(self, channel: Channel) -> None:
        """Handle that requests or a cancellation have ended on a channel."""

    def on_slow_read(self) -> None:
        """Handle the discovery that a statement is slow."""


class Channel(Exchange):
    """A leased connection in pipeline mode, from its construction until `close`.

    Args:
        entry: the entry of an idle `asyncpool.Connection`, leased for this channel.
        owner: the dispatcher.
    """

    pace = 0.0
    """Recent average of the seconds that a statement took."""
    detached = False
    """Whether the running statement keeps the channel to itself, as it delayed others."""
    is_cancelling = False
    """Whether a cancel request is under way; nothing is sent meanwhile."""
    closed = False
    """Whether `close` was called."""

    def __init__(self, entry: Entry[Any], owner: SupportsChannels) -> None:
        super().__init__(entry, owner.profiles)
        self._owner = owner
        self.transport.resume()
        self.transport.channel = self

    @property
    def room(self) -> bool:
        """Whether a plain read may be sent here now."""
        return (
            not (self.is_cancelling or self.detached)
            and len(self.requests) < MAX_REQUESTS
            and self.load < MAX_BYTES
            and self.pgconn.status == OK
        )

    @property
    def is_clean(self) -> bool:
        """Whether the connection can be used again, as far as its transport knows."""
        return self.transport.is_clean and self.pgconn.status == OK

    @property
    def is_slow(self) -> bool:
        """Whether the running statement has taken so long that nothing should be sent behind it."""
        return self._work_time() > SLOW and bool(self.requests) and not self.transport.is_readable()

    def abandon(self, request: Request) -> None:
        """Handle that a caller no longer waits; cancel the request on the server if it runs."""
        if not self.shared:
            self.entry.lease.holder = None  # the task may wait for another connection now
            self._cancel_first()
        elif self.requests[0] is request:
            self._check_later()

    def close(self) -> None:
        """Restore the connection for a borrower; no request may be in flight."""
        assert not self.requests, "bug: a channel closed with requests in flight"
        self.closed = True
        self._stop()
        if self.pgconn.status == OK:
            with suppress(psycopg.Error):  # the connection is busy at the interpreter's exit
                self.pgconn.exit_pipeline_mode()
            if self.conn._notify_handlers:
                self.transport.read_unsolicited()

    def watch(self) -> None:
        """Check the running statement at the time from which on it counts as slow."""
        self._cancel_check()  # a check of the statement before this one
        self._check_later(SLOW + (self._profiles.round_trip or 0.0))

    # Callbacks of the event loop.

    def readable(self) -> None:
        """Read the results that have arrived and complete their requests."""
        try:
            self._read()
        finally:
            # The tasks go on when the channel has done its own work.
            if len(self._completed) == 1:
                self._completed.pop().step()
            elif self._completed:
                completed, self._completed = self._completed, []
                step_all(completed)

    def _read(self) -> None:
        pgconn, done = self.pgconn, 0
        try:
            while True:
                pgconn.consume_input()
                done += self._read_results()
                # The server's last message and the end of file are two reads. As on a borrowed
                # connection, a read that has completed all is the last one.
                if not self.requests or pgconn.status == BAD or not self.transport.is_hung_up():
                    break
        except psycopg.Error:
            pass  # the connection is lost
        if self.conn._notify_handlers:
            self.transport.pass_on_notifications()
        if done and self.shared:
            now = monotonic()
            spent = now - self.since
            self.pace += (spent / done - self.pace) / 8
            self.since, self._sent_alone = now, False
        if pgconn.status == BAD:
            if (fatal := self._fatal_error()) is not None:
                self.transport.report_error(fatal)
            self.transport.mark_lost()
            self.lost()
        elif done:
            if self.requests and self.requests[0].is_abandoned:
                self._check_later()
            self._owner.on_progress(self)

    def writable(self) -> None:
        """Flush libpq's send buffer."""
        try:
            if self.pgconn.flush() == 0:
                self.transport.unwatch_writable()
        except psycopg.Error:
            self.readable()

    def lost(self) -> None:
        """Fail the running statement of a lost connection; those behind it are sent elsewhere."""
        self._stop()
        if self.requests:
            error = self._fatal_error()
            if error is None:
                why = self.pgconn.get_error_message() or "the connection was lost"
                error = psycopg.OperationalError(why)
            self._pop_first().end(error)
        self._resend_all()

    def _resend_all(self) -> None:
        """Have all requests in flight sent again on other channels: as reads they may run twice."""
        while self.requests:
            self._pop_first().end(AGAIN)
        self._owner.on_progress(self)

    def _stop(self) -> None:
        self.transport.channel = None
        self._cancel_check()

    def _work_time(self) -> float:
        """Return the seconds that the running statement has taken beyond the round trip."""
        return monotonic() - self.since - (self._profiles.round_trip or 0.0)

    def _check_later(self, pause: float = CHECK_INTERVAL) -> None:
        if self._timer is None:
            self._timer = self.transport.loop.call_later(pause, self._check)

    def _cancel_check(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        """Record a slow running statement; on a shared channel cancel or detach it if due."""
        self._timer = None
        if self.requests and self.transport.is_readable():
            self.readable()  # the results are here: the event loop was slow, not the server
        if not self.requests or self.transport.channel is not self:
            return
        first, work_time = self.requests[0], self._work_time()
        if work_time > SLOW and not first.slow and self._profiles.round_trip is not None:
            first.slow = True
            first.profile.record_slow()
            self._owner.on_slow_read()
        if not self.shared:
            if work_time <= SLOW:  # uvloop's timers may fire early
                self._check_later(SLOW)
            return
        if first.is_abandoned and work_time > SLOW:
            self._cancel_first()
        elif first.is_abandoned or (len(self.requests) > 1 and not self.detached):
            if work_time > MAX_HOLD_UP and not first.is_abandoned:
                self._detach()
            else:
                self._check_later()

    def _detach(self) -> None:
        """Leave the channel to the running statement; send those behind it elsewhere.

        They are reads, so that the server may run them here as well.
        """
        self.detached = True
        for place in range(1, len(self.requests)):
            request = self.requests[place]
            if request.is_awaited:
                self.requests[place] = request.discarded_copy()
                request.channel = None
                request.end(AGAIN)

    def _cancel_first(self) -> None:
        """Cancel the running statement on the server; nothing is sent meanwhile."""
        if not self.is_cancelling:
            self.is_cancelling = True
            target = next(each for each in self.requests if each.future is not None)
            target.ended = self.transport.loop.create_future()
            for request in self.requests:
                request.may_be_cancelled = self.shared
            self._owner.spawn(self._cancel(target.ended), "cancel")

    async def _cancel(self, ended: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT):
                await cancel_until_ended(self.conn, ended)
        except (psycopg.Error, OSError, TimeoutError) as error:
            logger.info("a statement could not be cancelled, its connection is closed: %r", error)
            self.pgconn.finish()
            self.transport.mark_lost()
        finally:
            self.is_cancelling = False
            if self.transport.loop.is_closed():
                pass  # no callback can run on it
            elif self.pgconn.status != OK:
                self._stop()
                self._resend_all()
            else:
                self._owner.on_progress(self)
                if self.requests and not self.closed:
                    self._check_later()
