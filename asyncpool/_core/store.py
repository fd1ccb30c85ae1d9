"""The connections of a pool: opening them, keeping them fit, closing them.

It does the I/O that the ledger decides on, in tasks of the crew. Every connection comes into
service through `put` and leaves it through `discard`. It lends nothing out: that is the core's.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
from asyncpool._core.redact import described, redacted
from asyncpool.faults import Fault

WARNING = logging.WARNING

logger = logging.getLogger("asyncpool")


class ConnectionStore(Generic[C]):
    """What a pool has, and how it comes and goes.

    Args:
        ledger: the books.
        connector: the driver.
        on_outage: called once when connecting has failed for `reconnect_timeout` seconds.
        classify: what an error means beyond its statement.
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
        """Set once `min_size` connections were open at the same time."""
        self.empty = asyncio.Event()
        """Set when the last entry is struck off."""
        self.closing = False
        self.healthy_when_opened = True
        """Whether one that opens has thereby shown that it works; else `proved` is to be called."""
        self.time: Callable[[], float] = lambda: 0.0
        self.last_error: Exception | None = None
        """Of the last connect or ping that failed."""
        self.last_error_at = 0.0
        self.on_failure: Callable[[Entry[C], BaseException | None, bool], None] = lambda *_: None
        """What is told of a connection that is lost, and of a statement that failed."""
        self.on_unavailable: Callable[[], None] = lambda: None
        """What is told when there is no use in waiting."""
        self._on_outage = on_outage
        self._classify = classify
        self._random = random
        self._openers: set[asyncio.Task[None]] = set()
        self._retry: asyncio.Handle | None = None
        self.next_probe_at = math.inf
        """When it will try again by itself, in an outage; `math.inf`: it has no need to."""
        self._probing: Entry[C] | None = None
        self._fill_callers = 0
        """Who waits until it is full."""
        self._connects_succeeded = 0
        """How many connects have succeeded where none is kept."""

    @property
    def name(self) -> str:
        """The pool's."""
        return self.ledger.settings.name

    def record(self, kind: str, text: str, level: int = logging.INFO, **facts: object) -> None:
        """Log an event and keep it for `explain()`; see `Events.record`."""
        self.events.record(self.name, self.time(), kind, text, level, facts)

    def count_use(self, entry: Entry[C]) -> float:
        """Count for how long an entry has been lent; return the instant at which that ends."""
        entry.used_at = now = self.time()
        self.counters.use_time += now - entry.lent_at
        self.counters.use.fresh.append(now - entry.lent_at)
        return now

    def put(self, entry: Entry[C], now: float) -> None:
        """Into service, the one way: an entry that is not lent, whose connection is clean."""
        if self.closing or not self.ledger.give(entry, now):
            self.discard(entry)

    def discard(self, entry: Entry[C]) -> None:
        """Out of service, the one way; it counts until its socket is closed."""
        if entry.state is not State.CLOSING and entry.state is not State.CLOSED:
            self.ledger.withdraw(entry, State.CLOSING)
            entry.left_at = self.time()
            entry.retire()  # that it ends is no news
            self.tasks.spawn(self._close(entry), "close")

    def discard_lost(self, entry: Entry[C]) -> None:
        """Discard one that broke while nobody used it."""
        self.counters.lost += 1
        self.events.note(self.time(), "lost", "a connection broke while idle", logging.INFO)
        self.discard(entry)

    def refill(self) -> None:
        """Open as many connections as the rule says, a bounded number at once."""
        if self.closing:
            return
        if self.outage:
            self._probe()
            return
        ledger = self.ledger
        # Counted anew each time: a task that starts eagerly may be back here before the next.
        at_once = ledger.settings.open_at_once
        while ledger.opening < at_once and ledger.wanted():
            self.open_one()
            if self.outage or self.closing:
                return  # it has failed already: what comes next was seen to by that
        if ledger.budget is not None:
            ledger.budget._set_shortage(ledger, min(ledger.unmet(), at_once - ledger.opening))

    def open_one(self, instead_of: Entry[C] | None = None) -> Entry[C]:
        """Start opening a connection, for which there must be room; then retire the other one."""
        entry = self.ledger.reserve(self.time())
        entry.predecessor = instead_of
        self.counters.connects += 1
        try:
            task = self.tasks.spawn(_open(weakref.ref(self), self.driver, entry), "connect")
        except BaseException:
            self.remove(entry, refill=False)  # a task factory of the program's has failed
            raise
        self._openers.add(task)
        task.add_done_callback(self._openers.discard, context=Context())
        if not task.done():
            self._start_late_timer(task, entry)
        return entry

    def ping(self, entry: Entry[C]) -> Coroutine[Any, Any, bool]:
        """Ping an idle connection and put it back, or discard it; returns whether it answered.

        It is out of service from the call on, whenever the work may start.
        """
        assert entry.state is State.IDLE, "bug: only an idle connection may be pinged"
        self.ledger.withdraw(entry, State.CLEANING)
        entry.left_at = self.time()
        return self._ping(entry)

    async def clean(self, entry: Entry[C], first: Callable[[], Awaitable[object]] | None) -> None:
        """Make a returned connection fit for the next borrower, or discard it."""
        try:
            with anyio.fail_after(self.ledger.settings.clean_timeout):
                if first is not None and (error := await outcome(first)) is not None:
                    text = f"{described(error)} while cleaning"
                    self.record("cleaning failed", text, error=described(error))
                if self.ledger.settings.keeps_idle or self.ledger.queue.length:
                    await self.driver.reset(entry.conn)
        except BaseException as error:
            self.discard(entry)
            if not isinstance(error, Exception):
                raise
            if self.closing:
                return
            said = described(error)
            self.record("reset failed", f"reset failed, replaced: {said}", WARNING, error=said)
        else:
            self.put(entry, self.time())

    def connect_failed(self, error: Exception, entry: Entry[C]) -> None:
        """A connection could not be had: back off before the next."""
        now = self.time()
        self.counters.connects_failed += 1
        self._set_last_error(error)
        said, before = described(error), self.outage.error
        if not self.outage or self.outage.has_lapsed(entry.opened_at):
            text = f"cannot connect, will retry: {redacted(error) or said}"
            self.record("outage", text, WARNING, error=said)
        elif before is None or described(before) != said:
            text = f"cannot connect still: {redacted(error) or said}"
            self.record("connect failed", text, error=said)
        self.outage.failed(now, error, entry.opened_at, self.fault_of(error))
        self.ledger.keep_expired = True
        lasts = now - self.outage.since >= self.ledger.settings.reconnect_timeout
        if lasts and not self.outage.reported and self._on_outage is not None:
            self.outage.reported = True
            self.tasks.spawn(self._on_outage(), "reconnect_failed")

    def mark_healthy(self, entry: Entry[C]) -> None:
        """A connection is seen to work: if it is a new one, an outage is over."""
        outage = self.outage
        outage.ever_worked = True
        if outage.failures and entry.opened_at >= outage.since:
            lasted, failures = self.time() - outage.since, outage.failures
            self._forget_outage()
            text = f"connected again after {lasted:.1f} s and {failures} failed connects"
            self.record("outage over", text, WARNING, duration=lasted, failures=failures)
            self.refill()

    def forget_lapsed_outage(self) -> None:
        """Let nothing be spared, or said, for an outage of which nothing is known any more."""
        if self.outage.has_lapsed(self.time()):
            self._forget_outage()
            self.record("outage lapsed", "connecting has failed, and nobody has tried since")

    def is_unavailable(self) -> bool:
        """Whether there is no use in waiting: nothing is there, and nothing is to be had soon.

        While a connect is under way it may be the one that succeeds.
        """
        ledger = self.ledger
        if ledger.budget is not None and ledger.budget._has_shortage(ledger):
            return False
        patience = ledger.settings.fail_fast_after
        return ledger.staying == ledger.late and self.outage.is_unavailable(self.time(), patience)

    async def fill(self) -> bool:
        """Wait until `min_size` connections are there; False: there is no use in waiting.

        Where none is kept, wait until one was opened; one that is lent does where all are.
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
        """Retire every connection that there is; those lent out, on their return."""
        ledger = self.ledger
        for entry in ledger.drain():
            self.discard(entry)
        if not self.closing and ledger.staying - ledger.opening < ledger.settings.min_size:
            self.full.clear()
        self.refill()

    def sort_times(self) -> None:
        """Sort in how long connections were lent and waited for, which was only noted so far."""
        ledger, counters = self.ledger, self.counters
        lent = sum(not entry.shared for entry in ledger.leased.values())
        counters.use.flush(ledger.leases - lent, counters.use_time - counters.shared_time)
        counters.wait.flush(counters.requests_queued - ledger.waiting, counters.wait_time)

    def fault_of(self, error: BaseException) -> Fault | None:
        """What an error means; None: nothing beyond its statement."""
        try:
            return self._classify(error)
        except Exception:
            logger.exception(
                "pool %r: classify has failed of %s",
                self.name,
                described(error),
                extra=fields(self.name, "classify failed"),
            )
            return None

    def stop_opening(self) -> None:
        """Abandon every connect under way; their places come free as the tasks end."""
        self.stop_retrying()
        for task in self._openers:
            task.cancel()

    def stop_retrying(self) -> None:
        """Leave no timer behind."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry, self.next_probe_at = None, math.inf

    async def abandon(self) -> None:
        """Stop the crew, and close with no farewell what is still there."""
        await self.tasks.stop(0.5)
        for entry in list(self.ledger.entries):
            if entry.state is not State.OPENING:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await outcome(partial(self.driver.close, entry.conn))
            self.remove(entry)

    def remove(self, entry: Entry[C], *, refill: bool = True) -> None:
        """Forget an entry that has no socket any more; its place is free."""
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
        """A connect has succeeded."""
        now, limits = self.time(), self.ledger.settings
        self.counters.connect_time += now - entry.opened_at
        self.counters.connect.add(now - entry.opened_at)
        life = limits.max_lifetime * self._random.uniform(0.95, 1.0)
        # Drained while it was being opened: it may have been made with what has just changed.
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
        elif self.ledger.staying - self.ledger.opening >= limits.min_size:
            self.full.set()
        if self.healthy_when_opened or entry.state is (
            State.IDLE if limits.keeps_idle else State.CLOSING
        ):
            self.mark_healthy(entry)
        self.refill()

    def wake_fill_callers(self) -> None:
        """Wake whoever waits until it is full, though it is not."""
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

    def _forget_outage(self) -> None:
        self.outage.end()
        self.ledger.keep_expired = False
        self.stop_retrying()

    def _start_late_timer(self, connect: asyncio.Task[None], entry: Entry[C]) -> None:
        """Once a connect takes long, whoever counts on it gets another beside it."""
        patience = asyncio.get_running_loop().call_later(
            self.ledger.settings.late_after,
            _mark_late,
            weakref.ref(self),
            entry,
            context=Context(),
        )
        connect.add_done_callback(lambda _: patience.cancel(), context=Context())

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
            said = described(error)
            self.record("ping failed", f"ping failed, replaced: {said}", error=said)
            return False
        entry.healthy_at = self.time()
        self.counters.ping.add(entry.healthy_at - began)
        if not self.driver.is_alive(entry.conn):
            self.discard_lost(entry)  # it was lost together with its answer
            return False
        self.put(entry, entry.healthy_at)
        return True

    def _probe(self) -> None:
        """In an outage: one connect at a time, when its pause is over."""
        now, probe, budget = self.time(), self._probing, self.ledger.budget
        under_way = probe is not None and probe.state is State.OPENING and not probe.late
        outage, unmet = self.outage, self.ledger.unmet()
        at = (
            outage.retry_at
            if self.ledger.queue.length or self._fill_callers
            else outage.idle_retry_at
        )
        may_open = not under_way and self.ledger.wanted() > 0
        if budget is not None:
            budget._set_shortage(
                self.ledger, not (under_way or may_open) and now >= at and unmet > 0
            )
        if under_way or not (may_open or unmet):
            return
        if now >= at:
            if may_open:
                self._probing = self.open_one()
        elif self.next_probe_at > at:
            self.stop_retrying()
            self.next_probe_at = at  # not `when()`: uvloop has none where it is due this instant
            self._retry = asyncio.get_running_loop().call_at(
                at, _retry_connect, weakref.ref(self), context=Context()
            )

    def _set_last_error(self, error: Exception) -> None:
        # Without its traceback, whose frames hold the pool.
        self.last_error, self.last_error_at = error.with_traceback(None), self.time()

    async def _close(self, entry: Entry[C]) -> None:
        await asyncio.sleep(0)  # its last results are to be read first, where tasks start eagerly
        try:
            with anyio.move_on_after(self.ledger.settings.close_timeout):
                if (error := await outcome(partial(self.driver.close, entry.conn))) is not None:
                    text = f"{described(error)} while closing"
                    self.record("closing failed", text, error=described(error))
        finally:
            self.remove(entry)


