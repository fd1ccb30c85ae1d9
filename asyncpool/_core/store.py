"""The connections of a pool: it opens, pings, cleans and closes them.

It does the I/O that the ledger decides on, in background tasks. Every connection that was opened,
pinged or cleaned enters service through `put`, and all leave it through `discard`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

import anyio

from asyncpool._core.background import outcome
from asyncpool._core.driver import C, Driver
from asyncpool._core.entry import RETIRED, Entry, State
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.readiness import Readiness
from asyncpool._core.runtime import Phase, Runtime
from asyncpool._core.store_tasks import notify, open_connection, work_ended
from asyncpool._core.timer import Timer

T = TypeVar("T")

NO_TASK_PAUSE = 1.0
"""Seconds after which an entry is closed for which no task could be made."""


@dataclass(eq=False, repr=False)
class ConnectionStore(Generic[C]):
    """Opens and closes the connections of one pool."""

    ledger: Ledger[C]
    """Decides what to open and close."""
    driver: Driver[C]
    runtime: Runtime
    outages: OutageController[C]
    """Decides when to connect during an outage."""
    errors: ErrorFactory
    """Makes the error for requests whose wait has become useless."""
    random: Random
    """The source of jitter."""
    healthy_when_opened: bool
    """Whether a successful open shows that a connection works; if not, call `mark_healthy`."""
    on_failure: Callable[[Entry[C], BaseException | None, bool], None] = field(init=False)
    """Called when a connection is lost, and for each error of a statement."""
    empty: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set when the last entry is removed."""
    _works: dict[Entry[C], Coroutine[Any, Any, object]] = field(init=False, default_factory=dict)
    """The coroutine of the last background task for each entry, until that task has ended."""

    def __post_init__(self) -> None:
        self.readiness = Readiness(self.ledger, self.runtime, self.outages, self.refill)
        """The callers that wait until the connections are open."""
        self.late = Timer(self._mark_late)
        """Set when a connect begins, for the first that may be late; not for each, to be cheap."""

    def put(self, entry: Entry[C], now: float) -> None:
        """Put an entry into service; it must not be leased, and its connection must be clean."""
        if self.runtime.closed or not self.ledger.give(entry, now):
            self.discard(entry)

    def discard(self, entry: Entry[C]) -> None:
        """Take an entry out of service and close its connection; it counts until that is closed."""
        if entry.state is not State.CLOSING and entry.state is not State.CLOSED:
            self.ledger.withdraw(entry, State.CLOSING)
            entry.left_at = self.runtime.time()
            entry.retire()  # the loss of its connection need not be handled
            self.close(entry)

    def close(self, entry: Entry[C]) -> None:
        """Start to close the connection of an entry that is out of service."""
        self.spawn(entry, self._close(entry), "close")

    def discard_lost(self, entry: Entry[C]) -> None:
        """Discard an entry whose connection broke while not in use, or failed its check."""
        self.runtime.counters.lost += 1
        text = "a connection was lost while not in use, or failed its check"
        self.runtime.events.note(self.runtime.time(), "lost", text, logging.INFO)
        self.discard(entry)

    def refill(self) -> None:
        """Open the connections that are wanted, a limited number at once, if the pool is open."""
        if self.runtime.phase is not Phase.OPEN:
            return
        if self.outages.outage:
            if self.outages.may_probe(urgent=bool(self.ledger.waiting or self.readiness.callers)):
                self.outages.probe_started(self.open_one())
            return
        ledger = self.ledger
        # `wanted` is called each time, because an eager task may have called `refill` meanwhile.
        while ledger.opening < ledger.at_once and ledger.wanted():
            self.open_one()
            if self.outages.outage or self.runtime.closed:
                return  # the connect failed at once; its failure has scheduled the next step
        if ledger.budget is not None:
            room = ledger.at_once - ledger.opening
            ledger.budget._set_shortage(ledger, min(ledger.shortfall(), room))

    def open_one(self, instead_of: Entry[C] | None = None) -> Entry[C]:
        """Start opening a connection; the limits must allow it. Then retire the other entry."""
        entry = self.ledger.reserve(self.runtime.time())
        entry.predecessor = instead_of
        self.runtime.counters.connects += 1
        entry.number = self.runtime.counters.connects
        try:
            self.spawn(entry, open_connection(weakref.ref(self), self.driver, entry), "connect")
        except BaseException:
            self.remove(entry, refill=False)
            raise
        if self.late.at == math.inf:
            self.late.set(entry.opened_at + self.ledger.settings.late_after)
        return entry

    def spawn(self, entry: Entry[C], work: Coroutine[Any, Any, T], job: str) -> asyncio.Task[T]:
        """Start a background task that brings an entry into service or out of the pool.

        If other code cancels the task before it has done so, the connection is closed. So it is,
        somewhat later, if the application's task factory raises an error, which the caller gets.
        """
        self._works[entry] = work
        ended = partial(work_ended, weakref.ref(self), entry, work)
        try:
            return self.runtime.tasks.spawn(work, job, ended=ended)
        except BaseException:
            if entry.state is not State.OPENING:  # else `open_one` removes it
                asyncio.get_running_loop().call_later(NO_TASK_PAUSE, ended, context=Context())
            raise

    def ping(
        self, entry: Entry[C], then: Callable[[bool], object] = bool
    ) -> Coroutine[Any, Any, bool]:
        """Ping an idle connection, then put it back or discard it; return whether it answered.

        The entry leaves service at the call, before the coroutine starts. `then` gets the answer.
        """
        assert entry.state is State.IDLE, "bug: only an idle connection may be pinged"
        self._works.pop(entry, None)
        self.ledger.withdraw(entry, State.CLEANING)
        entry.left_at = self.runtime.time()
        return self._ping(entry, self.driver.ping, then)

    def ask(self, question: Callable[[C], Awaitable[object]]) -> None:
        """Run a question on an idle connection, the least recently used, or the next to come.

        It is run like a ping: it has `ping_timeout` seconds, is no use of the connection, and if it
        raises, the connection is discarded.
        """
        if self.ledger.idle:
            self._ask(question, self.ledger.idle[0])
        else:
            self.ledger.take_next(partial(self._ask, question))

    async def clean(self, entry: Entry[C], cleanup: Callable[[], Awaitable[object]] | None) -> None:
        """Clean a released connection and put it into service, or discard it."""
        try:
            with anyio.fail_after(self.ledger.settings.clean_timeout):
                if cleanup is not None and (error := await outcome(cleanup)) is not None:
                    self.runtime.record_error("cleaning failed", error)
                if self.ledger.settings.keeps_idle or self.ledger.queue.length:
                    await self.driver.reset(entry.conn)
        except BaseException as error:
            self.discard(entry)
            if not isinstance(error, Exception):
                raise
            if self.runtime.closed:
                return
            self.runtime.record_error("reset failed", error, logging.WARNING)
        else:
            self.put(entry, self.runtime.time())

    def mark_healthy(self, entry: Entry[C]) -> None:
        """Record that a connection works, which may end an outage."""
        if self.outages.mark_healthy(entry):
            self.refill()

    def drain(self) -> None:
        """Retire all connections; leased ones are closed when released."""
        ledger = self.ledger
        for entry in ledger.drain():
            self.discard(entry)
        self.refill()

    def stop_opening(self) -> None:
        """Cancel every connect under way; each entry is removed when its task ends."""
        self.outages.retry.cancel()
        self.late.cancel()
        for task in self.runtime.tasks.running("connect"):
            task.cancel()

    async def abandon(self) -> None:
        """Stop the background tasks, then close the remaining connections without waiting."""
        await self.runtime.tasks.stop(0.5)
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
            if self.outages.is_unavailable():
                self.ledger.queue.fail_all(self.errors.unavailable)
                self.readiness.wake()
        if self.ledger.budget is not None and (refill or self.runtime.closed):
            self.ledger.budget._offer()

    def opened(self, entry: Entry[C], conn: C) -> None:
        """Put a newly opened connection into service."""
        now, limits = self.runtime.time(), self.ledger.settings
        self.runtime.counters.connect_time += now - entry.opened_at
        self.runtime.counters.connect.add(now - entry.opened_at)
        life = limits.max_lifetime * self.random.uniform(0.95, 1.0)
        # Drained while opening: the connection may have been made with outdated settings.
        expires_at = RETIRED if entry.is_retired else now + life
        self.ledger.opened(entry, conn, now, expires_at)
        home = asyncio.get_running_loop()
        on_change = partial(notify, weakref.ref(self), weakref.ref(entry), home)
        entry.watched = self.driver.watch(conn, on_change)
        if (old := entry.predecessor) is not None:
            entry.predecessor = None
            if old.state is State.IDLE:
                self.discard(old)
        self.put(entry, now)
        self.readiness.note_connect()
        self._mark_unleased(entry)
        self.refill()

    def _mark_unleased(self, entry: Entry[C]) -> None:
        """Record that a new connection works, unless the user's check will say whether it does."""
        unleased = State.IDLE if self.ledger.settings.keeps_idle else State.CLOSING
        if self.healthy_when_opened or entry.state is unleased:
            self.mark_healthy(entry)

    def _mark_late(self, due: float) -> None:
        """Stop counting on connects that take `late_after` seconds, so that others may start."""
        ledger, after, following = self.ledger, self.ledger.settings.late_after, math.inf
        for entry in ledger.entries:
            if entry.state is State.OPENING and not entry.late:
                if entry.opened_at + after <= due:
                    ledger.mark_late(entry)
                else:
                    following = min(following, entry.opened_at + after)
        if following != math.inf:
            self.late.set(following)
        self.refill()

    def _ask(self, question: Callable[[C], Awaitable[object]], entry: Entry[C]) -> None:
        self.ledger.withdraw(entry, State.CLEANING)
        entry.left_at = self.runtime.time()
        self.spawn(entry, self._ping(entry, question, partial(self._answered, entry)), "ask")

    def _answered(self, entry: Entry[C], answered: bool) -> None:
        if answered:
            self._mark_unleased(entry)

    async def _ping(
        self,
        entry: Entry[C],
        ping: Callable[[C], Awaitable[object]],
        then: Callable[[bool], object],
    ) -> bool:
        answered = await self._is_answered(entry, ping)
        then(answered)
        return answered

    async def _is_answered(self, entry: Entry[C], ping: Callable[[C], Awaitable[object]]) -> bool:
        began = self.runtime.time()
        try:
            with anyio.fail_after(self.ledger.settings.ping_timeout):
                await ping(entry.conn)
        except BaseException as error:
            self.discard_lost(entry)
            if not isinstance(error, Exception):
                raise
            self.outages.set_last_error(error)
            self.runtime.record_error("ping failed", error)
            return False
        entry.healthy_at = self.runtime.time()
        if ping == self.driver.ping:
            self.runtime.counters.ping.add(entry.healthy_at - began)
        if not self.driver.is_alive(entry.conn):
            self.discard_lost(entry)  # it was lost while its answer was being read
            return False
        self.put(entry, entry.healthy_at)
        return True

    async def _close(self, entry: Entry[C]) -> None:
        await asyncio.sleep(0)  # its last results are to be read first, where tasks start eagerly
        try:
            with anyio.move_on_after(self.ledger.settings.close_timeout):
                if (error := await outcome(partial(self.driver.close, entry.conn))) is not None:
                    self.runtime.record_error("closing failed", error)
        finally:
            self.remove(entry)
