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
        """Its ledger."""
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
        self._compacted_length = 0
        """How long the line was when the departed were last dropped."""
        self._shortage: dict[SupportsLedger, int] = {}
        """How many connections each would open now, had it the room."""
        self._offering = False
        self._granted_to: SupportsLedger | None = None
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
        return bool(self._shortage)

    def _join(self, member: SupportsRefill) -> None:
        """A pool opens, on the running loop."""
        loop = asyncio.get_running_loop()
        if self._home is not loop:
            if self._members and self._home is not None and not self._home.is_closed():
                msg = "this budget is shared by pools of another event loop: give each its own"
                raise PoolWrongLoop(msg)
            # What was left on a loop that has ended is nobody's to wait for.
            self._queue.clear()
            for ledger in list(self._members):
                self._leave(ledger)
            self._home = loop
        self._members[member.ledger] = member

    def _leave(self, ledger: SupportsLedger, *, forked: bool = False) -> None:
        """A pool has ended; what it still had on its ledger counts no more."""
        if forked:
            self._shortage.clear()  # the loop is the parent's
        self._members.pop(ledger, None)
        self._shortage.pop(ledger, None)
        if self._holders.pop(ledger, None) is not None:
            self._size -= len(ledger.entries)
        if self._shortage and self._home is not None and not self._home.is_closed():
            # Not at once: this may be the collector's work, in another thread.
            self._home.call_soon_threadsafe(self._offer, context=Context())

    def _note_reserved(self, ledger: SupportsLedger) -> None:
        """A pool has reserved a place."""
        self._size += 1
        assert self._size <= self._limit, "bug: a place reserved above the budget"
        self._holders[ledger] = self._members[ledger]
        self._granted_to = None
        if self._shortage:
            ledger.oversize = True

    def _note_removed(self, ledger: SupportsLedger) -> None:
        """A pool has struck off an entry."""
        if ledger in self._holders:
            self._size -= 1
            if not ledger.entries:
                del self._holders[ledger]

    def _note_waiter(self, ledger: SupportsLedger, waiter: Waiter[Any], arrived_at: float) -> None:
        """Somebody waits in a pool's line, who has come at that instant."""
        queue = self._queue
        if not queue or queue[-1][0] <= arrived_at:
            queue.append((arrived_at, ledger, waiter))
        else:
            # It was served something unfit, and takes the place that it had.
            queue.insert(
                sum(1 for _ in takewhile(lambda each: each[0] <= arrived_at, queue)),
                (arrived_at, ledger, waiter),
            )
        if len(queue) > 2 * self._compacted_length + 128:
            self._queue = deque(each for each in queue if each[2].waiting)
            self._compacted_length = len(self._queue)

    def _room_for(self, ledger: SupportsLedger) -> int:
        """How many connections a pool may open now."""
        room = self._limit - self._size
        if room <= 0 or not self._shortage:
            return max(room, 0)
        if self._granted_to is ledger:
            return 1
        if self._granted_to is None and next(self._claims(), None) is None:
            self._clear_shortage()
            return room
        return 0

    def _set_shortage(self, ledger: SupportsLedger, number: int) -> None:
        """A pool would open so many, had it the room."""
        if number <= 0:
            if self._shortage.pop(ledger, None) and not self._shortage:
                self._clear_shortage()
            return
        if not self._shortage:
            for holder in self._holders:
                holder.oversize = True  # returns are to ask
        self._shortage[ledger] = number
        self._offer()
        self._make_room()

    def _has_shortage(self, ledger: SupportsLedger) -> bool:
        """Whether a pool would open a connection, had it the room."""
        return ledger in self._shortage

    def _offer(self) -> None:
        """Give what room there is to those who have waited longest, one after the other."""
        if self._offering:
            return
        self._offering = True
        try:
            while self._shortage and self._size < self._limit:
                ledger = next(self._claims(), None)
                if ledger is None:
                    self._clear_shortage()
                    return
                del self._shortage[ledger]  # it asks anew if it still wants
                self._granted_to = ledger
                self._members[ledger].refill()
        finally:
            self._offering, self._granted_to = False, None

    def _must_yield(self, ledger: SupportsLedger) -> bool:
        """Whether what a pool has got back is to be closed, for one who waits elsewhere."""
        coming = self._expected_room
        claims = 0
        for other, claims_it in self._scan():
            if other is ledger:
                return False
            claims += claims_it
            if claims > coming:
                return True
        if not claims:
            self._clear_shortage()
        return False

    @property
    def _expected_room(self) -> int:
        """The room that there is, and is about to be as something is closed."""
        closing = sum(ledger.closing for ledger in self._holders)
        return closing + self._limit - self._size

    def _clear_shortage(self) -> None:
        """Nobody is short of room."""
        self._shortage.clear()

    def _make_room(self) -> None:
        """Close what rests elsewhere, as far as those who wait need it."""
        while (found := self._least_used()) is not None:
            coming = self._expected_room
            if sum(1 for _ in islice(self._claims(), coming + 1)) <= coming:
                return
            member, entry = found
            member.discard(entry)

    def _least_used(self) -> tuple[SupportsRefill, Entry[Any]] | None:
        resting = (
            (member, ledger.idle[0]) for ledger, member in self._holders.items() if ledger.idle
        )
        return min(resting, key=lambda each: each[1].used_at, default=None)

    def _claims(self) -> Iterator[SupportsLedger]:
        """The pools of those who wait for room, in the order of their coming."""
        return (ledger for ledger, claims_it in self._scan() if claims_it)

    def _scan(self) -> Iterator[tuple[SupportsLedger, bool]]:
        """All who wait, in the order of their coming, and whether they wait for room.

        The first of a pool are served by the connections that it is opening.
        """
        while self._queue and not self._queue[0][2].waiting:
            self._queue.popleft()
        met: dict[SupportsLedger, int] = {}
        for _, ledger, waiter in self._queue:
            if waiter.waiting:
                number = met[ledger] = met.get(ledger, 0) + 1
                ahead = ledger.opening - ledger.late
                yield ledger, ahead < number <= ahead + self._shortage.get(ledger, 0)
