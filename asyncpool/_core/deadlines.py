"""The deadlines of the waiters in a queue.

One timer serves all of them, because a timer for each waiter would cost more than the hand-over. It
is set to the earliest deadline. It is not changed when a waiter leaves; when it fires for one that
has left, it is set again. If all waiters have the same timeout, deadlines arrive in increasing
order and fit in a deque. A deadline earlier than the last one goes to a heap. Both keep waiters
that have left, until these reach the front, `compact` runs, or no waiter is left.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from asyncpool._core.timer import Timer
from asyncpool._core.waiter import Waiter

T = TypeVar("T")


class Deadlines(Generic[T]):
    """The deadlines of one queue.

    Args:
        on_timer: the queue's method that is called when one may have passed: it fails what
            `passed` returns. Only the queue keeps it alive.
    """

    __slots__ = ("_early", "_in_order", "timer")

    def __init__(self, on_timer: Callable[[float], None]) -> None:
        self._in_order: deque[Waiter[T]] = deque()
        self._early: list[Waiter[T]] = []
        self.timer = Timer(on_timer)
        """Set to the earliest deadline, or to an earlier one of a waiter that has left."""

    def __len__(self) -> int:
        """The number of waiters that are kept, also of those that have left."""
        return len(self._in_order) + len(self._early)

    def add(self, waiter: Waiter[T]) -> None:
        """Add the deadline of a waiter, which is finite."""
        in_order, deadline = self._in_order, waiter.deadline
        if not in_order or in_order[-1].deadline <= deadline:
            in_order.append(waiter)
        else:
            heapq.heappush(self._early, waiter)
        if deadline < self.timer.at:
            self.timer.set(deadline)

    def passed(self, now: float) -> Waiter[T] | None:
        """Return a waiter whose deadline has passed; without one set the timer, and return None."""
        waiter = self._next()
        if waiter is None or waiter.deadline <= now:
            return waiter
        self.timer.set(waiter.deadline)
        return None

    def compact(self) -> None:
        """Drop the waiters that have left."""
        self._in_order = deque(each for each in self._in_order if each.waiting)
        self._early = [each for each in self._early if each.waiting]
        heapq.heapify(self._early)

    def clear(self) -> None:
        """Drop all waiters: they have left."""
        self._in_order.clear()
        self._early.clear()

    def stop(self) -> None:
        """Drop all waiters and cancel the timer."""
        self.clear()
        self.timer.cancel()

    def _next(self) -> Waiter[T] | None:
        """Return the waiter with the earliest deadline; None if there is none."""
        in_order, heap = self._in_order, self._early
        while in_order and not in_order[0].waiting:
            in_order.popleft()
        while heap and not heap[0].waiting:
            heapq.heappop(heap)
        if in_order and heap:
            return min(in_order[0], heap[0])
        return in_order[0] if in_order else heap[0] if heap else None
