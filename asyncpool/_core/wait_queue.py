"""The wait queue: tasks that wait for a connection, served strictly first in, first out.

It decides which waiter is next and when a wait times out. It opens no connections: the items that
it hands over come from the ledger. Requests that ask for a priority or a flow have lines and flows
of their own (`lines.py`); within each the order is the same.

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

Deadlines
    One timer serves the whole queue, because a timer for each waiter would cost more than the
    hand-over. It is set to the earliest deadline. It is not changed when a waiter leaves; when it
    fires for one that has left, it is set again. If all waiters have the same timeout, deadlines
    arrive in increasing order and fit in a deque. A deadline earlier than the last one goes to a
    heap. Both drop waiters that have left when these reach the front or `_compact` runs.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from asyncpool._core.admission import reserve
from asyncpool._core.lines import Flow, Line
from asyncpool._core.timer import Timer

T = TypeVar("T")

KEPT_LINES = 8
"""The number of lines above which those without waiters are dropped."""


class Waiter(asyncio.Condition, Generic[T]):
    """One place in the wait queue. When the wait ends, exactly one of `served` and `error` is set.

    A Condition that one task waits for, once, without a lock. `Condition.__init__` is not called,
    because it allocates 1,070 bytes.
    """

    needs_own_connection = True
    """Whether this waiter needs a connection of its own."""
    flow: Flow[Waiter[T]]
    """Its flow; not set before it joins the queue."""

    __slots__ = (
        "_waiters",
        "counted_own",
        "deadline",
        "error",
        "flow",
        "joined_at",
        "place",
        "queued",
        "served",
        "task",
        "ticket",
        "useful_until",
        "waited",
        "waiting",
    )

    def __init__(self, ticket: int, joined_at: float, deadline: float) -> None:
        self._waiters: tuple[asyncio.Future[bool], ...] = ()  # type: ignore[assignment]
        self.ticket = ticket
        self.joined_at = joined_at
        self.deadline = deadline
        self.useful_until = math.inf
        """The deadline for all of its work, after which a connection is of no use to it."""
        self.place: tuple[int, Hashable] | None = None
        """Its priority and the key of its flow; None: neither was asked for."""
        self.waited = 0.0
        """Duration of the wait, set when it ends."""
        self.queued = True
        """Whether it counts as a wait: it does not where a connect of its own is under way."""
        self.waiting = False
        """Whether it is in the queue."""
        self.counted_own = True
        """The value of `needs_own_connection` that `own_demand` includes."""
        self.task: asyncio.Task[Any] | None = None
        """The waiting task."""
        self.served: T | None = None
        self.error: BaseException | None = None

    def locked(self) -> bool:
        """Return True: nothing else runs between two awaits, so there is no lock to take."""
        return True

    def wait(self) -> asyncio.Future[bool]:  # type: ignore[override]
        """Return a future that `notify` completes."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters = (future,)
        return future

    def notify(self, n: int = 1) -> None:
        """Wake the task, unless its wait is already cancelled."""
        for future in self._waiters:
            if not future.done():
                future.set_result(False)

    def __lt__(self, other: Waiter[T]) -> bool:
        return self.deadline < other.deadline


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
        self._usual: Line[Waiter[T]] = Line(0)
        """The line of those who ask for no priority."""
        self._lines = [self._usual]
        """The lines, the highest priority first."""
        self.plain = self._usual.plain
        """The flow of those who ask for neither."""
        # Both keep waiters that have left, until these reach the front, `_compact` runs, or no
        # waiter is left; so do the lines.
        self._deadlines: deque[Waiter[T]] = deque()
        self._early: list[Waiter[T]] = []
        self._last_ticket = 0
        self.length = 0
        """The number of waiters."""
        self.own_demand = 0
        """The waiters that need a connection each; all others together need one."""
        self.undelivered_errors = 0
        """Waiters that were failed and whose tasks have not run since."""
        self._timer = Timer(self._on_timer)
        """Set to the earliest deadline, or to an earlier one of a waiter that has left."""

    def __iter__(self) -> Iterator[Waiter[T]]:
        return (waiter for line in self._lines for waiter in line)

    def ticket(self) -> int:
        """Return the next ticket; tickets number the requests in order of arrival."""
        self._last_ticket += 1
        return self._last_ticket

    @property
    def demand(self) -> int:
        """The number of connections that the waiters need."""
        return self.own_demand + (self.length > self.own_demand)

    def flow_for(self, waiter: Waiter[T]) -> Flow[Waiter[T]]:
        """Return the flow that a waiter belongs to; it is made if there is none."""
        if waiter.place is None:
            return self.plain
        priority, key = waiter.place
        for line in self._lines:
            if line.priority == priority:
                return line.flow(key)
        line = Line(priority)
        # Lines are kept for what they have measured, while they are few.
        if len(self._lines) > KEPT_LINES:
            self._lines = [each for each in self._lines if each.length or each is self._usual]
        insort(self._lines, line, key=lambda each: -each.priority)
        return line.flow(key)

    def admit(self, waiter: Waiter[T]) -> None:
        """Add a waiter; from now on it may be served, even before it calls `wait`.

        Tickets decide the position. A request that was served an unusable connection rejoins with
        its first ticket, so it keeps its position.
        """
        deadlines, deadline = self._deadlines, waiter.deadline
        waiter.flow = flow = self.plain if waiter.place is None else self.flow_for(waiter)
        flow.add(waiter)
        self.length = length = self.length + 1
        waiter.waiting, waiter.counted_own = True, waiter.needs_own_connection
        self.own_demand += waiter.counted_own
        if deadline != math.inf:
            if not deadlines or deadlines[-1].deadline <= deadline:
                deadlines.append(waiter)
            else:
                heapq.heappush(self._early, waiter)
            if deadline < self._timer.at:
                self._timer.set(deadline)
        kept = len(flow.places) - flow.length + len(deadlines) + len(self._early)
        if kept > 3 * length + 128:
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
        for line in self._lines:
            if line.length:
                return line.head()
        return None

    def serve(self, item: T) -> bool:
        """Hand the item to the first waiter; return False if there is none."""
        for line in self._lines:
            if line.length:
                break
        else:
            return False
        if line.has_deadlines or line.patience.limit != math.inf:
            self._refuse_late(line)
        waiter = line.head()
        assert waiter is not None, "bug: a line counts a waiter that it does not have"
        line.serve(self._clock)
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
        self._deadlines.clear()
        self._early.clear()
        self._timer.cancel()

    def _remove(self, waiter: Waiter[T]) -> None:
        waiter.waiting = False
        self.own_demand -= waiter.counted_own
        flow = waiter.flow
        flow.length -= 1
        if not flow.length and flow.rate is not None:
            flow.rate.end(self._clock())
        line = flow.line
        line.length = length = line.length - 1
        if not length:
            line.clear(self._clock())
        self.length = length = self.length - 1
        if not length:
            self._deadlines.clear()
            self._early.clear()

    def _refuse_late(self, line: Line[Waiter[T]]) -> None:
        """Fail the first waiters that could not use a connection before their deadline.

        The last one is not failed: a connection is better used late than not at all.
        """
        now, patience = self._clock(), line.patience.limit
        while line.length > 1:
            waiter = line.head()
            assert waiter is not None, "bug: a line counts a waiter that it does not have"
            end = min(waiter.useful_until, waiter.joined_at + patience)
            if now + reserve(line.use, end - waiter.joined_at) <= end:
                return
            self.fail(waiter, self._overdue(waiter, True))

    def _compact(self) -> None:
        for line in self._lines:
            for flow in line.turns:
                flow.compact()
        self._deadlines = deque(each for each in self._deadlines if each.waiting)
        self._early = [each for each in self._early if each.waiting]
        heapq.heapify(self._early)

    def _on_timer(self, due: float) -> None:
        # With a coarse clock the timer may run slightly before its deadline: treat that as due.
        now = max(asyncio.get_running_loop().time(), due)
        while (waiter := self._next_to_expire()) is not None:
            if waiter.deadline > now:
                self._timer.set(waiter.deadline)
                return
            self.fail(waiter, self._overdue(waiter, False))

    def _next_to_expire(self) -> Waiter[T] | None:
        """Return the waiter with the earliest deadline, or None if no waiter has a deadline."""
        queue, heap = self._deadlines, self._early
        while queue and not queue[0].waiting:
            queue.popleft()
        while heap and not heap[0].waiting:
            heapq.heappop(heap)
        if queue and heap:
            return min(queue[0], heap[0])
        return queue[0] if queue else heap[0] if heap else None
