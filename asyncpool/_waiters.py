"""The line: tasks that wait for a connection, served strictly in the order of their coming.

It decides who is next and whose time is up. It knows no connection and opens nothing: what it hands
over is whatever the ledger gives it.

Why hand-over
    The usual recipe for a condition variable is "set a flag, notify one, and let whoever wakes up
    first look for work". Between the notice and the wake-up a newcomer can take the connection
    (asyncpg #1247, bb8 #243), so nobody can promise an order. Here the releaser decides: it takes
    the head out of the line, writes the connection into its `Waiter`, and then wakes it. From that
    moment on the connection is the waiter's, whether or not its task has run yet; the wake-up only
    carries the news. If the waiter turns out to be cancelled, its own `leave` finds what it was
    handed, and the pool gives it to the next. Nothing has to be guessed from who woke up.

Why one lock, and a Condition for each waiter
    `asyncio.Condition.notify()` wakes the oldest waiter of that Condition whose future is still
    pending. With a Condition for the whole line that would nearly be the head, but only nearly: the
    head may have been cancelled in this very turn of the loop, and then the notice goes to a task
    that was handed nothing while the one that was handed the connection sleeps on. So each waiter
    has a Condition to itself and a notice cannot reach the wrong task. That also makes a hand-over
    and a departure O(1): a shared Condition searches its queue for both.

    All Conditions share one lock, because what they guard is one thing, the line. Under the lock
    nothing is awaited but the Condition, which lets go of it while it waits. So no task ever finds
    the lock taken, taking it never suspends, and there is no await in a hand-over at which a
    cancellation could come between the decision and the notice. `Gate` is that lock with the fact
    made plain: taking it is an ordinary call, which timers and callbacks can make too, and finding
    it taken is a bug. It also saves two coroutines a hand-over.

The CPython bug
    Until 3.12.2 (and in every 3.11) a notice was lost when the task it woke was cancelled before it
    could run: the notice was spent, and nobody passed it on (python/cpython#112202). A pool built
    on notices alone stops there with an idle connection and a full line. Here a notice is never the
    only record of anything: a waiter that leaves for whatever reason gives back what it holds.

Deadlines
    One timer serves the whole line; a timer for each waiter would cost more than the hand-over. It
    is set to the earliest deadline there was when it was set. Departures do not touch it: when it
    rings for somebody who has left, it is set anew. The deadlines are a heap from which the
    departed are dropped late, and at the latest when they outnumber those who wait. With one
    timeout for all, the common case, a push onto the heap is O(1): each deadline is the latest.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from itertools import count, takewhile
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Done:
    """An awaitable that is over before it begins."""

    def __await__(self) -> Iterator[Any]:
        return _NOTHING


_NOTHING: Iterator[Any] = iter(())
_DONE = _Done()


class Gate:
    """The line's lock, which nobody ever finds taken; `asyncio.Condition` asks no more of one."""

    def __init__(self) -> None:
        self._taken = False

    def locked(self) -> bool:
        """Whether it is held in this very step."""
        return self._taken

    def acquire(self) -> _Done:
        """Take it, at once; awaiting the answer does not suspend."""
        assert not self._taken, "bug: the line's lock was held across a suspension"
        self._taken = True
        return _DONE

    def release(self) -> None:
        """Let go of it."""
        self._taken = False


class Waiter(asyncio.Condition, Generic[T]):
    """One place in the line. Exactly one of `served` and `error` is set when the wait is over.

    It is a Condition rather than having one, and shares with the other waiters of its line what
    `asyncio.Condition.__init__` would make anew; but for its queue, where a list of one does
    instead of a deque. One made in the usual way takes 1,070 bytes.
    """

    __slots__ = ("deadline", "error", "joined_at", "served", "ticket", "waiting")

    def __init__(
        self, pattern: asyncio.Condition, ticket: int, joined_at: float, deadline: float
    ) -> None:
        self._lock = pattern._lock  # type: ignore[attr-defined]
        self.locked = pattern.locked  # type: ignore[method-assign]
        self.acquire = pattern.acquire  # type: ignore[method-assign]
        self.release = pattern.release  # type: ignore[method-assign]
        self._waiters: list[asyncio.Future[bool]] = []  # type: ignore[assignment]
        self.ticket = ticket
        self.joined_at = joined_at
        self.deadline = deadline
        self.waiting = True
        self.served: T | None = None
        self.error: BaseException | None = None

    def __lt__(self, other: Waiter[T]) -> bool:
        return self.deadline < other.deadline


