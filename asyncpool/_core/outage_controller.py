"""Decides what a failed or successful connect means: whether an outage begins, lasts or ends.

It opens no connections. The store asks it when the next one may be opened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.entry import Entry, State
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage import IDLE_CAP, Outage
from asyncpool._core.redact import describe, redacted
from asyncpool._core.runtime import Runtime
from asyncpool._core.timer import Timer
from asyncpool.faults import Fault

CANCELLED_PAUSE = 0.1
"""Seconds until the next connect after one that was cancelled, but not by the pool."""


@dataclass(eq=False, repr=False)
class OutageController(Generic[C]):
    """Controls the connects of one pool while connecting fails."""

    ledger: Ledger[C]
    """Says how many connections are wanted."""
    runtime: Runtime
    outage: Outage
    """The state of the outage, if there is one."""
    retry: Timer
    """Set to the start of the next probe, or of a connect after one that was cancelled."""
    on_outage: Callable[[], Coroutine[Any, Any, None]] | None
    """Called once when connecting has failed for `reconnect_timeout` seconds."""
    classify: Callable[[BaseException], Fault | None]
    """Returns what an error means for the pool."""
    last_error: Exception | None = field(init=False, default=None)
    """The error of the last connect or ping that failed, without its traceback."""
    last_error_at = 0.0
    _cancelled_by = ""
    """The exception that ended a connect, other than the pool's own; until it is retried."""
    _probing: Entry[C] | None = field(init=False, default=None)
    """The entry of the last probe."""

    def fault_of(self, error: BaseException) -> Fault | None:
        """Return what an error means for the pool; None if it concerns only its statement."""
        try:
            return self.classify(error)
        except Exception:  # noqa: BLE001 - it is logged
            text = f"classify failed for {describe(error)}"
            self.runtime.log_exception("classify failed", text)
            return None

    def set_last_error(self, error: Exception) -> None:
        """Keep the error of a failed connect or ping for reports."""
        # Without the traceback, whose frames keep the pool alive.
        self.last_error, self.last_error_at = error.with_traceback(None), self.runtime.time()

    def connect_failed(self, error: Exception, entry: Entry[C]) -> None:
        """Record a failed connect and its outage; `Outage.retry_at` says when to try again."""
        runtime, outage, now = self.runtime, self.outage, self.runtime.time()
        runtime.counters.connects_failed += 1
        self.set_last_error(error)
        said, before = describe(error), outage.error
        cause = redacted(error) or said
        if not outage or outage.has_lapsed(entry.opened_at):
            text = f"cannot connect, will retry: {cause}"
            runtime.record("outage", text, logging.WARNING, error=said)
        elif before is None or describe(before) != said:
            runtime.record("connect failed", f"still cannot connect: {cause}", error=said)
        budget, fault = self.ledger.budget, self.fault_of(error)
        cap = IDLE_CAP if budget is None else budget._longest_pause
        outage.failed(now, error, entry.opened_at, fault, cap)
        self.ledger.keep_expired, self.ledger.filling = True, False
        lasts = now - outage.since >= self.ledger.settings.reconnect_timeout
        if lasts and not outage.reported and self.on_outage is not None:
            outage.reported = True
            runtime.tasks.spawn(self.on_outage(), "reconnect_failed")

    def connect_cancelled(self, error: BaseException, entry: Entry[C]) -> None:
        """Try again soon after a connect that was cancelled.

        Nothing is done or logged before that: the event loop may end, which cancels every task. A
        connect that was retired before is not logged at all: the pool may have cancelled it.
        """
        if self.runtime.closed:
            return
        if entry.is_retired:
            self._retry_at(self.runtime.time())
        else:
            self._cancelled_by = type(error).__name__
            self._retry_at(self.runtime.time() + CANCELLED_PAUSE)

    def report_cancelled(self) -> None:
        """Log the end of a connect that is tried again now."""
        if name := self._cancelled_by:
            self._cancelled_by = ""
            text = f"a connect was ended by {name} and is retried: the pool did not cancel it"
            self.runtime.record("connect cancelled", text, logging.WARNING, error=name)

    def may_probe(self, *, urgent: bool) -> bool:
        """Whether a connect may start now during an outage; if later, set the timer.

        There is one connect at a time, once the back-off is over.

        Args:
            urgent: whether somebody waits for a connection.
        """
        now, probe, budget = self.runtime.time(), self._probing, self.ledger.budget
        under_way = probe is not None and probe.state is State.OPENING and not probe.late
        shortage = self.ledger.shortfall()
        at = self.outage.retry_at if urgent else self.outage.idle_retry_at
        may_open = not under_way and self.ledger.wanted() > 0
        if budget is not None:
            is_short = not (under_way or may_open) and now >= at and shortage > 0
            budget._set_shortage(self.ledger, is_short)
        if under_way or not (may_open or shortage):
            return False
        if now < at:
            self._retry_at(at)
            return False
        return may_open

    def probe_started(self, entry: Entry[C]) -> None:
        """Record the connect that tests the server."""
        self._probing = entry

    def mark_healthy(self, entry: Entry[C]) -> bool:
        """Record that a connection works; return True if that has ended an outage.

        A connection that was opened before the outage began says nothing about it.
        """
        outage = self.outage
        outage.ever_worked = True
        if not outage.failures or entry.opened_at < outage.since:
            return False
        lasted, failures = self.runtime.time() - outage.since, outage.failures
        self._end()
        text = f"connected again after {lasted:.1f} s and {failures} failed connects"
        self.runtime.record(
            "outage over", text, logging.WARNING, duration=lasted, failures=failures
        )
        return True

    def forget_lapsed(self) -> None:
        """End an outage during which no connect was needed for a while."""
        if self.outage.has_lapsed(self.runtime.time()):
            self._end()
            text = "no connect was attempted since the last failure"
            self.runtime.record("outage lapsed", text)

    def is_unavailable(self) -> bool:
        """Whether waiting is useless: no connection exists and none can be opened soon.

        It is not useless while a connect that is not late is under way.
        """
        ledger = self.ledger
        if not self.outage.failures:
            return False
        if ledger.budget is not None and ledger.budget._has_shortage(ledger):
            return False
        limit = ledger.settings.fail_fast_after
        only_late = ledger.remaining == ledger.late
        return only_late and self.outage.is_unavailable(self.runtime.time(), limit)

    def _end(self) -> None:
        self.outage.end()
        self.ledger.keep_expired = False
        if not self._cancelled_by:  # else the room of that connect has yet to be offered
            self.retry.cancel()

    def _retry_at(self, at: float) -> None:
        if self.retry.at > at:
            self.retry.set(at)
