"""Periodic checks for deadlocks, forgotten connections and leases that last too long.

A deadlock is a state in which every connection is held by a task that waits for another one. A
connection is forgotten if its holder has ended and no reference to it is left. Acquire and release
do none of this work.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from asyncpool._core.driver import C
from asyncpool._core.entry import Entry
from asyncpool._core.error_factory import ErrorFactory
from asyncpool._core.ledger import Ledger
from asyncpool._core.runtime import Runtime
from asyncpool._core.timer import Timer

PAUSE = 0.25
"""Seconds between two checks while requests wait."""


@dataclass(eq=False, repr=False)
class LeaseMonitor(Generic[C]):
    """Checks the leases of one pool."""

    ledger: Ledger[C]
    runtime: Runtime
    errors: ErrorFactory
    on_leak: Callable[[Entry[C], str], None] | None
    """Called with the entry and a description when a lease lasts too long or is reclaimed."""
    is_listening: Callable[[C], bool]
    """Whether a connection must stay open without a holder, because it is being listened on."""
    take_back: Callable[[Entry[C]], None]
    """Takes back a forgotten connection."""
    _leases = 0
    """The number of leases at the last check."""

    def __post_init__(self) -> None:
        self.timer = Timer(self._check)
        """Set to the next check while requests wait."""

    def start(self) -> None:
        """Start checking every `PAUSE` seconds, as long as requests wait."""
        self._leases = self.ledger.leases
        self.timer.set(asyncio.get_running_loop().time() + PAUSE)

    def _check(self, due: float) -> None:
        """Reclaim forgotten connections; end a deadlock if nothing was leased since then."""
        ledger, before = self.ledger, self._leases
        if not ledger.queue.length:
            return
        self.start()
        self.runtime.counters.flush_times(ledger.ended_leases)
        self.reclaim()
        if self._leases == before:
            self._break_deadlock()

    def reclaim(self) -> None:
        """Take back leased connections whose holder has ended and that nothing refers to."""
        for entry in list(self.ledger.leased.values()):
            lease = entry.lease
            if isinstance(lease.holder, asyncio.Task) and lease.holder.done():
                lease.forget_task()
            # A context manager releases its connection by itself.
            bare = lease.is_manual and isinstance(lease.holder, str)
            if bare and not self.is_listening(entry.conn) and _is_unreferenced(entry):
                self._report(entry, "was never returned and is reclaimed")
                self.take_back(entry)

    def report_overdue(self) -> None:
        """Report each lease that has lasted longer than `leak_timeout`, once."""
        for entry in self.ledger.overdue(self.runtime.time()):
            self._report(entry, "has been in use for longer than leak_timeout")

    def _report(self, entry: Entry[C], what: str) -> None:
        if entry.lease.may_leak:
            entry.lease.annotate().is_reported = True
            self.runtime.counters.leaks += 1
        if self.on_leak is not None:
            try:
                self.on_leak(entry, what)
            except Exception:  # noqa: BLE001 - it is logged
                self.runtime.log_exception("leak", "the leak callback failed")

    def _break_deadlock(self) -> None:
        """Fail the last waiter if tasks that wait for another connection hold all of them.

        Only leases of context managers count: another task may release the connection of a bare
        `acquire`. Standing leases do not end, so the others decide.
        """
        ledger = self.ledger
        if len(ledger.leased) < max(ledger.size, ledger.settings.max_size):
            return
        holders: set[asyncio.Task[Any]] = set()
        for entry in ledger.leased.values():
            lease = entry.lease
            if lease.is_standing:
                continue
            if not isinstance(lease.holder, asyncio.Task) or lease.is_manual:
                return
            holders.add(lease.holder)
        found = [each for each in ledger.queue if each.task in holders]
        if found and len({each.task for each in found}) == len(holders):
            error = self.errors.deadlock(sorted(holders, key=asyncio.Task.get_name))
            ledger.queue.fail(found[-1], error)


def _references(entry: Entry[Any]) -> int:
    return sys.getrefcount(entry.conn)


def _is_unreferenced(entry: Entry[Any]) -> bool:
    """Whether only the pool refers to this leased connection."""
    return _references(entry) <= LEAST_REFERENCES


class _Sample:
    pass


def _least_references() -> int:
    """Return `_references` of a leased connection that only the pool refers to, on this Python."""
    entry: Entry[Any] = Entry(0.0)
    entry.conn = _Sample()
    leased = {entry.conn: entry}
    return _references(next(iter(leased.values())))


LEAST_REFERENCES = _least_references()