class Line(Generic[T]):
    """The line of waiters."""

    def __init__(self, overdue: Callable[[Waiter[T]], BaseException]) -> None:
        """Make an empty line.

        Args:
            overdue: makes the error for a waiter whose deadline has come, still in the line.
        """
        self._overdue = overdue
        self._gate = Gate()
        self._pattern = asyncio.Condition(self._gate)  # type: ignore[arg-type]
        # Both keep the departed until they come to the front or outnumber those who wait.
        self._places: deque[Waiter[T]] = deque()
        self._deadlines: list[Waiter[T]] = []
        self._tickets = count(1)
        self.length = 0
        """Those who really wait."""
        self._timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Waiter[T]]:
        return (waiter for waiter in self._places if waiter.waiting)

    def ticket(self) -> int:
        """A number higher than all before: the order in which requests have come."""
        return next(self._tickets)

    def join(self, now: float, deadline: float, ticket: int | None = None) -> Waiter[T]:
        """Take the place of that ticket; from here on a hand-over may come, even before `wait`.

        Args:
            now: the instant, `loop.time()`.
            deadline: the instant at which the wait ends in an error; `math.inf` for never.
            ticket: the request's own, when it comes again, having been served something unfit;
                None: the next, and with it the last place.
        """
        if ticket is None:
            ticket = self.ticket()
        waiter: Waiter[T] = Waiter(self._pattern, ticket, now, deadline)
        self.length += 1
        places = self._places
        if not places or places[-1].ticket < ticket:
            places.append(waiter)
        else:
            places.insert(sum(1 for _ in takewhile(lambda w: w.ticket < ticket, places)), waiter)
        if len(self._places) > 2 * self.length + 64:
            self._places = deque(self)
        if deadline != math.inf:
            heapq.heappush(self._deadlines, waiter)
            if len(self._deadlines) > 2 * self.length + 64:
                self._deadlines = [each for each in self._deadlines if each.waiting]
                heapq.heapify(self._deadlines)
            if self._timer is None or deadline < self._timer.when():
                self._set_timer(deadline)
        return waiter

    async def wait(self, waiter: Waiter[T]) -> T:
        """Wait until it is served, or raise its error; after any exception call `leave`."""
        self._gate.acquire()
        try:
            while waiter.served is None and waiter.error is None:
                await waiter.wait()
        finally:
            self._gate.release()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.served is not None, "bug: a waiter woke up with neither item nor error"
        return waiter.served

    def leave(self, waiter: Waiter[T]) -> T | None:
        """Give up the place at once; returns what was handed over already, to be passed on."""
        if waiter.waiting:
            waiter.waiting = False
            self.length -= 1
        served, waiter.served = waiter.served, None
        return served

    def serve(self, item: T) -> bool:
        """Hand the item to the head of the line; False when nobody waits."""
        places = self._places
        while places:
            waiter = places.popleft()
            if waiter.waiting:
                waiter.served = item
                self._end(waiter)
                return True
        return False

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """End every wait, each with an error of its own, and the timer."""
        for waiter in list(self):
            waiter.error = error()
            self._end(waiter)
        self.stop()

    def stop(self) -> None:
        """Leave no timer behind."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, waiter: Waiter[T]) -> None:
        waiter.waiting = False
        self.length -= 1
        gate = self._gate
        gate.acquire()
        waiter.notify()
        gate.release()

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # In a context of its own: the line must not keep the first waiter's variables alive.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, _ring, weakref.ref(self), context=Context())

    def _ring(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._deadlines:
            waiter = self._deadlines[0]
            if waiter.waiting:
                if waiter.deadline > now:
                    self._set_timer(waiter.deadline)
                    return
                waiter.error = self._overdue(waiter)
                self._end(waiter)
            heapq.heappop(self._deadlines)


def _ring(line: weakref.ref[Line[T]]) -> None:
    if (alive := line()) is not None:
        alive._ring()
