"""What is said to a request that cannot be served, with the numbers of that moment.

Each of these makes an error, and raises none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from asyncpool._core.entry import Entry
from asyncpool._core.ledger import Ledger
from asyncpool._core.redact import redacted
from asyncpool._core.stacks import where
from asyncpool._core.store import ConnectionStore
from asyncpool.errors import (
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
    PoolUnavailable,
    PoolWrongLoop,
    TooManyRequests,
)
from asyncpool.faults import Fault


class ErrorFactory:
    """The errors of one pool.

    Args:
        ledger: the numbers.
        stock: what is known of an outage.
    """

    def __init__(self, ledger: Ledger[Any], store: ConnectionStore[Any]) -> None:
        self._ledger = ledger
        self._store = store

    def timed_out(self, timeout: float, why: str = "", what: str = "no connection") -> PoolTimeout:
        """For a request whose time is up; the last connect error is its cause."""
        ledger, now, outage = self._ledger, self._store.time(), self._store.outage
        limits, leased = ledger.settings, ledger.leased
        waiting = max(1, ledger.waiting)  # the one who is told counts
        oldest = min(leased.values(), key=_lent_at, default=None)
        longest = 0.0 if oldest is None else now - oldest.lent_at
        sizes = f"max_size={limits.bound_in_words}, size={ledger.size}, leased={len(leased)}"
        parts = [f"{what} within {timeout:g} s ({sizes}, waiting={waiting})"]
        if why:
            parts.append(why)
        if outage:
            parts.append(f"connecting has failed {outage.failures} times: {redacted(outage.error)}")
        if (budget := ledger.budget) is not None and budget.size >= budget.max_connections:
            parts.append(f"{budget.pools} pools have the budget's {budget.size} connections")
        if oldest is not None and not why:
            place = next((f", borrowed at {each}" for each in oldest.borrowed_at()), "")
            whose = f"by {oldest.holder_name}{place}"
            parts.append(f"the longest lease is {longest:.1f} s old, {whose}: see pool.explain()")
        error = PoolTimeout(
            "; ".join(parts),
            timeout=timeout,
            max_size=limits.bound,
            size=ledger.size,
            leased=len(leased),
            waiting=waiting,
            longest_lease=longest,
        )
        error.__cause__ = outage.error
        return error

    def unavailable(self) -> PoolUnavailable:
        """For a request for which there will be none; the last connect error is its cause."""
        now, outage = self._store.time(), self._store.outage
        lasts = now - outage.since
        why = "access is refused" if outage.fault is Fault.ACCESS else "connecting fails"
        said = redacted(outage.error)
        error = PoolUnavailable(
            f"no connection, and none to be had soon: {why} since {lasts:.1f} s"
            f" (failures={outage.failures}); the pool goes on trying by itself: {said}",
            max_size=self._ledger.settings.bound,
            size=self._ledger.size,
            waiting=self._ledger.waiting,
            failures=outage.failures,
            lasts=lasts,
        )
        error.__cause__ = outage.error
        return error

    def deadlock(self, holders: Sequence[asyncio.Task[Any]]) -> PoolDeadlock:
        """For a task that has one and waits for another, as all of them do."""
        size, waiting = len(self._ledger.leased), self._ledger.waiting
        found: dict[str, list[str]] = {}
        for number, task in enumerate(holders):
            name = task.get_name()
            found[f"{name} ({number})" if name in found else name] = where(task)
        places = "".join(
            f"\n  {name} waits at " + "\n    from ".join(stack) for name, stack in found.items()
        )
        return PoolDeadlock(
            f"deadlock: each task that has one of the {size} connections waits for one more"
            f" (max_size={self._ledger.settings.max_size}, waiting={waiting}): use one at a time"
            f" in a task, or raise max_size{places}",
            max_size=self._ledger.settings.max_size,
            size=self._ledger.size,
            leased=size,
            waiting=waiting,
            holders=found,
        )

    def unanswered(self, timeout: float) -> PoolTimeout:
        """For a statement that was sent, and has no answer yet."""
        return self.timed_out(timeout, "the statement was sent: it may have run", "no answer")

    def too_many(self, waiting: int) -> TooManyRequests:
        """For one more than `max_waiting`."""
        limit = self._ledger.settings.max_waiting
        msg = f"{waiting} requests wait already (max_waiting={limit}): shed load or grow"
        return TooManyRequests(msg, waiting=waiting, max_waiting=limit)

    def closed(self) -> PoolClosed:
        """For whoever wants something of a closed pool."""
        return PoolClosed(f"pool {self._ledger.settings.name!r} is closed")

    def wrong_loop(self, home: asyncio.AbstractEventLoop | None) -> PoolWrongLoop:
        """For whoever comes from another event loop than this, on which it is open."""
        if home is not None and home.is_closed():
            what = "was open on an event loop that has ended: await pool.open() on this one"
        else:
            what = (
                f"is {'not open' if home is None else 'open on another event loop'}: use it on the"
                " loop that opened it, and give each loop a pool of its own"
            )
        return PoolWrongLoop(f"pool {self._ledger.settings.name!r} {what}")

    def left_behind(self, conn: object) -> PoolWrongLoop:
        """For whoever returns what was lent on a loop that has ended."""
        what = "was lent on an event loop that has ended, and is closed: its work is lost"
        return PoolWrongLoop(f"pool {self._ledger.settings.name!r}: {conn!r} {what}")


def _lent_at(entry: Entry[Any]) -> float:
    return entry.lent_at
