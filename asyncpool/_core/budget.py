"""One limit for the connections of several pools, and who may open the next.

It decides between pools, never within one, and is asked only where a connection is to be opened or
has gone, or while a pool is short of room: then whoever has waited longest, in whichever pool, is
next. A connection that rests elsewhere is closed for it, the least recently used first; if none
does, the next that is returned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Protocol

from asyncpool._core.entry import Entry
from asyncpool._core.settings import count
from asyncpool._core.wait_queue import Waiter
from asyncpool.errors import PoolWrongLoop

if TYPE_CHECKING:
    from collections.abc import Collection


class SupportsLedger(Protocol):
    """What is to be known of a pool's ledger."""

    opening: int
    late: int
    closing: int
    idle: list[Entry[Any]]
    oversize: bool

    @property
    def entries(self) -> Collection[Entry[Any]]:
        """All of them."""
        ...


class SupportsRefill(Protocol):
    """What is needed of a pool's stock."""

    @property
    def ledger(self) -> SupportsLedger:
        """Its books."""
        ...

    def refill(self) -> None:
        """Open what is wanted and may be opened."""
        ...

    def discard(self, entry: Entry[Any]) -> None:
        """Close one."""
        ...


class Budget:
    """One limit for the connections of several pools: `AsyncConnectionPool(..., budget=budget)`.

    It holds for all of them together, in every state, as each one's `max_size` does for itself.
    While it is used up, requests are served in the order in which they came, whichever pool they
    came to. A pool's `min_size` is not kept up at the cost of another's requests.

    Args:
        max_connections: the most that the pools may have together.

    Raises:
        TypeError, ValueError: `max_connections` is no whole number from 1 up.
    """

    def __init__(self, max_connections: int) -> None:
        self._limit = count("max_connections", max_connections)
        if not self._limit:
            msg = "max_connections must be at least 1: got 0"
            raise ValueError(msg)
        self._size = 0
        self._home: asyncio.AbstractEventLoop | None = None
        self._members: dict[SupportsLedger, SupportsRefill] = {}
        self._holders: dict[SupportsLedger, SupportsRefill] = {}
        """Those with entries."""
        self._queue: deque[tuple[float, SupportsLedger, Waiter[Any]]] = deque()
        """All who wait, in the order of their coming; the departed are dropped late."""
        self._crowd = 0
        """How long the line was when the departed were last dropped."""
        self._asking: dict[SupportsLedger, int] = {}
        """How many connections each would open now, had it the room."""
        self._offering = False
        self._granted: SupportsLedger | None = None
        """Whose turn it is to open one."""

    @property
    def max_connections(self) -> int:
        """The limit."""
        return self._limit

    @property
    def size(self) -> int:
        """The connections of all the pools, in every state."""
        return self._size

    @property
    def pools(self) -> int:
        """How many pools have connections."""
        return len(self._holders)

    def __repr__(self) -> str:
        return f"<Budget size={self._size}/{self._limit} pools={self.pools}>"

    # What follows is for the pools themselves.

    @property
    def _is_short(self) -> bool:
        return bool(self._asking)

    def _join(self, member: SupportsRefill) -> None:
        """A pool opens, on the running loop."""
        loop = asyncio.get_running_loop()
        if self._home is not loop:
            if self._members and self._home is not None and not self._home.is_closed():
                msg = "this budget is shared by pools of another event loop: give each its own"
                raise PoolWrongLoop(msg)
            # What was left on a loop that has ended is nobody's to wait for.
            self._queue.clear()
            for books in list(self._members):
                self._leave(books)
            self._home = loop
        self._members[member.ledger] = member

    def _leave(self, books: SupportsLedger, *, forked: bool = False) -> None:
        """A pool has ended; what it still had on its books counts no more."""
        if forked:
            self._asking.clear()  # the loop is the parent's
        self._members.pop(books, None)
        self._asking.pop(books, None)
        if self._holders.pop(books, None) is not None:
            self._size -= len(books.entries)
        if self._asking and self._home is not None and not self._home.is_closed():
            # Not at once: this may be the collector's work, in another thread.
            self._home.call_soon_threadsafe(self._offer, context=Context())

    def _spend(self, books: SupportsLedger) -> None:
        """A pool has reserved a place."""
        self._size += 1
        assert self._size <= self._limit, "bug: a place reserved above the budget"
        self._holders[books] = self._members[books]
        self._granted = None
        if self._asking:
            books.oversize = True

    def _earn(self, books: SupportsLedger) -> None:
        """A pool has struck off an entry."""
        if books in self._holders:
            self._size -= 1
            if not books.entries:
                del self._holders[books]

    def _enrol(self, books: SupportsLedger, waiter: Waiter[Any], came: float) -> None:
        """Somebody waits in a pool's line, who has come at that instant."""
        queue = self._queue
        if not queue or queue[-1][0] <= came:
            queue.append((came, books, waiter))
        else:
            # It was served something unfit, and takes the place that it had.
            queue.insert(
                sum(1 for _ in takewhile(lambda each: each[0] <= came, queue)),
                (came, books, waiter),
            )
        if len(queue) > 2 * self._crowd + 128:
            self._queue = deque(each for each in queue if each[2].waiting)
            self._crowd = len(self._queue)

    def _room_for(self, books: SupportsLedger) -> int:
        """How many connections a pool may open now."""
        room = self._limit - self._size
        if room <= 0 or not self._asking:
            return max(room, 0)
        if self._granted is books:
            return 1
        if self._granted is None and next(self._claims(), None) is None:
            self._relent()
            return room
        return 0

    def _ask(self, books: SupportsLedger, number: int) -> None:
        """A pool would open so many, had it the room."""
        if number <= 0:
            if self._asking.pop(books, None) and not self._asking:
                self._relent()
            return
        if not self._asking:
            for holder in self._holders:
                holder.oversize = True  # returns are to ask
        self._asking[books] = number
        self._offer()
        self._make_room()

    def _is_asked_by(self, books: SupportsLedger) -> bool:
        """Whether a pool would open a connection, had it the room."""
        return books in self._asking

    def _offer(self) -> None:
        """Give what room there is to those who have waited longest, one after the other."""
        if self._offering:
            return
        self._offering = True
        try:
            while self._asking and self._size < self._limit:
                books = next(self._claims(), None)
                if books is None:
                    self._relent()
                    return
                del self._asking[books]  # it asks anew if it still wants
                self._granted = books
                self._members[books].refill()
        finally:
            self._offering, self._granted = False, None

    def _owes(self, books: SupportsLedger) -> bool:
        """Whether what a pool has got back is to be closed, for one who waits elsewhere."""
        coming = self._coming
        claims = 0
        for other, claims_it in self._scan():
            if other is books:
                return False
            claims += claims_it
            if claims > coming:
                return True
        if not claims:
            self._relent()
        return False

    @property
    def _coming(self) -> int:
        """The room that there is, and is about to be as something is closed."""
        closing = sum(books.closing for books in self._holders)
        return closing + self._limit - self._size

    def _relent(self) -> None:
        """Nobody is short of room."""
        self._asking.clear()

    def _make_room(self) -> None:
        """Close what rests elsewhere, as far as those who wait need it."""
        while (found := self._least_used()) is not None:
            coming = self._coming
            if sum(1 for _ in islice(self._claims(), coming + 1)) <= coming:
                return
            member, entry = found
            member.discard(entry)

    def _least_used(self) -> tuple[SupportsRefill, Entry[Any]] | None:
        resting = ((member, books.idle[0]) for books, member in self._holders.items() if books.idle)
        return min(resting, key=lambda each: each[1].used_at, default=None)

    def _claims(self) -> Iterator[SupportsLedger]:
        """The pools of those who wait for room, in the order of their coming."""
        return (books for books, claims_it in self._scan() if claims_it)

    def _scan(self) -> Iterator[tuple[SupportsLedger, bool]]:
        """All who wait, in the order of their coming, and whether they wait for room.

        The first of a pool are served by the connections that it is opening.
        """
        while self._queue and not self._queue[0][2].waiting:
            self._queue.popleft()
        met: dict[SupportsLedger, int] = {}
        for _, books, waiter in self._queue:
            if waiter.waiting:
                number = met[books] = met.get(books, 0) + 1
                ahead = books.opening - books.late
                yield books, ahead < number <= ahead + self._asking.get(books, 0)
