"""Which connections exist, who holds them, who waits: every decision, none of the I/O.

It starts no tasks. The core calls it, then acts on the answer. Five laws hold between calls:

1. Idle connections and waiters are never both present.
2. The size is `len(entries)`, counted from the reservation until the server has closed its side.
3. No method awaits.
4. One rule, `wanted`, decides how many connections to open.
5. Every entry enters service through `give` or `give_back`, and leaves the ledger through `remove`.
"""

from __future__ import annotations

import math
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Generic

from asyncpool._core.budget import Budget
from asyncpool._core.driver import C
from asyncpool._core.entry import Entry, State
from asyncpool._core.lease import NO_LEASE, SHARED_LEASE, Lease, StandingLease
from asyncpool._core.settings import Settings
from asyncpool._core.wait_queue import WaitQueue
from asyncpool._core.waiter import Waiter

IDLE = State.IDLE
LEASED = State.LEASED


class Ledger(Generic[C]):
    """The records of one pool: its entries, leases and waiters."""

    def __init__(
        self,
        settings: Settings,
        overdue: Callable[[Waiter[Entry[C]], bool], BaseException],
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.budget = budget
        """The limit shared with other pools, if any."""
        self.entries: set[Entry[C]] = set()
        self.idle: list[Entry[C]] = []
        """A stack of idle entries, the most recently used last; unused ones stay at the bottom."""
        self.leased: dict[C, Entry[C]] = {}
        self.queue: WaitQueue[Entry[C]] = WaitQueue(overdue, clock)
        self.queue.judges = settings.overload is not None
        self.opening = 0
        self.late = 0
        """Opening entries that take so long that `wanted` no longer counts on them."""
        self.closing = 0
        self.filling = False
        """Whether a new or resized pool opens its `min_size`; ends when a connect fails."""
        self._other_leases = 0
        """The leases of removed entries, less all shared ones, whose one-shots are counted."""
        self.keep_expired = False
        """Whether expired connections are kept, because an outage prevents replacing them."""
        self.oversize = False
        """Whether returned connections may have to be closed: after a resize or for the budget."""
        self.trial_wanted = False
        """Whether a caller waits for one successful connect without needing the connection."""
        self._taker: Callable[[Entry[C]], object] | None = None
        """Gets the next clean entry in place of whoever would get it."""

    @property
    def size(self) -> int:
        """The number of entries, in every state."""
        return len(self.entries)

    @property
    def waiting(self) -> int:
        """The number of waiters."""
        return self.queue.length

    @property
    def at_once(self) -> int:
        """The largest number of connects that may be under way."""
        limits = self.settings
        if not self.filling:
            return limits.open_at_once
        return max(limits.open_at_once, min(limits.min_size, limits.fill_at_once))

    @property
    def remaining(self) -> int:
        """The size without entries that are being closed."""
        return len(self.entries) - self.closing

    @property
    def has_min_size(self) -> bool:
        """Whether `min_size` connections are open, or those that the budget allows."""
        least = self.settings.min_size if self.budget is None else self.budget._least_for(self)
        return self.remaining - self.opening >= least

    @property
    def leases(self) -> int:
        """The number of times a connection was leased to a single request."""
        return self._other_leases + sum(entry.uses for entry in self.entries)

    @property
    def ended_leases(self) -> int:
        """The part of `leases` that has ended."""
        return self.leases - sum(not entry.lease.is_shared for entry in self.leased.values())

    def reserve(self, now: float) -> Entry[C]:
        """Create an entry for a connection that is about to be opened."""
        assert len(self.entries) < self.settings.max_size, "bug: a place reserved above max_size"
        entry: Entry[C] = Entry(now)
        self.entries.add(entry)
        self.opening += 1
        self.queue.decided.clear()
        if self.budget is not None:
            self.budget._note_reserved(self)
        return entry

    def opened(self, entry: Entry[C], conn: C, now: float, expires_at: float) -> None:
        """Store the new connection of a reserved entry; it is not in service yet."""
        self.withdraw(entry, State.CLEANING)
        entry.conn = conn
        entry.opened_at = entry.used_at = entry.healthy_at = now
        entry.expires_at = expires_at
        self.filling &= not self.has_min_size

    def mark_late(self, entry: Entry[C]) -> None:
        """Stop counting on an opening entry; its connect continues."""
        assert entry.state is State.OPENING, "bug: only a connect can be late"
        entry.late = True
        self.late += 1

    def take(self, now: float, lease: Lease) -> Entry[C]:
        """Lease the most recently used idle connection; there must be one."""
        entry = self.idle.pop()
        entry.state = LEASED
        entry.lease = lease
        entry.leased_at = now
        entry.uses += 1
        self.leased[entry.conn] = entry
        return entry

    def give_back(self, entry: Entry[C], now: float) -> bool:
        """Put a clean leased entry into service, as `give` does.

        Its lease ends; if requests wait, that of the first one begins.
        """
        entry.used_at = now
        entry.lease = NO_LEASE
        if entry.expires_at <= now or self.oversize:
            del self.leased[entry.conn]
            return self.give(entry, now)
        if self.queue.length:
            entry.leased_at = now
            entry.uses += 1
            return self.queue.serve(entry)
        del self.leased[entry.conn]
        if not self.settings.keeps_idle:
            return False
        entry.state = IDLE
        self.idle.append(entry)
        return True

    def may_hand_over(self, entry: Entry[C], now: float) -> bool:
        """Whether the connection of a leased entry may serve further requests."""
        return entry.expires_at > now and not self.oversize

    def give(self, entry: Entry[C], now: float) -> bool:
        """Put an entry into service: hand it to the first waiter, or make it idle.

        Returns:
            False if the entry must be closed: it has expired, is above a limit, or idle
            connections are not kept.
        """
        if entry.expires_at <= now and self._must_close(entry):
            return False
        if self.oversize:
            taker = self._taker
            # With neither idle connections nor waiters, `clean` skips the reset: then only a
            # connection that was never leased may be kept.
            if taker is not None and (
                self.settings.keeps_idle or self.queue.length or not entry.uses
            ):
                self._taker = None
                taker(entry)
                return True
            if self._is_over_limit():
                return False
        if self.queue.length:
            self._lease(entry, now)
            return self.queue.serve(entry)
        if not self.settings.keeps_idle:
            return False
        entry.state = IDLE
        if entry.used_at < now:
            insort(self.idle, entry, key=attrgetter("used_at"))
        else:
            self.idle.append(entry)
        return True

    def take_next(self, taker: Callable[[Entry[C]], object]) -> None:
        """Call `taker` with the next entry to enter service, instead; it must `withdraw` it."""
        self._taker, self.oversize = taker, True

    def take_back(self, conn: C) -> Entry[C] | None:
        """End the lease of a connection; return None if this pool has not leased it."""
        entry = self.leased.get(conn)
        if entry is not None:
            self.withdraw(entry, State.CLEANING)
        return entry

    def share(self, entry: Entry[C]) -> None:
        """Make the lease of an entry one that several requests share."""
        entry.lease = SHARED_LEASE
        self._other_leases -= 1

    def make_standing(self, entry: Entry[C]) -> Lease:
        """Make the lease of an entry one that is meant to last, for the same holder."""
        lease = StandingLease.new()
        lease.holder, entry.lease = entry.lease.holder, lease
        self._other_leases -= 1
        return lease

    def cancel_lease(self, entry: Entry[C]) -> None:
        """Uncount a lease that served no request; the entry may be closed already."""
        entry.wait_before = None
        if entry.state is State.CLOSED:
            self._other_leases -= 1
        else:
            entry.uses -= 1

    def resize(self, min_size: int, max_size: int) -> list[Entry[C]]:
        """Set new sizes; return the idle entries above `max_size`."""
        self.settings = replace(self.settings, min_size=min_size, max_size=max_size)
        self._is_over_limit()
        self.queue.decided.clear()
        self.filling = not self.has_min_size
        return self.idle[: max(0, self.remaining - max_size)]

    def drain(self, before: float = math.inf) -> list[Entry[C]]:
        """Retire the connections opened until that instant; return the idle ones.

        One that is still opening now, and began by that instant, is retired too.
        """
        for entry in self.entries:
            if entry.opened_at <= before:
                entry.retire()
        return [entry for entry in self.idle if entry.opened_at <= before]

    def withdraw(self, entry: Entry[C], state: State) -> None:
        """Take an entry out of service, from whichever state, and set its new state."""
        if entry.state is IDLE:
            self.idle.remove(entry)
        elif entry.state is LEASED:
            self.leased.pop(entry.conn, None)
            entry.lease = NO_LEASE
        elif entry.state is State.OPENING:
            self.opening -= 1
            self.late -= entry.late
        elif entry.state is State.CLOSING:
            self.closing -= 1
        if state is State.CLOSING:
            self.closing += 1
        entry.state = state

    def remove(self, entry: Entry[C]) -> None:
        """Remove an entry whose connection is closed or could not be opened."""
        self.withdraw(entry, State.CLOSED)
        self.entries.remove(entry)
        self._other_leases += entry.uses
        if self.budget is not None:
            self.budget._note_removed(self)

    def wanted(self) -> int:
        """Return how many connections to open now, by the one rule."""
        size = len(self.entries)
        limits = self.settings
        asked = self.queue.demand + self.trial_wanted - (self.opening - self.late)
        need = max(limits.min_size - size, asked)
        need = min(limits.max_size - size, need)
        if need > 0 and self.budget is not None:
            need = min(need, self.budget._room_for(self))
        return max(0, need)

    def is_full(self) -> bool:
        """Whether the limits allow no further connection."""
        is_at_limit = len(self.entries) >= self.settings.max_size
        return is_at_limit or (self.budget is not None and not self.budget._room_for(self))

    def shortfall(self) -> int:
        """Return how many connections the waiters still need, ignoring the budget's limit."""
        need = self.queue.demand - (self.opening - self.late)
        return max(0, min(self.settings.max_size - len(self.entries), need))

    def surplus(self, now: float) -> list[Entry[C]]:
        """Idle entries above `min_size` that were not used for `max_idle`, oldest first."""
        if self.keep_expired:
            return []
        latest = now - self.settings.max_idle
        due = [entry for entry in self.idle if entry.used_at <= latest]
        return due[: max(0, self.remaining - self.settings.min_size)]

    def expired(self, now: float) -> list[Entry[C]]:
        """Idle entries that have expired and are not being replaced."""
        replaced = {entry.predecessor for entry in self.entries}
        return [
            each
            for each in self.idle
            if each.expires_at <= now and each not in replaced and self._must_close(each)
        ]

    def ping_due(self, now: float) -> list[Entry[C]]:
        """Idle entries not used or pinged for `ping_interval`, least recently used first."""
        latest = now - self.settings.ping_interval
        return [entry for entry in self.idle if max(entry.used_at, entry.healthy_at) <= latest]

    def overdue(self, now: float) -> list[Entry[C]]:
        """Entries leased for longer than `leak_timeout` and not reported yet."""
        latest = now - self.settings.leak_timeout
        return [
            entry
            for entry in self.leased.values()
            if entry.leased_at <= latest and entry.lease.may_leak
        ]

    def _lease(self, entry: Entry[C], now: float) -> None:
        entry.state = LEASED
        entry.leased_at = now
        entry.uses += 1
        self.leased[entry.conn] = entry

    def _must_close(self, entry: Entry[C]) -> bool:
        """Whether an expired entry has to be closed now."""
        return not self.keep_expired or entry.is_retired

    def _is_over_limit(self) -> bool:
        """Whether the next returned connection has to be closed; updates `oversize`."""
        too_many = self.remaining > self.settings.max_size
        is_needed = self.budget is not None and self.budget._may_need_from(self)
        self.oversize = too_many or is_needed or self._taker is not None
        return too_many or (
            self.oversize and self.budget is not None and self.budget._must_yield(self)
        )
