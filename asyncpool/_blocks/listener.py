"""Keeps one of a pool's connections listening, and reads what it is notified of.

It runs in a background task, so no cancellation of a consumer interrupts it. A connection that is
lost is replaced as soon as the pool has another one, and the gap is reported. One that has to be
replaced but works is kept until the next one listens too, so that nothing is missed or doubled.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic

import anyio
import psycopg
from psycopg import Notify

from asyncpool._blocks.borrowing import Borrowing
from asyncpool._blocks.buffer import Buffer
from asyncpool._core.redact import describe
from asyncpool._core.stacks import Trace
from asyncpool._psycopg.driver import ACT
from asyncpool._psycopg.listening import Subscription, is_end_of_session
from asyncpool._psycopg.pooler import is_behind_pooler, is_marked
from asyncpool.errors import PoolClosed, PoolError, PoolTimeout

LOST_PAUSE = 0.1
"""Seconds until the next connection after one that was lost before it listened."""
RETRY_PAUSE = 1.0
"""Seconds between two requests for a connection of which the first failed at once."""
MOVE_TIMEOUT = 1.0
"""Seconds to wait for a second connection, while nothing is read from the first."""
CHECK_TIMEOUT = 5.0
"""Seconds to find out whether a pooler shares the session that listens with other clients."""
CHECK_ROUNDS = 3
"""Attempts to find that out, as it shows only while other clients use the pooler."""
LONGEST_ROUND = 30.0
"""Maximum seconds between two checks whether the connection is due to be replaced."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A time in which no connection listened: notifications sent in it are missed.

    It stands between the notifications of before and after, and is yielded when the pool listens
    again.
    """

    lasted: float
    """Seconds from when the pool noticed the loss until it listened again."""
    reason: str
    """The error for which the last connection was given up, without secrets."""


class Listener(Generic[ACT]):
    """Reads the notifications of some channels into a buffer.

    Args:
        pool: lends the connections.
        channels: the names, checked.
        reports_gaps: whether the buffer gets a `Gap`; if not, a warning is logged.
    """

    def __init__(
        self, pool: Borrowing[ACT], channels: tuple[str, ...], *, reports_gaps: bool
    ) -> None:
        self.buffer: Buffer[Notify | Gap] = Buffer()
        self.trace: Trace = ()
        """The call site of the block, for reports."""
        self._pool = pool
        self._channels = channels
        self._reports_gaps = reports_gaps
        self._subscription: Subscription[ACT] | None = None
        """The connection that listens; None while there is none."""
        self._skip_to: str | None = None
        """The channel of the first notification of this connection that is not doubled."""

    @property
    def is_listening(self) -> bool:
        """Whether there is a connection that listens, as far as known."""
        return self._subscription is not None and not self.buffer.ended

    async def run(self, timeout: float | None, started: asyncio.Future[None]) -> None:
        """Listen until cancelled, or until the pool is closed.

        Args:
            timeout: seconds to wait for the first connection.
            started: gets the outcome of the first subscription.
        """
        try:
            self._subscription = await self._begin(timeout)
            await self._refuse_shared_session(self._subscription)
            if not started.done():
                started.set_result(None)
            while True:
                try:
                    await self._read(self._subscription)
                    self._subscription = await self._move(self._subscription)
                except (psycopg.Error, TimeoutError) as error:
                    self._subscription = await self._resume(describe(error))
        except Exception as error:  # noqa: BLE001 - it is raised in the consumer
            self._end(started, error)
        finally:
            # To reset a connection is to read all that the server still has for it.
            self._give_back(self._subscription, discard=self.buffer.is_full)
            self._end(started, PoolError("the pool's task was cancelled, but not by its block"))
            del started  # its error's traceback has this frame

    def _end(self, started: asyncio.Future[None], error: Exception) -> None:
        """End with an error, unless the block has ended."""
        if not started.done():
            started.set_exception(error)
            self.buffer.end()
        self.buffer.end(None if isinstance(error, PoolClosed) else error)

    async def _begin(self, timeout: float | None) -> Subscription[ACT]:
        """Listen for the first time; take another connection if the first turns out to be lost.

        Args:
            timeout: seconds in which to find a connection that works.
        """
        core = self._pool._core
        left = core.settings.timeout if timeout is None else timeout
        deadline = core.runtime.time() + left
        while True:
            try:
                return await self._subscribe(left)
            except PoolError:
                raise
            except psycopg.OperationalError as error:
                left = deadline - core.runtime.time() - LOST_PAUSE
                if left <= 0 or not is_end_of_session(error):
                    raise
            await asyncio.sleep(LOST_PAUSE)

    async def _subscribe(
        self, timeout: float | None = None, *, keep: bool = True
    ) -> Subscription[ACT]:
        """Borrow a connection and listen on it.

        Args:
            timeout: seconds to wait for it.
            keep: whether the pool keeps a connection on which the server refuses LISTEN.

        Raises:
            PoolTimeout: also if the server does not answer.
        """
        core = self._pool._core
        conn = await self._pool._borrow(timeout)
        lease = core.ledger.make_standing(core.ledger.leased[conn])
        if self._pool._traces:
            lease.trace = self.trace
        subscription = Subscription(conn, self._channels)
        limit = core.settings.clean_timeout
        try:
            with anyio.fail_after(limit):
                await subscription.start()
        except TimeoutError:
            self._give_back(subscription, discard=True)
            msg = f"the server has not answered LISTEN within {limit:g} s"
            raise PoolTimeout(msg, timeout=limit) from None
        except BaseException as error:
            self._give_back(subscription, discard=not keep and isinstance(error, psycopg.Error))
            raise
        return subscription

    async def _refuse_shared_session(self, subscription: Subscription[ACT]) -> None:
        """Raise if a pooler gives the session that listens to other clients; else do nothing.

        Only two clients show that for sure. Without a second connection, or without an answer, the
        session is taken for the connection's own.

        Raises:
            psycopg.NotSupportedError: another connection got the session that listens, or this one
                has got another.
        """
        conn, mark = subscription.conn, f"asyncpool_{os.urandom(16).hex()}"
        is_shared = False
        with suppress(psycopg.Error, TimeoutError), anyio.fail_after(CHECK_TIMEOUT):
            if not await is_behind_pooler(conn):
                return
            await subscription.add(mark)
            is_shared = await self._has_lost_session(conn, mark)
        if is_shared:
            msg = (
                "listen() needs a session of its own, but a pooler in between gives its session to"
                " other clients, as PgBouncer does in transaction mode: notifications would be"
                " lost; connect this pool to the server directly, or by session pooling"
            )
            raise psycopg.NotSupportedError(msg)

    async def _has_lost_session(self, conn: ACT, mark: str) -> bool:
        """Whether another connection has the session with a mark, or this one has it no longer."""
        if self._holds_all():
            return not await is_marked(conn, mark)
        try:
            other = await self._pool._borrow(MOVE_TIMEOUT)
        except PoolError:
            return not await is_marked(conn, mark)
        try:
            # The other one first, and twice as often: a pooler may give the next client the session
            # used last, or let its sessions take turns.
            for asked in (other, conn, other) * CHECK_ROUNDS:
                if await is_marked(asked, mark) is (asked is other):
                    return True
            return False
        finally:
            with suppress(PoolError):  # close() has taken it
                self._pool._return(other)

    def _holds_all(self) -> bool:
        """Whether listeners hold all connections that the pool may have."""
        ledger = self._pool._core.ledger
        standing = sum(each.lease.is_standing for each in ledger.leased.values())
        return standing >= ledger.settings.max_size

    async def _read(self, subscription: Subscription[ACT]) -> None:
        """Read until the connection is to be replaced.

        After `ping_interval` without a notification it is pinged: a network that has gone silent
        gives no error to those who only read.

        Raises:
            psycopg.Error, TimeoutError: the connection is lost.
        """
        conn, silence = subscription.conn, 0.0
        while True:
            interval = self._pool._core.settings.ping_interval
            pause = min(interval, LONGEST_ROUND)
            silence += pause
            async with aclosing(conn.notifies(timeout=pause)) as notifications:
                async for each in notifications:
                    silence = 0.0
                    self._put(each)
                    await self.buffer.wait_for_room()
            if silence >= interval:
                await self._ping(conn)
                silence = 0.0
            if self._is_due(conn):
                return

    async def _ping(self, conn: ACT) -> None:
        # anyio cancels again and again: psycopg 3.2 waits for a query to end that it cancelled.
        limit = self._pool._core.settings.ping_timeout
        try:
            with anyio.fail_after(limit):
                await self._pool._driver.ping(conn)
        except TimeoutError:
            msg = f"the ping was not answered within {limit:g} s"
            raise TimeoutError(msg) from None

    def _put(self, notification: Notify) -> None:
        if self._skip_to is not None:
            if notification.channel == self._skip_to:
                self._skip_to = None
        elif notification.channel in self._channels:
            self.buffer.put(notification)

    def _is_due(self, conn: ACT) -> bool:
        """Whether the connection is to be replaced: it is past its life, or was drained."""
        core = self._pool._core
        entry = core.ledger.leased.get(conn)
        if entry is None or entry.is_retired:
            return True
        return entry.expires_at <= core.runtime.time() and not core.ledger.keep_expired

    async def _move(self, old: Subscription[ACT]) -> Subscription[ACT]:
        """Listen on another connection, and only then return this one.

        All sessions get the notifications in the same order. So one that is sent on a channel of
        its own marks the same place in both connections: what comes before it is read from the old
        one, the rest from the new one.

        Returns:
            The new one; or the old one, if there is no other at the moment.

        Raises:
            psycopg.Error, TimeoutError: there will be no other, or one of the two is lost.
        """
        ledger, marker = self._pool._core.ledger, f"asyncpool_{os.urandom(16).hex()}"
        if self._holds_all():
            msg = "its connection was to be replaced, and listeners hold all of the pool's"
            raise PoolTimeout(msg)
        try:
            new = await self._subscribe(MOVE_TIMEOUT)
        except PoolClosed:
            raise
        except PoolError:
            return old
        try:
            with anyio.fail_after(ledger.settings.clean_timeout):
                await old.add(marker)
                await new.add(marker)
                await new.notify(marker)
                async with aclosing(old.conn.notifies()) as notifications:
                    async for each in notifications:
                        if each.channel == marker:
                            break
                        self._put(each)
        except BaseException:
            self._give_back(new)
            raise
        self._skip_to = marker
        self._give_back(old)
        self._pool._core.runtime.record("listener moved", "listening on another connection")
        return new

    async def _resume(self, reason: str) -> Subscription[ACT]:
        """Listen again after a loss, however long that takes; then report the gap."""
        runtime = self._pool._core.runtime
        lost_at = runtime.time()
        self._give_back(self._subscription, discard=True)
        self._subscription = self._skip_to = None
        runtime.record("listener lost", f"no longer listening: {reason}")
        while True:
            try:
                # A standby refuses LISTEN: the next connection may be one to the primary.
                subscription = await self._subscribe(keep=False)
                break
            except PoolClosed:
                raise
            except psycopg.Error:
                await asyncio.sleep(RETRY_PAUSE)
        lasted = runtime.time() - lost_at
        if self._reports_gaps:
            self.buffer.put(Gap(lasted, reason))
        runtime.record(
            "listening again",
            f"listening on {', '.join(self._channels)} again after {lasted:.1f} s:"
            " notifications sent meanwhile are missed",
            logging.INFO if self._reports_gaps else logging.WARNING,
            duration=lasted,
        )
        return subscription

    def _give_back(self, subscription: Subscription[ACT] | None, *, discard: bool = False) -> None:
        """Return a connection; a background task undoes the subscription."""
        if subscription is not None:
            undo = partial(self._pool._driver.stop_listening, subscription)
            with suppress(PoolError):  # close() or the end of the event loop has taken it
                self._pool._return(subscription.conn, undo, discard=discard)
