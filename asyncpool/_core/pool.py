"""The pool for any driver: it is built here, opened, resized, drained and closed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import sys
import weakref
from asyncio import current_task, get_running_loop
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from random import Random
from typing import Any

import anyio

from asyncpool._core.background import force_close
from asyncpool._core.budget import Budget
from asyncpool._core.check import Check
from asyncpool._core.driver import C, Driver
from asyncpool._core.entry import Entry
from asyncpool._core.error_factory import OWN_CLASSES, ErrorClasses, ErrorFactory
from asyncpool._core.failures import FailureHandler
from asyncpool._core.lease import NO_LEASE
from asyncpool._core.lease_monitor import LeaseMonitor
from asyncpool._core.leasing import Leasing
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage import Outage
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.runtime import Phase, Runtime, clock_of
from asyncpool._core.settings import Settings
from asyncpool._core.store import ConnectionStore
from asyncpool._core.timer import Timer
from asyncpool._core.waiter import Waiter
from asyncpool.errors import PoolError
from asyncpool.faults import Fault, classify


class Core(Leasing[C]):
    """A bounded set of connections and the queue of requests that wait for one.

    Args:
        settings: the limits and durations.
        driver: opens, resets, checks and closes connections.
        check: called with a connection before it is leased; if it raises, the next one is tried.
        on_outage: called once when connecting has failed for `reconnect_timeout` seconds.
        classify: returns what an error means for the pool.
        on_leak: called with the entry and a description when a lease lasts too long or is
            reclaimed.
        is_listening: whether a connection must stay open without a holder, because it is being
            listened on.
        budget: the limit shared with other pools.
        error_classes: the classes of the pool's errors.
        last_statement: returns a connection's last statement, for errors; None: it is not known.
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
        error_classes: ErrorClasses = OWN_CLASSES,
        last_statement: Callable[[C], str | None] = lambda _: None,
        random: Random | None = None,
    ) -> None:
        random = random or Random()
        self.runtime = runtime = Runtime(settings.name)
        self.ledger = ledger = Ledger[C](settings, self._overdue_error, budget, runtime.now)
        outage, timer = Outage(random), Timer(self._on_retry)
        self.outages = outages = OutageController(
            ledger, runtime, outage, timer, on_outage, classify
        )
        self.errors = errors = ErrorFactory(ledger, outage, runtime, error_classes, last_statement)
        self.store = store = ConnectionStore(
            ledger, driver, runtime, outages, errors, random, healthy_when_opened=check is None
        )
        store.on_failure = FailureHandler(ledger, runtime, outages, store).handle
        self.readiness = store.readiness
        self.lease_monitor = LeaseMonitor(
            ledger, runtime, errors, on_leak, is_listening, self.reclaim
        )
        self.check = check and Check(check, ledger, runtime, outages, store, errors)
        self.refused_at = -math.inf
        self._counts_together, self.being_refused = False, 0
        self.slow_wait, self.on_slow_wait = math.inf, lambda _: None
        self.orphaned = weakref.WeakSet()
        self.home = self._open_on = self._unchecked_on = None
        self._driver = driver
        self._now = runtime.time
        self._counters = runtime.counters
        self._uses = runtime.counters.use.fresh
        self._closing: asyncio.Task[None] | None = None
        self.opened_at = 0.0
        """The instant at which the pool was opened."""

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self.ledger.settings

    def open(self) -> None:
        """Attach the pool to the running event loop and start opening `min_size` connections."""
        if self.ledger.budget is not None:
            self.ledger.budget._join(self.store)
        self.home = get_running_loop()
        self._set_open_on(self.home)
        self._now = self.runtime.time = clock_of(self.home)
        self.opened_at = self._now()
        self.runtime.phase = Phase.OPEN
        limits = self.settings
        self.runtime.record("opened", f"open, with {limits.min_size} to {limits.max_size_text}")
        self.ledger.filling = not self.ledger.has_min_size
        self.store.refill()

    def mark_forked(self) -> None:
        """Record that this replaces a pool that was open when the process was forked."""
        self.runtime.phase = Phase.FORKED

    def close_unopened(self) -> None:
        """Close a pool that has no connections: it was never opened."""
        self.runtime.phase = Phase.CLOSED

    def change(self, **settings: Any) -> None:
        """Change settings that need no further action, such as `timeout` or the name.

        Raises:
            TypeError, ValueError: a setting is invalid; nothing changes.
        """
        self.ledger.settings = changed = replace(self.settings, **settings)
        self.ledger.queue.decided.clear()
        self.ledger.queue.judges = changed.overload is not None
        self.runtime.name = self.runtime.tasks.name = changed.name

    def resize(self, min_size: int, max_size: int) -> None:
        """Set new sizes; close surplus idle connections now and leased ones when released."""
        if self.home is not None:
            self.require_usable()
        for entry in self.ledger.resize(min_size, max_size):
            self.store.discard(entry)
        text = f"resized: min_size={min_size}, max_size={self.settings.max_size_text}"
        self.runtime.record("resized", text)
        self.store.refill()

    def flush_times(self) -> None:
        """Move the noted durations of leases and waits into their histograms."""
        self.runtime.counters.flush_times(self.ledger.ended_leases)

    def drain(self) -> None:
        """Retire all current connections; leased ones are closed when released."""
        self.store.drain()
        self.runtime.record("drained", "drained: all connections are being replaced")

    async def close(self, timeout: float) -> None:
        """Close the pool within about `timeout` seconds; a second call waits for the first.

        A cancelled anyio scope does not interrupt the wait. `task.cancel()` raises CancelledError
        at once, and closing continues in the background.
        """
        if self.home is not None and self.home is not get_running_loop():
            raise self.errors.wrong_loop(self.home)
        # First, because the new task may start eagerly and cancel the pool's tasks.
        self.runtime.tasks.exempt(current_task())
        if self._closing is None:
            self.runtime.phase = Phase.CLOSED
            self._set_open_on(None)
            leased = len(self.ledger.leased)
            self.runtime.record("closed", f"closing, with {leased} connections in use")
            self.ledger.queue.fail_all(self.errors.closed)
            if self.ledger.budget is not None:
                self.ledger.budget._offer()
            self.lease_monitor.timer.cancel()
            self.readiness.wake()
            shut = self._close_all(self._now() + timeout)
            self._closing = get_running_loop().create_task(shut, context=contextvars.Context())
        with anyio.CancelScope(shield=True):
            await asyncio.shield(self._closing)

    def abandon_all(self, *, forked: bool = False) -> list[C]:
        """Give up everything without I/O: after a fork, a closed event loop or collection."""
        ended = self.home is not None and self.home.is_closed() and not forked
        self.home = None
        self._set_open_on(None)
        self.runtime.phase = Phase.CLOSED
        self.outages.retry.cancel()
        self.store.late.cancel()
        self.ledger.queue.stop()
        self.lease_monitor.timer.cancel()
        for entry in self.ledger.leased.values():
            entry.lease = NO_LEASE
        conns = [entry.conn for entry in self.ledger.entries if hasattr(entry, "conn")]
        if self.ledger.budget is not None:
            self.ledger.budget._leave(self.ledger, forked=forked)
        if not ended:
            # When the interpreter exits, no loop runs the tasks to their end.
            tasks = self.runtime.tasks
            tasks.force_close() if sys.is_finalizing() else tasks.cancel_all()
            return conns
        for entry in list(self.ledger.entries):
            self.ledger.remove(entry)
        self.runtime.tasks.force_close()
        if self._closing is not None:
            force_close(self._closing)
        return conns

    def _on_retry(self, due: float) -> None:
        """Start the connects that were put off, at their instant."""
        self.outages.report_cancelled()
        self.store.refill()
        if self.ledger.budget is not None:
            self.ledger.budget._offer()

    def _overdue_error(self, waiter: Waiter[Entry[C]], is_late: bool) -> PoolError:
        if is_late:
            waiting, leased = self.ledger.waiting, len(self.ledger.leased)
            return self.refused(*self.late_refusal(waiter, waiting, leased))
        began = waiter.joined_at if waiter.arrived_at is None else waiter.arrived_at
        return self.errors.timed_out(round(waiter.deadline - began, 3))

    async def _close_all(self, deadline: float) -> None:
        self.store.stop_opening()
        for entry in list(self.ledger.idle):
            self.store.discard(entry)
        await self._wait_until_empty(deadline)
        for entry in list(self.ledger.leased.values()):
            self.runtime.record(
                "closed while in use",
                f"closed while in use: {entry.conn!r}",
                logging.WARNING,
                task=entry.lease.holder_name,
                age=self._now() - entry.leased_at,
            )
            self.store.discard(entry)
        await self._wait_until_empty(self._now() + 0.25)
        await self.store.abandon()
        if self.ledger.budget is not None:
            self.ledger.budget._leave(self.ledger)

    async def _wait_until_empty(self, deadline: float) -> None:
        if self.ledger.entries:
            self.store.empty.clear()  # it may have been empty before
            with anyio.CancelScope(deadline=deadline):
                await self.store.empty.wait()