async def outcome(work: Callable[[], Awaitable[object]]) -> Exception | None:
    """The exception that it ends with, as a value."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - it is the answer
        return error
    return None


async def _open(store: weakref.ref[ConnectionStore[C]], driver: Driver[C], entry: Entry[C]) -> None:
    # Holds the pool weakly: a connect that hangs must not keep a forgotten pool alive.
    try:
        conn = await driver.open()
    except BaseException as error:
        if (alive := store()) is not None:
            if isinstance(error, Exception):
                alive.connect_failed(error, entry)
            # Cancelled, it is the end of the pool or of the loop: nothing is to follow it.
            alive.remove(entry, refill=isinstance(error, Exception))
        if not isinstance(error, Exception):
            # Its frames hold the socket, and asyncio.run() holds the task until it is collected.
            error.__traceback__ = None
            raise
        return
    if (alive := store()) is not None:
        alive.opened(entry, conn)
    else:
        await driver.close(conn)


def _retry_connect(store: weakref.ref[ConnectionStore[C]]) -> None:
    if (alive := store()) is not None:
        alive.stop_retrying()
        alive.refill()


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
    # Weakly, for the watch is the event loop's, and a lent connection knows its pool.
    alive, entry = store(), place()
    if alive is None or entry is None or alive.closing:
        return
    if running_loop() is home:  # what is left over from a loop that has ended has nobody to tell
        alive.on_failure(entry, error, lost)
