"""The way of each one-shot statement to a connection: a place among others, or one of its own.

A plain read that is known to be quick joins others on a channel. All else gets a connection to
itself, as a borrower would, and waits for it in the pool's one queue. A statement goes through the
same loop again where it has to be sent once more; its place in the queue and its deadline stay.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from asyncpool._channel import Channel
from asyncpool._core import Core
from asyncpool._entry import Entry
from asyncpool._profiles import Profiles
from asyncpool._psycopg import is_shareable
from asyncpool._request import Request
from asyncpool._settings import duration
from asyncpool._sql import Kind
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
    """

    def __init__(self, core: Core[Any], width: int | None, *, enabled: bool) -> None:
        self.core = core
        self._width = width
        self.enabled = enabled
        self.profiles = Profiles()
        self.channels: list[Channel] = []
        """Those that are shared."""
        self.spawn: Callable[[Coroutine[Any, Any, None], str], object] = core.stock.crew.spawn

    @property
    def width(self) -> int:
        """The most connections that may be shared."""
        return self.core.settings.max_size if self._width is None else self._width

    async def run(self, request: Request, timeout: float | None) -> Entry[Any] | None:
        """Run a statement; return None once its results are in it.

        Returns:
            The entry of a connection on which it cannot run this way, leased to the caller.

        Raises:
            PoolTimeout: there was no connection, or no answer, in time.
            TooManyRequests, PoolClosed, PoolWrongLoop: as for any borrower.
            psycopg.Error: its values cannot be converted. Its own failure is in its results.
        """
        core, loop = self.core, get_running_loop()
        if core.home is not loop or core.closed:
            core.admit()
        if timeout is not None:
            timeout = duration("timeout", timeout)
        began, came = core.stock.time(), None
        ticket = core.ledger.line.ticket()
        while True:
            channel = self._pick() if request.shares else None
            if channel is None:
                served = core.take_now() or await core.acquire_entry(timeout, ticket, request, came)
                if not isinstance(served, Entry):
                    channel = cast("Channel", served)
                    channel.promised -= 1
                elif (channel := self._open(served, request)) is None:
                    return served
            try:
                sent = channel.send(request)
            except BaseException:
                self.moved(channel)
                raise
            if not sent:
                self.moved(channel)
            elif not await self._answer(channel, request, began, timeout):
                return None
            came = began

    def moved(self, channel: Channel) -> None:
        """Offer the room on a channel to those who wait, or return its connection."""
        core = self.core
        line = core.ledger.line
        if channel.closed:
            return
        if channel.shared and line.length and self._may_go_on(channel, core.stock.time()):
            while channel.room and line.share(channel):
                channel.promised += 1
        if not channel.is_done:
            return
        entry = channel.entry
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
        if core.ledger.line.length:
            core.ledger.line.recount()
            core.stock.refill()

    async def _answer(
        self, channel: Channel, request: Request, began: float, timeout: float | None
    ) -> bool:
        """Wait for the end of what was sent; return whether it is to be sent again."""
        loop = get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        request.future = future
        timer = None
        if timeout and timeout != math.inf:
            left = began + timeout - self.core.stock.time()
            timer = loop.call_later(left, self._expire, request, timeout)
        if not channel.shared:
            if request.profile.kind is Kind.READ:
                channel.watch()
        elif self.core.ledger.line.length:
            self.moved(channel)
        again = late = False
        try:
            again = await future
        except BaseException as error:
            late = isinstance(error, PoolTimeout)
            channel.abandon(request)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if channel.shared and not again:
                counters = self.core.stock.counters
                counters.requests_failed += late
                counters.requests_timed_out += late
                counters.requests_shared += not late
        return again

    def _expire(self, request: Request, timeout: float) -> None:
        request.fail(self.core.refusals.unanswered(timeout))

    def _pick(self) -> Channel | None:
        """Return the channel for a quick plain read; None: it needs a connection, or waits."""
        core, best = self.core, None
        if core.ledger.line.length:
            return None
        now = core.stock.time()
        for channel in self.channels:
            fits = channel.room and self._may_go_on(channel, now)
            if fits and (best is None or len(channel.requests) < len(best.requests)):
                best = channel
        if best is None or best.is_late:
            return None
        crowded = len(best.requests) * best.pace > PATIENCE and len(self.channels) < ENOUGH
        if crowded and len(self.channels) < self.width:
            if core.ledger.idle:
                return None
            core.grow()
        return best

    def _may_go_on(self, channel: Channel, now: float) -> bool:
        """Whether more may be sent there: its connection is not to be closed on its return."""
        return channel.entry.expires_at > now and not self.core.ledger.oversize

    def _open(self, entry: Entry[Any], request: Request) -> Channel | None:
        """Begin a channel on a leased connection; None: statements cannot run on it this way."""
        if not is_shareable(entry.conn):
            return None
        shared = request.shares and len(self.channels) < self.width
        channel = Channel(entry, self, shared=shared)
        if shared:
            self.core.share(entry)
            self.channels.append(channel)
        return channel
