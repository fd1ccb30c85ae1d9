"""One wait for a connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from asyncpool._core.lines import Flow, Line

T = TypeVar("T")


class Waiter(asyncio.Condition, Generic[T]):
    """One place in the wait queue. When the wait ends, exactly one of `served` and `error` is set.

    A Condition that one task waits for, once, without a lock. `Condition.__init__` is not called,
    because it allocates 1,070 bytes.
    """

    _waiters = ()  # type: ignore[assignment]  # for Condition.__repr__
    needs_own_connection = True
    """Whether this waiter needs a connection of its own."""
    line: Line[Waiter[T]]
    """Its line; like its flow, not set before it joins the queue."""
    place: tuple[int, Hashable] | None = None
    """Its priority and the key of its flow; None: it has neither."""
    arrived_at: float | None = None
    """When the request arrived, if that was before it joined the queue; else None."""
    useful_until = math.inf
    """The deadline for all of its work, after which a connection is of no use to it."""
    flow: Flow[Waiter[T]]
    """Its flow, in an `Order`."""

    __slots__ = (
        "_future",
        "counted_own",
        "deadline",
        "error",
        "flow",
        "joined_at",
        "line",
        "queued",
        "served",
        "task",
        "ticket",
        "waited",
        "waiting",
    )

    def __init__(self, ticket: int, joined_at: float, deadline: float) -> None:
        self._future: asyncio.Future[bool] | None = None
        self.ticket = ticket
        self.joined_at = joined_at
        self.deadline = deadline
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

    def patience_in(self, line: Line[Waiter[T]]) -> float:
        """Return the age at which its caller will cancel it, as those of others in its line did.

        It is infinite for a waiter that says its deadline.
        """
        return line.patience.limit if self.useful_until == math.inf else math.inf

    def locked(self) -> bool:
        """Return True: nothing else runs between two awaits, so there is no lock to take."""
        return True

    def wait(self) -> asyncio.Future[bool]:  # type: ignore[override]
        """Return a future that `notify` completes."""
        self._future = future = asyncio.get_running_loop().create_future()
        return future

    def notify(self, n: int = 1) -> None:
        """Wake the task, unless its wait is already cancelled."""
        if self._future is not None and not self._future.done():
            self._future.set_result(False)

    def __lt__(self, other: Waiter[T]) -> bool:
        return self.deadline < other.deadline
