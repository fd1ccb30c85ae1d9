"""The pool itself, for any driver: who gets a connection, and what becomes of it afterwards.

It knows no psycopg. Lending and taking back an idle, clean connection are plain calls; whatever has
to wait for the line, for a check or for the end is a coroutine, and may be cancelled anywhere.
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
from asyncpool._core.events import fields
from asyncpool._core.failures import FailureHandler
from asyncpool._core.lease_monitor import LeaseMonitor
from asyncpool._core.ledger import IDLE, LEASED, Ledger
from asyncpool._core.settings import Settings, duration
from asyncpool._core.store import ConnectionStore
from asyncpool._core.wait_queue import Waiter
from asyncpool.errors import PoolClosed, PoolTimeout, ReleaseError
from asyncpool.faults import Fault, classify

logger = logging.getLogger("asyncpool")

CLOCK_TOLERANCE = 0.01
"""Seconds by which uvloop's clock may be off and still count as the system's."""
FRESH = 0.001
"""Seconds since its last use within which a watched connection's word is not asked for: a loop that
has been busy for longer may not have heard of its end yet."""


class Core(Generic[C]):
    """A bounded set of connections and the line of those who wait for one.

    Args:
        settings: the numbers.
        connector: the driver.
        check: called with a connection before it is lent; when it raises, the next one is tried.
        on_outage: called once when connecting has failed for `reconnect_timeout` seconds.
        classify: what an error means beyond its statement.
        on_leak: called once a lease that lasts for too long, with what is the matter.
        listens: whether a connection is of use though nobody has it.
        budget: what it has in common with other pools.
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
        listens: Callable[[C], bool] = lambda _: False,
        budget: Budget | None = None,
        random: Random | None = None,
    ) -> None:
        self.ledger: Ledger[C] = Ledger(settings, self._timeout_error, budget)
        self.store = ConnectionStore(self.ledger, driver, on_outage, classify, random or Random())
        self.store.healthy_when_opened = check is None
        self.store.on_failure = FailureHandler(self.store).handle
        self.store.on_unavailable = self._fail_waiters
        self.errors = ErrorFactory(self.ledger, self.store)
        self.lease_monitor = LeaseMonitor(self.store, self.errors, on_leak, listens)
        self._driver = driver
        self._check = None if check is None else Check(check, self.store, self.errors)
        self.checks = check is not None
        """Whether a connection has to be checked before it is lent, which takes a task."""
        self.home: asyncio.AbstractEventLoop | None = None
        """The loop that it was opened on."""
        self._fast_acquire_loop: asyncio.AbstractEventLoop | None = None
        """The loop on which an idle connection is lent with no further question."""
        self._fast_release_loop: asyncio.AbstractEventLoop | None = None
        """The loop on which a clean connection is taken back with no further question."""
        self._closing: asyncio.Task[None] | None = None
        self.left_behind: weakref.WeakSet[C] = weakref.WeakSet()
        """What was lent on an event loop that has ended."""
        self._counters = self.store.counters
        self._uses = self._counters.use.fresh
        self.opened_at = 0.0
        """When it was opened."""
        self.slow_wait = math.inf
        """Seconds from which on a wait is told of, to `on_slow_wait`, in the task that waited."""
        self.on_slow_wait: Callable[[float], None] = lambda _: None
        self._now = self.store.time

    @property
    def settings(self) -> Settings:
        """The numbers in force."""
        return self.ledger.settings

    @property
    def opened(self) -> bool:
        """Whether it was ever opened."""
        return self.home is not None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.store.closing

    @property
    def usable(self) -> bool:
        """Whether it is open, on this very loop."""
        return not self.closed and self.home is get_running_loop()

    def open(self) -> None:
        """Belong to the running loop from now on, and start opening `min_size` connections."""
        if self.ledger.budget is not None:
            self.ledger.budget._join(self.store)
        self.home = get_running_loop()
        # asyncio's own time() is a method around time.monotonic(), and half the cost without it;
        # uvloop's is the same in whole milliseconds, and a use is often shorter.
        clock = type(self.home).time
        uvloops = getattr(clock, "__module__", "") == "uvloop.loop"
        same = uvloops and abs(self.home.time() - time.monotonic()) < CLOCK_TOLERANCE
        plain = same or clock is asyncio.BaseEventLoop.time
        self._now = self.store.time = time.monotonic if plain else self.home.time
        self.opened_at = self._now()
        limits = self.settings
        self.store.record("opened", f"open, with {limits.min_size} to {limits.bound_in_words}")
        if self.settings.keeps_idle:
            self._fast_release_loop = self.home
            self._fast_acquire_loop = self.home if self._check is None else None
            if self.settings.min_size == 0:
                self.store.full.set()
        self.store.refill()

    # The hot path is these two: no await, no task, no timer.

    def acquire_now(self) -> C | None:
        """An idle connection, or None: then `acquire` has to be awaited."""
        entry = self.take_now()
        if entry is None:
            return None
        entry.manual_in = entry.uses
        return entry.conn

    def take_now(self) -> Entry[C] | None:
        """The same, as its entry."""
        if self._fast_acquire_loop is not get_running_loop():
            return None
        ledger = self.ledger
        while ledger.idle:
            # What `Ledger.take` does, written out: a call less where every call counts.
            entry = ledger.idle.pop()
            entry.state = LEASED
            conn = entry.conn
            ledger.leased[conn] = entry
            entry.lent_at = now = self._now()
            if (entry.watched and now - entry.used_at < FRESH) or self._driver.is_alive(conn):
                entry.uses += 1
                entry.holder = current_task()
                return entry
            self.store.discard_lost(entry)
        return None

    def release_now(self, conn: C) -> bool:
        """Take back a clean connection; False, and nothing done, when it needs `release`."""
        try:
            if self._fast_release_loop is not get_running_loop() or not self._driver.is_clean(conn):
                return False
        except RuntimeError:
            return False  # a borrower that is left over from a loop that has ended
        ledger = self.ledger
        if (entry := ledger.leased.get(conn)) is None:
            return False
        entry.holder = None
        entry.used_at = now = self._now()
        spent = now - entry.lent_at
        self._counters.use_time += spent
        self._uses.append(spent)
        # `Ledger.give` in its two plain cases, written out for the same reason.
        if entry.expires_at <= now or ledger.oversize:
            del ledger.leased[conn]
            if not ledger.give(entry, now):
                self.store.discard(entry)
        elif ledger.queue.length:
            # From one to the next: it stays lent.
            entry.lent_at = now
            entry.uses += 1
            ledger.queue.serve(entry)
        else:
            del ledger.leased[conn]
            entry.state = IDLE
            ledger.idle.append(entry)
        return True

    def release(self, conn: C, first: Callable[[], Awaitable[object]] | None = None) -> None:
        """Take a connection back. What it needs before the next borrower is the crew's to do.

        Args:
            conn: one that was lent out by this pool.
            first: work that must be done with it before it is reset.

        Raises:
            ReleaseError: it is not lent out by this pool.
            PoolClosed: `close` did not wait for it any longer.
            PoolWrongLoop: this is not the loop on which it was lent.
        """
        if first is None and self.release_now(conn):
            return
        entry, store = self._end_lease(conn), self.store
        if not self._driver.is_alive(conn):
            store.counters.returns_bad += 1
            store.discard(entry)
        elif first is None and store.closing:
            store.discard(entry)
        elif first is None and self._needs_no_reset(conn):
            store.put(entry, entry.used_at)
        else:
            store.tasks.spawn(store.clean(entry, first), "reset")

    def release_shared(self, entry: Entry[C]) -> None:
        """Take back what requests have shared, whose lease is no request's use."""
        entry.shared = False
        counters, before = self._counters, self._counters.use_time
        self.release(entry.conn)
        self._uses.pop()
        counters.shared_time += counters.use_time - before

    def dismiss(self, conn: C) -> None:
        """Take a connection back for good: it is closed, and replaced where one is needed.

        Its errors are those of `release`.
        """
        self.store.discard(self._end_lease(conn))

    def lease_number(self, conn: C) -> int:
        """Which of its leases a connection is in; 0 when it is not lent out."""
        entry = self.ledger.leased.get(conn)
        return entry.uses if entry is not None else 0

    def bind(self, conn: C) -> int:
        """A connection that was just lent is a block's to return; its lease's number."""
        entry = self.ledger.leased[conn]
        entry.manual_in = 0
        return entry.uses

    async def acquire(self, timeout: float | None) -> C:
        """A connection within `timeout` seconds, None being the pool's own time limit.

        Raises:
            PoolTimeout: there was none in time.
            TooManyRequests: the line is as long as it may be.
            PoolClosed: the pool is closed, or was while waiting.
            PoolWrongLoop: the pool is open on another loop.
        """
        entry = await self.acquire_entry(timeout)
        entry.manual_in = entry.uses
        return entry.conn

    async def acquire_entry(self, timeout: float | None) -> Entry[C]:
        """Wait for a connection, as `acquire` does; return its entry."""
        if self._fast_release_loop is not get_running_loop():
            self.admit()
        ledger, check, now = self.ledger, self._check, self._now()
        timeout = ledger.settings.timeout if timeout is None else duration("timeout", timeout)
        deadline, arrived_at = now + timeout, None
        # A request that waits for a check has come before those who come meanwhile.
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
                    self.gave_up(waiter, error)
                    raise
                finally:
                    self.report_wait(waiter.waited)
            if self.is_fit(entry):
                try:
                    if check is None or await check.passes(entry, timeout, deadline):
                        return entry
                except BaseException as error:
                    self._count(error)
                    raise
            arrived_at, now = now if arrived_at is None else arrived_at, self._now()

    def queue(self, waiter: Waiter[Entry[C]], timeout: float, arrived_at: float | None) -> None:
        """Let a request take its place in the line.

        Args:
            waiter: its `notify` is called when it is served, or its wait has ended in an error; it
                knows its task.
            timeout: seconds of its wait, for the error.
            arrived_at: when it arrived, if it comes again; None: it has just come.

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
                ledger.budget._note_waiter(
                    ledger, waiter, now if arrived_at is None else arrived_at
                )
            if self.lease_monitor.timer is None:
                self.lease_monitor.start()
            if len(ledger.entries) < limits.max_size:
                self.store.refill()
            if self.store.outage.failures and self.store.is_unavailable():
                raise self.errors.unavailable()
        except BaseException as error:
            self._leave(waiter)
            self._count(error)
            raise
        self._counters.requests_queued += arrived_at is None

    def served(self, waiter: Waiter[Entry[C]]) -> Entry[C]:
        """Return what a waiter was served, or raise its error."""
        if waiter.error is not None:
            raise waiter.error
        entry, waiter.served = waiter.served, None
        assert entry is not None, "bug: a waiter woke up with neither item nor error"
        entry.holder, waiter.task = waiter.task, None
        waiter.waited = entry.lent_at - waiter.joined_at
        self._counters.note_wait(waiter.waited)
        return entry

    def is_fit(self, entry: Entry[C]) -> bool:
        """Whether an entry that was just lent may be used; if not, it is gone."""
        if entry.expires_at == RETIRED:
            self.ledger.cancel_lease(entry)
            self.store.discard(entry)
            return False
        fresh = entry.watched and entry.lent_at - entry.used_at < FRESH
        if not fresh and not self._driver.is_alive(entry.conn):
            self.ledger.cancel_lease(entry)
            self.store.discard_lost(entry)
            return False
        return True

    def gave_up(self, waiter: Waiter[Entry[C]], error: BaseException) -> None:
        """Let a waiter leave whose wait has ended in an error."""
        waiter.waited = self._now() - waiter.joined_at
        self._counters.note_wait(waiter.waited)
        self._leave(waiter)
        self._count(error)

    def pass_on(self, entry: Entry[C]) -> bool:
        """Lend a clean connection to the head of the line; False where it has to be returned."""
        ledger, expired = self.ledger, entry.expires_at <= self._now()
        if expired or ledger.oversize or self._fast_release_loop is not running_loop():
            return False
        entry.lent_at = self.store.count_use(entry)
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
        """Tell of a wait, if it was long."""
        if waited >= self.slow_wait:
            try:
                self.on_slow_wait(waited)
            except Exception:  # it is no fault of who has waited
                name = self.settings.name
                text = "pool %r: the callback of on_slow_wait failed"
                logger.exception(text, name, extra=fields(name, "slow wait"))

    def admit(self) -> None:
        """Raise unless the pool can be used here and now."""
        if self.closed:
            raise self.errors.closed()
        if self.home is not get_running_loop():
            raise self.errors.wrong_loop(self.home)

    def resize(self, min_size: int, max_size: int) -> None:
        """New sizes from now on; what is too many goes at once when idle, else on its return."""
        if self.opened:
            self.admit()
        for entry in self.ledger.resize(min_size, max_size):
            self.store.discard(entry)
        bound = self.settings.bound_in_words
        self.store.record("resized", f"its size is {min_size} to {bound} from now on")
        if self.opened:
            self.store.refill()

    def drain(self) -> None:
        """Retire every connection there is now; those lent out, on their return."""
        self.store.drain()
        self.store.record("drained", "every connection of before is being replaced")

    async def close(self, timeout: float) -> None:
        """Close everything within about `timeout` seconds. Called again, it waits for the end.

        Under an anyio scope that is cancelled it goes on to its end; a task that is cancelled gets
        its CancelledError at once, and the pool closes behind its back.
        """
        if self.opened and self.home is not get_running_loop():
            raise self.errors.wrong_loop(self.home)
        # Before a task that starts eagerly can have dismissed it.
        self.store.tasks.exempt(current_task())
        if self._closing is None:
            self._fast_acquire_loop = self._fast_release_loop = None
            self.store.closing = True
            self.store.record("closed", f"closing, with {len(self.ledger.leased)} lent")
            self.ledger.queue.fail_all(self.errors.closed)
            self.lease_monitor.stop()
            self.store.full.set()
            shut = self._close_all(self.store.time() + timeout)
            self._closing = get_running_loop().create_task(shut, context=contextvars.Context())
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._closing)

    def abandon_all(self, *, forked: bool = False) -> list[C]:
        """Give up everything with no I/O and no await: as garbage, or after a fork or a loop."""
        ended = self.home is not None and self.home.is_closed() and not forked
        self._fast_acquire_loop = self._fast_release_loop = self.home = None
        self.store.closing = True
        self.store.stop_retrying()
        self.ledger.queue.stop()
        self.lease_monitor.stop()
        conns = [entry.conn for entry in self.ledger.entries if hasattr(entry, "conn")]
        if self.ledger.budget is not None:
            self.ledger.budget._leave(self.ledger, forked=forked)
        if not ended:
            # At the interpreter's exit no loop will run them to their end.
            self.store.tasks.force_close() if sys.is_finalizing() else self.store.tasks.dismiss()
            return conns
        for entry in list(self.ledger.entries):
            self.ledger.remove(entry)
        self.store.tasks.force_close()
        if self._closing is not None:
            force_close(self._closing)
        return conns

    def _end_lease(self, conn: C) -> Entry[C]:
        """Take back what was lent; whether it is clean is not known."""
        if self.home is not running_loop() or self.home is None:
            raise self.errors.wrong_loop(self.home)
        entry = self.ledger.take_back(conn)
        if entry is None:
            if self.closed:
                msg = (
                    f"pool {self.settings.name!r} was closed while this was lent: its work is lost"
                )
                raise PoolClosed(msg)
            if conn in self.left_behind:
                raise self.errors.left_behind(conn)
            what = "it comes from elsewhere or was released already"
            msg = f"pool {self.settings.name!r} has not lent out {conn!r}: {what}"
            raise ReleaseError(msg)
        self.store.count_use(entry)
        return entry

    def _leave(self, waiter: Waiter[Entry[C]]) -> None:
        """Give up a place in the line, and pass on what was handed over already."""
        entry = self.ledger.queue.leave(waiter)
        ended = self.home is None or self.home.is_closed()
        if entry is not None and not ended:
            self.ledger.cancel_lease(entry)
            if self.ledger.take_back(entry.conn) is not None:
                self.store.put(entry, self.store.time())

    def _needs_no_reset(self, conn: C) -> bool:
        """Whether one that is not to be kept needs no cleaning: it is clean, or nobody waits."""
        ledger = self.ledger
        if ledger.settings.keeps_idle:
            return False
        return not ledger.queue.length or self._driver.is_clean(conn)

    def _fail_waiters(self) -> None:
        """Nobody is to wait for what will not come."""
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
                f"closed while lent: {entry.conn!r}",
                logging.WARNING,
                task=entry.holder_name,
                age=self.store.time() - entry.lent_at,
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
