"""Requests that wait for a connection: how they join the queue, and how their wait ends.

Each wait is counted once, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
from asyncio import get_running_loop
from collections.abc import Callable
from contextvars import Context
from typing import Any, Generic, NoReturn, TypeVar

import anyio

from asyncpool._core.admission import (
    FULL,
    REMEMBERED,
    REMEMBERED_SHARE,
    RESERVED_USES,
    Decided,
    Refusal,
    judge,
    retry_after,
)
from asyncpool._core.driver import C
from asyncpool._core.entry import Entry
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.lease import Lease
from asyncpool._core.lease_monitor import LeaseMonitor
from asyncpool._core.ledger import Ledger
from asyncpool._core.lines import Flow, Line
from asyncpool._core.outage_controller import OutageController
from asyncpool._core.runtime import Phase, Runtime
from asyncpool._core.settings import UNBOUNDED
from asyncpool._core.store import ConnectionStore
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter
from asyncpool.errors import PoolTimeout, TooManyRequests

T = TypeVar("T")

NOTHING = Decided()
"""The entry of `WaitQueue.decided` for a time limit that no request had lately; never changed."""
CALM = 10.0
"""Seconds without a refusal after which the next one is recorded as a new overload."""


class Waiting(Generic[C]):
    """The waits of one pool. `Core` sets the attributes."""

    ledger: Ledger[C]
    runtime: Runtime
    store: ConnectionStore[C]
    outages: OutageController[C]
    errors: ErrorFactory
    lease_monitor: LeaseMonitor[C]
    home: asyncio.AbstractEventLoop | None
    """The event loop on which the pool was opened."""
    slow_wait: float
    """Duration in seconds from which a wait is reported to `on_slow_wait`, by its own task."""
    on_slow_wait: Callable[[float], None]
    _counts_together: bool
    """Whether a cancellation was noted in this turn of the event loop."""
    being_refused: int
    """Requests that are refused, and are counted in the next turn of the event loop."""
    refused_at: float
    """The instant of the last refusal."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.runtime.closed

    def require_usable(self) -> None:
        """Raise an error unless the pool is usable on the running event loop."""
        if self.closed:
            raise self.errors.already_closed()
        if self.home is not get_running_loop():
            raise self.errors.wrong_loop(self.home)

    def queue(self, waiter: Waiter[Entry[C]], timeout: float, arrived_at: float | None) -> bool:
        """Add a request to the wait queue; return False if it is refused: then await `refuse`.

        Args:
            waiter: its `notify` is called when it is served or failed.
            timeout: its time limit in seconds, for the error message.
            arrived_at: when the request first arrived, if it rejoins the queue; else None.

        Raises:
            PoolTimeout, PoolClosed, PoolUnavailable: as for `acquire`.
        """
        ledger, now = self.ledger, waiter.joined_at
        queue, limits = ledger.queue, ledger.settings
        try:
            if self.runtime.phase is Phase.CLOSED:
                raise self.errors.already_closed()
            if waiter.deadline <= now:
                raise self.no_time_left(waiter, timeout, "no connection")
            decided = queue.decided.get(timeout, NOTHING)
            is_judged = queue.length >= decided.room or waiter.useful_until != math.inf
            if is_judged and arrived_at is None:
                waiter.error = self._refusal_of(waiter, timeout, decided)
                if waiter.error is not None:
                    return False
            if arrived_at is not None:
                waiter.arrived_at = arrived_at
            queue.admit(waiter)
            if ledger.budget is not None:
                since = now if arrived_at is None else arrived_at
                ledger.budget._note_waiter(ledger, waiter, since)
            if self.lease_monitor.timer.at == math.inf:
                self.lease_monitor.start()
            if len(ledger.entries) < limits.max_size:
                self.store.refill()
            if waiter.waiting and self.outages.is_unavailable():
                raise self.errors.unavailable()
        except BaseException as error:
            self._leave(waiter)
            self.count_failure(error)
            raise
        # Where each request gets a connection of its own, the connect is no wait.
        waiter.queued = limits.keeps_idle or ledger.waiting > ledger.opening
        self.runtime.counters.requests_queued += waiter.queued and arrived_at is None
        return True

    async def refuse(self, waiter: Waiter[Any]) -> NoReturn:
        """Raise the error of a refused request in the next turn of the event loop, and count it.

        If it were raised in this turn, code that tries again at once would hold up the loop for
        ever.
        """
        # The error's traceback will have the waiter, and the task may keep the error.
        error, waiter.error, waiter.task = waiter.error, None, None
        assert error is not None, "bug: a request is refused without an error"
        self.being_refused += 1
        try:
            await asyncio.sleep(0)
        except BaseException as cancelled:
            self.count_failure(cancelled)
            raise
        finally:
            self.being_refused -= 1
        self.count_failure(error)
        try:
            raise error
        finally:
            del error  # its traceback has this frame

    def no_time_left(self, waiter: Waiter[Any], timeout: float, what: str) -> PoolTimeout:
        """Return the error for a request whose deadline has passed before it waits."""
        if waiter.useful_until <= waiter.joined_at and timeout > 0:
            return self.errors.timed_out(0.0, "the deadline of asyncpool.within() has passed", what)
        return self.errors.timed_out(timeout, what=what)

    def _refusal_of(
        self, waiter: Waiter[Entry[C]], timeout: float, decided: Decided
    ) -> TooManyRequests | None:
        """Return the error of a new request that may not join the queue; None: it may.

        Args:
            waiter: the request.
            timeout: its time limit.
            decided: what was decided for the last requests with this limit.
        """
        ledger, limits, now = self.ledger, self.ledger.settings, waiter.joined_at
        queue, most = ledger.queue, limits.max_waiting or math.inf
        if queue.length >= most:
            return self.refused(FULL)
        says_nothing = waiter.place is None and waiter.useful_until == math.inf
        is_known = queue.length >= decided.refused_from and now < decided.until
        if is_known and says_nothing and ledger.is_full():
            return self.refused(decided.refusal, timeout)
        (flow, ahead), refusal, left = queue.place_for(waiter), None, timeout
        room = math.isqrt(limits.max_size)
        if limits.overload is None:
            room = UNBOUNDED
        elif ahead >= room and ledger.is_full():
            queue.doubt_patience(flow.line, now)
            # A scope is looked for last, as that takes longer than all else.
            was_seen = waiter.patience_in(flow.line) != math.inf and self._see_scope(waiter)
            leased, coming = len(ledger.leased), ledger.opening
            verdict, left = self.verdict(queue, waiter, flow, ahead, leased, coming)
            if type(verdict) is int:
                room = max(room, verdict)
                if not was_seen and self._see_scope(waiter):
                    verdict, left = self.verdict(queue, waiter, flow, ahead, leased, coming)
            if isinstance(verdict, Refusal):
                refusal = verdict
        is_typical = queue.order is None and waiter.useful_until == math.inf
        if is_typical and not queue.sees_scopes and ledger.is_full():
            # Until some more have been served, this need not be worked out again.
            if len(queue.decided) == REMEMBERED:
                queue.decided.clear()
            decided = queue.decided.setdefault(timeout, Decided())
            if refusal is None:
                decided.room = int(min(room, most))
            elif queue.line.patience.limit == math.inf:
                decided.refused_from, decided.refusal = ahead, refusal
                decided.until = now + REMEMBERED_SHARE * timeout
        return None if refusal is None else self.refused(refusal, left)

    def _see_scope(self, waiter: Waiter[Entry[C]]) -> bool:
        """Note the deadline of the anyio scopes around a new waiter; return whether there is one.

        That of a scope which is being cancelled is not noted.
        """
        scope, queue = anyio.current_effective_deadline(), self.ledger.queue
        if not waiter.joined_at < scope < waiter.useful_until:
            return False
        waiter.useful_until = scope
        queue.line.may_be_late = queue.sees_scopes = True
        queue.decided.clear()
        return True

    def verdict(  # noqa: PLR0917 - the arguments of `judge`
        self,
        queue: WaitQueue[T],
        waiter: Waiter[T],
        flow: Flow[Waiter[T]],
        ahead: int,
        leased: int,
        coming: int,
    ) -> tuple[Refusal | int, float]:
        """Return what `judge` says of a new waiter, and the time that it has left."""
        left = min(waiter.deadline, waiter.useful_until) - waiter.joined_at
        verdict = judge(
            queue.rate,
            flow,
            ahead,
            left,
            waiter.joined_at,
            patience=waiter.patience_in(flow.line),
            leased=leased,
            coming=coming,
            refuses=self.ledger.settings.overload == "refuse",
        )
        return verdict, left

    def late_refusal(self, waiter: Waiter[Any], waiting: int, leased: int) -> tuple[Refusal, float]:
        """Return why a waiter could not use a connection in time, and the time that it has left."""
        line, joined_at = waiter.line, waiter.joined_at
        limit, rule = waiter.patience_in(line), "patience"
        if limit == math.inf:
            limit, rule = waiter.useful_until - joined_at, "deadline"
        expected = waiting * line.use / max(leased, 1)
        left = max(joined_at + limit - self.runtime.time(), 0.0)
        return Refusal(rule, expected, retry_after(expected, limit)), left

    def refused(self, refusal: Refusal, left: float = 0.0) -> TooManyRequests:
        """Return the error for a refusal; record the first one of an overload."""
        error, now = self.errors.refused(refusal, left), self.runtime.time()
        if now - self.refused_at > CALM:
            text = str(error).removeprefix(f"pool {self.runtime.name!r}: ")
            self.runtime.record("overload", f"refusing requests: {text}", logging.WARNING)
        self.refused_at = now
        return error

    def served(self, waiter: Waiter[Entry[C]], lease: Lease) -> Entry[C]:
        """Begin the lease of the entry that a waiter was served, or raise the waiter's error."""
        if waiter.error is not None:
            raise waiter.error
        entry, waiter.served = waiter.served, None
        assert entry is not None, "bug: a waiter woke up with neither item nor error"
        entry.lease, lease.holder = lease, waiter.task
        line = waiter.line
        entry.wait_before = entry.uses, waiter.joined_at, line
        self.end_wait(waiter, entry.leased_at)
        if line.may_be_late and waiter.waited >= waiter.patience_in(line):
            line.patience.note_served()
        return entry

    def abandon_wait(self, waiter: Waiter[Entry[C]], error: BaseException) -> None:
        """Remove a waiter whose wait ended in an error, and count the request."""
        self.end_wait(waiter, self.runtime.time())
        if isinstance(error, asyncio.CancelledError):
            queue = self.ledger.queue
            self.note_cancelled(queue, waiter.line, waiter.joined_at, len(self.ledger.leased))
        self._leave(waiter)
        self.count_failure(error)

    def note_cancelled(
        self, queue: WaitQueue[Any], line: Line[Any], joined_at: float, leased: int
    ) -> None:
        """Note that a request which had to wait was cancelled, in the queue or in its use."""
        if self._counts_together or not queue.judges:
            return
        # All that are cancelled in one turn of the event loop, as a group of tasks is, count once.
        self._counts_together = True
        get_running_loop().call_soon(self._count_again, context=Context())
        now, served = self.runtime.time(), queue.rate.count
        rate = queue.rate.measure(now - joined_at, now)
        if rate * (now - joined_at) <= (RESERVED_USES + 1) * max(leased, 1):
            return  # refusing would not help such callers, or the duration of a use is not known
        oldest = now - queue.oldest(line)
        line.patience.note_cancelled(joined_at, now, served=served, oldest=oldest)
        if line.patience.limit != math.inf:
            line.may_be_late = True
            queue.decided.clear()

    def _count_again(self) -> None:
        self._counts_together = False

    def end_wait(self, waiter: Waiter[Entry[C]], now: float) -> None:
        """Note the duration of a wait, however it has ended."""
        waiter.task = None
        waiter.waited = now - waiter.joined_at
        if waiter.queued:
            self.runtime.counters.note_wait(waiter.waited)

    def report_wait(self, waited: float) -> None:
        """Report a wait to `on_slow_wait` if it was long."""
        if waited >= self.slow_wait:
            try:
                self.on_slow_wait(waited)
            except Exception:  # noqa: BLE001 - it is logged
                self.runtime.log_exception("slow wait", "the on_slow_wait callback failed")

    def _leave(self, waiter: Waiter[Entry[C]]) -> None:
        """Remove a waiter, and pass on an entry that it was served already."""
        entry = self.ledger.queue.leave(waiter)
        ended = self.home is None or self.home.is_closed()
        if entry is not None and not ended:
            self.ledger.cancel_lease(entry)
            if self.ledger.take_back(entry.conn) is not None:
                self.store.put(entry, self.runtime.time())

    def count_failure(self, error: BaseException) -> None:
        """Count a request that was not served."""
        counters = self.runtime.counters
        if isinstance(error, asyncio.CancelledError):
            counters.requests_cancelled += 1
        else:
            counters.requests_failed += 1
            if isinstance(error, TooManyRequests):
                name = f"refused_{error.rule}"
                setattr(counters, name, getattr(counters, name) + 1)
            else:
                counters.requests_timed_out += isinstance(error, PoolTimeout)
