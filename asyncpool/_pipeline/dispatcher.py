"""The dispatcher: sends each one-shot statement on a shared channel or on one of its own.

A plain read that is known to be quick shares a channel. Every other statement gets a connection to
itself, for which it waits in the pool's wait queue. A statement that must be sent again goes
through the same loop once more, with its original place in the queue and its deadline.
"""

from __future__ import annotations

import math
from asyncio import CancelledError, current_task, get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, cast

from asyncpool._core.entry import Entry
from asyncpool._core.lease import Lease
from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._core.waiter import Waiter
from asyncpool._core.within import apply_limits
from asyncpool._pipeline.channel import MAX_REQUESTS, Channel
from asyncpool._pipeline.profiles import StatementProfiles
from asyncpool._pipeline.request import AGAIN, Request
from asyncpool._psycopg.direct_future import DirectFuture
from asyncpool._psycopg.sharing import is_shareable
from asyncpool._sql.kinds import Kind
from asyncpool.errors import PoolError, PoolTimeout

MAX_DELAY = 0.005
"""Seconds that a read may wait for those before it, if another connection is possible."""
WIDTH_FOR_LOAD = 4
"""Maximum number of channels opened for load; beyond it more are opened for slow reads only."""


class Dispatcher:
    """Runs the one-shot statements of one pool.

    Args:
        core: the pool.
        width: maximum number of shared connections; None: the pool's `max_size`.
        enabled: whether statements may run through the dispatcher at all.
        passes_on: whether a connection may go to the next request without a reset.
    """

    def __init__(
        self, core: Core[Any], width: int | None, *, enabled: bool, passes_on: bool
    ) -> None:
        self.core = core
        self._width = width
        self.enabled = enabled
        self._passes_on = passes_on
        self._passed_on: Channel | None = None
        """The open channel whose connection is being passed to the next request."""
        self.profiles = StatementProfiles()
        self.channels: list[Channel] = []
        """The shared channels."""
        self.spawn: Callable[[Coroutine[Any, Any, None], str], object] = core.runtime.tasks.spawn

    def renewed(self, core: Core[Any]) -> Dispatcher:
        """Return a dispatcher with the same options for the pool's next core."""
        return Dispatcher(core, self._width, enabled=self.enabled, passes_on=self._passes_on)

    @property
    def width(self) -> int:
        """Maximum number of shared connections."""
        return self.core.settings.max_size if self._width is None else self._width

    async def run(self, request: Request, timeout: float | None) -> bool:
        """Run a statement; its results, or its error, are in the request afterwards.

        Returns:
            True if it has run; False if it cannot run on a channel: then `request.entry` is leased
            to the caller, which has to run the statement on it.

        Raises:
            PoolTimeout: there was no connection, or no answer, in time.
            TooManyRequests, PoolClosed, PoolWrongLoop: as for any acquire.
            psycopg.Error: the values cannot be converted, or the connection was lost.
        """
        core, loop = self.core, get_running_loop()
        if not core.usable:
            core.require_usable()
        request.started_at = started_at = core.runtime.time()
        ledger = core.ledger
        wait = ledger.settings.timeout if timeout is None else duration("timeout", timeout)
        if timeout:
            request.limit = wait
        ticket, came = 0, None  # 0: a request served at once precedes all that will wait
        while True:
            request.future = future = DirectFuture(loop=loop)
            waiter = None
            channel = self._pick() if request.shares else None
            if channel is not None:
                self._send(channel, request)
            elif ledger.idle and (entry := core.take_now(Lease.new())) is not None:
                self._begin(entry, request)
            elif core.check is not None:
                left = (
                    timeout if came is None else max(started_at + wait - core.runtime.time(), 0.0)
                )
                self._begin(await core.acquire_entry(left, Lease.new()), request)
            else:
                ticket = ticket or (ledger.queue.ticket() if came is None else 0)
                now = started_at if came is None else core.runtime.time()
                waiter = QueuedRequest(self, request, ticket, now, started_at + wait)
                apply_limits(waiter, ledger.queue.line)
                await self._queue(waiter, wait, came)
            try:
                outcome = await future
            except BaseException as error:
                self._abandon(request, waiter, error)
                request.abandon()
                raise
            finally:
                del future  # its exception's traceback has this frame
                if request.timer is not None:
                    request.timer.cancel()
                if waiter is not None:
                    core.report_wait(waiter.waited)
                    del waiter.request, waiter.context  # the queue keeps the waiter for a while
            if outcome is not AGAIN:
                core.runtime.counters.requests_shared += request.shared
                return request.entry is None
            came = started_at

    async def _queue(self, waiter: QueuedRequest, wait: float, came: float | None) -> None:
        if not self.core.queue(waiter, wait, came):
            await self.core.refuse(waiter)

    def on_served(self, waiter: QueuedRequest) -> None:
        """Send a queued request that was served a connection or a place on a channel."""
        request = waiter.request
        if waiter.error is not None:
            request.end(waiter.error)
            return
        channel: Any = waiter.served
        has_place = type(channel) is Channel
        if has_place:
            waiter.served = None
        if (future := request.future) is None or future.done():
            return  # its caller is leaving and hands on a connection that it was served
        try:
            if has_place:
                self.core.end_wait(waiter, self.core.runtime.time())
                waiter.context.run(self._send, channel, request)
            elif self.core.is_usable(channel):
                entry = self.core.served(waiter, Lease.new())
                waiter.context.run(self._begin, entry, request)
            else:
                waiter.served = None
                self.core.queue(waiter, waiter.deadline - request.started_at, request.started_at)
        except BaseException as error:
            waiter.task = None  # already counted
            request.end(error)
            if not isinstance(error, Exception):
                raise

    def on_progress(self, channel: Channel) -> None:
        """Serve queued requests with the room on a channel, or release its connection."""
        if channel.closed:
            return
        core, ledger, entry = self.core, self.core.ledger, channel.entry
        queue = ledger.queue
        if channel.shared and queue.length and ledger.may_hand_over(entry, core.runtime.time()):
            while channel.room and _shares(queue.head_in_time()):
                queue.serve(cast("Entry[Any]", channel))
        if channel.requests or channel.is_cancelling:
            return
        if not channel.shared and queue.length and self._passes_on and channel.is_clean:
            self._passed_on = channel
            head = queue.head_in_time()
            if (
                isinstance(head, QueuedRequest)
                and head.request.is_awaited
                and core.hand_over(entry)
            ):
                return
            self._passed_on = None
        channel.close()
        if channel.shared:
            self.channels.remove(channel)
        if not core.release_channel(entry):
            with suppress(PoolError):  # the pool was closed meanwhile
                core.release(entry.conn)

    def on_slow_read(self) -> None:
        """Open connections for waiting reads that were expected to share and turn out slow."""
        core = self.core
        if core.ledger.queue.length:
            core.ledger.queue.recount()
            core.store.refill()

    def _begin(self, entry: Entry[Any], request: Request) -> None:
        """Send a request on a connection leased for it, or leave the connection to its caller."""
        channel, self._passed_on = self._passed_on, None
        if channel is None or channel.entry is not entry:
            if not is_shareable(entry.conn):
                request.entry = entry
                request.end()
                return
            channel = Channel(entry, self)
        shares = not request.profile.credit and request.shares
        channel.shared = shared = shares and len(self.channels) < self.width
        if shared:
            self.core.ledger.share(entry)
            self.channels.append(channel)
        if not self._send(channel, request):
            return
        if not shared:
            if request.profile.kind is Kind.READ:
                channel.watch()
        elif self.core.ledger.queue.length:
            self.on_progress(channel)

    def _send(self, channel: Channel, request: Request) -> bool:
        sent = False
        try:
            sent = channel.send(request)
        finally:
            if not sent:
                # Not at once: a queue of requests that cannot be sent would recurse once for each.
                get_running_loop().call_soon(self.on_progress, channel)
        if not sent:
            request.end(AGAIN)
        elif request.limit != math.inf:
            left = request.started_at + request.limit - self.core.runtime.time()
            request.timer = get_running_loop().call_later(left, self._expire, request)
        return sent

    def _abandon(
        self, request: Request, waiter: QueuedRequest | None, error: BaseException
    ) -> None:
        """Clean up after a request whose caller no longer waits."""
        core, counters = self.core, self.core.runtime.counters
        if waiter is not None and waiter.task is not None:
            core.abandon_wait(waiter, error)
            return
        if waiter is not None and isinstance(error, CancelledError):
            ledger = core.ledger
            core.note_cancelled(ledger.queue, waiter.line, request.started_at, len(ledger.leased))
        if request.shared:
            late = request.channel is not None and isinstance(error, PoolTimeout)
            counters.requests_failed += late
            counters.requests_timed_out += late
            counters.requests_shared += not late
        if request.channel is not None:
            request.channel.abandon(request)
        elif request.entry is not None:
            core.release(request.entry.conn)

    def _expire(self, request: Request) -> None:
        request.end(self.core.errors.unanswered(request.limit))

    def _pick(self) -> Channel | None:
        """Return the channel for a quick plain read; None: it needs another connection."""
        ledger, best, fewest = self.core.ledger, None, MAX_REQUESTS
        if ledger.queue.length:
            return None
        now = self.core.runtime.time()
        for channel in self.channels:
            count = len(channel.requests)
            if count < fewest and channel.room and ledger.may_hand_over(channel.entry, now):
                best, fewest = channel, count
        if best is None or best.is_slow:
            return None
        crowded = fewest * best.pace > MAX_DELAY
        return None if crowded and len(self.channels) < min(self.width, WIDTH_FOR_LOAD) else best


def _shares(waiter: object) -> bool:
    return isinstance(waiter, QueuedRequest) and waiter.request.shares


class QueuedRequest(Waiter[Entry[Any]]):
    """The waiter of a request, which is sent as soon as there is a connection for it.

    Only the results wake the caller's task; until then callbacks of the wait queue send the
    request, in a copy of the caller's context.
    """

    __slots__ = ("context", "dispatcher", "request")

    def __init__(
        self, dispatcher: Dispatcher, request: Request, ticket: int, now: float, deadline: float
    ) -> None:
        super().__init__(ticket, now, deadline)
        self.dispatcher = dispatcher
        self.request = request
        self.context = copy_context()
        self.task = current_task()

    @property
    def needs_own_connection(self) -> bool:  # type: ignore[override]
        """Whether the request is expected to need a connection to itself."""
        request = self.request
        return request.profile.credit > 0 or request.needs_own_connection

    def notify(self, n: int = 1) -> None:
        """Send the request, or fail it with the waiter's error."""
        self.dispatcher.on_served(self)
