"""Leases connections to requests and takes them back.

Leasing an idle connection and taking back a clean one are plain calls: no await, no task, no timer.
What waits for the queue or for a check is a coroutine, which may be cancelled at any await.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import _get_running_loop as running_loop
from asyncio import current_task, get_running_loop
from collections import deque
from collections.abc import Awaitable, Callable

from asyncpool._core.check import Check
from asyncpool._core.counters import Counters
from asyncpool._core.driver import C, Driver
from asyncpool._core.entry import Entry
from asyncpool._core.lease import Lease, ManualLease
from asyncpool._core.ledger import LEASED
from asyncpool._core.settings import duration
from asyncpool._core.waiter import Waiter
from asyncpool._core.waiting import Waiting
from asyncpool._core.within import NO_LIMITS, apply_limits, current_limits
from asyncpool.errors import ReleaseError

FRESH = 0.001
"""Seconds after its last use for which a watched connection counts as alive without being asked.
After a longer time, a busy event loop may not have processed the loss yet."""


class Leasing(Waiting[C]):
    """The leases of one pool. `Core` sets the attributes."""

    check: Check[C] | None
    """Checks each connection before it is leased, if the user has a check."""
    orphaned: weakref.WeakSet[C]
    """Connections leased on an event loop that has ended."""
    _driver: Driver[C]
    _now: Callable[[], float]
    """`runtime.time`, bound once more for the fast path; so are the next two."""
    _counters: Counters
    _uses: deque[float]
    _open_on: asyncio.AbstractEventLoop | None
    """`home` while the pool is open; None before and after that."""
    _unchecked_on: asyncio.AbstractEventLoop | None
    """`_open_on`, or None where a connection is checked before it is leased."""

    @property
    def usable(self) -> bool:
        """Whether the pool is open on the running event loop."""
        return self._open_on is get_running_loop()

    def _set_open_on(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._open_on = loop
        self._unchecked_on = loop if self.check is None else None

    # The hot path

    def take_now(self, lease: Lease) -> Entry[C] | None:
        """Lease an idle connection; return its entry, or None: then await `acquire_entry`."""
        ledger, loop = self.ledger, self._unchecked_on
        while ledger.idle:
            if loop is not get_running_loop():
                return None
            now = self._now()
            entry = ledger.take(now, lease)
            # As in `is_usable`, which is not called to save the time of a call.
            if (entry.watched and now - entry.used_at < FRESH) or self._driver.is_alive(entry.conn):
                lease.holder = current_task(loop)
                return entry
            self._reject(entry)
        return None

    def release_now(self, entry: Entry[C]) -> bool:
        """End the lease of a clean connection, or return False and do nothing: use `release`."""
        conn = entry.conn
        try:
            if self._open_on is not get_running_loop() or not self._driver.is_clean(conn):
                return False
        except RuntimeError:
            return False  # no loop is running: the caller outlived the loop that it used
        now = self._now()
        # `Counters.note_use`, inlined to save a call.
        spent = now - entry.leased_at
        self._counters.use_time += spent
        self._uses.append(spent)
        if not self.ledger.give_back(entry, now):
            self._close_returned(entry)
        return True

    def release(self, conn: C, cleanup: Callable[[], Awaitable[object]] | None = None) -> None:
        """Take back a connection; roll it back and reset it in a background task if needed.

        Args:
            conn: a connection leased by this pool.
            cleanup: work to do with the connection before the reset.

        Raises:
            ReleaseError: the connection is not leased by this pool.
            PoolClosed: `close` has already closed the connection.
            PoolWrongLoop: this is not the event loop on which it was leased.
        """
        entry = self.ledger.leased.get(conn)
        if cleanup is None and entry is not None and self.release_now(entry):
            return
        entry = self._end_lease(conn)
        if not self._driver.is_alive(conn):
            self._close_returned(entry)
        elif cleanup is None and (self.closed or not self._needs_reset(conn)):
            self.store.put(entry, entry.used_at)
        else:
            self.store.spawn(entry, self.store.clean(entry, cleanup), "reset")

    def release_channel(self, entry: Entry[C]) -> bool:
        """End the lease of a channel, as `release_now` does.

        A shared lease is not counted as a use. A connection that is not kept is closed a little
        later, because the results of its last statement have yet to be read.
        """
        is_here = self._open_on is not None and self._open_on is running_loop()
        if not is_here or entry.state is not LEASED or not self._driver.is_clean(entry.conn):
            return False
        now = self._now()
        self._counters.note_use(now - entry.leased_at, entry.lease.is_shared)
        if not self.ledger.give_back(entry, now):
            self._close_returned(entry)
        return True

    def discard(self, conn: C) -> None:
        """Take back a connection and close it; open another one if needed.

        Raises:
            ReleaseError, PoolClosed, PoolWrongLoop: as for `release`.
        """
        self.store.discard(self._end_lease(conn))

    def reclaim(self, entry: Entry[C]) -> None:
        """Take back a connection that nobody returned; it is reset even if it is clean."""
        self._end_lease(entry.conn)
        self.store.spawn(entry, self.store.clean(entry, None), "reset")

    def lease_of(self, conn: C) -> Lease | None:
        """Return the current lease of a connection; None: it is not leased."""
        entry = self.ledger.leased.get(conn)
        return None if entry is None else entry.lease

    def bind(self, conn: C) -> Lease:
        """Note that a context manager will end the lease of a connection; return the lease."""
        lease = self.ledger.leased[conn].lease
        if isinstance(lease, ManualLease):
            lease.is_manual = False
        return lease

    async def acquire(self, timeout: float | None) -> C:
        """Lease a connection within `timeout` seconds; None uses the pool's own limit.

        Raises:
            PoolTimeout: no connection was available in time.
            TooManyRequests: waiting would be of no use.
            PoolClosed: the pool is closed, or was closed during the wait.
            PoolWrongLoop: the pool is open on another event loop.
        """
        entry = await self.acquire_entry(timeout, ManualLease.new())
        return entry.conn

    async def acquire_entry(self, timeout: float | None, lease: Lease) -> Entry[C]:
        """Lease a connection as `acquire` does, and return its entry."""
        if self._open_on is not get_running_loop():
            self.require_usable()
        ledger, check, now = self.ledger, self.check, self._now()
        timeout = ledger.settings.timeout if timeout is None else duration("timeout", timeout)
        deadline, arrived_at = now + timeout, None
        # A request whose check fails keeps its position before requests that arrive meanwhile.
        ticket = 0 if check is None else ledger.queue.ticket()
        while True:
            if ledger.idle:
                entry = ledger.take(now, lease)
                lease.holder = current_task()
            else:
                ticket = ticket or ledger.queue.ticket()
                # Waiter[Entry[C]](...) would look both up in typing's cache each time.
                waiter: Waiter[Entry[C]] = Waiter(ticket, now, deadline)
                waiter.task = current_task()
                if current_limits() is not NO_LIMITS:
                    apply_limits(waiter, ledger.queue.line)
                if not self.queue(waiter, timeout, arrived_at):
                    await self.refuse(waiter)
                try:
                    while waiter.waiting:
                        await waiter.wait()
                    entry = self.served(waiter, lease)
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
                    self.count_failure(error)
                    raise
            arrived_at, now = now if arrived_at is None else arrived_at, self._now()

    def is_usable(self, entry: Entry[C]) -> bool:
        """Whether a newly leased entry is usable; if not, discard it."""
        if entry.is_retired:
            self.ledger.cancel_lease(entry)
            self.store.discard(entry)
            return False
        fresh = entry.watched and entry.leased_at - entry.used_at < FRESH
        if not fresh and not self._driver.is_alive(entry.conn):
            self._reject(entry)
            return False
        return True

    def hand_over(self, entry: Entry[C]) -> bool:
        """Lease a clean connection to the first waiter; return False if it must be released."""
        now = self._now()
        if self._open_on is not running_loop() or not self.ledger.may_hand_over(entry, now):
            return False
        self._counters.note_use(now - entry.leased_at)
        return self.ledger.give_back(entry, now)

    def _close_returned(self, entry: Entry[C]) -> None:
        """Close a returned connection that must not go into service."""
        self._counters.returns_bad += not self._driver.is_alive(entry.conn)
        self.store.discard(entry)

    def _reject(self, entry: Entry[C]) -> None:
        """Undo the lease of a connection that turned out to be lost."""
        self.ledger.cancel_lease(entry)
        self.store.discard_lost(entry)

    def _end_lease(self, conn: C) -> Entry[C]:
        """End and count a lease; return its entry, whose connection may need cleaning."""
        if self.home is not running_loop() or self.home is None:
            raise self.errors.wrong_loop(self.home)
        lease, entry = self.lease_of(conn), self.ledger.take_back(conn)
        if entry is None or lease is None:
            if self.closed:
                raise self.errors.closed_in_use()
            if conn in self.orphaned:
                raise self.errors.orphaned(conn)
            what = "it belongs to another pool or was released already"
            msg = f"pool {self.runtime.name!r} has not leased {conn!r}: {what}"
            raise ReleaseError(msg)
        entry.used_at = self._now()
        wait = entry.wait_before
        if wait is not None and isinstance(sys.exception(), asyncio.CancelledError):
            number, joined_at, line = wait
            if number == entry.uses:
                queue = self.ledger.queue
                self.note_cancelled(queue, line, joined_at, len(self.ledger.leased))
        self._counters.note_use(entry.used_at - entry.leased_at, lease.is_shared)
        return entry

    def _needs_reset(self, conn: C) -> bool:
        """Whether a connection has to be reset; it need not be if it is closed after this use."""
        ledger = self.ledger
        kept = ledger.settings.keeps_idle or ledger.queue.length
        return bool(kept) and not self._driver.is_clean(conn)
