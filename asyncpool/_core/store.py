"""The connections of a pool: it opens, pings, cleans and closes them.

It does the I/O that the ledger decides on, in background tasks. Every connection enters service
through `put` and leaves it through `discard`. Leasing is the core's part.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from asyncio import _get_running_loop as running_loop
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from random import Random
from typing import Any, Generic

import anyio

from asyncpool._core.background import BackgroundTasks
from asyncpool._core.counters import Counters
from asyncpool._core.driver import C, Driver
from asyncpool._core.entry import RETIRED, Entry, State
from asyncpool._core.events import Events, fields
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage import Outage
from asyncpool._core.redact import describe, redacted
from asyncpool._core.timer import Timer
from asyncpool.faults import Fault

WARNING = logging.WARNING
CANCELLED_PAUSE = 0.1
"""Seconds until the next connect after one that was cancelled, but not by the pool."""

logger = logging.getLogger("asyncpool")


class ConnectionStore(Generic[C]):
    """Opens and closes the connections of one pool.

    Args:
        ledger: decides what to open and close.
        driver: opens, pings, resets and closes connections.
        on_outage: called once when connecting has failed for `reconnect_timeout` seconds.
        classify: returns what an error means for the pool.
        random: the source of jitter.
    """

    def __init__(
        self,
        ledger: Ledger[C],
        driver: Driver[C],
        on_outage: Callable[[], Coroutine[Any, Any, None]] | None,
        classify: Callable[[BaseException], Fault | None],
        random: Random,
    ) -> None:
        self.ledger = ledger
        self.driver = driver
        self.tasks = BackgroundTasks(ledger.settings.name)
        self.counters = Counters()
        self.outage = Outage(random)
        self.events = Events()
        self.full = asyncio.Event()
        """Set once `min_size` connections are open at the same time."""
        self.empty = asyncio.Event()
        """Set when the last entry is removed."""
        self.closing = False
        self.healthy_when_opened = True
        """Whether a successful open shows that a connection works; else call `mark_healthy`."""
        self.time: Callable[[], float] = lambda: 0.0
        self.last_error: Exception | None = None
        """The error of the last connect or ping that failed."""
        self.last_error_at = 0.0
        self.on_failure: Callable[[Entry[C], BaseException | None, bool], None] = lambda *_: None
        """Called when a connection is lost, and for each error of a statement."""
        self.on_unavailable: Callable[[], None] = lambda: None
        """Called when waiting has become useless."""
        self._on_outage = on_outage
        self._classify = classify
        self._random = random
        self._openers: set[asyncio.Task[None]] = set()
        self.retry_timer = Timer(self._retry)
        """Set to the start of the next probe of an outage, or of a connect that was put off."""
        self._cancelled_by = ""
        """The exception that ended a connect, other than the pool's own; until it is retried."""
        self._probing: Entry[C] | None = None
        self._fill_callers = 0
        """The number of callers waiting in `fill`."""
        self._connects_succeeded = 0
        """The number of successful connects; only counted where idle connections are not kept."""

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self.ledger.settings.name

    def record(self, kind: str, text: str, level: int = logging.INFO, **facts: object) -> None:
        """Log an event and keep it for `explain()`; see `Events.record`."""
        self.events.record(self.name, self.time(), kind, text, level, facts)

    def record_error(self, kind: str, error: BaseException, level: int = logging.INFO) -> None:
        """Record that work on a connection has failed."""
        said = describe(error)
        self.record(kind, f"{kind}: {said}", level, error=said)

    def log_exception(self, kind: str, text: str) -> None:
        """Log the exception that is being handled, with its traceback."""
        logger.exception("pool %r: %s", self.name, text, extra=fields(self.name, kind))

    def count_use(self, entry: Entry[C]) -> float:
        """Count the duration of an ended lease; return the current instant."""
        entry.used_at = now = self.time()
        self.counters.use_time += now - entry.leased_at
        self.counters.use.fresh.append(now - entry.leased_at)
        return now

    def put(self, entry: Entry[C], now: float) -> None:
        """Put an entry into service; it must not be leased, and its connection must be clean."""
        if self.closing or not self.ledger.give(entry, now):
            self.discard(entry)

    def discard(self, entry: Entry[C]) -> None:
        """Take an entry out of service and close its connection; it counts until that is closed."""
        if entry.state is not State.CLOSING and entry.state is not State.CLOSED:
            self.ledger.withdraw(entry, State.CLOSING)
            entry.left_at = self.time()
            entry.retire()  # the loss of its connection need not be handled
            self.tasks.spawn(self._close(entry), "close")

    def discard_lost(self, entry: Entry[C]) -> None:
        """Discard an entry whose connection broke while not in use."""
        self.counters.lost += 1
        self.events.note(self.time(), "lost", "a connection broke while idle", logging.INFO)
        self.discard(entry)

    def refill(self) -> None:
        """Open the connections that are wanted, a limited number at once."""
        if self.closing:
            return
        if self.outage:
            self._probe()
            return
        ledger = self.ledger
        # `wanted` is called each time, because an eager task may have called `refill` meanwhile.
        at_once = ledger.settings.open_at_once
        while ledger.opening < at_once and ledger.wanted():
            self.open_one()
            if self.outage or self.closing:
                return  # the connect failed at once; its failure has scheduled the next step
        if ledger.budget is not None:
            ledger.budget._set_shortage(ledger, min(ledger.shortfall(), at_once - ledger.opening))

    def open_one(self, instead_of: Entry[C] | None = None) -> Entry[C]:
        """Start opening a connection; the limits must allow it. Then retire the other entry."""
        entry = self.ledger.reserve(self.time())
        entry.predecessor = instead_of
        self.counters.connects += 1
        try:
            task = self.tasks.spawn(_open(weakref.ref(self), self.driver, entry), "connect")
        except BaseException:
            self.remove(entry, refill=False)  # the application's task factory raised an error
            raise
        self._openers.add(task)
        task.add_done_callback(self._openers.discard, context=Context())
        ended = partial(_never_began, weakref.ref(self), entry)
        task.add_done_callback(ended, context=Context())
        if not task.done():
            self._start_late_timer(task, entry)
        return entry

    def ping(self, entry: Entry[C]) -> Coroutine[Any, Any, bool]:
        """Ping an idle connection, then put it back or discard it; return whether it answered.

        The entry leaves service at the call, before the coroutine starts.
        """
        assert entry.state is State.IDLE, "bug: only an idle connection may be pinged"
        self.ledger.withdraw(entry, State.CLEANING)
        entry.left_at = self.time()
        return self._ping(entry)

    async def clean(self, entry: Entry[C], cleanup: Callable[[], Awaitable[object]] | None) -> None:
        """Clean a released connection and put it into service, or discard it."""
        try:
            with anyio.fail_after(self.ledger.settings.clean_timeout):
                if cleanup is not None and (error := await outcome(cleanup)) is not None:
                    self.record_error("cleaning failed", error)
                if self.ledger.settings.keeps_idle or self.ledger.queue.length:
                    await self.driver.reset(entry.conn)
        except BaseException as error:
            self.discard(entry)
            if not isinstance(error, Exception):
                raise
            if self.closing:
                return
            self.record_error("reset failed", error, WARNING)
        else:
            self.put(entry, self.time())

    def connect_failed(self, error: Exception, entry: Entry[C]) -> None:
        """Record a failed connect and its outage; `retry_at` says when the next may start."""
        now = self.time()
        self.counters.connects_failed += 1
        self._set_last_error(error)
        said, before = describe(error), self.outage.error
        cause = redacted(error) or said
        if not self.outage or self.outage.has_lapsed(entry.opened_at):
            self.record("outage", f"cannot connect, will retry: {cause}", WARNING, error=said)
        elif before is None or describe(before) != said:
            self.record("connect failed", f"still cannot connect: {cause}", error=said)
        self.outage.failed(now, error, entry.opened_at, self.fault_of(error))
        self.ledger.keep_expired = True
        lasts = now - self.outage.since >= self.ledger.settings.reconnect_timeout
        if lasts and not self.outage.reported and self._on_outage is not None:
            self.outage.reported = True
            self.tasks.spawn(self._on_outage(), "reconnect_failed")

    def connect_cancelled(self, error: BaseException) -> None:
        """Try again soon after a connect that something other than the pool has ended.

        Nothing is done or logged before that: the event loop may end, which cancels every task.
        """
        if not self.closing:
            self._cancelled_by = type(error).__name__
            self._try_again_at(self.time() + CANCELLED_PAUSE)

    def _retry(self, due: float) -> None:
        """Start the connects that were put off."""
        if name := self._cancelled_by:
            self._cancelled_by = ""
            text = f"a connect was ended by {name} and is retried: the pool did not cancel it"
            self.record("connect cancelled", text, WARNING, error=name)
        self.refill()
        if self.ledger.budget is not None:
            self.ledger.budget._offer()

    def mark_healthy(self, entry: Entry[C]) -> None:
        """Record that a connection works; if it was opened since the outage began, end that."""
        outage = self.outage
        outage.ever_worked = True
        if outage.failures and entry.opened_at >= outage.since:
            lasted, failures = self.time() - outage.since, outage.failures
            self._end_outage()
            text = f"connected again after {lasted:.1f} s and {failures} failed connects"
            self.record("outage over", text, WARNING, duration=lasted, failures=failures)
            self.refill()

    def forget_lapsed_outage(self) -> None:
        """End an outage during which no connect was needed for a while."""
        if self.outage.has_lapsed(self.time()):
            self._end_outage()
            self.record("outage lapsed", "no connect was attempted since the last failure")

    def is_unavailable(self) -> bool:
        """Whether waiting is useless: no connection exists and none can be opened soon.

        It is not useless while a connect that is not late is under way.
        """
        ledger = self.ledger
        if ledger.budget is not None and ledger.budget._has_shortage(ledger):
            return False
        limit = ledger.settings.fail_fast_after
        return ledger.remaining == ledger.late and self.outage.is_unavailable(self.time(), limit)

    async def fill(self) -> bool:
        """Wait until `min_size` connections are open; return False if waiting is useless.

        Where idle connections are not kept, wait for one successful connect; at `max_size`, a
        leased connection is enough.
        """
        if not self.ledger.settings.keeps_idle:
            return await self._wait_for_connect()
        self._fill_callers += 1
        try:
            while not self.full.is_set():
                self.refill()
                if self.is_unavailable():
                    return False
                await self.full.wait()
        finally:
            self._fill_callers -= 1
        return True

    def drain(self) -> None:
        """Retire all connections; leased ones are closed when released."""
        ledger = self.ledger
        for entry in ledger.drain():
            self.discard(entry)
        if not self.closing and ledger.remaining - ledger.opening < ledger.settings.min_size:
            self.full.clear()
        self.refill()

    def flush_times(self) -> None:
        """Move the noted durations of leases and waits into their histograms."""
        ledger, counters = self.ledger, self.counters
        lent = sum(not entry.shared for entry in ledger.leased.values())
        counters.use.flush(ledger.leases - lent, counters.use_time - counters.shared_time)
        counters.wait.flush(counters.requests_queued - ledger.waiting, counters.wait_time)

    def fault_of(self, error: BaseException) -> Fault | None:
        """Return what an error means for the pool; None if it concerns only its statement."""
        try:
            return self._classify(error)
        except Exception:  # noqa: BLE001 - it is logged
            self.log_exception("classify failed", f"classify failed for {describe(error)}")
            return None

    def stop_opening(self) -> None:
        """Cancel every connect under way; each entry is removed when its task ends."""
        self.retry_timer.cancel()
        for task in self._openers:
            task.cancel()

    async def abandon(self) -> None:
        """Stop the background tasks, then close the remaining connections without waiting."""
        await self.tasks.stop(0.5)
        for entry in list(self.ledger.entries):
            if entry.state is not State.OPENING:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await outcome(partial(self.driver.close, entry.conn))
            self.remove(entry)

    def remove(self, entry: Entry[C], *, refill: bool = True) -> None:
        """Remove an entry that has no socket any more, and open another if wanted."""
        if entry.state is not State.CLOSED:
            self.ledger.remove(entry)
        if not self.ledger.entries:
            self.empty.set()
        if refill:
            self.refill()
            if self.outage.failures and self.is_unavailable():
                self.on_unavailable()
        if self.ledger.budget is not None and (refill or self.closing):
            self.ledger.budget._offer()

    def opened(self, entry: Entry[C], conn: C) -> None:
        """Put a newly opened connection into service."""
        now, limits = self.time(), self.ledger.settings
        self.counters.connect_time += now - entry.opened_at
        self.counters.connect.add(now - entry.opened_at)
        life = limits.max_lifetime * self._random.uniform(0.95, 1.0)
        # Drained while opening: the connection may have been made with outdated settings.
        expires_at = RETIRED if entry.expires_at == RETIRED else now + life
        self.ledger.opened(entry, conn, now, expires_at)
        home = asyncio.get_running_loop()
        notify = partial(_notify, weakref.ref(self), weakref.ref(entry), home)
        entry.watched = self.driver.watch(conn, notify)
        if (old := entry.predecessor) is not None:
            entry.predecessor = None
            if old.state is State.IDLE:
                self.discard(old)
        self.put(entry, now)
        if not limits.keeps_idle:
            self._connects_succeeded += 1
            self.ledger.trial_wanted = False
            self.wake_fill_callers()
        elif self.ledger.remaining - self.ledger.opening >= limits.min_size:
            self.full.set()
        if self.healthy_when_opened or entry.state is (
            State.IDLE if limits.keeps_idle else State.CLOSING
        ):
            self.mark_healthy(entry)
        self.refill()

    def wake_fill_callers(self) -> None:
        """Wake the callers of `fill`, so that they test again whether waiting is useless."""
        if not self.full.is_set():
            self.full.set()
            self.full.clear()

    async def _wait_for_connect(self) -> bool:
        ledger, before = self.ledger, self._connects_succeeded
        self._fill_callers += 1
        try:
            while self._connects_succeeded == before and not self.closing:
                if ledger.leased and ledger.size >= ledger.settings.max_size:
                    break
                ledger.trial_wanted = True
                self.refill()
                if self.is_unavailable():
                    return False
                if self._connects_succeeded == before:
                    await self.full.wait()
        finally:
            self._fill_callers -= 1
            if not self._fill_callers:
                ledger.trial_wanted = False
        return True

    def _end_outage(self) -> None:
        self.outage.end()
        self.ledger.keep_expired = False
        self.retry_timer.cancel()

    def _start_late_timer(self, connect: asyncio.Task[None], entry: Entry[C]) -> None:
        """After `late_after` seconds, stop counting on this connect, so that another may start."""
        mark, after = partial(_mark_late, weakref.ref(self), entry), self.ledger.settings.late_after
        timer = asyncio.get_running_loop().call_later(after, mark, context=Context())
        connect.add_done_callback(lambda _: timer.cancel(), context=Context())

    async def _ping(self, entry: Entry[C]) -> bool:
        began = self.time()
        try:
            with anyio.fail_after(self.ledger.settings.ping_timeout):
                await self.driver.ping(entry.conn)
        except BaseException as error:
            self.discard_lost(entry)
            if not isinstance(error, Exception):
                raise
            self._set_last_error(error)
            self.record_error("ping failed", error)
            return False
        entry.healthy_at = self.time()
        self.counters.ping.add(entry.healthy_at - began)
        if not self.driver.is_alive(entry.conn):
            self.discard_lost(entry)  # it was lost while its answer was being read
            return False
        self.put(entry, entry.healthy_at)
        return True

    def _probe(self) -> None:
        """In an outage, start one connect at a time, once the back-off is over."""
        now, probe, budget = self.time(), self._probing, self.ledger.budget
        under_way = probe is not None and probe.state is State.OPENING and not probe.late
        outage, shortfall = self.outage, self.ledger.shortfall()
        urgent = self.ledger.queue.length or self._fill_callers
        at = outage.retry_at if urgent else outage.idle_retry_at
        may_open = not under_way and self.ledger.wanted() > 0
        if budget is not None:
            is_short = not (under_way or may_open) and now >= at and shortfall > 0
            budget._set_shortage(self.ledger, is_short)
        if under_way or not (may_open or shortfall):
            return
        if now >= at:
            if may_open:
                self._probing = self.open_one()
        else:
            self._try_again_at(at)

    def _try_again_at(self, at: float) -> None:
        if self.retry_timer.at > at:
            self.retry_timer.set(at)

    def _set_last_error(self, error: Exception) -> None:
        # Without the traceback, whose frames keep the pool alive.
        self.last_error, self.last_error_at = error.with_traceback(None), self.time()

    async def _close(self, entry: Entry[C]) -> None:
        await asyncio.sleep(0)  # its last results are to be read first, where tasks start eagerly
        try:
            with anyio.move_on_after(self.ledger.settings.close_timeout):
                if (error := await outcome(partial(self.driver.close, entry.conn))) is not None:
                    self.record_error("closing failed", error)
        finally:
            self.remove(entry)


