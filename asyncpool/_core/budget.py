"""One limit for the connections of several pools; decides which pool may open the next one.

It decides only between pools. It is called where a connection is opened or removed, and at each
release while a pool is short of room. Then the request that has waited longest in any pool is next.
To make room for it, the least recently used idle connection of another pool is closed, or, if there
is none, the next one that is released.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from asyncpool._core.entry import Entry
from asyncpool._core.outage import IDLE_CAP
from asyncpool._core.settings import count
from asyncpool._core.waiter import Waiter
from asyncpool.errors import PoolWrongLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from asyncpool._core.runtime import Runtime
    from asyncpool._core.settings import Settings


class SupportsLedger(Protocol):
    """The part of a pool's `Ledger` that the budget uses."""

    settings: Settings
    opening: int
    late: int
    closing: int
    idle: list[Entry[Any]]
    oversize: bool

    @property
    def entries(self) -> Collection[Entry[Any]]:
        """All entries."""
        ...

    def shortfall(self) -> int:
        """Return how many connections the waiters still need."""
        ...


class SupportsWake(Protocol):
    """The part of a pool's `Readiness` that the budget uses."""

    def wake(self) -> None:
        """Have those who wait for the first connections test again whether these are open."""
        ...


class SupportsRefill(Protocol):
    """The part of a pool's `ConnectionStore` that the budget uses."""

    runtime: Runtime

    @property
    def ledger(self) -> SupportsLedger:
        """The ledger of the pool."""
        ...

    @property
    def readiness(self) -> SupportsWake:
        """Those who wait for the first connections."""
        ...

    def refill(self) -> None:
        """Open the connections that are wanted."""
        ...

    def ask(self, question: Callable[[Any], Awaitable[object]]) -> None:
        """Run a question on a connection that is idle, or on the next to come."""
        ...

    def discard(self, entry: Entry[Any]) -> None:
        """Close an entry's connection."""
        ...


