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

Why a Condition for each waiter, and no lock
    `asyncio.Condition.notify()` wakes the oldest waiter of that Condition whose future is still
    pending. With a Condition for the whole line that would nearly be the head, but only nearly: the
    head may have been cancelled in this very turn of the loop, and then the notice goes to a task
    that was handed nothing while the one that was handed the connection sleeps on. So each waiter
    is a Condition to itself and a notice cannot reach the wrong task. That also makes a hand-over
    and a departure O(1): a shared Condition searches its queue for both.

    A Condition has a lock, so that what it guards does not change between the look and the wait.
    What is guarded here is the line, which changes between two awaits and never across one: on one
    event loop there is nobody to lock out. Under such a lock nothing would be awaited but the
    Condition, which lets go of it; no task would ever find it taken. So there is none: `locked` is
    a fact, `wait` has no way back to the lock to go, and a hand-over costs a third less.

The CPython bug
    Until 3.12.2 (and in every 3.11) a notice was lost when the task it woke was cancelled before it
    could run: the notice was spent, and nobody passed it on (python/cpython#112202). A pool built
    on notices alone stops there with an idle connection and a full line. Here a notice is never the
    only record of anything: a waiter that leaves for whatever reason gives back what it holds.

Deadlines
    One timer serves the whole line; a timer for each waiter would cost more than the hand-over. It
    is set to the earliest deadline there was when it was set. Departures do not touch it: when it
    rings for somebody who has left, it is set anew. With one timeout for all, the common case, each
    deadline is the latest, and they are a queue as the line is. Whoever has less time than somebody
    ahead goes to a heap beside it. Both drop the departed late, and at the latest when these
    outnumber those who wait.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from itertools import takewhile
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Waiter(asyncio.Condition, Generic[T]):
    """One place in the line. Exactly one of `served` and `error` is set when the wait is over.

    A Condition that is waited for once, by one task, under no lock. It has slots only: one made in
    the usual way takes 1,070 bytes.
    """

    alone = True
    """Whether it is taken to need a connection to itself."""

    __slots__ = (
        "_waiters",
        "counted_alone",
        "deadline",
        "error",
        "joined_at",
        "served",
        "task",
        "ticket",
        "waited",
        "waiting",
    )

    def __init__(self, ticket: int, joined_at: float, deadline: float) -> None:
        self._waiters: tuple[asyncio.Future[bool], ...] = ()  # type: ignore[assignment]
        self.ticket = ticket
        self.joined_at = joined_at
        self.deadline = deadline
        self.waited = 0.0
        """How long it has waited, once that is over."""
        self.waiting = False
        """Whether it is in the line."""
        self.counted_alone = True
        """Whether it was taken to need a connection to itself when it was last counted."""
        self.task: asyncio.Task[Any] | None = None
        """Who waits, once it does."""
        self.served: T | None = None
        self.error: BaseException | None = None

    def locked(self) -> bool:
        """Always: nobody else runs between two awaits."""
        return True

    def wait(self) -> asyncio.Future[bool]:  # type: ignore[override]
        """What to await until `notify`."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters = (future,)
        return future

    def notify(self, n: int = 1) -> None:
        """Wake its task, unless that was cancelled by now."""
        for future in self._waiters:
            if not future.done():
                future.set_result(False)

    def __lt__(self, other: Waiter[T]) -> bool:
        return self.deadline < other.deadline


class WaitQueue(Generic[T]):
    """The line of waiters."""

    def __init__(self, overdue: Callable[[Waiter[T]], BaseException]) -> None:
        """Make an empty line.

        Args:
            overdue: makes the error for a waiter whose deadline has come, still in the line.
        """
        self._overdue = overdue
        # All three keep the departed until they come to the front or outnumber those who wait.
        self._places: deque[Waiter[T]] = deque()
        self._deadlines: deque[Waiter[T]] = deque()
        self._early: list[Waiter[T]] = []
        self._last_ticket = 0
        self.length = 0
        """Those who really wait."""
        self.alone_count = 0
        """Those of them who need a connection each; the others need one together."""
        self.unseen_errors = 0
        """Those whose wait has ended in an error, and who have not run yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __iter__(self) -> Iterator[Waiter[T]]:
        return (waiter for waiter in self._places if waiter.waiting)

    def ticket(self) -> int:
        """A number higher than all before: the order in which requests have come."""
        self._last_ticket += 1
        return self._last_ticket

    @property
    def demand(self) -> int:
        """How many connections those who wait need."""
        return self.alone_count + (self.length > self.alone_count)

    def admit(self, waiter: Waiter[T]) -> None:
        """Let a waiter take its place; from here on a hand-over may come, even before its `wait`.

        That is the place of its ticket, which is an older one where a request comes again, having
        been served something unfit.
        """
        places, deadlines = self._places, self._deadlines
        ticket, deadline = waiter.ticket, waiter.deadline
        if not places or places[-1].ticket <= ticket:
            places.append(waiter)
        else:
            before = sum(1 for _ in takewhile(lambda w: w.ticket <= ticket, places))
            places.insert(before, waiter)
        self.length = length = self.length + 1
        waiter.waiting, waiter.counted_alone = True, waiter.alone
        self.alone_count += waiter.counted_alone
        if deadline != math.inf:
            if not deadlines or deadlines[-1].deadline <= deadline:
                deadlines.append(waiter)
            else:
                heapq.heappush(self._early, waiter)
            if deadline < self._timer_at:
                self._set_timer(deadline)
        if len(places) + len(deadlines) + len(self._early) > 4 * length + 128:
            self._compact()

    def leave(self, waiter: Waiter[T]) -> T | None:
        """Give up the place at once; returns what was handed over already, to be passed on."""
        if waiter.waiting:
            self._remove(waiter)
        elif waiter.error is not None:
            self.unseen_errors -= 1
        served, waiter.served = waiter.served, None
        waiter.error = waiter.task = None  # it is kept for a while, and they keep others
        return served

    def head(self) -> Waiter[T] | None:
        """Return the first who still waits; the departed before it are dropped."""
        places = self._places
        while places and not places[0].waiting:
            places.popleft()
        return places[0] if places else None

    def serve(self, item: T) -> bool:
        """Hand the item to the head of the line; False when nobody waits."""
        if (waiter := self.head()) is None:
            return False
        self._places.popleft()
        self._remove(waiter)
        waiter.served = item
        waiter.notify()
        return True

    def recount(self) -> None:
        """Count anew those who are taken to need a connection each."""
        self.alone_count = 0
        for waiter in self:
            waiter.counted_alone = waiter.alone
            self.alone_count += waiter.counted_alone

    def fail(self, waiter: Waiter[T], error: BaseException) -> None:
        """End the wait of one with an error."""
        waiter.error = error
        self._remove(waiter)
        self.unseen_errors += 1
        waiter.notify()

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """End every wait, each with an error of its own, and the timer."""
        for waiter in list(self):
            self.fail(waiter, error())
        self.stop()

    def stop(self) -> None:
        """Leave no timer behind."""
        self._deadlines.clear()
        self._early.clear()
        self._timer_at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _remove(self, waiter: Waiter[T]) -> None:
        waiter.waiting = False
        self.length -= 1
        self.alone_count -= waiter.counted_alone

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # In a context of its own: the line must not keep the first waiter's variables alive.
        loop = asyncio.get_running_loop()
        self._timer_at = deadline
        self._timer = loop.call_at(deadline, _on_timer, weakref.ref(self), context=Context())

    def _compact(self) -> None:
        self._places = deque(self)
        self._deadlines = deque(each for each in self._deadlines if each.waiting)
        self._early = [each for each in self._early if each.waiting]
        heapq.heapify(self._early)

    def _on_timer(self) -> None:
        # A loop of a coarse clock may ring a little early: the instant that was asked for has come.
        now = max(asyncio.get_running_loop().time(), self._timer_at)
        self._timer, self._timer_at = None, math.inf
        while (waiter := self._next_to_expire()) is not None:
            if waiter.deadline > now:
                self._set_timer(waiter.deadline)
                return
            self.fail(waiter, self._overdue(waiter))

    def _next_to_expire(self) -> Waiter[T] | None:
        """Who has the least time of those who wait, if anybody has a limit."""
        queue, heap = self._deadlines, self._early
        while queue and not queue[0].waiting:
            queue.popleft()
        while heap and not heap[0].waiting:
            heapq.heappop(heap)
        if queue and heap:
            return min(queue[0], heap[0])
        return queue[0] if queue else heap[0] if heap else None


def _on_timer(queue: weakref.ref[WaitQueue[T]]) -> None:
    if (alive := queue()) is not None:
        alive._on_timer()
