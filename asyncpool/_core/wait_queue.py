"""The wait queue: tasks that wait for a connection, served strictly first in, first out.

It decides which waiter is next and when a wait times out. It opens no connections: the items that
it hands over come from the ledger. As long as a request with a priority or a flow waits, an `Order`
decides who is next; within a flow the order is the same.

Why the releaser hands over
    The usual pattern for a condition variable is: set a flag, notify one task, and let it look for
    work when it runs. Between the notification and that moment a new request can take the
    connection (asyncpg #1247, bb8 #243), so the order is not guaranteed. Here the releaser decides.
    It removes the first waiter from the queue, stores the connection in its `Waiter`, and then
    wakes its task. From then on the waiter owns the connection, whether or not its task has run.
    If the task is cancelled before it runs, `leave` returns the connection, and the pool hands it
    to the next waiter.

Why one Condition per waiter
    `asyncio.Condition.notify()` wakes the oldest waiter whose future is pending. With one Condition
    for the queue, that is not always the waiter that was served: if that one was cancelled in the
    same loop iteration, another task is woken, which was handed nothing. With one Condition per
    waiter, a notification cannot reach the wrong task. Serving and leaving are also O(1), because
    no shared queue of futures is searched.

Why no lock
    The lock of a Condition protects state between the test and the wait. The state here is the
    queue. It changes only between awaits, and one event loop runs one task at a time, so no task
    would ever find the lock taken. Therefore `locked` returns True, `wait` does not reacquire a
    lock, and a hand-over costs a third less.

The lost notification in CPython
    Until 3.12.2, and in every 3.11, a notification is lost when the task it wakes is cancelled
    before it runs (python/cpython#112202). A pool that relies on notifications alone then stops,
    with an idle connection and waiters. Here the `Waiter` records the hand-over, and a waiter that
    leaves for any reason returns the connection it was served.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from asyncpool._core.admission import Decided, QueuePace, pace, reserve
from asyncpool._core.deadlines import Deadlines
from asyncpool._core.lines import Flow, Line, Order
from asyncpool._core.service_rate import STEP, ServiceRate
from asyncpool._core.waiter import Waiter

T = TypeVar("T")


class WaitQueue(Generic[T]):
    """The queue of waiters for one pool."""

    def __init__(
        self,
        overdue: Callable[[Waiter[T], bool], BaseException],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create an empty queue.

        Args:
            overdue: makes the error for a waiter whose deadline has passed; if the second argument
                is true, for one that could not use a connection before its deadline. The waiter is
                still in the queue when this is called.
            clock: returns the current instant.
        """
        self._overdue = overdue
        self._clock = clock
        self.line: Line[Waiter[T]] = Line(0)
        """The line of the requests without a priority."""
        self.plain = self.line.plain
        """The flow of the requests with neither a priority nor a flow."""
        self.order: Order[Waiter[T]] | None = None
        """The order of all waiters; None: all are in the plain flow."""
        self._judged = -1
        """The ticket of the head that was last found to be in time: it stays so until served."""
        self.rate = ServiceRate()
        """The rate of all hand-overs."""
        self.judges = True
        """Whether waiters may be refused because they could not be served in time."""
        self.decided: dict[float, Decided] = {}
        """The last decisions about new requests, by the time limit of the requests in seconds."""
        self.sees_scopes = False
        """Whether a request was found to have a deadline of anyio's: then each one is judged."""
        self._deadlines: Deadlines[T] = Deadlines(self._on_timer)
        self._last_ticket = 0
        self.length = 0
        """The number of waiters."""
        self.own_demand = 0
        """The waiters that need a connection each; all others together need one."""
        self.undelivered_errors = 0
        """Waiters that were failed and whose tasks have not run since."""

    def __iter__(self) -> Iterator[Waiter[T]]:
        if self.order is not None:
            return iter(self.order)
        return (waiter for waiter in self.plain.places if waiter.waiting)

    def ticket(self) -> int:
        """Return the next ticket; tickets number the requests in order of arrival."""
        self._last_ticket += 1
        return self._last_ticket

    @property
    def demand(self) -> int:
        """The number of connections that the waiters need."""
        return self.own_demand + (self.length > self.own_demand)

    def place_for(self, waiter: Waiter[T]) -> tuple[Flow[Waiter[T]], int]:
        """Return the flow of a new waiter, and how many of its line are served before it."""
        if not self.length or (self.order is None and waiter.place is None):
            return self.plain, self.length
        flow = self._ordered().flow(waiter.place)
        return flow, flow.ahead

    def pace(self, time_limit: float, *, leased: int, coming: int) -> QueuePace:
        """Return how the requests without a priority wait and are served; see `judge`."""
        ahead = self.length if self.order is None else self.plain.ahead
        return pace(
            self.rate, self.line, ahead, time_limit, self._clock(), leased=leased, coming=coming
        )

    def admit(self, waiter: Waiter[T]) -> None:
        """Add a waiter; from now on it may be served, even before it calls `wait`.

        Tickets decide the position. A request that was served an unusable connection rejoins with
        its first ticket, so it keeps its position.
        """
        if not self.length:
            self._begin(waiter.joined_at)
        if self.order is None and waiter.place is None:
            waiter.line, places = self.line, self.plain.places
            if not places or places[-1].ticket <= waiter.ticket:  # as in `Flow.put`
                places.append(waiter)
            else:
                self.plain.put(waiter)
        else:
            self._put_in_order(waiter)
        self.length = length = self.length + 1
        waiter.waiting, waiter.counted_own = True, waiter.needs_own_connection
        self.own_demand += waiter.counted_own
        if waiter.deadline != math.inf:
            self._deadlines.add(waiter)
        if not waiter.ticket % 32:
            kept = len(self.plain.places) if self.order is None else self.order.kept
            if kept + len(self._deadlines) > 4 * length + 96:
                self._compact()

    def leave(self, waiter: Waiter[T]) -> T | None:
        """Remove a waiter; return an item it was served but has not taken, to be passed on."""
        if waiter.waiting:
            self._remove(waiter)
        elif waiter.error is not None:
            self.undelivered_errors -= 1
        served, waiter.served = waiter.served, None
        # The queue keeps the waiter for a while; the waiter must not keep these alive.
        waiter.error = waiter.task = None
        return served

    def head(self) -> Waiter[T] | None:
        """Return the waiter that is served next; None if there is none."""
        return self.plain.head() if self.order is None else self.order.head()

    def head_in_time(self) -> Waiter[T] | None:
        """Return the waiter that `serve` would serve; fail those before it that are too late."""
        head = self.head()
        if head is None or (self.order is None and not head.line.may_be_late):
            return head
        return self._first_in_time(head)

    def serve(self, item: T) -> bool:
        """Hand the item to the first waiter; return False if there is none."""
        if self.order is None:
            line, places = self.line, self.plain.places
            while places and not places[0].waiting:  # as in `Flow.head`
                places.popleft()
            if not places:
                return False
            waiter = places[0]
            if line.may_be_late:
                waiter = self._first_in_time(waiter)
            places.popleft()
        else:
            waiter = self._first_in_time(self.order.head())
            waiter.flow.places.popleft()
            self.order.end_turn(waiter.flow, self._clock())
        rate = self.rate
        rate.count = count = rate.count + 1  # as in `ServiceRate.note`
        if not count % STEP:
            rate.mark(self._clock())
            self.decided.clear()
        self._remove(waiter)
        waiter.served = item
        waiter.notify()
        return True

    def recount(self) -> None:
        """Update `own_demand` after `needs_own_connection` of some waiters has changed."""
        self.own_demand = 0
        for waiter in self:
            waiter.counted_own = waiter.needs_own_connection
            self.own_demand += waiter.counted_own

    def fail(self, waiter: Waiter[T], error: BaseException) -> None:
        """End one wait with an error."""
        waiter.error = error
        self._remove(waiter)
        self.undelivered_errors += 1
        waiter.notify()

    def fail_all(self, error: Callable[[], BaseException]) -> None:
        """End every wait, each with its own error, and cancel the timer."""
        for waiter in list(self):
            self.fail(waiter, error())
        self.stop()

    def stop(self) -> None:
        """Cancel the timer."""
        self._deadlines.stop()

    def _remove(self, waiter: Waiter[T]) -> None:
        waiter.waiting = False
        self.own_demand -= waiter.counted_own
        self.length = length = self.length - 1
        if self.order is not None:
            self.order.remove(waiter.flow, self._clock())
        if not length:
            self.rate.end(self._clock())
            self.line.may_be_late = self.line.patience.limit != math.inf
            # Else ten thousand waiters of a burst would be kept, and collected with, until later.
            self.plain.places.clear()
            self.sees_scopes = False
            self.decided.clear()
            self._deadlines.clear()
            if self.order is not None:
                self.order.end()
                self.order = None

    def oldest(self, line: Line[Waiter[T]]) -> float:
        """Return when the earliest waiter of a line joined; infinite: there is none."""
        if self.order is not None:
            return self.order.oldest(line)
        head = self.plain.head()
        return math.inf if head is None else head.joined_at

    def doubt_patience(self, line: Line[Waiter[T]], now: float) -> None:
        """Extend or forget the limit of a line that no cancellation has confirmed for long."""
        if line.patience.is_doubtful(now):
            line.patience.extend(now, now - self.oldest(line))

    def _begin(self, now: float) -> None:
        """Note that requests wait again."""
        if self.rate.begin(now):
            self.line.use = 0.0
        self.line.patience.expire(now)

    def _put_in_order(self, waiter: Waiter[T]) -> None:
        """Add a waiter to its flow in the order of all waiters."""
        order = self._ordered()
        waiter.flow = flow = order.flow(waiter.place)
        waiter.line = flow.line
        order.add(waiter, flow)

    def _ordered(self) -> Order[Waiter[T]]:
        """Return the order of all waiters; it lasts until the queue is empty."""
        if self.order is None:
            for each in self:
                each.flow = self.plain
            self.order = Order(self.line, self, self._clock(), self.rate.since)
            self.decided.clear()
        return self.order

    def _first_in_time(self, head: Waiter[T]) -> Waiter[T]:
        """Return the first waiter that can use a connection before its deadline; fail the others.

        The last one is not failed: a connection is better used late than not at all.
        """
        now = self._clock()
        while self.judges and self.length > 1 and head.ticket != self._judged:
            line = head.line
            self.doubt_patience(line, now)
            end = min(head.useful_until, head.joined_at + head.patience_in(line))
            if now + reserve(line.use, end - head.joined_at) <= end:
                break
            self.fail(head, self._overdue(head, True))
            following = self.head()
            assert following is not None, "bug: the queue counts a waiter that it does not have"
            head = following
        self._judged = head.ticket
        return head

    def _compact(self) -> None:
        self.plain.compact()
        if self.order is not None:
            self.order.compact()
        self._deadlines.compact()

    def _on_timer(self, due: float) -> None:
        # With a coarse clock the timer may run slightly before its deadline: treat that as due.
        now = max(asyncio.get_running_loop().time(), due)
        while (waiter := self._deadlines.passed(now)) is not None:
            self.fail(waiter, self._overdue(waiter, False))
