"""The pool for any driver: it leases connections to requests and takes them back.

Leasing an idle connection and taking back a clean one are plain calls. Operations that wait for the
queue, a check or the end of the pool are coroutines; each may be cancelled at any await.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import sys
import time
import weakref
from asyncio import _get_running_loop as running_loop
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, Generic

import anyio

from asyncpool._core.background import force_close
from asyncpool._core.budget import Budget
from asyncpool._core.check import Check
from asyncpool._core.driver import C, Driver
from asyncpool._core.entry import RETIRED, Entry
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.failures import FailureHandler
from asyncpool._core.lease_monitor import LeaseMonitor
from asyncpool._core.ledger import IDLE, LEASED, Ledger
from asyncpool._core.settings import Settings, duration
from asyncpool._core.store import ConnectionStore
from asyncpool._core.wait_queue import Waiter
from asyncpool.errors import PoolClosed, PoolTimeout, ReleaseError
from asyncpool.faults import Fault, classify

CLOCK_TOLERANCE = 0.01
"""Largest difference in seconds at which uvloop's clock counts as `time.monotonic`."""
FRESH = 0.001
"""Seconds after its last use for which a watched connection counts as alive without being asked.
After a longer time, a busy event loop may not have processed the loss yet."""


class Core(Generic[C]):
    """A bounded set of connections and the queue of requests that wait for one.

    Args:
        settings: the limits and durations.
        driver: opens, resets, checks and closes connections.
        check: called with a connection before it is leased; if it raises, the next one is tried.
        on_outage: called once when connecting has failed for `reconnect_timeout` seconds.
        classify: returns what an error means for the pool.
        on_leak: called with the entry and a description when a lease lasts too long or is
            reclaimed.
        listens: whether a connection must stay open without a holder, because it is being listened
            on.
        budget: the limit shared with other pools.
        random: the source of jitter.
    """

    def __init__(
        self,
        settings: Settings,
        driver: Driver[C],
        *,
        check: Callable[[C], Awaitable[None]] | None = None,
        on_outage: Callable[[], Coroutine[Any, Any, None]] | None = None,
        classify: Callable[[BaseException], Fault | None] = classify,
        on_leak: Callable[[Entry[C], str], None] | None = None,
        is_listening: Callable[[C], bool] = lambda _: False,
        budget: Budget | None = None,
        random: Random | None = None,
    ) -> None:
        self.ledger: Ledger[C] = Ledger(settings, self._timeout_error, budget)
        self.store = ConnectionStore(self.ledger, driver, on_outage, classify, random or Random())
        self.store.healthy_when_opened = check is None
        self.store.on_failure = FailureHandler(self.store).handle
        self.store.on_unavailable = self._fail_waiters
        self.errors = ErrorFactory(self.ledger, self.store)
        self.lease_monitor = LeaseMonitor(self.store, self.errors, on_leak, is_listening)
        self._driver = driver
        self._check = None if check is None else Check(check, self.store, self.errors)
        self.checks = check is not None
        """Whether each connection is checked before it is leased, in a task."""
        self.home: asyncio.AbstractEventLoop | None = None
        """The event loop on which the pool was opened."""
        self._fast_acquire_loop: asyncio.AbstractEventLoop | None = None
        """The event loop on which `take_now` may lease idle connections."""
        self._fast_release_loop: asyncio.AbstractEventLoop | None = None
        """The event loop on which `release_now` may take back clean connections."""
        self._closing: asyncio.Task[None] | None = None
        self.orphaned: weakref.WeakSet[C] = weakref.WeakSet()
        """Connections leased on an event loop that has ended."""
        self._counters = self.store.counters
        self._uses = self._counters.use.fresh
        self.opened_at = 0.0
        """The instant at which the pool was opened."""
        self.slow_wait = math.inf
        """Duration in seconds from which a wait is reported to `on_slow_wait`, by its own task."""
        self.on_slow_wait: Callable[[float], None] = lambda _: None
        self._now = self.store.time

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self.ledger.settings

    @property
    def opened(self) -> bool:
        """Whether the pool is attached to an event loop."""
        return self.home is not None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.store.closing

    @property
    def usable(self) -> bool:
        """Whether the pool is open on the running event loop."""
        return not self.closed and self.home is get_running_loop()

    def open(self) -> None:
        """Attach the pool to the running event loop and start opening `min_size` connections."""
        if self.ledger.budget is not None:
            self.ledger.budget._join(self.store)
        self.home = get_running_loop()
        # asyncio's time() wraps time.monotonic(), which alone costs half as much. uvloop's clock
        # is the same, but in whole milliseconds; many leases are shorter than that.
        clock = type(self.home).time
        uvloops = getattr(clock, "__module__", "") == "uvloop.loop"
        same = uvloops and abs(self.home.time() - time.monotonic()) < CLOCK_TOLERANCE
        plain = same or clock is asyncio.BaseEventLoop.time
        self._now = self.store.time = time.monotonic if plain else self.home.time
        self.opened_at = self._now()
        limits = self.settings
        self.store.record("opened", f"open, with {limits.min_size} to {limits.max_size_text}")
        if self.settings.keeps_idle:
            self._fast_release_loop = self.home
            self._fast_acquire_loop = self.home if self._check is None else None
            if self.settings.min_size == 0:
                self.store.full.set()
        self.store.refill()

    # The hot path: no await, no task, no timer.

    def acquire_now(self) -> C | None:
        """Lease an idle connection, or return None: then `acquire` has to be awaited."""
        entry = self.take_now()
        if entry is None:
            return None
        entry.manual_in = entry.uses
        return entry.conn

    def take_now(self) -> Entry[C] | None:
        """Lease an idle connection and return its entry, or None as `acquire_now` does."""
        if self._fast_acquire_loop is not get_running_loop():
            return None
        ledger = self.ledger
        while ledger.idle:
            # `Ledger.take`, inlined to save a call.
            entry = ledger.idle.pop()
            entry.state = LEASED
            conn = entry.conn
            ledger.leased[conn] = entry
            entry.leased_at = now = self._now()
            if (entry.watched and now - entry.used_at < FRESH) or self._driver.is_alive(conn):
                entry.uses += 1
                entry.holder = current_task()
                return entry
            self.store.discard_lost(entry)
        return None

    def release_now(self, conn: C) -> bool:
        """Take back a clean connection, or return False and do nothing: then use `release`."""
        try:
            if self._fast_release_loop is not get_running_loop() or not self._driver.is_clean(conn):
                return False
        except RuntimeError:
            return False  # no loop is running: the caller outlived the loop that it used
        ledger = self.ledger
        if (entry := ledger.leased.get(conn)) is None:
            return False
        entry.holder = None
        entry.used_at = now = self._now()
        spent = now - entry.leased_at
        self._counters.use_time += spent
        self._uses.append(spent)
        # The two common cases of `Ledger.give`, inlined to save a call.
        if entry.expires_at <= now or ledger.oversize:
            del ledger.leased[conn]
            if not ledger.give(entry, now):
                self.store.discard(entry)
        elif ledger.queue.length:
            # Handed directly to the next waiter: the state stays LEASED.
            entry.leased_at = now
            entry.uses += 1
            ledger.queue.serve(entry)
        else:
            del ledger.leased[conn]
            entry.state = IDLE
            ledger.idle.append(entry)
        return True

    def release(self, conn: C, cleanup: Callable[[], Awaitable[object]] | None = None) -> None:
        """Take back a connection; roll it back and reset it in a background task if needed.

        Args:
            conn: a connection leased by this pool.
            first: work to do with the connection before the reset.

        Raises:
            ReleaseError: the connection is not leased by this pool.
            PoolClosed: `close` has already closed the connection.
            PoolWrongLoop: this is not the event loop on which it was leased.
        """
        if cleanup is None and self.release_now(conn):
            return
        entry, store = self._end_lease(conn), self.store
        if not self._driver.is_alive(conn):
            store.counters.returns_bad += 1
            store.discard(entry)
        elif cleanup is None and store.closing:
            store.discard(entry)
        elif cleanup is None and self._needs_no_reset(conn):
            store.put(entry, entry.used_at)
        else:
            store.tasks.spawn(store.clean(entry, cleanup), "reset")

    def release_shared(self, entry: Entry[C]) -> None:
        """Take back a connection that requests have shared; its lease is not counted as a use."""
        entry.shared = False
        counters, before = self._counters, self._counters.use_time
        self.release(entry.conn)
        self._uses.pop()
        counters.shared_time += counters.use_time - before

    def discard(self, conn: C) -> None:
        """Take back a connection and close it; open another one if needed.

        Raises:
            ReleaseError, PoolClosed, PoolWrongLoop: as for `release`.
        """
        self.store.discard(self._end_lease(conn))

    def lease_number(self, conn: C) -> int:
        """Return the number of a connection's current lease, or 0 if it is not leased."""
        entry = self.ledger.leased.get(conn)
        return entry.uses if entry is not None else 0

    def bind(self, conn: C) -> int:
        """Mark a new lease as made by a context manager; return its number."""
        entry = self.ledger.leased[conn]
        entry.manual_in = 0
        return entry.uses

    async def acquire(self, timeout: float | None) -> C:
        """Lease a connection within `timeout` seconds; None uses the pool's own limit.

        Raises:
            PoolTimeout: no connection was available in time.
            TooManyRequests: `max_waiting` requests are waiting already.
            PoolClosed: the pool is closed, or was closed during the wait.
            PoolWrongLoop: the pool is open on another event loop.
        """
        entry = await self.acquire_entry(timeout)
        entry.manual_in = entry.uses
        return entry.conn

    async def acquire_entry(self, timeout: float | None) -> Entry[C]:
        """Lease a connection as `acquire` does, and return its entry."""
        if self._fast_release_loop is not get_running_loop():
            self.admit()
        ledger, check, now = self.ledger, self._check, self._now()
        timeout = ledger.settings.timeout if timeout is None else duration("timeout", timeout)
        deadline, arrived_at = now + timeout, None
        # A request whose check fails keeps its position before requests that arrive meanwhile.
        ticket = 0 if check is None else ledger.queue.ticket()
        while True:
            if ledger.idle:
                entry = ledger.take(now)
                entry.holder = current_task()
            else:
                ticket = ticket or ledger.queue.ticket()
                waiter = Waiter[Entry[C]](ticket, now, deadline)
                waiter.task = current_task()
                self.queue(waiter, timeout, arrived_at)
                try:
                    while waiter.waiting:
                        await waiter.wait()
                    entry = self.served(waiter)
                except BaseException as error:
                    self.abandon_wait(waiter, error)
                    raise
                finally:
                    self.report_wait(waiter.waited)
            if self.is_usable(entry):
                try:
                    if check is None or await check.passes(entry, timeout, deadline):
                        return entry
                except BaseException as error:
                    self._count(error)
                    raise
            arrived_at, now = now if arrived_at is None else arrived_at, self._now()

    def queue(self, waiter: Waiter[Entry[C]], timeout: float, arrived_at: float | None) -> None:
        """Add a request to the wait queue.

        Args:
            waiter: its `notify` is called when it is served or failed.
            timeout: its time limit in seconds, for the error message.
            arrived_at: when the request first arrived, if it rejoins the queue; else None.

        Raises:
            PoolTimeout, TooManyRequests, PoolClosed, PoolUnavailable: as for `acquire`.
        """
        ledger, now = self.ledger, waiter.joined_at
        queue, limits = ledger.queue, ledger.settings
        try:
            if self.closed:
                raise self.errors.closed()
            if waiter.deadline <= now:
                raise self.errors.timed_out(timeout)
            if limits.max_waiting and queue.length >= limits.max_waiting and arrived_at is None:
                raise self.errors.too_many(queue.length)
            queue.admit(waiter)
            if ledger.budget is not None:
                since = now if arrived_at is None else arrived_at
                ledger.budget._note_waiter(ledger, waiter, since)
            if self.lease_monitor.timer.at == math.inf:
                self.lease_monitor.start()
            if len(ledger.entries) < limits.max_size:
                self.store.refill()
            if waiter.waiting and self.store.outage.failures and self.store.is_unavailable():
                raise self.errors.unavailable()
        except BaseException as error:
            self._leave(waiter)
            self._count(error)
            raise
        self._counters.requests_queued += arrived_at is None

    def served(self, waiter: Waiter[Entry[C]]) -> Entry[C]:
        """Return the entry that a waiter was served, or raise its error."""
        if waiter.error is not None:
            raise waiter.error
        entry, waiter.served = waiter.served, None
        assert entry is not None, "bug: a waiter woke up with neither item nor error"
        entry.holder, waiter.task = waiter.task, None
        waiter.waited = entry.leased_at - waiter.joined_at
        self._counters.note_wait(waiter.waited)
        return entry

    def is_usable(self, entry: Entry[C]) -> bool:
        """Whether a newly leased entry is usable; if not, discard it."""
        if entry.expires_at == RETIRED:
            self.ledger.cancel_lease(entry)
            self.store.discard(entry)
            return False
        fresh = entry.watched and entry.leased_at - entry.used_at < FRESH
        if not fresh and not self._driver.is_alive(entry.conn):
            self.ledger.cancel_lease(entry)
            self.store.discard_lost(entry)
            return False
        return True

    def abandon_wait(self, waiter: Waiter[Entry[C]], error: BaseException) -> None:
        """Remove a waiter whose wait ended in an error, and count the request."""
        waiter.waited = self._now() - waiter.joined_at
        self._counters.note_wait(waiter.waited)
        self._leave(waiter)
        self._count(error)

    def hand_over(self, entry: Entry[C]) -> bool:
        """Lease a clean connection to the first waiter; return False if it must be released."""
        ledger, expired = self.ledger, entry.expires_at <= self._now()
        if expired or ledger.oversize or self._fast_release_loop is not running_loop():
            return False
        entry.leased_at = self.store.count_use(entry)
        entry.uses += 1
        return ledger.queue.serve(entry)

    def _count(self, error: BaseException) -> None:
        """Count a request that was not served."""
        if isinstance(error, asyncio.CancelledError):
            self._counters.requests_cancelled += 1
        else:
            self._counters.requests_failed += 1
            self._counters.requests_timed_out += isinstance(error, PoolTimeout)

    def report_wait(self, waited: float) -> None:
        """Report a wait to `on_slow_wait` if it was long."""
        if waited >= self.slow_wait:
            try:
                self.on_slow_wait(waited)
            except Exception:  # noqa: BLE001 - it is logged
                self.store.log_exception("slow wait", "the on_slow_wait callback failed")

    def admit(self) -> None:
        """Raise an error unless the pool is usable on the running event loop."""
        if self.closed:
            raise self.errors.closed()
        if self.home is not get_running_loop():
            raise self.errors.wrong_loop(self.home)

    def resize(self, min_size: int, max_size: int) -> None:
        """Set new sizes; close surplus idle connections now and leased ones when released."""
        if self.opened:
            self.admit()
        for entry in self.ledger.resize(min_size, max_size):
            self.store.discard(entry)
        max_size_or_zero = self.settings.max_size_text
        self.store.record("resized", f"resized: min_size={min_size}, max_size={max_size_or_zero}")
        if self.opened:
            self.store.refill()

    def drain(self) -> None:
        """Retire all current connections; leased ones are closed when released."""
        self.store.drain()
        self.store.record("drained", "drained: all connections are being replaced")

    async def close(self, timeout: float) -> None:
        """Close the pool within about `timeout` seconds; a second call waits for the first.

        A cancelled anyio scope does not interrupt the wait. `task.cancel()` raises CancelledError
        at once, and closing continues in the background.
        """
        if self.opened and self.home is not get_running_loop():
            raise self.errors.wrong_loop(self.home)
        # First, because the new task may start eagerly and cancel the pool's tasks.
        self.store.tasks.exempt(current_task())
        if self._closing is None:
            self._fast_acquire_loop = self._fast_release_loop = None
            self.store.closing = True
            leased = len(self.ledger.leased)
            self.store.record("closed", f"closing, with {leased} connections in use")
            self.ledger.queue.fail_all(self.errors.closed)
            self.lease_monitor.timer.cancel()
            self.store.full.set()
            shut = self._close_all(self.store.time() + timeout)
            self._closing = get_running_loop().create_task(shut, context=contextvars.Context())
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._closing)

    def abandon_all(self, *, forked: bool = False) -> list[C]:
        """Give up everything without I/O: after a fork, a closed event loop or collection."""
        ended = self.home is not None and self.home.is_closed() and not forked
        self._fast_acquire_loop = self._fast_release_loop = self.home = None
        self.store.closing = True
        self.store.retry_timer.cancel()
        self.ledger.queue.stop()
        self.lease_monitor.timer.cancel()
        conns = [entry.conn for entry in self.ledger.entries if hasattr(entry, "conn")]
        if self.ledger.budget is not None:
            self.ledger.budget._leave(self.ledger, forked=forked)
        if not ended:
            # When the interpreter exits, no loop runs the tasks to their end.
            self.store.tasks.force_close() if sys.is_finalizing() else self.store.tasks.cancel_all()
            return conns
        for entry in list(self.ledger.entries):
            self.ledger.remove(entry)
        self.store.tasks.force_close()
        if self._closing is not None:
            force_close(self._closing)
        return conns

    def _end_lease(self, conn: C) -> Entry[C]:
        """End a lease and return its entry; the connection may need cleaning."""
        if self.home is not running_loop() or self.home is None:
            raise self.errors.wrong_loop(self.home)
        entry = self.ledger.take_back(conn)
        if entry is None:
            if self.closed:
                msg = (
                    f"pool {self.settings.name!r} was closed while this was in use: its work is"
                    " lost"
                )
                raise PoolClosed(msg)
            if conn in self.orphaned:
                raise self.errors.orphaned(conn)
            what = "it belongs to another pool or was released already"
            msg = f"pool {self.settings.name!r} has not leased {conn!r}: {what}"
            raise ReleaseError(msg)
        self.store.count_use(entry)
        return entry

    def _leave(self, waiter: Waiter[Entry[C]]) -> None:
        """Remove a waiter, and pass on an entry that it was served already."""
        entry = self.ledger.queue.leave(waiter)
        ended = self.home is None or self.home.is_closed()
        if entry is not None and not ended:
            self.ledger.cancel_lease(entry)
            if self.ledger.take_back(entry.conn) is not None:
                self.store.put(entry, self.store.time())

    def _needs_no_reset(self, conn: C) -> bool:
        """Whether no reset is needed where idle connections are not kept."""
        ledger = self.ledger
        if ledger.settings.keeps_idle:
            return False
        return not ledger.queue.length or self._driver.is_clean(conn)

    def _fail_waiters(self) -> None:
        """Fail all waits, because waiting is useless."""
        self.ledger.queue.fail_all(self.errors.unavailable)
        self.store.wake_fill_callers()

    def _timeout_error(self, waiter: Waiter[Entry[C]]) -> PoolTimeout:
        return self.errors.timed_out(round(waiter.deadline - waiter.joined_at, 3))

    async def _close_all(self, deadline: float) -> None:
        self.store.stop_opening()
        for entry in list(self.ledger.idle):
            self.store.discard(entry)
        await self._wait_until_empty(deadline)
        for entry in list(self.ledger.leased.values()):
            self.store.record(
                "closed while lent",
                f"closed while in use: {entry.conn!r}",
                logging.WARNING,
                task=entry.holder_name,
                age=self.store.time() - entry.leased_at,
            )
            self.store.discard(entry)
        await self._wait_until_empty(self.store.time() + 0.25)
        await self.store.abandon()
        if self.ledger.budget is not None:
            self.ledger.budget._leave(self.ledger)

    async def _wait_until_empty(self, deadline: float) -> None:
        if self.ledger.entries:
            self.store.empty.clear()  # it may have been empty before
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                    await self.store.empty.wait()
