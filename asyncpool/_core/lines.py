"""The order of the wait queue: a line for each priority, and in it flows that take turns.

Requests that name neither are one flow in one line: first in, first out.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from asyncpool._core.patience import Patience
from asyncpool._core.service_rate import STEP, ServiceRate


class Place(Protocol):
    """The part of a waiter that decides its place."""

    ticket: int
    joined_at: float
    useful_until: float
    waiting: bool
    """Whether it is in the queue."""


W = TypeVar("W", bound=Place)


class Flow(Generic[W]):
    """The waiters of one flow, first in, first out."""

    __slots__ = ("has_turn", "key", "length", "line", "places", "rate")

    def __init__(self, line: Line[W], key: Hashable) -> None:
        self.line = line
        self.key = key
        self.places: deque[W] = deque()
        """The waiters; those that have left stay until they reach the front or `compact` runs."""
        self.length = 0
        """The number of waiters that have not left."""
        self.has_turn = False
        """Whether it is among the line's `turns`."""
        self.rate: ServiceRate | None = None
        """The flow's own part of the line's rate; None: there is no other flow."""

    @property
    def ahead(self) -> int:
        """The waiters that will be served before a new one of this flow."""
        flows = len(self.line.turns) + (not self.has_turn)
        return min(self.line.length, (self.length + 1) * flows - 1)

    def add(self, waiter: W) -> None:
        """Add a waiter; one that rejoins the flow has its old ticket, and its old position."""
        line, places = self.line, self.places
        if not line.length:
            line.rate.begin(waiter.joined_at)
            line.patience.begin(waiter.joined_at)
        if not self.has_turn:
            line.begin_turn(self, waiter.joined_at)
        if self.rate is not None and not self.length:
            self.rate.begin(waiter.joined_at)
        if not places or places[-1].ticket <= waiter.ticket:
            places.append(waiter)
        else:
            insort(places, waiter, key=attrgetter("ticket"))
        if waiter.useful_until != math.inf:
            line.has_deadlines = True
        self.length += 1
        line.length += 1

    def measure(self, now: float) -> None:
        """Begin to measure the flow's own rate."""
        self.rate = ServiceRate()
        if self.length:
            self.rate.begin(now)

    def compact(self) -> None:
        """Drop the waiters that have left."""
        self.places = deque(each for each in self.places if each.waiting)


class Line(Generic[W]):
    """The waiters of one priority, and what was measured of them."""

    __slots__ = (
        "flows",
        "has_deadlines",
        "length",
        "patience",
        "plain",
        "priority",
        "rate",
        "turns",
        "use",
    )

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.length = 0
        """The number of waiters."""
        self.plain: Flow[W] = Flow(self, None)
        """The flow of the requests that name none."""
        self.flows: dict[Hashable, Flow[W]] = {None: self.plain}
        """It, and the flows that have turns, by key."""
        self.turns: deque[Flow[W]] = deque()
        """The flows that may have waiters; the first one is served next."""
        self.rate = ServiceRate()
        self.patience = Patience()
        self.use = 0.0
        """The mean duration of a use in seconds, when it was last needed."""
        self.has_deadlines = False
        """Whether a waiter may have a deadline for all of its work."""

    def __iter__(self) -> Iterator[W]:
        return (each for flow in self.turns for each in flow.places if each.waiting)

    def flow(self, key: Hashable) -> Flow[W]:
        """Return the flow with this key; a new one is kept only once it has a waiter."""
        found = self.flows.get(key)
        return Flow(self, key) if found is None else found

    def begin_turn(self, flow: Flow[W], now: float) -> None:
        """Let a flow that has a waiter again have its turns, after all others."""
        flow.has_turn = True
        self.turns.append(flow)
        if flow.key is not None:
            self.flows[flow.key] = flow
            for each in self.flows.values():
                if each.rate is None:
                    each.measure(now)

    def head(self) -> W | None:
        """Return the waiter that is served next; drop those before it that have left."""
        turns = self.turns
        while turns:
            flow = turns[0]
            places = flow.places
            while places and not places[0].waiting:
                places.popleft()
            if places:
                return places[0]
            self._end_turn(turns.popleft())
        return None

    def serve(self, clock: Callable[[], float]) -> None:
        """Take the head from its place, count it, and pass the turn to the next flow."""
        turns, rate = self.turns, self.rate
        flow = turns[0]
        flow.places.popleft()
        if len(turns) > 1:
            turns.rotate(-1)
        rate.count += 1
        if not rate.count % STEP:
            rate.mark(clock())
        own = flow.rate
        if own is not None:
            own.count += 1
            if not own.count % STEP:
                own.mark(clock())

    def clear(self, now: float) -> None:
        """Forget waiters and flows: nobody waits any more."""
        self.rate.end(now)
        self.has_deadlines = False
        for flow in self.turns:
            # Else ten thousand waiters of a burst would be kept, and collected with, until later.
            flow.places.clear()
            flow.has_turn = False
        self.turns.clear()
        if len(self.flows) > 1:
            self.plain.rate = None
            self.flows = {None: self.plain}

    def _end_turn(self, flow: Flow[W]) -> None:
        flow.has_turn = False
        if flow.key is not None:
            del self.flows[flow.key]
