"""The errors for requests that cannot be served, with the numbers of that moment.

The methods return errors; they raise none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from asyncpool._core.admission import Refusal
from asyncpool._core.entry import Entry
from asyncpool._core.label import named
from asyncpool._core.ledger import Ledger
from asyncpool._core.outage import Outage
from asyncpool._core.redact import redacted
from asyncpool._core.runtime import Runtime
from asyncpool._core.stacks import where
from asyncpool.errors import (
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
    PoolUnavailable,
    PoolWrongLoop,
    TooManyRequests,
)
from asyncpool.faults import Fault


@dataclass(eq=False, repr=False, slots=True)
class ErrorClasses:
    """The classes of a pool's errors, for pools whose errors are also those of another library."""

    closed: type[PoolClosed] = PoolClosed
    timeout: type[PoolTimeout] = PoolTimeout
    unavailable: type[PoolUnavailable] = PoolUnavailable
    deadlock: type[PoolDeadlock] = PoolDeadlock
    too_many: type[TooManyRequests] = TooManyRequests


OWN_CLASSES = ErrorClasses()
WHY = {
    "deadline": "it could not be served in time",
    "patience": "callers give up before a request could be served",
    "standing": "the wait queue has not been empty for too long",
}
"""The reason for a refusal by its rule."""
REFUSED = (
    "pool %r: %s: %s (time limit %.3g s, expected wait %.3g s, waiting=%d, leased=%d): "
    "try again in %.3g s"
)
STATEMENT = 100
"""Characters of a statement in an error."""


