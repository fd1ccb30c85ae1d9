"""The way of each one-shot statement to a connection: a place among others, or one of its own.

A plain read that is known to be quick joins others on a channel. All else gets a connection to
itself, as a borrower would, and waits for it in the pool's one queue. A statement goes through the
same loop again where it has to be sent once more; its place in the queue and its deadline stay.
"""

from __future__ import annotations

import math
from asyncio import current_task, get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, cast

from asyncpool._core.entry import Entry
from asyncpool._core.pool import Core
from asyncpool._core.settings import duration
from asyncpool._core.wait_queue import Waiter
from asyncpool._pipeline.channel import Channel
from asyncpool._pipeline.profiles import StatementProfiles
from asyncpool._pipeline.request import AGAIN, Request
from asyncpool._psycopg.driver import is_shareable
from asyncpool._sql.kinds import Kind
from asyncpool.errors import PoolError, PoolTimeout

PATIENCE = 0.005
"""Seconds for which a read may have to wait for those before it, where there is another way."""
ENOUGH = 4
"""Shared connections beyond which more are taken for slow reads only, not for many."""


class Dispatcher:
    """The shared connections of one pool, and the way to them and to others.

    Args:
        core: the pool.
        width: the most connections that are shared; None: as many as the pool may have.
        enabled: whether statements may run through this at all.
        passes_on: whether a connection need not be reset between two requests.
    """

    def __init__(
        self, core: Core[Any], width: int | None, *, enabled: bool, passes_on: bool
    ) -> None:
        self.core = core
        self._width = width
        self.enabled = enabled
        self._passes_on = passes_on
        self._passed_on: Channel | None = None
        """The open channel of a connection that is being passed on to the next request."""
        self.profiles = StatementProfiles()
        self.channels: list[Channel] = []
        """Those that are shared."""
        self.spawn: Callable[[Coroutine[Any, Any, None], str], object] = core.store.tasks.spawn

    @property
    def width(self) -> int:
        """The most connections that may be shared."""
        return self.core.settings.max_size if self._width is None else self._width

    async def run(self, request: Request, timeout: float | None) -> bool:
        """Run a statement; return True once its results are in it.

        Returns:
            False where it cannot run this way: then it has the entry of a connection, leased to the
            caller, who is to run it there.

        Raises:
            PoolTimeout: there was no connection, or no answer, in time.
            TooManyRequests, PoolClosed, PoolWrongLoop: as for any borrower.
            psycopg.Error: its values cannot be converted. Its own failure is in its results.
        """
        core, loop = self.core, get_running_loop()
        if core.home is not loop or core.closed:
            core.admit()
        request.began = began = core.store.time()
        wait = core.settings.timeout if timeout is None else duration("timeout", timeout)
        if timeout:
            request.limit = wait
        ticket, came = 0, None  # who is served at once has come before all who will wait
        while True:
            request.future = future = loop.create_future()
            waiter = None
            channel = self._pick() if request.shares else None
            if channel is not None:
                self._send(channel, request)
            elif (entry := core.take_now()) is not None:
                self._begin(entry, request)
            elif core.checks:
                left = timeout if came is None else max(began + wait - core.store.time(), 0.0)
                self._begin(await core.acquire_entry(left), request)
            else:
                ticket = ticket or (core.ledger.queue.ticket() if came is None else 0)
                waiter = QueuedRequest(self, request, ticket, core.store.time(), began + wait)
                core.queue(waiter, wait, came)
            try:
                outcome = await future
            except BaseException as error:
                self._left(request, waiter, error)
                request.leave()
                raise
            finally:
                del future  # its exception's traceback has this frame
                if request.timer is not None:
                    request.timer.cancel()
                if waiter is not None:
                    core.report_wait(waiter.waited)
                    del waiter.request, waiter.context  # the queue keeps it for a while
            if outcome is not AGAIN:
                core.store.counters.requests_shared += request.shared
                return request.entry is None
            came = began

    def served(self, waiter: QueuedRequest) -> None:
        """Send a request that has waited, for which there is a connection or a place on one."""
        request = waiter.request
        if waiter.error is not None:
            request.end(waiter.error)
            return
        channel: Any = waiter.served
        placed = type(channel) is Channel
        if placed:
            waiter.served = None
        if not request.wanted:
            return  # it is about to leave, and passes on a connection that it was served
        try:
            if placed:
                waiter.task = None
                waiter.waited = self.core.store.time() - waiter.joined_at
                self.core.store.counters.note_wait(waiter.waited)
                waiter.context.run(self._send, channel, request)
            elif self.core.is_fit(channel):
                waiter.context.run(self._begin, self.core.served(waiter), request)
            else:
                waiter.served = None
                self.core.queue(waiter, waiter.deadline - request.began, request.began)
        except BaseException as error:
            waiter.task = None  # it is counted
            request.end(error)
            if not isinstance(error, Exception):
                raise

    def moved(self, channel: Channel) -> None:
        """Offer the room on a channel to those who wait, or return its connection."""
        core = self.core
        queue = core.ledger.queue
        if channel.closed:
            return
        if channel.shared and queue.length and self._may_go_on(channel, core.store.time()):
            while (
                channel.room
                and isinstance(head := queue.head(), QueuedRequest)
                and head.request.shares
            ):
                queue.serve(cast("Entry[Any]", channel))
        if not channel.is_done:
            return
        entry = channel.entry
        if not channel.shared and self._passes_on and channel.is_clean:
            self._passed_on = channel
            head = queue.head()
            if isinstance(head, QueuedRequest) and head.request.wanted and core.pass_on(entry):
                return
            self._passed_on = None
        channel.close()
        with suppress(PoolError):  # the pool was closed meanwhile
            if channel.shared:
                self.channels.remove(channel)
                core.release_shared(entry)
            else:
                core.release(entry.conn)

    def slowed(self) -> None:
        """Open connections for those who wait and were taken to need one together."""
        core = self.core
        if core.ledger.queue.length:
            core.ledger.queue.recount()
            core.store.refill()

    def _begin(self, entry: Entry[Any], request: Request) -> None:
        """Send a request on a connection that was leased for it, or give that to its caller."""
        channel, self._passed_on = self._passed_on, None
        if channel is not None and channel.entry is entry:
            entry.kept_in = entry.uses
        else:
            if not is_shareable(entry.conn):
                request.entry = entry
                request.end()
                return
            channel = Channel(entry, self)
        channel.shared = shared = request.shares and len(self.channels) < self.width
        if shared:
            entry.holder, entry.shared = None, True
            self.core.ledger.shares += 1
            self.channels.append(channel)
        if not self._send(channel, request):
            return
        if not shared:
            if request.profile.kind is Kind.READ:
                channel.watch()
        elif self.core.ledger.queue.length:
            self.moved(channel)

    def _send(self, channel: Channel, request: Request) -> bool:
        sent = False
        try:
            sent = channel.send(request)
        finally:
            if not sent:
                self._close_later(channel)
        if not sent:
            request.end(AGAIN)
        elif request.limit != math.inf:
            left = request.began + request.limit - self.core.store.time()
            request.timer = get_running_loop().call_later(left, self._expire, request)
        return sent

    def _close_later(self, channel: Channel) -> None:
        # Not at once: for a queue of requests that cannot be sent that would be as many calls deep.
        get_running_loop().call_soon(self.moved, channel)

    def _left(self, request: Request, waiter: QueuedRequest | None, error: BaseException) -> None:
        """See to a request whose caller does not wait any more."""
        core, counters = self.core, self.core.store.counters
        if waiter is not None and waiter.task is not None:
            core.gave_up(waiter, error)
            return
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
        """Return the channel for a quick plain read; None: it needs a connection, or waits."""
        core, best = self.core, None
        if core.ledger.queue.length:
            return None
        now = core.store.time()
        for channel in self.channels:
            fits = channel.room and self._may_go_on(channel, now)
            if fits and (best is None or len(channel.requests) < len(best.requests)):
                best = channel
        if best is None or best.is_late:
            return None
        crowded = len(best.requests) * best.pace > PATIENCE
        return None if crowded and len(self.channels) < min(self.width, ENOUGH) else best

    def _may_go_on(self, channel: Channel, now: float) -> bool:
        """Whether more may be sent there: its connection is not to be closed on its return."""
        return channel.entry.expires_at > now and not self.core.ledger.oversize


class QueuedRequest(Waiter[Entry[Any]]):
    """The wait of a request, which is sent as soon as there is a connection for it.

    Its caller's task is woken by the results alone; until then the queue's callbacks act for it, in
    the context of its caller.
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
    def alone(self) -> bool:  # type: ignore[override]
        """Whether it is taken to need a connection to itself."""
        return self.request.needs

    def notify(self, n: int = 1) -> None:
        """Send the request, or fail it."""
        self.dispatcher.served(self)