class Budget:
    """One limit for the connections of several pools: `AsyncConnectionPool(..., budget=budget)`.

    It limits the sum of the pools' sizes, as `max_size` limits each one's size. While it is used
    up, requests are served in the order of arrival, across all pools. A pool is not kept at its
    `min_size` at the expense of another pool's requests.

    Args:
        max_connections: the largest number of connections that the pools may have together.

    Raises:
        TypeError, ValueError: `max_connections` is not a whole number of at least 1.
    """

    marks: Any = None
    """Marks the sessions of the connections, for the driver; None: they have no mark."""
    _longest_pause = IDLE_CAP
    """Seconds after which a pool tries again to connect to a server that has no place."""

    def __init__(self, max_connections: int) -> None:
        self._limit = count("max_connections", max_connections)
        if not self._limit:
            msg = "max_connections must be at least 1: got 0"
            raise ValueError(msg)
        self._size = 0
        self._home: asyncio.AbstractEventLoop | None = None
        self._members: dict[SupportsLedger, SupportsRefill] = {}
        self._holders: dict[SupportsLedger, SupportsRefill] = {}
        """The members that have entries."""
        self._queue: deque[tuple[float, SupportsLedger, Waiter[Any]]] = deque()
        """All waiters, in the order of arrival; those that have left are dropped later."""
        self._compacted_length = 0
        """The length of `_queue` after waiters that have left were last dropped."""
        self._shortage: dict[SupportsLedger, int] = {}
        """The number of connections that each pool would open if there were room."""
        self._offering = False
        self._granted_to: SupportsLedger | None = None
        """The pool that may open the next connection."""

    @property
    def max_connections(self) -> int:
        """The limit."""
        return self._limit

    @property
    def size(self) -> int:
        """The number of connections of all pools, in every state."""
        return self._size

    @property
    def pools(self) -> int:
        """The number of pools that have connections."""
        return len(self._holders)

    def __repr__(self) -> str:
        return f"<Budget size={self._size}/{self._limit} pools={self.pools}>"

    def describe(self) -> str:
        """Return how much of it is used, for `explain()`."""
        return f"{self._size} of {self._limit} connections of {self.pools} pools"

    # The methods below are called by the pools.

    def _may_need_from(self, ledger: SupportsLedger) -> bool:
        """Whether a pool may have to close what is returned to it, for another or for the limit."""
        return len(self._shortage) > (ledger in self._shortage) or self._size > self._limit

    def _set_limit(self, limit: int) -> None:
        """Change the limit; what is above it is closed, the idle first, the others when returned.

        What may be opened below it is opened.
        """
        grows, self._limit = limit > self._limit, limit
        if self._size > limit:
            for holder in self._holders:
                holder.oversize = True
            self._make_room()
        elif grows:
            self._offer()
            for member in list(self._members.values()):
                member.refill()

    def _join(self, member: SupportsRefill) -> None:
        """Add a pool, which opens on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._home is not loop:
            if self._members and self._home is not None and not self._home.is_closed():
                msg = "this budget is used on another event loop: use one budget per event loop"
                raise PoolWrongLoop(msg)
            # The previous event loop has ended, and nothing on it waits any more.
            self._queue.clear()
            for ledger in list(self._members):
                self._leave(ledger)
            self._home = loop
        self._members[member.ledger] = member

    def _leave(self, ledger: SupportsLedger, *, forked: bool = False) -> None:
        """Remove a pool; entries that it still has no longer count."""
        if forked:
            self._shortage.clear()  # the event loop belongs to the parent process
        self._members.pop(ledger, None)
        self._shortage.pop(ledger, None)
        if self._holders.pop(ledger, None) is not None:
            self._size -= len(ledger.entries)
        if self._shortage and self._home is not None and not self._home.is_closed():
            # Deferred: the garbage collector may call this, in another thread.
            self._home.call_soon_threadsafe(self._offer, context=Context())

    def _note_reserved(self, ledger: SupportsLedger) -> None:
        """Count an entry that a pool has reserved."""
        self._size += 1
        assert self._size <= self._limit, "bug: a place reserved above the budget"
        self._holders[ledger] = self._members[ledger]
        self._granted_to = None
        if self._shortage:
            ledger.oversize = True

    def _note_removed(self, ledger: SupportsLedger) -> None:
        """Uncount an entry that a pool has removed."""
        if ledger in self._holders:
            self._size -= 1
            if not ledger.entries:
                del self._holders[ledger]

    def _note_waiter(self, ledger: SupportsLedger, waiter: Waiter[Any], arrived_at: float) -> None:
        """Add a waiter of a pool, whose request arrived at that instant."""
        queue, place = self._queue, (arrived_at, ledger, waiter)
        if not queue or queue[-1][0] <= arrived_at:
            queue.append(place)
        else:
            # It was served an unusable connection, and keeps its original position.
            insort(queue, place, key=itemgetter(0))
        if len(queue) > 2 * self._compacted_length + 128:
            self._queue = deque(each for each in queue if each[2].waiting)
            self._compacted_length = len(self._queue)

    def _least_for(self, ledger: SupportsLedger) -> int:
        """Return how many connections a pool opens before any request waits, if it can."""
        return ledger.settings.min_size

    def _room_for(self, ledger: SupportsLedger) -> int:
        """Return how many connections a pool may open now."""
        room = self._limit - self._size
        if room <= 0 or not self._shortage:
            return max(room, 0)
        if self._granted_to is ledger:
            return 1
        if self._granted_to is None and next(self._claims(), None) is None:
            self._shortage.clear()
            return room
        return 0

    def _set_shortage(self, ledger: SupportsLedger, number: int) -> None:
        """Store how many connections a pool would open if there were room."""
        if number <= 0:
            self._shortage.pop(ledger, None)
            return
        if ledger not in self._shortage:
            for holder in self._holders:
                if holder is not ledger:
                    holder.oversize = True  # so that each release calls `_must_yield`
        self._shortage[ledger] = number
        self._offer()
        if len(self._holders) > 1 or ledger not in self._holders:
            self._make_room()

    def _has_shortage(self, ledger: SupportsLedger) -> bool:
        """Whether a pool would open a connection if there were room."""
        return ledger in self._shortage

    def _offer(self) -> None:
        """Let pools open connections while there is room, the longest waiting request first."""
        if self._offering:
            return
        self._offering = True
        try:
            while self._shortage and self._size < self._limit:
                ledger = next(self._claims(), None)
                if ledger is None:
                    self._shortage.clear()
                    return
                del self._shortage[ledger]  # `refill` sets it again if needed
                self._granted_to = ledger
                self._members[ledger].refill()
        finally:
            self._offering, self._granted_to = False, None

    def _must_yield(self, ledger: SupportsLedger) -> bool:
        """Whether a pool must close its released connection for an earlier waiter of another."""
        coming = self._expected_room
        if coming < 0:
            return True  # the limit was lowered
        claims = 0
        for other, claims_it in self._scan():
            if other is ledger:
                return False
            claims += claims_it
            if claims > coming:
                return True
        if not claims:
            self._shortage.clear()
        return False

    @property
    def _expected_room(self) -> int:
        """The free room, including connections that are being closed; negative above the limit."""
        closing = sum(ledger.closing for ledger in self._holders)
        return closing + self._limit - self._size

    def _make_room(self) -> None:
        """Close idle connections, as many as the waiters without room need."""
        while (found := self._least_used()) is not None:
            coming = self._expected_room
            if coming >= 0 and sum(1 for _ in islice(self._claims(), coming + 1)) <= coming:
                return
            member, entry = found
            member.discard(entry)

    def _least_used(self) -> tuple[SupportsRefill, Entry[Any]] | None:
        resting = (
            (member, ledger.idle[0]) for ledger, member in self._holders.items() if ledger.idle
        )
        return min(resting, key=lambda each: each[1].used_at, default=None)

    def _claims(self) -> Iterator[SupportsLedger]:
        """The pool of each waiter that needs room, in the order of arrival."""
        return (ledger for ledger, claims_it in self._scan() if claims_it)

    def _scan(self) -> Iterator[tuple[SupportsLedger, bool]]:
        """Each waiter's pool, in the order of arrival, and whether the waiter needs room.

        The first waiters of a pool need none: its opening connections will serve them.
        """
        while self._queue and not self._queue[0][2].waiting:
            self._queue.popleft()
        met: dict[SupportsLedger, int] = {}
        for _, ledger, waiter in self._queue:
            if waiter.waiting:
                number = met[ledger] = met.get(ledger, 0) + 1
                ahead = ledger.opening - ledger.late
                yield ledger, ahead < number <= ahead + self._shortage.get(ledger, 0)