@dataclass(eq=False, repr=False)
class ErrorFactory:
    """Builds the errors of one pool."""

    ledger: Ledger[Any]
    """The source of the numbers."""
    outage: Outage
    """The source of connect errors."""
    runtime: Runtime
    """The clock and the pool's name."""
    classes: ErrorClasses
    last_statement: Callable[[Any], str | None]
    """Returns the last statement on a connection, if it is known."""

    def timed_out(self, timeout: float, why: str = "", what: str = "no connection") -> PoolTimeout:
        """The error at the end of a request's timeout; its cause is the last connect error."""
        ledger, now, outage = self.ledger, self.runtime.time(), self.outage
        limits, leased = ledger.settings, ledger.leased
        waiting = max(1, ledger.waiting)  # the request that gets this error counts
        passing = [each for each in leased.values() if not each.lease.is_standing]
        oldest = min(passing, key=attrgetter("leased_at"), default=None)
        longest = 0.0 if oldest is None else now - oldest.leased_at
        sizes = f"max_size={limits.max_size_text}, size={ledger.size}, leased={len(leased)}"
        parts = [f"{what} within {timeout:g} s ({sizes}, waiting={waiting})"]
        if why:
            parts.append(why)
        if outage:
            attempts = _attempts(outage.failures)
            parts.append(f"connecting has failed ({attempts}): {redacted(outage.error)}")
        if (budget := ledger.budget) is not None and budget.size >= budget.max_connections:
            parts.append(f"the budget is used up (pools={budget.pools}, connections={budget.size})")
        if standing := len(leased) - len(passing):
            parts.append(f"{standing} of the leased held by pool.listen()")
        if oldest is not None and not why:
            whose = self._held_by(oldest)
            parts.append(f"the longest lease is {longest:.1f} s old, {whose}: see pool.explain()")
        error = self.classes.timeout(
            "; ".join(parts),
            timeout=timeout,
            max_size=limits.max_size_or_zero,
            size=ledger.size,
            leased=len(leased),
            waiting=waiting,
            longest_lease=longest,
        )
        error.__cause__ = outage.error
        return error

    def _held_by(self, entry: Entry[Any]) -> str:
        """Describe a lease: whose it is, the last statement and the call site, if recorded."""
        found = f"held by {entry.lease.holder_name}"
        if not (places := entry.lease.borrowed_at()):
            return found
        if (statement := self.last_statement(entry.conn)) is not None:
            shown = statement if len(statement) <= STATEMENT else f"{statement[:STATEMENT]}..."
            found += f", last statement {shown!r}"
        return f"{found}, borrowed at {places[0]}"

    def unavailable(self) -> PoolUnavailable:
        """The error where waiting is useless; its cause is the last connect error."""
        now, outage = self.runtime.time(), self.outage
        lasts = now - outage.since
        access = outage.fault is Fault.ACCESS
        what = "access has been refused" if access else "connecting has been failing"
        last = redacted(outage.error)
        error = self.classes.unavailable(
            f"no connection available: {what} for {lasts:.1f} s ({_attempts(outage.failures)});"
            f" the pool keeps trying in the background; last error: {last}",
            max_size=self.ledger.settings.max_size_or_zero,
            size=self.ledger.size,
            waiting=self.ledger.waiting,
            failures=outage.failures,
            lasts=lasts,
        )
        error.__cause__ = outage.error
        return error

    def deadlock(self, holders: Sequence[asyncio.Task[Any]]) -> PoolDeadlock:
        """The error where every task that holds a connection waits for another one."""
        size, waiting = len(self.ledger.leased), self.ledger.waiting
        found: dict[str, list[str]] = {}
        for number, task in enumerate(holders):
            name = named(task)
            found[f"{name} ({number})" if name in found else name] = where(task)
        places = "".join(
            f"\n  {name} waits at " + "\n    from ".join(stack) for name, stack in found.items()
        )
        return self.classes.deadlock(
            "deadlock: every connection is held by a task that waits for another one"
            f" (max_size={self.ledger.settings.max_size}, leased={size}, waiting={waiting}):"
            f" use one connection at a time in each task, or raise max_size{places}",
            max_size=self.ledger.settings.max_size,
            size=self.ledger.size,
            leased=size,
            waiting=waiting,
            holders=found,
        )

    def session_deadlock(self, task: asyncio.Task[Any], why: str) -> PoolDeadlock:
        """The error where a task would wait for its own operation on its session's connection."""
        name = task.get_name()
        msg = f"deadlock in the session of {name!r}: {why}"
        return self.classes.deadlock(msg, holders={name: []})

    def unanswered(self, timeout: float) -> PoolTimeout:
        """The error for a sent statement whose answer did not arrive in time."""
        return self.timed_out(timeout, "the statement was sent and may have run", "no answer")

    def refused(
        self,
        refusal: Refusal,
        time_limit: float = 0.0,
        what: str = "overloaded",
        waiting: int | None = None,
        leased: int | None = None,
    ) -> TooManyRequests:
        """The error where waiting would be of no use.

        Args:
            refusal: why.
            time_limit: the time in seconds that the request had left.
            what: where that is.
            waiting, leased: the numbers there; None: the pool's.
        """
        ledger = self.ledger
        waiting = ledger.waiting if waiting is None else waiting
        name, limit, rule = self.runtime.name, ledger.settings.max_waiting, refusal.rule
        expected_wait, retry_after = refusal.expected_wait, refusal.retry_after
        if expected_wait is None or retry_after is None:
            who = "1 request is" if waiting == 1 else f"{waiting} requests are"
            text = f"pool {name!r}: {who} already waiting (max_waiting={limit}):"
            text += " shed load or raise it"
        else:
            leased = len(ledger.leased) if leased is None else leased
            numbers = time_limit, expected_wait, waiting, leased, retry_after
            text = REFUSED % (name, what, WHY[rule], *numbers)
        return self.classes.too_many(
            text,
            waiting=waiting,
            max_waiting=limit,
            rule=rule,
            expected_wait=expected_wait,
            retry_after=retry_after,
        )

    def not_ready(self, timeout: float, opened: str, cause: Exception | None) -> PoolTimeout:
        """The error where the pool did not open its connections in time, and was closed."""
        msg = f"pool {self.runtime.name!r} was not ready within {timeout:g} s: {opened}"
        limit = self.ledger.settings.max_size_or_zero
        error = self.classes.timeout(f"{msg}, so it was closed", timeout=timeout, max_size=limit)
        error.__cause__ = cause
        return error

    def not_connected(self, timeout: float) -> PoolTimeout:
        """The error where a connection for another event loop was not opened in time."""
        what = f"no connection for another event loop within {timeout:g} s"
        return self.classes.timeout(f"pool {self.runtime.name!r}: {what}", timeout=timeout)

    def not_open(self) -> PoolClosed:
        """The error for a use before `open()` where the first use does not open the pool."""
        return self._closed("is not open yet: use `async with pool` or await pool.open()")

    def already_closed(self) -> PoolClosed:
        """The error for any use of a closed pool."""
        return self._closed("is already closed, and cannot be reused: make a new pool")

    def closed(self) -> PoolClosed:
        """The error for a request or a session during which the pool is closed."""
        return self._closed("is closed")

    def closed_in_use(self) -> PoolClosed:
        """The error at the return of a connection that `close` has closed during its lease."""
        return self._closed("was closed while this was in use: uncommitted work is lost")

    def _closed(self, what: str) -> PoolClosed:
        return self.classes.closed(f"pool {self.runtime.name!r} {what}")

    def wrong_loop(self, home: asyncio.AbstractEventLoop | None) -> PoolWrongLoop:
        """The error on an event loop other than the one that opened the pool."""
        if home is not None and home.is_closed():
            what = "was opened on an event loop that has ended: await pool.open() on this one"
        elif home is None:
            what = "is not open yet: await pool.open() first"
        elif home.is_running():
            what = (
                "is open on another event loop: use one pool per event loop, or run this on that"
                " one with asyncio.run_coroutine_threadsafe()"
            )
        else:
            what = (
                "is open on another event loop, which is not running: use one pool per event loop,"
                " or run this on that one; a pool changes to another loop only after its own was"
                " closed"
            )
        return PoolWrongLoop(f"pool {self.runtime.name!r} {what}")

    def orphaned(self, conn: object) -> PoolWrongLoop:
        """The error for a connection leased on an event loop that has ended."""
        what = "was leased on an event loop that has ended, and is closed: uncommitted work is lost"
        return PoolWrongLoop(f"pool {self.runtime.name!r}: {conn!r} {what}")


def _attempts(number: int) -> str:
    return "1 attempt" if number == 1 else f"{number} attempts"