async def outcome(work: Callable[[], Awaitable[object]]) -> Exception | None:
    """Await the work; return the exception that it raised, or None."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - returned to the caller
        return error
    return None


async def _open(store: weakref.ref[ConnectionStore[C]], driver: Driver[C], entry: Entry[C]) -> None:
    # The pool is held weakly: a hanging connect must not keep a dropped pool alive.
    home = running_loop()
    try:
        conn = await driver.open()
    except BaseException as error:
        if (alive := store()) is not None:
            if isinstance(error, Exception):
                alive.connect_failed(error, entry)
            alive.remove(entry, refill=isinstance(error, Exception))
            if not isinstance(error, Exception) and running_loop() is home:
                alive.connect_cancelled(error)
        if not isinstance(error, Exception):
            # The frames hold the socket, and asyncio.run() keeps the task until it is collected.
            error.__traceback__ = None
            raise
        return
    if (alive := store()) is not None:
        alive.opened(entry, conn)
    else:
        await driver.close(conn)


def _never_began(
    store: weakref.ref[ConnectionStore[C]], entry: Entry[C], task: asyncio.Task[None]
) -> None:
    # A task that is cancelled before its first step runs none of its code.
    if entry.state is State.OPENING and (alive := store()) is not None:
        alive.remove(entry, refill=False)
        alive.connect_cancelled(asyncio.CancelledError())


def _mark_late(store: weakref.ref[ConnectionStore[C]], entry: Entry[C]) -> None:
    if (alive := store()) is not None and entry.state is State.OPENING:
        alive.ledger.mark_late(entry)
        alive.refill()


def _notify(
    store: weakref.ref[ConnectionStore[C]],
    place: weakref.ref[Entry[C]],
    home: asyncio.AbstractEventLoop,
    error: BaseException | None = None,
    *,
    lost: bool = True,
) -> None:
    # Weak references: the event loop holds this callback, and a leased connection holds its pool.
    alive, entry = store(), place()
    if alive is None or entry is None or alive.closing:
        return
    if running_loop() is home:  # else the connection outlived its event loop
        alive.on_failure(entry, error, lost)
